"""Checkpoints with random weights for everything that reads files."""

from __future__ import annotations

import pytest

from examples.needle.checkpoint import build_model, build_processor, save
from examples.needle.families import FAMILIES


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Family -> folder of its tiny model, as built, in the usual files."""
    folders = {}
    for name, family in FAMILIES.items():
        folders[name] = tmp_path_factory.mktemp(name)
        processor = build_processor(family)
        save(build_model(family, processor.tokenizer), processor, folders[name], "card")
    return folders
