"""Qwen2.5-VL: every fact about the host model (transformers 5.17 to 5.23).

Two regimes of the vision tower: up to 5.17 forward() gets raw pixels; since 5.18 generate() encodes the whole video
before the first forward and passes `mm_encoder_outputs`. There the override puts PendingVideos in their place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from quickprefill.attention.group import SUPPORTED
from quickprefill.errors import InputError, UnsupportedModelError
from quickprefill.hosts.base import Family, Geometry, Row, execution_device
from quickprefill.hosts.qwen_vision import pending_videos
from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Grid

__all__ = ["Qwen2_5_VL"]

_PRE_ENCODE = "_prepare_multimodal_encoder_kwargs_for_generation"


class Qwen2_5_VL(Family):
    """Facts about Qwen2_5_VLForConditionalGeneration."""

    model_type = "qwen2_5_vl"
    tested = ("5.17", "5.23")

    def host_class(self) -> type[torch.nn.Module]:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return Qwen2_5_VLForConditionalGeneration  # type: ignore[no-any-return]

    def check_seams(self, host: Any) -> None:
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

        needed = {
            host: ("forward", "_prepare_position_ids_for_generation"),
            module.Qwen2_5_VLModel: ("get_video_features", "get_image_features", "compute_3d_position_ids"),
            module: ("apply_rotary_pos_emb", "Qwen2_5_VLDecoderLayer"),
        }
        absent = [
            f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
            for owner, names in needed.items()
            for name in names
            if not hasattr(owner, name)
        ]
        if absent:
            raise UnsupportedModelError(
                f"this transformers version lacks {', '.join(absent)}; use {' to '.join(self.tested)}"
            )
        if isinstance(host, torch.nn.Module):
            config: Any = host.config
            kinds = set(config.get_text_config().layer_types)
            if kinds != {"full_attention"}:
                raise UnsupportedModelError(
                    f"every decoder layer must use full attention, but the config's layer_types are {sorted(kinds)}; "
                    "load the model with use_sliding_window=False"
                )

    def overrides(self) -> dict[str, Callable[..., Any]]:
        return {_PRE_ENCODE: self._defer_video} if hasattr(self.host_class(), _PRE_ENCODE) else {}

    def _defer_video(self, stock: Callable[..., Any], model: Any, model_kwargs: dict[str, Any]) -> Any:
        """Let generate() encode the images, and put a PendingVideo where each video's features would be."""
        pixels, grids = model_kwargs.get("pixel_values_videos"), model_kwargs.get("video_grid_thw")
        given = (model_kwargs.get("mm_encoder_outputs") or {}).get("video")
        if pixels is None or grids is None or given is not None:
            return stock(model_kwargs)
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        videos = pending_videos(model, pixels, grids)
        rest = {
            name: value for name, value in model_kwargs.items() if name not in ("pixel_values_videos", "video_grid_thw")
        }
        prepared = stock(rest)
        prepared["mm_encoder_outputs"]["video"] = BaseModelOutputWithPooling(pooler_output=videos)
        return prepared

    def frames_per_slice(self, model: Any) -> int:
        return int(model.config.vision_config.temporal_patch_size)

    def video_token_id(self, model: Any) -> int:
        return int(model.config.video_token_id)

    def image_token_id(self, model: Any) -> int:
        return int(model.config.image_token_id)

    def num_layers(self, model: Any) -> int:
        return int(model.config.get_text_config().num_hidden_layers)

    def device(self, model: Any) -> torch.device:
        return execution_device(model.model.language_model)

    def geometry(self, model: Any) -> Geometry:
        text, vision = model.config.get_text_config(), model.config.vision_config
        return Geometry(
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            mlp=text.intermediate_size,
            vision_layers=vision.depth,
            vision_hidden=vision.hidden_size,
            vision_mlp=vision.intermediate_size,
            patches_per_token=vision.spatial_merge_size**2,
            patch_values=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            dtype=model.dtype,
        )

    def grids(self, model: Any, inputs: Any) -> list[Grid]:
        grids = inputs.get("video_grid_thw")
        merge = model.config.vision_config.spatial_merge_size
        return [] if grids is None else [Grid(t, h // merge, w // merge) for t, h, w in grids.tolist()]

    def has_video(self, call: dict[str, Any]) -> bool:
        return call.get("pixel_values_videos") is not None or _encoded(call, "video") is not None

    def stock_reason(self, model: Any, call: dict[str, Any]) -> str | None:
        if call.get("input_ids") is None:
            return "inputs_embeds came without input_ids, so the video's columns are unknown"
        encoded = _encoded(call, "video")
        if encoded is not None and not all(isinstance(video, PendingVideo) for video in encoded.pooler_output):
            return "the video's features were computed beforehand (mm_encoder_outputs or prefill_chunk_size)"
        if encoded is None and call.get("video_grid_thw") is None:
            return "pixel_values_videos came without video_grid_thw"
        attention = self.attention_config(model)._attn_implementation
        if attention not in (*SUPPORTED, "quickprefill"):
            return f"the attention implementation is {attention!r}; supported are {', '.join(SUPPORTED)}"
        return None

    def rows(self, model: Any, call: dict[str, Any]) -> list[Row]:
        ids = call["input_ids"]
        mask = call.get("attention_mask")
        visible = torch.ones(ids.shape, dtype=torch.bool) if mask is None else mask[:, -ids.shape[1] :].bool().cpu()
        positions = self.position_ids(model, call)
        videos, images = self._videos(model, call), self._images(model, call)
        rows = []
        for batch_row in range(ids.shape[0]):
            columns = visible[batch_row].nonzero()[:, 0]
            row_ids = ids[batch_row, columns.to(ids.device)]
            num_video = int((row_ids == self.video_token_id(model)).sum())
            num_image = int((row_ids == self.image_token_id(model)).sum())
            if num_image > (0 if images is None else len(images)):
                raise InputError(
                    f"row {batch_row} holds {num_image} image placeholder tokens, more than there are features"
                )
            rows.append(
                Row(
                    ids=row_ids,
                    positions=positions[:, batch_row, columns.to(positions.device)],
                    columns=columns,
                    videos=_take(videos, num_video),
                    images=None if images is None else images[:num_image],
                )
            )
            images = None if images is None else images[num_image:]
        past = call.get("past_key_values")
        cached = past is not None and past.get_seq_length() > 0
        # In a later turn the host passes the new tokens only, but the caller may repeat videos that are cached already.
        if videos and not (cached and not any(row.videos for row in rows)):
            raise InputError(f"{len(videos)} video(s) have no placeholder tokens in input_ids; pass both from one call")
        if images is not None and len(images):
            raise InputError(f"the last {len(images)} image features have no placeholder tokens in input_ids")
        return rows

    def _videos(self, model: Any, call: dict[str, Any]) -> list[PendingVideo]:
        encoded = _encoded(call, "video")
        if encoded is not None:
            return list(encoded.pooler_output)
        return pending_videos(model, call["pixel_values_videos"], call["video_grid_thw"])

    def _images(self, model: Any, call: dict[str, Any]) -> torch.Tensor | None:
        encoded = _encoded(call, "image")
        if encoded is None and call.get("pixel_values") is not None:
            encoded = model.model.get_image_features(call["pixel_values"], call["image_grid_thw"], return_dict=True)
        return None if encoded is None else torch.cat(tuple(encoded.pooler_output))

    def position_ids(self, model: Any, call: dict[str, Any]) -> torch.Tensor:
        ids, past = call["input_ids"], call.get("past_key_values")
        positions = call.get("position_ids")
        if positions is None:
            names = ("input_ids", "image_grid_thw", "video_grid_thw", "attention_mask", "past_key_values")
            optional = ("second_per_grid_ts", "mm_token_type_ids")
            positions = model.model.compute_3d_position_ids(
                inputs_embeds=torch.empty(*ids.shape, 0, device=ids.device),
                **{name: call.get(name) for name in names + optional},
            )
        if positions is None:
            start = 0 if past is None else past.get_seq_length()
            positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        if positions.ndim == 2:
            return positions.expand(3, ids.shape[0], -1)
        # generate() puts a row of text positions first; it only serves packed sequences.
        return positions[-3:]

    def embed(self, model: Any, ids: torch.Tensor, images: torch.Tensor | None) -> torch.Tensor:
        embeds: torch.Tensor = model.get_input_embeddings()(ids)
        if images is not None and len(images):
            image_mask = (ids == self.image_token_id(model))[:, None].to(embeds.device)
            embeds = embeds.masked_scatter(image_mask, images.to(embeds.device, embeds.dtype))
        return embeds

    def attention_config(self, model: Any) -> Any:
        return model.model.language_model.config

    def rotary(self, model: Any, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = model.model.language_model.rotary_emb(hidden, positions.to(hidden.device))
        return cos, sin

    def layer(self, model: Any, index: int, hidden: torch.Tensor, rotary: Any, mask: Any, cache: Any) -> torch.Tensor:
        output: torch.Tensor = model.model.language_model.layers[index](
            hidden,
            attention_mask=mask,
            position_embeddings=rotary,
            position_ids=None,
            past_key_values=cache,
            use_cache=True,
        )
        return output

    def store(self, model: Any, index: int, hidden: torch.Tensor, rotary: Any, cache: Any) -> None:
        attention, states = _attention_input(model, index, hidden)
        keys, values = (_heads(attention, projection(states)) for projection in (attention.k_proj, attention.v_proj))
        _, keys = _rotated(keys, keys, rotary)
        cache.update(keys, values, index)

    def watched(self, model: Any, index: int) -> bool:
        layer = model.model.language_model.layers[index]
        return any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())

    def norm(self, model: Any, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model.model.language_model.norm(hidden)
        return output

    def queries_and_keys(
        self, model: Any, index: int, hidden: torch.Tensor, rotary: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attention, states = _attention_input(model, index, hidden)
        queries, keys = (_heads(attention, projection(states)) for projection in (attention.q_proj, attention.k_proj))
        return (queries, keys) if rotary is None else _rotated(queries, keys, rotary)

    @contextlib.contextmanager
    def watch_residual(self, model: Any, index: int) -> Iterator[list[torch.Tensor]]:
        seen: list[torch.Tensor] = []
        norm = model.model.language_model.layers[index].post_attention_layernorm
        hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            yield seen
        finally:
            hook.remove()

    def output(self, model: Any, hidden: torch.Tensor, cache: Any, return_dict: bool | None) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast
        from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as module

        extra = {}
        kind = getattr(module, "Qwen2_5_VLCausalLMOutputWithPast", None)
        if kind is not None:  # up to 5.19
            extra["rope_deltas"] = model.model.rope_deltas
        output = (kind or CausalLMOutputWithPast)(logits=model.lm_head(hidden), past_key_values=cache, **extra)
        wanted = model.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


def _encoded(call: dict[str, Any], modality: str) -> Any:
    return (call.get("mm_encoder_outputs") or {}).get(modality)


def _attention_input(model: Any, index: int, hidden: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """A decoder layer's attention, and what it projects, for the layer's input (1, n, C)."""
    layer = model.model.language_model.layers[index]
    return layer.self_attn, layer.input_layernorm(hidden.to(execution_device(layer.input_layernorm)))


def _heads(attention: Any, projected: torch.Tensor) -> torch.Tensor:
    """(1, n, heads x D) -> (1, heads, n, D)."""
    return projected.view(*projected.shape[:2], -1, attention.head_dim).transpose(1, 2)


def _rotated(queries: torch.Tensor, keys: torch.Tensor, rotary: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

    queries, keys = apply_rotary_pos_emb(queries, keys, *(part.to(queries.device) for part in rotary))
    return queries, keys


def _take(videos: list[PendingVideo], num_tokens: int) -> tuple[PendingVideo, ...]:
    """Remove from the front of `videos` those that fill `num_tokens` placeholders; a misfit is found by the split."""
    taken: list[PendingVideo] = []
    while videos and sum(map(len, taken)) < num_tokens:
        taken.append(videos.pop(0))
    return tuple(taken)
