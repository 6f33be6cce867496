"""Resizing inside the decoder agrees with the resize that it saves."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

import quickdecode
from tests.clips import ClipMaker, Painter, draw_number, draw_scene, read_number


@pytest.mark.parametrize("size", [(56, 84), (84, 140), (28, 308), (96, 160)])
def test_size(clip: Path, size: tuple[int, int]) -> None:
    video = quickdecode.read_video(clip, indices=[3, 40, 59], size=size)
    assert video.frames.shape == (3, 3, *size)
    assert [read_number(frame) for frame in video.frames] == video.indices


def torchvision_resize(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The resize that qwen-vl-utils applies to what a reader returns."""
    return resize(frames, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.to(torch.float32) - b).abs().mean().item()


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
@pytest.mark.parametrize("size", [(112, 196), (140, 252), (252, 448), (336, 588)])
def test_close_to_torchvisions_antialiased_bicubic(make_clip: ClipMaker, codec: str, size: tuple[int, int]) -> None:
    path = make_clip(f"scene-{codec}.mp4", codec=codec, frames=3, size=(270, 480), draw=draw_scene)
    expected = torchvision_resize(quickdecode.read_video(path).frames, size)
    assert mean_difference(quickdecode.read_video(path, size=size).frames, expected) < 2.0


@pytest.mark.skipif(not hasattr(Interpolation, "ACCURATE_RND"), reason="this PyAV has no such flag")
@pytest.mark.parametrize("draw", [draw_number, draw_scene])
def test_closer_still_to_an_accurately_rounded_conversion(make_clip: ClipMaker, draw: Painter) -> None:
    path = make_clip(f"{draw.__name__}.mp4", frames=3, size=(270, 480), draw=draw)
    accurately = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    with av.open(str(path)) as container:
        accurate = [frame.to_ndarray(format="rgb24", interpolation=accurately) for frame in container.decode(video=0)]
    full = torch.from_numpy(np.stack(accurate)).permute(0, 3, 1, 2)
    for size in ((112, 196), (252, 448)):
        got = quickdecode.read_video(path, size=size).frames
        assert mean_difference(got, torchvision_resize(full, size)) < 0.5


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "lanczos"])
def test_other_interpolations(clip: Path, interpolation: str) -> None:
    video = quickdecode.read_video(clip, indices=[3, 40], size=(56, 84), interpolation=interpolation)
    assert [read_number(frame) for frame in video.frames] == video.indices
    assert not torch.equal(video.frames, quickdecode.read_video(clip, indices=[3, 40], size=(56, 84)).frames)


def test_same_pixels_from_any_number_of_workers(clip: Path) -> None:
    one, *others = (quickdecode.read_video(clip, size=(56, 84), workers=n).frames for n in (1, 2, 4))
    assert all(torch.equal(one, other) for other in others)


def test_frames_are_contiguous_uint8(clip: Path) -> None:
    frames = quickdecode.read_video(clip, num_frames=3).frames
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous()
