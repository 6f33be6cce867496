"""One video through the stock model and the patched one: the same calls, what they answer, and what they cost.

    python examples/quickstart.py                                          # a small model and a clip written here
    python examples/quickstart.py --video talk.mp4 --model Qwen/Qwen2.5-VL-7B-Instruct --question "What is shown?"

The two runs differ in one line, `quickprefill.apply(model, ...)`.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import torch
from qwen_vl_utils import process_vision_info
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.generation.streamers import BaseStreamer

import quickdecode
import quickprefill

TINY_MODEL = Path(__file__).parent / "tiny-qwen2.5-vl"
TINY_FRAME_PIXELS = 56  # the small model was made for frames of 56 x 56


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


def write_clip(path: Path, *, minutes: float = 10, fps: int = 10) -> None:
    """A real H.264 file: a square wanders over a scene whose colours drift."""
    height, width = 180, 320
    rows, columns = np.mgrid[0:height, 0:width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": str(5 * fps)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(int(minutes * 60 * fps)):
            phase = index / (20 * fps)
            channels = (
                rows + 40 * np.sin(phase),
                columns / 2 + 60 * np.cos(phase),
                rows * 0 + 127 + 90 * np.sin(3 * phase),
            )
            picture = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
            top, left = int(70 + 60 * np.sin(5 * phase)), int(140 + 120 * np.cos(4 * phase))
            picture[top : top + 40, left : left + 40] = (250, 220, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def read(arguments: argparse.Namespace, processor: Any) -> Any:
    """File to model inputs through qwen-vl-utils and the processor, as every Qwen script does it."""
    video: dict[str, Any] = {"type": "video", "video": str(arguments.video), "fps": arguments.fps}
    if Path(arguments.model) == TINY_MODEL:
        video |= {"resized_height": TINY_FRAME_PIXELS, "resized_width": TINY_FRAME_PIXELS}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": arguments.question}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images, videos, options = process_vision_info(messages, return_video_kwargs=True, return_video_metadata=True)
    frames, metadata = zip(*videos, strict=True)
    return processor(
        text=[text],
        images=images,
        videos=list(frames),
        video_metadata=list(metadata),
        return_tensors="pt",
        do_resize=False,
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


def report(name: str, run: Run) -> None:
    mib = 1 << 20
    print(
        f"{name:8} prefill {run.prefill_seconds:6.2f} s   generate {run.generate_seconds:6.2f} s   "
        f"cache {run.cache_bytes / mib:7.2f} MiB   peak memory +{run.peak_bytes / mib:.0f} MiB   answer: {run.answer!r}"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="any video file; by default a 10-minute H.264 clip is written")
    parser.add_argument("--model", default=str(TINY_MODEL), help="name or folder of a Qwen2.5-VL checkpoint")
    parser.add_argument("--question", default="What colour is the square?")
    parser.add_argument("--keep", type=float, default=0.5, help="share of the video's keys and values that stay")
    parser.add_argument("--group-frames", type=int, help="frames prefilled at a time, an even number")
    parser.add_argument("--policy", default="key_norm", choices=sorted(quickprefill.POLICIES))
    parser.add_argument("--fps", type=float, default=1.0, help="frames sampled per second of video")
    parser.add_argument("--minutes", type=float, default=10, help="length of the clip that is written")
    parser.add_argument("--max-new-tokens", type=int, default=8)
    arguments = parser.parse_args(argv)
    if arguments.group_frames is None:
        # A group should fill a matrix product: 16 frames are thousands of tokens at real sizes, 32 at the small one.
        arguments.group_frames = 256 if arguments.model == str(TINY_MODEL) else 16
    return arguments


def run(arguments: argparse.Namespace) -> tuple[Run, Run]:
    """Read the video once, then generate with the stock and with the patched model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(arguments.model)
    model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="auto").to(device).eval()

    start = time.perf_counter()
    inputs = read(arguments, processor)
    slices, rows, columns = inputs["video_grid_thw"][0].tolist()
    print(
        f"decode   {time.perf_counter() - start:.2f} s for {2 * slices} frames of {14 * rows} x {14 * columns}, "
        f"{inputs['input_ids'].shape[1]} tokens in the prompt"
    )
    inputs = inputs.to(device)
    answer(model, processor, inputs, max_new_tokens=1)  # the first call of a process pays for start-up

    stock = answer(model, processor, inputs, arguments.max_new_tokens)
    report("stock", stock)
    config = quickprefill.QuickPrefillConfig(
        keep=arguments.keep, group_frames=arguments.group_frames, policy=arguments.policy, progress=True
    )
    with quickprefill.patched(model, config):
        ours = answer(model, processor, inputs, arguments.max_new_tokens)
    report("patched", ours)
    return stock, ours


def main(argv: list[str] | None = None) -> tuple[Run, Run]:
    arguments = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.video is None:
            arguments.video = Path(folder) / "clip.mp4"
            print(f"writing a {arguments.minutes:g}-minute H.264 clip ...")
            write_clip(arguments.video, minutes=arguments.minutes)
        quickdecode.register()
        try:
            return run(arguments)
        finally:
            quickdecode.unregister()


if __name__ == "__main__":
    main()
