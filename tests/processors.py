"""The real processor classes, built offline: a tokenizer that spells lower case, and templates from documented prompts.

The tokenizer's ids are those of tests/tiny.py and tests/families.py, so its prompts go to the tiny models.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers import ProcessorMixin

from tests.families import AUDIO, AUDIO_END, AUDIO_START, FIRST_EXTRA, VIDEO_END, VIDEO_START
from tests.tiny import FIRST_WORD, IMAGE, PAD, VIDEO, VISION_END, VISION_START, VOCAB

_LETTERS = " abcdefghijklmnopqrstuvwxyz0123456789.,:?<>\n"


def tokenizer(specials: Mapping[str, int], **names: str) -> Any:
    """One token a letter; `specials` are special tokens with their ids, `names` what the host calls some of them."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: FIRST_WORD + at for at, letter in enumerate(_LETTERS)}
    assert max(letters.values()) < FIRST_EXTRA
    taken = {*letters.values(), *specials.values()}
    unused = {f"<|unused_{at}|>": at for at in range(VOCAB) if at not in taken}
    model = Tokenizer(models.WordLevel({**letters, **specials, **unused}, unk_token="?"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    model.add_special_tokens(list(specials))
    pad = next(token for token, number in specials.items() if number == PAD)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=pad,
        padding_side="left",
        extra_special_tokens=dict(names),
        model_input_names=["input_ids", "attention_mask"],
    )


_OMNI = {
    "<|endoftext|>": PAD,
    "<|vision_bos|>": VISION_START,
    "<|vision_eos|>": VISION_END,
    "<|IMAGE|>": IMAGE,
    "<|VIDEO|>": VIDEO,
    "<|AUDIO|>": AUDIO,
    "<|audio_bos|>": AUDIO_START,
    "<|audio_eos|>": AUDIO_END,
}
_OMNI_NAMES = {
    **{"image_token": "<|IMAGE|>", "video_token": "<|VIDEO|>", "audio_token": "<|AUDIO|>"},
    **{"vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>"},
    **{"audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"},
}


def omni(**sizes: Any) -> Any:
    """Qwen2.5-Omni's; `sizes` are options of its image and video processors."""
    from transformers import Qwen2_5OmniProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, WhisperFeatureExtractor

    return Qwen2_5OmniProcessor(
        Qwen2VLImageProcessor(**sizes),
        Qwen2VLVideoProcessor(**sizes, do_sample_frames=False),
        WhisperFeatureExtractor(feature_size=8, chunk_length=6),
        tokenizer(_OMNI, **_OMNI_NAMES),
    )


def for_processor(**options: Any) -> dict[str, Any]:
    """Arguments of apply_chat_template() that are meant for the processor; early releases take them among its own."""
    own = inspect.signature(ProcessorMixin.apply_chat_template).parameters
    return {"processor_kwargs": options} if "processor_kwargs" in own else options


_CHAT = (
    "{%% for message in messages %%}\n{{ message['role'] }}{%% for part in message['content'] %%}"
    "{%% if part['type'] == 'text' %%}{{ part['text'] }}{%% else %%}%s{%% endif %%}"
    "{%% endfor %%}{%% endfor %%}{%% if add_generation_prompt %%}\nassistant{%% endif %%}"
)
"""Of a turn, with what stands for a video; the roles' tokens are left away."""
_GLM = {
    "<|endoftext|>": PAD,
    "<|begin_of_image|>": VISION_START,
    "<|end_of_image|>": VISION_END,
    "<|image|>": IMAGE,
    "<|video|>": VIDEO,
    "<|begin_of_video|>": VIDEO_START,
    "<|end_of_video|>": VIDEO_END,
}


def glm(family: str, **options: Any) -> Any:
    """GLM-4.1V's, 4.5V's or 4.6V's; `options` are its video processor's. After chat_template.jinja of
    zai-org/GLM-4.1V-9B-Thinking."""
    import transformers

    name = "Glm46V" if family == "glm46v" else "Glm4v"  # a release may lack one of them
    kind, videos = (getattr(transformers, f"{name}{part}Processor") for part in ("", "Video"))
    size = {"shortest_edge": 16 * 16, "longest_edge": 16 * 24 * 8}
    return kind(
        transformers.Glm4vImageProcessor(patch_size=4, size=size),
        tokenizer(_GLM),
        videos(**{"patch_size": 4, "size": size, "do_sample_frames": False, **options}),
        chat_template=_CHAT % "<|begin_of_video|><|video|><|end_of_video|>",
    )


_VIDEO_LLAMA_3 = {"<|endoftext|>": PAD, "<image>": IMAGE, "<|video_pad|>": VIDEO}


def video_llama_3(**options: Any) -> Any:
    """VideoLLaMA3's; `options` are its video processor's. After chat_template.jinja of DAMO-NLP-SG/VideoLLaMA3-7B."""
    from transformers import VideoLlama3ImageProcessor, VideoLlama3Processor, VideoLlama3VideoProcessor

    size = {"shortest_edge": 16 * 16, "longest_edge": 16 * 24 * 64}
    return VideoLlama3Processor(
        VideoLlama3ImageProcessor(patch_size=4, size=size),
        tokenizer(_VIDEO_LLAMA_3, image_token="<image>", video_token="<|video_pad|>"),
        VideoLlama3VideoProcessor(**{"patch_size": 4, "size": size, **options}),
        chat_template=_CHAT % "<|video_pad|>\n",
    )


def clip(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    """(frames, 3, height, width) uint8: noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)
