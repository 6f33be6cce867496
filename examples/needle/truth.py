"""What every slice of a clip shows, as bits: dense targets for training, beside the few questions of a clip.

Two sets, both (T, bits) float32 in 0 to 1 for T slices of one or more frames:

    visible   what the slice shows: the share of its frames that show each thing
    so_far    what has been seen by its end: symbols, their order, the number of crosses, the change, the first tones
"""

from __future__ import annotations

import numpy as np

from examples.needle.clip import frame_times
from examples.needle.scene import Scene
from examples.needle.vocabulary import COLOURS, COUNTS, PATTERNS, PROPS, SHAPES

__all__ = ["NUM_SO_FAR", "NUM_VISIBLE", "so_far", "visible"]

_NAMES = tuple(COLOURS)
NUM_VISIBLE = len(COLOURS) * (1 + len(SHAPES)) + 1 + len(PROPS) + len(PATTERNS)
NUM_SO_FAR = 2 * len(SHAPES) + len(COUNTS) + 2 * len(PROPS)


def visible(scene: Scene, slice_frames: int = 2) -> np.ndarray:
    """(T, NUM_VISIBLE): lamp, the symbols' colours, a cross, the props' tones, the floor."""
    times = frame_times(scene)
    lamp = np.zeros((len(times), len(COLOURS)))
    numbers = np.searchsorted([start for start, _ in scene.lamp], times, side="right") - 1
    lamp[np.arange(len(times)), [_NAMES.index(scene.lamp[number][1]) for number in numbers]] = 1
    colours = np.zeros((len(times), len(SHAPES), len(COLOURS)))
    for place, shape in enumerate(SHAPES):
        for symbol in scene.appearances(shape):
            colours[(times >= symbol.start) & (times < symbol.stop), place, _NAMES.index(symbol.colour)] = 1
    cross = np.zeros((len(times), 1))
    for symbol in scene.appearances("cross"):
        cross[(times >= symbol.start) & (times < symbol.stop)] = 1
    props = np.tile(np.array(scene.props, float), (len(times), 1))
    if scene.changed in PROPS:
        props[times >= scene.change_second, PROPS.index(scene.changed)] = 1 - scene.props[PROPS.index(scene.changed)]
    floor = np.tile([float(pattern == scene.pattern) for pattern in PATTERNS], (len(times), 1))
    frames = np.concatenate([lamp, colours.reshape(len(times), -1), cross, props, floor], axis=1)
    return frames.reshape(len(times) // slice_frames, slice_frames, -1).mean(1).astype(np.float32)


def so_far(scene: Scene, slice_frames: int = 2) -> np.ndarray:
    """(T, NUM_SO_FAR): each symbol seen, each seen first, at least n crosses, each prop changed, and its first tone."""
    ends = frame_times(scene)[slice_frames - 1 :: slice_frames]
    starts = [min((symbol.start for symbol in scene.appearances(shape)), default=np.inf) for shape in SHAPES]
    seen = [ends >= start for start in starts]
    first = [seen[place] & (starts[place] == min(starts)) for place in range(len(SHAPES))]
    crosses = sum(ends >= symbol.start for symbol in scene.appearances("cross")) + np.zeros(len(ends))
    counted = [crosses > count for count in range(len(COUNTS))]
    changed = [(scene.changed == prop) & (ends >= scene.change_second) for prop in PROPS]
    tones = [np.full(len(ends), tone) for tone in scene.props]
    return np.stack([*seen, *first, *counted, *changed, *tones], axis=1).astype(np.float32)
