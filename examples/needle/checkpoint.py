"""Build a family's tiny model: tokenizer, chat template, processors and random weights, in the usual files.

python -m examples.needle.checkpoint FOLDER        # random weights; `python -m examples.needle.train` trains them
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GenerationConfig, PreTrainedTokenizerFast

from examples.needle.families import FAMILIES, Family
from examples.needle.vocabulary import MAX_SECOND, WORDS

__all__ = ["build_model", "build_processor", "build_tokenizer", "save"]


def build_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Whole words where the suite knows them, else bytes; so every text can be written and read back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The byte-level spelling of a blank is Ġ.
    words = [word.replace(" ", "Ġ") for word in (*WORDS, *family.words)]
    vocabulary = {
        token: index for index, token in enumerate(dict.fromkeys((*family.special_tokens, *alphabet, *words)))
    }
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
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in family.special_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(family.special_tokens[1:]),
        model_max_length=32768,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(family: Family) -> Any:
    """The family's stock processor for its tiny model."""
    return family.processor(build_tokenizer(family))


def build_model(family: Family, tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **text: Any) -> Any:
    """The model with random weights, drawn from `seed`; only the numbers are not strangers to each other.

    `text` overrides values of the decoder's config.
    """
    torch.manual_seed(seed)
    model = family.head(family.config(tokenizer, **text))
    _order_numbers(family, model, tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=4,
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval()


@torch.no_grad()
def _order_numbers(family: Family, model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the words of the seconds start on a smooth curve.

    Each is a single token, so nothing else tells the model that 7 lies between 6 and 8.
    """
    config = model.config.get_text_config()
    angles = torch.arange(MAX_SECOND + 1, dtype=torch.double)[:, None] * family.radians_per_second(model)
    curve = torch.cat([angles.cos(), angles.sin()], dim=1)
    directions = torch.randn(curve.shape[1], config.hidden_size, dtype=torch.double)
    rows = curve @ directions * config.initializer_range
    embeddings = model.get_input_embeddings().weight
    for spelling in family.seconds:
        numbers = [tokenizer(spelling.format(second)).input_ids for second in range(MAX_SECOND + 1)]
        embeddings[torch.tensor(numbers)[:, 0]] = (rows / (curve.shape[1] / 2) ** 0.5).to(embeddings.dtype)


def save(model: Any, processor: Any, folder: Path, card: str) -> None:
    """Write the checkpoint, its processor and its model card."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _rewrite(folder / "config.json", _for_every_release)
    _rewrite(folder / "tokenizer_config.json", _tokenizer_for_every_release)
    (folder / "README.md").write_text(card)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _for_every_release(config: dict[str, Any]) -> None:
    """Say beside what transformers 5 reads what 4.57 does: rotary positions and tied embeddings of the decoder."""
    text = config["text_config"]
    rope = dict(text["rope_parameters"])
    text["rope_theta"] = rope.pop("rope_theta")
    if set(rope) > {"rope_type"}:
        text["rope_scaling"] = rope
    text["tie_word_embeddings"] = config["tie_word_embeddings"]
    config["vision_config"].pop("rope_parameters", None)  # the tower's own, of a type that 5.16 does not know


def _tokenizer_for_every_release(config: dict[str, Any]) -> None:
    """4.57 wants names for extra_special_tokens, and gives the models inputs that they do not take."""
    config.pop("backend", None)
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
    config["model_input_names"] = ["input_ids", "attention_mask"]
    config["tokenizer_class"] = "PreTrainedTokenizerFast"


def main() -> None:
    """Write an untrained checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen2_5_vl")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    family = FAMILIES[arguments.family]
    processor = build_processor(family)
    model = build_model(family, processor.tokenizer, seed=arguments.seed)
    save(model, processor, arguments.folder, f"# Tiny {family.title}\n\nRandom weights: it answers nothing yet.\n")
    print(f"{model.num_parameters():,} parameters in {arguments.folder}")


if __name__ == "__main__":
    main()
