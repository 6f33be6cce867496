"""Budgets: from the config to counts of tokens, and from scores to the indices that stay."""

from __future__ import annotations

import torch

from quickprefill.config import QuickPrefillConfig
from quickprefill.policies.shared.rounding import round_share, rounded
from quickprefill.prompt.spans import Grid

__all__ = ["compressed_count", "num_kept", "round_share", "select", "selected_count", "stored_count"]


def compressed_count(config: QuickPrefillConfig, grid: Grid, num_groups: int = 1) -> int:
    """How many tokens of a group, or of a video of `num_groups` groups, compress() is to leave.

    What the compressor's own fields ask for, or else `keep` and at most `keep_tokens` a group.
    """
    compressor = config.compressor
    own = None if compressor is None else compressor.own_count(grid)
    if own is not None:
        return own
    count = round_share(config.keep_share, grid.num_tokens)
    return count if config.keep_tokens is None else min(count, config.keep_tokens * num_groups)


def stored_count(
    config: QuickPrefillConfig, entered: int, unit_tokens: int, unit_entered: int, layer: int = 0, num_layers: int = 1
) -> int:
    """How many of a group's `entered` tokens a scorer keeps in a layer: at least 1, at most all.

    The group's part of its unit's budget, at most `keep_tokens`; then the layer's share of that by `layer_decay`
    (QuickVideo's rules, but a schedule that reaches zero keeps one token where the original kept them all). The unit is
    what compress() got at a time: the group or its whole video; so a group to which a compressor gave more keeps more.

    Args:
        unit_tokens: tokens that the vision tower made for the unit.
        unit_entered: how many of them entered the decoder.
    """
    if layer < config.first_layer:
        return entered
    count = _part(config, entered, unit_tokens, unit_entered)
    if config.layer_decay == "linear":
        count -= count * layer // num_layers
    elif config.layer_decay is not None:
        count = int(count * float(config.layer_decay) ** layer)
    return min(max(count, 1), entered)


def selected_count(config: QuickPrefillConfig, entered: int, unit_tokens: int, unit_entered: int) -> int:
    """How many of a group's `entered` tokens a selector lets go on: at least 1, at most all.

    The selector's own ratio, int(ratio x entered); or else as `stored_count`, whose arguments these are.
    """
    selector = config.selector
    ratio = None if selector is None else selector.select_ratio
    count = _part(config, entered, unit_tokens, unit_entered) if ratio is None else int(ratio * entered)
    return min(max(count, 1), entered)


def num_kept(config: QuickPrefillConfig, num_tokens: int, layer: int = 0, num_layers: int = 1) -> int:
    """`stored_count` where nothing was dropped before.

    >>> num_kept(QuickPrefillConfig(keep=0.25), 10)
    3
    """
    return stored_count(config, num_tokens, num_tokens, num_tokens, layer, num_layers)


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending indices of the `count` highest scores, (..., N) -> (..., count). Ties go to the earlier token."""
    order = torch.sort(scores, dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


def _part(config: QuickPrefillConfig, entered: int, unit_tokens: int, unit_entered: int) -> int:
    """keep x unit_tokens x entered / unit_entered rounded half up, at most keep_tokens."""
    count = rounded(config.keep_share, unit_tokens * entered, max(unit_entered, 1))
    return count if config.keep_tokens is None else min(count, config.keep_tokens)
