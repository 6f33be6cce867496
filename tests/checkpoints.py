"""Checkpoints with random weights for everything that reads files."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> folder of its tiny model, as built, in the usual files."""
    from examples.needle.checkpoint import build_model, build_processor, save
    from examples.needle.families import FAMILIES

    folders = {}
    for name, family in FAMILIES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        processor = build_processor(family)
        save(build_model(family, processor.tokenizer), processor, folders[name], "card")
    return folders
