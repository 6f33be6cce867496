"""Lines of JSON -> conversations in the form that chat templates and qwen-vl-utils take. Two forms, line by line:

    {"messages": [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "Who?"}]},
                  {"role": "assistant", "content": "Ann."}]}
    {"video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\\nWho?"},
                                         {"from": "gpt", "value": "Ann."}]}

The first is the preferred one: several images and videos, other turns before the last, options of a video (fps,
nframes, video_start, ...) are written as anywhere else. Media may also stand in lists "images" and "videos" beside it.
The second is Quicksviewer's (github.com/quicksviewer/quicksviewer), with "image", "caption", "start_sec", "end_sec".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

__all__ = ["DataError", "Lines"]

_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
_INSTRUCTIONS = (
    "Describe what happens.",
    "What is shown? Answer in detail.",
    "Write a caption.",
    "Summarise what can be seen, in order.",
)


class DataError(ValueError):
    """A line, or a file, that cannot be trained on; says which."""


class Lines(Dataset):  # type: ignore[type-arg]
    """The lines of one or more files, each checked once and read when it is asked for.

    Args:
        files: "a.jsonl#0_20000;b.jsonl*2": lines 0 to 19,999 of the one, twice all of the other.
        media: the folder that relative paths start from; None: the folder of each file.
        limits: options of every video that does not bring its own, as qwen-vl-utils calls them.

    Raises:
        DataError: a line is not of either form, or names a file that is not there.
    """

    def __init__(self, files: str, media: Path | None, limits: dict[str, Any]) -> None:
        self._media, self._limits = media, limits
        self._places: list[tuple[Path, int, int]] = []
        for file, first, last, times in _sources(files):
            places = [(file, number, offset) for number, offset in _offsets(file)]
            chosen = places[first:last]
            if not chosen:
                raise DataError(f"{file} has {len(places)} lines, none of them in {first}_{last or ''}")
            for place in chosen:
                self._read(place)
            self._places += chosen * times

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, number, _ = place = self._places[index]
        return {"messages": self._read(place), "where": f"{file}, line {number}"}

    def _read(self, place: tuple[Path, int, int]) -> list[dict[str, Any]]:
        path, number, offset = place
        with path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
        try:
            return conversation(json.loads(line), self._media or path.parent, number, self._limits)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{path}, line {number}: {why}") from error


def _sources(files: str) -> Iterator[tuple[Path, int, int | None, int]]:
    for part in files.split(";"):
        path, first, last, times = re.fullmatch(r"(.+?)(?:#(\d+)_(\d+))?(?:\*(\d+))?", part.strip()).groups()  # type: ignore[union-attr]
        if not Path(path).is_file():
            raise DataError(f"{path} does not exist; data is given as FILE, FILE#FIRST_LAST or FILE*TIMES, joined by ;")
        yield Path(path), int(first or 0), int(last) if last else None, int(times or 1)


def _offsets(path: Path) -> Iterator[tuple[int, int]]:
    """Number (from 1) and byte offset of each line that is not empty."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset
            offset += len(line)


def conversation(line: dict[str, Any], root: Path, number: int, limits: dict[str, Any]) -> list[dict[str, Any]]:
    """A line's messages: content always in parts, media with a path in each."""
    if "messages" in line:
        messages = [{"role": one["role"], "content": _parts(one["content"])} for one in line["messages"]]
        spare = {"image": _listed(line.get("images")), "video": _listed(line.get("videos"))}
    elif "conversations" in line or "caption" in line:
        spare = {"image": _listed(line.get("image")), "video": _listed(line.get("video"))}
        messages = _of_the_original(line, spare, number)
    else:
        raise ValueError('neither "messages" nor "conversations" nor "caption"')
    _fill(messages, spare)
    for message in messages:
        for part in message["content"]:
            _complete(part, root, limits)
    roles = [message["role"] for message in messages]
    if not set(roles) <= {"system", "user", "assistant"}:
        raise ValueError(f"roles must be system, user and assistant, got {roles}")
    if roles[-1:] != ["assistant"] or roles[0] == "assistant":
        raise ValueError(f"the first message must be a question and the last an answer to learn, got {roles}")
    if any(part["type"] != "text" for one in messages if one["role"] == "assistant" for part in one["content"]):
        raise ValueError("an answer holds an image or a video; media must stand in the user's messages")
    return messages


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{name: value for name, value in part.items() if value is not None} for part in content]


