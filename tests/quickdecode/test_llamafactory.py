"""LLaMA-Factory's reading: the pictures that a decode of every frame would give. Where it is installed, its own too."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

import quickdecode
from quickdecode.hosts import late
from quickdecode.hosts.llamafactory import Container, Picture, pictures
from tests.quickdecode.corpus import build

INSTALLED = find_spec("llamafactory") is not None


def decoded(path: Path, indices: list[int]) -> list[np.ndarray]:
    """What the plugin does: decode every frame, keep those with these numbers."""
    with av.open(str(path)) as container:
        frames = enumerate(container.decode(container.streams.video[0]))
        return [np.asarray(frame.to_image()) for number, frame in frames if number in indices]


@pytest.mark.parametrize("name", ["open.mp4", "pyramid.mkv", "hevc-open.ts", "late-pyramid.ts", "no-b.mp4"])
def test_pictures_are_those_of_a_decode_of_every_frame(tmp_path_factory, name):
    path = build(tmp_path_factory.mktemp("corpus"), name)
    for indices in ([0, 7, 8, 30, 59], [30], [3, 3, 1, 10**6]):
        found = list(pictures(path, indices))
        ours = [np.asarray(picture.to_image()) for picture in found if picture is not None]
        stock = decoded(path, indices)
        assert len(ours) == len(stock)
        assert all(np.array_equal(one, other) for one, other in zip(ours, stock, strict=True))
        assert all((picture is None) == (number not in indices) for number, picture in enumerate(found))


def test_a_missing_or_damaged_file_is_named(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    for name in ("noise.mp4", "absent.mp4"):
        with pytest.raises(quickdecode.SourceError, match=name):
            pictures(tmp_path / name, [0])


def test_nobody_asked_for_frames(clip):
    with av.open(str(clip)) as container:
        frames = list(Container(container, clip).decode(container.streams.video[0]))
    assert len(frames) == 60
    assert not any(isinstance(frame, Picture) for frame in frames)


def test_a_module_is_met_when_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "imported_late.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    met = []
    late.when_imported("imported_late", met.append)
    late.when_imported("never_imported", met.append)
    import imported_late

    late.cancel("never_imported")
    assert met == [imported_late]
    assert not any(finder is late._FINDER for finder in sys.meta_path)
    assert imported_late.__spec__.loader.get_filename() == str(tmp_path / "imported_late.py")


@pytest.mark.skipif(INSTALLED, reason="llamafactory is installed")
def test_it_is_not_served_where_it_is_not_installed():
    with pytest.raises(quickdecode.HostError, match="llamafactory is not installed"):
        quickdecode.register("llamafactory")


def test_register_does_not_import_it():
    script = "import sys, quickdecode; quickdecode.register(); assert not 'llamafactory' in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.fixture
def plugin():
    module = pytest.importorskip("llamafactory.data.mm_plugin")
    yield module
    quickdecode.unregister()


OPTIONS = {"image_max_pixels": 65536, "image_min_pixels": 256, "video_fps": 5.0, "video_maxlen": 16}


@pytest.mark.parametrize("name", ["BasePlugin", "Qwen2VLPlugin", "Gemma4Plugin"])
def test_the_plugin_gets_what_it_always_got(plugin, make_clip, tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("corpus")
    videos = [str(build(folder, each)) for each in ("open.mp4", "pyramid.mkv", "mirrored.mp4")]
    reader = getattr(plugin, name)("<image>", "<video>", "<audio>")
    before = plugin.av, vars(plugin.MMPluginMixin)["_get_video_sample_indices"]
    stock = reader._regularize_videos(videos, **OPTIONS)
    quickdecode.register("llamafactory")
    assert isinstance(plugin.av.open(videos[0], "r"), Container)
    ours = reader._regularize_videos(videos, **OPTIONS)
    for one, other in zip(stock.pop("videos"), ours.pop("videos"), strict=True):
        assert len(one) == len(other)
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))
    assert stock == ours
    quickdecode.unregister()
    assert before == (plugin.av, vars(plugin.MMPluginMixin)["_get_video_sample_indices"])


def test_a_release_without_the_seams_is_refused(plugin, monkeypatch):
    monkeypatch.setattr(plugin, "MMPluginMixin", SimpleNamespace())
    with pytest.raises(quickdecode.HostError, match="lacks MMPluginMixin._get_video_sample_indices"):
        quickdecode.register("llamafactory")
