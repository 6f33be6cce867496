"""Through qwen-vl-utils: the same frames, sizes, rates and metadata as its own readers, and our errors."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from qwen_vl_utils import fetch_video as fetch_video_imported_early
from qwen_vl_utils import process_vision_info, vision_process
from transformers import Qwen3VLVideoProcessor

import quickdecode
from tests.clips import ClipMaker, read_number, sequential_rgb
from tests.quickdecode.pictures import PICTURES, build_picture, stock_frames

Element = dict[str, Any]


def channels_first(frames: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)


def plain_reader(element: Element) -> tuple[torch.Tensor, dict[str, Any], float]:
    """What the library's decord and torchcodec readers do, on top of a decode of every frame with PyAV."""
    path = Path(element["video"])
    frames = stock_frames(path) if path.name.startswith("picture-") else channels_first(sequential_rgb(path))
    with av.open(element["video"]) as container:
        video_fps = float(container.streams.video[0].average_rate)
    start, end, total = vision_process.calculate_video_frame_range(element, len(frames), video_fps)
    count = vision_process.smart_nframes(element, total_frames=total, video_fps=video_fps)
    indices = torch.linspace(start, end, count).round().long().tolist()
    metadata = {
        "fps": video_fps,
        "frames_indices": indices,
        "total_num_frames": total,
        "video_backend": "plain",
    }
    return frames[indices], metadata, count / max(total, 1e-6) * video_fps


@pytest.fixture(autouse=True)
def served() -> Iterator[None]:
    quickdecode.register("qwen_vl_utils")
    yield
    quickdecode.unregister()


@contextmanager
def plainly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The library with the plain reader."""
    quickdecode.unregister()
    with monkeypatch.context() as patch:
        patch.setitem(vision_process.VIDEO_READER_BACKENDS, "plain", plain_reader)
        patch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", "plain")
        vision_process.get_video_reader_backend.cache_clear()
        yield


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Any]]:
    """Fetch one element with the plain reader and with quickdecode."""

    def fetch(element: Element, resize: str = "antialiased", **options: Any) -> tuple[Any, Any]:
        flags = {"return_video_sample_fps": True, "return_video_metadata": True}
        with plainly(monkeypatch):
            expected = vision_process.fetch_video(element, **flags, **options)
        quickdecode.register("qwen_vl_utils", resize=resize)
        return expected, vision_process.fetch_video(element, **flags, **options)

    return fetch


ELEMENTS: dict[str, Element] = {
    "defaults": {},
    "fps": {"fps": 5.0},
    "nframes": {"nframes": 9},
    "min_frames": {"fps": 1.0, "min_frames": 16},
    "max_frames": {"fps": 30.0, "max_frames": 10},
    "video_start": {"fps": 8.0, "video_start": 0.52},
    "video_end": {"nframes": 6, "video_end": 1.2},
    "video_start and video_end": {"fps": 10.0, "video_start": 0.4, "video_end": 1.5},
    "video_end beyond the end": {"video_end": 100.0},
    "min_pixels": {"nframes": 4, "min_pixels": 300 * 28 * 28},
    "max_pixels": {"nframes": 4, "min_pixels": 4 * 28 * 28, "max_pixels": 12 * 28 * 28},
    "max_pixels below min_pixels' room": {"nframes": 4, "max_pixels": 170 * 28 * 28},
    "total_pixels": {"nframes": 8, "min_pixels": 4 * 28 * 28, "total_pixels": 60 * 28 * 28},
    "resized": {"nframes": 4, "resized_height": 100, "resized_width": 150},
}


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("name", ELEMENTS)
def test_same_answer_as_a_plain_reader(
    clip: Path, both: Callable[..., tuple[Any, Any]], name: str, patch_size: int
) -> None:
    element = {"type": "video", "video": str(clip), **ELEMENTS[name]}
    ((expected, facts), rate), ((video, metadata), sample_fps) = both(element, image_patch_size=patch_size)
    assert video.shape == expected.shape
    assert video.dtype == expected.dtype == torch.float32
    assert metadata == {**facts, "video_backend": "quickdecode"}
    assert sample_fps == rate
    assert [read_number(frame) for frame in video] == metadata["frames_indices"]
    assert (video - expected).abs().mean() < 0.3
    (_, _), ((exact, _), _) = both(element, image_patch_size=patch_size, resize="exact")
    assert torch.equal(exact, expected)
    (_, _), ((fast, _), _) = both(element, image_patch_size=patch_size, resize="fast")
    assert (fast - expected).abs().mean() < 2.5  # a saturated pattern


@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("name", PICTURES)
def test_exact_is_bit_equal_to_the_stock_resize(
    clip_folder: Path, both: Callable[..., tuple[Any, Any]], name: str, patch_size: int
) -> None:
    element = {"video": str(build_picture(clip_folder, name)), "nframes": 4}
    ((expected, _), _), ((video, _), _) = both(element, image_patch_size=patch_size, resize="exact")
    assert torch.equal(video, expected)


def test_qwen3_vl_as_its_card_says(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches of 16 pixels, metadata with the frames, and no second resize in the processor."""
    talk = conversation(str(build_picture(clip_folder, "scene.mp4")), nframes=6)
    flags = {"image_patch_size": 16, "return_video_kwargs": True, "return_video_metadata": True}

    def inputs() -> Any:
        images, videos, keys = process_vision_info(talk, **flags)
        frames, metadata = map(list, zip(*videos, strict=True))
        assert images is None
        processor = Qwen3VLVideoProcessor()
        return processor(frames, video_metadata=metadata, do_resize=False, return_tensors="pt", **keys), metadata

    with plainly(monkeypatch):
        expected, facts = inputs()
    quickdecode.register("qwen_vl_utils", resize="exact")
    given, metadata = inputs()
    assert metadata == [{**facts[0], "video_backend": "quickdecode"}]
    assert given["video_grid_thw"].tolist() == expected["video_grid_thw"].tolist() == [[3, 18, 32]]
    assert torch.equal(given["pixel_values_videos"], expected["pixel_values_videos"])


