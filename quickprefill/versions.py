"""What differs between releases of transformers, asked of the installed one: everything else may forget about it.

What towers are told is in hosts/tower_layouts.py.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import modeling_outputs
from transformers.cache_utils import DynamicCache, DynamicLayer

from quickprefill.release import is_older_than

__all__ = [
    "CACHE",
    "CROPS_TO_LENGTH",
    "ENCODES_FIRST",
    "REPEATS_FEATURES",
    "cache_of",
    "core_output",
    "defined",
    "encoded",
    "features",
    "first_tensor",
    "has_state",
    "keeps_states",
    "known_arguments",
    "layout_helpers",
    "module_of",
    "new_cache",
    "new_tokens",
    "overridable",
    "pooled",
    "rope_positions",
    "stacked_features",
    "swapped_name",
]


ENCODES_FIRST = "_prepare_multimodal_encoder_kwargs_for_generation"
"""Since 5.18 generate() encodes pictures and videos with this method, before the first forward."""

REPEATS_FEATURES = "_expand_multimodal_outputs"
"""Since then generate() repeats what it encoded with this one, for beams and samples."""

CACHE = "cache" if hasattr(modeling_outputs.BaseModelOutputWithPast, "cache") else "past_key_values"
"""What forward(), generate() and their outputs call the cache; `past_key_values` up to 5.23."""

CROPS_TO_LENGTH = "max_length" in inspect.signature(DynamicLayer.crop).parameters
"""Whether a positive number that crop() is given is the length to leave; up to 5.14."""

_CORE_OUTPUTS = (
    *("MultimodalMoeBaseModelOutputWithPast", "MultimodalBaseModelOutputWithPast"),
    *("MoeModelOutputWithPast", "BaseModelOutputWithPast"),
)
"""Outputs that a core shares with others, the more special ones first."""


def cache_of(call: Mapping[str, Any]) -> Any:
    """The cache of a call, under the name that it has or had; None without one."""
    return call.get(CACHE, call.get("past_key_values"))


def module_of(name: str) -> Any:
    """A file of transformers by its full name; None where the installed release lacks it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def keeps_states() -> bool:
    """Whether a tower that is asked for the states behind one of its layers keeps those behind all, as it once did."""
    return not hasattr(module_of("transformers.utils.output_capturing"), "select_hidden_states")


def new_cache(config: Any) -> Any:
    """An empty DynamicCache of a decoder, with a layer of the right kind for each of its layers."""
    cache = DynamicCache(config=config)
    if not cache.layers:  # a release that adds layers as they are updated
        cache.layers = [DynamicLayer() for _ in range(config.num_hidden_layers)]
    return cache


def encoded(call: Mapping[str, Any], modality: str) -> Any:
    """What generate() has encoded beforehand, since 5.18."""
    return (call.get("mm_encoder_outputs") or {}).get(modality)


def first_tensor(output: Any) -> torch.Tensor:
    """A decoder layer's hidden states: up to 5.3 they come in a tuple."""
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def features(core: Any, method: str, *tensors: torch.Tensor, **options: Any) -> Any:
    """What a core's get_video_features() or get_image_features() returns.

    In 4.x they take no return_dict, and nothing from the config.
    """
    encode = getattr(core, method)
    if not is_older_than("5.0"):
        return encode(*tensors, return_dict=True, **options)
    names = inspect.signature(encode).parameters
    defaults = {name: getattr(core.config, name) for name in names if name in _FROM_CONFIG}
    return encode(*tensors, **known_arguments(encode, {**defaults, **options}))


_FROM_CONFIG = ("vision_feature_layer", "vision_feature_select_strategy")


def pooled(output: Any) -> Any:
    """The features in what get_video_features() and get_image_features() return: in 4.x they are all of it."""
    return getattr(output, "pooler_output", output)


