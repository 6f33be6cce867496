"""VideoLLaMA3: a slice is one frame behind its time as text, without what hardly differs from the frame before.

The processor's mask says which those are. The tower makes them, as the host's does, and the prompt does not hold them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from quickprefill import release, versions
from quickprefill.attention.interface import host_implementation
from quickprefill.errors import InputError
from quickprefill.hosts.decoder_sizes import decoder_sizes
from quickprefill.hosts.devices import execution_device
from quickprefill.hosts.geometry import Geometry
from quickprefill.hosts.qwen_vision import Layout, pending_videos, tower_layout
from quickprefill.hosts.transformers import TransformersHost
from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["VideoLLaMA3"]


class VideoLLaMA3(TransformersHost):
    """Facts about VideoLlama3ForConditionalGeneration."""

    model_type = "video_llama_3"
    tested = ("5.0", release.TESTED[1])
    module_name = "transformers.models.video_llama_3.modeling_video_llama_3"
    head_name = "VideoLlama3ForConditionalGeneration"
    core_name = "VideoLlama3Model"
    video_inputs = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")

    def frames_per_slice(self, core: Any) -> int:
        return 1

    def closing_token_ids(self, core: Any) -> frozenset[int]:
        return frozenset()

    def grids(self, core: Any, inputs: Mapping[str, Any]) -> list[Grid]:
        if inputs.get("video_grid_thw") is None:
            return []
        merges = inputs["video_merge_sizes"].tolist()
        shapes = [(t, h // m, w // m) for (t, h, w), m in zip(inputs["video_grid_thw"].tolist(), merges, strict=True)]
        mask, sizes = inputs.get("video_compression_mask"), [t * h * w for t, h, w in shapes]
        if mask is None or bool(mask.all()):
            return [Grid(*shape) for shape in shapes]
        if len(mask) != sum(sizes):
            raise InputError(
                f"video_compression_mask says of {len(mask)} tokens whether the prompt holds them, but the videos have "
                f"{sum(sizes)}; pass both from one processor call"
            )
        parts = zip(mask.cpu().bool().split(sizes), shapes, strict=True)
        return [Grid(t, h, w, None if bool(part.all()) else part.view(t, h * w)) for part, (t, h, w) in parts]

    def videos(self, core: Any, call: Mapping[str, Any]) -> list[PendingVideo]:
        merges = sorted(set(call["video_merge_sizes"].tolist()))
        if len(merges) != 1:
            raise InputError(f"the videos of a call must have one merge size, got {merges}; pass them one by one")
        return pending_videos(
            core.vision_model,
            call["pixel_values_videos"],
            call["video_grid_thw"],
            self.grids(core, call),
            width=core.config.get_text_config().hidden_size,
            layout=functools.partial(tower_layout, merge=merges[0]),
            features=functools.partial(_features, core, torch.tensor(merges)),
        )

    def image_features(self, core: Any, call: Mapping[str, Any]) -> Any:
        given = (call[name] for name in ("pixel_values", "image_grid_thw", "image_merge_sizes"))
        return versions.features(core, "get_image_features", *given)

    def geometry(self, core: Any) -> Geometry:
        vision = core.config.vision_config
        return Geometry(
            **decoder_sizes(core, self.decoder(core)),
            vision_layers=vision.num_hidden_layers,
            vision_hidden=vision.hidden_size,
            vision_heads=vision.num_attention_heads,
            vision_mlp=vision.intermediate_size,
            vision_mlp_tensors=2,
            vision_window=0,
            patches_per_token=_MERGE**2,
            patch_values=vision.num_channels * vision.patch_size**2,
            vision_device=execution_device(core.vision_model),
            vision_eager=host_implementation(core.vision_model.config) == "eager",
        )


_MERGE = 2
"""Patches along a side of a video's token, unless a call says otherwise; nothing in the model's config does."""


def _features(core: Any, merges: torch.Tensor, rows: torch.Tensor, layout: Layout) -> Any:
    grid, derived = layout
    return versions.features(core, "get_video_features", rows, grid, merges, **derived)
