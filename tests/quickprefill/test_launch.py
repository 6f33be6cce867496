"""Programs that say nothing of us: `-m quickprefill.run`, `import quickprefill.auto`, `-m quickprefill.hook`."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import quickprefill
from quickprefill import activation, late
from quickprefill.settings import FIELDS, Settings
from tests.clips import write_clip

ROOT = Path(__file__).parents[2]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("QUICKPREFILL", "QUICKDECODE"))}

STOCK = f"""
import sys
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

folder = {str(ROOT / "examples" / "tiny-qwen2.5-vl")!r}
model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype="float32")
processor = AutoProcessor.from_pretrained(folder)
content = [{{"type": "video", "path": sys.argv[1]}}, {{"type": "text", "text": "what ?"}}]
options = dict(tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
inputs = processor.apply_chat_template([{{"role": "user", "content": content}}], num_frames=8, **options)
print(model.generate(**inputs, max_new_tokens=3, do_sample=False).tolist())
"""
"""A user's script; what is printed behind it belongs to the tests."""

REPORT = """
import quickprefill, quickdecode.hosts
report = quickprefill.report(model)
print(report.groups, {round(share, 2) for share in report.kept})
print([name for name, host in quickdecode.hosts.HOSTS.items() if host.streams])
"""


def python(*arguments, environment=(), program=sys.executable, cwd=None):
    """What a Python process printed, its errors and its exit code."""
    environment = {**CLEAN, "PYTHONPATH": str(ROOT), **dict(environment)}
    command = [program, *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120)
    return process.stdout, process.stderr, process.returncode


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("launch") / "clip.mp4", frames=16, size=(64, 64))


@pytest.fixture
def script(tmp_path):
    def write(text, name="script.py"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_the_fields_are_those_of_the_config():
    assert list(FIELDS) == [field.name for field in dataclasses.fields(quickprefill.QuickPrefillConfig)]


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings({"keep": 0.25, "policy": {"name": "key_norm", "largest": True}}, stream=True, resize="exact"),
        Settings(prefill=False),
        Settings(decode=False),
    ],
)
def test_settings_go_through_the_environment(settings):
    environment = {}
    settings.into_environment(environment)
    assert Settings.from_environment(environment) == settings


def test_settings_without_any_variable_are_the_defaults():
    assert Settings.from_environment({}) == Settings()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"QUICKPREFILL": '{"kep": 0.25}'}, r"unknown field 'kep'; the fields are \['keep', "),
        (
            {"QUICKPREFILL": "0.25"},
            r"QUICKPREFILL must be a JSON object of fields, such as '{\"keep\": 0.25}', .*'0.25'",
        ),
        ({"QUICKPREFILL": "{keep: 1}"}, "QUICKPREFILL must be a JSON object"),
        ({"QUICKDECODE_STREAM": "maybe"}, r"QUICKDECODE_STREAM must be one of \[.*'on'.*\], got 'maybe'"),
    ],
)
def test_what_the_environment_cannot_say(environment, said):
    with pytest.raises(quickprefill.ConfigError, match=said):
        Settings.from_environment(environment)
    _, errors, code = python("-c", "import quickprefill.auto", environment=environment)
    assert (code, "quickprefill.errors.ConfigError: " in errors) == (1, True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Settings({"keep": 7}), "quickprefill: keep must be a number with 0 < keep <= 1"),
        (Settings({"policy": "nearest"}), "quickprefill: policy must be one of"),
        (Settings(resize="bicubic", prefill=False), "quickprefill: .*'bicubic'"),
    ],
)
def test_a_value_out_of_range_ends_the_program(settings, said):
    """Once transformers is imported, which is patched at once."""
    importlib.import_module("transformers")
    with pytest.raises(SystemExit, match=said):
        activation.activate(settings)
    assert not late.waiting


