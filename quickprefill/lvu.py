"""From QuickVideo's LVUConfig to QuickPrefillConfig, field by field."""

from __future__ import annotations

import logging
from typing import Any

from quickprefill.errors import ConfigError
from quickprefill.policies import (
    KeyNorm,
    KeyNormDistinct,
    KeyNormRandom,
    KeyWeightedValueNorm,
    OutputNorm,
    Policy,
    QueryAttention,
    Random,
    ValueNorm,
)

__all__ = ["options_from_lvu"]

logger = logging.getLogger("quickprefill")

_SCORES: dict[str, Policy] = {
    "key_norms_small": KeyNorm(),
    "key_norms": KeyNorm(largest=True),
    "vector_norms": ValueNorm(),
    "value_norms": ValueNorm(),  # the name in QuickVideo's README
    "vector_norms_small": ValueNorm(largest=False),
    "key_norms_small_random": KeyNormRandom(),
    "key_norms_small_deduplication": KeyNormDistinct(),
    "key_weighted_vector_norms": KeyWeightedValueNorm(),
    "output_norms": OutputNorm(),
    "random": Random(),
    "query_attention_weights": QueryAttention(),
    "attention_scores": QueryAttention(),  # the name in QuickVideo's README
    "query_attention_weights_by_value_norm": QueryAttention(by_value_norm=True),
}

_ELSEWHERE = {
    "model_name_or_path": "from_pretrained()",
    "model_type": "FAMILIES, found by the model's config",
    "fps": 'the video\'s entry in the message, {"type": "video", "fps": ...}',
    "num_frames": 'the video\'s entry in the message, {"type": "video", "nframes": ...}',
    "extra_kwargs": "the video's entry in the message (max_pixels, min_pixels)",
    "cache_dir": "nowhere: quickdecode reads the file each time",
    "save_video_cache": "nowhere: quickdecode reads the file each time",
    "query_based": "the policy: query_attention is",
}

_WHOLE_VIDEO_FRAMES = 1 << 30


def options_from_lvu(lvu: dict[str, Any]) -> dict[str, Any]:
    """Fields of QuickPrefillConfig for fields of LVUConfig; see QuickPrefillConfig.from_lvu."""
    known = {
        *("top_k_predict_type", "top_k", "top_p", "top_k_starting_layer", "do_top_k_for_query", "use_tqdm", "enable"),
        *("adaptive_local_attention", "video_group_size", "prefill_prune_starting_layer"),
        *("top_k_decay_type", "top_k_decay_factor"),
    }
    unknown = sorted(set(lvu) - known - set(_ELSEWHERE))
    if unknown:
        raise ConfigError(f"LVUConfig has no field {unknown}; its fields are {sorted(known | set(_ELSEWHERE))}")
    for name in sorted(set(lvu) & set(_ELSEWHERE)):
        logger.info("LVUConfig.%s is not a matter of prefill; it belongs to %s", name, _ELSEWHERE[name])
    options: dict[str, Any] = {
        "keep": 1.0 if lvu.get("top_p") is None else lvu["top_p"],
        "keep_tokens": lvu.get("top_k"),
        "group_frames": _group_frames(lvu.get("video_group_size")),
        "policy": _policy(lvu.get("top_k_predict_type", "key_norms_small")),
        "progress": bool(lvu.get("use_tqdm", False)),
        "first_layer": lvu.get("top_k_starting_layer") or 0,
        "layer_decay": _decay(lvu.get("top_k_decay_type"), lvu.get("top_k_decay_factor")),
        "progressive_from": lvu.get("prefill_prune_starting_layer"),
        "see_past": lvu.get("adaptive_local_attention", True),
        "prune_text": lvu.get("do_top_k_for_query", False),
    }
    if not lvu.get("enable", True):
        options |= {"keep": 1.0, "keep_tokens": None, "layer_decay": None, "progressive_from": None}
    progressive = options["progressive_from"]
    if progressive is not None:  # in the original a layer before the first pruning one drops nothing either
        options["progressive_from"] = max(progressive, options["first_layer"])
    return options


def _policy(name: str) -> Policy:
    if name not in _SCORES:
        raise ConfigError(
            f"top_k_predict_type must be one of {sorted(_SCORES)}, got {name!r}; QuickVideo's other names need an "
            "attention map that it never had"
        )
    return _SCORES[name]


def _group_frames(size: int | None) -> int:
    """Rounded up to whole temporal slices, as QuickVideo does; None or <= 0 is one group with everything."""
    return _WHOLE_VIDEO_FRAMES if size is None or size <= 0 else size + size % 2


def _decay(kind: str | None, factor: float | None) -> Any:
    if kind is None or kind == "linear":
        return kind  # QuickVideo's linear schedule does not read the factor
    if kind != "exponential" or factor is None:
        raise ConfigError(
            'top_k_decay_type must be None, "linear", or "exponential" with a top_k_decay_factor in (0, 1), '
            f"got {kind!r} with {factor!r}"
        )
    return factor
