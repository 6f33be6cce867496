"""A forward that trains what a compressor learns: fewer video tokens inside, hidden states of full width outside.

    columns that come in      text  v v v v v v v v  text          labels, their shift and counts are the trainer's
    rows of the decoder       text  c   c     c      text          c: what the compressor made of v
    hidden states that go out text  c 0 c 0 0 c 0 C  text          C: the last c once more, for who predicts from there

The core is where this happens, because trainers (TRL, Liger) call it by themselves and compute the loss outside.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from quickprefill.config import QuickPrefillConfig
from quickprefill.errors import InputError
from quickprefill.hosts.base import Host, Row
from quickprefill.hosts.geometry import Geometry
from quickprefill.loop.encode import Encoder, find_spans
from quickprefill.loop.reasons import output_reason
from quickprefill.loop.text import TextEmbedder
from quickprefill.prompt.spans import VideoSpan
from quickprefill.reporting import Recorder
from quickprefill.weights import weights_of

__all__ = ["Training"]

logger = logging.getLogger("quickprefill")

_IGNORED = -100
"""A label that counts for nothing."""


@dataclass(frozen=True)
class _Short:
    """A prompt as the decoder gets it."""

    embeds: torch.Tensor
    """(n, C), or wider."""
    positions: torch.Tensor
    """(P, n)."""
    columns: torch.Tensor
    """(n,) the batch column of each row, on the CPU; -1: it has none."""
    ends: list[tuple[int, int]]
    """For each video whose last column has no row: that column, and the column of its last token."""


class Training:
    """Calls that pass what a policy learns; warns once about labels where no token is."""

    def __init__(self, host: Host, config: QuickPrefillConfig) -> None:
        self._host, self._config, self._warned = host, config, False

    def forward(self, stock: Callable[..., Any], core: Any, call: dict[str, Any], labels: torch.Tensor | None) -> Any:
        """The core's output, compressed where there is video, on which every weight depends.

        Raises:
            InputError: the call brings its video in a way that cannot be compressed, or asks for what dropped tokens
                would have given.
        """
        host, as_tuple = self._host, call.get("return_dict") is False
        call = {name: value for name, value in call.items() if name != "return_dict"}
        if host.has_video(core, call):
            reason = host.stock_reason(core, call) or output_reason(core, call)
            if reason is not None:
                raise InputError(f"what the policy learns cannot be applied to this call: {reason}")
            _refuse_packing(call)
            rows = host.rows(core, call)
            if labels is not None and not self._warned:
                self._look_at_labels(core, rows, labels)
            shape = call["input_ids"].shape
            output = _compressed_forward(host, core, self._config, rows, shape, host.geometry(core))
        else:
            output = stock(**call)
        output = _with_every_weight(core, output)
        return output.to_tuple() if as_tuple else output

    def _look_at_labels(self, core: Any, rows: Sequence[Row], labels: torch.Tensor) -> None:
        self._warned, video = True, self._host.video_token_id(core)
        own = (row_labels[row.columns][row.ids == video] for row, row_labels in zip(rows, labels.cpu(), strict=True))
        if any(bool((part != _IGNORED).any()) for part in own):
            logger.warning(
                "quickprefill: labels are set at placeholders of a video, most of which are not in the compressed "
                "prompt; they add a constant to the loss and train nothing: set them to %d",
                _IGNORED,
            )


def _compressed_forward(
    host: Host, core: Any, config: QuickPrefillConfig, rows: Sequence[Row], shape: tuple[int, ...], geometry: Geometry
) -> Any:
    """The core's output for prompts with video, differentiable, without a cache.

    Hidden states are (B, S, C), zeros where a column's token is not among those that the compressor left: such a state
    sends no gradient to the head either.

    Args:
        shape: (B, S).
    """
    short = [_shortened(host, core, config, row, geometry) for row in rows]
    left = any(len(row.columns) and int(row.columns[0]) > 0 for row in rows)
    side = "left" if left else "right"
    embeds = _padded([one.embeds for one in short], side)
    positions = _padded([one.positions.T.to(embeds.device) for one in short], side).permute(2, 0, 1)
    columns = _padded([one.columns for one in short], side, -2)
    mask = (columns != -2).to(embeds.device, torch.long)
    hidden = host.decode(core, embeds, mask, positions)
    columns = columns.to(hidden.device)
    batch, at = (columns >= 0).nonzero(as_tuple=True)
    out = hidden.new_zeros(*shape, hidden.shape[-1]).index_put((batch, columns[batch, at]), hidden[batch, at])
    ends = [(number, *end) for number, one in enumerate(short) for end in one.ends]
    if ends:
        batch, closing, last = torch.tensor(ends, device=out.device).T
        out = out.index_put((batch, closing), out[batch, last])
    return host.output(core, out, None)


def _with_every_weight(core: Any, output: Any) -> Any:
    """The same output, on which every weight that trains depends, if only by nothing.

    Else a batch without a video leaves a rank of DDP waiting for gradients that do not come.
    """
    weights = weights_of(core)
    if weights is None or not torch.is_grad_enabled():
        return output
    training = [parameter for parameter in weights.parameters() if parameter.requires_grad]
    if training:
        nothing = torch.stack([parameter.sum().float() for parameter in training]).sum() * 0
        output.last_hidden_state = output.last_hidden_state + nothing.to(output.last_hidden_state)
    return output


def _refuse_packing(call: Mapping[str, Any]) -> None:
    """Raises InputError if a batch is packed, or its mask is not two-dimensional."""
    mask, positions = call.get("attention_mask"), call.get("position_ids")
    lengths = [name for name in call if name.startswith("cu_seq_lens") and call[name] is not None]
    if isinstance(positions, torch.Tensor) and positions.ndim == 3:  # rows and columns of a picture start again too
        positions = positions[0] if len(positions) == 4 else None
    restarts = False
    if isinstance(positions, torch.Tensor):
        back = positions.diff(dim=-1) < 0
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and mask.shape[1] > back.shape[1]:
            own = mask[:, -back.shape[1] - 1 :].bool()
            back = back & own[:, 1:] & own[:, :-1]
        restarts = bool(back.any())
    if lengths or restarts:
        raise InputError(
            "several prompts are packed into one row (padding-free training), but what a compressor learns trains on "
            "rows of one prompt; use packing=False and padding_free=False"
        )
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise InputError(
            f"attention_mask must be (batch, columns) of 0 and 1 where a compressor trains, since it drops columns; "
            f"got {shape}"
        )


def _shortened(host: Host, core: Any, config: QuickPrefillConfig, row: Row, geometry: Geometry) -> _Short:
    spans = find_spans(host, core, config, row)
    text, tail = TextEmbedder(host, core, row), spans[-1].stop if spans else 0
    question = None
    if config.compressor is not None and config.compressor.uses_question:
        question = text(torch.arange(tail, len(row.ids))).embeds[:, : geometry.hidden]
    recorder = Recorder(device=geometry.devices[-1])
    encoder = Encoder(
        row, config, host.frames_per_slice(core), geometry.hidden, question, weights_of(core), recorder, training=True
    )
    parts = [part for span in spans for part in _parts(encoder, span, text)]
    rest = torch.arange(tail, len(row.ids))
    after = text(rest)
    parts.append((after.embeds, after.positions, rest))
    device = after.embeds.device
    columns = torch.cat([part[2] for part in parts])
    ends = [(span.stop - 1, int(columns[columns < span.stop].max())) for span in spans]
    first = int(row.columns[0]) if len(row.columns) else 0
    return _Short(
        embeds=torch.cat([part[0].to(after.embeds) for part in parts]),
        positions=torch.cat([part[1].to(device) for part in parts], dim=1),
        columns=torch.where(columns < 0, columns, columns + first),
        ends=[(closing + first, last + first) for closing, last in ends if last != closing],
    )


def _parts(
    encoder: Encoder, span: VideoSpan, text: TextEmbedder
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows of one video and of the text before and between: embeddings, positions and columns, group by group."""
    parts = []
    for entering in encoder.groups(span):
        group, tokens = entering.group, entering.tokens
        own = text(group.text_columns())
        columns = torch.cat([group.text_columns(), group.columns(tokens.source).cpu()])
        embeds = torch.cat([own.embeds, tokens.embeds.to(own.embeds)])
        positions = torch.cat([own.positions.to(embeds.device), tokens.positions.to(embeds.device)], dim=1)
        order = columns.argsort()
        embeds, positions, columns = embeds[order], positions[:, order], columns[order]
        if tokens.thumbnail is not None:
            number, at = len(tokens.thumbnail), int(torch.searchsorted(columns, group.video_start))
            lead = tokens.positions[:, :number].to(positions)
            embeds = torch.cat([embeds[:at], tokens.thumbnail.to(embeds), embeds[at:]])
            positions = torch.cat([positions[:, :at], lead, positions[:, at:]], dim=1)
            columns = torch.cat([columns[:at], torch.full((number,), -1), columns[at:]])
        parts.append((embeds, positions, columns))
    return parts


def _padded(rows: Sequence[torch.Tensor], side: str, value: float = 0) -> torch.Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)
