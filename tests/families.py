"""Tiny models of every supported family, and prompts as each family's processor lays them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

import quickprefill
from quickprefill import release, versions
from quickprefill.prompt.spans import Grid
from tests import frame_families
from tests.tiny import (
    FIRST_WORD,
    IMAGE,
    MERGE,
    PAD,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCAB,
    Clip,
    lay_out,
    rope,
    tiny_model,
)

TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    **rope(1, 1, 2),
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": PAD,
}
FIRST_EXTRA = VIDEO_START = 57
VIDEO_END, AUDIO, AUDIO_START, AUDIO_END = 58, 59, 60, 61
"""Special tokens that some families have beside those of tests/tiny.py; no words."""
IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


EARLY = release.is_older_than("5.0")
"""Whether the host is a transformers 4, in which some heads can do less."""
ENCODES_FIRST = hasattr(transformers.GenerationMixin, versions.ENCODES_FIRST)
"""Whether generate() encodes pictures and videos before the first forward."""
Words = Callable[[int], list[int]]
"""That many random words."""


def together(words: Words, lengths: list[int]) -> list[int]:
    """One run of placeholders."""
    return [VISION_START, *[VIDEO] * sum(lengths), VISION_END]


def behind_times(words: Words, lengths: list[int]) -> list[int]:
    """Each slice behind its time, which has a number of tokens that varies, between vision tokens of its own."""
    parts = ([*words(2 + at % 3), VISION_START, *[VIDEO] * size, VISION_END] for at, size in enumerate(lengths))
    return [token for part in parts for token in part]


def before_times(words: Words, lengths: list[int]) -> list[int]:
    """Each slice between vision tokens before its time, all between tokens that begin and end a video."""
    parts = ([VISION_START, *[VIDEO] * size, VISION_END, *words(1 + at % 3)] for at, size in enumerate(lengths))
    return [VIDEO_START, *(token for part in parts for token in part), VIDEO_END]


def behind_words(words: Words, lengths: list[int]) -> list[int]:
    """Each slice behind its time, and nothing else between."""
    return [token for at, size in enumerate(lengths) for token in [*words(2 + at % 3), *[VIDEO] * size]]


@dataclass(frozen=True)
class Built:
    """How to build a family's model, and what its prompts look like."""

    model: Callable[..., Any]
    patch_values: int = 0
    inputs: Callable[..., dict[str, torch.Tensor]] | None = None
    """What lays prompts out, if it is the family's own processor."""
    seconds: str | None = None
    """What the processor calls the seconds of a slice, if it gives them."""
    lay: Callable[[Words, list[int]], list[int]] = together
    """How a prompt holds a video: words(count), tokens of each slice -> ids."""
    sparse: bool = False
    """Whether the processor leaves tokens out of the prompt, and gives a mask and merge sizes."""
    video_id: int = VIDEO
    """The token that stands where video goes."""
    types: bool = True
    """Whether the processor gives mm_token_type_ids."""
    chooses: bool = True
    """Whether the head takes logits_to_keep."""
    mixes: bool = True
    """Whether the stock model takes images beside a video."""
    beams: bool = True
    """Whether the stock model takes beams with a video."""
    whole_beams: bool = True
    """Whether beams repeat whole prompts; LLaVA up to 5.17 repeats each video by itself."""
    variant: bool = False
    """Whether it is another of these families but for its MLP or tower, so that fewer cases say enough."""


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


