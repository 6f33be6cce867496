"""LLaVA-OneVision: every frame a slice, one learned newline behind the last, positions that only count tokens.

Nothing in its prompt tells when a frame was taken. So it is trained on clips of one spacing, as a user of the real
model would give it: frames at equal distances.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
)

from examples.needle.families.base import SLICE_TOKENS, Family, text_config
from examples.needle.paint import FRAME_SIZE

__all__ = ["LlavaOnevision"]

_PATCH = 14
_SPACING = 0.5
_PINPOINTS = [[FRAME_SIZE * rows, FRAME_SIZE * columns] for rows in (1, 2) for columns in (1, 2)]


class LlavaOnevision(Family):
    """A frame of FRAME_SIZE is 4 x 4 patches, which the model averages to 2 x 2 tokens."""

    title: ClassVar[str] = "LLaVA-OneVision"
    head: ClassVar[Any] = LlavaOnevisionForConditionalGeneration
    frames: ClassVar[str] = (
        "Frames are brought to 56 x 56 pixels, 4 tokens for each; they must be half a second apart, as no prompt\n"
        '  says when they were taken. Give clips as `{"type": "video", "path": path}` and the number of frames.'
    )
    slice_frames: ClassVar[int] = 1
    spacing: ClassVar[float | None] = _SPACING
    closing: ClassVar[str] = "<video>"
    special_tokens: ClassVar[tuple[str, ...]] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
    # The prompt of transformers' own tests of LlavaOnevisionProcessor, and of vLLM's example for this model: pictures
    # before all text, no line break between turns: "<|im_start|>user <video>\nWhat?<|im_end|><|im_start|>assistant\n".
    chat_template: ClassVar[str] = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + ' ' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for kind in ('image', 'video') -%}
{%- for part in message['content'] if part['type'] == kind -%}
{{ '<' + kind + '>' }}
{%- endfor -%}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{ '\\n' + part['text'] }}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionProcessor:
        size = {"height": FRAME_SIZE, "width": FRAME_SIZE}
        return LlavaOnevisionProcessor(
            image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=_PINPOINTS),
            tokenizer=tokenizer,
            video_processor=LlavaOnevisionVideoProcessor(size=size),
            num_image_tokens=(FRAME_SIZE // _PATCH) ** 2,
            vision_feature_select_strategy="full",
            chat_template=self.chat_template,
        )

    def config(self, tokenizer: PreTrainedTokenizerFast, **text: Any) -> LlavaOnevisionConfig:
        """The 7B model's values stand beside the tiny ones."""
        rope = {"rope_type": "default", "rope_theta": 1000000.0}
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": 128,  # 1152
            "intermediate_size": 256,  # 4304
            "num_hidden_layers": 3,  # 26
            "num_attention_heads": 4,  # 16
            "patch_size": _PATCH,  # 14
            "image_size": FRAME_SIZE,  # 384
            "vision_use_head": False,
        }
        return LlavaOnevisionConfig(
            text_config={"model_type": "qwen2", **text_config(tokenizer, rope_parameters=rope, **text)},
            vision_config=vision,
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
            image_grid_pinpoints=_PINPOINTS,
            tie_word_embeddings=True,
        )

    def radians_per_second(self, model: Any) -> torch.Tensor:
        return model.model.language_model.rotary_emb.inv_freq.double() * (SLICE_TOKENS / _SPACING)

    def positions(self, core: Any, inputs: Any) -> torch.Tensor:
        return torch.arange(inputs["input_ids"].shape[1])[None]

    def encode(self, core: Any, inputs: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        pixels = inputs["pixel_values_videos"]
        tokens = core.get_video_features(pixels).pooler_output
        return tokens[:, : pixels.shape[1] * SLICE_TOKENS], []  # without the newline: it stands before each question

    def embed(self, core: Any, tokens: torch.Tensor) -> torch.Tensor:
        is_newline = (tokens == core.config.video_token_id)[..., None]
        return torch.where(is_newline, core.image_newline, super().embed(core, tokens))
