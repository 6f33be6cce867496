"""Files that are damaged at random, each read by a forked process of its own with little memory.

A file is known by its number: its seed, what is done to it and how it is read follow from that alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import torch

import quickdecode
from tests.clips import write_clip
from tests.quickdecode.mutations import MUTATIONS

SECONDS = 20.0
"""What a read may take; a process is ended after twice that and SPARE_SECONDS."""
SPARE_SECONDS = 10.0
MEMORY_BYTES = 512 << 20
"""What a read may take beyond what it delivers."""
WALL_BYTES = 2 << 30
"""Where the system refuses more, in case that a read takes much too much."""
LIMITS = quickdecode.Limits(frame_pixels=2048 * 2048)
"""The memory that a frame takes grows with what is allowed: damage can make 48 x 96 pixels 8,192 x 8,192."""

SEEDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264-fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "h264.mkv": {},
    "h264.ts": {},
    "h264.flv": {},
    "raw.h264": {},
    "hevc.mp4": {"codec": "libx265"},
    "hevc.mkv": {"codec": "libx265"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "vp9.ivf": {"codec": "libvpx-vp9"},
    "av1.mp4": {"codec": "libsvtav1"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mpeg2.mxf": {"codec": "mpeg2video"},
    "wmv2.wmv": {"codec": "wmv2"},
    "flv1.flv": {"codec": "flv"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "ffv1.mkv": {"codec": "ffv1"},
    "png.mov": {"codec": "png", "pix_fmt": "rgb24"},
    "animation.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "h264.nut": {},
}


def make_seeds(folder: Path) -> list[Path]:
    """One small clip of each kind in `folder`, made if it is not there yet."""
    for name, options in SEEDS.items():
        if not (folder / name).exists():
            partial = folder / ("partial-" + name)
            write_clip(partial, **{"frames": 24, "size": (48, 96), "gop": 6, **options})
            partial.rename(folder / name)
    return [folder / name for name in SEEDS]


@dataclass(frozen=True)
class Case:
    """One file and how it is read."""

    number: int
    seed: str
    mutation: str
    on_error: str
    way: str
    """"read_video" or "stream_video"."""
    path: Path


def make_case(number: int, seeds: list[Path], folder: Path) -> Case:
    """Write file `number` into `folder`."""
    chance = random.Random(number)
    seed = seeds[number % len(seeds)]
    other = chance.choice([path for path in seeds if path != seed])
    mutate = MUTATIONS[number // len(seeds) % len(MUTATIONS)]
    path = folder / f"{number}-{mutate.__name__}-{seed.name}"  # type: ignore[attr-defined]
    path.write_bytes(mutate(bytearray(seed.read_bytes()), chance, other.read_bytes()))
    on_error, way = chance.choice(("raise", "nearest")), chance.choice(("read_video", "read_video", "stream_video"))
    return Case(number, seed.name, mutate.__name__, on_error, way, path)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    number: int
    seed: str
    mutation: str
    kind: str
    """"frames", "error" (one of ours), or what must not be: "foreign", "timeout", "hang", "crash", "count", "thread",
    "memory"."""
    said: str = ""
    seconds: float = 0.0
    peak_mib: float = 0.0
    """Resident memory beyond that before the read, and beyond what it delivered."""

    @property
    def fine(self) -> bool:
        return self.kind in ("frames", "error")


def run(case: Case) -> Outcome:
    """Read the file in a process of its own, which may hang or crash."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, sending))
    began = time.monotonic()
    process.start()
    sending.close()
    try:
        answer = json.loads(receiving.recv()) if receiving.poll(2 * SECONDS + SPARE_SECONDS) else {"kind": "hang"}
    except EOFError:
        process.join(10)
        answer = {"kind": "crash", "said": f"exit code {process.exitcode}"}
    process.join(0 if answer["kind"] == "hang" else 5)
    if process.exitcode not in (0, None) and answer["kind"] != "crash":
        answer |= {"kind": "crash", "said": f"exit code {process.exitcode} after {answer['kind']}"}
    if process.is_alive():
        if answer["kind"] != "hang":
            answer |= {"kind": "hang", "said": f"at its end, after {answer['kind']}"}
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    receiving.close()
    answer.setdefault("seconds", time.monotonic() - began)
    return Outcome(case.number, case.seed, case.mutation, **answer)


def _child(case: Case, sending: Any) -> None:
    before = _mebibytes("VmRSS")
    resource.setrlimit(resource.RLIMIT_DATA, (int(_mebibytes("VmData") * (1 << 20)) + WALL_BYTES,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    began = time.monotonic()
    try:
        shape, promised = _read(case)
        answer: dict[str, Any] = {"kind": "frames", "said": f"{shape[0]}"}
        if shape[0] != promised or shape[0] == 0:
            answer = {"kind": "count", "said": f"{shape[0]} frames, {promised} promised"}
        delivered = shape.numel()
    except quickdecode.QuickDecodeError as error:
        timeout = isinstance(error, quickdecode.ReadTimeoutError)
        answer, delivered = {"kind": "timeout" if timeout else "error", "said": f"{type(error).__name__}: {error}"}, 0
        if case.path.name not in str(error):
            answer["kind"] = "foreign"
    except BaseException as error:
        answer, delivered = {"kind": "foreign", "said": f"{type(error).__name__}: {error}"}, 0
    answer["seconds"] = time.monotonic() - began
    answer["peak_mib"] = max(_mebibytes("VmHWM") - before - delivered / (1 << 20), 0.0)
    if answer["kind"] in ("frames", "error"):
        answer |= _afterwards(case, answer)
    sending.send(json.dumps(answer))
    sending.close()


def _read(case: Case) -> tuple[torch.Size, int]:
    """Shape of all frames, and how many were promised."""
    options: dict[str, Any] = {"on_error": case.on_error, "timeout_seconds": SECONDS, "workers": 2, "limits": LIMITS}
    if case.way == "stream_video":
        stream = quickdecode.stream_video(case.path, block_frames=5, **options)
        shapes = [block.frames.shape for block in stream]
        return torch.Size((sum(shape[0] for shape in shapes), *shapes[0][1:])), len(stream)
    video = quickdecode.read_video(case.path, **options)
    assert len(video) == len(video.frames)
    quickdecode.read_video(case.path, num_frames=1, **options)
    return video.frames.shape, video.info.num_frames


def _afterwards(case: Case, answer: dict[str, Any]) -> dict[str, Any]:
    """What is wrong nevertheless."""
    end = time.monotonic() + 2.0
    while (left := _threads()) and time.monotonic() < end:
        time.sleep(0.01)
    if left:
        return {"kind": "thread", "said": f"{left} are left"}
    if answer["peak_mib"] * (1 << 20) > MEMORY_BYTES:
        return {"kind": "memory", "said": f"{answer['peak_mib']:.0f} MiB"}
    if answer["kind"] == "frames" and case.on_error == "raise":
        expected = decodable(case.path)
        if expected is not None and int(answer["said"]) != expected:
            return {"kind": "count", "said": f"{answer['said']} frames, a plain decode gives {expected}"}
    return {}


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("quickdecode")]


def decodable(path: Path) -> int | None:
    """How many frames a sequential decode yields; None if it ends in an error."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, IndexError, UnicodeDecodeError, MemoryError):
        return None


def _mebibytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def as_row(outcome: Outcome) -> dict[str, Any]:
    """As it is stored."""
    return {**asdict(outcome), "seconds": round(outcome.seconds, 2), "peak_mib": round(outcome.peak_mib, 1)}
