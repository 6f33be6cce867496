"""Time to first token, peak memory and cache: stock generate(), its prefill_chunk_size, and quickprefill, side by side.

    python examples/benchmarks/prefill.py                                  # 4k and 16k video tokens
    python examples/benchmarks/prefill.py --tokens 4096 --runs 5 --ways stock keep=0.5 vidcom2=0.25
    python examples/benchmarks/prefill.py --shape 7b --group-frames 64 --tokens 4096 16384 32768 65536 131072 262144
    python examples/benchmarks/prefill.py --shape 3b --group-frames 64 --tokens 230400 --device-gib 24  # 7,200 frames
    python examples/benchmarks/prefill.py --family qwen3_vl                # the same sizes, another family
    python examples/benchmarks/prefill.py --launches  # kernels of a group at the 7B shape, counted without a GPU
    python examples/benchmarks/prefill.py --ways stock kvpress=0.5  # KnormPress; kvpress needs transformers < 5.3

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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import quickprefill
from quickprefill.budget.flops import layer_flops, vision_flops
from quickprefill.hosts import FAMILIES
from quickprefill.policies import Cubes, KeyNorm, PruneVid, VidCom2

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.benchmarks.launches import count_launches
from examples.benchmarks.prefill_report import plot, table
from examples.benchmarks.random_model import add_arguments, build_inputs, build_model, check_arguments, title
from examples.benchmarks.result_files import RESULTS, environment, load, save
from examples.quickstart import FirstToken, PeakMemory

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
        "cubes": lambda: ({"keep": number, "policy": "cubes"}, {}),
        "learned_cubes": lambda: ({"keep": number, "policy": Cubes(gate="learned", resampler="attention")}, {}),
        "prunevid": lambda: ({"policy": PruneVid(layer=4, scope="group")}, {}),
        "kvpress": lambda: (None, {}),
    }
    if kind not in ways:
        raise SystemExit(f"--ways takes {', '.join(ways)}, with a number behind =, as in keep=0.5; got {name!r}")
    return ways[kind]()


def patched(model: Any, name: str, group_frames: int | None) -> contextlib.AbstractContextManager[Any]:
    """The model as that way wants it."""
    config, _ = way_named(name)
    if config is not None:
        return quickprefill.patched(model, quickprefill.QuickPrefillConfig(group_frames=group_frames, **config))
    if name.startswith("kvpress"):
        from kvpress import KnormPress

        return KnormPress(compression_ratio=1 - float(name.partition("=")[2]))(model)
    return contextlib.nullcontext()


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
    host = FAMILIES[model.config.model_type]
    geometry, (grid,) = host.geometry(model.model), host.grids(model.model, inputs)
    vision = vision_flops(geometry, grid.num_tokens, grid.slice_tokens)
    return stock_flops(geometry, inputs["input_ids"].shape[1]) + vision, vision


def stock_flops(geometry: Any, length: int) -> float:
    """FLOPs of all decoder layers over a whole prompt."""
    return float(geometry.layers * layer_flops(geometry, length, 0))


def measure(
    model: Any, inputs: dict[str, torch.Tensor], name: str, group_frames: int | None, new_tokens: int = 1
) -> dict[str, Any]:
    """One generate() call."""
    config, options = way_named(name)
    with patched(model, name, group_frames), PeakMemory() as peak:
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
    try:
        values = measure(model, inputs, name, arguments.group_frames, arguments.new_tokens)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"out_of_memory": True}
    return {"matmul_rate": rate, **values}


def measure_apart(arguments: argparse.Namespace, num_tokens: int, name: str) -> dict[str, Any]:
    """measure() in a process of its own."""
    options = ["--tokens", str(num_tokens), "--family", arguments.family, "--shape", arguments.shape]
    options += ["--new-tokens", str(arguments.new_tokens)]
    options += [] if arguments.group_frames is None else ["--group-frames", str(arguments.group_frames)]
    command = [sys.executable, __file__, "--one", name, *options]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    values: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return values


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    ways = ["stock", "chunk=1024", "keep=1", "keep=0.5", "keep=0.25", "progressive=0.25", "vidcom2=0.25"]
    parser.add_argument("--ways", nargs="+", default=[*ways, "value_norm=0.5", "query_attention=0.5", "prunevid"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--group-frames", type=int, help="default: quickprefill's own, by tokens")
    parser.add_argument("--new-tokens", type=int, default=9, help="tokens to generate, at least 2")
    add_arguments(parser)
    parser.add_argument("--launches", action="store_true", help="count kernels of a group instead")
    parser.add_argument("--device-gib", type=float, help="take no more of the GPU's memory than this")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
    if arguments.family not in FAMILIES:
        parser.error(f"--family {arguments.family}: quickprefill serves {', '.join(sorted(FAMILIES))}")
    return arguments


def main(argv: list[str] | None = None) -> dict[str, Any]:
    arguments = parse(argv)
    if arguments.launches:
        return count_launches(arguments.results)
    device = "gpu" if torch.cuda.is_available() else "cpu"
    if arguments.device_gib is not None:
        _, total = torch.cuda.mem_get_info()
        torch.cuda.set_per_process_memory_fraction(arguments.device_gib * 2**30 / total)
    if arguments.one or device == "gpu":
        model = build_model(arguments.shape, family=arguments.family)
        measure(model, build_inputs(64, model), arguments.one or "stock", arguments.group_frames)  # start-up
    if arguments.one:
        inputs = build_inputs(arguments.tokens[0], model)
        values = timed(model, inputs, arguments.one, arguments)
        print(json.dumps(values))
        return values
    limit = "" if arguments.device_gib is None else f"_{arguments.device_gib:g}gib"
    peers = {"kvpress": version("kvpress")} if any(name.startswith("kvpress") for name in arguments.ways) else {}
    path = arguments.results / f"prefill_{'_'.join([title(arguments), device, *peers])}{limit}.json"
    results = load(path, {**environment(arguments), "new_tokens": arguments.new_tokens, **peers})
    for tokens in arguments.tokens:
        inputs = build_inputs(tokens, model) if device == "gpu" else {}
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
                print(f"{tokens} {name} {runs[-1].get('first_token_s', float('inf')):.2f} s", flush=True)
                save(path, results, table(results))
    print(table(results))
    plot(results, path.with_suffix(".png"))
    return results


if __name__ == "__main__":
    main()
