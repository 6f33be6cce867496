"""Tiny models of families whose tower sees each frame as a picture, and their real processors with small tokenizers."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch

from quickprefill import release
from tests.tiny import FIRST_WORD, IMAGE, PAD, VIDEO, VISION_END, VISION_START, VOCAB, Clip

LAST_WORD = 36
"""Of the words that every tokenizer here has."""
PATCH = 4
"""Pixels along a side of a patch."""
ODD, EVEN = 5 * PATCH, 6 * PATCH
"""Pixels along a side of a frame; LLaVA-OneVision has an odd number of patches there (27), the others an even one."""
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": PAD,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
LLAVA_ONEVISION_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}\n{{ part['text'] }}{% else %}<{{ part['type'] }}>{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""After https://huggingface.co/docs/transformers/model_doc/llava_onevision, "Usage tips": the prompt of its chats."""
LLAVA_NEXT_VIDEO_CHAT = (
    "{% for message in messages %}{{ message['role'] | upper }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}\n{{ part['text'] }}{% else %}<{{ part['type'] }}>{% endif %}"
    "{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""After https://huggingface.co/docs/transformers/model_doc/llava_next_video, "Usage tips": the prompt of Vicuna."""
INTERNVL_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<{{ part['type'] }}>\n{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""After the prompts of https://huggingface.co/docs/transformers/model_doc/internvl; <image> is its <IMG_CONTEXT>."""
LLAVA = {"image_token_index": IMAGE, "video_token_index": VIDEO}


def pinpoints(side: int) -> list[list[int]]:
    """Sizes to which an image may be brought before it is cut into tiles."""
    return [[side, side], [side, 2 * side], [2 * side, side], [2 * side, 2 * side]]


def tokenizer(**names: str) -> Any:
    """Words of the tiny vocabulary, each a token of its own, and the special tokens of a chat."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "<|im_start|>": VISION_START, "<|im_end|>": VISION_END, "<image>": IMAGE, "<video>": VIDEO}
    vocabulary = special | {f"w{index}": index for index in range(FIRST_WORD, VOCAB)}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=f"w{FIRST_WORD}"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        additional_special_tokens=list(special)[1:],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def spelling_tokenizer(**named: str) -> Any:
    """As above, but text is cut as byte-level tokenizers do: words, digits, marks, spaces, line breaks."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = {"start_token": "<|im_start|>", "end_token": "<|im_end|>", "video_token": "<video>", **named}
    special = list(named.values())
    text = ["\n", "\n\n", " ", ":", "Frame", " from", *"0123456789"]
    words = [f"w{index}" for index in range(VOCAB - 1 - len(special) - len(text))]
    vocabulary = {token: index for index, token in enumerate(["<pad>", *special, *text, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    pattern = Regex(r"w\d+|\n+| from| |[A-Za-z]+|\d|[^\w\s]")
    made.pre_tokenizer = pre_tokenizers.Split(pattern, behavior="isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        extra_special_tokens=named,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


@functools.cache
def internvl_processor() -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    size = {"height": EVEN, "width": EVEN}
    return InternVLProcessor(
        GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        spelling_tokenizer(context_image_token="<image>", start_image_token="<img>", end_image_token="</img>"),
        InternVLVideoProcessor(size=size),
        image_seq_length=(EVEN // PATCH // 2) ** 2,
        chat_template=INTERNVL_CHAT,
    )


def internvl_config(text: Mapping[str, Any] = MappingProxyType({"model_type": "qwen3"})) -> Any:
    from transformers import InternVLConfig

    return InternVLConfig(
        text_config={"head_dim": 8, **TEXT, **text},
        vision_config={"image_size": EVEN, **VISION},
        image_token_id=internvl_processor().image_token_id,
        image_seq_length=(EVEN // PATCH // 2) ** 2,
    )


@functools.cache
def smolvlm_processor() -> Any:
    pytest.importorskip("num2words")  # the processor writes numbers out
    from transformers import SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    size = {"size": {"longest_edge": EVEN}, "max_image_size": {"longest_edge": EVEN}}
    return SmolVLMProcessor(
        SmolVLMImageProcessor(**size, do_image_splitting=False),
        spelling_tokenizer(
            image_token="<image>",
            fake_image_token="<fake_token_around_image>",
            global_image_token="<global-img>",
        ),
        SmolVLMVideoProcessor(**size, do_sample_frames=False),
        image_seq_len=(EVEN // PATCH // 2) ** 2,
    )


def smolvlm_config() -> Any:
    from transformers import SmolVLMConfig

    return SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config={"image_size": EVEN, **VISION},
        image_token_id=smolvlm_processor().image_token_id,
        scale_factor=2,
    )


@functools.cache
def llava_onevision_processor() -> Any:
    from transformers import LlavaOnevisionImageProcessor, LlavaOnevisionProcessor, LlavaOnevisionVideoProcessor

    size = {"size": {"height": ODD, "width": ODD}}
    return LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(**size, image_grid_pinpoints=pinpoints(ODD)),
        tokenizer(),
        LlavaOnevisionVideoProcessor(**size),
        num_image_tokens=(ODD // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_ONEVISION_CHAT,
    )


def llava_onevision_config() -> Any:
    from transformers import LlavaOnevisionConfig

    vision = {"model_type": "siglip_vision_model", "vision_use_head": False, "image_size": ODD, **VISION}
    return LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **TEXT},
        vision_config=vision,
        image_grid_pinpoints=pinpoints(ODD),
        **LLAVA,
    )


@functools.cache
def llava_next_video_processor() -> Any:
    from transformers import LlavaNextImageProcessor, LlavaNextVideoProcessor, LlavaNextVideoVideoProcessor

    if release.is_older_than("5.0"):  # there it takes a tokenizer of Llama's kind only
        LlavaNextVideoProcessor.tokenizer_class = "AutoTokenizer"
    size = {"size": {"shortest_edge": EVEN}, "crop_size": {"height": EVEN, "width": EVEN}}
    return LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**size),
        LlavaNextImageProcessor(**size, image_grid_pinpoints=pinpoints(EVEN)),
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_NEXT_VIDEO_CHAT,
    )


def llava_next_video_config() -> Any:
    from transformers import LlavaNextVideoConfig

    vision = {"model_type": "clip_vision_model", "image_size": EVEN, **VISION}
    return LlavaNextVideoConfig(
        text_config={"model_type": "llama", **TEXT},
        vision_config=vision,
        image_grid_pinpoints=pinpoints(EVEN),
        **LLAVA,
    )


def processed(
    made: Callable[[], Any], *prompts: list[int | Clip], seed: int = 1, nested: bool = False
) -> dict[str, torch.Tensor]:
    """A batch of prompts as the processor gives them. All videos have as many frames as the first.

    nested: whether the processor takes a list of videos for each prompt.
    """
    processor, generator = made(), torch.Generator().manual_seed(seed)
    clips = [part for parts in prompts for part in parts if isinstance(part, Clip)]
    frames = next((clip.grid[0] for clip in clips if not clip.image), 0)

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (*shape, 3, EVEN, EVEN), generator=generator, dtype=torch.uint8)

    def said(part: int | Clip) -> str:
        if isinstance(part, int):
            return " ".join(f"w{index}" for index in torch.randint(FIRST_WORD, LAST_WORD, (part,), generator=generator))
        return processor.image_token if part.image else processor.video_token

    texts = [" ".join(map(said, parts)) for parts in prompts]
    given: dict[str, Any] = {
        "images": [pixels() for clip in clips if clip.image] or None,
        "videos": [pixels(frames) for clip in clips if not clip.image] or None,
    }
    videos = given["videos"]
    if videos:
        length = {"fps": 1, "total_num_frames": frames, "duration": frames, "frames_indices": list(range(frames))}
        given["video_metadata"] = [length] * len(videos)
    if videos and nested:
        counts = [sum(isinstance(part, Clip) and not part.image for part in parts) for parts in prompts]
        given["videos"] = [[videos.pop(0) for _ in range(count)] for count in counts]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old releases give numpy a tensor
        inputs = processor(text=texts, padding=True, return_tensors="pt", **given)
    return dict(inputs)


CHATS = {
    "internvl": internvl_processor,
    "llava_next_video": llava_next_video_processor,
    "llava_onevision": llava_onevision_processor,
    "smolvlm": smolvlm_processor,
}
"""Family -> its processor, which has a chat template."""
FAMILIES = {
    "internvl": (
        internvl_config,
        "InternVLForConditionalGeneration",
        functools.partial(processed, internvl_processor),
    ),
    "smolvlm": (
        smolvlm_config,
        "SmolVLMForConditionalGeneration",
        functools.partial(processed, smolvlm_processor, nested=True),
    ),
    "llava_next_video": (
        llava_next_video_config,
        "LlavaNextVideoForConditionalGeneration",
        functools.partial(processed, llava_next_video_processor),
    ),
    "llava_onevision": (
        llava_onevision_config,
        "LlavaOnevisionForConditionalGeneration",
        functools.partial(processed, llava_onevision_processor),
    ),
}
"""Family -> its tiny config, the model's class, and what lays prompts out."""
