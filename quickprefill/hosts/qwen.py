"""What the hosts of the Qwen family share: grids by video_grid_thw, three-dimensional positions, a tower by slices."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from quickprefill import versions
from quickprefill.attention.interface import host_implementation
from quickprefill.hosts.decoder_sizes import decoder_sizes
from quickprefill.hosts.devices import execution_device
from quickprefill.hosts.geometry import Geometry
from quickprefill.hosts.qwen_vision import Layout, pending_videos, tower_layout
from quickprefill.hosts.tower_layouts import WindowedLayout
from quickprefill.hosts.transformers import TransformersHost
from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["QwenHost"]

_FOR_POSITIONS = (
    *("input_ids", "image_grid_thw", "video_grid_thw", "attention_mask", "second_per_grid_ts"),
    *("mm_token_type_ids", "use_audio_in_video", "audio_feature_lengths", "video_second_per_grid"),
)


class QwenHost(TransformersHost):
    """A host whose videos come as pixel_values_videos and video_grid_thw, in slices of two frames."""

    vision_mlp_tensors: ClassVar[int] = 3
    """As in Geometry; 3 for a gated MLP and for an activation of two steps, 2 for one of a single step."""

    def frames_per_slice(self, core: Any) -> int:
        return int(core.config.vision_config.temporal_patch_size)

    def closing_token_ids(self, core: Any) -> frozenset[int]:
        return frozenset({core.config.vision_end_token_id})

    def grids(self, core: Any, inputs: Mapping[str, Any]) -> list[Grid]:
        grids = inputs.get("video_grid_thw")
        merge = core.config.vision_config.spatial_merge_size
        frames = self.frames_per_slice(core)
        made = [] if grids is None else grids.tolist()
        return [Grid(t, h // merge, w // merge, slice_frames=frames) for t, h, w in made]

    def videos(self, core: Any, call: Mapping[str, Any]) -> list[PendingVideo]:
        return pending_videos(
            core.visual,
            call["pixel_values_videos"],
            call["video_grid_thw"],
            self.grids(core, call),
            width=core.config.get_text_config().hidden_size,
            layout=self.tower_layout,
            features=functools.partial(self.tower_features, core),
        )

    def tower_layout(self, visual: Any, device: torch.device, slices: int, height: int, width: int) -> Layout:
        """What the tower needs to know of `slices` of (height, width) patches."""
        return tower_layout(visual, device, slices, height, width)

    def tower_features(self, core: Any, rows: torch.Tensor, layout: Layout) -> Any:
        """The tower's output for pixel rows, as get_video_features() returns it."""
        grid, derived = layout
        if isinstance(derived, WindowedLayout):
            return derived.run(core.visual, rows)
        return versions.features(core, "get_video_features", rows, grid, **derived)

    def image_features(self, core: Any, call: Mapping[str, Any]) -> Any:
        return versions.features(core, "get_image_features", call["pixel_values"], call["image_grid_thw"])

    def position_ids(self, core: Any, call: Mapping[str, Any]) -> torch.Tensor:
        ids, past, positions = call["input_ids"], versions.cache_of(call), call.get("position_ids")
        if positions is None:
            positions = versions.rope_positions(core, {name: call.get(name) for name in _FOR_POSITIONS}, past)
        if positions is None:
            start = 0 if past is None else past.get_seq_length()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        if positions.ndim == 2:
            return positions.expand(3, ids.shape[0], -1)
        # generate() puts a row of text positions first; it only serves packed sequences.
        return positions[-3:].expand(3, -1, -1)

    def geometry(self, core: Any) -> Geometry:
        vision = core.config.vision_config
        vision_hidden, vision_mlp = self.vision_sizes(vision)
        return Geometry(
            **decoder_sizes(core, self.decoder(core)),
            vision_layers=vision.depth,
            vision_hidden=vision_hidden,
            vision_heads=vision.num_heads,
            vision_mlp=vision_mlp,
            vision_mlp_tensors=self.vision_mlp_tensors,
            vision_window=getattr(vision, "window_size", 0) // vision.patch_size // vision.spatial_merge_size,
            patches_per_token=vision.spatial_merge_size**2,
            patch_values=getattr(vision, "in_channels", 3) * vision.temporal_patch_size * vision.patch_size**2,
            vision_device=execution_device(core.visual),
            vision_eager=host_implementation(core.visual.config) == "eager",
            vision_table=hasattr(core.visual, "num_grid_per_side"),
            levels=len(getattr(core.visual, "deepstack_visual_indexes", ())),
        )

    def vision_sizes(self, vision: Any) -> tuple[int, int]:
        """Hidden size and MLP size of the tower's layers, from its config."""
        return vision.hidden_size, vision.intermediate_size
