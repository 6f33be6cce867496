"""The forward pass of training: stock modules, packed sequences, a loss on the answers, and two probes.

The probes are linear layers that training alone has: one must read from the vision tower's tokens what a slice shows,
one from the hidden states of a decoder layer what has been seen so far. A clip has a few questions but many slices, so
they teach perception in hundreds of steps instead of thousands. They are thrown away with the training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import AttentionInterface

from examples.needle.families import Family
from examples.needle.families.base import SLICE_TOKENS
from examples.needle.packing import SLOT, Prompts, slot_mask, slot_positions
from examples.needle.truth import NUM_SO_FAR, NUM_VISIBLE

__all__ = ["PackedModel"]

_ATTENTION = "needle_packed"
_PROBED_LAYER = 2
_PROBE_WEIGHT = 1.0


class PackedModel(nn.Module):
    """Runs a family's model on packed batches. All weights but the probes' belong to the model it is given."""

    def __init__(self, family: Family, model: Any, processor: Any) -> None:
        super().__init__()
        self.model = model
        self._family = family
        self._video_processor = processor.video_processor
        self._prompts = Prompts(family, model, processor)
        width = model.config.get_text_config().hidden_size
        self.visible_probe = nn.Linear(SLICE_TOKENS * width, NUM_VISIBLE)
        self.so_far_probe = nn.Linear(width, NUM_SO_FAR)
        family.hasten(model)
        AttentionInterface.register(_ATTENTION, _packed_attention)
        model.model.language_model.config._attn_implementation = _ATTENTION
        model.model.language_model.layers[_PROBED_LAYER].register_forward_hook(self._remember)
        self._probed: torch.Tensor | None = None

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """(loss to train on, whether each answer is right (B, Q), the loss's parts)."""
        core, family = self.model.model, self._family
        tokens, answer_at, seconds = batch["tokens"], batch["answer_at"], float(batch["seconds_per_slice"])
        clips, slots, length = tokens.shape
        prompt = self._prompts.prompt(batch["visible"].shape[1], seconds)
        seen = [self._prompts.prompt(slices, seconds) for slices in batch["slices"].flatten().tolist()]
        own = slot_positions(seen, answer_at.cpu()).flatten(1)
        shared = prompt.positions[:, None].expand(-1, clips, -1)
        positions = torch.cat([shared, own.expand(len(shared), -1, -1)], dim=2)
        stops = torch.tensor([len(part.tokens) for part in seen]).view(clips, slots)

        is_video = prompt.tokens == self.model.config.video_token_id
        video, levels = family.encode(core, self._pixels(batch["frames"]))
        embeds = [self._shared(prompt.tokens, is_video, video), family.embed(core, tokens.flatten(1))]
        placed = F.pad(is_video, (0, slots * length)).expand(clips, -1).to(video.device)
        hidden = core.language_model(
            inputs_embeds=torch.cat(embeds, dim=1),
            attention_mask=slot_mask(stops, len(is_video)).to(video.device),
            position_ids=(positions if len(positions) > 1 else positions[0]).to(video.device),
            use_cache=False,
            **family.later(levels, placed),
        ).last_hidden_state[:, len(is_video) :]
        answers, right = self._score(hidden.view(clips, slots, length, -1), tokens, answer_at, batch["task"])
        losses = {"answers": answers, **self._probe(video, is_video, batch)}
        return answers + _PROBE_WEIGHT * (losses["visible"] + losses["so_far"]), right, losses

    def _pixels(self, frames: torch.Tensor) -> Any:
        """What the stock processor makes of videos (B, T, H, W, 3) uint8."""
        videos = list(frames.permute(0, 1, 4, 2, 3))
        return self._video_processor(videos=videos, do_sample_frames=False, return_tensors="pt")

    def _shared(self, tokens: torch.Tensor, is_video: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
        """Vectors (B, S, C) of what all slots share: text (S,) with the tower's tokens (B, N, C) in their places."""
        text = self.model.get_input_embeddings()(tokens[~is_video].to(video.device))
        order = torch.cat([(~is_video).nonzero()[:, 0], is_video.nonzero()[:, 0]]).argsort()
        return torch.cat([text.expand(len(video), -1, -1), video], dim=1)[:, order]

    def _remember(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self._probed = output

    def _probe(
        self, video: torch.Tensor, is_video: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Both probes' losses, in nats a bit."""
        assert self._probed is not None
        clips, slices, _ = batch["visible"].shape
        seen = self.visible_probe(video.view(clips, slices, -1))
        hidden = self._probed[:, : len(is_video)][:, is_video]
        known = self.so_far_probe(hidden).view(clips, slices, -1, NUM_SO_FAR)
        self._probed = None
        wanted = batch["so_far"][:, :, None].expand_as(known)
        return {
            "visible": F.binary_cross_entropy_with_logits(seen, batch["visible"]),
            "so_far": F.binary_cross_entropy_with_logits(known, wanted),
        }

    def _score(
        self, hidden: torch.Tensor, tokens: torch.Tensor, answer_at: torch.Tensor, task: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of the answer and, lightly, of the turn's end behind it."""
        losses = []
        for step, weight in ((0, 1.0), (1, 0.05)):
            where = (answer_at + step)[..., None]
            before = (where - 1)[..., None].expand(-1, -1, 1, hidden.shape[-1])
            logits = self.model.lm_head(hidden.gather(2, before)[:, :, 0])
            wanted = tokens.gather(2, where)[..., 0]
            if step == 0:
                right = logits.argmax(-1) == wanted
            losses.append(weight * F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none"))
        counted = task >= 0
        return sum(losses)[counted].mean(), right


def _packed_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, None]:
    """The video to itself, and each slot as a batch row of its own to the video and itself.

    query (B, H, S, D), key and value (B, K, S, D), mask as slot_mask() makes it.
    """
    clips, slots, _, length = mask.shape
    shared = length - SLOT
    parts = [part.split([shared, slots * SLOT], dim=2) for part in (query, key, value)]
    (own_query, slot_query), *keys_and_values = parts
    video = F.scaled_dot_product_attention(
        own_query, key[:, :, :shared], value[:, :, :shared], is_causal=True, enable_gqa=True
    )
    rows = [_slot_rows(slot_query, slots)]
    for before, own in keys_and_values:
        seen = before[:, None].expand(-1, slots, -1, -1, -1).flatten(0, 1)
        rows.append(torch.cat([seen, _slot_rows(own, slots)], dim=2))
    answers = F.scaled_dot_product_attention(*rows, attn_mask=mask.flatten(0, 1)[:, None], enable_gqa=True)
    answers = answers.view(clips, slots, -1, SLOT, query.shape[-1]).transpose(1, 2).flatten(2, 3)
    return torch.cat([video, answers], dim=2).transpose(1, 2), None


def _slot_rows(states: torch.Tensor, slots: int) -> torch.Tensor:
    """(B, H, Q x SLOT, D) -> (B x Q, H, SLOT, D)."""
    return states.unflatten(2, (slots, SLOT)).transpose(1, 2).flatten(0, 1)
