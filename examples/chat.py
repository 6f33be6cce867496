"""Talk with a stock video LLM about files: python examples/chat.py --context talk.mp4 "What is it about?" "Who speaks?"

Each ITEM of --context is a file, a video or an image by its extension, or text where there is no such file. Text asks
about the files before it and gets an answer; later questions see all that was said. Where --context does not end with a
question, turns are read from stdin, one a line, files among its words:

    > talk.mp4 What is it about?

--adapter patches the model with what examples/train_cubes.py has trained, --frames-per-cube cuts videos into cubes
without any training, --cubes says from which second to which each of them goes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer

import quickdecode
import quickprefill
from quickprefill.policies import Cubes

sys.path.insert(0, str(Path(__file__).parents[1]))
from examples.cubes.adapter import adapter_config, sampled_fps
from examples.cubes.data import DataError
from examples.cubes.prompts import Media, model_inputs, read

TINY_MODEL = Path(__file__).parent / "tiny-qwen2.5-vl"
VIDEOS = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".gif"}
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


class Chat:
    """A conversation with a model; every turn is one stock generate() over all that was said."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._processor = AutoProcessor.from_pretrained(arguments.model)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = AutoModelForImageTextToText.from_pretrained(arguments.model, dtype="auto").to(device).eval()
        if arguments.adapter is not None:
            config = adapter_config(arguments.adapter, {}, trace=arguments.cubes)
            quickprefill.load_adapter(self._model, arguments.adapter, config)
        elif arguments.frames_per_cube is not None:
            policy = Cubes(frames_per_cube=arguments.frames_per_cube)
            quickprefill.apply(self._model, policy=policy, trace=arguments.cubes)
        self._messages: list[dict[str, Any]] = []
        self._media = Media()

    def ask(self, files: list[str], text: str) -> str:
        """The answer to a question about files, and about what was said before.

        Raises:
            DataError: a file cannot be read; the conversation is as before.
        """
        turn = {"role": "user", "content": [*map(self._part, files), {"type": "text", "text": text}]}
        new = read(self._processor, [turn], ", ".join(files))
        media = Media([*self._media.images, *new.images], [*self._media.videos, *new.videos])
        messages = [*self._messages, turn]
        inputs = model_inputs(self._processor, [messages], [media], prompt=True)
        inputs = {name: value.to(self._model.device) for name, value in inputs.items()}
        output = self._model.generate(
            **inputs,
            **sampling(self._arguments.temperature),
            max_new_tokens=self._arguments.max_new_tokens,
            streamer=TextStreamer(self._processor.tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        said = self._processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        self._messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": said}]}]
        self._media = media
        if self._arguments.cubes and new.videos:
            self._tell_cubes()
        return str(said).strip()

    def _part(self, file: str) -> dict[str, Any]:
        kind = kind_of(file)
        part: dict[str, Any] = {"type": kind, kind: file}
        if kind == "video":
            frames = self._arguments.frames
            part |= {"fps": self._arguments.fps, "max_frames": frames, "min_frames": min(4, frames)}
        if self._arguments.model == str(TINY_MODEL):  # which was made for such frames
            part |= {"resized_height": 56, "resized_width": 56}
        return part

    def _tell_cubes(self) -> None:
        for number, (_, metadata) in enumerate(self._media.videos):
            spans = quickprefill.report(self._model).cubes(sampled_fps(metadata), number)
            print(f"video {number}: " + ", ".join(f"{start:g} to {end:g} s" for start, end in spans))


def sampling(temperature: float) -> dict[str, Any]:
    """Options of generate(): greedy at 0."""
    if temperature:
        return {"do_sample": True, "temperature": temperature}
    return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def kind_of(item: str) -> str:
    """image, video or text.

    Raises:
        DataError: it is a file of another kind, or the name of an image or a video that is not there.
    """
    suffix = Path(item).suffix.lower()
    kind = "video" if suffix in VIDEOS else "image" if suffix in IMAGES else None
    if os.path.isfile(item):
        if kind is None:
            raise DataError(
                f"{item} is neither a video ({' '.join(sorted(VIDEOS))}) nor an image ({' '.join(sorted(IMAGES))})"
            )
        return kind
    if kind is not None and not any(letter.isspace() for letter in item):
        raise DataError(f"there is no file {item}")
    return "text"


def turns(items: list[str]) -> Iterator[tuple[list[str], str]]:
    """Files and a question at a time: those of --context, then, if it does not end with one, a line of stdin each."""
    files: list[str] = []
    for item in items:
        if kind_of(item) == "text":
            yield files, item
            files = []
        else:
            files.append(item)
    if items and not files:
        return
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        words = line.split()
        try:
            files += [word for word in words if kind_of(word) != "text"]
        except DataError as error:
            print(error, file=sys.stderr)
            continue
        text = " ".join(word for word in words if kind_of(word) == "text")
        if text:
            yield files, text
            files = []


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY_MODEL), help="name or folder of a checkpoint of any family")
    parser.add_argument("--adapter", help="folder of quickprefill.save_adapter(), or a checkpoint of its training")
    parser.add_argument("--frames-per-cube", type=float, help="cubes without training, of so many frames on average")
    parser.add_argument("--context", nargs="+", default=[], metavar="ITEM", help="files and questions, in order")
    parser.add_argument("--frames", type=int, default=420, help="at most, of a video")
    parser.add_argument("--fps", type=float, default=1.0, help="frames per second of video")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
    parser.add_argument("--cubes", action="store_true", help="print from which second to which each cube goes")
    arguments = parser.parse_args(argv)
    for name, least in (("frames", 2), ("max_new_tokens", 1), ("temperature", 0)):
        if not getattr(arguments, name) >= least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(arguments, name)}")
    if not arguments.fps > 0:
        parser.error(f"--fps must be above 0, got {arguments.fps}")
    if arguments.adapter is not None and arguments.frames_per_cube is not None:
        parser.error("--adapter brings its own cubes; leave out --frames-per-cube")
    if arguments.cubes and arguments.adapter is None and arguments.frames_per_cube is None:
        parser.error("--cubes needs a model that makes some: add --adapter FOLDER or --frames-per-cube N")
    return arguments


def main(argv: list[str] | None = None) -> list[str]:
    """Talk; returns the answers."""
    arguments = parse(argv)
    quickdecode.register()
    answers = []
    try:
        asked = turns(arguments.context)
        chat = Chat(arguments)
        for files, text in asked:
            try:
                answers.append(chat.ask(files, text))
            except DataError as error:
                if arguments.context and kind_of(arguments.context[-1]) == "text":
                    raise
                print(error, file=sys.stderr)
    except (DataError, quickprefill.QuickPrefillError) as error:
        sys.exit(f"chat.py: {error}")
    finally:
        quickdecode.unregister()
    return answers


if __name__ == "__main__":
    main()
