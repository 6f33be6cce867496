"""File to first token: the stock chain, quickprefill on a video that was read before, and on one that is streamed.

    python examples/benchmarks/end_to_end.py                               # one hour at 1 fps, small random model
    python examples/benchmarks/end_to_end.py --file h264_360p_2m.mp4 --runs 1
    python examples/benchmarks/end_to_end.py --family qwen3_vl --size 128 128 --ways stock read
    python examples/benchmarks/end_to_end.py --shape 7b --device cuda --size 252 448
    python examples/benchmarks/end_to_end.py --file h264_360p_2m.mp4 --ways drain  # against the hour's

    stock    a stock reader of qwen-vl-utils, the processor, generate()
    read     quickdecode.register(), the processor, generate() of a patched model
    stream   the same with quickdecode.register(stream=True)
    drain    the same, but pixels are thrown away group by group: what streaming alone takes of the host

Every run has a process of its own, in turns; figures are medians. `decode alone` is how long quickdecode takes for the
video, `device alone` how long generate() takes once inputs are there, both in the way `read`; nothing that needs both
can be faster than the larger of the two. Host memory is the process's growth over a model that has run once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.benchmarks.decode_files import FILES, make
from examples.benchmarks.decode_readers import READERS
from examples.benchmarks.end_to_end_report import middle, table
from examples.benchmarks.random_model import PATCH, add_arguments, build_pair, check_arguments, title
from examples.benchmarks.result_files import RESULTS, environment, load, save
from examples.benchmarks.timeline import Timeline, draw
from examples.quickstart import FirstToken

WAYS = ("stock", "read", "stream", "drain")
MIB = 2**20


def stock_reader(vision_process: Any) -> str:
    """The reader that qwen-vl-utils would choose itself; where it would find none, a sequential PyAV one for it."""
    for name in ("torchcodec", "decord"):
        if find_spec(name) is not None:
            return name

    def read(element: dict[str, Any]) -> Any:
        import av

        with av.open(element["video"]) as container:
            stream = container.streams.video[0]
            total, rate = stream.frames, float(stream.average_rate)
        count = vision_process.smart_nframes(element, total_frames=total, video_fps=rate)
        indices = torch.linspace(0, total - 1, count).round().long().tolist()
        frames = torch.from_numpy(READERS["pyav"](element["video"])(indices, None))
        metadata = {"fps": rate, "frames_indices": indices, "total_num_frames": total, "video_backend": "pyav"}
        return frames, metadata, count / total * rate

    vision_process.VIDEO_READER_BACKENDS["pyav"] = read
    return "pyav"


def take_over(way: str, processor: Any, timeline: Timeline) -> str:
    """Set the reader of a way up, and time it and the processor. Returns the reader's name."""
    from qwen_vl_utils import vision_process

    import quickdecode

    kind, on_device = type(processor.video_processor), way in ("stream", "drain")
    kind._preprocess = timeline.wrap("preprocess", kind._preprocess, device=on_device)
    if way != "stock":
        timeline.watch_quickdecode()
        quickdecode.register(stream=on_device)
        return "quickdecode"
    name = stock_reader(vision_process)
    readers = vision_process.VIDEO_READER_BACKENDS
    readers[name] = timeline.wrap("decode", readers[name])
    vision_process.FORCE_QWENVL_VIDEO_READER = name
    return name


