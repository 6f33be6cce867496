"""Storage: one layer's keys and values in place, so that appending copies nothing and pruning frees its slots.

capacity   |....................|
stored     |kkkkkkkkkkkk........|     append() writes behind it, compact() closes the gaps of what is dropped
"""

from __future__ import annotations

import torch

__all__ = ["Storage", "keeps_storage"]

_GROWTH = 4
"""Storage grows by a quarter of what it must hold: appending n tokens one by one copies O(n) of them in all."""
_MOST_SPARE = 1.25
"""Storage larger than this times what it must hold is given back after a prefill."""
_LEAST_GROWTH_TOKENS = 64


class Storage:
    """Keys and values, (B, K, capacity, D) each, of which the first `length` slots are stored."""

    def __init__(self, states: tuple[torch.Tensor, torch.Tensor], capacity: int = 0) -> None:
        """Empty storage for states (B, K, n, D) like these, with room for `capacity` tokens."""
        self.length = 0
        self._parts = _room(states, capacity)

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor) -> Storage:
        """Storage that holds these tensors themselves."""
        storage = cls.__new__(cls)
        storage._parts, storage.length = (keys, values), keys.shape[-2]
        return storage

    def share(self) -> Storage:
        """Another view of the same memory; what it appends lies behind what is stored here, which stays as it is."""
        other = Storage.of(*self._parts)
        other.length = self.length
        return other

    @property
    def keys(self) -> torch.Tensor:
        """(B, K, length, D)."""
        return self._parts[0][..., : self.length, :]

    @property
    def values(self) -> torch.Tensor:
        """(B, K, length, D)."""
        return self._parts[1][..., : self.length, :]

    @property
    def capacity(self) -> int:
        """Tokens that fit without growing."""
        return int(self._parts[0].shape[-2])

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(part.nbytes for part in self._parts)

    def append(self, keys: torch.Tensor, values: torch.Tensor, most: int = 0) -> None:
        """Store (B, K, n, D) keys and values behind the others.

        most: tokens up to which nobody expects more to come; storage grows no further while they suffice.
        """
        stop = self.length + keys.shape[-2]
        # A tensor made under inference_mode cannot be written outside of it: a later plain generate() copies it once.
        frozen = self._parts[0].is_inference() and not torch.is_inference_mode_enabled()
        if stop > self.capacity:
            grown = stop + max(stop // _GROWTH, _LEAST_GROWTH_TOKENS)
            self.resize(min(grown, most) if stop <= most else grown)
        elif frozen:
            self.resize(self.capacity)
        for part, new in zip(self._parts, (keys, values), strict=True):
            part[..., self.length : stop, :] = new
        self.length = stop

    def resize(self, capacity: int) -> None:
        """Move to memory of another size, at least what is stored; keys first, so that no more than half lies twice."""
        self._parts = (self._moved(self._parts[0], capacity), self._parts[1])
        self._parts = (self._parts[0], self._moved(self._parts[1], capacity))

    def _moved(self, part: torch.Tensor, capacity: int) -> torch.Tensor:
        (room,) = _room((part,), max(capacity, self.length))
        room[..., : self.length, :] = part[..., : self.length, :]
        return room

    def select_rows(self, rows: torch.Tensor) -> None:
        """Take rows of the batch, (b,), in this order, with the room behind them."""
        parts = []
        for part in self._parts:
            room = part.new_empty((len(rows), *part.shape[1:]))
            stored = part[..., : self.length, :]
            torch.index_select(stored, 0, rows.to(part.device), out=room[..., : self.length, :])
            parts.append(room)
        self._parts = (parts[0], parts[1])

    def compact(self, num_last: int, kept: torch.Tensor) -> None:
        """Of the last `num_last` tokens keep those at `kept`, ascending: (k,), or (K, k) for each head its own."""
        start, stop, count = self.length - num_last, self.length, kept.shape[-1]
        for part in self._parts:
            last = part[..., start:stop, :]
            if kept.ndim == 1:
                chosen = last.index_select(-2, kept)
            else:
                chosen = last.gather(-2, kept[None, ..., None].expand(last.shape[0], -1, -1, last.shape[-1]))
            part[..., start : start + count, :] = chosen
        self.length = start + count


def _room(states: tuple[torch.Tensor, ...], capacity: int) -> tuple[torch.Tensor, ...]:
    return tuple(state.new_empty((*state.shape[:-2], capacity, state.shape[-1])) for state in states)


def keeps_storage(capacity: int, stored: int, room: int) -> bool:
    """Whether storage of `stored` tokens stays in `capacity` slots when trimmed for `room` more."""
    return stored + room <= capacity <= stored * _MOST_SPARE + room
