"""Time to first token, peak memory and cache: stock generate(), its prefill_chunk_size, and quickprefill, side by side.

    python examples/benchmarks/prefill.py                                  # 4k and 16k video tokens
    python examples/benchmarks/prefill.py --tokens 4096 --runs 5 --ways stock keep=0.5 vidcom2=0.25

The model has random weights: about 90 M parameters (decoder 12 x 768, 12 heads over 2 key-value heads; vision tower
4 x 192), or with --shape 7b the size of Qwen2.5-VL-7B, built on the GPU. All ways take turns: on a GPU in one process,
on a CPU each time in a fresh one, because a process keeps the memory of what it did before. Figures are medians.
Results are written after every turn, and a second call goes on where the first stopped.

The floor of a way is the time that its matrix products would take at this machine's own rate for large ones, measured
in the same process: the work of vision tower, decoder layers and attention in FLOPs, elementwise work left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import quickprefill
from quickprefill.models import FAMILIES
from quickprefill.plan import plan_prompt, split_lengths, vision_flops
from quickprefill.policies import KeyNorm, PruneVid, VidCom2

sys.path.insert(0, str(Path(__file__).parents[1]))
from quickstart import FirstToken, PeakMemory

RESULTS = Path(__file__).parent / "results"
VIDEO, IMAGE, VISION_START, VISION_END, VOCABULARY = 4, 3, 1, 2, 16384
PATCHES = 16
"""Patches along each side of a frame: 64 tokens in a slice of two frames."""

SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "small": {
        "text": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
        | {"num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]}},
        "vision": {"depth": 4, "hidden_size": 192, "intermediate_size": 768, "num_heads": 3, "out_hidden_size": 768}
        | {"fullatt_block_indexes": [1, 3]},
    },
    "7b": {
        "text": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
        "vision": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        | {"out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]},
    },
}

Way = tuple[dict[str, Any] | None, dict[str, Any]]
"""Config of the patch (None: stock) and options of generate()."""


def way_named(name: str) -> Way:
    """What a name on the command line stands for."""
    kind, _, value = name.partition("=")
    number = float(value) if value else 0.0
    ways: dict[str, Callable[[], Way]] = {
        "stock": lambda: (None, {}),
        "chunk": lambda: (None, {"prefill_chunk_size": int(number)}),
        "keep": lambda: ({"keep": number}, {}),
        "progressive": lambda: ({"keep": number, "progressive_from": 0}, {}),
        "value_norm": lambda: ({"keep": number, "policy": "value_norm"}, {}),
        "query_attention": lambda: ({"keep": number, "policy": "query_attention"}, {}),
        "vidcom2": lambda: ({"policy": VidCom2(number)}, {}),
        "vidcom2+key_norm": lambda: ({"keep": number, "policy": (VidCom2(2 * number), KeyNorm())}, {}),
        "prunevid": lambda: ({"policy": PruneVid(layer=4, scope="group")}, {}),
    }
    if kind not in ways:
        raise SystemExit(f"--ways takes {', '.join(ways)}, with a number behind =, as in keep=0.5; got {name!r}")
    return ways[kind]()


def build_model(shape: str) -> Any:
    """A model with random weights, on the GPU in bf16 where there is one."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    parts = SHAPES[shape]
    config = Qwen2_5_VLConfig(
        text_config={"vocab_size": VOCABULARY, "max_position_embeddings": 1 << 20, "eos_token_id": None}
        | {"bos_token_id": None, "pad_token_id": 0, **parts["text"]},
        vision_config=parts["vision"],
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=shape == "small",
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    return model.to(dtype).eval()


def build_inputs(num_tokens: int, device: torch.device) -> dict[str, torch.Tensor]:
    """A prompt with one video of `num_tokens` tokens and a question of 24 words; the pixels are noise."""
    slices = num_tokens * 4 // PATCHES**2
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, VOCABULARY, (32,), generator=generator).tolist()
    ids = torch.tensor([[*words[:8], VISION_START, *[VIDEO] * num_tokens, VISION_END, *words[8:]]])
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids).to(device),
        "mm_token_type_ids": (2 * (ids == VIDEO).int()).to(device),
        "pixel_values_videos": torch.randn(slices * PATCHES**2, 1176, generator=generator).to(device),
        "video_grid_thw": torch.tensor([[slices, PATCHES, PATCHES]]).to(device),
        "second_per_grid_ts": torch.tensor([1.0]).to(device),
    }


class TokenTimes(FirstToken):
    """Notes also when the last token came."""

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        self.last = time.perf_counter() - self.start


