"""What the text decoder of any host says about its sizes."""

from __future__ import annotations

from typing import Any

from quickprefill.attention.interface import host_implementation
from quickprefill.hosts.devices import layer_devices

__all__ = ["decoder_sizes"]


def decoder_sizes(core: Any, decoder: Any) -> dict[str, Any]:
    """Those fields of a Geometry that a core's decoder decides."""
    text = core.config.get_text_config()
    return {
        "layers": text.num_hidden_layers,
        "hidden": text.hidden_size,
        "heads": text.num_attention_heads,
        "kv_heads": text.num_key_value_heads,
        "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        "mlp": _mlp_width(text),
        "dtype": core.dtype,
        "devices": layer_devices(decoder.layers),
        "eager": host_implementation(decoder.config) == "eager",
    }


def _mlp_width(text: Any) -> int:
    """Of a layer's MLP as a token passes it: of a mixture the experts that it is sent to, and the shared one."""
    experts = getattr(text, "num_experts_per_tok", 0)
    if not experts:
        return int(text.intermediate_size)
    shared = getattr(text, "n_shared_experts", 0) * text.moe_intermediate_size
    return int(experts * text.moe_intermediate_size + getattr(text, "shared_expert_intermediate_size", shared))
