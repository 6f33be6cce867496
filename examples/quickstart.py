"""One video through the stock model and the patched one: the same calls, what they answer, and what they cost.

    python examples/quickstart.py                      # a small model, and a clip rendered here whose answers are known
    python examples/quickstart.py --video talk.mp4 --model Qwen/Qwen2.5-VL-7B-Instruct --question "What is shown?"

The two runs differ in one line, `quickprefill.apply(model, ...)`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from qwen_vl_utils import process_vision_info
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.generation.streamers import BaseStreamer

import quickdecode
import quickprefill

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples.needle.clip import write_clip
from examples.needle.scene import Difficulty, sample_scene
from examples.needle.tasks import Question, ask

TINY_MODEL = Path(__file__).parent / "tiny-qwen2.5-vl"
TINY_FRAME_PIXELS = 56  # the small model was made for frames of 56 x 56
NEEDLE_SCENE = 0  # number of the test scene that is rendered
FILE_FPS = 10  # frames per second in its file


@dataclasses.dataclass
class Run:
    """What one generate() call answered and cost."""

    answer: str
    prefill_seconds: float
    generate_seconds: float
    cache_bytes: int
    peak_bytes: int


class FirstToken(BaseStreamer):
    """Notes when generate() hands out its first new token: the end of the prefill."""

    def __init__(self) -> None:
        self.start, self.seconds, self._calls = time.perf_counter(), 0.0, 0

    def put(self, value: torch.Tensor) -> None:
        self._calls += 1
        if self._calls == 2:  # the first call brings the prompt
            self.seconds = time.perf_counter() - self.start

    def end(self) -> None:
        pass


class PeakMemory:
    """Peak memory within a with block above what was in use before: the GPU's, or the process's on a CPU."""

    def __enter__(self) -> PeakMemory:
        self.bytes = 0
        self._cuda = torch.cuda.is_available()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)

    def __exit__(self, *error: object) -> None:
        if self._cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self._before
        else:
            self._done.set()
            self._thread.join()


def write_needle_clip(path: Path, minutes: float) -> list[Question]:
    """A rendered H.264 clip, and questions about it whose answers are known: one symbol appears for some seconds."""
    frames = 2 * max(round(minutes * 30), 8)
    scene = sample_scene("test", NEEDLE_SCENE, Difficulty(frames=frames, spacing=1.0, needle_frames=(4, 8), lone=True))
    write_clip(scene, path, oversample=FILE_FPS)
    asked = {question.task: question for question in ask(scene)}
    return [asked[task] for task in ("needle", "state", "time")]


def conversation(arguments: argparse.Namespace, text: str) -> list[dict[str, Any]]:
    """One question about the video."""
    video: dict[str, Any] = {"type": "video", "video": str(arguments.video), "fps": arguments.fps}
    if Path(arguments.model) == TINY_MODEL:
        video |= {"resized_height": TINY_FRAME_PIXELS, "resized_width": TINY_FRAME_PIXELS}
    return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]


def patch_size(processor: Any) -> int | None:
    """Pixels along each side of a patch, where the processor cuts frames into patches: in the Qwen families."""
    size: int | None = getattr(processor.video_processor, "patch_size", None)
    return size


def prepare(processor: Any, messages: list[dict[str, Any]], vision: Any) -> Any:
    """Model inputs, as every Qwen script makes them; other families' processors bring frames to a size of their own."""
    images, videos, options = vision
    frames, metadata = zip(*videos, strict=True)
    return processor(
        text=[processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)],
        images=images,
        videos=list(frames),
        video_metadata=list(metadata),
        return_tensors="pt",
        do_resize=patch_size(processor) is None,
        **options,
    )


def answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> Run:
    """One stock generate() call."""
    timer = FirstToken()
    with PeakMemory() as peak:
        output = model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=timer, return_dict_in_generate=True
        )
        seconds = time.perf_counter() - timer.start
    new_tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)
    text = processor.batch_decode(new_tokens, skip_special_tokens=True)[0]
    return Run(text.strip(), timer.seconds, seconds, stored, peak.bytes)


def report(name: str, run: Run, right: str) -> None:
    mib = 1 << 20
    verdict = f" (right: {right!r})" if right else ""
    print(
        f"{name:8} prefill {run.prefill_seconds:6.2f} s   generate {run.generate_seconds:6.2f} s   "
        f"cache {run.cache_bytes / mib:7.2f} MiB   peak memory +{run.peak_bytes / mib:.0f} MiB   "
        f"answer: {run.answer!r}{verdict}"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="any video file; by default an H.264 clip is rendered")
    parser.add_argument("--model", default=str(TINY_MODEL), help="name or folder of a checkpoint of any family")
    parser.add_argument("--question", default="What is shown?", help="what to ask about --video")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the video's keys and values that stay")
    parser.add_argument("--group-frames", type=int, help="frames prefilled at a time, an even number")
    parser.add_argument("--policy", default="value_norm", choices=sorted(quickprefill.POLICIES))
    parser.add_argument("--fps", type=float, default=1.0, help="frames sampled per second of video")
    parser.add_argument("--minutes", type=float, default=10, help="length of the clip that is rendered")
    parser.add_argument("--max-new-tokens", type=int, help="tokens to answer in; the small model's answers are one")
    arguments = parser.parse_args(argv)
    if arguments.group_frames is None:
        # A group should fill a matrix product: 16 frames are thousands of tokens at real sizes, 32 at the small one.
        arguments.group_frames = 256 if arguments.model == str(TINY_MODEL) else 16
    if arguments.max_new_tokens is None:
        arguments.max_new_tokens = 1 if arguments.model == str(TINY_MODEL) else 8
    return arguments


def run(arguments: argparse.Namespace, questions: list[Question]) -> list[tuple[Run, Run]]:
    """For each question, generate with the stock and with the patched model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(arguments.model)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="auto").to(device).eval()
    config = quickprefill.QuickPrefillConfig(
        keep=arguments.keep, group_frames=arguments.group_frames, policy=arguments.policy, progress=True
    )
    start = time.perf_counter()
    messages = [conversation(arguments, question.text) for question in questions]
    vision = process_vision_info(
        messages[0],
        return_video_kwargs=True,
        return_video_metadata=True,
        image_patch_size=patch_size(processor) or 14,
    )
    frames, _, height, width = vision[1][0][0].shape
    print(f"decode   {time.perf_counter() - start:.2f} s")
    runs = []
    for question, asked in zip(questions, messages, strict=True):
        inputs = prepare(processor, asked, vision)
        print(
            f"\n{question.text}\n{frames} frames of {height} x {width}, "
            f"{inputs['input_ids'].shape[1]} tokens in the prompt"
        )
        inputs = inputs.to(device)
        if not runs:
            answer(model, processor, inputs, max_new_tokens=1)  # the first call of a process pays for start-up
        stock = answer(model, processor, inputs, arguments.max_new_tokens)
        report("stock", stock, question.answer)
        with quickprefill.patched(model, config):
            ours = answer(model, processor, inputs, arguments.max_new_tokens)
        report("patched", ours, question.answer)
        runs.append((stock, ours))
    return runs


def main(argv: list[str] | None = None) -> list[tuple[Run, Run]]:
    arguments = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        questions = [Question("", arguments.question, "")]
        if arguments.video is None:
            arguments.video = Path(folder) / "clip.mp4"
            print(f"rendering a {arguments.minutes:g}-minute H.264 clip ...")
            questions = write_needle_clip(arguments.video, arguments.minutes)
        quickdecode.register()
        try:
            return run(arguments, questions)
        finally:
            quickdecode.unregister()


if __name__ == "__main__":
    main()