@pytest.mark.parametrize("size", [(96, 160), (40, 900), (33, 47), (300, 300), (14, 2600)])
@pytest.mark.parametrize("patch_size", [14, 16])
def test_same_size_whatever_the_shape(
    make_clip: ClipMaker, both: Callable[..., tuple[Any, Any]], size: tuple[int, int], patch_size: int
) -> None:
    height, width = (side // 2 * 2 for side in size)
    path = make_clip(f"shape-{height}x{width}.mp4", frames=4, size=(height, width))
    ((expected, _), _), ((video, _), _) = both({"video": str(path), "nframes": 4}, image_patch_size=patch_size)
    assert video.shape == expected.shape


def test_the_hosts_resize_has_nothing_left_to_do(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    resize = vision_process.transforms.functional.resize

    def spy(video: torch.Tensor, size: list[int], **options: Any) -> torch.Tensor:
        shapes.append((list(video.shape[-2:]), size))
        return resize(video, size, **options)

    monkeypatch.setattr(vision_process.transforms.functional, "resize", spy)
    for patch_size in (14, 16):
        vision_process.fetch_video({"video": str(clip), "nframes": 4}, image_patch_size=patch_size)
    assert [given == wanted for given, wanted in shapes] == [True, True]


def test_constants_are_read_at_each_call(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    element = {"video": str(clip), "fps": 15.0}
    before = vision_process.fetch_video(element)
    monkeypatch.setattr(vision_process, "FPS_MAX_FRAMES", 8)
    monkeypatch.setattr(vision_process, "VIDEO_MIN_TOKEN_NUM", 4)
    monkeypatch.setattr(vision_process, "VIDEO_MAX_TOKEN_NUM", 6)
    after = vision_process.fetch_video(element)
    assert (len(before), len(after)) == (30, 8)
    assert after.shape[-2] * after.shape[-1] <= 6 * 28 * 28 < before.shape[-2] * before.shape[-1]


def test_a_fetch_video_imported_before_register_gets_the_right_size(clip: Path) -> None:
    element = {"video": str(clip), "nframes": 4}
    for patch_size in (14, 16):
        early = fetch_video_imported_early(element, image_patch_size=patch_size)
        assert early.shape == vision_process.fetch_video(element, image_patch_size=patch_size).shape


def conversation(video: object, **keys: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video", "video": video, **keys}, {"type": "text", "text": "?"}]}]


SOURCES: dict[str, Callable[[Path], object]] = {
    "path": str,
    "Path": Path,
    "file url": lambda path: path.as_uri(),
    "bytes": lambda path: path.read_bytes(),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "data uri": lambda path: "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode(),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_process_vision_info(clip: Path, kind: str) -> None:
    images, videos, keys = process_vision_info(conversation(SOURCES[kind](clip), fps=4.0), return_video_kwargs=True)
    assert images is None
    assert [read_number(frame) for frame in videos[0]] == [0, 8, 17, 25, 34, 42, 51, 59]
    assert keys["fps"] == [4.0]


def test_a_list_of_pictures_still_works() -> None:
    from PIL import Image

    pictures = [Image.new("RGB", (56, 56), color) for color in ("red", "green", "blue")]
    _, videos = process_vision_info(conversation(pictures))
    assert videos[0].shape[:2] == (4, 3)


@pytest.mark.parametrize("fetch", [process_vision_info, lambda talk: fetch_video_imported_early(talk[0]["content"][0])])
@pytest.mark.parametrize(
    ("video", "keys", "error", "message"),
    [
        ("/nonexistent/talk.mp4", {}, quickdecode.SourceError, "talk.mp4: no such file"),
        (None, {"nframes": 100}, quickdecode.RequestError, r"nframes should in interval \[2, 60\]"),
        (None, {"video_start": 50.0}, quickdecode.RequestError, "Invalid time range"),
        (None, {"fps": 1.0, "nframes": 4}, quickdecode.RequestError, "Only accept either"),
    ],
)
def test_our_error_reaches_the_user(
    clip: Path, fetch: Callable[..., Any], video: str | None, keys: Element, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fetch(conversation(video or str(clip), **keys))


def test_damaged_and_one_frame_files(make_clip: ClipMaker, tmp_path: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    with pytest.raises(quickdecode.SourceError, match=r"noise\.mp4: FFmpeg failed"):
        process_vision_info(conversation(str(tmp_path / "noise.mp4")))
    with pytest.raises(quickdecode.RequestError, match=r"one\.mp4: .*nframes should in interval \[2, 1\]"):
        process_vision_info(conversation(str(make_clip("one.mp4", frames=1))))


def like_swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ms-swift's patch_qwen_vl_utils does to the table: the library's own readers, the source loaded first."""
    for name in ("torchvision", "decord", "torchcodec"):
        original = getattr(vision_process, f"_read_video_{name}")

        def read(element: Element, original: Callable[..., Any] = original) -> Any:
            element["video"] = str(element["video"])
            return original(element)

        monkeypatch.setattr(vision_process, f"_read_video_{name}", read)
        monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, name, read)


@pytest.mark.parametrize("first", [True, False])
def test_our_error_reaches_a_user_of_ms_swift(clip: Path, monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    quickdecode.unregister()
    before = {**vision_process.VIDEO_READER_BACKENDS}
    if first:
        like_swift(monkeypatch)
    quickdecode.register("qwen_vl_utils")
    if not first:
        like_swift(monkeypatch)
    for video, keys, message in [
        ("/nonexistent/talk.mp4", {}, "no such file"),
        (str(clip), {"nframes": 99}, "nframes"),
    ]:
        with pytest.raises(quickdecode.QuickDecodeError, match=message):
            process_vision_info(conversation(video, **keys))
    _, videos = process_vision_info(conversation(str(clip), nframes=4))
    assert [read_number(frame) for frame in videos[0]] == [0, 20, 39, 59]
    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "quickdecode", lambda element: 1 / 0)
    with pytest.raises(Exception, match="read_video|io") as caught:
        process_vision_info(conversation(str(clip)))
    assert not isinstance(caught.value, quickdecode.QuickDecodeError)
    monkeypatch.undo()
    quickdecode.unregister()
    assert before == vision_process.VIDEO_READER_BACKENDS


def test_other_readers_fail_as_they_always_did(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure of ours must not leak into the fallback of another reader."""
    with pytest.raises(quickdecode.SourceError):
        process_vision_info(conversation("/nonexistent/talk.mp4"))
    calls = []
    monkeypatch.setitem(vision_process.VIDEO_READER_BACKENDS, "broken", lambda element: calls.append(element) or 1 / 0)
    monkeypatch.setattr(vision_process, "FORCE_QWENVL_VIDEO_READER", "broken")
    vision_process.get_video_reader_backend.cache_clear()
    logging.getLogger("qwen_vl_utils").setLevel(logging.CRITICAL)
    with pytest.raises(Exception, match="read_video|io") as caught:
        vision_process.fetch_video({"video": str(clip)})
    assert calls
    assert not isinstance(caught.value, quickdecode.QuickDecodeError)
