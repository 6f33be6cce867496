"""Build the tiny Qwen2.5-VL: tokenizer, chat template, processors and a model with random weights, in the usual files.

python -m examples.needle.checkpoint FOLDER        # random weights; `python -m examples.needle.train` trains them
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from examples.needle.vocabulary import MAX_SECOND, WORDS

__all__ = ["CHAT_TEMPLATE", "FRAME_SIZE", "SPECIAL_TOKENS", "build_config", "build_model", "build_processor"]

FRAME_SIZE = 56
"""Height and width of a frame in pixels: 2 x 2 tokens after the vision tower's merge, the least it takes."""

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# ChatML, as Qwen2.5-VL speaks it, but without a default system message.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words where the suite knows them, else bytes; so every text can be written and read back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [word.replace(" ", "Ġ") for word in WORDS]  # the byte-level spelling of a blank
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL_TOKENS, *alphabet, *words)))}
    # ignore_merges takes a word of the vocabulary as it is; without any merge, all else stays bytes.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    pieces = Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=32768,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> Qwen2_5_VLProcessor:
    """The stock processor, with sizes that bring every picture to FRAME_SIZE squared pixels in area."""
    size = {"shortest_edge": FRAME_SIZE**2, "longest_edge": FRAME_SIZE**2}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=build_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast, **text: Any) -> Qwen2_5_VLConfig:
    """The geometry; the 7B model's values stand beside the small ones. `text` overrides those of the decoder."""
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        "vocab_size": len(tokenizer),  # 152064
        "hidden_size": 128,  # 3584
        "intermediate_size": 384,  # 18944
        "num_hidden_layers": 6,  # 28
        "num_attention_heads": 4,  # 28
        "num_key_value_heads": 2,  # 4
        "max_position_embeddings": 32768,  # 128000
        # Sections (t, h, w) of the 16 frequencies of a head; the 7B model has 64 and (16, 24, 24).
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [8, 4, 4]},
        "initializer_range": 0.05,  # 0.02
        "bos_token_id": None,
        "eos_token_id": special["<|im_end|>"],
        "pad_token_id": special["<|endoftext|>"],
        **text,
    }
    vision = {
        "depth": 2,  # 32
        "hidden_size": 96,  # 1280
        "intermediate_size": 192,  # 3420
        "num_heads": 3,  # 16
        "window_size": 112,  # 112
        "fullatt_block_indexes": [1],  # [7, 15, 23, 31]
        "tokens_per_second": 2,  # 2
        "out_hidden_size": text["hidden_size"],
        "initializer_range": 0.05,  # 0.02
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **text: Any
) -> Qwen2_5_VLForConditionalGeneration:
    """The model with random weights, drawn from `seed`; only the numbers are not strangers to each other."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(tokenizer, **text))
    _order_numbers(model, tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=4,
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval()


@torch.no_grad()
def _order_numbers(model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the words of the seconds start on a smooth curve, with the frequencies of the rotary positions.

    Each is a single token, so nothing else tells the model that 7 lies between 6 and 8.
    """
    config = model.config.get_text_config()
    per_second = model.config.vision_config.tokens_per_second
    rotary = model.model.language_model.rotary_emb
    temporal = rotary.inv_freq[: config.rope_parameters["mrope_section"][0]].double()
    angles = torch.arange(MAX_SECOND + 1, dtype=torch.double)[:, None] * per_second * temporal
    curve = torch.cat([angles.cos(), angles.sin()], dim=1)
    directions = torch.randn(curve.shape[1], config.hidden_size, dtype=torch.double)
    rows = curve @ directions * config.initializer_range
    numbers = [tokenizer(f" {second}").input_ids for second in range(MAX_SECOND + 1)]
    embeddings = model.get_input_embeddings().weight
    embeddings[torch.tensor(numbers)[:, 0]] = (rows / (curve.shape[1] / 2) ** 0.5).to(embeddings.dtype)


def save(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path, card: str) -> None:
    """Write the checkpoint, its processor and its model card."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(card)


def main() -> None:
    """Write an untrained checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    processor = build_processor()
    model = build_model(processor.tokenizer, seed=arguments.seed)
    save(model, processor, arguments.folder, "# Tiny Qwen2.5-VL\n\nRandom weights: it answers nothing yet.\n")
    print(f"{model.num_parameters():,} parameters in {arguments.folder}")


if __name__ == "__main__":
    main()
