"""Hosts to whom a video arrives as pictures among pictures: the prompt's text says which of them are its frames.

The processor writes every frame between markers, behind a text that is the same but for a number or a time. A host
knows token ids, not words; so it looks for pictures with such texts before them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from quickprefill import versions
from quickprefill.errors import InputError
from quickprefill.hosts.base import Row
from quickprefill.hosts.frames import FramesHost
from quickprefill.hosts.rows import split_rows
from quickprefill.prompt.pending import PendingVideo, PendingVideos
from quickprefill.prompt.spans import Grid

__all__ = ["PicturesHost"]

_FRAME = -1
"""Stands for the placeholders of frames: an id that no token has."""


class _Series(NamedTuple):
    """Pictures that follow each other: the frames of a video, or tiles of images."""

    is_video: bool
    start: int
    """The column of its first placeholder."""
    stop: int
    """The column behind its last one."""
    pictures: int


class PicturesHost(FramesHost):
    """A host with one placeholder token for everything that its tower sees."""

    video_inputs = ("pixel_values",)
    modality = "image"
    encoders = ("get_image_features",)

    @abstractmethod
    def num_frames(self, leads: Sequence[list[int]]) -> int:
        """How many of the first pictures are the frames of one video, 0 if none is one.

        Args:
            leads: the ids before each of several pictures of one tile, from the picture before it on.
        """

    @abstractmethod
    def features_of(self, core: Any, call: Mapping[str, Any], pixels: torch.Tensor) -> Any:
        """What get_image_features() returns for pictures (n, channels, height, width)."""

    def states(self, core: Any) -> int:
        return 0  # the last layer's states are the tower's output: nobody asks for others

    def sources(self, call: Mapping[str, Any]) -> list[torch.Tensor]:
        """The pictures of a call in order, (n, channels, height, width) each."""
        return [self.pixels(call)]

    def video_token_id(self, core: Any) -> int:
        return _FRAME

    def closing_token_ids(self, core: Any) -> frozenset[int]:
        return frozenset()

    def has_video(self, core: Any, call: Mapping[str, Any]) -> bool:
        if call.get("input_ids") is None or not super().has_video(core, call):
            return False
        return any(series.is_video for ids in call["input_ids"].cpu() for series in self._series(core, ids))

    def named(self, core: Any, ids: torch.Tensor) -> torch.Tensor:
        ids, token = ids.clone(), self.image_token_id(core)
        for series in self._series(core, ids):
            if series.is_video:
                own = ids[series.start : series.stop]
                own[own == token] = _FRAME
        return ids

    def grids(self, core: Any, inputs: Mapping[str, Any]) -> list[Grid]:
        if inputs.get("pixel_values") is None:
            return []
        side = self.side(core)
        every = (series for ids in inputs["input_ids"].cpu() for series in self._series(core, ids))
        return [Grid(series.pictures, side, side) for series in every if series.is_video]

    def videos(self, core: Any, call: Mapping[str, Any]) -> list[PendingVideo]:
        """All pictures, images too: before the first forward nobody knows which are which."""
        grid = Grid(1, self.side(core), self.side(core))

        def encode(pixels: torch.Tensor, pictures: int) -> torch.Tensor:
            made = versions.stacked_features(self.features_of(core, call, pixels.to(self.tower_device(core))))
            return made.reshape(-1, made.shape[-1])

        return [self.pending(core, pixels, grid, encode) for pixels in self.sources(call) if len(pixels)]

    def image_features(self, core: Any, call: Mapping[str, Any]) -> Any:
        return self.features_of(core, call, torch.cat(self.sources(call)))

    def deferred(self, core: Any, videos: list[PendingVideo]) -> Any:
        pictures = [picture for whole in videos for picture in whole.slices()]
        return BaseModelOutputWithPooling(pooler_output=PendingVideos(pictures))

    def rows(self, core: Any, call: Mapping[str, Any]) -> list[Row]:
        encoded = versions.encoded(call, self.modality)
        wholes = self.videos(core, call) if encoded is None else versions.pooled(encoded)
        left = [picture for whole in wholes for picture in whole.slices()]
        videos: list[PendingVideo] = []
        images: list[PendingVideo] = []
        for ids in call["input_ids"].cpu():
            for series in self._series(core, ids):
                own, left = left[: series.pictures], left[series.pictures :]
                if len(own) < series.pictures:
                    raise InputError(
                        f"input_ids hold placeholders for {series.pictures - len(own)} picture(s) more than "
                        "pixel_values has; pass both from one processor call"
                    )
                (videos if series.is_video else images).append(PendingVideo.joined(own))
        if left:
            raise InputError(f"the last {len(left)} picture(s) of pixel_values have no placeholder tokens in input_ids")
        features = torch.cat([image.encode(0, image.grid.slices) for image in images]) if images else None
        return split_rows(self, core, call, self.position_ids(core, call), videos, features)

    def _series(self, core: Any, ids: torch.Tensor) -> list[_Series]:
        """The pictures of one prompt, in order."""
        size, tokens = self.side(core) ** 2, ids.tolist()
        runs = _runs(ids == self.image_token_id(core))
        leads = [tokens[before:start] for (_, before), (start, _) in pairwise([(0, 0), *runs])]
        found: list[_Series] = []
        at = 0
        while at < len(runs):
            single = at
            while single < len(runs) and runs[single][1] - runs[single][0] == size:
                single += 1
            frames = self.num_frames(leads[at:single])
            stop = runs[at + max(frames, 1) - 1][1]
            pictures = frames or (stop - runs[at][0]) // size
            found.append(_Series(frames > 0, runs[at][0], stop, pictures))
            at += max(frames, 1)
        return found


def _runs(chosen: torch.Tensor) -> list[tuple[int, int]]:
    """Where runs of True begin and end, of (S,) booleans."""
    edges = torch.nn.functional.pad(chosen.int(), (1, 1)).diff().nonzero()[:, 0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
