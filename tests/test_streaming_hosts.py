"""register(stream=True) through the real processors of every family, from a file to the answer."""

from __future__ import annotations

import copy
import functools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from qwen_vl_utils import process_vision_info

import quickdecode
import quickprefill
from quickdecode.decode import ring
from quickdecode.hosts import video_processor
from quickdecode.lazy import frames
from quickdecode.lazy.tensor import LazyTensor
from quickprefill import release
from tests import frame_families
from tests.families import ENCODES_FIRST, FAMILIES
from tests.processors import for_processor, glm, omni, video_llama_3
from tests.quickprefill.calls import generate
from tests.stream_memory import check_it_does_not_grow

PROCESSORS = {
    **frame_families.CHATS,
    **{family: functools.partial(glm, family) for family in ("glm4v", "glm4v_moe", "glm46v")},
    "video_llama_3": functools.partial(video_llama_3, use_token_compression=False),
}
PROCESSORS = {family: build for family, build in PROCESSORS.items() if family in FAMILIES}
SAMPLED = {
    **dict.fromkeys(PROCESSORS, {"num_frames": 12}),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v"), {"fps": 6.0}),
    "smolvlm": {"num_frames": 12, "fps": 6.0},
}
"""How each processor is asked for a dozen frames of two seconds."""
READ_WHOLE = {
    *(frame_families.CHATS if release.is_older_than("5.0") else ()),  # puts the frames of a call into one tensor
    *(("llava_onevision",) if release.is_older_than("5.16") else ()),  # its processor looks into the pixels
}
"""Whose videos cannot come in parts on this release, so that stream=True reads them before the model begins."""

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module", params=PROCESSORS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def processor(family):
    return PROCESSORS[family]()


@pytest.fixture(scope="module")
def model(family):
    return FAMILIES[family].model()


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    """A buffer of 8 frames, so that decoding has to wait; afterwards no thread is left."""
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    monkeypatch.setattr(frames, "BLOCK_FRAMES", 4)
    monkeypatch.setattr("quickdecode.threads.pool.GRACE_SECONDS", 60)  # they give way to whatever else runs here
    monkeypatch.setenv("QUICKDECODE_WORKERS", "2")
    video_processor.warn_once.cache_clear()
    yield
    quickdecode.unregister()
    assert decoding() == 0


def decoding():
    return sum(thread.name.startswith("quickdecode") for thread in threading.enumerate())


def is_lazy(tensor):
    return isinstance(tensor, LazyTensor) and tensor.known() is None


def pixels_of(inputs):
    return inputs["pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"]


def processed(family, processor, *prompts, streaming=True, **options):
    """What a script passes to the model. A prompt is a list of paths of videos, and words."""
    quickdecode.register("transformers", stream=streaming)
    told = {
        "text": [
            " ".join(processor.video_token if isinstance(part, Path) else part for part in prompt) for prompt in prompts
        ],
        "videos": [[str(part) for part in prompt if isinstance(part, Path)] for prompt in prompts],
    }
    if family.startswith("glm"):
        told["text"] = [
            text.replace("<|video|>", "<|begin_of_video|><|video|><|end_of_video|>") for text in told["text"]
        ]
    if family != "smolvlm":  # which takes a list of videos for each prompt
        told["videos"] = [path for paths in told["videos"] for path in paths]
    options = {"do_sample_frames": True, "padding": True, "return_tensors": "pt", **SAMPLED[family], **options}
    return processor(**told, **options)


def both(family, processor, *prompts, **options):
    return [processed(family, processor, *prompts, streaming=streaming, **options) for streaming in (False, True)]


