"""File to answer through the real processors, read at once or streamed: text, placeholders and sizes are theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import quickdecode
import quickprefill
from quickdecode.lazy.tensor import LazyTensor
from quickprefill.hosts.qwen import QwenHost
from quickprefill.hosts.qwen3_vl import Qwen3_VL
from tests.quickprefill.calls import assert_same_logits, forward, generate
from tests.qwen_processors import KINDS, PATCH, QWEN3, build_model, build_processor, conversation, make_inputs

PIXELS = "pixel_values_videos"

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", params=KINDS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def processor(family):
    return build_processor(family)


@pytest.fixture(scope="module")
def model(family, processor):
    return build_model(family, processor)


@pytest.fixture(scope="module")
def talk(make_clip):
    return make_clip("talk.mp4", frames=100, gop=20)


@pytest.fixture(autouse=True)
def registered():
    quickdecode.register()
    yield
    quickdecode.unregister()


def video(path, family, **options):
    side = 2 * PATCH[family]
    options = options or {"resized_height": 2 * side, "resized_width": 3 * side}
    return {"type": "video", "video": str(path), "fps": 4.0, **options}


def picture(family):
    pixels = np.random.default_rng(0).integers(0, 256, (4 * PATCH[family], 4 * PATCH[family], 3), dtype=np.uint8)
    return {"type": "image", "image": Image.fromarray(pixels)}


def talks(family, talk, clip):
    return {
        "one video": [conversation(video(talk, family), "What colour?")],
        "several, and a picture": [conversation(video(talk, family), "or", picture(family), video(clip, family), "or")],
        "a batch": [conversation(video(talk, family), "or"), conversation("or", video(clip, family), "What colour?")],
    }


@pytest.mark.parametrize("name", ["one video", "several, and a picture", "a batch"])
def test_all_kept_is_stock(family, processor, model, talk, clip, name):
    inputs = make_inputs(family, processor, *talks(family, talk, clip)[name])
    grids = inputs["video_grid_thw"]
    assert int((inputs["input_ids"] == model.config.video_token_id).sum()) == int(grids.prod(1).sum()) // 4
    stock = generate(model, inputs)
    for group_frames in (2, 6, None):
        with quickprefill.patched(model, keep=1.0, group_frames=group_frames):
            assert_same_logits(generate(model, inputs), stock)
    with quickprefill.patched(model, keep=0.25, policy="value_norm"):
        assert torch.isfinite(generate(model, inputs).logits[0]).all()
        report = quickprefill.report(model)
    assert report.video_tokens == int(grids.prod(1).sum()) // 4
    assert max(report.kept) == pytest.approx(0.25, abs=0.05)


def test_times_stand_before_the_slices(family, processor, talk, clip):
    inputs = make_inputs(family, processor, *talks(family, talk, clip)["one video"])
    written = processor.tokenizer.decode(inputs["input_ids"][0])
    slices = int(inputs["video_grid_thw"][0, 0])
    times = written.count(" seconds>")
    assert times == (slices if family in QWEN3 else 0)
    assert written.count("<|vision_start|>") >= max(times, 1)


@pytest.mark.parametrize("fault", ["no deepstack", "positions of text"])
def test_the_comparison_notices_a_fault(talk, clip, monkeypatch, fault):
    """Without the features for later layers, or with positions that count tokens, keep=1 is not the stock model."""
    processor = build_processor("qwen3_vl")
    model = build_model("qwen3_vl", processor)
    inputs = make_inputs("qwen3_vl", processor, *talks("qwen3_vl", talk, clip)["one video"])

    def without(self, core, index, hidden, rotary, cache):
        width = core.config.get_text_config().hidden_size
        output = QwenHost.layer(self, core, index, hidden[..., :width], rotary, cache)
        return torch.cat([output, hidden[..., width : hidden.shape[-1] - width]], dim=-1)

    def counted(self, core, call):
        return torch.arange(call["input_ids"].shape[1]).expand(3, 1, -1)

    stock = forward(model, inputs, logits_to_keep=1).logits
    with quickprefill.patched(model, keep=1.0):
        assert (forward(model, inputs, logits_to_keep=1).logits - stock).abs().max() < 1e-4
        monkeypatch.setattr(Qwen3_VL, *(("layer", without) if fault == "no deepstack" else ("position_ids", counted)))
        assert (forward(model, inputs, logits_to_keep=1).logits - stock).abs().max() > 1e-2


SIZES = {
    "as read": {"do_resize": False},
    "resized to the same": {},
    "shrunk": {"size": {"shortest_edge": 1024, "longest_edge": 20_000}},
    "capped": {"cap_pixels_per_frame": True, "size": {"shortest_edge": 1024, "longest_edge": 60_000}},
}
"""longest_edge is of a frame for the Qwen2-VL processor, and of the whole video for that of Qwen3-VL."""


@pytest.mark.parametrize("name", SIZES)
def test_streamed_is_bit_equal_to_read(family, processor, model, talk, clip, name):
    talks = [conversation(video(talk, family), "or"), conversation(video(clip, family), "What colour?")]
    plain = make_inputs(family, processor, *talks, **SIZES[name])
    quickdecode.register(stream=True)
    streamed = make_inputs(family, processor, *talks, **SIZES[name])
    assert isinstance(streamed[PIXELS], LazyTensor) and streamed[PIXELS].known() is None
    assert torch.equal(streamed["video_grid_thw"], plain["video_grid_thw"])
    assert torch.equal(streamed["input_ids"], plain["input_ids"])
    with quickprefill.patched(model, keep=0.5, group_frames=4):
        expected, ours = generate(model, plain), generate(model, streamed)
    assert streamed[PIXELS].known() is None, "the video was never there as a whole"
    assert torch.equal(ours.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, expected.logits, strict=True))
    assert torch.equal(streamed[PIXELS], plain[PIXELS])


@pytest.mark.parametrize("frames", [7, 20])
def test_a_size_that_depends_on_the_number_of_frames(talk, frames):
    """One slice by itself would get another size. transformers' own loading, and an odd number of frames."""
    processor, given = build_processor("qwen3_vl"), []
    for stream in (False, True):
        quickdecode.register(stream=stream)
        content = [{"type": "video", "path": str(talk)}, {"type": "text", "text": "What colour?"}]
        options = {"num_frames": frames, "fps": None, "size": {"shortest_edge": 4096, "longest_edge": 100_000}}
        given.append(
            processor.apply_chat_template(
                [{"role": "user", "content": content}],
                **{"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True},
                processor_kwargs=options,
            )
        )
    plain, streamed = given
    assert isinstance(streamed[PIXELS], LazyTensor) and streamed[PIXELS].known() is None
    slices, height, width = plain["video_grid_thw"][0].tolist()
    assert slices == -(-frames // 2)
    assert slices * 2 * height * width * 16**2 <= 120_000, "the fewer the frames, the larger"
    rows = height * width
    for start in range(0, slices * rows, rows):
        assert torch.equal(streamed[PIXELS].rows(start, start + rows), plain[PIXELS][start : start + rows])
