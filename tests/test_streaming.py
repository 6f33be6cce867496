"""register(stream=True): file to answer through the stock calls, frames being decoded while the model prefills."""

from __future__ import annotations

import copy
import os
import threading
from pathlib import Path

import av
import pytest
import torch
from qwen_vl_utils import process_vision_info, vision_process
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

import quickdecode
import quickprefill
from quickdecode.decode import ring
from quickdecode.lazy import frames
from quickdecode.lazy.tensor import LazyTensor
from tests.processors import for_processor
from tests.stream_memory import check_it_does_not_grow

CHECKPOINT = Path(__file__).parent.parent / "examples" / "tiny-qwen2.5-vl"
PIXELS = "pixel_values_videos"
KEEP_ALL = {"keep": 1.0, "group_frames": 8}
HALF = {"keep": 0.5, "group_frames": 8}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(str(CHECKPOINT))


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(str(CHECKPOINT), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def talk(make_clip):
    return make_clip("talk.mp4", frames=100, gop=20)


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch):
    """A buffer of 8 frames, so that decoding has to wait; afterwards no thread or file handle is left."""
    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)
    monkeypatch.setattr(frames, "BLOCK_FRAMES", 4)
    monkeypatch.setattr("quickdecode.lazy.tensor.PART_BYTES", 20_000)
    monkeypatch.setattr("quickdecode.threads.pool.GRACE_SECONDS", 60)  # they give way to whatever else runs here
    monkeypatch.setenv("QUICKDECODE_WORKERS", "2")
    yield
    quickdecode.unregister()
    assert decoding() == 0


def decoding():
    return sum(thread.name.startswith("quickdecode") for thread in threading.enumerate())


def open_files():
    """Video files that are open, on Linux."""
    folder = Path("/proc/self/fd")
    names = [os.readlink(folder / name) for name in os.listdir(folder) if (folder / name).exists()]
    return [name for name in names if name.endswith(".mp4")]


def conversation(*paths, fps=12.0, **options):
    size = {} if options else {"resized_height": 56, "resized_width": 84}
    videos = [{"type": "video", "video": str(path), "fps": fps, **size, **options} for path in paths]
    return [{"role": "user", "content": [*videos, {"type": "text", "text": "What colour is it?"}]}]


def make_inputs(processor, *talks, **options):
    """What any Qwen script does."""
    text = [processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks]
    images, videos, extra = process_vision_info(talks, return_video_kwargs=True, return_video_metadata=True)
    pictures, metadata = zip(*videos, strict=True)
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt", **options, **extra}
    return processor(text=text, images=images, videos=list(pictures), video_metadata=list(metadata), **options)


@pytest.fixture
def both(processor):
    """Inputs of one kind, read at once and streamed."""

    def make(*talks, **options):
        quickdecode.register()
        plain = make_inputs(processor, *talks, **options)
        quickdecode.register(stream=True)
        streamed = make_inputs(processor, *talks, **options)
        return plain, streamed

    return make


def generate(model, inputs, **options):
    options = {"max_new_tokens": 3, "do_sample": False, **options}
    return model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)


def assert_identical(ours, stock):
    assert torch.equal(ours.sequences, stock.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, stock.logits, strict=True))


def is_lazy(tensor):
    return isinstance(tensor, LazyTensor) and tensor.known() is None


TALKS = {
    "one video": lambda talk, clip: [conversation(talk)],
    "several videos": lambda talk, clip: [conversation(talk, clip, talk)],
    "a batch": lambda talk, clip: [conversation(talk), conversation(clip, fps=6.0), conversation(talk)],
}


@pytest.mark.spine
@pytest.mark.parametrize("config", [KEEP_ALL, HALF], ids=["all", "half"])
@pytest.mark.parametrize("name", TALKS)
def test_streamed_is_bit_equal_to_read(both, model, talk, clip, name, config):
    plain, streamed = both(*TALKS[name](talk, clip))
    assert is_lazy(streamed[PIXELS])
    assert {key: (value.shape, value.dtype) for key, value in streamed.items()} == {
        key: (value.shape, value.dtype) for key, value in plain.items()
    }
    assert torch.equal(streamed["video_grid_thw"], plain["video_grid_thw"])
    with quickprefill.patched(model, **config):
        expected = generate(model, plain)
        assert_identical(generate(model, streamed), expected)
        assert decoding() == 0
        assert open_files() == []
        assert is_lazy(streamed[PIXELS]), "the video was never there as a whole"
        assert_identical(generate(model, streamed), expected)  # decoded a second time
    assert torch.equal(streamed[PIXELS], plain[PIXELS])


