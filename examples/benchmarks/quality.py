"""How much each policy forgets: accuracy on the needle suite, unpruned and pruned, for any video checkpoint.

    python -m examples.benchmarks.quality --model examples/tiny-qwen2.5-vl
    python -m examples.benchmarks.quality --model Qwen/Qwen3-VL-8B-Instruct --frame-size 224 --frames 64
    python -m examples.benchmarks.quality --model llava-hf/llava-onevision-qwen2-7b-ov-hf --frame-size 384 --frames 64

    python -m examples.benchmarks.quality --bursts 8 8 --frames 64 --policies cubes cubes_fixed --keeps 0.25 0.125

With --bursts, all that happens lies in stretches of so many frames. Each clip is a real file, read as users of the
family read it and answered by the stock generate(), unpatched and patched. Every clip's answers are a file of their own
in --work: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import transformers
from tqdm import tqdm

import quickdecode
import quickprefill
from examples.benchmarks.quality_report import plot, summarise, table
from examples.needle.answering import Answerer
from examples.needle.suite import clip_file, clip_scene
from examples.needle.tasks import Question, ask
from quickprefill import POLICIES, QuickPrefillConfig
from quickprefill.policies import Cubes, PruneVid, VidCom2

WAYS = sorted([*POLICIES, "cubes_fixed"])
"""Policies by name, and cubes of equal length."""
CUBES = {"cubes_fixed": Cubes(gate="fixed")}
FORMAT = 2
"""Version of the files in --work; files of another version are refused."""


class ResultError(ValueError):
    """Results in --work that do not belong to this run."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/tiny-qwen2.5-vl", help="folder or hub name of a checkpoint")
    parser.add_argument("--policies", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--keeps", nargs="+", type=float, default=[1.0, 0.5, 0.25, 0.1])
    parser.add_argument("--frames", nargs="+", type=int, default=[64, 128, 256, 1024])
    parser.add_argument("--clips", nargs="+", type=int, default=[40], help="test clips, one number or one per length")
    parser.add_argument("--bursts", nargs="+", type=int, default=[], help="frames of each stretch where things happen")
    parser.add_argument("--spacing", type=float, default=0.5, help="seconds between two frames")
    parser.add_argument("--oversample", type=int, default=2, help="frames in the file for each frame that is read")
    parser.add_argument("--group-frames", type=int, default=64)
    parser.add_argument("--frame-size", type=int, default=56, help="height and width that frames are resized to")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", help="of the weights, such as bfloat16; auto: the checkpoint's")
    parser.add_argument("--work", type=Path, default=Path(".cache/quality"), help="clips, and answers to resume from")
    parser.add_argument("--output", type=Path, default=Path("examples/benchmarks/results/quality"))
    arguments = parser.parse_args(argv)
    if len(arguments.clips) == 1:
        arguments.clips *= len(arguments.frames)
    if len(arguments.clips) != len(arguments.frames):
        parser.error(f"--clips needs one number, or one for each of the {len(arguments.frames)} lengths in --frames")
    return arguments


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run what is not done yet, then write the table, the JSON and the plot."""
    arguments = parse_arguments(argv)
    settings = run_settings(arguments)
    prepare_work(arguments.work, settings)
    lengths = zip(arguments.frames, arguments.clips, strict=True)
    jobs = [(frames, clip) for frames, clips in lengths for clip in range(clips)]
    todo = [job for job in jobs if not answers_path(arguments.work, *job).exists()]
    if todo:
        quickdecode.register()
        answerer = Answerer(
            arguments.model, frame_size=arguments.frame_size, device=arguments.device, dtype=arguments.dtype
        )
        try:
            for job in tqdm(todo, unit="clip", desc="clips", smoothing=0):
                write_json(answers_path(arguments.work, *job), answer_clip(answerer, arguments, *job))
        finally:
            quickdecode.unregister()
    records = [json.loads(answers_path(arguments.work, *job).read_text()) for job in jobs]
    summary = {"settings": settings, **summarise(records)}
    write_json(arguments.output.with_suffix(".json"), summary)
    arguments.output.with_suffix(".md").write_text(table(summary))
    plot(summary, arguments.output.with_suffix(".png"))
    print(table(summary))
    return summary


def run_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the answers depend on."""
    names = ("model", "policies", "keeps", "bursts", "spacing", "oversample", "group_frames", "frame_size", "dtype")
    return {
        "format": FORMAT,
        "transformers": transformers.__version__,
        "weights": weights_stamp(arguments.model),
        **{name: getattr(arguments, name) for name in names},
    }


def weights_stamp(model: str) -> str | None:
    """A number that changes with the weights of a local checkpoint."""
    file = Path(model) / "model.safetensors"
    if not file.exists():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def prepare_work(work: Path, settings: dict[str, Any]) -> None:
    """Claim the folder for these settings. Raises ResultError if it holds answers of other ones."""
    file = work / "settings.json"
    if not file.exists():
        write_json(file, settings)
        return
    found = json.loads(file.read_text())
    differing = sorted(name for name in {*found, *settings} if found.get(name) != settings.get(name))
    if differing:
        changes = "; ".join(f"{name}: {found.get(name)!r} there, {settings.get(name)!r} now" for name in differing)
        raise ResultError(
            f"{work} holds answers of another run ({changes}); name another folder with --work, or delete that one"
        )


def answers_path(work: Path, frames: int, clip: int) -> Path:
    """Where one clip's answers are kept."""
    return work / "answers" / f"{frames:05d}-{clip:04d}.json"


def answer_clip(answerer: Answerer, arguments: argparse.Namespace, frames: int, clip: int) -> dict[str, Any]:
    """Every question about one clip, asked in every way."""
    scene = clip_scene(frames, clip, spacing=arguments.spacing, bursts=arguments.bursts)
    path = clip_file(arguments.work / "clips", scene, clip, oversample=arguments.oversample)
    video = answerer.watch(path, frames)
    questions = ask(scene)
    inputs = [answerer.prepare(video, question) for question in questions]
    noise = [answerer.prepare(video.noise(clip), question) for question in questions]
    ways = {"full": ask_all(answerer, inputs, questions), "blind": ask_all(answerer, noise, questions)}
    for keep in arguments.keeps:
        for policy in arguments.policies if keep < 1 else arguments.policies[:1]:  # at keep=1 no policy is asked
            with quickprefill.patched(answerer.model, way_config(policy, keep, answerer.num_layers, arguments)):
                ways[f"{policy if keep < 1 else 'patched'}@{keep:g}"] = ask_all(answerer, inputs, questions)
    return {
        "frames": frames,
        "clip": clip,
        "questions": [{"task": question.task, "answer": question.answer} for question in questions],
        "ways": ways,
    }


def way_config(policy: str, keep: float, num_layers: int, arguments: argparse.Namespace) -> QuickPrefillConfig:
    """The config that lets a policy keep about that share of the video in the cache.

    PruneVid's merging leaves about half at its default cluster_ratio, and its selection the rest of the way; it selects
    behind the first third of the layers, as in the paper.
    """
    frames = arguments.group_frames
    if keep < 1 and policy == "vidcom2":
        return QuickPrefillConfig(group_frames=frames, policy=VidCom2(retention_ratio=keep))
    if keep < 1 and policy == "prunevid":
        prunevid = PruneVid(keep_ratio=min(2 * keep, 1.0), layer=num_layers // 3)
        return QuickPrefillConfig(group_frames=frames, policy=prunevid)
    chosen = "key_norm" if policy in ("vidcom2", "prunevid") else policy
    return QuickPrefillConfig(keep=keep, group_frames=frames, policy=CUBES.get(chosen, chosen))


def ask_all(answerer: Answerer, inputs: list[Any], questions: list[Question]) -> dict[str, Any]:
    """Texts, verdicts and stored bytes of one way of answering."""
    answers = [answerer.answer(one) for one in inputs]
    return {
        "texts": [answer.text for answer in answers],
        "right": [answer.says(question.answer) for answer, question in zip(answers, questions, strict=True)],
        "bytes": [answer.cache_bytes for answer in answers],
    }


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
