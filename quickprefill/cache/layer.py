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

from quickprefill import versions
from quickprefill.cache.storage import Storage, keeps_storage
from quickprefill.errors import CacheError

__all__ = ["PrunedLayer", "stored_tokens"]


class PrunedLayer(DynamicLayer):
    """One layer's keys and values, (B, K, stored, D), in storage that grows in place.

    `logical_length` counts every token seen; positions, input slicing and masks in generate() depend on it.
    """

    def __init__(self, capacity: int = 0) -> None:
        """capacity: tokens to reserve at the first update."""
        self.capacity = capacity
        self.most = capacity
        """Tokens to which storage grows at most, as long as they suffice."""
        self.logical_length = 0
        self.croppable_from = 0
        """Stored length up to which tokens were pruned: crop() cannot go below it."""
        self.prefill_mask: torch.Tensor | None = None
        """(B, n) bool, False where a row's first n stored slots are padding. None when no slot is."""
        self.prefill_logical_length = 0
        """Logical length that `prefill_mask` stands for."""
        self._storage: Storage | None = None
        super().__init__()

    @classmethod
    def adopt(cls, layer: DynamicLayer, capacity: int = 0, *, grows: bool = False) -> PrunedLayer:
        """A PrunedLayer with the content of `layer`, which stays as it is should the prefill to come fail.

        Args:
            capacity: tokens for which to make room behind what is stored.
            grows: make it as they come, since they may be fewer.
        """
        if isinstance(layer, cls):
            continued = copy.copy(layer)
            continued._storage = None if layer._storage is None else layer._storage.share()
        else:
            continued = cls()
            if layer.get_seq_length() > 0:
                continued.lazy_initialization(layer.keys, layer.values)
                continued._storage = Storage.of(layer.keys, layer.values)
                continued.logical_length = layer.get_seq_length()
        continued.most = continued.stored_length + capacity
        continued.capacity = continued.stored_length if grows else continued.most
        return continued

    def __repr__(self) -> str:
        return f"PrunedLayer(logical_length={self.logical_length}, stored_length={self.stored_length})"

    # The host's own methods (reorder_cache, batch_select_indices, offload ...) read and assign `keys` and `values`; as
    # properties over the storage they keep working unchanged.

    @property
    def keys(self) -> torch.Tensor:
        """Stored keys, (B, K, stored, D); None before the first update, as in every host layer."""
        return None if self._storage is None else self._storage.keys  # type: ignore[return-value]

    @keys.setter
    def keys(self, value: torch.Tensor | None) -> None:
        self._assign(value, None if self._storage is None else self._storage.values)

    @property
    def values(self) -> torch.Tensor:
        """Stored values, (B, K, stored, D)."""
        return None if self._storage is None else self._storage.values  # type: ignore[return-value]

    @values.setter
    def values(self, value: torch.Tensor | None) -> None:
        self._assign(None if self._storage is None else self._storage.keys, value)

    def _assign(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        # Assigned one after the other: until the second comes, the first stands for both.
        given = keys if keys is not None else values
        if given is None or (self._storage is not None and (keys is None or values is None)):
            self._storage = None
            return
        keys = given if keys is None else keys
        values = given if values is None else values
        self._storage = Storage.of(keys, values)

    @property
    def stored_length(self) -> int:
        """Tokens whose keys and values are stored."""
        return 0 if self._storage is None else self._storage.length

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored keys and values, without spare capacity."""
        return 0 if self._storage is None else self.keys.nbytes + self.values.nbytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all slots, spare capacity included."""
        return 0 if self._storage is None else self._storage.reserved_bytes

    def get_seq_length(self, *_: Any) -> int:
        """Tokens seen so far, stored or not."""
        return self.logical_length

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        """Key count and the index of the first key for a forward of `query_length` new tokens (see the module).

        Up to transformers 5.3 the new tokens' positions come instead, (q,).
        """
        return self.stored_length + versions.new_tokens(query_length), self.logical_length - self.stored_length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        """Note dtype and device; storage comes with the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, K, q, D) keys and values; returns all that are stored."""
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        self._append(key_states, value_states)
        self.logical_length += key_states.shape[-2]
        return self.keys, self.values

    def _append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        if self._storage is None:
            self._storage = Storage((keys, values), max(self.capacity, keys.shape[-2]))
        elif self._storage.length + keys.shape[-2] > self._storage.capacity < self.capacity:
            self._storage.resize(self.capacity)
        self._storage.append(keys, values, self.most)

    def fill(self, rows: list[PrunedLayer], row_of: list[int], capacity: int) -> None:
        """Lay layers of batch size 1 side by side, aligned on the right; the slots before a short row are zero."""
        stored = max(layer.stored_length for layer in rows)
        first = rows[0]
        like = (first.keys.expand(len(row_of), -1, -1, -1), first.values.expand(len(row_of), -1, -1, -1))
        self.lazy_initialization(first.keys)
        self._storage = Storage(like, max(capacity, stored))
        self._storage.length = stored
        for part, name in ((self.keys, "keys"), (self.values, "values")):
            for batch_row, row in enumerate(row_of):
                padding = stored - rows[row].stored_length
                part[batch_row, :, :padding] = 0
                part[batch_row, :, padding:] = getattr(rows[row], name)[0]

    def prune(self, num_last: int, kept: torch.Tensor) -> None:
        """Of the last `num_last` stored tokens keep those at `kept`, ascending: (k,), or (K, k) for each head its own.

        The logical length stays.
        """
        if self._storage is None or num_last > self.stored_length:
            raise CacheError(f"cannot prune the last {num_last} of {self.stored_length} stored tokens")
        self._storage.compact(num_last, kept.to(self._storage.keys.device))
        self.croppable_from = self._storage.length

    def drop_last(self, count: int) -> None:
        """Forget the last `count` tokens as if they had never been seen."""
        if self._storage is not None:
            self._storage.length -= count
        self.logical_length -= count

    def absorb(self, other: PrunedLayer) -> None:
        """Store all that `other` stored behind what is here."""
        if not self.is_initialized:
            self.lazy_initialization(other.keys)
        self._append(other.keys, other.values)
        self.croppable_from = self.stored_length

    def trim(self, room: int) -> None:
        """Give storage back that exceeds what is stored and `room` more tokens; grow to that where there is less."""
        self.most = 0  # what comes behind the room is anybody's guess
        storage = self._storage
        if storage is not None and not keeps_storage(storage.capacity, self.stored_length, room):
            storage.resize(self.stored_length + room)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last `-tokens_to_remove` tokens, as rejected candidates of assisted decoding are.

        Up to transformers 5.14 a number above 0 is the length to leave; later, or among pruned tokens, a CacheError.
        """
        if tokens_to_remove > 0 and versions.CROPS_TO_LENGTH:
            tokens_to_remove = min(tokens_to_remove - self.logical_length, 0)
        if (count := -tokens_to_remove) < 0:
            hint = "pass the number of tokens to remove as a negative integer"
            raise CacheError(f"crop({tokens_to_remove}) asks for a length that a pruned cache cannot give; {hint}")
        whole = self.stored_length - self.croppable_from
        if count > whole:
            raise CacheError(
                f"cannot crop {count} tokens: only the last {whole} were stored without pruning; start from the prompt"
            )
        self.drop_last(count)
        if self.logical_length < self.prefill_logical_length:
            self.prefill_logical_length = self.logical_length
            if self.prefill_mask is not None:
                self.prefill_mask = self.prefill_mask[:, : self.stored_length]

    def reset(self) -> None:
        """Forget everything."""
        self._storage, self.is_initialized = None, False
        self.logical_length = self.croppable_from = self.prefill_logical_length = 0
        self.prefill_mask = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows `indices` of the batch."""
        if self._storage is not None:
            self._storage.select_rows(indices)
        if self.prefill_mask is not None:
            self.prefill_mask = self.prefill_mask[indices.to(self.prefill_mask.device)]

    reorder_cache = batch_select_indices  # as beam search asks for it

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        if self._storage is not None:
            rows = torch.arange(self.keys.shape[0], device=self.keys.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))


def stored_tokens(layer: Any) -> int:
    """Tokens that a layer of any kind holds; 0 for one that holds a state."""
    if isinstance(layer, PrunedLayer):
        return layer.stored_length
    return 0 if versions.has_state(layer) else int(layer.get_seq_length())
