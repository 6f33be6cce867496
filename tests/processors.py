"""The real processor classes, built offline: a tokenizer that spells lower case, and templates from documented prompts.

The tokenizer's ids are those of tests/tiny.py and tests/families.py, so its prompts go to the tiny models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tests.families import FIRST_EXTRA
from tests.tiny import FIRST_WORD, PAD, VOCAB

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
        tokenizer_object=model, pad_token=pad, padding_side="left", extra_special_tokens=dict(names)
    )


def clip(frames: int, height: int = 16, width: int = 24, seed: int = 0) -> torch.Tensor:
    """(frames, 3, height, width) uint8: noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, 3, height, width), dtype=torch.uint8, generator=generator)
