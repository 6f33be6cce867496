"""The vision towers of the Qwen family, fed some temporal slices of a video at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from quickprefill import versions
from quickprefill.attention.interface import flash_is_requested
from quickprefill.attention.segments import batched_segments
from quickprefill.errors import InputError
from quickprefill.hosts.devices import execution_device
from quickprefill.hosts.tower_layouts import WindowedLayout, derived_layout
from quickprefill.prompt.pending import Encode, PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["Features", "pending_videos", "tower_layout"]

Layout = tuple[torch.Tensor, Any]
"""A grid, and what a tower takes beside it by name; or a WindowedLayout."""
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
        trains = torch.is_grad_enabled() and (rows.requires_grad or any(p.requires_grad for p in visual.parameters()))
        # A layer that is checkpointed runs once more in the backward pass, when nothing of ours is in its place.
        attention = contextlib.nullcontext() if trains else batched_segments(visual.config)
        with torch.set_grad_enabled(trains), attention:
            return versions.stacked_features(features(rows, layout(slices)))

    return encode


def tower_layout(
    visual: Any, device: torch.device, slices: int, height: int, width: int, merge: int | None = None
) -> Layout:
    """A grid of `slices` of (height, width) patches, and what get_video_features() takes beside it."""
    grid = torch.tensor([[slices, height, width]])
    # A flash kernel takes the boundaries to the device; the other kinds cut along them on the host.
    boundaries = device if flash_is_requested(visual.config) else torch.device("cpu")
    derived = derived_layout(visual, grid, visual.spatial_merge_size if merge is None else merge)
    if derived:
        return grid, {f"video_{name}": _on(value, device, boundaries, name) for name, value in derived.items()}
    if hasattr(visual, "window_size"):
        return grid, WindowedLayout.of(visual, device, boundaries, grid)
    return grid.to(boundaries), {}


def _on(value: Any, device: torch.device, boundaries: torch.device, name: str) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(boundaries if name.endswith("seqlens") else device)
    return value
