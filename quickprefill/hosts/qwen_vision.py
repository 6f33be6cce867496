"""The vision towers of the Qwen family, fed some temporal slices of a video at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from quickprefill.attention.segments import batched_segments
from quickprefill.errors import InputError
from quickprefill.hosts.base import execution_device
from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["pending_videos"]


def pending_videos(model: Any, pixels: torch.Tensor, grids: torch.Tensor) -> list[PendingVideo]:
    """The videos of a call, each with what encodes its slices; (patches, patch values) and (videos, 3).

    Raises:
        InputError: the two do not belong together.
    """
    merge = model.config.vision_config.spatial_merge_size
    patches = [t * h * w for t, h, w in grids.tolist()]
    if sum(patches) != pixels.shape[0]:
        raise InputError(
            f"pixel_values_videos has {pixels.shape[0]} rows of patches, but video_grid_thw {grids.tolist()} needs "
            f"{sum(patches)}; pass both from one processor call"
        )

    visual = model.model.visual
    device = execution_device(visual)

    @functools.cache
    def layout(slices: int, height: int, width: int) -> tuple[torch.Tensor, dict[str, Any]]:
        grid = torch.tensor([[slices, height, width]])
        return grid, _layout(visual, grid, device)

    def encoder(height: int, width: int) -> Callable[[torch.Tensor, int], torch.Tensor]:
        def encode(rows: torch.Tensor, slices: int) -> torch.Tensor:
            rows = rows.to(device, non_blocking=True)
            with batched_segments(visual.config):
                grid, derived = layout(slices, height, width)
                output = model.model.get_video_features(rows, grid, return_dict=True, **derived)
            return torch.cat(tuple(output.pooler_output))

        return encode

    return [
        PendingVideo(rows, Grid(t, h // merge, w // merge), encoder(h, w), device)
        for rows, (t, h, w) in zip(torch.split(pixels, patches), grids.tolist(), strict=True)
    ]


def _layout(visual: Any, grid: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Arguments of get_video_features() besides pixels and grid, for a grid (videos, 3) on the CPU.

    The tower works them out for each call itself, and reads the grid back from the device to do so: a GPU that is fed
    group by group would run dry at every group.
    """
    from transformers.vision_utils import (
        get_max_seqlen,
        get_vision_attention_seqlens,
        get_vision_position_ids,
        get_vision_window_index,
    )

    segments, longest = get_vision_attention_seqlens(grid, visual.config)
    window_index, windows = get_vision_window_index(
        grid,
        spatial_merge_size=visual.spatial_merge_size,
        window_size=visual.window_size,
        patch_size=visual.patch_size,
    )
    # flash-attn takes the boundaries to the device; the other kinds cut along them on the host.
    flash = visual.config._attn_implementation.startswith("flash_attention")
    boundaries = device if flash else torch.device("cpu")
    return {
        "video_position_ids": get_vision_position_ids(grid, visual.spatial_merge_size).to(device),
        "video_window_index": window_index.to(device),
        "video_cu_seqlens": segments.to(boundaries),
        "video_cu_window_seqlens": windows.to(boundaries),
        "video_max_seqlen": longest,
        "video_max_window_seqlen": get_max_seqlen(windows, visual.config),
    }
