"""Why a score forgets: how many of the tokens that show something asked for are among those it keeps, layer by layer.

    python -m examples.benchmarks.needle_ranks
    python -m examples.benchmarks.needle_ranks --model FOLDER --output FILE       # a checkpoint of any family

For every scoring policy and both directions of the norms: the share of the tokens on which a symbol (or the lamp)
stands that a quarter-sized cache would keep. 25 % is what chance keeps; a score well below it throws away just what is
asked for. All scores are taken from one unpruned pass, in groups as the prefill would cut them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from tqdm import tqdm

import quickdecode
import quickprefill
from examples.needle.answering import Answerer
from examples.needle.clip import frame_times, write_clip
from examples.needle.paint import FRAME_SIZE, lamp_box, symbol_box
from examples.needle.scene import Difficulty, Scene, sample_scene
from examples.needle.tasks import ask
from examples.needle.vocabulary import SHAPES
from quickprefill.budget.counts import select
from quickprefill.hosts import FAMILIES
from quickprefill.policies import GroupKV, KeyNorm, OutputNorm, QueryAttention, Scorer, ValueNorm
from quickprefill.prompt.spans import Grid

GROUP_FRAMES = 16
SCORERS: dict[str, Any] = {
    "key_norm (small)": KeyNorm(),
    "key_norm, per head": KeyNorm(per_head=True),
    "key_norm, large": KeyNorm(largest=True),
    "value_norm (large)": ValueNorm(),
    "value_norm, per head": ValueNorm(per_head=True),
    "value_norm, small": ValueNorm(largest=False),
    "output_norm": OutputNorm(),
    "query_attention": QueryAttention(),
}


@dataclass(frozen=True)
class Recorder(Scorer):
    """Keeps nothing back: it looks at what each scorer would keep of every group, and lets the first tokens stay."""

    name: ClassVar[str] = "recorder"
    slice_tokens: int = 4
    group_slices: int = GROUP_FRAMES // 2
    keep: float = 0.25

    seen: ClassVar[dict[tuple[str, int], list[torch.Tensor]]] = {}

    @property
    def uses_question(self) -> bool:
        return True

    @property
    def uses_residual(self) -> bool:
        return True

    def score(self, kv: GroupKV) -> torch.Tensor:
        """(1, N) zeros; fills `seen` with (heads or 1, N) booleans of what each scorer keeps."""
        step = self.group_slices * self.slice_tokens
        for name, scorer in SCORERS.items():
            kept = []
            for start in range(0, kv.num_tokens, step):
                part = _part(kv, start, min(start + step, kv.num_tokens), self.keep)
                scores = scorer.score(part).flatten(0, -2)
                kept.append(torch.zeros_like(scores).scatter(1, select(scores, part.num_kept), 1.0))
            self.seen.setdefault((name, kv.layer), []).append(torch.cat(kept, dim=1).mean(0))
        return torch.zeros(1, kv.num_tokens)


def _part(kv: GroupKV, start: int, stop: int, keep: float) -> GroupKV:
    return replace(
        kv,
        keys=kv.keys[..., start:stop, :],
        values=kv.values[..., start:stop, :],
        residual=None if kv.residual is None else kv.residual[:, start:stop],
        num_kept=max(round(keep * (stop - start)), 1),
    )


def tokens_showing(scene: Scene, grid: Grid) -> dict[str, np.ndarray]:
    """What -> which tokens show it, (N,) booleans in (t, h, w) order."""
    times, pixels = frame_times(scene).reshape(grid.slices, -1), FRAME_SIZE // grid.width
    shows = {}
    boxes = {f"the {shape}": (symbol, symbol_box(symbol)) for shape in SHAPES for symbol in scene.appearances(shape)}
    for name, (symbol, box) in {**boxes, "the lamp": (None, lamp_box())}.items():
        rows, columns = (np.zeros(grid.width, bool) for _ in range(2))
        for places, (low, high) in ((rows, box[:2]), (columns, box[2:])):
            places[low // pixels : (high - 1) // pixels + 1] = True
        seen = np.ones(len(times), bool)
        if symbol is not None:
            seen = ((times >= symbol.start) & (times < symbol.stop)).any(1)
        shows[name] = (seen[:, None, None] & rows[:, None] & columns).reshape(-1)
    return shows


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run, print the table, write it with the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="examples/tiny-qwen2.5-vl")
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--frame-size", type=int, default=56)
    parser.add_argument("--work", type=Path, default=Path(".cache/quality"))
    parser.add_argument("--output", type=Path, default=Path("examples/benchmarks/results/needle_ranks"))
    arguments = parser.parse_args(argv)
    answerer = Answerer(arguments.model, frame_size=arguments.frame_size)
    host = FAMILIES[answerer.model.config.model_type]
    shares: dict[str, dict[str, list[list[float]]]] = {}
    quickdecode.register()
    try:
        for clip in tqdm(range(arguments.clips), desc="clips"):
            scene = sample_scene("test", clip, Difficulty(frames=arguments.frames))
            path = arguments.work / "ranks" / f"{arguments.frames:05d}-{clip:04d}.mp4"
            if not path.exists():
                write_clip(scene, path, oversample=2)
            video = answerer.watch(path, arguments.frames)
            colours = [question for question in ask(scene) if question.text.startswith("What colour was the s")]
            inputs = answerer.prepare(video, colours[0])
            (grid,) = host.grids(answerer.model.model, inputs)
            recorder = Recorder(
                slice_tokens=grid.slice_tokens, group_slices=GROUP_FRAMES * grid.slices // arguments.frames
            )
            recorder.seen.clear()
            with quickprefill.patched(answerer.model, keep=0.25, group_frames=arguments.frames, policy=recorder):
                answerer.answer(inputs, max_new_tokens=1)
            for what, tokens in tokens_showing(scene, grid).items():
                for (name, layer), kept in recorder.seen.items():
                    layers = shares.setdefault(what, {}).setdefault(name, [[] for _ in range(answerer.num_layers)])
                    layers[layer].append(float(kept[0][torch.from_numpy(tokens)].mean()))
    finally:
        quickdecode.unregister()
    kept = {what: {name: np.mean(layers, 1).tolist() for name, layers in by.items()} for what, by in shares.items()}
    results = {"model": arguments.model, "frames": arguments.frames, "clips": arguments.clips, "kept": kept}
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(table(results))
    print(table(results))
    return results


def table(results: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        f"Model `{results['model']}`, {results['clips']} clips of {results['frames']} frames: share of the tokens that",
        "show the thing which each score keeps at keep=0.25, by layer. Chance is 25 %; the question: a colour.",
    ]
    for what, by in results["kept"].items():
        layers = range(len(next(iter(by.values()))))
        lines += ["", f"### {what}", "", "| score | " + " | ".join(f"layer {layer}" for layer in layers) + " | mean |"]
        lines.append("|---" * (len(layers) + 2) + "|")
        lines += [
            f"| {name} | " + " | ".join(f"{share:.0%}" for share in shares) + f" | {np.mean(shares):.0%} |"
            for name, shares in by.items()
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