def qwen2_vl(attention: str = "sdpa", text: dict[str, Any] = TEXT) -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4, "hidden_size": 48}
    return random_model(
        Qwen2VLConfig(text_config=dict(text), vision_config=vision, **IDS), Qwen2VLForConditionalGeneration, attention
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


def qwen3_vl(attention: str = "sdpa", text: dict[str, Any] = TEXT) -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    return random_model(
        Qwen3VLConfig(text_config={"head_dim": 8, **text}, vision_config=dict(QWEN3_VISION), **IDS),
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


def qwen2_5_omni(attention: str = "sdpa") -> Any:
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    vision = {
        **{"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48},
        **{"patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
    }
    audio = {
        **{"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "output_dim": 48},
        **{"num_mel_bins": 8, "n_window": 20, "max_source_positions": 400},
    }
    config = Qwen2_5OmniThinkerConfig(
        text_config=dict(TEXT),
        vision_config=vision,
        audio_config=audio,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=AUDIO,
        audio_start_token_id=AUDIO_START,
        audio_end_token_id=AUDIO_END,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    return random_model(config, Qwen2_5OmniThinkerForConditionalGeneration, attention)


GLM_TEXT = {
    **TEXT,
    "hidden_size": 64,
    "num_attention_heads": 4,
    **rope(1, 1, 2, partial_rotary_factor=0.5),
}
GLM_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
    "out_hidden_size": 64,
    "patch_size": 4,
    "image_size": 24,
}
GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": VISION_START,
    "image_end_token_id": VISION_END,
    "video_start_token_id": VIDEO_START,
    "video_end_token_id": VIDEO_END,
}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1}


def glm4v(attention: str = "sdpa") -> Any:
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration

    return random_model(
        Glm4vConfig(text_config=dict(GLM_TEXT), vision_config=dict(GLM_VISION), **GLM_IDS),
        Glm4vForConditionalGeneration,
        attention,
    )


def glm4v_moe(attention: str = "sdpa") -> Any:
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    return random_model(
        Glm4vMoeConfig(text_config={**GLM_TEXT, **EXPERTS}, vision_config=dict(GLM_VISION), **GLM_IDS),
        Glm4vMoeForConditionalGeneration,
        attention,
    )


def glm46v(attention: str = "sdpa") -> Any:
    from transformers import Glm46VConfig, Glm46VForConditionalGeneration

    text, vision = {**GLM_TEXT, "model_type": "glm4v_text"}, {**GLM_VISION, "model_type": "glm4v_vision"}
    return random_model(
        Glm46VConfig(text_config=text, vision_config=vision, **GLM_IDS), Glm46VForConditionalGeneration, attention
    )


def video_llama_3(attention: str = "sdpa") -> Any:
    from transformers import VideoLlama3Config, VideoLlama3ForConditionalGeneration

    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = VideoLlama3Config(
        text_config={**TEXT, "model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        vision_config={**vision, "patch_size": 4},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return random_model(config, VideoLlama3ForConditionalGeneration, attention)


HYBRID_TEXT = {
    **TEXT,
    "head_dim": 8,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.5},
        **{"mrope_section": [1, 1, 0], "mrope_interleaved": True},
    },
}
"""Two layers with a state and two of full attention, in turn; the models have three of the former to one."""
HYBRID_VISION = {name: value for name, value in QWEN3_VISION.items() if name != "deepstack_visual_indexes"}


def qwen3_5(attention: str = "sdpa", text: dict[str, Any] = HYBRID_TEXT) -> Any:
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    config = Qwen3_5Config(text_config=dict(text), vision_config=dict(HYBRID_VISION), **IDS)
    return random_model(config, Qwen3_5ForConditionalGeneration, attention)


def qwen3_5_moe(attention: str = "sdpa") -> Any:
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text = {**HYBRID_TEXT, **experts, "shared_expert_intermediate_size": 16}
    del text["intermediate_size"]
    config = Qwen3_5MoeConfig(text_config=text, vision_config=dict(HYBRID_VISION), **IDS)
    return random_model(config, Qwen3_5MoeForConditionalGeneration, attention)


GLM: dict[str, Any] = {
    **{"patch_values": 96, "lay": before_times, "video_id": IMAGE, "mixes": False, "beams": False},
}

BUILT = {
    "qwen2_5_omni_thinker": Built(
        qwen2_5_omni, patch_values=96, seconds="video_second_per_grid", types=False, chooses=False
    ),
    "qwen2_5_vl": Built(tiny_model, patch_values=96, seconds="second_per_grid_ts"),
    "qwen2_vl": Built(qwen2_vl, patch_values=96, chooses=not EARLY),
    "qwen3_5": Built(qwen3_5, patch_values=96, lay=behind_times),
    "qwen3_5_moe": Built(qwen3_5_moe, patch_values=96, variant=True, lay=behind_times),
    "qwen3_vl": Built(qwen3_vl, patch_values=96, lay=behind_times),
    "qwen3_vl_moe": Built(qwen3_vl_moe, patch_values=96, variant=True, lay=behind_times),
    "glm4v": Built(glm4v, **GLM),
    "glm4v_moe": Built(glm4v_moe, variant=True, **GLM),
    "glm46v": Built(glm46v, variant=True, **GLM),
    "video_llama_3": Built(
        video_llama_3, patch_values=48, lay=behind_words, sparse=True, types=False, chooses=False, beams=False
    ),
    **{
        family: Built(
            frames_model(config, head),
            inputs=inputs,
            variant=family == "llava_next_video",
            mixes=family != "smolvlm",
            beams=family != "llava_next_video" or not (ENCODES_FIRST and release.is_older_than("5.20")),
            whole_beams=ENCODES_FIRST,
        )
        for family, (config, head, inputs) in frame_families.FAMILIES.items()
    },
}


def is_served(host: Any) -> bool:
    """Whether the installed release of transformers has a family, and can be patched for it."""
    return hasattr(versions.module_of(host.module_name), host.core_name) and not release.is_older_than(host.tested[0])


FAMILIES = {family: built for family, built in BUILT.items() if is_served(quickprefill.FAMILIES[family])}
"""Those that the installed release of transformers can be patched for."""


def skip_without(*families: str) -> None:
    """Skip a test, or a whole file of them, about families that the installed release of transformers cannot serve."""
    for family in set(families) - set(FAMILIES):
        pytest.skip(f"transformers {release.INSTALLED} does not serve {family}", allow_module_level=True)


def build_inputs(family: str, *prompts: list[int | Clip], seed: int = 1) -> dict[str, torch.Tensor]:
    """What the family's processor gives, or would give, for a batch of prompts, padded on the left."""
    if FAMILIES[family].inputs is not None:
        return FAMILIES[family].inputs(*prompts, seed=seed)
    built, generator = FAMILIES[family], torch.Generator().manual_seed(seed)
    rows, pixels, grids, masks = [], {True: [], False: []}, {True: [], False: []}, []

    def words(count: int) -> list[int]:
        return torch.randint(FIRST_WORD, FIRST_EXTRA, (count,), generator=generator).tolist()

    for parts in prompts:
        row: list[int] = []
        for part in parts:
            if isinstance(part, int):
                row += words(part)
                continue
            t, h, w = part.grid
            size = h * w // MERGE**2
            if part.image:
                row += [VISION_START, *[IMAGE] * size, VISION_END]
            else:
                present = torch.rand(t, size, generator=generator) < (0.6 if built.sparse else 2)
                present[0] = present[:, 0] = True  # the first frame is whole, and no other is empty
                masks.append(present.flatten())
                row += built.lay(words, present.sum(dim=1).tolist())
            pixels[part.image].append(torch.randn(t * h * w, built.patch_values, generator=generator))
            grids[part.image].append(part.grid)
        rows.append(row)
    inputs = lay_out(rows, pixels, grids)
    inputs["input_ids"][inputs["input_ids"] == VIDEO] = built.video_id
    if built.sparse:
        for kind, own in (("image", grids[True]), ("video", grids[False])):
            inputs |= {f"{kind}_merge_sizes": torch.full((len(own),), MERGE)} if own else {}
        inputs |= {"video_compression_mask": torch.cat(masks)} if masks else {}
    if not built.types:
        inputs.pop("mm_token_type_ids", None)
    if built.seconds and grids[False]:
        inputs[built.seconds] = torch.ones(len(grids[False]))
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