def assert_streamed(family, plain, streamed):
    """All but the pixels is there, and equal; the pixels have their shape, and come in parts where they can."""
    assert plain.keys() == streamed.keys()
    for name, value in plain.items():
        if value is not pixels_of(plain):
            assert type(streamed[name]) is type(value), name
            assert torch.equal(streamed[name], value), name
    ours, expected = pixels_of(streamed), pixels_of(plain)
    assert is_lazy(ours) is (family not in READ_WHOLE)
    assert is_lazy(ours) or torch.equal(ours, expected)
    assert (ours.shape, ours.dtype, ours.device) == (expected.shape, expected.dtype, expected.device)


PROMPTS = {
    "one video": lambda one, other: [["w1 ", one, " w2"]],
    "two videos": lambda one, other: [["w1 ", one, " w3 ", other, " w2"]],
    "a batch": lambda one, other: [["w1 ", one, " w2"], ["w1 w4 w5 ", other, " w2"]],
}


@pytest.mark.parametrize("name", PROMPTS)
def test_streamed_is_bit_equal_to_read(family, processor, model, clip, make_clip, name):
    prompts = PROMPTS[name](clip, make_clip("h264.mkv"))
    plain, streamed = both(family, processor, *prompts)
    assert_streamed(family, plain, streamed)
    with quickprefill.patched(model, keep=0.5, group_frames=4):
        expected = generate(model, plain)
        for _ in range(2):  # the second time it is decoded once more
            ours = generate(model, streamed)
            assert quickprefill.report(model).groups > len(prompts)
            assert torch.equal(ours.sequences, expected.sequences)
            assert all(torch.equal(a, b) for a, b in zip(ours.logits, expected.logits, strict=True))
            assert is_lazy(pixels_of(streamed)) is (family not in READ_WHOLE), "the video was never there as a whole"
            assert decoding() == 0
    assert torch.equal(pixels_of(streamed), pixels_of(plain))


def test_beams(family, processor, model, clip):
    if not FAMILIES[family].beams:
        pytest.skip("the stock model takes no beams with a video")
    plain, streamed = both(family, processor, ["w1 ", clip, " w2"])
    with quickprefill.patched(model, keep=0.5, group_frames=4):
        expected = generate(model, plain, num_beams=3)
        assert torch.equal(generate(model, streamed, num_beams=3).sequences, expected.sequences)
        if ENCODES_FIRST or family != "internvl":  # up to 5.17 generate() repeats each of its frames, a row of its own
            assert quickprefill.report(model).prompts == 1
            assert is_lazy(pixels_of(streamed)) is (family not in READ_WHOLE)


def test_a_chat(family, processor, model, clip):
    """A message with the file's path, as a model's card has it; sampled, cast, and given to an unpatched model."""
    content = [{"type": "video", "path": str(clip)}, {"type": "text", "text": "w1 w2"}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    given = []
    for streaming in (False, True):
        quickdecode.register("transformers", stream=streaming)
        kwargs = {"do_sample_frames": True, **SAMPLED[family]}
        talk = [{"role": "user", "content": content}]
        given.append(processor.apply_chat_template(talk, **for_processor(**kwargs), **options))
    assert_streamed(family, *given)
    plain, streamed = (inputs.to("cpu", dtype=torch.bfloat16) for inputs in given)
    assert_streamed(family, plain, streamed)
    half = copy.deepcopy(model).to(torch.bfloat16)
    expected, ours = (generate(half, inputs) for inputs in (plain, streamed))
    assert torch.equal(ours.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, expected.logits, strict=True))


def test_images_between_videos(clip):
    """InternVL's processor puts tiles of images and frames of videos into one tensor, in the order of the prompt."""
    processor, model = PROCESSORS["internvl"](), FAMILIES["internvl"].model()
    image = torch.arange(3 * 24 * 24).reshape(3, 24, 24).to(torch.uint8)
    given = []
    for streaming in (False, True):
        quickdecode.register("transformers", stream=streaming)
        text = f"w1 {processor.image_token} w2 {processor.video_token} w3 {processor.image_token} w4"
        given.append(
            processor(
                text=[text],
                images=[image, image],
                videos=[str(clip)],
                num_frames=12,
                do_sample_frames=True,
                return_tensors="pt",
            )
        )
    assert_streamed("internvl", *given)
    with quickprefill.patched(model, keep=0.5, group_frames=4):
        expected, ours = (generate(model, inputs) for inputs in given)
    assert torch.equal(ours.sequences, expected.sequences)
    assert is_lazy(given[1]["pixel_values"]) is ("internvl" not in READ_WHOLE)


