"""The test clips that checkpoints are measured on: one number is one clip, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from examples.needle.bursts import sample_bursts
from examples.needle.clip import write_clip
from examples.needle.scene import Difficulty, Scene, sample_scene

__all__ = ["clip_file", "clip_scene"]


def clip_scene(frames: int, clip: int, *, spacing: float = 0.5, bursts: Sequence[int] = ()) -> Scene:
    """Test clip number `clip` of that length, its events in stretches of `bursts` frames if these are given.

    Every other one shows one symbol instead of two: the needle task, and the easier half of the shape task.
    """
    difficulty = Difficulty(frames=frames, spacing=spacing, lone=clip % 2 == 0)
    return sample_bursts("test", clip, difficulty, bursts) if bursts else sample_scene("test", clip, difficulty)


def clip_file(folder: Path, scene: Scene, clip: int, *, oversample: int = 2) -> Path:
    """Its video in `folder`, written if it is not there; it has `oversample` frames for each one that a model reads."""
    path = folder / f"{scene.difficulty.frames:05d}-{clip:04d}.mp4"
    return path if path.exists() else write_clip(scene, path, oversample=oversample)