@pytest.mark.gpu
@pytest.mark.parametrize("name", TALKS)
def test_streamed_to_a_gpu(both, model, talk, clip, name):
    """Frames cross as uint8 and are normalised there: the same up to rounding."""
    plain, streamed = both(*TALKS[name](talk, clip))
    model, plain, streamed = copy.deepcopy(model).cuda(), plain.to("cuda"), streamed.to("cuda")
    with quickprefill.patched(model, **KEEP_ALL):
        ours, expected = (generate(model, inputs, max_new_tokens=1) for inputs in (streamed, plain))
    assert is_lazy(streamed[PIXELS])
    assert decoding() == 0
    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(streamed[PIXELS].rows(0, len(plain[PIXELS])), plain[PIXELS], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"do_resize": False}, {}, {"size": {"shortest_edge": 784, "longest_edge": 1600}}])
def test_the_processors_options(both, talk, options):
    """Its resize included, which here does nothing, nothing again, and shrinks the frames."""
    plain, streamed = both(conversation(talk), **options)
    assert is_lazy(streamed[PIXELS])
    assert torch.equal(streamed["video_grid_thw"], plain["video_grid_thw"])
    rows = len(plain[PIXELS]) // 3 + 1
    assert torch.equal(streamed[PIXELS].rows(0, rows), plain[PIXELS][:rows])
    assert torch.equal(streamed[PIXELS], plain[PIXELS])


def test_a_cap_on_the_whole_video(talk, processor):
    """One slice alone would be resized to another size than the whole video is."""
    if "max_video_tokens" not in dir(processor.video_processor):
        pytest.skip("this transformers has no such cap")
    processor = copy.deepcopy(processor)
    processor.video_processor.max_video_tokens = 40
    options = {"cap_pixels_per_frame": True, "size": {"shortest_edge": 784, "longest_edge": 56 * 84}}
    quickdecode.register()
    plain = make_inputs(processor, conversation(talk), **options)
    quickdecode.register(stream=True)
    given = make_inputs(processor, conversation(talk), **options)
    assert plain["video_grid_thw"][0, 1:].tolist() != [4, 6]
    assert is_lazy(given[PIXELS])
    assert torch.equal(given[PIXELS].rows(0, 100), plain[PIXELS][:100])
    assert torch.equal(given[PIXELS], plain[PIXELS])


def test_somebody_elses_resize_gets_the_whole_video(talk, processor):
    class Mirrored(type(processor.video_processor)):
        def resize(self, videos, **kwargs):
            return super().resize(videos, **kwargs).flip(-1)

    processor = copy.deepcopy(processor)
    processor.video_processor.__class__ = Mirrored
    quickdecode.register()
    plain = make_inputs(processor, conversation(talk))
    quickdecode.register(stream=True)
    given = make_inputs(processor, conversation(talk))
    assert not is_lazy(given[PIXELS])
    assert torch.equal(given[PIXELS], plain[PIXELS])


def test_moving_and_casting_inputs(both, model, talk):
    plain, streamed = both(conversation(talk))
    half = streamed.to("cpu", dtype=torch.bfloat16)
    assert is_lazy(half[PIXELS]) and half[PIXELS].dtype == torch.bfloat16
    model = copy.deepcopy(model).to(torch.bfloat16)
    with quickprefill.patched(model, **HALF):
        assert_identical(generate(model, half), generate(model, plain.to(torch.bfloat16)))


@pytest.mark.spine
def test_beams_share_one_prefill(both, model, talk):
    plain, streamed = both(conversation(talk))
    with quickprefill.patched(model, **HALF):
        expected = generate(model, plain, num_beams=3)
        assert torch.equal(generate(model, streamed, num_beams=3).sequences, expected.sequences)
        assert quickprefill.report(model).prompts == 1
    assert is_lazy(streamed[PIXELS])


def test_a_policy_that_wants_the_whole_video(both, model, talk):
    plain, streamed = both(conversation(talk))
    with quickprefill.patched(model, policy=quickprefill.policies.PruneVid(layer=1), group_frames=8):
        assert_identical(generate(model, streamed), generate(model, plain))


def test_an_unpatched_model_gets_the_whole_video(both, model, talk):
    plain, streamed = both(conversation(talk))
    assert_identical(generate(model, streamed), generate(model, plain))
    assert decoding() == 0


@pytest.mark.spine
def test_transformers_own_loading_streams_too(processor, model, talk):
    given = []
    for streaming in (False, True):
        quickdecode.register(stream=streaming)
        content = [{"type": "video", "path": str(talk)}, {"type": "text", "text": "What colour is it?"}]
        given.append(
            processor.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                **for_processor(fps=4.0, do_sample_frames=True, size={"shortest_edge": 784, "longest_edge": 9408}),
            )
        )
    plain, streamed = given
    assert is_lazy(streamed[PIXELS])
    with quickprefill.patched(model, **KEEP_ALL):
        assert_identical(generate(model, streamed), generate(model, plain))
    assert torch.equal(streamed[PIXELS], plain[PIXELS])


