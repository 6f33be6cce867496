"""Through transformers' own loading, which knows torchcodec only."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, pipeline, video_utils
from transformers.video_processing_utils import BaseVideoProcessor

import quickdecode
from tests.clips import ClipMaker, read_number, sequential_rgb
from tests.processors import for_processor
from tests.quickdecode.web import Server, parts

CHECKPOINT = Path(__file__).parents[2] / "examples" / "tiny-qwen2.5-vl"


@pytest.fixture(autouse=True)
def served() -> Iterator[None]:
    quickdecode.register("transformers")
    yield
    quickdecode.unregister()


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(CHECKPOINT)


def conversation(path: Path) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "video", "path": str(path)}, {"type": "text", "text": "What?"}]}]


def test_torchcodec_is_not_needed() -> None:
    assert importlib.util.find_spec("torchcodec") is None, "the other tests here would prove less"


def test_load_video(clip: Path) -> None:
    frames, metadata = video_utils.load_video(str(clip), num_frames=6, backend="quickdecode")
    assert frames.shape == (6, 3, 96, 160)
    assert [read_number(frame) for frame in frames] == list(metadata.frames_indices) == [0, 10, 20, 30, 40, 50]
    assert (metadata.fps, metadata.total_num_frames, metadata.duration) == (30.0, 60, 2.0)
    assert (metadata.height, metadata.width, metadata.video_backend) == (96, 160, "quickdecode")


def test_same_as_transformers_own_pyav_decoder(clip: Path) -> None:
    ours, facts = video_utils.load_video(str(clip), fps=5, backend="quickdecode")
    theirs, metadata = video_utils.load_video(str(clip), fps=5, backend="pyav")
    assert np.array_equal(ours.permute(0, 2, 3, 1), theirs)
    assert list(facts.frames_indices) == list(metadata.frames_indices)
    assert (facts.fps, facts.total_num_frames) == (metadata.fps, metadata.total_num_frames)


def test_of_a_url_no_more_is_fetched_than_is_needed(server: Server, long_video: bytes, processor: Any) -> None:
    """Not the whole file into memory, whatever its size, as load_video() would."""
    server.answers["/long.mp4"] = parts(long_video)
    frames, metadata = processor.video_processor.fetch_videos(
        f"{server.address}/long.mp4", sample_indices_fn=lambda metadata, **_: [0, metadata.total_num_frames - 1]
    )
    assert torch.equal(frames, quickdecode.read_video(long_video, indices=[0, -1]).frames)
    assert metadata.frames_indices == [0, 159]
    assert server.sent < len(long_video) / 2


def test_apply_chat_template_with_a_path(clip: Path, processor: Any) -> None:
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(conversation(clip), **for_processor(fps=4.0), **options)
    truth = torch.from_numpy(np.stack(sequential_rgb(clip))).permute(0, 3, 1, 2)
    metadata = {"total_num_frames": 60, "fps": 30.0, "width": 160, "height": 96, "duration": 2.0}
    text = processor.apply_chat_template(conversation(clip), add_generation_prompt=True)
    expected = processor(
        text=text, videos=[truth], video_metadata=[metadata], do_sample_frames=True, fps=4.0, return_tensors="pt"
    )
    assert torch.equal(inputs["pixel_values_videos"], expected["pixel_values_videos"])
    assert torch.equal(inputs["video_grid_thw"], expected["video_grid_thw"])
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_pipelines_that_take_a_conversation(task: str, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[int], list[int]]] = []
    read = video_utils.VIDEO_DECODERS["quickdecode"]

    def noting(path: str, sample: Any, **options: Any) -> Any:
        frames, metadata = read(path, sample, **options)
        seen.append(([read_number(frame) for frame in frames], [int(i) for i in metadata.frames_indices]))
        return frames, metadata

    monkeypatch.setitem(video_utils.VIDEO_DECODERS, "quickdecode", noting)
    pipe = pipeline(task, model=str(CHECKPOINT), device="cpu")
    (answer,) = pipe(text=conversation(clip), max_new_tokens=2, return_full_text=False)
    assert isinstance(answer["generated_text"], str)
    [(shown, asked)] = seen
    assert shown == asked
    assert asked[0] == 0 and len(asked) >= 4


def test_several_videos_in_a_batch(clip: Path, make_clip: ClipMaker, processor: Any) -> None:
    talks = [conversation(clip), conversation(make_clip("h264.mkv"))]
    inputs = processor.apply_chat_template(
        talks, tokenize=True, return_dict=True, return_tensors="pt", **for_processor(padding=True)
    )
    assert len(inputs["video_grid_thw"]) == 2


def test_our_error_reaches_the_user(processor: Any, tmp_path: Path) -> None:
    path = tmp_path / "noise.mp4"
    path.write_bytes(b"noise" * 100)
    with pytest.raises(quickdecode.SourceError, match=r"noise\.mp4: FFmpeg failed"):
        processor.apply_chat_template(conversation(path), tokenize=True, return_dict=True)


def test_unregister_restores_everything() -> None:
    quickdecode.unregister()
    names = ("fetch_videos", "preprocess")
    seams = [(cls, name) for cls in BaseVideoProcessor.__mro__ for name in names if name in vars(cls)]
    before = {**video_utils.VIDEO_DECODERS}, [vars(cls)[name] for cls, name in seams]
    for _ in range(2):
        quickdecode.register("transformers")
    assert before[0] != video_utils.VIDEO_DECODERS
    for _ in range(2):
        quickdecode.unregister()
    assert ({**video_utils.VIDEO_DECODERS}, [vars(cls)[name] for cls, name in seams]) == before


def test_absent_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    quickdecode.unregister()
    monkeypatch.delattr(video_utils, "load_video")
    with pytest.raises(quickdecode.HostError, match=r"lacks transformers\.video_utils\.load_video; install"):
        quickdecode.register("transformers")
    assert "quickdecode" not in video_utils.VIDEO_DECODERS
