"""The prompt's text, images and audio, embedded when their turn comes."""

from __future__ import annotations

import functools
from typing import Any

import torch

from quickprefill.hosts.base import Host, Row
from quickprefill.loop.stretch import Text

__all__ = ["TextEmbedder"]


class TextEmbedder:
    """Embeds what is not video in one prompt."""

    def __init__(self, host: Host, core: Any, row: Row) -> None:
        self._host, self._core, self._row = host, core, row

    def __call__(self, columns: torch.Tensor) -> Text:
        """The tokens at `columns`, (n,) ascending, on the CPU."""
        return self._embedded(columns) if len(columns) else self._nothing

    @functools.cached_property
    def _nothing(self) -> Text:
        return self._embedded(torch.empty(0, dtype=torch.long))

    @functools.cached_property
    def _features_before(self) -> torch.Tensor:
        """(S + 1,) tokens with features before each column."""
        mask = self._host.feature_mask(self._core, self._row.ids)
        return torch.nn.functional.pad(mask.cumsum(0), (1, 0))

    def _embedded(self, columns: torch.Tensor) -> Text:
        row, features = self._row, self._row.features
        if features is not None:
            before = self._features_before
            features = features[before[columns][before[columns + 1] > before[columns]].to(features.device)]
        start = int(columns[0]) if len(columns) else 0
        if not len(columns) or int(columns[-1]) == start + len(columns) - 1:
            positions = row.positions[:, start : start + len(columns)]
        else:
            positions = row.positions[:, columns.to(row.positions.device)]
        return Text(self._host.embed(self._core, row.ids[columns], features), positions)
