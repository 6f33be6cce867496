"""QuickPrefillConfig and the budget arithmetic."""

import dataclasses
import json

import pytest
import torch

from quickprefill import POLICIES, ConfigError, QuickPrefillConfig
from quickprefill.budget.counts import num_kept, select
from quickprefill.policies import KeyNorm, Random


def test_defaults():
    config = QuickPrefillConfig()
    assert (config.keep, config.keep_tokens, config.group_frames, config.policy) == (None, None, None, "key_norm")
    assert (config.trace, config.keep_share) == (False, 0.5)


@pytest.mark.parametrize(
    "config",
    [
        QuickPrefillConfig(),
        QuickPrefillConfig(group_frames="auto"),
        QuickPrefillConfig(keep=0.25, keep_tokens=100, group_frames=64, policy="random", progress=True),
        QuickPrefillConfig(policy=KeyNorm(largest=True)),
        QuickPrefillConfig(policy=Random(seed=7)),
    ],
)
def test_json_round_trip(config):
    assert QuickPrefillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert QuickPrefillConfig.from_json(config.to_json()) == config


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuickPrefillConfig().keep = 0.1


@pytest.mark.parametrize("keep", [0, 0.0, -0.5, 1.5, float("nan"), "half", True])
def test_keep_out_of_range(keep):
    with pytest.raises(ConfigError, match=r"0 < keep <= 1"):
        QuickPrefillConfig(keep=keep)


@pytest.mark.parametrize("group_frames", [0, 1, 7, -2, 2.0, "16", True])
def test_group_frames_odd_or_zero(group_frames):
    with pytest.raises(ConfigError, match='group_frames must be None, "auto" or an even integer >= 2'):
        QuickPrefillConfig(group_frames=group_frames)


@pytest.mark.parametrize("keep_tokens", [0, -1, 2.5])
def test_keep_tokens_out_of_range(keep_tokens):
    with pytest.raises(ConfigError, match="keep_tokens must be None or an integer >= 1"):
        QuickPrefillConfig(keep_tokens=keep_tokens)


def test_unknown_policy_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"one of \['key_norm', .*'value_norm', 'vidcom2'\].*'attention'"):
        QuickPrefillConfig(policy="attention")
    with pytest.raises(ConfigError, match="policy name must be one of"):
        QuickPrefillConfig.from_dict({"policy": {"name": "attention"}})
    with pytest.raises(ConfigError, match="no option temperature"):
        QuickPrefillConfig.from_dict({"policy": {"name": "key_norm", "temperature": 1}})


def test_unknown_field_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown field 'kep'.*'keep_tokens'"):
        QuickPrefillConfig.from_dict({"kep": 0.5})


@pytest.mark.parametrize(
    ("options", "num_tokens", "expected"),
    [
        ({"keep": 0.5}, 10, 5),
        ({"keep": 0.5}, 7, 4),  # 3.5 rounds up
        ({"keep": 0.29}, 100, 29),  # int(0.29 * 100) would be 28
        ({"keep": 0.25}, 1, 1),  # never none
        ({"keep": 0.001}, 10, 1),
        ({"keep": 1.0}, 10, 10),
        ({"keep_tokens": 4}, 10, 4),
        ({"keep_tokens": 40}, 10, 10),
        ({"keep": 0.5, "keep_tokens": 4}, 10, 4),
        ({"keep": 0.5, "keep_tokens": 6}, 10, 5),
    ],
)
def test_num_kept(options, num_tokens, expected):
    assert num_kept(QuickPrefillConfig(**options), num_tokens) == expected


def test_select_is_sorted_and_breaks_ties_by_order():
    scores = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0]])
    assert select(scores, 1).tolist() == [[1]]
    assert select(scores, 3).tolist() == [[1, 2, 3]]
    assert select(scores, 4).tolist() == [[1, 2, 3, 4]]
    assert select(scores, 6).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_policy_outside_the_package_goes_through_json_once_registered(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Mine(KeyNorm):
        name = "mine"
        scale: float = 2.0

    monkeypatch.setitem(POLICIES, "mine", Mine)
    config = QuickPrefillConfig(policy=Mine(scale=3.0))
    assert QuickPrefillConfig.from_json(config.to_json()) == config
