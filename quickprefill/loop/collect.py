"""The final hidden states that somebody reads, picked out of the stretches that pass by."""

from __future__ import annotations

import torch

from quickprefill.prompt.spans import Group

__all__ = ["Collector", "wanted_columns"]


def wanted_columns(logits_to_keep: int | torch.Tensor, num_columns: int) -> torch.Tensor:
    """Columns of the batch whose hidden states the head will look at, on the CPU."""
    columns = torch.arange(num_columns)
    if isinstance(logits_to_keep, int):
        return columns[-logits_to_keep:]
    return columns[logits_to_keep.cpu()]


class Collector:
    """Collects hidden states of one prompt's wanted columns."""

    def __init__(self, columns: torch.Tensor, wanted: torch.Tensor) -> None:
        """
        Args:
            columns: (S,) the batch column of each token of the prompt, ascending.
            wanted: (W,) batch columns.
        """
        found = torch.searchsorted(columns, wanted)
        present = columns[found.clamp(max=max(len(columns) - 1, 0))] == wanted if len(columns) else wanted < 0
        self._wanted = torch.where(present, found, -1)
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._like = torch.empty(0)

    def wants(self, group: Group) -> bool:
        """Whether a column of the group is wanted: reading which of its tokens finished waits for the device."""
        return bool(((self._wanted >= group.start) & (self._wanted < group.stop)).any())

    def take(self, hidden: torch.Tensor, columns: torch.Tensor) -> None:
        """Hidden states (n, C) of the prompt's tokens at `columns`, (n,) ascending, on the CPU."""
        self._like = hidden.new_empty(0, hidden.shape[1])
        if not len(columns):
            return
        rows = torch.searchsorted(columns, self._wanted).clamp(max=len(columns) - 1)
        places = (columns[rows] == self._wanted).nonzero()[:, 0]
        if len(places):
            self._parts.append((places, hidden[rows[places].to(hidden.device)]))

    def hidden(self) -> torch.Tensor:
        """(W, C): zero for columns that are padding, NaN for tokens that did not reach the last layer."""
        if len(self._parts) == 1 and len(self._parts[0][0]) == len(self._wanted):
            return self._parts[0][1]  # all of them, in order
        collected = self._like.new_full((len(self._wanted), self._like.shape[1]), float("nan"))
        collected[(self._wanted < 0).to(collected.device)] = 0
        for places, part in self._parts:
            collected[places.to(part.device)] = part.to(collected.dtype)
        return collected
