"""Qwen3-VL: each slice stands behind its time as text; deepstack, interleaved M-RoPE, normed queries and keys.

`<|vision_start|>` and `<|vision_end|>` of the chat template stay around the whole video, and each slice has a pair of
its own: Qwen3VLProcessor replaces the placeholder between them, and nothing else.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from examples.needle.families.base import SLICE_TOKENS, text_config
from examples.needle.families.qwen import Qwen, token_ids
from examples.needle.vocabulary import MAX_SECOND

__all__ = ["Qwen3_VL"]

_FRAME_SIZE = 64
"""Pixels across: 2 x 2 tokens of 32."""
_MAX_FRAMES = 8192


class Qwen3_VL(Qwen):
    """The time of a slice is spelt `<12.3 seconds>`, in six tokens up to MAX_SECOND."""

    title: ClassVar[str] = "Qwen3-VL"
    head: ClassVar[Any] = Qwen3VLForConditionalGeneration
    frames: ClassVar[str] = (
        "Frames are brought to 64 x 64 pixels, 4 tokens for each pair behind its time as text. Give clips as\n"
        '  `{"type": "video", "video": path, "resized_height": 64, "resized_width": 64}` and `image_patch_size=16`.'
    )
    seconds: ClassVar[tuple[str, ...]] = (" {}", "{}")
    words: ClassVar[tuple[str, ...]] = (" seconds", *map(str, range(MAX_SECOND + 1)))

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
        picture = {"shortest_edge": _FRAME_SIZE**2, "longest_edge": _FRAME_SIZE**2}
        # These are pixels of all frames together; the cap is what holds each of them at _FRAME_SIZE.
        video = {"shortest_edge": _FRAME_SIZE**2 // 2, "longest_edge": _FRAME_SIZE**2 * _MAX_FRAMES}
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=picture, patch_size=16),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(
                size=video, cap_pixels_per_frame=True, max_video_tokens=SLICE_TOKENS, max_frames=_MAX_FRAMES
            ),
            chat_template=self.chat_template,
        )

    def config(self, tokenizer: PreTrainedTokenizerFast, **text: Any) -> Qwen3VLConfig:
        """Qwen3-VL-8B's values stand beside the tiny ones."""
        # Sections (t, h, w) of the 16 frequencies of a head; the 8B model has 64 and (24, 20, 20).
        rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
        text = text_config(tokenizer, rope_parameters=rope, head_dim=32, **text)
        vision = {
            "depth": 3,  # 27
            "hidden_size": 80,  # 1152
            "intermediate_size": 160,  # 4304
            "num_heads": 5,  # 16
            "num_position_embeddings": 64,  # 2304
            "deepstack_visual_indexes": [0, 1],  # [8, 16, 24]
            "out_hidden_size": text["hidden_size"],
            "initializer_range": 0.05,  # 0.02
        }
        return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **token_ids(tokenizer))

    def radians_per_second(self, model: Any) -> torch.Tensor:
        # No position tells the time here: the curve only says which numbers are neighbours.
        return model.model.language_model.rotary_emb.inv_freq[:8].double() * 2

    def levels(self, output: Any) -> list[torch.Tensor]:
        return output.deepstack_features

    def later(self, levels: list[torch.Tensor], is_video: torch.Tensor) -> dict[str, Any]:
        return {"visual_pos_masks": is_video, "deepstack_visual_embeds": [level.flatten(0, 1) for level in levels]}