def _of_the_original(line: dict[str, Any], spare: dict[str, list[Any]], number: int) -> list[dict[str, Any]]:
    turns = line.get("conversations")
    if not turns:
        captions = _listed(line["caption"])
        asked = _INSTRUCTIONS[number % len(_INSTRUCTIONS)]
        turns = [
            {"from": "human", "value": asked},
            {"from": "gpt", "value": captions[number % len(captions)] if captions else ""},
        ]
    only = next((kind for kind, other in (("video", "image"), ("image", "video")) if not spare[other]), None)
    cut = {}
    if spare["video"]:
        cut = {new: line[old] for old, new in (("start_sec", "video_start"), ("end_sec", "video_end")) if old in line}
    spare["video"] = [{"video": video, **cut} for video in spare["video"]]
    messages = []
    for turn in turns:
        if turn["from"] not in _ROLES:
            raise ValueError(f'"from" must be one of {", ".join(_ROLES)}, got {turn["from"]!r}')
        parts = [
            {"type": only or piece[1:-1]} if piece in ("<image>", "<video>") else {"type": "text", "text": piece}
            for piece in (text.strip("\n") for text in re.split("(<image>|<video>)", turn["value"]))
            if piece
        ]
        messages.append({"role": _ROLES[turn["from"]], "content": parts})
    return messages


def _fill(messages: list[dict[str, Any]], spare: dict[str, list[Any]]) -> None:
    """Give the media beside the messages to the parts that have none, or else put them before the first question."""
    empty = [part for one in messages for part in one["content"] if part["type"] in spare and not _source(part)]
    given = {kind: len(media) for kind, media in spare.items()}
    if not empty:
        first = next((one["content"] for one in messages if one["role"] == "user"), [])
        empty = [{"type": kind} for kind in ("image", "video") for _ in range(given[kind])]
        first[:0] = empty
    wanted = {kind: sum(part["type"] == kind for part in empty) for kind in spare}
    if wanted != given:
        raise ValueError(f"there are placeholders for {wanted}, but {given} are given")
    for part in empty:
        media = spare[part["type"]].pop(0)
        part.update(media if isinstance(media, dict) else {part["type"]: media})


def _source(part: dict[str, Any]) -> Any:
    return next((part[name] for name in (part["type"], "path", "url") if part.get(name)), None)


def _complete(part: dict[str, Any], root: Path, limits: dict[str, Any]) -> None:
    """Where the file is, under the name that qwen-vl-utils knows; limits of a video."""
    kind = part["type"]
    if kind == "text":
        if not isinstance(part["text"], str):
            raise ValueError(f"a text must be a string, got {part['text']!r}")
        return
    if kind not in ("image", "video"):
        raise ValueError(f"a part must be of type text, image or video, got {kind!r}")
    source = _source(part)
    for name in ("path", "url"):
        part.pop(name, None)
    part[kind] = _found(source, root)
    if kind == "video":
        for name, value in limits.items():
            if name != "fps" or "nframes" not in part:
                part.setdefault(name, value)


def _found(source: Any, root: Path) -> Any:
    if isinstance(source, list):
        return [_found(one, root) for one in source]
    if not isinstance(source, str) or not source:
        raise ValueError(f"a file must be a path or a URL, got {source!r}")
    if "://" in source or source.startswith("data:"):
        return source
    path = root / source
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return str(path)