@pytest.mark.skipif(release.is_older_than("5.0"), reason="transformers 4 takes Qwen's own tokenizer only")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_omni(make_clip):
    """Which holds Qwen2-VL's video processor under a name of its own."""
    video = {"type": "video", "video": str(make_clip("omni.mp4", frames=48)), "fps": 8.0}
    video |= {"resized_height": 56, "resized_width": 84}
    rows = {}
    for streaming in (False, True):
        quickdecode.register(stream=streaming)
        _, videos = process_vision_info([{"role": "user", "content": [video]}])
        inputs = omni(do_resize=False)(
            text=["<|vision_bos|><|VIDEO|><|vision_eos|>"], videos=videos, return_tensors="pt"
        )
        pixels = inputs["pixel_values_videos"]
        assert isinstance(pixels, LazyTensor) is streaming
        rows[streaming] = pixels.rows(0, len(pixels)) if streaming else pixels
    assert torch.equal(rows[True], rows[False])


@pytest.mark.parametrize("family", ["internvl", "llava_onevision", "smolvlm", "glm4v", "video_llama_3"])
def test_memory_does_not_grow_with_the_video(family, make_clip, monkeypatch):
    if family not in PROCESSORS:
        pytest.skip("this transformers has no such model")
    if family in READ_WHOLE:
        pytest.skip("this transformers has the video as a whole")
    processor = PROCESSORS[family]()

    def streamed(length):
        path = make_clip(f"small-{length}.mp4", frames=length, size=(48, 80))
        # GLM and VideoLLaMA3 have so many pixels for all frames together.
        size = {"shortest_edge": 256, "longest_edge": 512 * length} if family in ("glm4v", "video_llama_3") else None
        options = {"do_sample_frames": False, **({"size": size} if size else {})}
        pixels = pixels_of(processed(family, processor, ["w1 ", path, " w2"], **options))
        return pixels, 4 * len(pixels[0] if pixels.ndim == 5 else pixels) // length

    check_it_does_not_grow(monkeypatch, streamed)


def test_dropped_and_refused_inputs_stop_decoding(clip, make_clip):
    if "llava_onevision" in READ_WHOLE:
        pytest.skip("this transformers has the video as a whole, and then nothing is decoding")
    processor = PROCESSORS["llava_onevision"]()
    streamed = processed("llava_onevision", processor, ["w1 ", clip, " w2"])
    assert decoding() == 2
    del streamed
    assert decoding() == 0
    short = make_clip("streamed-20.mp4", frames=20)
    with pytest.raises((ValueError, RuntimeError)):  # videos of unequal length, as without streaming
        processed("llava_onevision", processor, ["w1 ", clip, short, " w2"], do_sample_frames=False)
    assert decoding() == 0


def test_a_frame_of_zeros(make_clip):
    """SmolVLM takes it for filling, and the stock model for an error too."""
    if "smolvlm" not in PROCESSORS:
        pytest.skip("this transformers has no SmolVLM")
    black = make_clip("black.mp4", frames=60, draw=lambda number, height, width: np.zeros((height, width, 3), np.uint8))
    processor, model = PROCESSORS["smolvlm"](), FAMILIES["smolvlm"].model()
    inputs = processed("smolvlm", processor, ["w1 ", black, " w2"], do_normalize=False)
    said = "placeholders for 12 picture" if "smolvlm" in READ_WHOLE else "has only zeros"
    with quickprefill.patched(model, group_frames=4), pytest.raises(quickprefill.InputError, match=said):
        generate(model, inputs)
    assert decoding() == 0
