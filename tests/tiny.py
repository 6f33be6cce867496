"""Tiny Qwen2.5-VL models and prompts built from integers: no processor, no weights, no network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from quickprefill import release

# Token ids of the tiny vocabulary; the real ones are 151643 and up.
PAD, VISION_START, VISION_END, IMAGE, VIDEO, FIRST_WORD, VOCAB = 0, 1, 2, 3, 4, 5, 64

PATCH, TEMPORAL_PATCH, MERGE = 4, 2, 2  # 14, 2, 2 in the real model
PATCH_VALUES = 3 * TEMPORAL_PATCH * PATCH * PATCH

TAKES_TYPES = "mm_token_type_ids" in inspect.signature(Qwen2_5_VLForConditionalGeneration.forward).parameters
"""Whether the installed host is told which tokens are of which kind: since 5.3."""
PER_COLUMN = ("input_ids", "attention_mask", *["mm_token_type_ids"] * TAKES_TYPES)
"""Inputs with an entry for each column of a batch."""


def token_types(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """mm_token_type_ids for ids, where the host takes them."""
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()} if TAKES_TYPES else {}


def rope(*sections: int, **more: object) -> dict[str, object]:
    """Fields of a text config for rotary positions with these (t, h, w) sections, as the installed release has them."""
    theta, scaling = {"rope_theta": 1000000.0}, {"rope_type": "default", "mrope_section": list(sections)}
    if release.is_older_than("5.0"):
        return {"rope_scaling": scaling, **theta, **more}
    return {"rope_parameters": {**theta, **scaling, **more}}


def tiny_model(
    attention: str = "sdpa",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    vision: Mapping[str, object] | None = None,
    **text: object,
):
    """A random Qwen2.5-VL of the real architecture; values of the 7B model stand beside the small ones."""
    torch.manual_seed(seed)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCAB,  # 152064
            "hidden_size": 48,  # 3584
            "intermediate_size": 64,  # 18944
            "num_hidden_layers": 3,  # 28
            "num_attention_heads": 6,  # 28
            "num_key_value_heads": 2,  # 4
            "max_position_embeddings": 4096,  # 128000
            **rope(1, 1, 2),
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": PAD,
            **text,
        },
        vision_config={
            "depth": 2,  # 32
            "hidden_size": 32,  # 1280
            "intermediate_size": 48,  # 3420
            "num_heads": 2,  # 16
            "patch_size": PATCH,  # 14
            "temporal_patch_size": TEMPORAL_PATCH,  # 2
            "spatial_merge_size": MERGE,  # 2
            "window_size": 16,  # 112
            "fullatt_block_indexes": [1],  # [7, 15, 23, 31]
            "out_hidden_size": text.get("hidden_size", 48),  # 3584
            **(vision or {}),
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    config._attn_implementation = attention
    model = Qwen2_5_VLForConditionalGeneration(config).eval().to(dtype)
    with torch.no_grad():  # the default initialisation is so small that every logit is about equal
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
        model.lm_head.weight[[IMAGE, VIDEO]] = 0  # so that it hardly ever says a placeholder
    model.generation_config.pad_token_id = PAD
    return model


@dataclass(frozen=True)
class Clip:
    """A video or image by its patch grid (t, h, w); h and w are multiples of the merge size."""

    grid: tuple[int, int, int]
    image: bool = False

    @property
    def num_tokens(self) -> int:
        t, h, w = self.grid
        return t * h * w // MERGE**2


def prompt(*parts: int | Clip) -> list[int | Clip]:
    """A prompt from pieces: an int is that many words, a Clip is a video or image between its vision tokens."""
    return list(parts)


def make_inputs(*prompts: list[int | Clip], seed: int = 1, seconds_per_slice: float = 1.0) -> dict[str, torch.Tensor]:
    """What the processor would give for a batch of prompts, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    rows, pixels, grids = [], {True: [], False: []}, {True: [], False: []}
    for parts in prompts:
        row = []
        for part in parts:
            if isinstance(part, int):
                row += torch.randint(FIRST_WORD, VOCAB, (part,), generator=generator).tolist()
                continue
            row += [VISION_START, *([IMAGE if part.image else VIDEO] * part.num_tokens), VISION_END]
            t, h, w = part.grid
            pixels[part.image].append(torch.randn(t * h * w, PATCH_VALUES, generator=generator))
            grids[part.image].append(part.grid)
        rows.append(row)
    inputs = lay_out(rows, pixels, grids)
    if grids[False]:
        inputs["second_per_grid_ts"] = torch.full((len(grids[False]),), seconds_per_slice)
    return inputs


def lay_out(rows, pixels, grids) -> dict[str, torch.Tensor]:
    """A batch of token rows padded on the left; pixels and grids of images are at True, of videos at False."""
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + row for row in rows])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        **token_types(ids),
    }
    if pixels[True]:
        inputs["pixel_values"] = torch.cat(pixels[True])
        inputs["image_grid_thw"] = torch.tensor(grids[True])
    if pixels[False]:
        inputs["pixel_values_videos"] = torch.cat(pixels[False])
        inputs["video_grid_thw"] = torch.tensor(grids[False])
    return inputs
