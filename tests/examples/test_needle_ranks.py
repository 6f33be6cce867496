"""Which tokens show what, and how many of them each score keeps, for every family."""

from __future__ import annotations

import json

import numpy as np
import pytest

import quickprefill
from examples.benchmarks import needle_ranks
from examples.needle.families import FAMILIES
from examples.needle.scene import Difficulty, sample_scene
from quickprefill.prompt.spans import Grid


def test_tokens_that_show_a_symbol_are_where_and_when_it_is_seen():
    scene = sample_scene("test", 0, Difficulty(frames=16))
    frames, pairs = (needle_ranks.tokens_showing(scene, Grid(slices, 2, 2)) for slices in (16, 8))
    assert frames["the lamp"].reshape(16, 2, 2)[:, 0, 0].all() and frames["the lamp"].sum() == 16
    for shape in ("square", "ring"):
        symbol = scene.appearances(shape)[0]
        seen = frames[f"the {shape}"].reshape(16, 4).any(1)
        assert seen.sum() == round((symbol.stop - symbol.start) / scene.difficulty.spacing)
        np.testing.assert_array_equal(pairs[f"the {shape}"].reshape(8, 4).any(1), seen.reshape(8, 2).any(1))


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() & quickprefill.hosts.FAMILIES.keys()))
def test_every_score_keeps_a_share_in_every_layer(checkpoints, name, tmp_path):
    results = needle_ranks.main(
        ["--model", str(checkpoints[name]), "--frames", "32", "--clips", "1"]
        + ["--work", str(tmp_path), "--output", str(tmp_path / "ranks")]
    )
    for by in results["kept"].values():
        assert set(by) == set(needle_ranks.SCORERS)
        shares = np.array(list(by.values()))
        assert shares.shape == (len(needle_ranks.SCORERS), 6)
        assert (shares >= 0).all() and (shares <= 1).all() and shares.any()
    assert json.loads((tmp_path / "ranks.json").read_text())["kept"] == results["kept"]
