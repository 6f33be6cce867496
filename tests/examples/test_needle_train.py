"""Training resumes where it stopped and writes a checkpoint that is whole or not there."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from examples.needle import train
from examples.needle.families import FAMILIES


@pytest.fixture
def short(monkeypatch, tmp_path):
    """A run of four small steps: `short(name, *options)` returns its output folder."""
    monkeypatch.setattr(train, "CLIPS", {8: 2, 16: 2, 32: 2, 64: 2})

    def run(name, *options):
        fixed = ["--steps", "4", "--warmup", "2", "--save-every", "2", "--workers", "0", "--validation", "1"]
        train.main(["--work", str(tmp_path / f"work-{name}"), "--output", str(tmp_path / name), *fixed, *options])
        return tmp_path / name

    return run


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(short):
    pytest.importorskip("matplotlib")
    short("resumed", "--stop-at", "2")
    once, resumed = short("once"), short("resumed")
    expected, found = (load_file(folder / "model.safetensors") for folder in (once, resumed))
    for name, weights in expected.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=0)
    history = json.loads((resumed / "training.json").read_text())
    assert history["step"] == 4
    assert [point["step"] for point in history["validation"]] == [2, 4]
    assert "not a small version" in (resumed / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"qwen2_5_vl"}))
def test_every_family_is_trained_by_the_same_command(short, name):
    pytest.importorskip("matplotlib")
    folder = short(name, "--family", name)
    assert json.loads((folder / "config.json").read_text())["model_type"] == name
    card = (folder / "README.md").read_text()
    assert f"Tiny {FAMILIES[name].title}" in card and f"--family {name}" in card
    assert "nan" not in (folder / "training.json").read_text().lower()


def test_families_resume_from_folders_of_their_own():
    folders = {train.parse_arguments(["--output", "x", "--family", name]).work for name in FAMILIES}
    assert len(folders) == len(FAMILIES)


def test_an_interrupted_run_writes_no_checkpoint(short):
    assert not short("interrupted", "--stop-at", "2").exists()


def test_a_failed_save_keeps_the_state_before(short, monkeypatch):
    folder = short("failed", "--stop-at", "2")
    state = folder.with_name("work-failed") / "state"
    before = (state / "history.json").read_text()
    with monkeypatch.context() as broken:
        broken.setattr(train, "_text", lambda history: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            short("failed", "--stop-at", "3")
    assert (state / "history.json").read_text() == before
    short("failed", "--stop-at", "3")
    assert json.loads((state / "history.json").read_text())["step"] == 3
