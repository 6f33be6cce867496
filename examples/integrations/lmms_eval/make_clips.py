"""The clips and questions of the task needle_clips, the same as in examples/benchmarks/quality.py.

python -m examples.integrations.lmms_eval.make_clips --frames 64 --clips 40
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from examples.needle.suite import clip_file, clip_scene
from examples.needle.tasks import ask

FOLDER = Path(".cache/needle_clips")
"""Where needle_clips.yaml looks, from the folder in which lmms-eval is started."""


def main(argv: list[str] | None = None) -> Path:
    """Write a video a clip, and questions.jsonl with a line a question; returns the latter's path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=64, help="frames that the model gets of each clip")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    lines = []
    for clip in range(arguments.clips):
        scene = clip_scene(arguments.frames, clip)
        video = clip_file(arguments.output, scene, clip).resolve()
        for asked in ask(scene):
            lines.append({"video": str(video), "kind": asked.task, "question": asked.text, "answer": asked.answer})
    questions: Path = arguments.output / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{len(lines)} questions about {arguments.clips} clips in {questions}")
    return questions


if __name__ == "__main__":
    main()
