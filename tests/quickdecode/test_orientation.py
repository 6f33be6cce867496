"""Pictures are turned and mirrored as the file's display matrix says, and never otherwise."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.bitstream import BitStreamFilterContext

import quickdecode
from tests.clips import ClipMaker, sequential_rgb
from tests.quickdecode.pictures import HALF, MATRICES, ONE, displayed, with_matrix


@pytest.mark.parametrize("name", MATRICES)
def test_every_matrix_of_right_angles(clip: Path, tmp_path: Path, name: str) -> None:
    matrix = MATRICES[name]
    path = with_matrix(clip, tmp_path / "turned.mp4", *(part * ONE for part in matrix))
    truth = [displayed(picture, *matrix) for picture in sequential_rgb(path)]
    video = quickdecode.read_video(path, indices=[0, 17, 59])
    assert np.array_equal(video.frames.permute(0, 2, 3, 1), np.stack([truth[i] for i in video.indices]))
    assert video.frames.shape[2:] == (video.info.height, video.info.width)
    small = quickdecode.read_video(path, indices=[17], size=(56, 84)).frames[0]
    stored = quickdecode.read_video(clip, indices=[17], size=(84, 56) if matrix[0] == 0 else (56, 84)).frames[0]
    assert np.array_equal(small.permute(1, 2, 0), displayed(stored.permute(1, 2, 0).numpy(), *matrix))


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (ONE, 0, ONE, 0), (0, ONE, 0, ONE), (ONE, ONE, ONE, ONE)])
def test_a_matrix_that_cannot_be_inverted_says_nothing(clip: Path, tmp_path: Path, matrix: tuple[int, ...]) -> None:
    info = quickdecode.probe(with_matrix(clip, tmp_path / "flat.mp4", *matrix))
    assert (info.rotation, info.mirrored, info.height, info.width) == (0, False, 96, 160)


@pytest.mark.parametrize(
    ("matrix", "rotation"),
    [
        ((HALF, HALF, -HALF, HALF), 0),  # an eighth
        ((3 * HALF, -HALF, HALF, 3 * HALF), 0),
        ((HALF, -3 * HALF, 3 * HALF, HALF), 90),
        ((-3 * HALF, HALF, -HALF, -3 * HALF), 180),
        ((2 * ONE, 0, 0, ONE), 0),  # stretched
    ],
)
def test_any_other_angle_is_the_nearest_quarter(
    clip: Path, tmp_path: Path, matrix: tuple[int, ...], rotation: int
) -> None:
    info = quickdecode.probe(with_matrix(clip, tmp_path / "askew.mp4", *matrix))
    assert (info.rotation, info.mirrored) == (rotation, False)


def test_mirrored_by_the_h264_stream_itself(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "flipped.mp4"
    with av.open(str(clip)) as given, av.open(str(path), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        flip = BitStreamFilterContext("h264_metadata=display_orientation=insert:flip=horizontal", stream, copy)
        for packet in given.demux(stream):
            for filtered in flip.filter(packet) if packet.dts is not None else ():
                filtered.stream = copy
                output.mux(filtered)
    info = quickdecode.probe(path)
    assert (info.rotation, info.mirrored) == (0, True)
    assert torch.equal(quickdecode.read_video(path).frames, quickdecode.read_video(clip).frames.flip(3))


def test_pixel_aspect_is_stated_as_delivered(make_clip: ClipMaker, tmp_path: Path) -> None:
    wide = make_clip("wide-pixels.mp4", frames=2, pixel_aspect=(12, 5))
    assert quickdecode.probe(wide).pixel_aspect == 12 / 5
    assert quickdecode.read_video(wide).frames.shape[2:] == (96, 160)
    turned = with_matrix(wide, tmp_path / "turned.mp4", 0, -ONE, ONE, 0)
    assert quickdecode.probe(turned).pixel_aspect == 5 / 12
    assert quickdecode.probe(make_clip("square-pixels.mkv", frames=2)).pixel_aspect == 1
