"""Frames are resized while they are decoded for transformers' video processors, which make the same of them as ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.overrides import TorchFunctionMode
from transformers import video_utils

import quickdecode
from tests.quickdecode.pictures import PICTURES, build_picture, stock_frames
from tests.quickdecode.web import Server, parts

SIZED = ["Qwen2VL", "Qwen3VL", "Glm4v", "LlavaOnevision", "InternVL", "VideoMAE"]
"""Families whose target is found; VideoMAE resizes bilinearly and then crops."""
AT_FULL_SIZE = ["SmolVLM", "Sam2Video", "Molmo2"]
"""Resizes twice, tells the size before, does not antialias."""
SAMPLING = {"do_sample_frames": True, "num_frames": 4}
BY_RATE = {"do_sample_frames": True, "fps": 15.0}


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    quickdecode.unregister()


def processor_of(family: str) -> Any:
    return getattr(transformers, f"{family}VideoProcessor")()


def expected(processor: Any, path: Path, **options: Any) -> Any:
    """What the processor makes of full-size frames."""
    quickdecode.unregister()
    frames = stock_frames(path)
    facts = {"total_num_frames": len(frames), "fps": 30.0, "duration": len(frames) / 30}
    facts |= {"height": frames.shape[2], "width": frames.shape[3]}
    return processor(frames, video_metadata=[video_utils.VideoMetadata(**facts)], return_tensors="pt", **options)


def assert_equal(given: Any, wanted: Any) -> None:
    assert given.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(torch.as_tensor(given[key]), torch.as_tensor(value)), key


class Seen(TorchFunctionMode):
    """Sizes from which this thread resizes pictures that have values."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.interpolate and args[0].device.type == "cpu":
            self.sizes.append(tuple(args[0].shape[-2:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen3VL", "VideoMAE"])
def test_bit_equal_to_resizing_full_size_frames(clip_folder: Path, family: str, name: str) -> None:
    path, processor = build_picture(clip_folder, name), processor_of(family)
    sampling = BY_RATE if family == "Qwen3VL" else SAMPLING
    wanted = expected(processor, path, **sampling)
    for resize in ("exact", "antialiased"):
        quickdecode.register("transformers", resize=resize)
        assert_equal(processor(str(path), return_tensors="pt", **sampling), wanted)


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("family", SIZED)
def test_nothing_is_left_to_resize(clip_folder: Path, family: str, sampled: bool) -> None:
    path, processor = build_picture(clip_folder, "scene.mp4"), processor_of(family)
    sampling = (BY_RATE if processor.fps else SAMPLING) if sampled else {"do_sample_frames": False}
    wanted = expected(processor, path, **sampling)
    quickdecode.register("transformers")
    with Seen() as seen:
        assert_equal(processor(str(path), return_tensors="pt", **sampling), wanted)
    assert not seen.sizes
    quickdecode.register("transformers", resize="fast")
    with Seen() as seen:
        fast = processor(str(path), return_tensors="pt", **sampling)
    assert not seen.sizes
    (pixels,) = (torch.as_tensor(value) for key, value in fast.items() if key.startswith("pixel_values"))
    (truth,) = (torch.as_tensor(value) for key, value in wanted.items() if key.startswith("pixel_values"))
    assert pixels.shape == truth.shape
    assert 0 < (pixels - truth).abs().mean() < 0.1


@pytest.mark.parametrize("family", AT_FULL_SIZE)
def test_other_processors_get_full_size_frames(clip_folder: Path, family: str) -> None:
    path, processor = build_picture(clip_folder, "scene.mp4"), processor_of(family)
    wanted = expected(processor, path, do_sample_frames=False)
    quickdecode.register("transformers")
    with Seen() as seen:
        assert_equal(processor(str(path), return_tensors="pt", do_sample_frames=False), wanted)
    assert (270, 480) in seen.sizes


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 28 * 28 * 16, "longest_edge": 28 * 28 * 32}},
        {"resample": 2},
        {"do_resize": False},
        {"patch_size": 16},
        {"cap_pixels_per_frame": True},
    ],
)
def test_options_of_the_call_count(clip_folder: Path, options: dict[str, Any]) -> None:
    path, processor = build_picture(clip_folder, "hd.mp4"), processor_of("Qwen2VL")
    if "do_resize" in options:
        path = build_picture(clip_folder, "tiny.mp4")
        processor = transformers.VideoMAEVideoProcessor(do_center_crop=False)
    wanted = expected(processor, path, **SAMPLING, **options)
    quickdecode.register("transformers")
    assert_equal(processor(str(path), return_tensors="pt", **SAMPLING, **options), wanted)


def test_frames_that_move_first_are_resized_where_they_go(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's resize rounds otherwise; "meta" stands for it here."""
    path, shapes = str(build_picture(clip_folder, "scene.mp4")), []
    for resize in ("antialiased", "fast"):
        quickdecode.register("transformers", resize=resize)
        read = video_utils.VIDEO_DECODERS["quickdecode"]
        monkeypatch.setitem(
            video_utils.VIDEO_DECODERS,
            "quickdecode",
            lambda *given, read=read: shapes.append((answer := read(*given))[0].shape[2:]) or answer,
        )
        processor_of("Qwen2VL")(path, device="meta", **SAMPLING)
        monkeypatch.undo()
    assert shapes == [(270, 480), (280, 476)]


def test_load_video_alone_gives_full_size_frames(clip_folder: Path) -> None:
    quickdecode.register("transformers")
    frames, _ = video_utils.load_video(str(build_picture(clip_folder, "scene.mp4")), backend="quickdecode")
    assert frames.shape == (8, 3, 270, 480)


def test_every_frame_of_a_url(clip_folder: Path, server: Server) -> None:
    path, processor = build_picture(clip_folder, "scene.mp4"), processor_of("Qwen2VL")
    server.answers["/scene.mp4"] = parts(path.read_bytes())
    wanted = expected(processor, path, do_sample_frames=False)
    quickdecode.register("transformers")
    assert_equal(processor(f"{server.address}/scene.mp4", return_tensors="pt", do_sample_frames=False), wanted)
