"""Pruned layers of a batch: prompts that were prefilled one by one, laid side by side, and the mask that this needs."""

from __future__ import annotations

import torch

from quickprefill.cache.layer import ROOM_TOKENS, PrunedLayer

__all__ = ["merge_rows", "stored_attention_mask"]


def merge_rows(rows: list[PrunedLayer], row_of: list[int], logical_length: int) -> PrunedLayer:
    """One layer of a batch from the same layer of prompts that were prefilled one by one.

    Args:
        rows: layers with batch size 1, of any stored length.
        row_of: which of them each row of the batch takes; beams of one prompt share an entry.
        logical_length: columns of the batch, padding included.

    Shorter rows are padded on the left; `prefill_mask` says where.
    """
    lengths = [layer.stored_length for layer in rows]
    stored = max(lengths)
    merged = rows[0]
    if len(row_of) > 1:
        merged = PrunedLayer(stored + ROOM_TOKENS)
        merged.stack(rows, row_of)
        merged.croppable_from = max(layer.croppable_from + stored - layer.stored_length for layer in rows)
        if min(lengths) < stored:
            column = torch.arange(stored, device=merged.device)
            padding = torch.tensor([stored - lengths[row] for row in row_of], device=merged.device)
            merged.prefill_mask = column >= padding[:, None]
    merged.logical_length = merged.prefill_logical_length = logical_length
    return merged


def stored_attention_mask(
    layer: PrunedLayer, attention_mask: torch.Tensor | None, query_length: int
) -> torch.Tensor | None:
    """The 2-D mask that a forward after a pruned prefill needs, (B, logical + q), from the caller's of the same shape.

    The caller's mask marks padding among all columns ever seen; the stored tokens are others. The host reads only the
    last stored + q columns, so the tokens stored by the prefill get `prefill_mask` right before the newer columns.
    """
    if layer.prefill_logical_length == 0:
        return attention_mask
    if attention_mask is None and layer.prefill_mask is None:
        return None
    newer = layer.logical_length - layer.prefill_logical_length + query_length
    if attention_mask is not None:
        batch_size = attention_mask.shape[0]
        tail = attention_mask[:, attention_mask.shape[1] - newer :]
    else:
        batch_size = layer.prefill_mask.shape[0]  # type: ignore[union-attr]
        tail = layer.prefill_mask.new_ones(batch_size, newer)  # type: ignore[union-attr]
    mask = tail.new_ones(batch_size, layer.prefill_logical_length + newer)
    mask[:, layer.prefill_logical_length :] = tail
    if layer.prefill_mask is not None:
        prefilled = layer.prefill_mask.to(device=mask.device, dtype=mask.dtype)
        mask[:, layer.prefill_logical_length - prefilled.shape[1] : layer.prefill_logical_length] = prefilled
    return mask
