"""Attention within a vision tower's segments, in one call for each length."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import quickprefill
from quickprefill.attention import segments
from quickprefill.attention.segments import batched_segments, segment_attention
from tests.tiny import Clip, make_inputs, prompt, tiny_model


class AttentionCalls(TorchDispatchMode):
    """Counts calls of fused attention kernels."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "scaled_dot_product" in func.name()
        return func(*args, **(kwargs or {}))


def one_by_one(query, key, value, lengths, scale):
    parts = zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part, scale=scale) for part in parts], dim=2).transpose(1, 2)


@pytest.mark.parametrize("lengths", [(6,), (4, 4, 4), (4, 4, 2, 4, 1, 2), (1, 2, 3), (3, 0, 3, 2)], ids=str)
@pytest.mark.parametrize("most", [2, 100])
def test_equals_one_call_for_each_segment(lengths, most, monkeypatch):
    monkeypatch.setattr(segments, "_MOST_SEGMENTS", most)
    torch.manual_seed(0)
    # (n, H, D) in memory, as projections come.
    query, key, value = (torch.randn(sum(lengths), 3, 8).transpose(0, 1)[None] for _ in range(3))
    ours = segment_attention(query, key, value, lengths, scale=0.3)
    torch.testing.assert_close(ours, one_by_one(query, key, value, lengths, 0.3))


@pytest.mark.spine
def test_a_tower_calls_attention_once_for_each_length():
    model = tiny_model()
    inputs = make_inputs(prompt(3, Clip((6, 12, 20)), 4))
    depth, decoder_layers = model.config.vision_config.depth, model.config.get_text_config().num_hidden_layers
    counts = []
    for config in ({"keep": 1.0, "group_frames": 12}, None):
        with torch.no_grad(), AttentionCalls() as calls:
            if config is None:
                model(**inputs, logits_to_keep=1)
            else:
                with quickprefill.patched(model, **config):
                    model(**inputs, logits_to_keep=1)
        counts.append(calls.count)
    ours, stock = counts
    assert ours <= 4 * depth + 3 * decoder_layers
    assert stock > 3 * ours


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_config_is_the_hosts_own_again(attention):
    vision = tiny_model(attention).config.vision_config
    with pytest.raises(KeyError), batched_segments(vision):
        inside = vision._attn_implementation
        raise KeyError
    assert (inside == attention) == (attention == "eager")
    assert vision._attn_implementation == attention
