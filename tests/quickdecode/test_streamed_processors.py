"""transformers' video processors give the same pixels of a video that is still being decoded, or wait for all of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import quickdecode
from quickdecode.hosts import video_processor
from quickdecode.lazy.tensor import LazyTensor
from tests.clips import ClipMaker

SAMPLED = {"do_sample_frames": True, "num_frames": 10}
BY_RATE = {"do_sample_frames": True, "fps": 10.0}
SQUARE = {"size": {"height": 48, "width": 48}}
AREA = {"size": {"shortest_edge": 32 * 32, "longest_edge": 64 * 64 * 10}}
ASKED: dict[str, dict[str, Any]] = {
    "Glm46V": BY_RATE | AREA,
    "Glm4v": BY_RATE | AREA,
    "InternVL": SAMPLED | SQUARE,
    "LlavaNextVideo": {**SAMPLED, "size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}},
    "LlavaOnevision": SAMPLED | SQUARE,
    "Qwen2VL": {**SAMPLED, "size": {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}},
    "Qwen3VL": BY_RATE | AREA,
    "SmolVLM": {**SAMPLED, **BY_RATE, "size": {"longest_edge": 96}},
    "VideoLlama3": {**SAMPLED, **AREA, "use_token_compression": False},
}
"""Every family whose videos are streamed, and how to ask it for small frames, some ten of a second."""
BUILT = {"SmolVLM": {"max_image_size": {"longest_edge": 48}}}
"""What is not asked of a call."""
PATCHES = ("Glm4v", "Glm46V", "Qwen2VL", "Qwen3VL", "VideoLlama3")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    video_processor.warn_once.cache_clear()
    yield
    quickdecode.unregister()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("quickdecode")]


@pytest.fixture(scope="module")
def video(make_clip: ClipMaker) -> Path:
    return make_clip("streamed-30.mp4", frames=30, size=(48, 80))


@pytest.fixture(scope="module")
def short(make_clip: ClipMaker) -> Path:
    return make_clip("streamed-9.mp4", frames=9, size=(48, 80))


def processor_of(family: str, **options: Any) -> Any:
    return getattr(transformers, f"{family}VideoProcessor")(**BUILT.get(family, {}), **options)


def both(processor: Any, *paths: Path, **options: Any) -> tuple[Any, Any]:
    """What it makes of videos that are read first, and of streamed ones."""
    given = []
    for stream in (False, True):
        quickdecode.register("transformers", stream=stream)
        given.append(processor([str(path) for path in paths], **{"return_tensors": "pt", **options}))
    return given[0], given[1]


def is_lazy(tensor: Any) -> bool:
    return isinstance(tensor, LazyTensor) and tensor.known() is None


def is_pixels(name: str) -> bool:
    return name.startswith("pixel_values")


def assert_equal(streamed: Any, plain: Any, *, lazy: bool = True) -> None:
    assert list(streamed) == list(plain)
    for name, value in plain.items():
        assert isinstance(streamed[name], type(value))
        one, other = (each if isinstance(each, list) else [each] for each in (streamed[name], value))
        for ours, theirs in zip(one, other, strict=True):
            if not isinstance(theirs, torch.Tensor):
                continue
            assert is_lazy(ours) is (lazy and is_pixels(name))
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
            if is_lazy(ours):
                assert_same_parts(ours, theirs)
            assert torch.equal(ours, theirs)


def assert_same_parts(ours: Any, theirs: torch.Tensor) -> None:
    """In order, and out of it."""
    if theirs.ndim == 5:
        for number, video in enumerate(theirs):
            assert_same_parts(ours[number], video)
        return
    rows, part = len(theirs), max(len(theirs) // 4, 1)
    for start in (*range(0, rows, part), rows - 1, 0):
        stop = min(start + part, rows)
        assert torch.equal(ours.rows(start, stop), theirs[start:stop])
    assert is_lazy(ours)


OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "every frame": {"do_sample_frames": False},
    "not resized": {"do_resize": False},
    "not normalized": {"do_normalize": False},
    "only resized": {"do_normalize": False, "do_rescale": False},
    "not rescaled": {"do_rescale": False},
    "bilinear": {"resample": 2},
    "cropped": {"do_center_crop": True, "crop_size": {"height": 50, "width": 34}},
    "a list": {"return_tensors": None},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("family", ASKED)
def test_bit_equal_in_parts(video: Path, family: str, name: str) -> None:
    options = {**ASKED[family], **OPTIONS[name]}
    if name == "not resized" and family in PATCHES:
        options["patch_size"] = 8  # of which the clip's sides are multiples
    plain, streamed = both(processor_of(family), video, **options)
    assert_equal(streamed, plain)


@pytest.mark.parametrize("family", ["LlavaOnevision", "VideoLlama3", "Glm4v"])
def test_one_frame(video: Path, family: str) -> None:
    one = {"fps": 1.0} if family == "Glm4v" else {"num_frames": 1}
    plain, streamed = both(processor_of(family), video, **{**ASKED[family], **one})
    assert is_lazy(streamed["pixel_values_videos"])
    assert torch.equal(streamed["pixel_values_videos"], plain["pixel_values_videos"])


@pytest.mark.parametrize("family", ASKED)
def test_several_videos(video: Path, make_clip: ClipMaker, family: str) -> None:
    other = make_clip("other.mkv", frames=30, size=(80, 48))
    plain, streamed = both(processor_of(family), video, other, video, **ASKED[family])
    assert_equal(streamed, plain)


@pytest.mark.parametrize("family", ["Glm4v", "VideoLlama3", "Qwen3VL"])
def test_a_size_that_depends_on_the_number_of_frames(video: Path, family: str) -> None:
    """The more frames, the smaller; known before the first one is decoded."""
    sizes = []
    for count in (4, 30):
        asked = {"num_frames": count} if family == "VideoLlama3" else {"fps": float(count)}
        plain, streamed = both(processor_of(family), video, **{**ASKED[family], **asked})
        assert_equal(streamed, plain)
        sizes.append(int(plain["video_grid_thw"][0, 1:].prod()))
    assert sizes[0] > 2 * sizes[1]


@pytest.mark.parametrize("family", ["VideoLlava", "VideoMAE", "Vivit", "VJEPA2", "Timesformer"])
def test_processors_that_have_the_usual_steps(video: Path, family: str) -> None:
    """Nothing is known of them but that they call the base's steps and no other."""
    size = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    try:
        processor = processor_of(family, **size)
    except AttributeError:
        pytest.skip("this transformers has no such processor")
    plain, streamed = both(processor, video, **SAMPLED)
    assert_equal(streamed, plain, lazy=video_processor.needs_whole(processor, {}) is None)


