"""read_video: probe, sample, plan, decode on threads, deliver. And probe, which stops after the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from .decode.block import Mismatch
from .decode.fill import Order, Whole, fill
from .decode.kept import Decoders
from .decode.room import NEW, Room
from .decoded import DecodedVideo
from .errors import QuickDecodeError, RequestError
from .index.media import Media, VideoInfo
from .index.packets import Way
from .opening import Options, check_whole, checked_size, in_time, look, look_closer, look_wholly, resolved_in_time
from .plan.sample import Request, frame_indices
from .source.limits import DEFAULT_LIMITS, Limits
from .source.source import VideoSource
from .threads.cores import shared_cores
from .threads.pool import Crew
from .threads.stop import Stop


def probe(
    source: VideoSource,
    *,
    stream: int = 0,
    timeout_seconds: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> VideoInfo:
    """Number of frames, size, rate and duration of a video, without decoding more than its first frame.

    Where only decoding can tell how many frames there are, they are what the packets suggest, and the answer says so
    (`num_frames_exact`).

    `stream` counts the file's video streams. Raises SourceError if the source is missing, empty, damaged, not a video,
    or has no video stream; LimitError if it is larger than `limits`; ReadTimeoutError after `timeout_seconds` (None:
    never).

    >>> probe("talk.mp4").num_frames  # doctest: +SKIP
    18000
    """
    options = Options.of(workers=1, timeout_seconds=timeout_seconds, limits=limits, stream=stream)
    with in_time(source, options):
        return look(resolved_in_time(source, options), Way.TABLE, None, options).info


def read_video(
    source: VideoSource,
    *,
    num_frames: int | None = None,
    fps: float | None = None,
    indices: Iterable[int] | None = None,
    at_seconds: Iterable[float] | None = None,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    size: tuple[int, int] | None = None,
    interpolation: str = "bicubic",
    resize: str = "fast",
    layout: str = "NCHW",
    out: torch.Tensor | None = None,
    stream: int = 0,
    workers: int | None = None,
    on_error: str = "raise",
    timeout_seconds: float | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> DecodedVideo:
    """Decode frames of a video on several cores; only what the wanted frames need is decoded.

    Args:
        source: a path, file:// or http(s):// URL, bytes, a binary file object, or a base64 data: URI.
        num_frames: this many frames, evenly spaced, the first and the last frame of the range included.
        fps: the frame on screen at start, start + 1/fps, start + 2/fps, ... (a frame may come twice).
        indices: these frames, in this order; index i is the i-th frame of a sequential decode, -1 the last one.
            A list, an array, or a tensor of one dimension.
        at_seconds: the frames on screen at these times, in this order. With none of the four, every frame. A file that
            is known to be cut short is read only by indices from its start, or with on_error="nearest".
        start_seconds, end_seconds: only frames that start in this range; 0 is the start of the first frame.
        size: (height, width) to resize to, after rotation; None keeps the file's size. Frames of the file's
            size are bit-equal to PyAV's `to_ndarray(format="rgb24")`, turned. Where the resolution changes within
            the file, each frame is resized to `size`, or to the first picture's size, from what is stored.
        interpolation: how to resize: "bicubic", "bilinear", or with resize="fast" also "area" or "lanczos".
        resize: "fast": by swscale, straight from the stored planes. "antialiased": the full-size frame put through
            the antialiased resize of torchvision.transforms.v2, bit for bit what transformers makes of it. "exact":
            through that of torchvision.transforms, bit for bit what qwen-vl-utils makes of it. What they cost and
            how far apart they are: examples/guides/reading.md.
        layout: of the frames, "NCHW" or "NHWC" (channels last, as NumPy and OpenCV programs have it).
        out: a uint8 tensor on the CPU, of the shape that will be returned, to put the frames into. After an
            error its content is undefined; after a ReadTimeoutError a thread that is stuck may still write to it.
        stream: which of the file's video streams, cover pictures not counted.
        workers: threads to decode on; None means the cores that this process may use, shared with other reads under
            way (see threads/cores.py).
        on_error: "raise", or "nearest" to show the nearest frame that decodes instead of one that does not.
        timeout_seconds: give up after this long, download included; None means never.
        limits: how large a video may be, and of which formats and codecs, before it is refused.

    Raises SourceError if the source is missing, empty, damaged, not a video, or has no video stream; RequestError if an
    argument is malformed or asks for frames that the file does not have; DecodeError if a wanted frame cannot be
    decoded; LimitError, ReadTimeoutError.

    >>> read_video("talk.mp4", num_frames=64, size=(252, 448)).frames.shape  # doctest: +SKIP
    torch.Size([64, 3, 252, 448])
    """
    request = Request.of(num_frames, fps, indices, start_seconds, end_seconds, at_seconds)
    options = Options.of(workers, on_error, timeout_seconds, limits, interpolation, stream, resize)
    choose = requested(request, checked_size(size), options)
    return read_chosen(source, choose, options, Room.of(layout, out), by_number=request.by_number)


def read_videos(sources: Iterable[VideoSource], **arguments: Any) -> list[DecodedVideo]:
    """read_video for several sources at once, within one budget of workers; answers in the order of `sources`.

    Takes the keyword arguments of read_video but `out`, for all sources alike, and raises the first error in that
    order.
    """
    if arguments.get("out") is not None:
        raise RequestError("out= is for one video; call read_video for each source, or let the tensors be made.")
    listed = list(sources)
    answers: list[DecodedVideo | Exception | None] = [None] * len(listed)
    with shared_cores(Options.of(arguments.pop("workers", None)).workers) as workers:
        at_once = max(min(workers, len(listed)), 1)

        @contextmanager
        def worker(_: Stop) -> Iterator[Callable[[int], Iterator[None]]]:
            yield read

        def read(number: int) -> Iterator[None]:
            try:
                answers[number] = read_video(listed[number], workers=max(workers // at_once, 1), **arguments)
            except Exception as error:
                answers[number] = error
            yield

        with Crew(range(len(listed)), worker, workers=at_once) as crew:
            for _ in crew:
                pass
    return [_given(answer) for answer in answers]


def _given(answer: DecodedVideo | Exception | None) -> DecodedVideo:
    """Raises `answer` if it is an error."""
    if answer is None:
        raise QuickDecodeError("given up, since the program is ending.")
    if isinstance(answer, Exception):
        raise answer
    return answer


Choice: TypeAlias = tuple[list[int], tuple[int, int] | None]


def requested(request: Request, size: tuple[int, int] | None, options: Options) -> Callable[[Media], Choice]:
    """Names the frames that `request` means once the file is known, and `size`."""
    clamp = options.on_error == "nearest"
    return lambda media: (frame_indices(request, media, clamp=clamp), size)


def read_chosen(
    source: VideoSource,
    choose: Callable[[Media], Choice],
    options: Options,
    room: Room = NEW,
    *,
    by_number: bool = False,
) -> DecodedVideo:
    """Decode the frames and to the size that `choose` names once the file is known.

    `by_number`: the choice does not depend on how long the video is, so that a file that is cut short may do.

    A file that turns out not to be what its index says is read again, its frames numbered in a surer way, and
    `choose` is asked again.
    """
    with in_time(source, options):
        resolved = resolved_in_time(source, options)
        media = look(resolved, Way.TABLE, None, options)
        if not by_number:
            check_whole(media, options)
        return read_media(media, choose, options, room=room)[0]


def read_media(
    media: Media,
    choose: Callable[[Media], Choice],
    options: Options,
    decoders: Decoders | None = None,
    room: Room = NEW,
) -> tuple[DecodedVideo, Media]:
    """read_chosen of a file that has been looked at, and what it has turned out to be."""
    while True:
        try:
            media, choice = settle(media, choose, options)
            return _decode(media, choice, options, decoders, room), media
        except Mismatch as mismatch:
            media = look_closer(media, mismatch, options)


def settle(media: Media, choose: Callable[[Media], Choice], options: Options) -> tuple[Media, Choice]:
    """What `choose` chooses. A request that does not fit the number of frames counts only once that is sure."""
    try:
        return media, choose(media)
    except RequestError as error:
        if media.info.num_frames_exact:
            raise
        media = look_wholly(media, str(error), options)
    return media, choose(media)


def _decode(media: Media, choice: Choice, options: Options, decoders: Decoders | None, room: Room) -> DecodedVideo:
    info, (wanted, size) = media.info, choice
    height, width = size or (info.height, info.width)
    options.limits.check_size(info.name, height, width)
    options.limits.check_count(info.name, len(wanted))
    frames = room.make(info.name, len(wanted), height, width, options.limits)
    given = [min(max(frame, 0), info.num_frames - 1) for frame in wanted]
    nearest = options.on_error == "nearest"
    buffer = Whole(room.pictures(frames).numpy())
    order = Order(media, given, (height, width), buffer, options.resize, options.interpolation, nearest)
    with (
        shared_cores(options.workers) as workers,
        fill(order, workers=workers, deadline=options.deadline, decoders=decoders) as filled,
    ):
        for _ in filled:
            pass
    indices = [order.replaced.get(frame, frame) for frame in given]
    if max(given) == info.num_frames - 1:  # decoding came to the end
        info = replace(info, num_frames_exact=True)
    replaced = {asked: shown for asked, shown in zip(wanted, indices, strict=True) if asked != shown}
    return DecodedVideo(frames, indices, media.seconds[indices].tolist(), info, replaced)
