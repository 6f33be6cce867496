"""QuickPrefillConfig: its fields, what goes together, JSON; test_counts.py has the arithmetic."""

import dataclasses
import json

import pytest
from transformers import DynamicCache, Qwen2Config

from quickprefill import POLICIES, ConfigError, QuickPrefillConfig
from quickprefill.budget.counts import compressed_count, selected_count
from quickprefill.fits import check_layers
from quickprefill.policies import Compressor, KeyNorm, PruneVid, QueryAttention, Random, Selector, VidCom2
from quickprefill.prompt.spans import Grid


def test_defaults():
    config = QuickPrefillConfig()
    assert (config.keep, config.keep_tokens, config.group_frames, config.policy) == (None, None, None, None)
    assert (config.trace, config.keep_share) == (False, 0.5)


@pytest.mark.parametrize(
    "config",
    [
        QuickPrefillConfig(),
        QuickPrefillConfig(group_frames="auto"),
        QuickPrefillConfig(keep=0.25, keep_tokens=100, group_frames=64, policy="random", progress=True),
        QuickPrefillConfig(policy=KeyNorm(largest=True)),
        QuickPrefillConfig(policy=Random(seed=7)),
        QuickPrefillConfig(policy=[VidCom2(0.5), "key_norm"], trace=True),
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
    with pytest.raises(ConfigError, match=r"one of \['cubes', 'key_norm', .*'value_norm', 'vidcom2'\].*'attention'"):
        QuickPrefillConfig(policy="attention")
    with pytest.raises(ConfigError, match="policy name must be one of"):
        QuickPrefillConfig.from_dict({"policy": {"name": "attention"}})
    with pytest.raises(ConfigError, match="no option temperature"):
        QuickPrefillConfig.from_dict({"policy": {"name": "key_norm", "temperature": 1}})


def test_unknown_field_names_the_known_ones():
    with pytest.raises(ConfigError, match="unknown field 'kep'.*'keep_tokens'"):
        QuickPrefillConfig.from_dict({"kep": 0.5})


def test_a_policy_outside_the_package_goes_through_json_once_registered(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Mine(KeyNorm):
        name = "mine"
        scale: float = 2.0

    monkeypatch.setitem(POLICIES, "mine", Mine)
    config = QuickPrefillConfig(policy=Mine(scale=3.0))
    assert QuickPrefillConfig.from_json(config.to_json()) == config


class Half(Compressor):
    compress_ratio = 0.5

    def compress(self, tokens):
        return tokens


class Ask(Selector):
    def select(self, seen):
        return seen.places


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 0.5),
        ({"keep": 0.3}, 0.3),
        ({"keep_tokens": 64}, 1.0),
        ({"keep": 0.3, "keep_tokens": 64}, 0.3),
        ({"policy": "vidcom2"}, 0.5),
        ({"policy": "vidcom2", "keep": 0.1}, 0.1),
        ({"policy": "vidcom2", "keep_tokens": 64}, 1.0),
        ({"policy": VidCom2(0.25)}, 1.0),
        ({"policy": "prunevid"}, 0.5),
        ({"policy": PruneVid.paper()}, 1.0),
        ({"policy": PruneVid(cluster_ratio=0.3)}, 0.5),
        ({"policy": PruneVid(keep_ratio=0.3)}, 1.0),
        ({"policy": PruneVid.merge_only()}, 1.0),
        ({"policy": (VidCom2(0.25), "key_norm")}, 0.5),
        ({"policy": (VidCom2(0.25), "key_norm"), "keep": 0.1}, 0.1),
        ({"policy": (PruneVid.merge_only(), "query_attention")}, 0.5),
        ({"policy": Ask()}, 0.5),
        ({"policy": (Half(), Ask())}, 0.5),
    ],
    ids=str,
)
def test_what_keep_is_where_it_is_not_given(options, share):
    config = QuickPrefillConfig(**options)
    assert config.keep_share == share
    assert config.keep == options.get("keep"), "the field stays as it was given"


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_keep_is_one_dial_for_every_policy(policy):
    assert QuickPrefillConfig(keep=0.3, policy=policy).keep_share == 0.3
    assert QuickPrefillConfig(keep_tokens=7, policy=policy).keep_share == 1.0


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("base", [QuickPrefillConfig(), QuickPrefillConfig(group_frames=16, trace=True)], ids=str)
def test_overriding_the_policy_of_a_config_never_collides(base, policy):
    config = QuickPrefillConfig.from_dict({**vars(base), "policy": policy})
    assert (config.keep, config.policy, config.group_frames) == (None, policy, base.group_frames)


def test_the_policy_of_each_stage():
    paper = PruneVid.paper()
    both = QuickPrefillConfig(policy=paper)
    assert (both.compressor, both.selector, both.scorer) == (paper, paper, None)
    pair = QuickPrefillConfig(policy=("key_norm", VidCom2(0.5)))
    assert (pair.compressor, pair.selector, pair.scorer) == (VidCom2(0.5), None, KeyNorm())
    select_only = QuickPrefillConfig(policy=PruneVid(merge=False))
    assert (select_only.compressor, select_only.selector) == (None, PruneVid(merge=False))


