"""layout= and out=: where the frames of read_video lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quickdecode
from tests.clips import sequential_rgb
from tests.quickdecode.corpus import build

OPTIONS: list[dict[str, Any]] = [
    {},
    {"size": (56, 84)},
    {"size": (56, 84), "resize": "exact"},
    {"size": (56, 84), "resize": "antialiased"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["plain.mp4", "turned.mp4", "divx.avi"])
def test_channels_last_holds_the_same_frames(clip_folder: Path, name: str, options: dict[str, Any]) -> None:
    path = build(clip_folder, name)
    options = {"indices": [40, 3, 3, 59], "workers": 2} | options
    if name == "turned.mp4" and "size" in options:
        options["size"] = options["size"][::-1]
    first, last = (quickdecode.read_video(path, layout=layout, **options) for layout in ("NCHW", "NHWC"))
    assert last.frames.shape == (4, *first.frames.shape[2:], 3)
    assert first.frames.is_contiguous() and last.frames.is_contiguous()
    assert torch.equal(first.frames, last.frames.permute(0, 3, 1, 2))
    assert (first.indices, first.timestamps) == (last.indices, last.timestamps)


def test_channels_last_is_what_pyav_gives(clip: Path) -> None:
    assert np.array_equal(quickdecode.read_video(clip, layout="NHWC").frames, np.stack(sequential_rgb(clip)))


def test_every_source_of_read_videos(clip: Path) -> None:
    for video in quickdecode.read_videos([clip, clip], num_frames=4, layout="NHWC"):
        assert video.frames.shape == (4, 96, 160, 3)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_out_is_filled_and_returned(clip: Path, layout: str, options: dict[str, Any]) -> None:
    expected = quickdecode.read_video(clip, num_frames=5, layout=layout, **options).frames
    batch = torch.zeros((3, *expected.shape), dtype=torch.uint8)
    wide = torch.zeros((*expected.shape[:-1], 2 * expected.shape[-1]), dtype=torch.uint8)
    for out in (torch.empty_like(expected), batch[1], wide[..., ::2]):
        video = quickdecode.read_video(clip, num_frames=5, layout=layout, out=out, **options)
        assert video.frames is out
        assert torch.equal(out, expected)
    assert not batch[0].any() and not batch[2].any() and not wide[..., 1::2].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "HWC"}, "layout='HWC'; it must be one of NCHW, NHWC"),
        ({"out": np.empty((4, 3, 96, 160), np.uint8)}, "out is ndarray; it must be a dense torch.uint8 tensor"),
        ({"out": torch.empty(4, 3, 96, 160)}, "out is torch.float32 on cpu"),
        ({"out": torch.empty(4, 3, 96, 160, dtype=torch.uint8, device="meta")}, "out is torch.uint8 on meta"),
        ({"out": torch.zeros(4, 3, 96, 160, dtype=torch.uint8).to_sparse()}, "torch.sparse_coo; it must be a dense"),
        ({"out": torch.empty(3, 96, 160, dtype=torch.uint8).expand(4, 3, 96, 160)}, "an expanded tensor"),
        (
            {"out": torch.empty(4, 96, 160, 3, dtype=torch.uint8)},
            r"out is of shape \(4, 96, 160, 3\); these frames need \(4, 3, 96, 160\)",
        ),
        (
            {"out": torch.empty(4, 3, 96, 160, dtype=torch.uint8), "layout": "NHWC"},
            r"out is of shape \(4, 3, 96, 160\); these frames need \(4, 96, 160, 3\)",
        ),
    ],
)
def test_what_is_refused(clip: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(quickdecode.RequestError, match=message):
        quickdecode.read_video(clip, num_frames=4, **options)


def test_one_out_for_several_videos_is_refused(clip: Path) -> None:
    out = torch.empty(4, 3, 96, 160, dtype=torch.uint8)
    with pytest.raises(quickdecode.RequestError, match="out= is for one video"):
        quickdecode.read_videos([clip, clip], num_frames=4, out=out)
