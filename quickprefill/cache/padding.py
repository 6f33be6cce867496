"""Pruned layers of a batch: prompts that were prefilled one by one, laid side by side, and the mask that this needs."""

from __future__ import annotations

from typing import Any

import torch

from quickprefill.cache.host_layers import side_by_side
from quickprefill.cache.layer import PrunedLayer

__all__ = ["merge_rows", "visible_slots"]


def merge_rows(rows: list[Any], row_of: list[int], logical_length: int, room: int = 0) -> Any:
    """One layer of a batch from the same layer of prompts that were prefilled one by one.

    Args:
        rows: layers with batch size 1, of any stored length; or of a kind that side_by_side() takes.
        row_of: which of them each row of the batch takes; beams of one prompt share an entry.
        logical_length: columns of the batch, padding included.
        room: tokens to come, for which storage is reserved.

    Shorter rows are padded on the left; `prefill_mask` says where.
    """
    merged = rows[0]
    if not isinstance(merged, PrunedLayer):
        return side_by_side(rows, row_of)
    lengths = [layer.stored_length for layer in rows]
    stored = max(lengths)
    if len(row_of) == 1:
        merged.trim(room)
    else:
        merged = PrunedLayer()
        merged.fill(rows, row_of, stored + room)
        merged.croppable_from = max(layer.croppable_from + stored - layer.stored_length for layer in rows)
        if min(lengths) < stored:
            column = torch.arange(stored, device=merged.device)
            padding = torch.tensor([stored - lengths[row] for row in row_of], device=merged.device)
            merged.prefill_mask = column >= padding[:, None]
    merged.logical_length = merged.prefill_logical_length = logical_length
    return merged


def visible_slots(layer: PrunedLayer, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """Which stored slots each row of a batch sees, (B, stored) bool; None: all of them.

    Args:
        layer: a layer that has taken in the keys of the forward in question.
        attention_mask: the caller's, (B, logical length), which marks padding among all columns ever seen.

    What the prefill stored has a mask of its own; the caller's holds for the newer columns.
    """
    if layer.prefill_mask is None and attention_mask is None:
        return None
    newer = layer.logical_length - layer.prefill_logical_length
    slots = torch.ones(layer.keys.shape[0], layer.stored_length, dtype=torch.bool, device=layer.keys.device)
    if layer.prefill_mask is not None:
        slots[:, : layer.prefill_mask.shape[1]] = layer.prefill_mask.to(slots.device)
    if attention_mask is not None and newer:
        slots[:, layer.stored_length - newer :] = attention_mask[:, -newer:].to(slots.device)
    return slots
