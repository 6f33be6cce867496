"""Layers of a prompt's cache that stay the host's: a sliding window forgets by itself, a state has a constant size."""

from __future__ import annotations

import copy
from typing import Any

import torch

from quickprefill import versions

__all__ = ["fork", "held_tensors", "is_prunable", "side_by_side"]

_STATES = ("conv_states", "recurrent_states")
"""Attributes of a linear-attention layer, written in place: {index: tensor or None}; in early releases just that."""


def is_prunable(kind: Any) -> bool:
    """Whether a layer of this kind, as the host's own empty cache has it, holds what can be pruned.

    What a caller's cache holds does not say so: a plain DynamicCache() makes layers of one kind for all.
    """
    return type(kind).__name__ == "DynamicLayer"


def fork(layer: Any) -> Any:
    """A layer that goes on from here, and leaves the one that it came from as it is."""
    forked = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):  # states, and what is known of each
            setattr(forked, name, {key: _copied(one) for key, one in value.items()})
        elif name in _STATES:
            setattr(forked, name, _copied(value))
    return forked


def side_by_side(rows: list[Any], row_of: list[int]) -> Any:
    """One layer of a batch from those of its prompts, each of batch size 1.

    Args:
        rows: of layers without a state there is one only, which all rows of the batch share.
        row_of: which of them each row of the batch takes.
    """
    merged = rows[0]
    if len(row_of) == 1:
        return merged
    if not versions.has_state(merged):
        merged.batch_repeat_interleave(len(row_of))
        return merged
    for name in _STATES:
        each = [getattr(rows[row], name) for row in row_of]
        if isinstance(each[0], dict):
            setattr(merged, name, {key: _joined([states[key] for states in each]) for key in each[0]})
        else:
            setattr(merged, name, _joined(each))
    return merged


def held_tensors(layer: Any) -> list[torch.Tensor]:
    """Keys and values of a layer of any kind, or its states."""
    parts = [getattr(layer, name, None) for name in ("keys", "values", *_STATES)]
    return [one for part in parts for one in (part.values() if isinstance(part, dict) else [part]) if one is not None]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _joined(states: list[Any]) -> Any:
    return None if states[0] is None else torch.cat(states)
