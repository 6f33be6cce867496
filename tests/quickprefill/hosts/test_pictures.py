"""InternVL and SmolVLM: which pictures are a video's frames, faults that must be noticed, input that does not fit."""

from __future__ import annotations

import pytest
import torch

import quickprefill
from quickprefill import FAMILIES as HOSTS
from quickprefill import InputError
from quickprefill.hosts.frames import FramesHost
from quickprefill.hosts.pictures import PicturesHost
from tests.families import ENCODES_FIRST, FAMILIES, build_inputs
from tests.frame_families import CHATS
from tests.quickprefill.calls import generate
from tests.tiny import Clip, prompt

PROMPT = prompt(3, Clip((5, 0, 0)), 2, Clip((5, 0, 0)), 4)
FRAME, TILE = "\nFrame {}: ", "<img>" + "<image>" * 9 + "</img>"
SMALL = "<fake_token_around_image><global-img>" + "<image>" * 9 + "<fake_token_around_image>"


@pytest.fixture(scope="module", params=["internvl", "smolvlm"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family):
    return FAMILIES[family].model()


def counted(first, last, name="Frame"):
    return "\n".join(f"{name}{number}: {TILE}" for number in range(first, last + 1))


def timed(*times):
    return "w9 w7.\n" + "".join(f"\nFrame from {time}:{SMALL}" for time in times) + "\n\n"


SAID = {
    "internvl": {
        "a video": (f"w5\n{counted(1, 3)}\nw6", [3]),
        "a long one": (f"{counted(1, 123)}\n", [123]),
        "two": (f"{counted(1, 12)}\n{counted(1, 2)}\n", [12, 2]),
        "two apart": (f"{counted(1, 2)}\nw5w6{counted(1, 4)}\n", [2, 4]),
        "an image before and behind": (f"{TILE}\n{counted(1, 2)}\n{TILE}\n", [2]),
        "an image of several tiles": (f"<img>{'<image>' * 27}</img>\n{counted(1, 2)}\n", [2]),
        "images": (f"{TILE}\n{TILE}\n{TILE}\nw5", []),
        "numbered images": (counted(1, 3, "Image-"), []),
        "numbered images with a space": (counted(1, 3, "Image "), []),
        "frames of a higher number": (counted(2, 4), [3]),
        "one frame": (counted(1, 1), []),
        "pictures from the first column on": ("<image>" * 9 + TILE, []),
        "no picture": ("w5w6", []),
    },
    "smolvlm": {
        "a video": (f"w5{timed('00:00', '00:01', '00:03')}w6", [3]),
        "one frame": (timed("00:00"), []),
        "a long one": (timed("00:00", "99:59", "100:00", "100:01"), [4]),
        "two": (timed("00:00", "00:01") + timed("00:00", "00:02"), [2, 2]),
        "images": (f"w5{SMALL}w6{SMALL}{SMALL}", []),
        "numbered images": (f"w5 1:{SMALL}w5 2:{SMALL}", []),
        "images between words of one length": (f"w5 w6 w7 {SMALL}w5 w8 w9 {SMALL}w5 w8 w7 {SMALL}", []),
        "images behind lists": (f"w5w9w7:w8w9:{SMALL}w5w9w6:w7w7:{SMALL}w5w9w8:w9w7:{SMALL}", []),
        "pictures from the first column on": ("<image>" * 9 + SMALL, []),
        "no picture": ("w5w6", []),
    },
}


@pytest.mark.parametrize(("family", "case"), [(family, case) for family in SAID for case in SAID[family]])
def test_the_text_says_what_is_video(family, case):
    host, core = HOSTS[family], FAMILIES[family].model().model
    text, expected = SAID[family][case]
    ids = CHATS[family]().tokenizer(text, return_tensors="pt").input_ids
    inputs = {"input_ids": ids, "pixel_values": torch.empty(0)}
    assert [grid.slices for grid in host.grids(core, inputs)] == expected
    assert int((host.named(core, ids[0]) == host.video_token_id(core)).sum()) == sum(expected) * 9
    assert host.has_video(core, inputs) == bool(expected)
    assert not host.has_video(core, {"input_ids": ids}), "no pixels, no video"


def as_qwen3_vl(positions):
    """Every slice at one place."""
    return lambda host, core, call: positions(host, core, call) // 9 * 9


FAULTS = {
    "positions of slices": (FramesHost, "position_ids", as_qwen3_vl),
    "no frame a video": (PicturesHost, "named", lambda stock: lambda host, core, ids: ids),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(monkeypatch, family, model, fault):
    inputs = build_inputs(family, PROMPT)
    with torch.no_grad():
        stock = model(**inputs, logits_to_keep=1).logits
        owner, name, broken = FAULTS[fault]
        monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
        with quickprefill.patched(model, keep=1.0, group_frames=4):
            if fault == "no frame a video":
                with pytest.raises(InputError):
                    model(**inputs, logits_to_keep=1)
                return
            assert (model(**inputs, logits_to_keep=1).logits - stock).abs().max() > 1e-2


def test_pictures_and_placeholders_must_fit(family, model):
    inputs = build_inputs(family, PROMPT)
    pixels = inputs["pixel_values"]
    inputs = {name: value for name, value in inputs.items() if "pixel" not in name}
    with quickprefill.patched(model), torch.no_grad():
        with pytest.raises(InputError, match=r"placeholders for \d picture\(s\) more than pixel_values has"):
            generate(model, {**inputs, "pixel_values": pixels[:1]})
        with pytest.raises(InputError, match=r"the last \d+ picture\(s\) of pixel_values have no placeholder"):
            generate(model, {**inputs, "pixel_values": torch.cat([pixels, pixels])})


def test_frames_of_which_parts_are_hidden_are_the_stock_models(caplog):
    """And so are such images, silently."""
    model, inputs = FAMILIES["smolvlm"].model(), build_inputs("smolvlm", PROMPT)
    inputs["pixel_attention_mask"][:, :, 12:] = 0
    stock = generate(model, inputs)
    whole = generate(model, {**inputs, "pixel_attention_mask": torch.ones_like(inputs["pixel_attention_mask"])})
    assert (stock.logits[0] - whole.logits[0]).abs().max() > 1e-2, "it matters"
    with quickprefill.patched(model, keep=0.5):
        assert torch.equal(generate(model, inputs).logits[0], stock.logits[0])
    assert ("computed beforehand" if ENCODES_FIRST else "hides parts of the frames") in caplog.text
    caplog.clear()
    inputs = build_inputs("smolvlm", prompt(3, Clip((1, 0, 0), image=True), 4))
    inputs["pixel_attention_mask"][:, :, 12:] = 0
    stock = generate(model, inputs)
    with quickprefill.patched(model, keep=0.5):
        assert torch.equal(generate(model, inputs).logits[0], stock.logits[0])
    assert "quickprefill" not in caplog.text
