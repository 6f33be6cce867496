"""What the vision towers of the Qwen family derive from a grid, worked out on the host once per size of a group.

The host's own tower does it for each call, and reads the grid back from the device to do so: a GPU that is fed group by
group would run dry at every group.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["tower_layout"]


def tower_layout(visual: Any, grid: torch.Tensor, device: torch.device) -> dict[str, Any]:
    """Arguments of get_video_features() besides pixels and grid, for a grid (videos, 3) on the CPU."""
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
    # Flash attention takes the boundaries to the device; the other kinds cut along them on the host.
    boundaries = torch.device("cpu") if longest is None else device
    return {
        "video_position_ids": get_vision_position_ids(grid, visual.spatial_merge_size).to(device),
        "video_window_index": window_index.to(device),
        "video_cu_seqlens": segments.to(boundaries),
        "video_cu_window_seqlens": windows.to(boundaries),
        "video_max_seqlen": longest,
        "video_max_window_seqlen": get_max_seqlen(windows, visual.config),
    }
