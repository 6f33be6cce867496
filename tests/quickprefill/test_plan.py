"""plan_row() by device: each has a fullest moment of its own."""

from dataclasses import replace

import pytest
import torch

from quickprefill.applying import configured
from quickprefill.budget.plan import plan_row
from quickprefill.policies import KeyNorm, VidCom2
from quickprefill.prompt.spans import find_videos
from tests.quickprefill.measured import Allocates, measured_model
from tests.tiny import VIDEO, Clip, make_inputs, prompt

CPU, OTHER, THIRD = torch.device("cpu"), torch.device("cpu", 1), torch.device("cpu", 2)


@pytest.fixture(scope="module")
def model():
    return measured_model()


def plan_on(model, *devices, vision=CPU, **options):
    """The plan of one video, with decoder layers and the tower on these devices."""
    inputs = make_inputs(prompt(5, Clip((40, 8, 8)), 12))
    core, host, config, _ = configured(model, None, {"group_frames": 4, **options})
    spans = find_videos(inputs["input_ids"][0], VIDEO, host.grids(core, inputs))
    geometry = replace(host.geometry(core), devices=devices, vision_device=vision)
    return plan_row(geometry, config, spans, inputs["input_ids"].shape[1], host.frames_per_slice(core))


@pytest.mark.parametrize(
    "options", [{"keep": 0.5}, {"keep": 0.5, "layer_decay": "linear"}, {"policy": VidCom2(0.25)}], ids=str
)
def test_devices_share_what_one_would_hold(model, options):
    one = plan_on(model, CPU, CPU, CPU, **options)
    two = plan_on(model, CPU, CPU, OTHER, **options)
    assert set(two.peak_bytes) == {CPU, OTHER}
    assert sum(two.reserved_bytes.values()) == one.reserved_bytes[CPU]
    assert one.peak_bytes[CPU] <= sum(two.peak_bytes.values())
    assert all(two.peak_bytes[device] <= one.peak_bytes[CPU] for device in (CPU, OTHER))
    assert (one.slots, one.stored, one.flops) == (two.slots, two.stored, two.flops)


def test_the_tower_and_whole_videos_are_on_the_towers_device(model):
    options = {"keep": 0.25, "policy": (Allocates(), KeyNorm())}
    plan = plan_on(model, CPU, OTHER, OTHER, vision=THIRD, **options)
    alone = plan_on(model, CPU, OTHER, OTHER, vision=THIRD, policy="uniform", keep=0.25)
    assert plan.reserved_bytes.keys() == {CPU, OTHER}
    tokens, row = 640, 128 * 4
    assert plan.activation_bytes[THIRD] == tokens * row + Allocates().workspace_bytes(tokens, 16, 128, 4, tokens // 2)
    assert plan.activation_bytes[THIRD] == plan.peak_bytes[THIRD] > alone.peak_bytes[THIRD]
    assert all(plan.peak_bytes[device] <= alone.peak_bytes[device] for device in (CPU, OTHER))


def test_pixels_on_their_way_to_a_gpu_are_counted(model):
    cuda = torch.device("cuda", 0)
    few, many = (plan_on(model, CPU, CPU, CPU, vision=cuda, group_frames=frames) for frames in (4, 80))
    slice_pixels = 64 * 96 * 4
    on_cpu = plan_on(model, CPU, CPU, CPU, vision=OTHER, group_frames=80)
    assert many.activation_bytes[cuda] - on_cpu.activation_bytes[OTHER] == 40 * slice_pixels  # a copy, none ahead
    assert few.activation_bytes[cuda] > 2 * 2 * slice_pixels
