"""Models of the real architectures with random weights, and prompts for them: speed and memory need no trained ones."""

from __future__ import annotations

import argparse
import inspect
from typing import Any

import torch

from examples.needle.checkpoint import build_processor
from examples.needle.families import FAMILIES

VIDEO, IMAGE, VISION_START, VISION_END, VOCABULARY = 4, 3, 1, 2, 16384
PATCHES = 16
"""Patches along each side of a frame: 64 tokens in a slice."""
PATCH = 14
"""Pixels along each side of a patch, where neither config nor processor says otherwise."""
_TIME_WORDS = 8
"""Words before a slice that say when it was, where a family has such."""

SHAPES: dict[str, dict[str, int]] = {
    # Qwen2.5-VL's own sizes for 3b and 7b; small is what two cores can do, tiny what a test can.
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    | {"num_attention_heads": 2, "num_key_value_heads": 1},
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
    | {"num_attention_heads": 12, "num_key_value_heads": 2},
    "3b": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
    | {"num_attention_heads": 16, "num_key_value_heads": 2},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
    | {"num_attention_heads": 28, "num_key_value_heads": 4},
}
_TINY_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
_SMALL_TOWER = {"depth": 4, "hidden_size": 192, "intermediate_size": 768, "num_heads": 3}
_LARGE_TOWER = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_LARGE_WINDOWS = {"fullatt_block_indexes": [7, 15, 23, 31]}

TOWERS: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_5_vl": {
        "tiny": {**_TINY_TOWER, "fullatt_block_indexes": [1]},
        "small": {**_SMALL_TOWER, "fullatt_block_indexes": [1, 3]},
        "3b": {**_LARGE_TOWER, **_LARGE_WINDOWS},
        "7b": {**_LARGE_TOWER, **_LARGE_WINDOWS},
    },
    "qwen3_vl": {
        "tiny": {**_TINY_TOWER, "deepstack_visual_indexes": [0]},
        "small": {**_SMALL_TOWER, "deepstack_visual_indexes": [0, 1, 2]},
    },
    "llava_onevision": {"tiny": _TINY_TOWER, "small": _SMALL_TOWER},
}
"""Family -> shape -> sizes of the vision tower."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--family and --shape; check_arguments() wants to see them."""
    parser.add_argument("--family", choices=sorted(TOWERS), default="qwen2_5_vl")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small", help="3b and 7b: qwen2_5_vl only")


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Leave with what is allowed if a family has no such shape."""
    if arguments.shape not in TOWERS[arguments.family]:
        parser.error(f"--shape of {arguments.family} is one of {', '.join(TOWERS[arguments.family])}")


def title(arguments: argparse.Namespace) -> str:
    """What results of such a model are called."""
    return arguments.shape if arguments.family == "qwen2_5_vl" else f"{arguments.family}_{arguments.shape}"


def build_model(shape: str, device: str | None = None, *, family: str = "qwen2_5_vl", patches: int = PATCHES) -> Any:
    """A model with random weights, in bf16 but on a CPU; `device` None: the GPU where there is one.

    `patches` along each side of a frame matter only to LLaVA-OneVision, whose frames are all of one size.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    head = FAMILIES[family].head
    config = head.config_class(**_parts(family, shape, patches), tie_word_embeddings=shape != "7b")
    torch.manual_seed(0)
    with torch.device(device):
        model = head(config)
    return model.to(dtype).eval()


def build_pair(family: str, shape: str, size: tuple[int, int]) -> tuple[Any, Any]:
    """The model, and the stock processor with the suite's tokenizer, for frames of that height and width in pixels."""
    processor = build_processor(FAMILIES[family])
    model = build_model(shape, family=family, patches=size[0] // PATCH)
    if family == "llava_onevision":
        processor.num_image_tokens = (size[0] // PATCH) ** 2
        processor.video_processor.size = {"height": size[0], "width": size[1]}
    known = FAMILIES[family].config(processor.tokenizer)
    for name in ("video_token_id", "image_token_id", "vision_start_token_id", "vision_end_token_id"):
        if hasattr(known, name):
            setattr(model.config, name, getattr(known, name))
    return model, processor


def _parts(family: str, shape: str, patches: int) -> dict[str, Any]:
    """The arguments of a family's config."""
    text: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 1 << 20, "eos_token_id": None}
    text |= {"bos_token_id": None, "pad_token_id": 0, **SHAPES[shape], "rope_parameters": {"rope_type": "default"}}
    tower = dict(TOWERS[family][shape])
    head_dim = SHAPES[shape]["hidden_size"] // SHAPES[shape]["num_attention_heads"]
    if family == "llava_onevision":
        vision = {"model_type": "siglip_vision_model", "vision_use_head": False, "patch_size": PATCH}
        vision |= {"num_hidden_layers": tower.pop("depth"), "num_attention_heads": tower.pop("num_heads")}
        vision |= {"image_size": PATCH * patches, **tower}
        return {
            "text_config": {"model_type": "qwen2", **text},
            "vision_config": vision,
            "image_token_index": IMAGE,
            "video_token_index": VIDEO,
        }
    if family == "qwen3_vl":
        rest = head_dim // 2 - 2 * (head_dim // 6)
        text |= {"head_dim": head_dim}
        text["rope_parameters"] |= {"mrope_section": [rest, head_dim // 6, head_dim // 6], "mrope_interleaved": True}
    else:
        spatial = head_dim * 3 // 16
        text["rope_parameters"] |= {"mrope_section": [head_dim // 2 - 2 * spatial, spatial, spatial]}
    return {
        "text_config": text,
        "vision_config": {**tower, "out_hidden_size": text["hidden_size"]},
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }


def build_inputs(num_tokens: int, model: Any) -> dict[str, torch.Tensor]:
    """A prompt with one video of `num_tokens` tokens and a question of 24 words; the pixels are noise.

    Qwen3-VL has the time of each slice besides, LLaVA-OneVision a newline behind the last.
    """
    slices, family = num_tokens * 4 // PATCHES**2, model.config.model_type
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, VOCABULARY, (32,), generator=generator).tolist()
    if family == "llava_onevision":
        video = [VIDEO] * (num_tokens + 1)
        inputs = {
            "pixel_values_videos": torch.randn(1, slices, 3, PATCH * PATCHES, PATCH * PATCHES, generator=generator)
        }
    else:
        run = [VISION_START, *[VIDEO] * (PATCHES**2 // 4), VISION_END]
        timed = [token for _ in range(slices) for token in [*words[:_TIME_WORDS], *run]]
        video = timed if family == "qwen3_vl" else [VISION_START, *[VIDEO] * num_tokens, VISION_END]
        values = 6 * model.config.vision_config.patch_size**2
        inputs = {
            "pixel_values_videos": torch.randn(slices * PATCHES**2, values, generator=generator),
            "video_grid_thw": torch.tensor([[slices, PATCHES, PATCHES]]),
            "second_per_grid_ts": torch.tensor([1.0]),
        }
    ids = torch.tensor([[*words[:8], *video, *words[8:]]])
    inputs |= {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
    }
    known = inspect.signature(model.forward).parameters  # token types since transformers 5.3
    return {name: value.to(model.device) for name, value in inputs.items() if name in known}
