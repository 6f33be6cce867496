"""How many temporal slices pass at a time: through the vision tower, and through the decoder."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from quickprefill.budget.counts import compressed_count
from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import InputError
from quickprefill.prompt.spans import Grid

__all__ = ["GROUP_TOKENS", "check_slices", "expected_entering", "group_slices", "refills", "tower_slices"]

GROUP_TOKENS = 2048
"""Tokens that enter the decoder together, unless the config counts frames: enough to keep a GPU busy longer than it
takes to launch their kernels, and few enough for their activations to stay below a cache of any length."""


_TOWER_TOKENS = 4 * GROUP_TOKENS
"""Tokens that the vision tower makes together where launching its kernels is what costs: a group's, before a compressor
drops three quarters of them."""


def check_slices(config: QuickPrefillConfig, grids: Iterable[Grid]) -> None:
    """Raise InputError if a policy needs whole slices, but tokens of some are not in the prompt."""
    compressor = config.compressor
    if compressor is None or not compressor.whole_slices:
        return
    for index, grid in enumerate(grids):
        if grid.present is not None:
            raise InputError(
                f"policy {compressor.name} compares whole slices, but the processor left all but {grid.num_tokens} of "
                f"the {grid.num_made} tokens of video {index} out of the prompt; call it with "
                "use_token_compression=False, or use a policy that scores or selects"
            )


def group_slices(config: QuickPrefillConfig, frames_per_slice: int, grid: Grid, entered: int | None = None) -> int:
    """Temporal slices in a group of a video.

    From sizes and config alone, the same on every machine. Without a number of frames, as many as bring GROUP_TOKENS
    tokens into the decoder, in groups of about one size.

    Args:
        entered: how many of the video's tokens enter the decoder, where that is known already.
    """
    if isinstance(config.group_frames, int):
        return max(config.group_frames // frames_per_slice, 1)
    return _even(grid.slices, GROUP_TOKENS, entered or expected_entering(config, grid))


def tower_slices(config: QuickPrefillConfig, frames_per_slice: int, grid: Grid, device: torch.device) -> int:
    """Temporal slices of a video that pass the vision tower at a time; exact for any number, so a device may choose."""
    if isinstance(config.group_frames, int):
        return max(config.group_frames // frames_per_slice, 1)
    return _even(grid.slices, GROUP_TOKENS if device.type == "cpu" else _TOWER_TOKENS, grid.num_made)


def refills(config: QuickPrefillConfig) -> bool:
    """Whether what a compressor leaves of several units enters together, because only the content says how much."""
    compressor = config.compressor
    waits = compressor is not None and compressor.scope == "group" and not compressor.exact
    return waits and config.group_frames is None


def expected_entering(config: QuickPrefillConfig, grid: Grid, num_groups: int = 1) -> int:
    """How many tokens of a unit with this grid enter the decoder, or the most where that is the content's to say."""
    compressor = config.compressor
    if compressor is None:
        return grid.num_tokens
    return compressor.most_tokens(grid, compressed_count(config, grid, num_groups))


def _even(slices: int, budget: int, total: int) -> int:
    """Slices in each of the fewest parts that hold at most `budget` of `total` tokens, and one slice at least."""
    most = min(max(budget * slices // total, 1), slices)
    parts = -(-slices // most)
    return -(-slices // parts)
