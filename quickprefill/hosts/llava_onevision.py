"""LLaVA-OneVision: one run of placeholders a video, the last of which is a learned newline; all videos in one tensor.

Videos of a call have equally many frames: pixel_values_videos is (videos, frames, 3, height, width).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from quickprefill import versions
from quickprefill.hosts.frames import FramesHost, patches_along
from quickprefill.prompt.pending import PendingVideo, PendingVideos
from quickprefill.prompt.spans import Grid

__all__ = ["LlavaHost", "LlavaOnevision"]

_FEATURES = ("vision_feature_layer", "vision_feature_select_strategy")
_IMAGES = ("pixel_values", "image_sizes", "batch_num_images", *_FEATURES)


class LlavaHost(FramesHost):
    """A host whose videos come as pixel_values_videos alone."""

    video_inputs = ("pixel_values_videos",)
    axes = ("videos", "frames", "channels", "height", "width")

    def closing_token_ids(self, core: Any) -> frozenset[int]:
        return frozenset({self.video_token_id(core)} if self.closing_placeholders else ())

    def closing(self, core: Any) -> torch.Tensor | None:
        """(k, C) what stands behind a video's last slice."""
        return None

    def grids(self, core: Any, inputs: Mapping[str, Any]) -> list[Grid]:
        if inputs.get("pixel_values_videos") is None:
            return []
        pixels, side = self.pixels(inputs), self.side(core)
        return [Grid(pixels.shape[1], side, side)] * len(pixels)

    def videos(self, core: Any, call: Mapping[str, Any]) -> list[PendingVideo]:
        device, dtype, grids = self.tower_device(core), core.dtype, self.grids(core, call)
        options = {name: call[name] for name in _FEATURES if call.get(name) is not None}

        def encode(frames: torch.Tensor, slices: int) -> torch.Tensor:
            frames = frames.to(device, non_blocking=True).to(dtype)
            made = versions.stacked_features(versions.features(core, "get_video_features", frames[None], **options))
            return made.flatten(0, 1)[: slices * grids[0].slice_tokens]  # some releases close every video here

        pixels, closing = zip(call["pixel_values_videos"], grids, strict=True), self.closing(core)
        return [self.pending(core, frames, grid, encode, closing=closing) for frames, grid in pixels]

    def deferred(self, core: Any, videos: list[PendingVideo]) -> Any:
        return BaseModelOutputWithPooling(pooler_output=PendingVideos(videos))

    def image_features(self, core: Any, call: Mapping[str, Any]) -> Any:
        given = {name: call[name] for name in _IMAGES if call.get(name) is not None}
        return versions.features(core, "get_image_features", **versions.known_arguments(core.get_image_features, given))


class LlavaOnevision(LlavaHost):
    """Facts about LlavaOnevisionForConditionalGeneration."""

    model_type = "llava_onevision"
    module_name = "transformers.models.llava_onevision.modeling_llava_onevision"
    head_name = "LlavaOnevisionForConditionalGeneration"
    core_name = "LlavaOnevisionModel"
    closing_placeholders = 1

    def side(self, core: Any) -> int:
        return math.ceil(patches_along(core.config.vision_config) / 2)

    def projected(self, core: Any) -> int:
        # Patches are projected before they merge; then they lie there twice, beside what they become.
        return int(core.config.get_text_config().hidden_size * (2 + 1 / self.merged(core)))

    def closing(self, core: Any) -> torch.Tensor | None:
        newline: torch.Tensor = core.image_newline[None]
        return newline

    def embed(self, core: Any, ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        embeds, newline = super().embed(core, ids, features), ids == self.video_token_id(core)
        if not bool(newline.any()):
            return embeds
        return torch.where(newline[:, None].to(embeds.device), core.image_newline.to(embeds), embeds)
