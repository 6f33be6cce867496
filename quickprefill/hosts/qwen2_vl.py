"""Qwen2-VL: as Qwen2.5-VL, without windows in the tower, whose config has other names."""

from __future__ import annotations

from typing import Any

from quickprefill.hosts.qwen import QwenHost

__all__ = ["Qwen2_VL"]


class Qwen2_VL(QwenHost):
    """Facts about Qwen2VLForConditionalGeneration."""

    model_type = "qwen2_vl"
    module_name = "transformers.models.qwen2_vl.modeling_qwen2_vl"
    head_name = "Qwen2VLForConditionalGeneration"
    core_name = "Qwen2VLModel"

    def vision_sizes(self, vision: Any) -> tuple[int, int]:
        return vision.embed_dim, int(vision.embed_dim * vision.mlp_ratio)
