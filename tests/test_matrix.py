"""The matrix of releases: its committed table is that of its rows, and holds what CI and pyproject promise."""

import json
import re

import pytest

from quickprefill import release
from tests.matrix import CI, LOWEST, RESULT, ROOT, table, write

ROWS = json.loads(RESULT.read_text())


def test_the_page_is_that_of_the_rows(tmp_path):
    assert RESULT.with_suffix(".md").read_text() == table(ROWS)
    write(tmp_path / "again.json", dict(reversed(ROWS.items())))
    assert (tmp_path / "again.json").read_text() == RESULT.read_text(), "rows have an order of their own"


@pytest.mark.parametrize("row", [*CI, LOWEST])
def test_a_row_that_is_promised_ran_without_a_failure(row):
    assert ROWS[row]["failed"] == [] and ROWS[row]["passed"] > 100


def test_no_row_failed():
    assert [name for row in ROWS.values() for name in row["failed"]] == []


def test_ci_begins_with_the_oldest_release():
    assert CI[0].startswith(f"transformers=={release.TESTED[0]}.")


def test_lower_bounds_are_those_of_a_row():
    block = (ROOT / "pyproject.toml").read_text().split("dependencies = [")[1].split("]")[0]
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', block))
    ran = dict(part.split("==") for part in LOWEST.split("+"))
    assert set(bounds) == {*ran, "torch", "torchvision"}
    assert all(ran[name].startswith(bounds[name]) for name in ran)
