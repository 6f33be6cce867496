"""resize="exact" and "antialiased" are torchvision's own resizes of full-size frames, bit for bit."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, functional
from torchvision.transforms.v2 import functional as functional_v2

import quickdecode
from tests.clips import draw_number, write_clip
from tests.quickdecode.pictures import PICTURES, build_picture, draw_colours, stock_frames

STOCK = {"exact": functional, "antialiased": functional_v2}


def resized(module: ModuleType, frames: torch.Tensor, size: tuple[int, int], how: str = "bicubic") -> torch.Tensor:
    whole: torch.Tensor = module.resize(frames, list(size), interpolation=InterpolationMode(how), antialias=True)
    return whole


@pytest.mark.parametrize("resize", STOCK)
@pytest.mark.parametrize("name", PICTURES)
def test_bit_equal_to_resizing_all_full_size_frames(clip_folder: Path, name: str, resize: str) -> None:
    path = build_picture(clip_folder, name)
    truth = stock_frames(path)
    for size in ((56, 84), (140, 252), tuple(truth.shape[2:])):
        got = quickdecode.read_video(path, size=size, resize=resize).frames
        assert torch.equal(got, resized(STOCK[resize], truth, size))


@pytest.mark.parametrize("resize", STOCK)
def test_bilinear_and_streamed_and_any_number_of_workers(clip_folder: Path, resize: str) -> None:
    path = build_picture(clip_folder, "scene.mp4")
    options = {"size": (112, 196), "resize": resize, "interpolation": "bilinear"}
    expected = resized(STOCK[resize], stock_frames(path), (112, 196), "bilinear")
    for workers in (1, 3):
        assert torch.equal(quickdecode.read_video(path, workers=workers, **options).frames, expected)
        blocks = [block.frames for block in quickdecode.stream_video(path, workers=workers, block_frames=3, **options)]
        assert torch.equal(torch.cat(blocks), expected)


def test_the_two_differ_little_and_fast_more(clip_folder: Path) -> None:
    """The figures in examples/guides/reading.md are of larger clips."""
    path = build_picture(clip_folder, "colours.mp4")
    fast, antialiased, exact = (
        quickdecode.read_video(path, size=(112, 196), resize=resize).frames.float()
        for resize in ("fast", "antialiased", "exact")
    )
    assert 0 < (antialiased - exact).abs().mean() < 0.3 < (fast - exact).abs().mean() < 8


def test_a_change_of_resolution(tmp_path: Path) -> None:
    """Frames are resized from what is stored, to the size asked for or else the first picture's."""
    path = tmp_path / "joined.h264"
    parts = [
        write_clip(tmp_path / f"{number}.h264", frames=6, size=size, draw=draw)
        for number, (size, draw) in enumerate([((96, 160), draw_number), ((120, 90), draw_colours)])
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with av.open(str(path)) as container:
        stored = [torch.from_numpy(f.to_ndarray(format="rgb24")).permute(2, 0, 1) for f in container.decode(video=0)]
    assert [tuple(picture.shape[1:]) for picture in stored] == [(96, 160)] * 6 + [(120, 90)] * 6
    for size in (None, (56, 84), (120, 90)):
        expected = torch.stack([resized(functional, picture, size or (96, 160)) for picture in stored])
        got = quickdecode.read_video(path, size=size, resize="exact")
        assert (got.info.height, got.info.width) == (96, 160)
        assert torch.equal(got.frames, expected)
        fast = quickdecode.read_video(path, size=size).frames.float()
        assert [(one - other).abs().mean() < 16 for one, other in zip(fast, expected, strict=True)] == [True] * 12


def test_torch_keeps_its_threads_and_gets_none_more(clip_folder: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        quickdecode.read_video(build_picture(clip_folder, "scene.mp4"), size=(112, 196), resize="exact", workers=2)
        seen = [torch.get_num_threads()]
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert seen == [2, 2]
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("quickdecode")]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "best"}, "resize='best'; it must be one of fast, antialiased, exact"),
        ({"resize": None}, "resize=None; it must be one of"),
        ({"resize": "exact", "interpolation": "lanczos"}, "'lanczos' with resize='exact'; .* bicubic, bilinear; ask"),
    ],
)
def test_what_is_refused(clip: Path, options: dict[str, str], message: str) -> None:
    for read in (quickdecode.read_video, quickdecode.stream_video):
        with pytest.raises(quickdecode.RequestError, match=message):
            read(clip, size=(56, 84), **options)


def test_without_torchvision(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.functional", None)
    with pytest.raises(quickdecode.RequestError, match='needs torchvision, which cannot be imported .* resize="fast"'):
        quickdecode.read_video(clip, size=(56, 84), resize="exact")
    assert np.array_equal(quickdecode.read_video(clip, size=(56, 84)).frames.shape, (60, 3, 56, 84))
