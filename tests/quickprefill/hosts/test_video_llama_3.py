"""VideoLLaMA3: frames of unequal length in the prompt."""

import pytest
import torch

import quickprefill
from quickprefill.hosts.video_llama_3 import VideoLLaMA3
from tests.families import FAMILIES, build_inputs, skip_without
from tests.processors import clip, video_llama_3
from tests.tiny import VIDEO, Clip, prompt

FAMILY = "video_llama_3"
skip_without(FAMILY)


@pytest.fixture(scope="module")
def model():
    return FAMILIES[FAMILY].model()


@pytest.fixture(scope="module")
def inputs():
    return build_inputs(FAMILY, prompt(3, Clip((6, 4, 8)), 2, Clip((3, 4, 4)), 4))


def last_logits(model, inputs, **config):
    with torch.no_grad(), quickprefill.patched(model, **{"keep": 1.0, "group_frames": 2, **config}):
        return model(**inputs).logits[:, -1]


def test_a_fault_shows(model, inputs, monkeypatch):
    with torch.no_grad():
        stock = model(**inputs).logits[:, -1]
    torch.testing.assert_close(last_logits(model, inputs), stock, atol=1e-4, rtol=1e-4)
    right = VideoLLaMA3.grids
    mirrored = {"video_compression_mask": torch.cat([part.flip(1).flatten() for part in masks(inputs)])}
    monkeypatch.setattr(VideoLLaMA3, "grids", lambda self, core, call: right(self, core, {**call, **mirrored}))
    assert (last_logits(model, inputs) - stock).abs().max() > 1e-2, "another token of each frame"
    monkeypatch.undo()
    length = inputs["input_ids"].shape[1]
    monkeypatch.setattr(VideoLLaMA3, "position_ids", lambda *_: torch.arange(length).flip(0)[None, None])
    assert (last_logits(model, inputs) - stock).abs().max() > 1e-2, "other positions"


def masks(inputs):
    """Of each video, (frames, tokens of a frame)."""
    shapes = [(t, h * w // 4) for t, h, w in inputs["video_grid_thw"].tolist()]
    parts = inputs["video_compression_mask"].split([t * size for t, size in shapes])
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


def test_budgets_count_what_the_prompt_holds(model, inputs):
    held = int((inputs["input_ids"] == VIDEO).sum())
    assert held < inputs["video_grid_thw"].prod(dim=1).sum() // 4
    with quickprefill.patched(model, keep=0.5):
        assert quickprefill.estimate(model, inputs).video_tokens == held
        last_logits(model, inputs, keep=0.5)
        model.generate(**inputs, max_new_tokens=2)
        report = quickprefill.report(model)
    assert report.video_tokens == held
    assert report.stored_tokens == pytest.approx([held / 2] * 3, abs=1)


def test_a_mask_of_other_videos_is_named(model, inputs):
    short = {**inputs, "video_compression_mask": inputs["video_compression_mask"][:-1]}
    with quickprefill.patched(model), pytest.raises(quickprefill.InputError, match="video_compression_mask says of 59"):
        model.generate(**short, max_new_tokens=2)
    full = {**inputs, "video_compression_mask": torch.ones_like(inputs["video_compression_mask"])}
    with quickprefill.patched(model), pytest.raises(quickprefill.InputError, match="no placeholder tokens"):
        model.generate(**full, max_new_tokens=2)


@pytest.fixture(scope="module")
def still():
    """Frames half of which stay as they were in the frame before."""
    frames = clip(6)
    frames[1:, :, :, 8:] = frames[0, :, :, 8:]
    return frames


# As chat_template.jinja of DAMO-NLP-SG/VideoLLaMA3-7B lays a user's turn out, roles left away.
@pytest.mark.spine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compression", [True, False])
def test_prompts_of_the_real_processor(model, still, compression):
    inputs = video_llama_3()(
        text=["<|video_pad|>\nand <|video_pad|>\nwhat moves?"],
        videos=[still, clip(2, seed=1)],
        use_token_compression=compression,
        video_metadata=[{"fps": 1, "total_num_frames": n, "frames_indices": list(range(n))} for n in (6, 2)],
        return_tensors="pt",
    )
    assert int((inputs["input_ids"] == VIDEO).sum()) == (6 + 5 * 2 + 12 if compression else 48)
    stock = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    for group_frames in (2, None):
        with quickprefill.patched(model, keep=1.0, group_frames=group_frames):
            assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), stock)
    with quickprefill.patched(model, keep=0.5, policy="vidcom2"):
        if compression:
            with pytest.raises(quickprefill.InputError, match="28 of the 48|16 of the 36|use_token_compression=False"):
                model.generate(**inputs, max_new_tokens=2)
        else:
            model.generate(**inputs, max_new_tokens=2)
            assert quickprefill.report(model).entered_tokens == 24
