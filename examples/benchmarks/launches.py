"""How many kernels a group of video launches at the size of Qwen2.5-VL-7B: what a GPU's host must keep up with.

    python examples/benchmarks/prefill.py --launches

Nothing is computed: weights, pixels and cache lie on the meta device, and a dispatch mode counts the operators that
would launch a kernel (views and allocations launch none; one attention call is one). A group's count is the difference
between a prompt of nine groups and one of eight. Groups are 16 frames of 252 x 448, 1,152 tokens, so that the figures
stand beside each other; the last rows leave the group size to the package, which counts tokens that enter the decoder.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import quickprefill
from quickprefill.attention import group as group_attention
from quickprefill.policies import VidCom2

sys.path.insert(0, str(Path(__file__).parents[2]))
from examples.benchmarks.random_model import VIDEO, VISION_END, VISION_START, build_model
from examples.benchmarks.result_files import RESULTS, environment, save

SLICES, PATCHES = 8, (18, 32)
"""Temporal slices of a group, and patches of a slice: 144 tokens in each."""
QUESTION = 30

CONFIGS: dict[str, dict[str, Any]] = {
    "keep=1": {"keep": 1.0, "group_frames": 16},
    "keep=0.5": {"keep": 0.5, "group_frames": 16},
    "keep=0.5, query_attention": {"keep": 0.5, "group_frames": 16, "policy": "query_attention"},
    "keep=1, default groups": {"keep": 1.0},
    "keep=0.5, default groups": {"keep": 0.5},
    "keep=0.25, vidcom2 in groups, default groups": {"keep": 0.25, "policy": VidCom2(scope="group")},
}

_LAUNCHES_NOTHING = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::detach", "aten::_reshape_alias")


class Launches(TorchDispatchMode):
    """Counts operators on the meta device that are neither views nor allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        views = func.is_view or func._schema.name.startswith(_LAUNCHES_NOTHING) or "view" in func._schema.name
        self.count += any(tensor.is_meta for tensor in tensors) and not views
        return result


@contextlib.contextmanager
def attention_as_one_call() -> Iterator[None]:
    """On the meta device an attention kernel would come apart into its products."""
    stock, bias = torch.nn.functional.scaled_dot_product_attention, group_attention.causal_lower_right

    def one_call(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.zeros_like(query)

    torch.nn.functional.scaled_dot_product_attention = one_call
    group_attention.causal_lower_right = lambda *_: None
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = stock
        group_attention.causal_lower_right = bias


def build_prompt(slices: int) -> dict[str, torch.Tensor]:
    """A prompt with one video of so many slices, its pixels on the meta device."""
    height, width = PATCHES
    tokens = slices * height * width // 4
    ids = torch.tensor([[5, 6, 7, VISION_START, *[VIDEO] * tokens, VISION_END, *[8] * QUESTION]])
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        "pixel_values_videos": torch.empty(slices * height * width, 1176, device="meta"),
        "video_grid_thw": torch.tensor([[slices, height, width]]),
        "second_per_grid_ts": torch.tensor([1.0]),
    }


def launches(model: Any, slices: int, config: dict[str, Any]) -> tuple[int, quickprefill.Estimate]:
    """Kernels of a whole prefill."""
    inputs = build_prompt(slices)
    known = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    positions, _ = model.model.get_rope_index(**known)
    with torch.no_grad(), quickprefill.patched(model, **config), attention_as_one_call(), Launches() as mode:
        model(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
        return mode.count, quickprefill.estimate(model, inputs)


def table(model: Any, few: int = 8) -> dict[str, dict[str, float]]:
    """Launches of a group, and for each 1,000 tokens that enter the decoder."""
    rows = {}
    for name, config in CONFIGS.items():
        per_group = SLICES if "group_frames" in config else _slices_of_a_group(model, config)
        fewer, more = (launches(model, groups * per_group, config) for groups in (few, few + 1))
        entered = per_group * 144 * (0.25 if "vidcom2" in name else 1.0)
        count = (more[0] - fewer[0]) / (more[1].groups - fewer[1].groups)
        rows[name] = {"per_group": count, "entering_tokens": entered, "per_1000_tokens": 1000 * count / entered}
    return rows


def _slices_of_a_group(model: Any, config: dict[str, Any]) -> int:
    guess = quickprefill.estimate(model, build_prompt(840), **config)
    return 840 // guess.groups


def count_launches(results: Path = RESULTS) -> dict[str, dict[str, float]]:
    """Print the table and write it with its JSON."""
    rows = table(build_model("7b", device="meta"))
    lines = ["| way | launches of a group | entering tokens | launches for 1,000 of them |", "|---|---|---|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{value:.0f}' for value in row.values())} |")
    text = "\n".join(["# Kernels launched, 7B shape, SDPA", "", *lines, ""])
    print(text)
    machine = environment(argparse.Namespace(family="qwen2_5_vl", shape="7b", group_frames="16 or default"))
    save(results / "launches_7b.json", {"environment": machine, "rows": rows}, text)
    return rows
