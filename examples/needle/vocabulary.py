"""The words of the suite: everything that a question or an answer can say."""

from __future__ import annotations

__all__ = ["ANSWERS", "COLOURS", "COUNTS", "MAX_SECOND", "PATTERNS", "PROPS", "SHAPES", "WORDS"]

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 220),
    "yellow": (230, 210, 40),
    "purple": (160, 50, 190),
    "cyan": (40, 200, 210),
    "orange": (240, 140, 30),
    "white": (240, 240, 240),
}
"""Name -> RGB of everything that has a colour worth asking for."""
SHAPES = ("square", "ring")
"""Marked symbols, each of which appears once; a third shape, the cross, is only counted."""
PATTERNS = ("stripes", "checks", "dots", "plain")
"""What the floor can look like, all along the clip."""
PROPS = ("door", "flag", "wall")
"""What may be different at the end from what it was at the beginning."""
MAX_SECOND = 120
"""The largest time that a question names and the tokenizer has a word for."""
COUNTS = tuple(str(count) for count in range(1, 5))
ANSWERS = (*COLOURS, *SHAPES, *COUNTS, *PATTERNS, *PROPS, "nothing")
"""Every right answer to any question; each is a single token."""

_QUESTIONS = (
    "What colour was the square",
    "Which came first",
    "How many crosses appeared",
    "What pattern has the floor",
    "What colour was the lamp at second",
    "What changed between beginning and end",
    "or",
)
_QUESTION_WORDS = tuple(dict.fromkeys(" ".join(_QUESTIONS).split()))
_ROLES = ("system", "user", "assistant")

WORDS = tuple(
    dict.fromkeys(
        [
            *_ROLES,
            *ANSWERS,
            *_QUESTION_WORDS,
            *(f" {word}" for word in (*_QUESTION_WORDS, *SHAPES, *PROPS)),
            *(f" {second}" for second in range(MAX_SECOND + 1)),
        ]
    )
)
"""Words that the tokenizer knows whole; it spells all other text in bytes."""
