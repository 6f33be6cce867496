"""The main job: a real file, stock process_vision_info, processor and generate(), patched and unpatched."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

import quickdecode
import quickprefill

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def quickstart():
    return load("quickstart")


@pytest.fixture(scope="module")
def clip(quickstart, tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    quickstart.write_needle_clip(path, minutes=0.4)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("keep", [1.0, 0.25])
def test_quickstart(quickstart, clip, capsys, keep):
    options = ["--video", str(clip), "--keep", str(keep), "--group-frames", "8", "--fps", "2", "--max-new-tokens", "4"]
    ((stock, ours),) = quickstart.main(options)
    printed = capsys.readouterr()
    assert "48 frames of 56 x 56" in printed.out
    assert "48/48" in printed.err, "the progress bar counts frames"
    if keep == 1.0:
        assert ours.answer == stock.answer
        assert ours.cache_bytes == stock.cache_bytes
    else:
        token_bytes = 6 * 2 * 2 * 32 * 4  # layers, keys and values, heads, head dimension, float32
        dropped = (stock.cache_bytes - ours.cache_bytes) / token_bytes
        assert dropped == 96 - 24, "three quarters of the 96 video tokens are gone, and nothing else"
    assert min(run.prefill_seconds for run in (stock, ours)) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_quickstart_knows_the_right_answers(quickstart, capsys):
    runs = quickstart.main(["--minutes", "1"])
    printed = capsys.readouterr().out
    right = re.findall(r"patched .*\(right: '(\w+)'\)", printed)
    assert [ours.answer for _, ours in runs] == right
    assert [stock.answer for stock, _ in runs] == right


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quickstart_names_a_file_that_is_not_there(quickstart, tmp_path):
    with pytest.raises(quickdecode.QuickDecodeError, match=r"absent\.mp4"):
        quickstart.main(["--video", str(tmp_path / "absent.mp4")])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_readmes_script_runs_as_written(quickstart, clip, capsys):
    """With the small checkpoint and a clip in place of the names; then again without its two lines."""
    script = re.search(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), re.DOTALL).group(1)
    script = script.replace("Qwen/Qwen2.5-VL-7B-Instruct", str(quickstart.TINY_MODEL)).replace("talk.mp4", str(clip))
    assert "quickprefill.apply(model, keep=0.5)" in script
    names = {}
    try:
        exec(script.replace("keep=0.5", "keep=1.0"), names)
        ours = capsys.readouterr().out
        assert "quickprefill" in repr(names["model"])
        stock = re.sub(r"quickprefill\.apply\(.*?\)", "pass", script)
        exec(stock, names)
        assert capsys.readouterr().out == ours
        exec(script, names)
        assert quickprefill.report(names["model"]).kept == (0.5,) * 6
    finally:
        quickdecode.unregister()
