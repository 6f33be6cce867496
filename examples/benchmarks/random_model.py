"""Models of the real architecture with random weights, and prompts for them: speed and memory need no trained ones."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VIDEO, IMAGE, VISION_START, VISION_END, VOCABULARY = 4, 3, 1, 2, 16384
PATCHES = 16
"""Patches along each side of a frame: 64 tokens in a slice of two frames."""

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    # Qwen2.5-VL's own sizes for 3b and 7b; small is what two cores can do, tiny what a test can.
    "tiny": {
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        "vision": {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
        | {"fullatt_block_indexes": [1]},
    },
    "small": {
        "text": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}},
        "vision": {"depth": 4, "hidden_size": 192, "intermediate_size": 768, "num_heads": 3, "out_hidden_size": 768}
        | {"fullatt_block_indexes": [1, 3]},
    },
    "3b": {
        "text": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
        | {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        | {"out_hidden_size": 2048, "fullatt_block_indexes": [7, 15, 23, 31]},
    },
    "7b": {
        "text": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        | {"out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]},
    },
}


def build_model(shape: str, device: str | None = None) -> Any:
    """A model with random weights, in bf16 but on a CPU; `device` None: the GPU where there is one."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    parts = SHAPES[shape]
    config = Qwen2_5_VLConfig(
        text_config={"vocab_size": VOCABULARY, "max_position_embeddings": 1 << 20, "eos_token_id": None}
        | {"bos_token_id": None, "pad_token_id": 0, **parts["text"]},
        vision_config=parts["vision"],
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=shape != "7b",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    return model.to(dtype).eval()


def build_inputs(num_tokens: int, model: Any) -> dict[str, torch.Tensor]:
    """A prompt with one video of `num_tokens` tokens and a question of 24 words; the pixels are noise."""
    slices = num_tokens * 4 // PATCHES**2
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, VOCABULARY, (32,), generator=generator).tolist()
    ids = torch.tensor([[*words[:8], VISION_START, *[VIDEO] * num_tokens, VISION_END, *words[8:]]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        "pixel_values_videos": torch.randn(slices * PATCHES**2, 1176, generator=generator),
        "video_grid_thw": torch.tensor([[slices, PATCHES, PATCHES]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }
    known = inspect.signature(model.forward).parameters  # token types since transformers 5.3
    return {name: value.to(model.device) for name, value in inputs.items() if name in known}