def test_a_size_that_the_reader_cannot_settle_is_read_at_once(processor, talk):
    """fetch_video would resize once more, so it gets frames that are there."""
    quickdecode.register(stream=True)
    element = conversation(talk, min_pixels=3000, max_pixels=3200)
    _, videos = process_vision_info(element)
    assert type(videos[0]) is torch.Tensor or is_lazy(videos[0])
    assert videos[0].shape[2] * videos[0].shape[3] >= 784


@pytest.mark.parametrize("host", ["qwen_vl_utils", "transformers"])
def test_an_error_while_decoding_reaches_the_caller_of_generate(processor, model, make_clip, tmp_path, host):
    sound = make_clip("sound.mp4", frames=80, options={"bf": "0"})
    content = bytearray(sound.read_bytes())
    with av.open(str(sound)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[50:60]:
        content[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path = tmp_path / "broken.mp4"
    path.write_bytes(content)
    quickdecode.register(stream=True)
    if host == "transformers":
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        talk = conversation(path)
        inputs = processor.apply_chat_template(talk, **for_processor(fps=30.0), **options)
    else:
        inputs = make_inputs(processor, conversation(path, fps=30.0))
    with quickprefill.patched(model, **HALF):
        for _ in range(2):
            with pytest.raises(quickdecode.DecodeError, match=r"broken\.mp4: .* frames 48 to 59"):
                generate(model, inputs)
            assert decoding() == 0
            assert open_files() == []
    with pytest.raises(quickdecode.DecodeError, match=r"broken\.mp4"):
        inputs[PIXELS].sum()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_generate_stops_decoding(both, model, talk, error):
    plain, streamed = both(conversation(talk))
    calls, seen = [], []

    def interrupt(module, args):
        calls.append(1)
        if len(calls) == 3:
            seen.append(decoding())
            raise error("stop")

    with quickprefill.patched(model, **HALF):
        hook = model.model.language_model.layers[1].register_forward_pre_hook(interrupt)
        with pytest.raises(error, match="stop"):
            generate(model, streamed)
        hook.remove()
        assert seen[0] >= 1, "it was still being decoded"
        assert decoding() == 0
        assert open_files() == []
        assert_identical(generate(model, streamed), generate(model, plain))


def test_memory_does_not_grow_with_the_video(processor, make_clip, monkeypatch):
    def streamed(length):
        inputs = make_inputs(processor, conversation(make_clip(f"long-{length}.mp4", frames=length), fps=15.0))
        return inputs[PIXELS], 4 * int(inputs["video_grid_thw"][0, 1:].prod())

    quickdecode.register(stream=True)
    check_it_does_not_grow(monkeypatch, streamed)


def test_dropping_the_inputs_stops_decoding(processor, talk):
    quickdecode.register(stream=True)
    inputs = make_inputs(processor, conversation(talk))
    assert decoding() == 2
    assert open_files() in ([str(talk)] * 2, [])
    del inputs
    assert decoding() == 0
    assert open_files() == []


def test_two_models_on_one_video(both, model, talk):
    """Two threads generate from the same inputs."""
    plain, streamed = both(conversation(talk))
    answers = {}
    with quickprefill.patched(model, **HALF):
        expected = generate(model, plain)
        threads = [
            threading.Thread(target=lambda name=name: answers.update({name: generate(model, streamed)}))
            for name in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 2
    for answer in answers.values():
        assert_identical(answer, expected)


def test_register_switches_and_unregister_restores(talk):
    before = (Qwen2VLVideoProcessor._preprocess, vision_process.fetch_video)
    quickdecode.register("qwen_vl_utils", stream=True)
    assert is_lazy(process_vision_info(conversation(talk))[1][0])
    quickdecode.register("qwen_vl_utils", stream=True)
    quickdecode.register("transformers", stream=True)
    quickdecode.unregister("qwen_vl_utils")
    assert Qwen2VLVideoProcessor._preprocess is not before[0], "transformers' own loading still streams"
    quickdecode.register("qwen_vl_utils")
    quickdecode.register("transformers")
    assert Qwen2VLVideoProcessor._preprocess is before[0]
    assert type(process_vision_info(conversation(talk))[1][0]) is torch.Tensor
    quickdecode.register(stream=True)
    quickdecode.unregister()
    assert (Qwen2VLVideoProcessor._preprocess, vision_process.fetch_video) == before