def matmul_rate(model: Any, size: int = 2048) -> float:
    """FLOPs a second of large matrix products in the model's dtype on its device."""
    a, b = (torch.randn(size, size, device=model.device).to(model.dtype) for _ in range(2))
    times = 1 if model.device.type == "cpu" else 100
    rates = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(times):
            product = a @ b
        product[0, 0].item()
        rates.append(times * 2 * size**3 / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def work(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, float]:
    """FLOPs of a stock prefill, and how many of them are the vision tower's."""
    family = FAMILIES["qwen2_5_vl"]
    geometry, (grid,) = family.geometry(model), family.grids(model, inputs)
    groups, tail = split_lengths([grid], grid.slices, inputs["input_ids"].shape[1] - grid.num_tokens)
    plan = plan_prompt(geometry, quickprefill.QuickPrefillConfig(keep=1.0), groups, [grid], tail, finishing={0})
    return plan.flops, vision_flops(geometry, grid.num_tokens, grid.slice_tokens)


def measure(
    model: Any, inputs: dict[str, torch.Tensor], name: str, group_frames: int, new_tokens: int = 1
) -> dict[str, Any]:
    """One generate() call."""
    config, options = way_named(name)
    patch: Any = contextlib.nullcontext()
    if config is not None:
        patch = quickprefill.patched(model, quickprefill.QuickPrefillConfig(group_frames=group_frames, **config))
    with patch, PeakMemory() as peak:
        timer = TokenTimes()
        output = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            streamer=timer,
            return_dict_in_generate=True,
            **options,
        )
        report = quickprefill.report(model) if config is not None else None
    layers = output.past_key_values.layers
    flops, vision = work(model, inputs)
    return {
        "first_token_s": timer.seconds,
        "next_token_s": (timer.last - timer.seconds) / max(new_tokens - 1, 1),
        "peak_bytes": peak.bytes,
        "cache_bytes": sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
        "stages_s": {} if report is None else report.seconds,
        "flops": flops if report is None else report.flops,
        "vision_flops": vision,
    }