def whole(caplog: pytest.LogCaptureFixture, reason: str, processor: Any, *paths: Path, **options: Any) -> None:
    """It waits for the whole video, and says so once."""
    for _ in range(2):
        plain, streamed = both(processor, *paths, **options)
        assert list(streamed) == list(plain)
        for name, value in plain.items():
            if is_pixels(name):
                one, other = torch.as_tensor(streamed[name]), torch.as_tensor(value)
                assert not is_lazy(streamed[name])
                assert torch.equal(one, other)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("quickdecode")]
    assert message.startswith("quickdecode reads all frames before the model begins, instead of streaming them: ")
    assert reason in message


class Brightened(transformers.LlavaOnevisionVideoProcessor):  # type: ignore[misc]
    """Frames are made as bright as the whole video."""

    def rescale_and_normalize(self, images: torch.Tensor, *args: Any) -> Any:
        return super().rescale_and_normalize(images - images.float().mean().to(torch.uint8), *args)


class Reversed(transformers.LlavaOnevisionVideoProcessor):  # type: ignore[misc]
    """Looks at the whole video before and behind the usual steps."""

    def _preprocess(self, videos: list[torch.Tensor], **kwargs: Any) -> Any:
        answer = super()._preprocess([video.flip(0) for video in videos], **kwargs)
        answer["pixel_values_videos"] = answer["pixel_values_videos"] + 1
        return answer


def test_a_step_of_somebody_elses(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    reason = "Brightened has its own way to rescale_and_normalize, which may treat them together"
    whole(caplog, reason, Brightened(), video, **ASKED["LlavaOnevision"])


def test_a_preprocess_of_somebody_elses(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    reason = "Reversed may treat them together in a way of its own"
    whole(caplog, reason, Reversed(), video, **ASKED["LlavaOnevision"])


def test_a_processor_that_nothing_is_known_of(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole(
        caplog,
        "Sam2VideoVideoProcessor may treat them together",
        processor_of("Sam2Video"),
        video,
        **SQUARE,
        **{**SAMPLED, "num_frames": 2},
    )


def test_tokens_are_left_out_of_the_prompt(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {**ASKED["VideoLlama3"], "use_token_compression": True}
    whole(caplog, "pass use_token_compression=False", processor_of("VideoLlama3"), video, **options)
    caplog.clear()
    video_processor.warn_once.cache_clear()
    del options["use_token_compression"]
    whole(caplog, "pass use_token_compression=False", processor_of("VideoLlama3"), video, **options)


def test_arrays_of_numpy(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {**ASKED["LlavaOnevision"], "return_tensors": "np"}
    whole(caplog, "return_tensors='np' is no tensor", processor_of("LlavaOnevision"), video, **options)


def test_videos_that_are_filled_up(video: Path, short: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SmolVLM's processor fills the shorter one up with frames of zeros."""
    reason = "videos of unequal size in one call (("
    whole(caplog, reason, processor_of("SmolVLM"), video, short, **ASKED["SmolVLM"])


def test_videos_that_the_processor_refuses_together(video: Path, short: Path) -> None:
    quickdecode.register("transformers", stream=True)
    paths = [str(video), str(short)]
    every = {**SQUARE, "do_sample_frames": False}
    processor = processor_of("LlavaOnevision")
    with pytest.raises((ValueError, RuntimeError)):
        processor(paths, return_tensors="pt", **every)
    listed = processor(paths, **every)["pixel_values_videos"]
    assert [len(video) for video in listed] == [30, 9]
    assert all(map(is_lazy, listed))


def test_unregister_restores_the_processors() -> None:
    classes = [getattr(transformers, f"{family}VideoProcessor") for family in ASKED]
    before = [kind._preprocess for kind in classes]
    quickdecode.register("transformers", stream=True)
    assert not {id(kind._preprocess) for kind in classes} & set(map(id, before))
    quickdecode.unregister()
    assert [kind._preprocess for kind in classes] == before
