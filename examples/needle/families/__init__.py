"""The model families that the suite can train a tiny checkpoint of, by their `model_type`."""

from __future__ import annotations

from examples.needle.families.base import Family
from examples.needle.families.llava_onevision import LlavaOnevision
from examples.needle.families.qwen2_5_vl import Qwen2_5_VL
from examples.needle.families.qwen3_vl import Qwen3_VL

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {"qwen2_5_vl": Qwen2_5_VL(), "qwen3_vl": Qwen3_VL(), "llava_onevision": LlavaOnevision()}