def timed(model: Any, inputs: dict[str, torch.Tensor], name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """measure(), and the machine's rate beside it."""
    rate = matmul_rate(model)
    return {"matmul_rate": rate, **measure(model, inputs, name, arguments.group_frames, arguments.new_tokens)}


def measure_apart(arguments: argparse.Namespace, num_tokens: int, name: str) -> dict[str, Any]:
    """measure() in a process of its own."""
    options = ["--tokens", str(num_tokens), "--shape", arguments.shape, "--group-frames", str(arguments.group_frames)]
    options += ["--new-tokens", str(arguments.new_tokens)]
    command = [sys.executable, __file__, "--one", name, *options]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    values: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return values


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to repeat the run."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "command": f"python examples/benchmarks/{Path(sys.argv[0]).name} " + " ".join(_without_folders(sys.argv[1:])),
        "commit": commit.stdout.strip(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else machine,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "quickprefill": quickprefill.__version__,
        "shape": arguments.shape,
        "group_frames": arguments.group_frames,
    }


def _without_folders(words: list[str]) -> list[str]:
    folders = {place + step for place, word in enumerate(words) if word in ("--results", "--folder") for step in (0, 1)}
    return [word for place, word in enumerate(words) if place not in folders]


def load(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Results to go on with: those of the same versions and settings, else none."""
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text())
        if all(stored["environment"].get(name) == now[name] for name in now.keys() - {"command", "commit"}):
            return stored
    return {"environment": now, "runs": {}}


def save(path: Path, results: dict[str, Any], page: str) -> None:
    """Write JSON, and the page beside it; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for target, text in ((path, json.dumps(results, indent=1) + "\n"), (path.with_suffix(".md"), page)):
        draft = target.with_name(target.name + ".draft")
        draft.write_text(text)
        os.replace(draft, target)


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the runs of one way; `own` is the policy's share of the time."""
    names = ("first_token_s", "next_token_s", "peak_bytes", "cache_bytes", "flops", "vision_flops", "matmul_rate")
    values = {name: statistics.median(run[name] for run in runs) for name in names}
    own = [sum(run["stages_s"].get(stage, 0.0) for stage in ("compress", "prune")) for run in runs]
    decode = [run["stages_s"].get("decode", 0.0) for run in runs]
    return {**values, "own_s": statistics.median(own), "decode_s": statistics.median(decode)}


def table(results: dict[str, Any]) -> str:
    """Markdown: medians, and each way's ratio to stock generate() of the same length."""
    env = results["environment"]
    lines = [
        f"# Prefill, {env['shape']} shape, groups of {env['group_frames']} frames",
        "",
        f"{env['machine']}; torch {env['torch']}, transformers {env['transformers']}; commit {env['commit']}; "
        f"`{env['command']}`.",
        "Medians over the runs. `of stock` below 1 is faster (or smaller) than stock generate(). `floor` is the time",
        "that the matrix products alone would take at the rate of large ones, `floor / s` its share of the time taken.",
        "`next` is the time of each further token, `policy` that in compress, scores, selection and gathering,",
        "`decoder` that in the decoder layers, followed by the share of their own floor in it. What PruneVid drops is",
        "not known beforehand: its work is an upper bound.",
    ]
    for tokens, ways in sorted(results["runs"].items(), key=lambda item: int(item[0])):
        lines += ["", f"## {tokens} video tokens", ""]
        names = ["way", "runs", "first token s", "of stock", "TFLOP", "floor s", "floor / s", "peak MiB", "of stock"]
        names += ["cache MiB", "next s", "policy s", "decoder s", "floor / s"]
        lines += [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
        stock = medians(ways["stock"]) if ways.get("stock") else None
        lines += [_line(name, runs, stock) for name, runs in ways.items() if runs]
    return "\n".join(lines) + "\n"


def _line(name: str, runs: list[dict[str, Any]], stock: dict[str, float] | None) -> str:
    values = medians(runs)
    mib = 2**20

    def ratio(key: str) -> str:
        return f"{values[key] / stock[key]:.2f}" if stock and stock[key] else ""

    rate, seconds = values["matmul_rate"], values["first_token_s"]
    floor = values["flops"] / rate

    def share(floor_s: float, of: float) -> str:
        return f"{floor_s / of:.0%}" if floor_s < of else ""

    own = " | |"
    if values["decode_s"]:
        decoder = (values["flops"] - values["vision_flops"]) / rate
        own = f"{values['own_s']:.2f} | {values['decode_s']:.2f} | {share(decoder, values['decode_s'])}"
    return (
        f"| {name} | {len(runs)} | {seconds:.2f} | {ratio('first_token_s')} | {values['flops'] / 1e12:.2f} | "
        f"{floor:.2f} | {share(floor, seconds)} | {values['peak_bytes'] / mib:.0f} | {ratio('peak_bytes')} | "
        f"{values['cache_bytes'] / mib:.1f} | {values['next_token_s']:.3f} | {own} |"
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Ratios to stock over video tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    lengths = sorted(results["runs"], key=int)
    names = list(dict.fromkeys(name for tokens in lengths for name in results["runs"][tokens]))
    panels = {"first_token_s": "time to first token", "cache_bytes": "stored cache"}
    for axis, (key, label) in zip(axes, panels.items(), strict=True):
        for name in names:
            points = [
                (int(tokens), medians(ways[name])[key] / medians(ways["stock"])[key])
                for tokens, ways in ((tokens, results["runs"][tokens]) for tokens in lengths)
                if name in ways and "stock" in ways
            ]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xscale="log", xlabel="video tokens", ylabel=f"{label}, of stock", ylim=(0, None))
    axes[1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    ways = ["stock", "chunk=1024", "keep=1", "keep=0.5", "keep=0.25", "progressive=0.25", "vidcom2=0.25"]
    parser.add_argument("--ways", nargs="+", default=[*ways, "value_norm=0.5", "query_attention=0.5", "prunevid"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--group-frames", type=int, default=16, help="quickprefill's own default")
    parser.add_argument("--new-tokens", type=int, default=9, help="tokens to generate, at least 2")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="small")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = parse(argv)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    if arguments.one or device == "gpu":
        model = build_model(arguments.shape)
        measure(model, build_inputs(64, model.device), arguments.one or "stock", arguments.group_frames)  # start-up
    if arguments.one:
        inputs = build_inputs(arguments.tokens[0], model.device)
        values = timed(model, inputs, arguments.one, arguments)
        print(json.dumps(values))
        return values
    path = arguments.results / f"prefill_{arguments.shape}_{device}.json"
    results = load(path, {**environment(arguments), "new_tokens": arguments.new_tokens})
    for tokens in arguments.tokens:
        inputs = build_inputs(tokens, model.device) if device == "gpu" else {}
        ways = results["runs"].setdefault(str(tokens), {})
        for turn in range(arguments.runs):
            for name in arguments.ways:
                runs = ways.setdefault(name, [])
                if len(runs) > turn:
                    continue
                if inputs:
                    runs.append(timed(model, inputs, name, arguments))
                else:
                    runs.append(measure_apart(arguments, tokens, name))
                print(f"{tokens} {name} {runs[-1]['first_token_s']:.2f} s", flush=True)
                save(path, results, table(results))
    print(table(results))
    plot(results, path.with_suffix(".png"))
    return results


if __name__ == "__main__":
    main()
