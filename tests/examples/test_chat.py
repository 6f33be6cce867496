"""Turns of files and text with the small checkpoint."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

import quickprefill
from examples import chat
from examples.needle.clip import write_clip
from examples.needle.scene import Difficulty, sample_scene
from examples.needle.tasks import ask
from quickprefill.policies import Cubes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def scene():
    return sample_scene("test", 3, Difficulty(frames=16))


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    write_clip(scene, folder / "clip.mp4")
    Image.new("RGB", (56, 56), (200, 0, 0)).save(folder / "a.png")
    (folder / "notes.doc").write_text("x")
    return folder


def test_questions_of_the_command_line(folder, scene, capsys, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(chat.TINY_MODEL)
    quickprefill.apply(model, policy=Cubes(frames_per_cube=4, gate="learned", resampler="attention"))
    quickprefill.save_adapter(model, tmp_path)
    first, second = ask(scene)[:2]
    clip, picture = str(folder / "clip.mp4"), str(folder / "a.png")
    options = ["--fps", "2", "--frames", "12", "--max-new-tokens", "1", "--adapter", str(tmp_path), "--cubes"]
    answers = chat.main([*options, "--context", clip, first.text, picture, clip, second.text, first.text])
    assert len(answers) == 3
    assert all(len(answer.split()) <= 1 for answer in answers)
    printed = capsys.readouterr().out
    cubes = [line for line in printed.splitlines() if line.startswith("video ")]
    assert [line.partition(":")[0] for line in cubes] == ["video 0", "video 0", "video 1"]
    for line in cubes:
        spans = [span.split(" to ") for span in line.partition(": ")[2].replace(" s", "").split(", ")]
        assert len(spans) == 3, "12 frames in cubes of 4"
        assert spans[0][0] == "0"
        assert all(one[1] == other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_turns_from_stdin(folder, scene, monkeypatch, capsys):
    question = ask(scene)[0]
    lines = [f"{folder}/nothing.mp4 {question.text}", f"{folder}/clip.mp4", question.text]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    answers = chat.main(["--fps", "2", "--max-new-tokens", "1", "--frames-per-cube", "2"])
    assert answers == [question.answer]
    assert f"there is no file {folder}/nothing.mp4" in capsys.readouterr().err


def test_files_come_before_the_question_that_follows(folder, monkeypatch):
    clip, picture = str(folder / "clip.mp4"), str(folder / "a.png")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{clip} What?\n"))
    items = ["Hello", clip, picture, "What's a.png?", picture]
    assert list(chat.turns(items)) == [
        ([], "Hello"),
        ([clip, picture], "What's a.png?"),
        ([picture, clip], "What?"),
    ]


def test_temperature_zero_is_greedy():
    assert not chat.sampling(0)["do_sample"]
    assert chat.sampling(0.7) == {"do_sample": True, "temperature": 0.7}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["--context", "nothing.mp4", "What?"], "there is no file nothing.mp4"),
        (["--context", "{folder}/notes.doc", "What?"], "notes.doc is neither a video"),
        (["--cubes"], "add --adapter FOLDER or --frames-per-cube N"),
        (["--frames", "1"], "--frames must be at least 2, got 1"),
        (["--fps", "0"], "--fps must be above 0"),
        (["--temperature", "-1"], "--temperature must be at least 0"),
        (["--adapter", "{folder}", "--context", "What?"], "holds no weights of a policy"),
    ],
)
def test_mistakes_are_told(folder, items, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        chat.main([item.replace("{folder}", str(folder)) for item in items])
    assert message in f"{stopped.value}{capsys.readouterr().err}"