def stacked_features(output: Any) -> torch.Tensor:
    """(M, C) features of all items in what get_*_features() returns; those for later layers behind them, wider rows.

    Each level comes item by item, or up to 5.17 with all items in one tensor. In 4.x the levels are a second value.
    """
    own, later = pooled(output), getattr(output, "deepstack_features", None)
    if isinstance(own, tuple) and not isinstance(own[0], torch.Tensor):
        own, later = own
    levels = [own, *(later or ())]
    whole = [level if isinstance(level, torch.Tensor) else _joined(level) for level in levels]
    return torch.cat(whole, dim=1) if len(whole) > 1 else whole[0]


def _joined(items: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(tuple(items)) if len(items) > 1 else items[0]


def rope_positions(core: Any, named: Mapping[str, Any], past: Any) -> torch.Tensor | None:
    """The (3, B, S) positions that a bare forward() works out from input_ids, grids and mask; it notes rope_deltas.

    Up to 5.1 forward() does so itself.
    """
    ids, found = named["input_ids"], None
    compute = getattr(core, "compute_3d_position_ids", None)
    start = 0 if past is None else past.get_seq_length()
    if compute is not None:
        embeds = torch.empty(*ids.shape, 0, device=ids.device)
        found = compute(**known_arguments(compute, {**named, "inputs_embeds": embeds, CACHE: past}))
    elif start and core.rope_deltas is not None:
        behind = torch.arange(start, start + ids.shape[1], device=ids.device)
        delta = core.rope_deltas.to(ids.device).repeat_interleave(len(ids) // len(core.rope_deltas), dim=0)
        found = (behind + delta).expand(3, -1, -1)
    else:
        found, core.rope_deltas = core.get_rope_index(**known_arguments(core.get_rope_index, named))
    positions: torch.Tensor | None = found
    return positions


def known_arguments(function: Callable[..., Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a call's arguments that a function of the host takes."""
    return {name: call[name] for name in inspect.signature(function).parameters if name in call}


def core_output(module: Any, core_name: str, **values: Any) -> Any:
    """A core's output: of a class of its own where the release has one, else of the one that its file uses."""
    own = (f"{core_name}OutputWithPast", f"{core_name.removesuffix('Model')}BaseModelOutputWithPast")
    kind = next(getattr(module, name) for name in (*own, *_CORE_OUTPUTS) if hasattr(module, name))
    return kind(**{field: value for field, value in values.items() if field in kind.__dataclass_fields__})


def defined(owner: Any, names: tuple[str, ...]) -> list[str]:
    """Those of the names that an object lacks, as "Owner.name"."""
    title = getattr(owner, "__name__", type(owner).__name__)
    return [f"{title}.{name}" for name in names if not hasattr(owner, name)]


def overridable(owner: Any, methods: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Those of the methods that a class has to put ours in the place of."""
    return {name: method for name, method in methods.items() if hasattr(owner, name)}


def has_state(layer: Any) -> bool:
    """Whether a cache's layer holds a state of constant size instead of keys and values."""
    return hasattr(layer, "conv_states") and not hasattr(layer, "get_seq_length")


def new_tokens(query_length: int | torch.Tensor) -> int:
    """How many tokens get_mask_sizes() is asked about: up to 5.3 their positions come, (q,)."""
    return len(query_length) if isinstance(query_length, torch.Tensor) else query_length


def layout_helpers() -> Any:
    """The functions that work the layout of a tower out that can be given one; None before 5.9."""
    return module_of("transformers.vision_utils")


def takes_longest_segment() -> bool:
    """Whether towers take their longest segment beside the boundaries; before 5.15 they read the lengths."""
    return not is_older_than("5.15")


class _Flash(str):
    """The name of an attention function that 4.x, where only one name means flash, hands a tower's boundaries too."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return other == "flash_attention_2" or str.__eq__(self, other)


def swapped_name(name: str) -> str:
    """A name for an attention function of ours, with which layers do as with a flash kernel if it says "flash"."""
    return _Flash(name) if is_older_than("5.0") and "flash" in name else name
