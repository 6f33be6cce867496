"""A cache layer that forgets: PrunedLayer knows how many tokens were seen and which of them are stored.

A group of 3 tokens attends to 4 stored ones, after 6 of the 10 tokens seen so far were dropped:

    logical length 10, stored length 4            stored         group
    get_mask_sizes(3) = (4 + 3, 10 - 4)         6  7  8  9 | 10 11 12     key index, counted from the offset
                                     query 10   x  x  x  x |  x  .  .
                                     query 11   x  x  x  x |  x  x  .
                                     query 12   x  x  x  x |  x  x  x

The host numbers keys from the offset (logical - stored), so its causal rule "key <= query" leaves the stored prefix
open and cuts the triangle inside the group. With offset 0 a token would see the future of its own group.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from quickprefill.errors import CacheError

__all__ = ["ROOM_TOKENS", "PrunedLayer"]

ROOM_TOKENS = 256
"""Spare capacity when storage grows, so that decoding appends without copying the prefix."""


class PrunedLayer(DynamicLayer):
    """One layer's keys and values, (B, K, stored, D), in storage that grows in place.

    `logical_length` counts every token seen; positions, input slicing and masks in generate() depend on it.
    """

    def __init__(self, capacity: int = 0) -> None:
        """capacity: tokens to reserve at the first update."""
        self.capacity = capacity
        self.logical_length = 0
        self.croppable_from = 0
        """Stored length up to which tokens were pruned: crop() cannot go below it."""
        self.prefill_mask: torch.Tensor | None = None
        """(B, n) bool, False where a row's first n stored slots are padding. None when no slot is."""
        self.prefill_logical_length = 0
        """Logical length that `prefill_mask` stands for."""
        self._storage: tuple[torch.Tensor, torch.Tensor] | None = None
        self._stored_length = 0
        super().__init__()

    @classmethod
    def adopt(cls, layer: DynamicLayer, capacity: int = 0) -> PrunedLayer:
        """A PrunedLayer with the content of `layer`, which stays as it is should the prefill to come fail."""
        if isinstance(layer, cls):
            continued = copy.copy(layer)  # shares the storage, but writes only behind what `layer` has stored
            continued.capacity = capacity
            return continued
        pruned = cls(capacity)
        if layer.get_seq_length() > 0:
            pruned.lazy_initialization(layer.keys, layer.values)
            pruned._store(layer.keys, layer.values)
            pruned.logical_length = layer.get_seq_length()
        return pruned

    def __repr__(self) -> str:
        return f"PrunedLayer(logical_length={self.logical_length}, stored_length={self.stored_length})"

    # The host's own methods (reorder_cache, batch_select_indices, offload ...) read and assign `keys` and `values`; as
    # properties over the storage they keep working unchanged.

    @property
    def keys(self) -> torch.Tensor:
        """Stored keys, (B, K, stored, D)."""
        return self._stored(0)

    @keys.setter
    def keys(self, value: torch.Tensor | None) -> None:
        self._assign(0, value)

    @property
    def values(self) -> torch.Tensor:
        """Stored values, (B, K, stored, D)."""
        return self._stored(1)

    @values.setter
    def values(self, value: torch.Tensor | None) -> None:
        self._assign(1, value)

    def _stored(self, which: int) -> torch.Tensor:
        if self._storage is None:
            return None  # type: ignore[return-value]  # as in every host layer before its first update
        return self._storage[which][..., : self._stored_length, :]

    def _assign(self, which: int, value: torch.Tensor | None) -> None:
        if value is None:
            self._storage, self._stored_length = None, 0
            return
        other = value if self._storage is None else self._storage[1 - which]
        self._storage = (value, other) if which == 0 else (other, value)
        self._stored_length = value.shape[-2]

    @property
    def stored_length(self) -> int:
        """Tokens whose keys and values are stored."""
        return self._stored_length

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored keys and values, without spare capacity."""
        return 0 if self._storage is None else self.keys.nbytes + self.values.nbytes

    def get_seq_length(self) -> int:
        """Tokens seen so far, stored or not."""
        return self.logical_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Key count and the index of the first key for a forward of `query_length` new tokens (see the module)."""
        return self.stored_length + query_length, self.logical_length - self.stored_length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Note dtype and device; storage comes with the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, K, q, D) keys and values; returns all that are stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._store(key_states, value_states)
        self.logical_length += key_states.shape[-2]
        return self.keys, self.values

    def _store(self, *states: torch.Tensor) -> None:
        start, stop = self._stored_length, self._stored_length + states[0].shape[-2]
        self._reserve(stop, states)
        for part, new in zip(self._storage or (), states, strict=True):
            part[..., start:stop, :] = new
        self._stored_length = stop

    def _reserve(self, length: int, states: tuple[torch.Tensor, ...]) -> None:
        """Make room for `length` tokens; copies the stored ones only when the planned capacity was too small."""
        old = self._storage
        # A tensor made under inference_mode cannot be written outside of it: a later plain generate() copies it once.
        frozen = old is not None and old[0].is_inference() and not torch.is_inference_mode_enabled()
        if old is not None and old[0].shape[-2] >= length and not frozen:
            return
        capacity = max(self.capacity, length + max(length // 8, ROOM_TOKENS) if old is not None else length)
        stored = self._stored_length
        parts = []
        for which, new in enumerate(states):
            part = new.new_empty((*new.shape[:-2], capacity, new.shape[-1]))
            if old is not None:
                part[..., :stored, :] = old[which][..., :stored, :]
            parts.append(part)
        self._storage = (parts[0], parts[1])

    def stack(self, rows: list[PrunedLayer], row_of: list[int]) -> None:
        """Fill from layers of batch size 1, aligned on the right; the slots before a short row are zero."""
        stored = max(layer.stored_length for layer in rows)
        like = (rows[0].keys.expand(len(row_of), -1, -1, -1), rows[0].values.expand(len(row_of), -1, -1, -1))
        self.lazy_initialization(*like)
        self._reserve(stored, like)
        for part, name in zip(self._storage or (), ("keys", "values"), strict=True):
            for batch_row, row in enumerate(row_of):
                padding = stored - rows[row].stored_length
                part[batch_row, :, :padding] = 0
                part[batch_row, :, padding:stored] = getattr(rows[row], name)[0]
        self._stored_length = stored

    def prune(self, num_last: int, kept: torch.Tensor) -> None:
        """Of the last `num_last` stored tokens keep those at `kept`, ascending: (k,), or (K, k) for each head its own.

        The logical length stays.
        """
        if self._storage is None or num_last > self._stored_length:
            raise CacheError(f"cannot prune the last {num_last} of {self._stored_length} stored tokens")
        start, stop, count = self._stored_length - num_last, self._stored_length, kept.shape[-1]
        for part in self._storage:
            last = part[..., start:stop, :]
            if kept.ndim == 1:
                chosen = last.index_select(-2, kept)
            else:
                chosen = last.gather(-2, kept[None, ..., None].expand(last.shape[0], -1, -1, last.shape[-1]))
            part[..., start : start + count, :] = chosen
        self._stored_length = self.croppable_from = start + count

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens as if they had never been seen."""
        self._stored_length -= count
        self.logical_length -= count

    def absorb(self, other: PrunedLayer) -> None:
        """Store all that `other` stored behind what is here."""
        if not self.is_initialized:
            self.lazy_initialization(other.keys, other.values)
        self._store(other.keys, other.values)
        self.croppable_from = self._stored_length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens (a number <= 0), as rejected candidates of assisted decoding are.

        Raises:
            CacheError: the number is positive, or reaches back into tokens that were pruned.
        """
        count = -tokens_to_remove
        if count < 0:
            raise CacheError(
                f"crop({tokens_to_remove}) asks for a final length, which a pruned cache cannot give; pass the number "
                "of tokens to remove as a negative integer"
            )
        if count > self._stored_length - self.croppable_from:
            raise CacheError(
                f"cannot crop {count} tokens: only the last {self._stored_length - self.croppable_from} were stored "
                "without pruning; start again from the prompt"
            )
        self.drop_last(count)
        if self.logical_length < self.prefill_logical_length:
            self.prefill_logical_length = self.logical_length
            if self.prefill_mask is not None:
                self.prefill_mask = self.prefill_mask[:, : self._stored_length]

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized = False
        self.logical_length = self.croppable_from = self.prefill_logical_length = 0
        self.prefill_mask = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Take the rows `beam_idx` of the batch, as beam search does."""
        super().reorder_cache(beam_idx)
        self._select_mask(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` of the batch."""
        super().batch_select_indices(indices)
        self._select_mask(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        super().batch_repeat_interleave(repeats)
        if self.prefill_mask is not None:
            self.prefill_mask = self.prefill_mask.repeat_interleave(repeats, dim=0)

    def _select_mask(self, rows: torch.Tensor) -> None:
        if self.prefill_mask is not None:
            self.prefill_mask = self.prefill_mask[rows.to(self.prefill_mask.device)]
