"""The vision towers of the Qwen family, fed some temporal slices of a video at a time."""

from __future__ import annotations

import functools
from typing import Any

import torch

from quickprefill.attention.interface import flash_is_requested
from quickprefill.attention.segments import batched_segments
from quickprefill.errors import InputError
from quickprefill.hosts import versions
from quickprefill.hosts.devices import execution_device
from quickprefill.prompt.pending import Encode, PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["pending_videos"]


def pending_videos(core: Any, pixels: torch.Tensor, grids: torch.Tensor) -> list[PendingVideo]:
    """The videos of a call, each with what encodes its slices; (patches, patch values) and (videos, 3).

    Raises:
        InputError: the two do not belong together.
    """
    merge = core.config.vision_config.spatial_merge_size
    patches = [t * h * w for t, h, w in grids.tolist()]
    if sum(patches) != pixels.shape[0]:
        raise InputError(
            f"pixel_values_videos has {pixels.shape[0]} rows of patches, but video_grid_thw {grids.tolist()} needs "
            f"{sum(patches)}; pass both from one processor call"
        )
    device, text = execution_device(core.visual), core.config.get_text_config()
    layout = functools.cache(functools.partial(_layout, core.visual, device))
    return [
        PendingVideo(
            rows,
            Grid(t, h // merge, w // merge),
            _encoder(core, device, functools.partial(layout, height=h, width=w)),
            width=text.hidden_size,
            dtype=core.visual.dtype,
            device=device,
        )
        for rows, (t, h, w) in zip(torch.split(pixels, patches), grids.tolist(), strict=True)
    ]


def _encoder(core: Any, device: torch.device, layout: Any) -> Encode:
    def encode(rows: torch.Tensor, slices: int) -> torch.Tensor:
        # The tower casts its input too, but would leave what it was given alive beside it.
        rows = rows.to(device, non_blocking=True).to(core.visual.dtype)
        with batched_segments(core.visual.config):
            grid, derived = layout(slices)
            return versions.stacked_features(core.get_video_features(rows, grid, **derived))

    return encode


def _layout(visual: Any, device: torch.device, slices: int, height: int, width: int) -> tuple[Any, dict[str, Any]]:
    """A grid of `slices` of (height, width) patches on the CPU, and what get_video_features() takes beside it.

    The tower works these out for each call itself, and reads the grid back from the device to do so: a GPU that is fed
    group by group would run dry at every group.
    """
    grid = torch.tensor([[slices, height, width]])
    helpers = versions.module_of("transformers.vision_utils")
    if not hasattr(helpers, "get_vision_attention_seqlens"):
        return grid, {}
    merge = visual.spatial_merge_size
    segments, longest = helpers.get_vision_attention_seqlens(grid, visual.config)
    # A flash kernel takes the boundaries to the device; the other kinds cut along them on the host.
    boundaries = device if flash_is_requested(visual.config) else torch.device("cpu")
    derived = {
        "return_dict": True,
        "video_position_ids": helpers.get_vision_position_ids(grid, merge).to(device),
        "video_cu_seqlens": segments.to(boundaries),
        "video_max_seqlen": longest,
    }
    if hasattr(visual, "window_size"):  # layers that attend in windows
        index, windows = helpers.get_vision_window_index(
            grid, spatial_merge_size=merge, window_size=visual.window_size, patch_size=visual.patch_size
        )
        derived |= {
            "video_window_index": index.to(device),
            "video_cu_window_seqlens": windows.to(boundaries),
            "video_max_window_seqlen": helpers.get_max_seqlen(windows, visual.config),
        }
    if hasattr(visual, "num_grid_per_side"):  # a learned table of positions, interpolated
        places, weights = helpers.get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        derived |= {"video_interp_indices": places.to(device), "video_interp_weights": weights.to(device)}
    return grid, derived
