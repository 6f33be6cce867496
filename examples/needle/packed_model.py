"""The forward pass of training: stock modules, packed sequences, and a loss on the answers alone."""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from examples.needle.packing import PREFIX, packed_mask, packed_positions

__all__ = ["PackedModel"]


class PackedModel(nn.Module):
    """Runs a Qwen2.5-VL on packed batches. All weights belong to the model it is given."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor) -> None:
        super().__init__()
        self.model = model
        self._video_processor = processor.video_processor
        tokenizer = processor.tokenizer
        self._head = tokenizer(PREFIX).input_ids
        self._tail = tokenizer("<|vision_end|>").input_ids
        for block in model.model.visual.blocks:
            block.attn.forward = types.MethodType(_equal_chunks_attention, block.attn)

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(mean loss over the answers, whether each answer is right (B, Q))."""
        video = self.encode(batch["frames"])
        tokens, answer_at = batch["tokens"], batch["answer_at"]
        clips, slots, length = tokens.shape
        embed = self.model.get_input_embeddings()
        head, tail = (embed(torch.tensor(part, device=video.device)) for part in (self._head, self._tail))
        shared = torch.cat([head.expand(clips, -1, -1), video, tail.expand(clips, -1, -1)], dim=1)
        positions = packed_positions(
            batch["frames"].shape[1] // 2,
            answer_at.cpu(),
            float(batch["seconds_per_slice"]),
            self.model.config.vision_config.tokens_per_second,
        )
        hidden = self.model.model.language_model(
            inputs_embeds=torch.cat([shared, embed(tokens.flatten(1))], dim=1),
            attention_mask=packed_mask(shared.shape[1], slots).to(video.device),
            position_ids=positions.to(video.device),
            use_cache=False,
        ).last_hidden_state[:, shared.shape[1] :]
        hidden = hidden.view(clips, slots, length, -1)
        return self._score(hidden, tokens, answer_at, batch["task"])

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