def inputs_of(path: Path, arguments: argparse.Namespace, processor: Any, timeline: Timeline) -> tuple[Any, float]:
    """What any Qwen script does, and when process_vision_info had returned."""
    from qwen_vl_utils import process_vision_info

    height, width = arguments.size
    video = {"type": "video", "video": str(path), "fps": arguments.fps, "max_frames": 1 << 20}
    content = [video | {"resized_height": height, "resized_width": width}, {"type": "text", "text": "What is shown?"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    patch = getattr(processor.video_processor, "patch_size", PATCH)
    images, videos, options = process_vision_info(
        messages, return_video_kwargs=True, return_video_metadata=True, image_patch_size=patch
    )
    read = timeline.seconds()
    frames, metadata = (list(part) for part in zip(*videos, strict=True))
    options = {"video_metadata": metadata, "do_resize": False, "return_tensors": "pt", **options}
    return processor(text=[text], images=images, videos=frames, **options), read


def measure(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One file to one token, in this process."""
    import quickprefill

    path = video_of(arguments)
    model, processor = build_pair(arguments.family, arguments.shape, arguments.size)
    config = {"keep": arguments.keep, "group_frames": arguments.group_frames}
    model.generate(input_ids=torch.full((1, 64), 9, device=model.device), max_new_tokens=1, do_sample=False)  # start-up
    before = start_peak()
    timeline = Timeline()
    reader = take_over(way, processor, timeline)
    timeline.watch_model(model)
    with quickprefill.patched(model, **config) if way != "stock" else contextlib.nullcontext():
        first = FirstToken()
        inputs, read = inputs_of(path, arguments, processor, timeline)
        inputs, ready = inputs.to(model.device), timeline.seconds()
        if way == "drain":
            drain(inputs, arguments.group_frames)
            output, first.seconds = inputs["input_ids"], timeline.seconds()
        else:
            output = model.generate(**inputs, max_new_tokens=1, do_sample=False, streamer=first)
    return {
        "first_token_s": first.seconds,
        "read_s": read,
        "ready_s": ready,
        "host_bytes": peak_bytes() - before,
        "device_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        "spans": timeline.spans(),
        "frames": frames_of(inputs),
        "tokens": int(inputs["input_ids"].shape[1]),
        "answer": output[0, inputs["input_ids"].shape[1] :].tolist(),
        "reader": reader,
    }


def frames_of(inputs: Any) -> int:
    """Frames of the only video."""
    if "video_grid_thw" in inputs:
        return int(inputs["video_grid_thw"][0, 0]) * 2
    return int(inputs["pixel_values_videos"].shape[1])


def drain(inputs: Any, group_frames: int) -> None:
    """Take the pixels of one group after the other, as the patched model does, and forget them."""
    pixels, (_, rows, columns) = inputs["pixel_values_videos"], inputs["video_grid_thw"][0].tolist()
    step = rows * columns * group_frames // 2
    for start in range(0, len(pixels), step):
        pixels.rows(start, min(start + step, len(pixels)))


def start_peak() -> int:
    """Forget the process's peak memory so far, on Linux; returns what it holds now, in bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """The process's peak memory since start_peak()."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure_apart(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """measure() in a process of its own."""
    options = ["--one", way, *arguments.given]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {}
    command = [sys.executable, __file__, *options]
    printed = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **hidden}
    ).stdout
    values: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return values


def video_of(arguments: argparse.Namespace) -> Path:
    """The file to read, encoded now if it is one of ours and not there yet."""
    return arguments.video or make(arguments.folder, arguments.file, arguments.seconds)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, help="any file, instead of --file")
    parser.add_argument("--file", choices=sorted(FILES), default="h264_360p_60m.mp4", help="a clip rendered here")
    parser.add_argument("--seconds", type=int, default=120, help="length of that clip before it is repeated")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "quickvideo-clips")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--size", type=int, nargs=2, default=[112, 112], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--group-frames", type=int, default=16, help="frames of a group")
    add_arguments(parser)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.given = list(sys.argv[1:] if argv is None else argv)
    check_arguments(parser, arguments)
    if arguments.family == "llava_onevision" and arguments.size[0] != arguments.size[1]:
        parser.error(f"--size of llava_onevision is a square, got {arguments.size}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA device")
    return arguments


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = parse(argv)
    if arguments.one:
        values = measure(arguments.one, arguments)
        print(json.dumps(values))
        return values
    name = video_of(arguments).stem
    path = arguments.results / f"end_to_end_{title(arguments)}_{arguments.device}_{name}.json"
    video = {
        "family": arguments.family,
        "video": name,
        "fps": arguments.fps,
        "size": arguments.size,
        "keep": arguments.keep,
    }
    results = load(path, environment(arguments) | video)
    for turn in range(arguments.runs):
        for way in arguments.ways:
            runs = results["runs"].setdefault(way, [])
            if len(runs) > turn:
                continue
            runs.append(measure_apart(way, arguments))
            print(f"{way} {runs[-1]['first_token_s']:.2f} s", flush=True)
            save(path, results, table(results))
    print(table(results))
    answering = {way: middle(runs) for way, runs in results["runs"].items() if runs and way != "drain"}
    if answering:
        draw(answering, path.with_suffix(".png"))
    return results


if __name__ == "__main__":
    main()
