"""Where should a video be cut? Equal cubes, cubes cut at the momentum, and cubes that learned where to begin.

    python -m examples.benchmarks.cubes                      # trains, asks, writes the tables; goes on where it stopped
    python -m examples.benchmarks.cubes --seeds 0 --ratios 8 --clips 100

Clips of 64 frames in which things happen in one stretch of 16, in two of 8, or anywhere. Everything is stock: Trainer
trains the weights that quickprefill.apply() adds (nothing else of the model), the model's forward answers. Each trained
way has a control with equal cubes and one with cubes cut at the momentum, which train as long and as much.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

import quickprefill
from examples.benchmarks.cubes_report import plot_curves, plot_example, summarise, table
from examples.benchmarks.cubes_training import TRAINED, cube_starts, train, true_changes
from examples.benchmarks.quality import prepare_work, weights_stamp, write_json
from examples.needle.clip import through_h264
from examples.needle.cubes_data import FRAMES, SETS, Prompts, scene
from examples.needle.tasks import ask
from quickprefill.policies import Cubes
from quickprefill.policies.shared.cutting import momenta
from quickprefill.versions import stacked_features

RESULTS = Path("examples/benchmarks/results/cubes")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/tiny-qwen2.5-vl")
    parser.add_argument("--ratios", nargs="+", type=int, default=[8, 4], help="slices to a cube, on average")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(TRAINED), choices=list(TRAINED), help="what is trained")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--clips", type=int, default=600, help="test clips of each set")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=3, help="clips in a batch, four questions each")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--work", type=Path, default=Path(".cache/cubes"), help="checkpoints and answers")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Train and ask what is not done yet, then write the table, the JSON and the plots."""
    arguments = parse_arguments(argv)
    settings = {
        **{name: getattr(arguments, name) for name in ("model", "steps", "batch", "learning_rate")},
        "weights": weights_stamp(arguments.model),
        "frames": FRAMES,
    }
    prepare_work(arguments.work, settings)
    ways: dict[str, Any] = {"unpruned": None}
    curves = {}
    for ratio in arguments.ratios:
        for gate in ("fixed", "momentum"):
            ways[f"{gate}, {ratio}x"] = Cubes(frames_per_cube=2 * ratio, gate=gate)
    for ratio in arguments.ratios:
        for seed in arguments.seeds:
            for name in arguments.ways:
                way = f"{name}, {ratio}x, seed {seed}"
                ways[way], curves[way] = train(arguments, name, ratio, seed)
    verdicts = {place: {way: ask_all(arguments, place, way, ways[way]) for way in ways} for place in arguments.sets}
    summary = {"settings": {**settings, "clips": arguments.clips}, **summarise(verdicts), "curves": curves}
    write_json(arguments.output.with_suffix(".json"), summary)
    arguments.output.with_suffix(".md").write_text(table(summary))
    if curves:
        plot_curves(curves, arguments.output.with_name(arguments.output.name + "_training.png"))
    draw_example(arguments.model, ways, arguments.output.with_name(arguments.output.name + "_example.png"))
    print(table(summary))
    return summary


def ask_all(arguments: argparse.Namespace, place: str, way: str, patch: Cubes | Path | None) -> list[dict[str, Any]]:
    """Every question about every test clip of one set, answered in one way: a record for each clip."""
    folder = arguments.work / "answers" / place.replace(" ", "_") / way.replace(", ", "_").replace(" ", "")
    todo = [clip for clip in range(arguments.clips) if not (folder / f"{clip:04d}.json").exists()]
    if todo:
        model, prompts = load(arguments.model)
        patched(model, patch)
        for clip in tqdm(todo, desc=f"{place}: {way}", unit="clip"):
            write_json(folder / f"{clip:04d}.json", answers(model, prompts, place, clip))
    return [json.loads((folder / f"{clip:04d}.json").read_text()) for clip in range(arguments.clips)]


def load(folder: str) -> tuple[Any, Prompts]:
    """A checkpoint, and what makes its inputs."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, Prompts(AutoProcessor.from_pretrained(folder))


def patched(model: Any, patch: Cubes | Path | None) -> Any:
    """The model, patched with a policy or with an adapter."""
    if isinstance(patch, Path):
        return quickprefill.load_adapter(model, patch).eval()
    return model if patch is None else quickprefill.apply(model, policy=patch, trace=True)


def answers(model: Any, prompts: Prompts, place: str, clip: int) -> dict[str, Any]:
    """What a model says to all questions about a test clip, which has passed the codec: right or not, by task."""
    own = scene("test", clip, SETS[place])
    asked = ask(own)
    inputs = prompts.questions(through_h264(own), asked)
    with torch.inference_mode():
        said = model(**inputs, logits_to_keep=1).logits[:, -1].argmax(dim=-1)
    right = (said == prompts.answer_ids(asked)).tolist()
    return {"tasks": [question.task for question in asked], "right": [int(one) for one in right]}


def draw_example(folder: str, ways: dict[str, Cubes | Path | None], path: Path, clip: int = 1) -> None:
    """Where one test clip with two stretches is cut, in each way whose name is not of another seed than 0."""
    own = scene("test", clip, SETS["two stretches"])
    cuts, moved = {}, []
    for way, patch in ways.items():
        model, prompts = load(folder)
        inputs = prompts.questions(through_h264(own), ask(own)[:1])
        with torch.inference_mode():
            if patch is None:
                grid = inputs["video_grid_thw"]
                features = stacked_features(model.model.get_video_features(inputs["pixel_values_videos"], grid))
                slices = features.view(int(grid[0, 0]), -1, features.shape[-1])
                moved = [float(one.norm(dim=-1).mean()) for one in momenta(slices, Cubes.alpha)]
            elif "seed" not in way or way.endswith("seed 0"):
                patched(model, patch)(**inputs, logits_to_keep=1)
                cuts[way] = cube_starts(model)
    plot_example(true_changes(own), moved, cuts, path)


if __name__ == "__main__":
    main()
