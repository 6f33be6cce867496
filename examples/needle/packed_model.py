"""The forward pass of training: stock modules, packed sequences, a loss on the answers, and two probes.

The probes are linear layers that training alone has: one must read from the vision tower's tokens what a slice shows,
one from the hidden states of a decoder layer what has been seen so far. A clip has a few questions but many slices, so
they teach perception in hundreds of steps instead of thousands. They are thrown away with the training.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.modeling_utils import AttentionInterface
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from examples.needle.packing import PREFIX, SLOT, packed_positions, slot_mask
from examples.needle.truth import NUM_SO_FAR, NUM_VISIBLE

__all__ = ["PackedModel"]

_ATTENTION = "needle_packed"
_PROBED_LAYER = 2
_PROBE_WEIGHT = 1.0


class PackedModel(nn.Module):
    """Runs a Qwen2.5-VL on packed batches. All weights but the probes' belong to the model it is given."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor) -> None:
        super().__init__()
        self.model = model
        self._video_processor = processor.video_processor
        self._head = processor.tokenizer(PREFIX).input_ids
        width = model.config.get_text_config().hidden_size
        merged = model.config.vision_config.spatial_merge_size**2
        self.visible_probe = nn.Linear(merged * width, NUM_VISIBLE)
        self.so_far_probe = nn.Linear(width, NUM_SO_FAR)
        for block in model.model.visual.blocks:
            block.attn.forward = types.MethodType(_equal_chunks_attention, block.attn)
        AttentionInterface.register(_ATTENTION, _packed_attention)
        model.model.language_model.config._attn_implementation = _ATTENTION
        model.model.language_model.layers[_PROBED_LAYER].register_forward_hook(self._remember)
        self._probed: torch.Tensor | None = None

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """(loss to train on, whether each answer is right (B, Q), the loss's parts)."""
        video = self.encode(batch["frames"])
        tokens, answer_at, slices = batch["tokens"], batch["answer_at"], batch["slices"].cpu()
        clips, slots, length = tokens.shape
        num_slices = batch["frames"].shape[1] // 2
        embed = self.model.get_input_embeddings()
        head = embed(torch.tensor(self._head, device=video.device)).expand(clips, -1, -1)
        positions = packed_positions(
            slices,
            answer_at.cpu(),
            num_slices,
            float(batch["seconds_per_slice"]),
            self.model.config.vision_config.tokens_per_second,
        )
        hidden = self.model.model.language_model(
            inputs_embeds=torch.cat([head, video, embed(tokens.flatten(1))], dim=1),
            attention_mask={"full_attention": slot_mask(slices, num_slices).to(video.device)},
            position_ids=positions.to(video.device),
            use_cache=False,
        ).last_hidden_state[:, head.shape[1] + video.shape[1] :]
        answers, right = self._score(hidden.view(clips, slots, length, -1), tokens, answer_at, batch["task"])
        losses = {"answers": answers, **self._probe(video, head.shape[1], batch)}
        return answers + _PROBE_WEIGHT * (losses["visible"] + losses["so_far"]), right, losses

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, T, H, W, 3) uint8 -> video tokens (B, N, C), as processor and vision tower do."""
        processor = self._video_processor
        pixels = frames.permute(0, 1, 4, 2, 3)
        pixels = processor.rescale_and_normalize(
            pixels, True, processor.rescale_factor, True, processor.image_mean, processor.image_std
        )
        patches, slices, rows, columns = processor.patchify(
            pixels, processor.patch_size, processor.merge_size, processor.temporal_patch_size
        )
        # The tower treats slices apart from each other, so all clips together may pass as one long video.
        grid = torch.tensor([[slices * len(frames), rows, columns]], device=frames.device)
        tokens = self.model.model.visual(patches.flatten(0, 1), grid_thw=grid).pooler_output
        return tokens.view(len(frames), -1, tokens.shape[-1])

    def _remember(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        self._probed = output

    def _probe(self, video: torch.Tensor, num_head: int, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Both probes' losses, in nats a bit."""
        assert self._probed is not None
        clips, slices, _ = batch["visible"].shape
        seen = self.visible_probe(video.view(clips, slices, -1))
        hidden = self._probed[:, num_head : num_head + video.shape[1]]
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


def _equal_chunks_attention(
    self: Any, hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, position_embeddings: Any = None, **_: Any
) -> torch.Tensor:
    """The stock vision attention in one call instead of one for each slice, where all slices are equally large."""
    length, chunks = hidden_states.shape[0], len(cu_seqlens) - 1
    query, key, value = self.qkv(hidden_states).view(length, 3, self.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, key, value = (
        part.reshape(chunks, length // chunks, self.num_heads, -1).transpose(1, 2) for part in (query, key, value)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
    return self.proj(mixed.transpose(1, 2).reshape(length, -1))
