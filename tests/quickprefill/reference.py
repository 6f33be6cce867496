"""A slow, literal reference for a pruned prefill: the full sequence layer by layer, without a cache.

Every layer attends row by row over all tokens; a row sees an earlier token if the token was kept in this layer, or
belongs to the row's own group. Where a policy asks for the question, each group gets a copy of the question's rows
behind it that nothing else sees. With the code under test it shares the host's weights and the definitions only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

import torch

from tests.tiny import VIDEO


@dataclass
class Rules:
    """What the reference can do; counts and scores are functions of the definitions, not of the package."""

    group_slices: int
    keep: float = 1.0
    score: str = "value_norm"
    first_layer: int = 0
    decay: str | float | None = None
    progressive_from: int | None = None
    see_past: bool = True
    per_head: bool = False
    question: int = 0
    """Rows at the end of the prompt that ride along behind each group."""
    compared_in: str = "video"
    """Where tokens were dropped before the decoder: what they were compared in, the whole video or the group."""


def budget(rules: Rules, tokens: Fraction, layer: int, layers: int) -> int:
    """`tokens`: those that the tower made for what entered the decoder."""
    if layer < rules.first_layer:
        return math.ceil(tokens)
    count = math.floor(Fraction(rules.keep) * tokens + Fraction(1, 2))
    if rules.decay == "linear":
        count = count - int(count * layer / layers)
    elif rules.decay is not None:
        count = int(count * rules.decay**layer)
    return max(count, 1)


def group_of_columns(ids: list[int], grids: list[tuple[int, int, int]], group_slices: int) -> list[int]:
    """Group index of each column, -1 for text. Grids are merged (slices, rows, columns)."""
    groups, next_group, video, seen = [], 0, 0, 0
    for token in ids:
        if token != VIDEO:
            groups.append(-1)
            continue
        slices, height, width = grids[video]
        size = height * width * group_slices
        groups.append(next_group + seen // size)
        seen += 1
        if seen == slices * height * width:
            next_group += math.ceil(slices / group_slices)
            video, seen = video + 1, 0
    return groups


def norm(vector: torch.Tensor) -> float:
    return math.sqrt(sum(x * x for x in vector.flatten().double().tolist()))


@dataclass
class Row:
    """One token on its way through the layers."""

    column: int
    group: int
    """The group it is in; text belongs to no group, -1."""
    stretch: int
    """The group that it is prefilled with: its own, or for text the next one; the tail has one behind the last."""
    copy: bool = False
    hidden: torch.Tensor = None
    key: torch.Tensor = None
    value: torch.Tensor = None
    query: torch.Tensor = None
    residual: torch.Tensor = None
    kept: object = True
    """In the present layer: True, or the set of key-value heads that keep it."""
    alive: bool = True


def sectioned(part, config):
    """(B, n, D) cosines or sines; up to transformers 5.16 they come for t, h and w, whose sections are still to mix."""
    if part.ndim == 3:
        return part
    rope = getattr(config, "rope_parameters", None) or config.rope_scaling
    chunks = part.split(rope["mrope_section"] * 2, dim=-1)
    return torch.cat([chunk[index % 3] for index, chunk in enumerate(chunks)], dim=-1)


@dataclass
class Dense:
    """Runs the reference for one prompt."""

    model: object
    rules: Rules
    rows: list[Row] = field(default_factory=list)

    def logits(self, inputs, positions, embeds=None):
        """Logits (S, vocabulary) of every column, NaN where the token did not reach the last layer.

        embeds: column -> embedding for video columns that enter the decoder; by default all of them.
        """
        model, text = self.model, self.model.model.language_model
        ids = inputs["input_ids"][0].tolist()
        merge = model.config.vision_config.spatial_merge_size
        grids = [(t, h // merge, w // merge) for t, h, w in inputs["video_grid_thw"].tolist()]
        groups = group_of_columns(ids, grids, self.rules.group_slices)
        entered = set(range(len(ids))) if embeds is None else set(embeds)
        self.count = self.shares(groups, entered, grids)
        if embeds is None:
            features = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
            columns = [column for column, group in enumerate(groups) if group >= 0]
            embeds = dict(zip(columns, torch.cat(tuple(getattr(features, "pooler_output", features))), strict=True))
        words = model.get_input_embeddings()(inputs["input_ids"])[0]
        self.rows, stretch = [], max(groups) + 1
        for column in reversed(range(len(ids))):
            stretch = groups[column] if groups[column] >= 0 else stretch
            if groups[column] < 0 or column in embeds:
                hidden = words[column] if groups[column] < 0 else embeds[column]
                self.rows.insert(0, Row(column, groups[column], stretch, hidden=hidden))
        tail = [row for row in self.rows if row.column >= len(ids) - self.rules.question]
        for group in range(max(groups) + 1):
            at = next(i for i, row in enumerate(self.rows) if row.stretch > group)
            if self.rules.question:
                self.rows[at:at] = [Row(row.column, -1, group, copy=True, hidden=row.hidden) for row in tail]
        rotary = text.rotary_emb(words[None], positions)
        self.rotary = [sectioned(part, text.config)[0] for part in rotary]
        for index, layer in enumerate(text.layers):
            self.run_layer(index, layer, len(text.layers))
        output = torch.full((len(ids), model.config.get_text_config().vocab_size), float("nan"))
        for row in self.rows:
            if row.alive and not row.copy:
                output[row.column] = model.lm_head(text.norm(row.hidden))
        return output

    def shares(self, groups, entered, grids):
        """Tokens of the tower that each group's own stand for: its part of its unit's, by how many of them entered."""
        number = range(max(groups) + 1)
        made = [groups.count(group) for group in number]
        left = [sum(groups[column] == group for column in entered) for group in number]
        units = list(number)
        if self.rules.compared_in == "video":
            units = [video for video, grid in enumerate(grids) for _ in range(-(-grid[0] // self.rules.group_slices))]
        members = [[other for other in number if units[other] == units[group]] for group in number]
        return [
            Fraction(sum(made[other] for other in own) * left[group], sum(left[other] for other in own))
            for group, own in enumerate(members)
        ]

    def run_layer(self, index, layer, num_layers):
        attention = layer.self_attn
        for row in self.rows:
            row.kept = True
            row.key = None
            if row.alive:
                states = layer.input_layernorm(row.hidden)
                row.query, row.key, row.value = (
                    part(states).view(-1, attention.head_dim)
                    for part in (attention.q_proj, attention.k_proj, attention.v_proj)
                )
                row.query, row.key = self.rotate(row.query, row.column), self.rotate(row.key, row.column)
        self.last = max(row.stretch for row in self.rows)
        for stretch in range(self.last + 1):
            members = [row for row in self.rows if row.alive and row.stretch == stretch]
            for row in members:
                row.residual = row.hidden + attention.o_proj(self.attend(row, attention).flatten())
                row.hidden = row.residual + layer.mlp(layer.post_attention_layernorm(row.residual))
            if any(row.group == stretch for row in members):
                self.prune(stretch, index, num_layers, attention)

    def rotate(self, vectors, column):
        cos, sin = (part[column] for part in self.rotary)
        half = vectors.shape[-1] // 2
        return vectors * cos + torch.cat([-vectors[:, half:], vectors[:, :half]], dim=-1) * sin

    def attend(self, row, attention):
        """(H, D): each query head over the keys of its key-value head that the row sees."""
        others = [other for other in self.rows if other.key is not None]
        heads = range(others[0].key.shape[0])
        visible = torch.tensor([[self.sees(row, other, head) for head in heads] for other in others])  # (n, K)
        keys, values = (torch.stack([getattr(other, name) for other in others], dim=1) for name in ("key", "value"))
        queries = row.query.view(len(heads), attention.num_key_value_groups, -1)
        scores = torch.einsum("ksd,knd->ksn", queries, keys) * attention.scaling
        weights = scores.masked_fill(~visible.T[:, None], float("-inf")).softmax(-1)
        return torch.einsum("ksn,knd->ksd", weights, values).flatten(0, 1)

    def sees(self, row, other, head):
        if other.key is None or (other.copy and not (row.copy and row.stretch == other.stretch)):
            return False
        if row.copy and other.copy:
            return other.column <= row.column
        if row.stretch == other.stretch:
            return row.copy or other.column <= row.column
        if other.stretch > row.stretch or (not self.rules.see_past and row.stretch != self.last):
            return False
        return other.kept is True or (other.kept is not False and head in other.kept)

    def prune(self, group, index, num_layers, attention):
        rules = self.rules
        members = [row for row in self.rows if row.alive and row.group == group]
        count = budget(rules, self.count[group], index, num_layers)
        if count >= len(members):
            return
        if rules.per_head:
            for row in members:
                row.kept = set()
            for head in range(members[0].key.shape[0]):
                scores = [self.score_of_head(row, head) for row in members]
                for position in best(scores, count):
                    members[position].kept.add(head)
            return
        scores = self.scores(members, group, attention)
        chosen = set(best(scores, count))
        progressive = rules.progressive_from is not None and index >= rules.progressive_from
        for position, row in enumerate(members):
            row.kept = position in chosen
            row.alive = row.kept or not progressive

    def score_of_head(self, row, head):
        return -norm(row.key[head]) if self.rules.score == "key_norm" else norm(row.value[head])

    def scores(self, members, group, attention):
        name = self.rules.score
        if name == "key_norm":
            return [-norm(row.key) for row in members]
        if name == "value_norm":
            return [norm(row.value) for row in members]
        if name == "output_norm":
            return [norm(row.residual) for row in members]
        copies = [row for row in self.rows if row.copy and row.stretch == group]
        received = [0.0] * len(members)
        heads = copies[0].query.shape[0]
        for copy in copies:
            for head in range(heads):
                keys = torch.stack([row.key[head // attention.num_key_value_groups] for row in members]).double()
                scaled = (keys @ copy.query[head].double() * attention.scaling).tolist()
                total = sum(math.exp(value - max(scaled)) for value in scaled)
                for position, value in enumerate(scaled):
                    received[position] += math.exp(value - max(scaled)) / total / heads
        if name == "query_attention_by_value_norm":
            received = [value * norm(row.value) for value, row in zip(received, members, strict=True)]
        return received


def best(scores, count):
    return sorted(range(len(scores)), key=lambda position: (-scores[position], position))[:count]


def dense_logits(model, inputs, positions, rules, embeds=None):
    """Logits (1, S, vocabulary) of every column of one prompt."""
    with torch.no_grad():
        return Dense(model, rules).logits(inputs, positions, embeds)[None]