def test_a_script_is_patched(clip, script):
    arguments = [script(STOCK), clip]
    stock, _, _ = python("-m", "quickprefill.run", "--no-prefill", *arguments)
    out, errors, code = python("-m", "quickprefill.run", "--keep", "1.0", "--group-frames", "4", "--stream", *arguments)
    assert (out, code) == (stock, 0), errors
    assert out.startswith("[["), errors
    active = [line for line in errors.splitlines() if line.startswith("quickprefill: ")]
    assert len(active) == 1
    assert "are prefilled by groups (keep=1.0, group_frames=4); quickdecode reads for" in active[0]
    assert "and streams" in active[0]


def test_an_import_patches_what_the_environment_says(clip, script):
    fields = json.dumps({"keep": 0.25, "group_frames": 4})
    environment = {"QUICKPREFILL": fields, "QUICKDECODE_STREAM": "1"}
    program = script("import quickprefill.auto\n" + STOCK + REPORT)
    out, errors, code = python(program, clip, environment=environment)
    assert code == 0, errors
    assert out.splitlines()[1:] == ["2 {0.25}", "['qwen_vl_utils', 'transformers']"]


PROGRAMS = {
    "fails": "import sys\nprint(sys.argv[1:])\n\ndef fail():\n    raise ValueError('its own')\n\nfail()\n",
    "exits": "import sys\nprint(__name__, __file__, sys.path[0])\nsys.exit(7)\n",
    "says": "import sys\nsys.exit('no such thing')\n",
    "kills": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n",
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("way", ["script", "module"])
def test_exit_code_traceback_and_arguments_are_the_programs(script, name, way):
    file = script(PROGRAMS[name], f"{name}.py")
    program = ["-m", name, "--keep", "x"] if way == "module" else [file, "--keep", "x"]
    mine = python("-m", "quickprefill.run", "--keep", "0.5", *program, cwd=file.parent)
    stock = python(*program, cwd=file.parent)
    out, errors, code = mine
    kept = "".join(line for line in errors.splitlines(keepends=True) if not line.startswith("quickprefill: "))
    assert (out, kept, code) == stock


def test_a_program_without_any_model_is_told_so_and_loads_nothing(script):
    program = script("import sys\nprint([name for name in ('torch', 'transformers', 'av') if name in sys.modules])\n")
    out, errors, code = python("-m", "quickprefill.run", program)
    assert (out, code) == ("[]\n", 0)
    assert "imported neither transformers nor qwen_vl_utils; nothing was patched" in errors


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--kep", "0.5", "script.py"], "unrecognized arguments: --kep"),
        (["--keep", "0.5"], "name a program: -m MODULE ... or SCRIPT ..."),
        (["--keep"], "expected one argument"),
    ],
)
def test_a_command_line_that_cannot_be(options, said):
    out, errors, code = python("-m", "quickprefill.run", *options)
    assert (out, code) == ("", 2)
    assert said in errors


def test_the_hook_reaches_processes_that_ask_for_it(tmp_path):
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    program = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages, _, _ = python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", program=program)
    base = Path(packages.strip(), "base.pth")
    base.write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")

    def ask(*arguments, **environment):
        return python(*arguments, program=program, environment={"PYTHONPATH": "", **environment})

    loaded = "import sys; print([name for name in sys.modules if name.startswith(('quickprefill', 'torch'))])"
    assert ask("-m", "quickprefill.hook", "status")[0].startswith("off: no ")
    assert "QUICKPREFILL is not set" in ask("-m", "quickprefill.hook", "on")[0]
    assert ask("-c", loaded) == ("[]\n", "", 0)
    out, errors, _ = ask("-c", loaded, QUICKPREFILL='{"keep": 0.25}')
    assert "quickprefill.auto" in out, errors
    assert "'torch'" not in out
    _, errors, _ = ask("-c", "import transformers", QUICKPREFILL='{"keep": 0.25}')
    assert "quickprefill: active: " in errors
    assert "(keep=0.25)" in errors
    assert ask("-m", "quickprefill.hook", "off")[0].startswith("off: no ")
    assert ask("-c", loaded, QUICKPREFILL='{"keep": 0.25}')[0] == "[]\n"
