"""quickdecode: read the frames that a video model asks for, on every core, straight to the size it wants.

    probe(source)                 what is in the file
    read_video(source, ...)       frames as a (T, 3, H, W) uint8 tensor; read_videos for several sources
    stream_video(source, ...)     the same frames, a few at a time, in order
    VideoReader(source, ...)      a file kept open for many small reads
    register() / unregister()     serve other libraries with the above, and stop doing so

The folders follow the data, and import only from what comes before them: threads -> source -> index -> plan -> decode,
then opening.py, read.py, stream.py and reader.py, which go through all of these, then lazy -> hosts.
Importing this package changes nothing outside it.
"""

from .decoded import DecodedVideo, FrameBlock
from .errors import (
    DecodeError,
    FrameIndexError,
    HostError,
    LimitError,
    QuickDecodeError,
    ReadTimeoutError,
    RequestError,
    SourceError,
)
from .hosts import register, unregister
from .index.media import VideoInfo
from .read import probe, read_video, read_videos
from .reader import VideoReader
from .source.allowed import CODECS, FORMATS
from .source.limits import Limits
from .stream import VideoStream, stream_video

__all__ = [
    "CODECS",
    "FORMATS",
    "DecodeError",
    "DecodedVideo",
    "FrameBlock",
    "FrameIndexError",
    "HostError",
    "LimitError",
    "Limits",
    "QuickDecodeError",
    "ReadTimeoutError",
    "RequestError",
    "SourceError",
    "VideoInfo",
    "VideoReader",
    "VideoStream",
    "probe",
    "read_video",
    "read_videos",
    "register",
    "stream_video",
    "unregister",
]
