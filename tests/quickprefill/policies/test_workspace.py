"""workspace_bytes() against what is really alive inside compress()."""

import dataclasses

import pytest
import torch

from quickprefill.budget.counts import round_share
from quickprefill.policies import Cubes, PruneVid, VidCom2, VideoTokens
from quickprefill.prompt.spans import Grid
from tests.live_memory import PeakLiveBytes

SHAPES = [(64, 8, 9, 128), (300, 6, 6, 64), (600, 2, 2, 48), (24, 16, 16, 192), (8, 24, 24, 96), (5, 16, 16, 1024)]
POLICIES = [
    (Cubes(), 0.1),
    (Cubes(), 0.7),
    (Cubes(4), None),
    (Cubes(4, tokens_per_cube=4), None),
    (Cubes(gate="fixed"), 0.3),
    (VidCom2(), 0.1),
    (VidCom2(), 0.7),
    (VidCom2(0.25), None),
    (VidCom2(0.5, exact_total=True), None),
    (PruneVid.paper(), None),
    (PruneVid(cluster_ratio=0.3, min_cluster_tokens=0), None),
    (PruneVid(), 0.3),
    (PruneVid(select_tokens=False), 0.1),
    (PruneVid(select_tokens=False), 0.5),
    (PruneVid(select_tokens=False, scope="group"), 0.75),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that these videos go through in several blocks, as long ones do."""
    monkeypatch.setattr("quickprefill.policies.vidcom2._BLOCK", 1 << 17)
    monkeypatch.setattr("quickprefill.policies.shared.segments.BLOCK", 1 << 16)
    monkeypatch.setattr("quickprefill.policies.shared.merging.BLOCK", 1 << 16)


def measure(policy, shape, dtype, keep, behind=0):
    """Bytes measured and said, for a video in which everything moves."""
    *grid, channels = shape
    grid = Grid(*grid)
    rows = torch.randn(grid.num_tokens, channels + behind, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = VideoTokens(
        embeds=rows,
        positions=torch.zeros(3, grid.num_tokens, dtype=torch.long),
        source=torch.arange(grid.num_tokens),
        grid=grid,
        num_kept=None if keep is None else round_share(keep, grid.num_tokens),
        width=channels if behind else None,
    )
    weights = policy.new_weights(channels)
    if weights is not None:
        tokens = dataclasses.replace(tokens, weights=weights.to(dtype).eval())
    with torch.no_grad(), PeakLiveBytes() as peak:
        policy.compress(tokens)
    width, size, left = channels + behind, grid.slice_tokens, tokens.num_kept or policy.own_count(grid)
    return peak.bytes, policy.workspace_bytes(grid.num_tokens, size, width, dtype.itemsize, left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("policy", "keep"), POLICIES, ids=str)
def test_within_a_tenth(policy, keep, shape, dtype):
    measured, said = measure(policy, shape, dtype, keep)
    assert measured <= said
    assert said <= 1.1 * measured


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("policy", "keep"),
    [
        (Cubes(gate="learned"), 0.3),
        (Cubes(gate="fixed", resampler="attention"), 0.3),
        (Cubes(4, tokens_per_cube=4, gate="learned", resampler="attention"), None),
    ],
    ids=str,
)
def test_what_is_learned_is_counted(policy, keep, shape, dtype):
    """As if one cube were as long as can be, since only the content says how long they are."""
    measured, said = measure(policy, shape, dtype, keep)
    assert measured <= said <= 3 * measured


@pytest.mark.parametrize("policy", [Cubes(), VidCom2(), PruneVid(select_tokens=False)], ids=str)
def test_wide_rows_are_counted(policy):
    measured, said = measure(policy, (64, 8, 9, 64), torch.bfloat16, 0.5, behind=192)
    assert measured <= said <= 1.2 * measured
