"""What Qwen2.5-VL and Qwen3-VL share: prompt, special tokens, M-RoPE, and a tower that takes slices apart."""

from __future__ import annotations

import types
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from examples.needle.families.base import Family

__all__ = ["Qwen"]


class Qwen(Family):
    """Facts about both."""

    special_tokens: ClassVar[tuple[str, ...]] = (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    )
    # ChatML, as the README of Qwen2.5-VL and of Qwen3-VL speak it, but without a default system message.
    chat_template: ClassVar[str] = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

    def positions(self, core: Any, inputs: Any) -> torch.Tensor:
        names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
        return core.get_rope_index(**{name: inputs[name] for name in names if name in inputs})[0][:, 0]

    def encode(self, core: Any, inputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        pixels, grids = inputs["pixel_values_videos"], inputs["video_grid_thw"]
        slices, rows, columns = grids[0].tolist()
        # The tower treats slices apart from each other, so all clips together may pass as one long video.
        grid = torch.tensor([[slices * len(grids), rows, columns]], device=pixels.device)
        output = core.visual(pixels, grid_thw=grid)
        tokens = [part.view(len(grids), -1, part.shape[-1]) for part in (output.pooler_output, *self.levels(output))]
        return tokens[0], tokens[1:]

    def levels(self, output: Any) -> list[torch.Tensor]:
        """What the tower gives for later layers."""
        return []

    def hasten(self, model: Any) -> None:
        for block in model.model.visual.blocks:
            block.attn.forward = types.MethodType(_equal_chunks_attention, block.attn)


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """What a config calls the special tokens."""
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}


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
