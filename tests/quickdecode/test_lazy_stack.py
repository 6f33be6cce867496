"""Several videos in one tensor, as some hosts want them, that is still made frame by frame."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import quickdecode
from quickdecode.lazy.frames import lazy_frames
from quickdecode.lazy.tensor import LazyTensor

SIZE = (28, 42)
Make = Callable[[], torch.Tensor]


@pytest.fixture
def make(clip: Path) -> Make:
    """Two videos of 20 frames in one tensor."""

    def frames() -> LazyTensor:
        return lazy_frames(quickdecode.stream_video(clip, num_frames=20, size=SIZE, workers=1))

    return lambda: torch.stack([frames(), frames()])


@pytest.fixture(scope="module")
def whole(clip: Path) -> torch.Tensor:
    frames = quickdecode.read_video(clip, num_frames=20, size=SIZE).frames
    return torch.stack([frames, frames])


def is_lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, LazyTensor) and tensor.known() is None


KEPT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "itself": lambda t: t,
    "a video": lambda t: t[1],
    "the last": lambda t: t[-1],
    "by iterating": lambda t: list(t)[1],
    "frames of a video": lambda t: t[1][3:9],
    "videos": lambda t: t[1:],
    "split": lambda t: t.split(1)[1],
    "cast": lambda t: t.to(torch.bfloat16)[1],
    "copied": lambda t: copy.deepcopy(t).float(),
    "repeated": lambda t: t.repeat(3, 1, 1, 1, 1)[4],
    "each repeated": lambda t: t.repeat_interleave(3, dim=0)[2:4],
    "joined": lambda t: torch.cat([t, t[:1]])[2],
    "stacked again": lambda t: torch.stack([t[1], t[0]]),
    "flat": lambda t: t.flatten(0, 1)[15:25],
    "one more dimension": lambda t: t[1].unsqueeze(0),
    "a stack of one": lambda t: torch.stack([t[1]])[0],
    "with a tensor": lambda t: torch.cat([torch.ones(2, 3, *SIZE, dtype=torch.uint8), t[0], t[1]]),
    "with a stack that is there": lambda t: torch.cat([t, torch.ones(1, 20, 3, *SIZE, dtype=torch.uint8)]),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_it_lazy(make: Make, whole: torch.Tensor, name: str) -> None:
    given, expected = KEPT[name](make()), KEPT[name](whole)
    assert isinstance(given, LazyTensor) and is_lazy(given)
    assert (given.shape, given.dtype) == (expected.shape, expected.dtype)
    for start, stop in ((0, 1), (len(given) // 2, len(given)), (0, len(given))):
        assert torch.equal(given.rows(start, stop), expected[start:stop])
    assert is_lazy(given)
    assert torch.equal(given, expected)


MADE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "arithmetic": lambda t: t * 2 + 1,
    "a frame": lambda t: t[1, 3],
    "flattened whole": lambda t: t.flatten(),
    "flattened behind the first": lambda t: t.flatten(1, 2),
    "along another dimension": lambda t: torch.cat([t, t], dim=1),
    "joined with another dtype": lambda t: torch.cat([t, torch.ones(1, 20, 3, *SIZE)]),
    "a cast with a tensor": lambda t: torch.cat([t.half().float(), torch.full((1, 20, 3, *SIZE), 1 / 3)]),
    "each repeated as often as a tensor says": lambda t: t.repeat_interleave(torch.tensor([1, 2]), dim=0),
    "frames repeated": lambda t: t[0].repeat_interleave(2, dim=0),
    "repeated inside": lambda t: t.repeat(1, 2, 1, 1, 1),
    "mean of each": lambda t: torch.stack([video.float().mean() for video in t]),
}


@pytest.mark.parametrize("name", MADE)
def test_anything_else_makes_it(make: Make, whole: torch.Tensor, name: str) -> None:
    given, expected = MADE[name](make()), MADE[name](whole)
    assert given.dtype == expected.dtype
    assert torch.equal(given, expected)


SHARING: dict[str, Callable[[torch.Tensor], Any]] = {
    "a video": lambda t: t[1].zero_(),
    "a flat view": lambda t: t.flatten(0, 1)[30:].fill_(7),
    "a video with one more dimension": lambda t: t[0].unsqueeze(0).add_(1),
    "not a stack of it": lambda t: torch.stack([t[0], t[1]]).zero_(),
    "not what it was joined to": lambda t: torch.cat([t, t]).zero_(),
}


@pytest.mark.parametrize("name", SHARING)
def test_views_share_memory(make: Make, whole: torch.Tensor, name: str) -> None:
    given, expected = make(), whole.clone()
    for tensor in (given, expected):
        SHARING[name](tensor)
    assert torch.equal(given, expected)


def test_a_tensor_that_was_joined_may_change_afterwards(make: Make, whole: torch.Tensor) -> None:
    tile = torch.ones(1, 3, *SIZE, dtype=torch.uint8)
    joined = torch.cat([tile, make()[0]])
    tile.zero_()
    assert is_lazy(joined)
    assert joined[0].eq(1).all()


def test_same_rows_of_the_same_videos(make: Make) -> None:
    one, two = make(), make()
    assert isinstance(one, LazyTensor)
    assert one[0].same_rows(one[0]) and one.float()[1].same_rows(one.float()[1])  # type: ignore[attr-defined]
    assert not one[0].same_rows(one[1]) and not one[0].same_rows(two[0])  # type: ignore[attr-defined]
