"""QuickPrefillConfig.from_lvu: every field of QuickVideo's LVUConfig."""

import logging

import pytest

from quickprefill import ConfigError, QuickPrefillConfig
from quickprefill.budget.counts import num_kept
from quickprefill.policies import KeyNorm, QueryAttention, ValueNorm

LVU_FIELDS = {
    "model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct",
    "model_type": "qwen25_lvu",
    "top_k_predict_type": "vector_norms",
    "top_k": 64,
    "top_p": 0.5,
    "top_k_starting_layer": 2,
    "do_top_k_for_query": True,
    "adaptive_local_attention": False,
    "video_group_size": 15,
    "prefill_prune_starting_layer": 4,
    "fps": 1,
    "num_frames": 32,
    "use_tqdm": True,
    "extra_kwargs": {"max_pixels": 1},
    "enable": True,
    "cache_dir": None,
    "save_video_cache": False,
    "top_k_decay_type": "exponential",
    "top_k_decay_factor": 0.9,
    "query_based": False,
}


def test_every_field(caplog):
    with caplog.at_level(logging.INFO, logger="quickprefill"):
        config = QuickPrefillConfig.from_lvu(**LVU_FIELDS)
    assert config == QuickPrefillConfig(
        keep=0.5,
        keep_tokens=64,
        group_frames=16,
        policy=ValueNorm(),
        progress=True,
        first_layer=2,
        layer_decay=0.9,
        progressive_from=4,
        see_past=False,
        prune_text=True,
    )
    named = {record.getMessage().split()[0].removeprefix("LVUConfig.") for record in caplog.records}
    assert named == {
        *("model_name_or_path", "model_type", "fps", "num_frames", "extra_kwargs"),
        *("cache_dir", "save_video_cache", "query_based"),
    }


def test_defaults_prune_nothing_in_one_group():
    config = QuickPrefillConfig.from_lvu()
    assert (config.keep, config.keep_tokens, config.policy) == (1.0, None, KeyNorm())
    assert config.group_frames >= 1 << 20


@pytest.mark.parametrize(
    ("lvu", "num_tokens", "expected"),
    [
        ({"top_k": 64}, 1000, 64),
        ({"top_k": 64}, 50, 50),
        ({"top_p": 0.5}, 1000, 500),
        ({"top_k": 720, "top_p": 0.5}, 1440, 720),
        ({"top_k": 64, "enable": False}, 1000, 1000),
    ],
)
def test_budgets(lvu, num_tokens, expected):
    assert num_kept(QuickPrefillConfig.from_lvu(**lvu), num_tokens) == expected


def test_linear_decay_of_the_original():
    config = QuickPrefillConfig.from_lvu(top_k=100, top_k_decay_type="linear")
    counts = [num_kept(config, 1000, layer, 28) for layer in range(28)]
    assert counts == [100 - int(100 * layer / 28) for layer in range(28)]


def test_exponential_decay_of_the_original_but_for_zero():
    config = QuickPrefillConfig.from_lvu(top_k=100, top_k_decay_type="exponential", top_k_decay_factor=0.8)
    counts = [num_kept(config, 1000, layer, 28) for layer in range(28)]
    assert counts == [max(int(100 * 0.8**layer), 1) for layer in range(28)]
    assert int(100 * 0.8**27) == 0, "where the original turned pruning off"


def test_names_of_quickvideos_readme():
    assert QuickPrefillConfig.from_lvu(top_k_predict_type="attention_scores").policy == QueryAttention()
    assert QuickPrefillConfig.from_lvu(top_k_predict_type="value_norms").policy == ValueNorm()


@pytest.mark.parametrize(
    ("lvu", "words"),
    [
        ({"top_q": 1}, r"no field \['top_q'\]"),
        ({"top_k_predict_type": "salient_tokens"}, "needs? an attention map that it never had"),
        ({"top_k_decay_type": "exponential"}, "top_k_decay_factor"),
        ({"top_k_decay_type": "cosine", "top_k_decay_factor": 0.5}, "top_k_decay_type must be"),
        ({"top_p": 0}, "0 < keep <= 1"),
    ],
)
def test_what_never_worked_is_refused(lvu, words):
    with pytest.raises(ConfigError, match=words):
        QuickPrefillConfig.from_lvu(**lvu)
