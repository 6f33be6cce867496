"""The usual layout of a video LLM in transformers, once: a decoder at core.language_model, features by get_*_features.

Two regimes of the vision tower: up to 5.17 forward() gets raw pixels; since 5.18 generate() encodes the whole video
before the first forward and passes `mm_encoder_outputs`. There the override puts PendingVideos in their place.
"""

from __future__ import annotations

import contextlib
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch

from quickprefill import release, versions
from quickprefill.attention.interface import flash_is_requested, host_implementation
from quickprefill.errors import UnsupportedModelError
from quickprefill.hosts.base import Host, Row
from quickprefill.hosts.devices import execution_device
from quickprefill.hosts.refusals import odd_layers, tensor_parallel
from quickprefill.hosts.rows import split_rows
from quickprefill.hosts.whole_decoder import run_decoder
from quickprefill.prompt.pending import PendingVideo

__all__ = ["TransformersHost"]


class TransformersHost(Host):
    """A host whose core has a decoder() with `layers`, `norm` and `rotary_emb`."""

    tested = release.TESTED
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "video_grid_thw")
    """Arguments of forward() that bring a video; the first is its pixels."""
    modality: ClassVar[str] = "video"
    """What generate() calls the features of a video that it encodes beforehand."""
    encoders: ClassVar[tuple[str, ...]] = ("get_video_features", "get_image_features")
    """Methods of the core that encode."""

    fault: ClassVar[str] = ""
    """What is wrong with the releases of transformers before the oldest one that is tested, if they have the family."""

    @abstractmethod
    def videos(self, core: Any, call: Mapping[str, Any]) -> list[PendingVideo]:
        """The videos of a call that brings raw pixels."""

    @abstractmethod
    def image_features(self, core: Any, call: Mapping[str, Any]) -> Any:
        """Features of the images of a call that brings raw pixels, as get_image_features() returns them."""

    def decoder(self, core: Any) -> Any:
        """The model of text inside the core."""
        return core.language_model

    def position_ids(self, core: Any, call: Mapping[str, Any]) -> torch.Tensor:
        """The host's own positions for all columns of a call, (P, B, S): here those of text, P = 1."""
        ids, past, positions = call["input_ids"], versions.cache_of(call), call.get("position_ids")
        if positions is None:
            start = 0 if past is None else past.get_seq_length()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        return positions.expand(ids.shape)[None]

    # Whose call it is

    def core(self, head: Any) -> Any:
        return head.model

    def check(self, head: Any) -> None:
        release.check_release(self.head_name, self.tested, self.fault)
        module = versions.module_of(self.module_name)
        core = getattr(module, self.core_name, None)
        absent = [] if core is not None else [f"{self.module_name}.{self.core_name}"]
        absent += versions.defined(core, self.encoders) if core is not None else []
        if absent:
            raise UnsupportedModelError(
                f"this transformers release lacks {', '.join(absent)}; use {' to '.join(self.tested)}"
            )
        if isinstance(head, type):
            return
        core = self.core(head)
        reason = tensor_parallel(head) or odd_layers(self.new_layers(core))
        if reason is not None:
            raise UnsupportedModelError(f"{type(head).__name__}: {reason}")

    def overrides(self, head_class: type) -> dict[str, Callable[..., Any]]:
        return versions.overridable(head_class, {versions.ENCODES_FIRST: self._defer_video})

    def _defer_video(self, stock: Callable[..., Any], head: Any, model_kwargs: dict[str, Any]) -> Any:
        """Let generate() encode the images, and put a PendingVideo where each video's features would be."""
        given = versions.encoded(model_kwargs, self.modality)
        if given is not None or any(model_kwargs.get(name) is None for name in self.video_inputs):
            return stock(model_kwargs)
        videos = self.videos(self.core(head), model_kwargs)
        if not videos:
            return stock(model_kwargs)
        prepared = stock({name: value for name, value in model_kwargs.items() if name not in self.video_inputs})
        prepared["mm_encoder_outputs"][self.modality] = self.deferred(self.core(head), videos)
        return prepared

    def deferred(self, core: Any, videos: list[PendingVideo]) -> Any:
        """What get_video_features() returns, with videos that are not encoded yet."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=videos)

    def has_video(self, core: Any, call: Mapping[str, Any]) -> bool:
        return call.get(self.video_inputs[0]) is not None or versions.encoded(call, self.modality) is not None

    def stock_reason(self, core: Any, call: Mapping[str, Any]) -> str | None:
        if call.get("input_ids") is None:
            return "inputs_embeds came without input_ids, so the video's columns are unknown"
        if call.get("inputs_embeds") is not None:
            return "inputs_embeds came beside input_ids, and embeds text in a way of its own"
        encoded = versions.encoded(call, self.modality)
        if encoded is not None and not all(isinstance(video, PendingVideo) for video in versions.pooled(encoded)):
            return "the video's features were computed beforehand (mm_encoder_outputs or prefill_chunk_size)"
        missing = [name for name in self.video_inputs if call.get(name) is None]
        if encoded is None and missing:
            return f"{self.video_inputs[0]} came without {' and '.join(missing)}"
        implementation = host_implementation(self.attention_config(core))
        if implementation not in ("eager", "sdpa") and not flash_is_requested(self.attention_config(core)):
            return f"the attention implementation is {implementation!r}; supported are eager, sdpa and flash kernels"
        return tensor_parallel(core) or odd_layers(self.new_layers(core))

    # What the prompt is

    def rows(self, core: Any, call: Mapping[str, Any]) -> list[Row]:
        encoded = versions.encoded(call, self.modality)
        videos = self.videos(core, call) if encoded is None else list(versions.pooled(encoded))
        return split_rows(self, core, call, self.position_ids(core, call), videos, self.features(core, call))

    def features(self, core: Any, call: Mapping[str, Any]) -> torch.Tensor | None:
        """(M, C) features of a call's images, and of what else stands among the text, in order; None: of nothing."""
        encoded = versions.encoded(call, "image")
        if encoded is None and call.get("pixel_values") is not None:
            encoded = self.image_features(core, call)
        return None if encoded is None else versions.stacked_features(encoded)

    def named(self, core: Any, ids: torch.Tensor) -> torch.Tensor:
        return ids

    def video_token_id(self, core: Any) -> int:
        return int(core.config.video_token_id)

    def image_token_id(self, core: Any) -> int:
        """The token in whose place the features of images go."""
        return int(core.config.image_token_id)

    def feature_mask(self, core: Any, ids: torch.Tensor) -> torch.Tensor:
        mask: torch.Tensor = ids == self.image_token_id(core)
        return mask

    # How it computes

    def attention_config(self, core: Any) -> Any:
        return self.decoder(core).config

    def norms_keys(self, core: Any) -> bool:
        return any(hasattr(getattr(layer, "self_attn", None), "k_norm") for layer in self.decoder(core).layers)

    def new_layers(self, core: Any) -> list[Any]:
        layers: list[Any] = versions.new_cache(self.attention_config(core)).layers
        return layers

    def embed(self, core: Any, ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        table = core.get_input_embeddings()
        ids = ids.to(execution_device(table))
        return self.with_features(core, ids, table(ids), features)

    def with_features(
        self, core: Any, ids: torch.Tensor, embeds: torch.Tensor, features: torch.Tensor | None
    ) -> torch.Tensor:
        """Embeddings with features in the place of their tokens."""
        if features is None or not len(features):
            return embeds
        mask = self.feature_mask(core, ids)[:, None].to(embeds.device)
        return embeds.masked_scatter(mask, features.to(embeds.device, embeds.dtype))

    def rotary(self, core: Any, hidden: torch.Tensor, positions: torch.Tensor) -> Any:
        positions = positions.to(hidden.device)
        return self.decoder(core).rotary_emb(hidden, positions if len(positions) == 1 else positions[:, None])

    def take_rotary(self, rotary: Any, rows: torch.Tensor) -> Any:
        return tuple(part.index_select(-2, rows.to(part.device)) for part in rotary)

    def no_rotary(self, rotary: Any) -> Any:
        cos, sin = rotary
        return torch.ones_like(cos), torch.zeros_like(sin)

    def decode(self, core: Any, embeds: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return run_decoder(self.decoder(core), self.attention_config(core), embeds, mask, positions)

    def layer(self, core: Any, index: int, hidden: torch.Tensor, rotary: Any, cache: Any) -> torch.Tensor:
        output = self.decoder(core).layers[index](
            hidden,
            attention_mask=None,
            position_embeddings=rotary,
            position_ids=None,
            use_cache=True,
            **{versions.CACHE: cache},
        )
        return versions.first_tensor(output)

    def attention(self, core: Any, index: int, hidden: torch.Tensor, rotary: Any, cache: Any) -> None:
        layer = self.decoder(core).layers[index]
        layer.self_attn(
            hidden_states=layer.input_layernorm(hidden.to(execution_device(layer.input_layernorm))),
            attention_mask=None,
            position_embeddings=rotary,
            position_ids=None,
            **{versions.CACHE: cache},
        )

    def observed(self, core: Any, index: int) -> bool:
        return any(
            module._forward_hooks
            or module._forward_pre_hooks
            or "forward" in vars(module)
            or getattr(module, "_compiled_call_impl", None) is not None
            for module in self.decoder(core).layers[index].modules()
        )

    @contextlib.contextmanager
    def watch_residual(self, core: Any, index: int) -> Iterator[list[torch.Tensor]]:
        seen: list[torch.Tensor] = []
        mine = threading.get_ident()

        def watch(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            if threading.get_ident() == mine:  # other threads may use the model too
                seen.append(args[0])

        hook = self.decoder(core).layers[index].post_attention_layernorm.register_forward_pre_hook(watch)
        try:
            yield seen
        finally:
            hook.remove()

    def norm(self, core: Any, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.decoder(core).norm(hidden)
        return output

    def output(self, core: Any, hidden: torch.Tensor, cache: Any) -> Any:
        values = {"last_hidden_state": hidden, versions.CACHE: cache, "rope_deltas": getattr(core, "rope_deltas", None)}
        return versions.core_output(versions.module_of(self.module_name), self.core_name, **values)
