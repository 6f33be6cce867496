"""Tiny models of every supported family, and prompts as each family's processor lays them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import quickprefill
from quickprefill.hosts import versions
from quickprefill.prompt.spans import Grid
from tests import frame_families
from tests.tiny import FIRST_WORD, IMAGE, MERGE, PAD, VIDEO, VISION_END, VISION_START, VOCAB, Clip, lay_out, tiny_model

TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [1, 1, 2]},
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": PAD,
}
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


ENCODES_FIRST = hasattr(transformers.GenerationMixin, versions.ENCODES_FIRST)
"""Whether generate() encodes pictures and videos before the first forward."""


@dataclass(frozen=True)
class Built:
    """How to build a family's model, and what its prompts look like."""

    model: Callable[..., Any]
    patch_values: int = 0
    inputs: Callable[..., dict[str, torch.Tensor]] | None = None
    """What lays prompts out, if it is the family's own processor."""
    whole_beams: bool = True
    """Whether beams repeat whole prompts; LLaVA up to 5.17 repeats each video by itself."""
    variant: bool = False
    """Whether it is another of these families but for its MLP or tower, so that fewer cases say enough."""
    mixes: bool = True
    """Whether the stock model takes images beside a video."""
    seconds: bool = False
    """Whether the processor gives second_per_grid_ts."""
    timestamps: bool = False
    """Whether each slice stands behind its time, between vision tokens of its own."""


def random_model(config: Any, head: Any, attention: str, seed: int = 0) -> Any:
    """A model whose logits differ, although nothing was trained."""
    torch.manual_seed(seed)
    config._attn_implementation = attention
    model = head(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.pad_token_id = PAD
    return model


def qwen2_vl(attention: str = "sdpa") -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4, "hidden_size": 48}
    return random_model(
        Qwen2VLConfig(text_config=dict(TEXT), vision_config=vision, **IDS), Qwen2VLForConditionalGeneration, attention
    )


QWEN3_VISION = {
    "depth": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 48,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 2],
}


def qwen3_vl(attention: str = "sdpa") -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {**TEXT, "head_dim": 8}
    return random_model(
        Qwen3VLConfig(text_config=text, vision_config=dict(QWEN3_VISION), **IDS),
        Qwen3VLForConditionalGeneration,
        attention,
    )


def qwen3_vl_moe(attention: str = "sdpa") -> Any:
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = {**TEXT, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return random_model(
        Qwen3VLMoeConfig(text_config=text, vision_config=dict(QWEN3_VISION), **IDS),
        Qwen3VLMoeForConditionalGeneration,
        attention,
    )


def frames_model(config: Callable[[], Any], head: str) -> Callable[..., Any]:
    """Builds a model of tests/frame_families.py."""
    return lambda attention="sdpa": random_model(config(), getattr(transformers, head), attention)


FAMILIES = {
    "qwen2_5_vl": Built(tiny_model, patch_values=96, seconds=True),
    "qwen2_vl": Built(qwen2_vl, patch_values=96),
    "qwen3_vl": Built(qwen3_vl, patch_values=96, timestamps=True),
    "qwen3_vl_moe": Built(qwen3_vl_moe, patch_values=96, timestamps=True),
    **{
        family: Built(
            frames_model(config, head),
            inputs=inputs,
            variant=family == "llava_next_video",
            mixes=family != "smolvlm",
            whole_beams=ENCODES_FIRST,
        )
        for family, (config, head, inputs) in frame_families.FAMILIES.items()
    },
}


def build_inputs(family: str, *prompts: list[int | Clip], seed: int = 1) -> dict[str, torch.Tensor]:
    """What the family's processor gives, or would give, for a batch of prompts, padded on the left."""
    if FAMILIES[family].inputs is not None:
        return FAMILIES[family].inputs(*prompts, seed=seed)
    built, generator = FAMILIES[family], torch.Generator().manual_seed(seed)
    rows, pixels, grids = [], {True: [], False: []}, {True: [], False: []}

    def words(count: int) -> list[int]:
        return torch.randint(FIRST_WORD, VOCAB, (count,), generator=generator).tolist()

    for parts in prompts:
        row: list[int] = []
        for part in parts:
            if isinstance(part, int):
                row += words(part)
                continue
            t, h, w = part.grid
            token, size = (IMAGE if part.image else VIDEO), h * w // MERGE**2
            if built.timestamps and not part.image:
                for index in range(t):  # a time has a number of tokens that varies
                    row += [*words(2 + index % 3), VISION_START, *[token] * size, VISION_END]
            else:
                row += [VISION_START, *[token] * (t * size), VISION_END]
            pixels[part.image].append(torch.randn(t * h * w, built.patch_values, generator=generator))
            grids[part.image].append(part.grid)
        rows.append(row)
    inputs = lay_out(rows, pixels, grids)
    if built.seconds and grids[False]:
        inputs["second_per_grid_ts"] = torch.ones(len(grids[False]))
    return inputs


def grids(family: str, model: Any, inputs: dict[str, torch.Tensor]) -> list[Grid]:
    """The merged grids of the videos of a call."""
    return quickprefill.FAMILIES[family].grids(model.model, inputs)


def places(family: str, model: Any, ids: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
    """(N,) columns of the places of a prompt's videos, in order."""
    host = quickprefill.FAMILIES[family]
    named = host.named(model.model, ids)
    columns = (named == host.video_token_id(model.model)).nonzero()[:, 0]
    sizes = [grid.num_tokens + host.closing_placeholders for grid in grids]
    parts = zip(columns.split(sizes), grids, strict=True)
    return torch.cat([part[: grid.num_tokens] for part, grid in parts])
