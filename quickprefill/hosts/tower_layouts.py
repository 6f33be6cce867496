"""What a tower of the Qwen family needs to know of a grid beside it, worked out before a group's turn.

A tower works these out for each call itself, and reads the grid back from the device to do so: a GPU that is fed group
by group would run dry at every group. Three kinds of releases:

    4.57 to 5.8     a tower takes a grid only, and one on the CPU will do; where its layers attend in windows it reads
                    their sizes back all the same, so that its forward() is here
    5.9 to 5.14     it takes the layout, but no longest segment
    from 5.15 on    it takes all of it
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from quickprefill import versions

__all__ = ["WindowedLayout", "derived_layout", "lengths_in_place"]


def derived_layout(visual: Any, grid: torch.Tensor, merge: int) -> dict[str, Any]:
    """By the tower's names: tensors on the CPU, and numbers; nothing where it takes a grid only.

    Args:
        grid: (1, 3) slices, rows and columns of patches, on the CPU.
        merge: patches along a side of a token.
    """
    helpers = versions.layout_helpers()
    if helpers is None:
        return {}
    longest = versions.takes_longest_segment()
    if longest:
        segments, most = helpers.get_vision_attention_seqlens(grid, visual.config)
        derived = {"cu_seqlens": segments, "max_seqlen": most}
    else:
        derived = {"cu_seqlens": helpers.get_vision_cu_seqlens(grid)}
    derived["position_ids"] = helpers.get_vision_position_ids(grid, merge)
    if hasattr(visual, "window_size"):  # layers that attend in windows
        index, windows = helpers.get_vision_window_index(
            grid, spatial_merge_size=merge, window_size=visual.window_size, patch_size=visual.patch_size
        )
        derived |= {"window_index": index, "cu_window_seqlens": windows}
        if longest:
            derived["max_window_seqlen"] = helpers.get_max_seqlen(windows, visual.config)
    if hasattr(visual, "num_grid_per_side"):  # a learned table of positions, interpolated
        sizes = {"num_grid_per_side": visual.num_grid_per_side, "spatial_merge_size": merge}
        if longest:
            how = {"mode": visual.interpolation_mode, "align_corners": visual.interpolation_align_corners}
            places, weights = helpers.get_vision_interpolation_indices_and_weights(grid, **sizes, **how)
            derived |= {"interp_indices": places, "interp_weights": weights}
        else:
            places, weights = helpers.get_vision_bilinear_indices_and_weights(grid, **sizes)
            derived |= {"bilinear_indices": places, "bilinear_weights": weights}
    return derived


@dataclass(frozen=True)
class WindowedLayout:
    """The layout of Qwen2.5-VL's tower in releases that take none, and what runs the tower with it."""

    order: torch.Tensor
    """(tokens,) which token stands where, window by window."""
    back: torch.Tensor
    """(tokens,) the inverse."""
    rotary: tuple[torch.Tensor, torch.Tensor]
    """Cosines and sines of the patches in that order."""
    segments: torch.Tensor
    """Boundaries of slices, (S + 1,) of patches."""
    windows: torch.Tensor
    """Boundaries of windows."""

    @classmethod
    def of(cls, visual: Any, device: torch.device, boundaries: torch.device, grid: torch.Tensor) -> WindowedLayout:
        """The layout of a grid (1, 3) on the CPU; boundaries go to a device of their own."""
        order, windows = visual.get_window_index(grid)
        slices, height, width = grid[0].tolist()
        angles = visual.rot_pos_emb(grid)
        angles = angles.view(-1, visual.spatial_merge_unit, angles.shape[-1])[order.to(angles.device)].flatten(0, 1)
        angles = torch.cat([angles, angles], dim=-1).to(device)
        return cls(
            order=order.to(device),
            back=order.argsort().to(device),
            rotary=(angles.cos(), angles.sin()),
            segments=(torch.arange(slices + 1, dtype=torch.int32) * height * width).to(boundaries),
            windows=torch.unique_consecutive(torch.tensor(windows, dtype=torch.int32)).to(boundaries),
        )

    def run(self, visual: Any, rows: torch.Tensor) -> torch.Tensor:
        """(tokens, C) what the tower makes of pixel rows: its own forward(), which takes no layout."""
        hidden = visual.patch_embed(rows)
        hidden = hidden.view(len(self.order), -1)[self.order].view(hidden.shape)
        for index, block in enumerate(visual.blocks):
            boundaries = self.segments if index in visual.fullatt_block_indexes else self.windows
            hidden = block(hidden, cu_seqlens=boundaries, position_embeddings=self.rotary)
        features: torch.Tensor = visual.merger(hidden)
        return features[self.back]


@contextmanager
def lengths_in_place(embeddings: torch.nn.Module) -> Iterator[None]:
    """Before 5.15 GLM's embeddings take lengths and shapes of pictures from where the grid is; the host's is the CPU.

    Up to 5.8 they read them one by one, so there they stay; later they look them up on the device, which they go to.
    Coordinates always do; 4.x leaves them on the CPU.
    """

    def arguments(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, lengths, shapes, *coordinates = args
        place = shapes.device if versions.layout_helpers() is None else hidden.device
        sizes = (torch.as_tensor(lengths).to(place), shapes.to(place))
        return hidden, *sizes, *(part.to(hidden.device) for part in coordinates)

    hook = embeddings.register_forward_pre_hook(arguments)
    try:
        yield
    finally:
        hook.remove()
