"""Readers that keep a file open for many small reads, as a training loader does: what decode.py's clips go through.

Such a reader is `KEPT[name](path, size) -> get`, and `get(indices)` gives the frames; each resizes the way it does
that itself. `KEPT[name]` imports its library at once, so that opening is all that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Size = tuple[int, int]
Get = Callable[[Sequence[int]], Any]
Open = Callable[[str, Size], Get]


def quickdecode(workers: int | None = None) -> Callable[[], Open]:
    def library() -> Open:
        import quickdecode

        def opened(path: str, size: Size) -> Get:
            video = quickdecode.VideoReader(path, size=size, workers=workers)
            return lambda indices: video.read(indices=indices).frames

        return opened

    return library


def torchcodec(seek_mode: str, threads: int) -> Callable[[], Open]:
    def library() -> Open:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize

        def opened(path: str, size: Size) -> Get:
            video = VideoDecoder(path, seek_mode=seek_mode, num_ffmpeg_threads=threads, transforms=[Resize(size)])
            return lambda indices: video.get_frames_at(indices=list(indices)).data

        return opened

    return library


def decord2(threads: int) -> Callable[[], Open]:
    def library() -> Open:
        import decord

        def opened(path: str, size: Size) -> Get:
            video = decord.VideoReader(path, height=size[0], width=size[1], num_threads=threads)
            return lambda indices: video.get_batch(list(indices)).asnumpy().transpose(0, 3, 1, 2)

        return opened

    return library


KEPT: dict[str, Callable[[], Open]] = {
    "quickdecode": quickdecode(),
    "quickdecode, 1 worker": quickdecode(1),
    "torchcodec exact, all threads": torchcodec("exact", 0),
    "torchcodec exact, 1 thread": torchcodec("exact", 1),
    "torchcodec approximate, all threads": torchcodec("approximate", 0),
    "decord2": decord2(0),
    "decord2, 1 thread": decord2(1),
}