def test_policies_in_a_list():
    as_list = QuickPrefillConfig(policy=[VidCom2(0.5), "key_norm"])
    as_tuple = QuickPrefillConfig(policy=(VidCom2(0.5), "key_norm"))
    assert as_list == as_tuple
    assert hash(as_list) == hash(as_tuple)
    assert as_list.policy == (VidCom2(0.5), "key_norm")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": ()}, "at least one of"),
        ({"policy": KeyNorm}, r"or a Policy object, got <class"),
        ({"policy": 3}, r"or a Policy object, got 3"),
        ({"policy": [["key_norm"]]}, r"or a Policy object, got \['key_norm'\]"),
        ({"policy": ("key_norm", "value_norm")}, r"one policy of a tuple may score, got \['key_norm', 'value_norm'\]"),
        ({"policy": (VidCom2(0.5), PruneVid.merge_only())}, "only one policy of a tuple may compress"),
        ({"policy": (PruneVid(), "key_norm")}, r"PruneVid\(select_tokens=False\)"),
        ({"policy": PruneVid(merge=False, select_tokens=False)}, "defines none of"),
        ({"policy": ("vidcom2", "key_norm")}, r"what stays behind key_norm; .*VidCom2\(retention_ratio=0.5\)"),
        ({"policy": (PruneVid(select_tokens=False), "key_norm")}, r"say what prunevid leaves before it"),
        ({"policy": ("vidcom2", PruneVid(merge=False))}, r"what stays behind prunevid; say what vidcom2 leaves"),
        ({"policy": VidCom2(0.25), "keep_tokens": 5}, r"keep_tokens=5 and a ratio of 0.25 in VidCom2.*give one"),
        ({"policy": PruneVid.paper(), "keep_tokens": 5}, r"keep_tokens=5 and a ratio of 0.4 in PruneVid"),
        ({"policy": "vidcom2", "first_layer": 1}, "first_layer=1 needs a policy that scores, such as key_norm"),
        ({"policy": "vidcom2", "layer_decay": 0.5}, "layer_decay=0.5 needs a policy that scores"),
        ({"policy": "prunevid", "progressive_from": 0}, "progressive_from=0 needs a policy that scores"),
        ({"policy": "vidcom2", "prune_text": True}, "prune_text=True needs a policy that scores"),
        ({"first_layer": -1}, "first_layer must be an integer >= 0"),
        ({"progressive_from": 1, "first_layer": 2}, r"progressive_from must be >= first_layer \(2\)"),
        ({"progressive_from": 1, "policy": KeyNorm(per_head=True)}, "per_head=True"),
        ({"layer_decay": "cosine"}, 'layer_decay must be None, "linear" or a factor'),
        ({"layer_decay": 1.0}, "0 < f < 1"),
        ({"prune_text": True, "policy": QueryAttention()}, "cannot score the question by itself"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_when_built(options, words):
    with pytest.raises(ConfigError, match=words):
        QuickPrefillConfig(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"prune_text": True, "policy": "output_norm"},
        {"keep": 1.0, "policy": VidCom2(0.25)},
        {"keep": 0.1, "keep_tokens": 9, "policy": (VidCom2(0.25), "key_norm")},
        {"keep": 0.1, "policy": (PruneVid.merge_only(), "query_attention")},
        {"keep": 0.1, "policy": (VidCom2(0.5), PruneVid(merge=False))},
        {"keep": 0.1, "policy": PruneVid(cluster_ratio=0.5)},
    ],
    ids=str,
)
def test_what_goes_together(options):
    config = QuickPrefillConfig(**options)
    assert QuickPrefillConfig.from_json(config.to_json()) == config


def test_layers_outside_the_model():
    three, four = (DynamicCache(config=Qwen2Config(num_hidden_layers=count)).layers for count in (3, 4))
    for options, name in [
        ({"first_layer": 3}, "first_layer"),
        ({"progressive_from": 3}, "progressive_from"),
        ({"policy": PruneVid(layer=3)}, "PruneVid.layer"),
    ]:
        config = QuickPrefillConfig(**options)
        check_layers(config, four)
        with pytest.raises(ConfigError, match=f"{name} must be below the model's 3 decoder layers, got 3"):
            check_layers(config, three)


@pytest.mark.parametrize(("policy", "ratio"), [(VidCom2(0.25), 0.25), (PruneVid.paper(), 0.4)], ids=str)
def test_a_ratio_of_the_policys_own_wins_over_keep(policy, ratio):
    config = QuickPrefillConfig.from_dict({**vars(QuickPrefillConfig(keep=0.5)), "policy": policy})
    assert (config.keep, config.own_ratio) == (0.5, ratio)
    left = (
        compressed_count(config, Grid(10, 10, 10))
        if policy == VidCom2(0.25)
        else selected_count(config, 1000, 2000, 1000)
    )
    assert left == 1000 * ratio
