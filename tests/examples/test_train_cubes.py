"""Training cubes with a stock Trainer, from lines of JSON to an adapter that answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import quickdecode
import quickprefill
from examples import train_cubes
from examples.cubes.data import DataError, Lines
from examples.cubes.prompts import Collator, model_inputs, read
from examples.cubes.stages import STAGES
from examples.needle.clip import write_clip
from examples.needle.scene import Difficulty, sample_scene
from quickprefill.weights import weights_of

TINY = str(Path(train_cubes.__file__).parent / "tiny-qwen2.5-vl")
SMALL = ["--min_pixels", "3136", "--max_pixels", "3136", "--fps", "2"]
ASKED, SAID = "What colour was the square?", "red"


@pytest.fixture(autouse=True)
def reader():
    quickdecode.register()
    yield
    quickdecode.unregister()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Lines in both forms, with their clips and pictures."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        write_clip(sample_scene("train", number, Difficulty(frames=12)), folder / f"{number}.mp4")
    Image.new("RGB", (56, 56), (200, 0, 0)).save(folder / "a.png")
    text, video, image = {"type": "text", "text": ASKED}, {"type": "video"}, {"type": "image", "path": "a.png"}
    user, said = {"role": "user", "content": [image, text]}, {"role": "assistant", "content": SAID}
    lines = [
        {"messages": [{"role": "user", "content": [{**video, "video": "0.mp4"}, text]}, said]},
        {"messages": [user, said, {"role": "user", "content": [video, text]}, said], "videos": ["1.mp4"]},
    ]
    (folder / "messages.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    turns = [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": SAID}]
    lines = [
        {"video": "0.mp4", "data_type": "conversations", "conversations": [*turns, turns[1]]},
        {"image": ["a.png", "a.png"], "conversations": [{**turns[0], "value": ASKED}, turns[1]]},
        {"video": "1.mp4", "caption": ["one", "two"], "start_sec": 1, "end_sec": 4, "data_type": "caption"},
        {"conversations": [{**turns[0], "value": ASKED}, turns[1]]},
    ]
    (folder / "original.jsonl").write_text("\n" + "\n".join(json.dumps(line) for line in lines))
    return folder


def test_both_forms_become_messages(folder):
    rows = Lines(f"{folder}/messages.jsonl#1_2;{folder}/original.jsonl*2", None, {"fps": 2.0, "max_frames": 8})
    assert len(rows) == 1 + 2 * 4
    video = {"type": "video", "video": f"{folder}/1.mp4", "fps": 2.0, "max_frames": 8}
    image = {"type": "image", "image": f"{folder}/a.png"}
    text, said = {"type": "text", "text": ASKED}, {"role": "assistant", "content": [{"type": "text", "text": SAID}]}
    assert rows[0] == {
        "messages": [
            {"role": "user", "content": [image, text]},
            said,
            {"role": "user", "content": [video, text]},
            said,
        ],
        "where": f"{folder}/messages.jsonl, line 2",
    }
    first, pictures, caption, blind = (rows[number]["messages"] for number in range(5, 9))
    assert first[0]["content"] == [{**video, "video": f"{folder}/0.mp4"}, text]
    assert pictures[0]["content"] == [image, image, text]
    assert caption[0]["content"][0] == {**video, "video_start": 1, "video_end": 4}
    assert caption[1]["content"][0]["text"] in ("one", "two")
    assert blind[0]["content"] == [text]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: Expecting property name"),
        ({"text": "x"}, 'line 3: neither "messages" nor "conversations" nor "caption"'),
        ({"messages": [{"role": "user", "content": "x"}]}, r"last an answer to learn, got \['user'\]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "roles must be system, user and assistant"),
        ({"messages": [{"content": "x"}]}, "'role' is missing"),
        ({"video": "b.mp4", "caption": "x"}, r"b.mp4 does not exist"),
        ({"video": "0.mp4", "conversations": [{"from": "bot", "value": "x"}]}, '"from" must be one of human, gpt'),
        (
            {"image": "a.png", "conversations": [{"from": "human", "value": "<image><image>"}]},
            "placeholders for {'image': 2, 'video': 0}, but {'image': 1, 'video': 0} are given",
        ),
    ],
)
def test_a_bad_line_is_named(folder, line, message):
    good = (folder / "messages.jsonl").read_text().splitlines()
    text = line if isinstance(line, str) else json.dumps(line)
    (folder / "bad.jsonl").write_text("\n".join([*good, text]))
    with pytest.raises(DataError, match=f"bad.jsonl, line 3: .*{message.removeprefix('line 3: ')}"):
        Lines(f"{folder}/bad.jsonl", None, {})


def test_files_and_ranges_that_hold_nothing(folder):
    with pytest.raises(DataError, match=r"nothing.jsonl does not exist; data is given as FILE, FILE#FIRST_LAST"):
        Lines(f"{folder}/nothing.jsonl*2", None, {})
    with pytest.raises(DataError, match=r"has 2 lines, none of them in 5_9"):
        Lines(f"{folder}/messages.jsonl#5_9", None, {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_only_answers_have_labels(folder):
    processor = AutoProcessor.from_pretrained(TINY)
    rows = Lines(f"{folder}/messages.jsonl;{folder}/original.jsonl", None, {"nframes": 8})
    batch = Collator(processor)([rows[number] for number in (0, 1, 2, 3, 5)])
    answer = processor.tokenizer(f"{SAID}<|im_end|>").input_ids
    learned = [ids[labels != -100].tolist() for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)]
    assert learned == [answer * times for times in (1, 2, 2, 1, 1)]
    assert torch.equal(batch["labels"][batch["labels"] != -100], batch["input_ids"][batch["labels"] != -100])
    broken = folder / "broken.mp4"
    broken.write_bytes(b"no video")
    part = {"type": "video", "video": str(broken)}
    with pytest.raises(DataError, match="somewhere, line 7: .*"):
        Collator(processor)([{"messages": [{"role": "user", "content": [part]}], "where": "somewhere, line 7"}])


def test_stages_are_defaults_that_the_command_line_overrides():
    for number, rate in ((1, 1e-4), (2, 2e-5), (3, 1e-5)):
        options, arguments = train_cubes.parse(["--stage", str(number), "--model", "m", "--data", "d"])
        assert (options.trains, options.frames) == (STAGES[number].trains, STAGES[number].frames)
        assert (arguments.learning_rate, arguments.max_grad_norm, arguments.weight_decay) == (rate, 1.0, 0.0)
        assert arguments.get_warmup_steps(100) == 2
        assert arguments.lr_scheduler_type == "cosine"
    options, arguments = train_cubes.parse(
        ["--stage", "3", "--model", "m", "--data", "d", "--trains", "adapter", "--learning_rate", "1e-3"]
    )
    assert (options.trains, options.frames, arguments.learning_rate) == ("adapter", 480, 1e-3)
    with pytest.raises(SystemExit):
        train_cubes.parse(["--model", "m", "--data", "d", "--trains", "nothing"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_steps_then_two_more_then_an_adapter_that_answers(folder, tmp_path):
    data = ["--model", TINY, "--data", f"{folder}/messages.jsonl;{folder}/original.jsonl", *SMALL]
    run = ["--output_dir", str(tmp_path), "--save_steps", "2", "--logging_steps", "1", "--learning_rate", "1e-2"]
    run += ["--dataloader_num_workers", "0", "--frames_per_cube", "4", "--disable_tqdm", "True", "--use_cpu", "True"]
    run += ["--per_device_train_batch_size", "2"]
    train_cubes.main([*data, *run, "--max_steps", "2"])
    assert {path.name for path in tmp_path.iterdir()} >= {"curves.json", "curves.png", "quickprefill.safetensors"}
    trainer = train_cubes.main([*data, *run, "--max_steps", "3", "--resume_from_checkpoint", "True"])
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [point["step"] for point in curves if "loss" in point] == [1, 2, 3]
    assert [point["noise"] < 1 for point in curves if "loss" in point] == [False, True, True]
    assert not (tmp_path / "model.safetensors").exists()

    loaded = quickprefill.load_adapter(AutoModelForImageTextToText.from_pretrained(TINY), tmp_path)
    trained = weights_of(trainer.model.model).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in weights_of(loaded.model).state_dict().items())
    assert trained["resampler.out.weight"].abs().sum() > 0
    quickdecode.register()  # which main() undid
    processor = AutoProcessor.from_pretrained(TINY)
    small = {"nframes": 8, "min_pixels": 3136, "max_pixels": 3136}
    messages = Lines(f"{folder}/messages.jsonl", None, small)[0]["messages"][:1]
    inputs = model_inputs(processor, [messages], [read(processor, messages, "the question")], prompt=True)
    loaded.generate(**inputs, max_new_tokens=1, do_sample=False)
    report = quickprefill.report(loaded)
    assert (report.video_tokens, report.entered_tokens) == (16, 8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_tower_trains_from_an_adapter(folder, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(TINY)
    quickprefill.apply(model, policy=train_cubes.Cubes(frames_per_cube=8, gate="learned", resampler="attention"))
    quickprefill.save_adapter(model, tmp_path / "first")
    run = [
        *("--stage", "2", "--model", TINY, "--data", f"{folder}/messages.jsonl#0_1", *SMALL, "--max_steps", "1"),
        *("--output_dir", str(tmp_path / "second"), "--adapter", str(tmp_path / "first"), "--use_cpu", "True"),
        *("--tokens_per_cube", "2", "--dataloader_num_workers", "0", "--disable_tqdm", "True"),
        *("--save_steps", "1", "--warmup_steps", "0", "--learning_rate", "1e-2"),
    ]
    trained = train_cubes.main(run).model
    training = {name.split(".")[1] for name, p in trained.named_parameters() if p.requires_grad}
    assert training == {"visual", "quickprefill"}
    (policy,) = json.loads((tmp_path / "second" / "quickprefill.json").read_text())["config"]["policy"]
    assert {"frames_per_cube": 8, "tokens_per_cube": 2}.items() <= policy.items()
    resumed = train_cubes.main([*run, "--resume_from_checkpoint", "True"]).model  # there is nothing left to do
    stock = model.state_dict()
    for name, tensor in resumed.state_dict().items():
        torch.testing.assert_close(tensor, trained.state_dict()[name])
        if name.endswith("visual.merger.mlp.2.weight"):
            assert not torch.equal(tensor, stock[name])
