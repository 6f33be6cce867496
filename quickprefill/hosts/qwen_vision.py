"""The vision towers of the Qwen family, fed some temporal slices of a video at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from quickprefill.attention.interface import flash_is_requested
from quickprefill.attention.segments import batched_segments
from quickprefill.errors import InputError
from quickprefill.hosts import versions
from quickprefill.hosts.devices import execution_device
from quickprefill.prompt.pending import Encode, PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["Features", "pending_videos", "tower_layout"]

Layout = tuple[torch.Tensor, dict[str, Any]]
"""A grid, and what a tower takes beside it."""
Features = Callable[[torch.Tensor, Layout], Any]
"""(pixel rows on the tower's device, their layout) -> what get_video_features() returns."""


def pending_videos(
    visual: Any,
    pixels: torch.Tensor,
    patches: torch.Tensor,
    grids: Sequence[Grid],
    *,
    width: int,
    layout: Callable[..., Layout],
    features: Features,
) -> list[PendingVideo]:
    """The videos of a call, each with what encodes its slices.

    Args:
        visual: the vision tower.
        pixels: (patches, patch values).
        patches: (videos, 3) slices, rows and columns of patches.
        grids: those of tokens.
        width: C.
        layout: (visual, device, slices, height, width) -> the layout of a group; called once for each.
        features: runs the tower.

    Raises:
        InputError: the two do not belong together.
    """
    sizes = [t * h * w for t, h, w in patches.tolist()]
    if sum(sizes) != pixels.shape[0]:
        raise InputError(
            f"pixel_values_videos has {pixels.shape[0]} rows of patches, but video_grid_thw {patches.tolist()} needs "
            f"{sum(sizes)}; pass both from one processor call"
        )
    device = execution_device(visual)
    layout = functools.cache(functools.partial(layout, visual, device))
    return [
        PendingVideo(
            rows,
            grid,
            _encoder(visual, device, functools.partial(layout, height=h, width=w), features),
            width=width,
            dtype=visual.dtype,
            device=device,
        )
        for rows, grid, (_, h, w) in zip(torch.split(pixels, sizes), grids, patches.tolist(), strict=True)
    ]


def _encoder(visual: Any, device: torch.device, layout: Callable[[int], Layout], features: Features) -> Encode:
    def encode(rows: torch.Tensor, slices: int) -> torch.Tensor:
        # The tower casts its input too, but would leave what it was given alive beside it.
        rows = rows.to(device, non_blocking=True).to(visual.dtype)
        with batched_segments(visual.config):
            return versions.stacked_features(features(rows, layout(slices)))

    return encode


def tower_layout(
    visual: Any, device: torch.device, slices: int, height: int, width: int, merge: int | None = None
) -> Layout:
    """A grid of `slices` of (height, width) patches on the CPU, and what get_video_features() takes beside it.

    The tower works these out for each call itself, and reads the grid back from the device to do so: a GPU that is fed
    group by group would run dry at every group.
    """
    grid = torch.tensor([[slices, height, width]])
    helpers = versions.module_of("transformers.vision_utils")
    if not hasattr(helpers, "get_vision_attention_seqlens"):
        return grid, {}
    merge = visual.spatial_merge_size if merge is None else merge
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
