"""What a patched forward() does with a call: group its video, or leave it to the stock model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from quickprefill.cache.layer import PrunedLayer
from quickprefill.cache.padding import stored_attention_mask
from quickprefill.config import QuickPrefillConfig
from quickprefill.hosts.base import Family, bind
from quickprefill.loop.prefill import prefill
from quickprefill.loop.steps import needs_own_masks, text_forward
from quickprefill.report import Recorder

__all__ = ["Dispatcher"]

logger = logging.getLogger("quickprefill")


class Dispatcher:
    """Decides for one patch; warns once per reason for which a video takes the stock path."""

    def __init__(self, family: Family, config: QuickPrefillConfig) -> None:
        self.family = family
        self.config = config
        self.last_prefill: Recorder | None = None
        self._warned: set[str] = set()

    def forward(self, stock: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        """Group prefill for a prompt with video; else the stock forward, with a mask that fits a pruned cache."""
        call = bind(stock, args, kwargs)
        if not self.family.has_video(call) or self._inert(model, call):
            return self._text(stock, model, call)
        reason = _host_reason(call) or self.family.stock_reason(model, call)
        if reason is not None:
            if reason not in self._warned:
                self._warned.add(reason)
                logger.warning("quickprefill leaves this video to the stock model, unpruned: %s", reason)
            return self._text(stock, model, call)
        recorder = Recorder()
        output = prefill(model, self.family, self.config, call, recorder)
        self.last_prefill = recorder
        return output

    def _inert(self, model: Any, call: dict[str, Any]) -> bool:
        """Training and cache-less calls are the stock model's, without a word."""
        use_cache = call.get("use_cache")
        if use_cache is None:
            use_cache = model.config.get_text_config().use_cache
        if torch.is_grad_enabled() or call.get("labels") is not None or not use_cache:
            return True
        # A layer that checkpoints while training drops the cache that it is given.
        return model.training and any(getattr(part, "gradient_checkpointing", False) for part in model.modules())

    def _text(self, stock: Callable[..., Any], model: Any, call: dict[str, Any]) -> Any:
        if needs_own_masks(call.get("past_key_values")):
            return text_forward(model, self.family, call)
        return stock(**self._fit_mask(call))

    def _fit_mask(self, call: dict[str, Any]) -> dict[str, Any]:
        cache = call.get("past_key_values")
        layer = next(iter(getattr(cache, "layers", ())), None)
        if not isinstance(layer, PrunedLayer):
            return call
        mask = call.get("attention_mask")
        tokens = call.get("input_ids") if call.get("input_ids") is not None else call.get("inputs_embeds")
        if tokens is None or (mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2)):
            return call
        fitted = stored_attention_mask(layer, mask, tokens.shape[1])
        return call if fitted is mask else {**call, "attention_mask": fitted}


def _host_reason(call: dict[str, Any]) -> str | None:
    """Why the host's generation machinery asks for something that a pruned prefill cannot give."""
    mask = call.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        return "attention_mask is not a 2-D padding mask (a static cache or a custom mask)"
    for name in ("output_attentions", "output_hidden_states"):
        if call.get(name):
            return f"{name}=True asks for what the pruned tokens would have given"
    return _cache_reason(call.get("past_key_values"), call.get("input_ids"))


def _cache_reason(cache: Any, ids: torch.Tensor | None) -> str | None:
    if cache is None:
        return None
    if not isinstance(cache, DynamicCache):
        return f"the cache is a {type(cache).__name__}; only a DynamicCache can be pruned"
    if cache.offloading:
        return "the cache is offloaded; only a DynamicCache that stays on its device can be pruned"
    odd = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in (DynamicLayer, PrunedLayer)})
    if odd:
        return f"the cache has {', '.join(odd)} layers; only plain DynamicLayers can be pruned"
    if ids is not None and ids.shape[0] > 1 and cache.get_seq_length() > 0:
        return "the cache already holds tokens of a batch of several rows; a later turn's video needs batch size 1"
    return None
