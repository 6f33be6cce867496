"""Clips of different content, size and orientation, and their frames as an unhurried reader gives them."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.clips import draw_number, draw_scene, sequential_rgb, write_clip

ONE, HALF = 1 << 16, 46341  # 16.16 fixed point; sin 45 degrees
MATRICES = {
    "as stored": (1, 0, 0, 1),
    "a quarter": (0, -1, 1, 0),
    "a half": (-1, 0, 0, -1),
    "three quarters": (0, 1, -1, 0),
    "mirrored left to right": (-1, 0, 0, 1),
    "mirrored top to bottom": (1, 0, 0, -1),
    "mirrored along one diagonal": (0, 1, 1, 0),
    "mirrored along the other": (0, -1, -1, 0),
}


def draw_colours(number: int, height: int, width: int) -> np.ndarray:
    """Random colours in squares of 8 pixels, (H, W, 3) uint8: saturated, with edges everywhere."""
    squares = np.random.default_rng(number).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return squares.repeat(8, 0).repeat(8, 1)[:height, :width]


def draw_noise(number: int, height: int, width: int) -> np.ndarray:
    """Random pixels, (H, W, 3) uint8."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


FULL_RANGE = {"x264-params": "range=pc:colormatrix=bt709:colorprim=bt709:transfer=bt709"}
PICTURES: dict[str, dict[str, Any]] = {
    "pattern.mp4": {"draw": draw_number},
    "scene.mp4": {"draw": draw_scene, "size": (270, 480)},
    "colours.mp4": {"draw": draw_colours, "size": (180, 320)},
    "noise.mp4": {"draw": draw_noise, "size": (120, 160)},
    "hd.mp4": {"draw": draw_scene, "size": (720, 1280), "frames": 4},
    "tiny.mp4": {"draw": draw_scene, "size": (36, 60)},
    "odd.mp4": {"draw": draw_scene, "size": (90, 154)},
    "turned.mp4": {"draw": draw_scene, "size": (180, 320), "rotation": 90},
    "upside-down.mp4": {"draw": draw_colours, "size": (180, 320), "rotation": 180},
    "mirrored.mp4": {"draw": draw_scene, "size": (144, 256), "mirrored": True},
    "full-444.mp4": {"draw": draw_colours, "size": (96, 176), "pix_fmt": "yuv444p", "options": FULL_RANGE},
    "ten-bit.mkv": {"draw": draw_scene, "size": (180, 320), "codec": "libx265", "pix_fmt": "yuv420p10le"},
    "vp9.webm": {"draw": draw_scene, "size": (180, 320), "codec": "libvpx-vp9"},
}


def build_picture(folder: Path, name: str) -> Path:
    """The clip `name` of 8 frames in `folder`, made if it is not there yet."""
    path = folder / f"picture-{name}"
    if not path.exists():
        options = {"frames": 8, **PICTURES[name]}
        mirrored = options.pop("mirrored", False)
        partial = write_clip(path.with_name("partial-" + path.name), **options)
        if mirrored:
            with_matrix(partial, partial, -ONE, 0, 0, ONE)
        shutil.move(partial, path)
    return path


def stock_frames(path: Path) -> torch.Tensor:
    """(T, 3, H, W) uint8: every frame, full size, turned for display, as a reader gives them that decodes in order."""
    options = PICTURES[path.name.removeprefix("picture-")]
    frames = np.stack(sequential_rgb(path))
    if options.get("mirrored"):
        frames = frames[:, :, ::-1]
    frames = np.rot90(frames, options.get("rotation", 0) // 90, axes=(1, 2))
    return torch.from_numpy(frames.copy()).permute(0, 3, 1, 2)


def with_matrix(source: Path, target: Path, a: int, b: int, c: int, d: int) -> Path:
    """`source`, an MP4, with another matrix in its track header."""
    data = source.read_bytes()
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: flags, times and ids, reserved to volume
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data[:start] + matrix + data[start + len(matrix) :])
    return target


def displayed(picture: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """By the matrix's definition, pixel by pixel."""
    y, x = np.indices(picture.shape[:2])
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    shown = np.empty((row.max() + 1, column.max() + 1, 3), np.uint8)
    shown[row, column] = picture
    return shown
