"""Releases of transformers outside the range that is served: too old is an error that names it, too new one warning."""

import logging
import subprocess
import sys

import pytest

import quickprefill
from quickprefill import UnsupportedModelError, UnsupportedReleaseError, release
from tests.families import FAMILIES
from tests.test_package import ROOT
from tests.tiny import tiny_model

pytestmark = pytest.mark.spine


@pytest.fixture
def model():
    return tiny_model()


def test_a_newer_release_is_named_once(model, monkeypatch, caplog):
    quickprefill.apply(model)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    monkeypatch.setattr(release, "INSTALLED", "6.1.0.dev0")
    quickprefill.apply(model)
    (warning,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "transformers 6.1.0.dev0 is newer than what is tested, 4.57 to 5.24" in warning.getMessage()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_release_before_a_familys_first_is_refused(family, monkeypatch):
    host = quickprefill.FAMILIES[family]
    model = FAMILIES[family].model()
    oldest, newest = host.tested
    major, minor = map(int, oldest.split("."))
    before = f"{major}.{minor - 1}.3" if minor else f"{major - 1}.99.3"
    monkeypatch.setattr(release, "INSTALLED", before)
    words = rf"{host.head_name} needs transformers {oldest} to {newest}, not {before}.*install"
    for target in (model, type(model)):
        with pytest.raises(UnsupportedReleaseError, match=words):
            quickprefill.apply(target)
    assert "_quickprefill" not in vars(model) and "_quickprefill" not in vars(type(model))
    assert issubclass(UnsupportedReleaseError, UnsupportedModelError | ImportError)


def test_importing_beside_an_older_release_names_the_range():
    script = "import transformers; transformers.__version__ = '4.51.3'; import quickprefill; quickprefill.apply"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120)
    expected = "UnsupportedReleaseError: quickprefill needs transformers 4.57 to 5.24, not 4.51.3; install"
    assert failed.returncode == 1 and expected in failed.stderr


def test_pip_asks_for_the_oldest_release_that_is_served():
    assert f'"transformers>={release.TESTED[0]}"' in (ROOT / "pyproject.toml").read_text()
