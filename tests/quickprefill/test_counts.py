"""The budget arithmetic: how many tokens each stage is to leave."""

import math
from fractions import Fraction

import pytest
import torch

from quickprefill import QuickPrefillConfig
from quickprefill.budget.counts import compressed_count, num_kept, round_share, select, selected_count, stored_count
from quickprefill.policies import PruneVid, VidCom2
from quickprefill.prompt.spans import Grid


@pytest.mark.parametrize(
    ("options", "num_tokens", "expected"),
    [
        ({"keep": 0.5}, 10, 5),
        ({"keep": 0.5}, 7, 4),  # 3.5 rounds up
        ({"keep": 0.29}, 100, 29),  # int(0.29 * 100) would be 28
        ({"keep": 0.145}, 100, 15),  # 14.5 rounds up, though 0.145 * 100 is a little less in floats
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


def test_a_share_is_the_decimal_fraction_that_was_written():
    for percent in range(1, 101):
        for n in range(1, 400):
            expected = math.floor(Fraction(percent, 100) * n + Fraction(1, 2))
            assert round_share(percent / 100, n) == min(max(expected, 1), n)
    assert [round_share(1 / 3, n) for n in (3, 9, 300000)] == [1, 3, 100000]
    assert round_share(1 / 6, 3) == 1
    assert round_share(1, 7) == 7


def test_what_a_compressor_is_to_leave():
    def count(num_groups=1, **options):
        return compressed_count(QuickPrefillConfig(**options), Grid(10, 10, 10), num_groups)

    assert count(policy="vidcom2") == 500
    assert count(policy="vidcom2", keep=0.29) == 290
    assert count(policy="vidcom2", keep_tokens=64) == 64
    assert count(policy="vidcom2", keep_tokens=64, num_groups=5) == 320
    assert count(policy="vidcom2", keep=0.3, keep_tokens=64, num_groups=5) == 300
    assert count(policy=VidCom2(0.25)) == 250
    assert count(policy=(VidCom2(0.25), "key_norm"), keep=0.1, keep_tokens=7) == 250
    assert count(policy="prunevid", keep=0.3) == 300
    assert count(policy=PruneVid.paper()) == 500


@pytest.mark.parametrize("entered", [1, 7, 33, 100])
def test_groups_store_their_part_of_what_their_unit_is_due(entered):
    config = QuickPrefillConfig(keep=0.2, policy=(VidCom2(0.5), "key_norm"))
    expected = math.floor(Fraction(200 * entered, 500) + Fraction(1, 2))
    assert stored_count(config, entered, unit_tokens=1000, unit_entered=500) == min(max(expected, 1), entered)
    assert stored_count(config, entered, unit_tokens=1000, unit_entered=150) == entered, "fewer entered than may stay"


def test_a_group_to_which_the_compressor_gave_more_keeps_more():
    config = QuickPrefillConfig(keep=0.1, policy=(VidCom2(0.25), "key_norm"))
    shares = [stored_count(config, entered, 400, 100) for entered in (10, 20, 70)]
    assert shares == [4, 8, 28]
    assert sum(shares) == 40


@pytest.mark.parametrize("keep", [0.05, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("keep_tokens", [None, 40])
def test_without_a_compressor_a_group_is_its_own_unit(keep, keep_tokens):
    config = QuickPrefillConfig(keep=keep, keep_tokens=keep_tokens)
    for n in (1, 2, 39, 144, 1000):
        expected = min(max(math.floor(Fraction(str(keep)) * n + Fraction(1, 2)), 1), keep_tokens or n, n)
        assert stored_count(config, n, n, n) == num_kept(config, n) == expected


def test_layers_in_the_schedule():
    config = QuickPrefillConfig(keep=0.5, first_layer=2, layer_decay="linear")
    assert [stored_count(config, 100, 200, 100, layer, 10) for layer in (0, 1, 2, 9)] == [100, 100, 80, 10]
    config = QuickPrefillConfig(keep=0.5, layer_decay=0.5)
    assert [stored_count(config, 50, 100, 50, layer, 10) for layer in (0, 1, 5, 9)] == [50, 25, 1, 1]
    assert stored_count(QuickPrefillConfig(keep=0.5, keep_tokens=8, layer_decay=0.5), 50, 100, 50, 1, 10) == 4


def test_what_a_selector_is_to_keep():
    def count(entered, **options):
        return selected_count(QuickPrefillConfig(**options), entered, unit_tokens=1000, unit_entered=500)

    assert count(100, policy="prunevid", keep=0.3) == 60
    assert count(100, policy="prunevid", keep=0.3, keep_tokens=20) == 20
    assert count(100, policy="prunevid", keep=0.9) == 100
    assert count(1, policy="prunevid", keep=0.1) == 1
    assert count(100, policy=PruneVid.paper()) == 40
    assert count(2, policy=PruneVid.paper()) == 1
    assert count(4, policy=PruneVid.paper()) == 1, "int(), as in the paper"


def test_a_group_that_was_merged_away():
    config = QuickPrefillConfig(keep=0.5)
    assert stored_count(config, 0, 100, 50) == 0
    assert stored_count(config, 0, 100, 0) == 0


def test_select_is_sorted_and_breaks_ties_by_order():
    scores = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0, 1.0]])
    assert select(scores, 1).tolist() == [[1]]
    assert select(scores, 3).tolist() == [[1, 2, 3]]
    assert select(scores, 4).tolist() == [[1, 2, 3, 4]]
    assert select(scores, 6).tolist() == [[0, 1, 2, 3, 4, 5]]
