"""The three bases: what a policy from outside the package gets without asking, and what it may override."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch

from quickprefill import POLICIES, ConfigError, QuickPrefillConfig
from quickprefill.policies import Compressor, GroupAttention, GroupKV, KeyNorm, Policy, Scorer, Selector, VideoTokens
from quickprefill.prompt.spans import Grid


class FirstTokens(Compressor):
    exact = True

    def compress(self, tokens):
        return tokens.take(torch.arange(tokens.num_kept or tokens.num_tokens))


class MostSeen(Selector):
    def select(self, seen):
        return seen.attention.sum(dim=(0, 1)).topk(seen.num_kept).indices.sort().values


class LargeValues(Scorer):
    def score(self, kv):
        return kv.values.float().square().sum(dim=(1, 3))


def test_the_defaults_of_a_compressor():
    policy = FirstTokens()
    assert (policy.name, policy.stages) == ("first_tokens", ("compress",))
    assert (policy.scope, policy.compress_ratio, policy.exact, policy.uses_question) == ("group", None, True, False)
    assert policy.most_tokens(Grid(2, 3, 4), 5) == 5
    assert policy.workspace_bytes(10, 5, 8, 2) == 10 * 8 * 6


def test_the_defaults_of_a_selector():
    policy = MostSeen()
    assert (policy.name, policy.stages) == ("most_seen", ("select",))
    assert (policy.layer, policy.attention, policy.prune_cache) == (0, "causal", True)
    assert (policy.select_ratio, policy.uses_question) == (None, True)


def test_the_defaults_of_a_scorer():
    policy = LargeValues()
    assert (policy.name, policy.stages) == ("large_values", ("score",))
    assert (policy.per_head, policy.uses_residual, policy.uses_question) == (False, False, False)


def test_a_minimal_policy_of_each_stage_works_unregistered():
    grid = Grid(2, 2, 2)
    tokens = VideoTokens(torch.randn(8, 4), torch.zeros(1, 8), torch.arange(8), grid, num_kept=3)
    attention = torch.tensor([[[0.1, 0.5, 0.0, 0.4]]])
    states = torch.tensor([1.0, 3.0, 2.0]).view(1, 1, 3, 1)
    for policy in (FirstTokens(), MostSeen(), LargeValues()):
        config = QuickPrefillConfig(keep=0.25, policy=policy)
        assert config.policies == (policy,)
        assert isinstance(hash(config), int)
    assert FirstTokens().compress(tokens).source.tolist() == [0, 1, 2]
    seen = GroupAttention(attention, 2, None, Grid(1, 2, 2), torch.arange(4), layer=0, group=0)
    assert MostSeen().select(seen).tolist() == [1, 3]
    assert LargeValues().score(GroupKV(states, states, layer=0, group=0, num_kept=1)).argmax() == 1


def test_a_base_value_is_overridden_by_a_field_or_a_property():
    @dataclass(frozen=True)
    class ByField(Compressor):
        scope: str = "video"
        compress_ratio: float = 0.5

        def compress(self, tokens):
            return tokens

    @dataclass(frozen=True)
    class ByProperty(Scorer):
        heads: bool = True

        @property
        def per_head(self):
            return self.heads

        def score(self, kv):
            return kv.keys.sum(-1)

    @dataclass(frozen=True)
    class WithoutDefault(Selector):
        layer: int

        def select(self, seen):
            return torch.arange(seen.num_kept)

    assert (ByField().scope, ByField("group").scope, ByField().compress_ratio) == ("video", "group", 0.5)
    assert [ByProperty().per_head, ByProperty(False).per_head] == [True, False]
    assert [WithoutDefault(3).layer, WithoutDefault().layer] == [3, 0]
    assert [field.name for field in dataclasses.fields(ByField)] == ["scope", "compress_ratio"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("VidComLike", "vid_com_like"), ("KeyNorm2", "key_norm2"), ("HTTPScore", "http_score"), ("Mine", "mine")],
)
def test_a_class_without_a_name_is_called_by_its_own(given, expected):
    assert type(given, (Scorer,), {}).name == expected
    assert type(given, (KeyNorm,), {}).name == expected, "not by the name of the class that it derives from"
    assert type(given, (KeyNorm,), {"name": "other"}).name == "other"


@pytest.mark.parametrize(
    ("base", "method"),
    [(Compressor, "compress"), (Selector, "select"), (Scorer, "score")],
    ids=lambda value: str(value),
)
def test_a_method_left_out_is_named(base, method):
    with pytest.raises(TypeError, match=method):
        type("Unfinished", (base,), {})()


@pytest.mark.parametrize(("base", "method"), [("Compressor", "compress"), ("Selector", "select"), ("Scorer", "score")])
def test_a_stage_without_its_base_is_refused(base, method):
    loose = type("Loose", (Policy,), {method: lambda self, given: given})
    with pytest.raises(ConfigError, match=rf"Loose has {method}\(\) but does not derive from .*policies\.{base}"):
        QuickPrefillConfig(policy=loose())
    mixed = type("Mixed", (LargeValues if method != "score" else FirstTokens,), {method: lambda self, given: given})
    with pytest.raises(ConfigError, match=rf"write class Mixed\({base}\)"):
        QuickPrefillConfig(policy=mixed())


@pytest.mark.parametrize(
    ("base", "values", "words"),
    [
        (FirstTokens, {"scope": "frame"}, "Odd.scope must be 'video' or 'group', got 'frame'"),
        (FirstTokens, {"compress_ratio": 0}, r"Odd.compress_ratio must be None or in \(0, 1\], got 0"),
        (MostSeen, {"attention": "full"}, "Odd.attention must be 'position_free' or 'causal', got 'full'"),
        (MostSeen, {"select_ratio": 1.5}, r"Odd.select_ratio must be None or in \(0, 1\], got 1.5"),
        (MostSeen, {"layer": -1}, "Odd.layer must be an integer >= 0, got -1"),
    ],
)
def test_an_odd_value_for_the_loop_is_refused(base, values, words):
    with pytest.raises(ConfigError, match=words):
        QuickPrefillConfig(policy=type("Odd", (base,), values)())


@dataclass(frozen=True)
class Weighted(Scorer):
    weights: tuple = (1.0, 2.0)
    checked: bool = True

    def __post_init__(self):
        assert isinstance(self.weights, tuple), "lists are tuples by the time that a policy looks at its fields"

    def score(self, kv):
        return kv.keys.sum(dim=(1, 3))


def test_lists_become_tuples(monkeypatch):
    policy = Weighted([1, [2, 3]])
    assert policy == Weighted((1, (2, 3)))
    assert hash(policy) == hash(Weighted((1, (2, 3))))
    assert dataclasses.replace(policy, weights=[4]).weights == (4,)
    monkeypatch.setitem(POLICIES, "weighted", Weighted)
    values = json.loads(json.dumps(policy.to_dict()))
    assert POLICIES[values.pop("name")].from_dict(values) == policy


def test_json_needs_registration(monkeypatch):
    config = QuickPrefillConfig(policy=Weighted())
    with pytest.raises(ConfigError, match=r"got 'weighted'; register one of your own first, quickprefill\.POLICIES"):
        QuickPrefillConfig.from_json(config.to_json())
    monkeypatch.setitem(POLICIES, "weighted", Weighted)
    assert QuickPrefillConfig.from_json(config.to_json()) == config
    assert QuickPrefillConfig(policy="weighted").policies == (Weighted(),)
