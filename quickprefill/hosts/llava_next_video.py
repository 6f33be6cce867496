"""LLaVA-NeXT-Video: one run of placeholders a video; frames are pooled before they are projected."""

from __future__ import annotations

from typing import Any

from quickprefill.hosts.frames import patches_along
from quickprefill.hosts.llava_onevision import LlavaHost

__all__ = ["LlavaNextVideo"]


class LlavaNextVideo(LlavaHost):
    """Facts about LlavaNextVideoForConditionalGeneration."""

    model_type = "llava_next_video"
    module_name = "transformers.models.llava_next_video.modeling_llava_next_video"
    head_name = "LlavaNextVideoForConditionalGeneration"
    core_name = "LlavaNextVideoModel"
    vision_mlp_tensors = 3
    class_tokens = 1

    def side(self, core: Any) -> int:
        return int(patches_along(core.config.vision_config) // core.config.spatial_pool_stride)
