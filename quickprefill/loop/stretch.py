"""A group between two decoder layers: its rows in prompt order, and which of them are video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quickprefill.hosts.base import Host
from quickprefill.loop.encode import Entering
from quickprefill.prompt.spans import Group

__all__ = ["Stretch", "Text", "begin"]


@dataclass(frozen=True)
class Text:
    """Embedded text and image tokens."""

    embeds: torch.Tensor
    """(n, C), or wider."""
    positions: torch.Tensor
    """(P, n)."""

    def __len__(self) -> int:
        return int(self.embeds.shape[0])


@dataclass
class Stretch:
    """Rows (1, n, C): the group's text and video in prompt order, then the question where it rides along."""

    group: Group
    hidden: torch.Tensor
    rotary: Any
    num_text: int
    num_question: int
    alive: torch.Tensor
    """(V,) which of the group's tokens are still here, ascending."""
    places: torch.Tensor
    """(V,) where each of them stands in the raster of the group's grid."""
    video: slice | torch.Tensor
    """Rows of the video tokens: a slice where no text stands between them, else (V,) ascending."""
    text: torch.Tensor | None
    """(num_text,) rows of the text, where it stands between video."""
    entered: int
    """Video tokens of the group that entered the first layer."""
    unit_tokens: int
    """As in Entering."""
    unit_entered: int
    pools: torch.Tensor | None
    """(entered,) as compress() gave them."""

    @property
    def num_video(self) -> int:
        """V."""
        return int(self.alive.shape[0])

    @property
    def num_rows(self) -> int:
        """Rows of the group itself, without the question's."""
        return self.num_text + self.num_video

    def of_video(self, rows: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """The video's part of something with `num_rows` entries in dimension `dim`."""
        if isinstance(self.video, slice):
            return rows.narrow(dim, self.num_text, self.num_video)
        return rows.index_select(dim, self.video.to(rows.device))

    def among_last(self, kept: torch.Tensor) -> tuple[int, torch.Tensor]:
        """For PrunedLayer.prune: how many last rows are looked at, and which of those stay if the video at `kept` does.

        `kept` is (k,), or (K, k) for each head its own; text always stays.
        """
        if isinstance(self.video, slice) or self.text is None:
            return self.num_video, kept
        rows = self.video.to(kept.device)[kept]
        text = self.text.to(kept.device).expand(*rows.shape[:-1], -1)
        return self.num_rows, torch.cat([text, rows], dim=-1).sort(dim=-1).values

    def keep(self, kept: torch.Tensor, host: Host) -> None:
        """Go on with the video tokens at `kept` only."""
        device, question = kept.device, torch.arange(self.num_question, device=kept.device) + self.num_rows
        num_last, rows = self.among_last(kept)
        first = self.num_rows - num_last
        rows = torch.cat([torch.arange(first, device=device), rows + first, question])
        if isinstance(self.video, slice):
            self.video = slice(self.video.start, self.video.start + len(kept))
        else:
            body = rows[: len(rows) - self.num_question]
            self.video = torch.searchsorted(body, self.video.to(device)[kept])
            self.text = None if self.text is None else torch.searchsorted(body, self.text.to(device))
        self.hidden = self.hidden.index_select(1, rows.to(self.hidden.device))
        self.rotary = host.take_rotary(self.rotary, rows)
        self.alive, self.places = self.alive.to(device)[kept], self.places.to(device)[kept]


def begin(host: Host, core: Any, entering: Entering, text: Text, question: Text | None) -> Stretch:
    """The rows of a group before the first layer: where it is video alone, the video's own.

    Args:
        text: the group's text, all of it, in prompt order.
    """
    group, tokens = entering.group, entering.tokens
    parts = [text, Text(tokens.embeds.to(text.embeds), tokens.positions), *([question] if question else [])]
    parts = [part for part in parts if len(part)] or parts[:1]
    num_text, num_video = len(text), tokens.num_tokens
    video: slice | torch.Tensor = slice(num_text, num_text + num_video)
    text_rows = rows = None
    if not group.consecutive:
        columns = torch.cat([group.text_columns().to(tokens.source.device), group.columns(tokens.source)])
        rows = columns.argsort().argsort()
        text_rows, video = rows[:num_text], rows[num_text:]
        riding = torch.arange(len(question) if question else 0, device=rows.device) + len(rows)
        rows = torch.cat([rows, riding]).to(text.embeds.device)
    hidden = _together([part.embeds for part in parts], rows, dim=0)
    positions = _together([part.positions.to(hidden.device) for part in parts], rows, dim=1)
    return Stretch(
        group=group,
        hidden=hidden[None],
        rotary=host.rotary(core, hidden[None], positions),
        num_text=num_text,
        num_question=len(question) if question else 0,
        alive=torch.arange(num_video, device=hidden.device),
        places=tokens.source,
        video=video,
        text=text_rows,
        entered=num_video,
        unit_tokens=entering.unit_tokens,
        unit_entered=entering.unit_entered,
        pools=tokens.pools,
    )


def _together(parts: list[torch.Tensor], rows: torch.Tensor | None, dim: int) -> torch.Tensor:
    """Parts behind each other, or each of their entries at its place in `rows`."""
    if rows is None:
        return torch.cat(parts, dim) if len(parts) > 1 else parts[0]
    shape = list(parts[0].shape)
    shape[dim] = len(rows)
    whole, start = parts[0].new_empty(shape), 0
    for part in parts:
        whole.index_copy_(dim, rows[start : start + part.shape[dim]], part)
        start += part.shape[dim]
    return whole
