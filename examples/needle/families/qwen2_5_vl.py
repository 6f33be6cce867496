"""Qwen2.5-VL: one run of video tokens, whose temporal positions tell the time; a tower with windows."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from examples.needle.families.base import text_config
from examples.needle.families.qwen import Qwen, token_ids
from examples.needle.paint import FRAME_SIZE

__all__ = ["Qwen2_5_VL"]


class Qwen2_5_VL(Qwen):
    """Frames of FRAME_SIZE are the least that its tower takes: 2 x 2 tokens of 28 pixels."""

    title: ClassVar[str] = "Qwen2.5-VL"
    head: ClassVar[Any] = Qwen2_5_VLForConditionalGeneration
    frames: ClassVar[str] = (
        "Frames are 56 x 56 pixels, 4 tokens for each pair. Give clips as\n"
        '  `{"type": "video", "video": path, "resized_height": 56, "resized_width": 56}`.'
    )

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
        size = {"shortest_edge": FRAME_SIZE**2, "longest_edge": FRAME_SIZE**2}
        return Qwen2_5_VLProcessor(
            image_processor=Qwen2VLImageProcessor(size=size),
            tokenizer=tokenizer,
            video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
            chat_template=self.chat_template,
        )

    def config(self, tokenizer: PreTrainedTokenizerFast, **text: Any) -> Qwen2_5_VLConfig:
        # Sections (t, h, w) of the 16 frequencies of a head; the 7B model has 64 and (16, 24, 24).
        rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [8, 4, 4]}
        text = text_config(tokenizer, rope_parameters=rope, **text)
        vision = {
            "depth": 2,  # 32
            "hidden_size": 96,  # 1280
            "intermediate_size": 192,  # 3420
            "num_heads": 3,  # 16
            "window_size": 112,  # 112
            "fullatt_block_indexes": [1],  # [7, 15, 23, 31]
            "tokens_per_second": 2,  # 2
            "out_hidden_size": text["hidden_size"],
            "initializer_range": 0.05,  # 0.02
        }
        return Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=True, **token_ids(tokenizer)
        )

    def radians_per_second(self, model: Any) -> torch.Tensor:
        sections = model.config.get_text_config().rope_parameters["mrope_section"]
        frequencies = model.model.language_model.rotary_emb.inv_freq[: sections[0]]
        return frequencies.double() * model.config.vision_config.tokens_per_second
