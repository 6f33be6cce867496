"""The readers that decode.py compares: each gives frames by number, resized the way it does that itself.

A reader is `READERS[name](path) -> read(indices, size) -> sequence of frames`, opening included in read().
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

Read = Callable[[Sequence[int], "tuple[int, int] | None"], Any]


def quickdecode(workers: int | None = None) -> Callable[[str], Read]:
    def reader(path: str) -> Read:
        import quickdecode

        def read(indices: Sequence[int], size: tuple[int, int] | None) -> Any:
            return quickdecode.read_video(path, indices=indices, size=size, workers=workers).frames

        return read

    return reader


def torchcodec(seek_mode: str, threads: int) -> Callable[[str], Read]:
    def reader(path: str) -> Read:
        from torchcodec.decoders import VideoDecoder

        def read(indices: Sequence[int], size: tuple[int, int] | None) -> Any:
            transforms = []
            if size is not None:
                from torchcodec.transforms import Resize

                transforms = [Resize(size)]
            options = {"transforms": transforms} if transforms else {}
            decoder = VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=threads, **options)
            return decoder.get_frames_at(indices=list(indices)).data

        return read

    return reader


def decord2(threads: int) -> Callable[[str], Read]:
    def reader(path: str) -> Read:
        import decord

        def read(indices: Sequence[int], size: tuple[int, int] | None) -> Any:
            shape = {} if size is None else {"height": size[0], "width": size[1]}
            batch = decord.VideoReader(path, num_threads=threads, **shape).get_batch(list(indices)).asnumpy()
            return batch.transpose(0, 3, 1, 2)

        return read

    return reader


def deepcodec(path: str) -> Read:
    import os

    from deepcodec import VideoReader

    def read(indices: Sequence[int], size: tuple[int, int] | None) -> Any:
        shape = {} if size is None else {"height": size[0], "width": size[1]}
        batch = VideoReader(path, num_threads=os.cpu_count(), **shape).get_batch(list(indices))
        return batch if batch.shape[1] == 3 else batch.transpose(0, 3, 1, 2)

    return read


def opencv(path: str) -> Read:
    import cv2
    import numpy as np

    def read(indices: Sequence[int], size: tuple[int, int] | None) -> Any:
        """Sequential grab, retrieve where wanted: its seeks are not exact."""
        capture, frames, wanted = cv2.VideoCapture(path), {}, set(indices)
        for number in range(max(wanted) + 1):
            if not capture.grab():
                break
            if number in wanted:
                picture = capture.retrieve()[1]
                if size is not None:
                    picture = cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
                frames[number] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).transpose(2, 0, 1)
        capture.release()
        return np.stack([frames[index] for index in indices])

    return read


def pyav(path: str) -> Read:
    import av
    import numpy as np

    def read(indices: Sequence[int], size: tuple[int, int] | None) -> Any:
        frames, wanted = {}, set(indices)
        shape = {} if size is None else {"height": size[0], "width": size[1], "interpolation": "BICUBIC"}
        with av.open(path) as container:
            container.streams.video[0].thread_type = "AUTO"
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    frames[number] = frame.to_ndarray(format="rgb24", **shape).transpose(2, 0, 1)
                if number >= max(wanted):
                    break
        return np.stack([frames[index] for index in indices])

    return read


READERS: dict[str, Callable[[str], Read]] = {
    "quickdecode": quickdecode(),
    "quickdecode, 1 worker": quickdecode(1),
    "torchcodec exact, all threads": torchcodec("exact", 0),
    "torchcodec exact, 1 thread": torchcodec("exact", 1),
    "torchcodec exact, 2 threads": torchcodec("exact", 2),
    "torchcodec approximate, all threads": torchcodec("approximate", 0),
    "decord2": decord2(0),
    "decord2, 1 thread": decord2(1),
    "deepcodec": deepcodec,
    "opencv": opencv,
    "pyav": pyav,
}

IMPORTS = {
    "torchcodec": "from torchcodec.decoders import VideoDecoder",
    "decord2": "import decord; assert int(decord.__version__.split('.')[0]) >= 3",  # decord 0.6 has the same name
    "opencv": "import cv2",
    "pyav": "import av",
}
PACKAGES = ("av", "decord2", "deepcodec", "opencv-python-headless", "torch", "torchcodec")


def usable_readers(chosen: Sequence[str] | None) -> list[str]:
    """Those of `chosen` (default: all) whose library imports, tried in a process of its own."""
    usable = []
    for name in chosen or READERS:
        library = name.split()[0].rstrip(",")
        command = [sys.executable, "-c", IMPORTS.get(library, f"import {library}")]
        if subprocess.run(command, capture_output=True).returncode == 0:
            usable.append(name)
        else:
            print(f"left out: {name} (cannot be imported)", file=sys.stderr)
    return usable


def versions() -> str:
    """Of the packages that read, as far as they are installed; and of the FFmpeg that torchcodec found, if it runs."""
    found = []
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    code = "import torchcodec; print(torchcodec.ffmpeg_major_version)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return ", ".join(found) + (f" with FFmpeg {done.stdout.strip()}" if done.returncode == 0 else "")
