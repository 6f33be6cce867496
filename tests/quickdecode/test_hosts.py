"""register() and unregister(): what they promise whatever the library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qwen_vl_utils import vision_process

import quickdecode


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    quickdecode.unregister()
    yield
    quickdecode.unregister()


def snapshot() -> dict[str, object]:
    import qwen_vl_utils

    return {
        **{f"module.{name}": value for name, value in vars(vision_process).items() if name != "__builtins__"},
        **{f"package.{name}": value for name, value in vars(qwen_vl_utils).items() if name != "__builtins__"},
        **{f"reader.{name}": value for name, value in vision_process.VIDEO_READER_BACKENDS.items()},
    }


IMPORTED = """
import sys
import quickdecode
assert not {"qwen_vl_utils", "transformers"} & set(sys.modules)
import qwen_vl_utils
from qwen_vl_utils import vision_process as host
def look():
    return {**vars(host), **host.VIDEO_READER_BACKENDS, **vars(qwen_vl_utils)}
before = look()
assert "quickdecode" not in str(before)
for name in [name for name in sys.modules if name.startswith("quickdecode")]:
    del sys.modules[name]
import quickdecode
after = look()
assert before.keys() == after.keys()
assert all(before[name] is after[name] for name in before)
"""


def test_importing_changes_nothing() -> None:
    subprocess.run([sys.executable, "-c", IMPORTED], check=True, cwd=Path(quickdecode.__file__).parents[1])


def test_unregister_restores_everything() -> None:
    before = snapshot()
    assert "qwen_vl_utils" in quickdecode.register()
    assert snapshot() != before
    quickdecode.unregister()
    assert snapshot() == before
    assert list(snapshot()) == list(before)


def test_both_are_idempotent() -> None:
    before = snapshot()
    quickdecode.register("qwen_vl_utils")
    once = snapshot()
    quickdecode.register("qwen_vl_utils")
    assert snapshot() == once
    quickdecode.unregister()
    quickdecode.unregister()
    assert snapshot() == before


def test_a_later_patch_of_somebody_else_survives() -> None:
    before = snapshot()
    quickdecode.register("qwen_vl_utils")
    theirs = vision_process.fetch_video
    vision_process.fetch_video = wrapped = lambda *a, **k: theirs(*a, **k)
    quickdecode.unregister()
    assert vision_process.fetch_video is wrapped
    vision_process.fetch_video = before["module.fetch_video"]
    assert snapshot() == before


def test_unknown_host() -> None:
    with pytest.raises(quickdecode.HostError, match="unknown library 'moviepy'; quickdecode can serve .*qwen_vl_utils"):
        quickdecode.register("moviepy")
    with pytest.raises(quickdecode.HostError, match="unknown library"):
        quickdecode.unregister("moviepy")


def test_unknown_resize_is_refused_before_any_change() -> None:
    before = snapshot()
    with pytest.raises(quickdecode.RequestError, match="resize='best'; it must be one of fast, antialiased, exact"):
        quickdecode.register("qwen_vl_utils", resize="best")
    assert snapshot() == before


def test_registering_again_switches_the_resize() -> None:
    before = snapshot()
    readers = []
    for resize in ("exact", "exact", "fast"):
        quickdecode.register("qwen_vl_utils", resize=resize)
        readers.append(vision_process.VIDEO_READER_BACKENDS["quickdecode"])
    assert readers[0] is readers[1] is not readers[2]
    quickdecode.unregister()
    assert snapshot() == before


def test_absent_seam_is_reported_before_any_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(vision_process, "smart_nframes")
    before = snapshot()
    with pytest.raises(quickdecode.HostError, match="lacks smart_nframes; install qwen-vl-utils >="):
        quickdecode.register("qwen_vl_utils")
    assert snapshot() == before


def test_absent_parameter_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_process, "fetch_video", lambda ele: None)
    with pytest.raises(quickdecode.HostError, match=r"lacks fetch_video\(image_patch_size=\)"):
        quickdecode.register("qwen_vl_utils")
