"""The real processor classes of the Qwen families, built offline, and tiny models that take what they give.

The tokenizer is the needle suite's: words and bytes, and the special tokens of Qwen's own. So is the chat template, in
which all of these families put a video as <|vision_start|><|video_pad|><|vision_end|> (chat_template.json of
Qwen/Qwen2-VL-7B-Instruct, Qwen/Qwen2.5-VL-7B-Instruct, Qwen/Qwen3-VL-8B-Instruct and Qwen/Qwen3.5-27B); what becomes of
the placeholder, times included, is the processor's own doing.
"""

from __future__ import annotations

import copy
from typing import Any

from qwen_vl_utils import process_vision_info
from transformers import (
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from examples.needle.checkpoint import build_tokenizer
from examples.needle.families import FAMILIES as NEEDLE
from tests.families import FAMILIES, random_model

QWEN2, QWEN3 = ("qwen2_vl", "qwen2_5_vl"), ("qwen3_vl", "qwen3_5")
PATCH = {**dict.fromkeys(QWEN2, 14), **dict.fromkeys(QWEN3, 16)}
KINDS = {"qwen2_vl": Qwen2VLProcessor, "qwen2_5_vl": Qwen2_5_VLProcessor, **dict.fromkeys(QWEN3, Qwen3VLProcessor)}


def build_processor(family: str) -> Any:
    """The processor of a family, with the sizes of its checkpoints but for the least that a video may have."""
    patch = PATCH[family]
    kind, least, most = (Qwen2VLVideoProcessor, 784, 602112)
    if family in QWEN3:  # of the whole video, as in video_preprocessor_config.json of Qwen/Qwen3-VL-8B-Instruct
        kind, least, most = (Qwen3VLVideoProcessor, 4096, 25165824)
    video = kind(size={"shortest_edge": least, "longest_edge": most}, cap_pixels_per_frame=False)
    image = Qwen2VLImageProcessor(size={"shortest_edge": 4 * patch**2, "longest_edge": 64 * patch**2}, patch_size=patch)
    words = NEEDLE["qwen2_5_vl"]
    return KINDS[family](
        image_processor=image,
        tokenizer=build_tokenizer(words),
        video_processor=video,
        chat_template=words.chat_template,
    )


def build_model(family: str, processor: Any) -> Any:
    """The family's tiny model with the processor's tokens and patches."""
    tiny = FAMILIES[family].model()
    config, tokenizer = copy.deepcopy(tiny.config), processor.tokenizer
    config.text_config.vocab_size = len(tokenizer)
    config.vision_config.patch_size = PATCH[family]
    if hasattr(config.vision_config, "window_size"):
        config.vision_config.window_size = 112
    for name in ("image_pad", "video_pad", "vision_start", "vision_end"):
        setattr(config, f"{name.removesuffix('_pad')}_token_id", tokenizer.convert_tokens_to_ids(f"<|{name}|>"))
    return random_model(config, type(tiny), "sdpa")


def conversation(*content: Any) -> list[dict[str, Any]]:
    """A user's turn: texts, and videos or images as qwen-vl-utils takes them."""
    parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    return [{"role": "user", "content": parts}]


def make_inputs(family: str, processor: Any, *talks: list[dict[str, Any]], **options: Any) -> Any:
    """What the README's script does, with the patch size that a model's card tells to pass for patches of 16."""
    text = [processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks]
    images, videos, extra = process_vision_info(
        list(talks), image_patch_size=PATCH[family], return_video_kwargs=True, return_video_metadata=True
    )
    pictures, metadata = map(list, zip(*videos, strict=True))
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt", **options, **extra}
    return processor(text=text, images=images, videos=pictures, video_metadata=metadata, **options)
