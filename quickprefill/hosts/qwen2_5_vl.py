"""Qwen2.5-VL: a video is one run of placeholders; the tower's layers attend in windows or in slices."""

from __future__ import annotations

from quickprefill.hosts.qwen import QwenHost

__all__ = ["Qwen2_5_VL"]


class Qwen2_5_VL(QwenHost):
    """Facts about Qwen2_5_VLForConditionalGeneration."""

    model_type = "qwen2_5_vl"
    module_name = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"
    head_name = "Qwen2_5_VLForConditionalGeneration"
    core_name = "Qwen2_5_VLModel"
