"""PrunedLayer against lists of token numbers: key j of a layer holds the number j everywhere."""

import pytest
import torch

import quickprefill
from quickprefill import CacheError
from quickprefill.cache.layer import PrunedLayer
from quickprefill.cache.padding import merge_rows, visible_slots
from tests.live_memory import PeakLiveBytes
from tests.tiny import Clip, make_inputs, prompt, tiny_model


def states(first, last, batch=1, heads=2, dim=3):
    """Keys and values of tokens [first, last)."""
    numbers = torch.arange(first, last, dtype=torch.float32).view(1, 1, -1, 1)
    keys = numbers.expand(batch, heads, -1, dim).clone()
    return keys, -keys


def numbers(layer, row=0):
    assert torch.equal(layer.values, -layer.keys)
    assert (layer.keys == layer.keys[:, :1, :, :1]).all()
    return layer.keys[row, 0, :, 0].tolist()


def filled(*lengths, capacity=0):
    layer, start = PrunedLayer(capacity), 0
    for length in lengths:
        layer.update(*states(start, start + length))
        start += length
    return layer


def test_update_appends_and_returns_everything_stored():
    layer = filled(3)
    keys, values = layer.update(*states(3, 5))
    assert keys[0, 0, :, 0].tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(values, -keys)
    assert (layer.get_seq_length(), layer.stored_length) == (5, 5)
    assert layer.stored_bytes == 2 * 2 * 5 * 3 * 4


def test_prune_keeps_the_logical_length():
    layer = filled(2, 4)
    layer.prune(4, torch.tensor([1, 3]))
    assert numbers(layer) == [0, 1, 3, 5]
    assert (layer.get_seq_length(), layer.stored_length) == (6, 4)
    assert layer.get_mask_sizes(3) == (7, 2)
    layer.update(*states(6, 8))
    assert numbers(layer) == [0, 1, 3, 5, 6, 7]
    assert layer.get_seq_length() == 8


def test_planned_capacity_is_never_copied():
    layer = filled(4, capacity=10)
    address = layer.keys.data_ptr()
    for start in (4, 6, 8):
        layer.update(*states(start, start + 2))
    assert layer.keys.data_ptr() == address
    layer.update(*states(10, 11))
    assert layer.keys.data_ptr() != address
    assert numbers(layer) == list(range(11))


def test_past_the_capacity_storage_grows_by_a_share():
    layer, addresses = filled(4, capacity=4), set()
    for token in range(4, 4000):
        layer.update(*states(token, token + 1))
        addresses.add(layer.keys.data_ptr())
        assert layer.reserved_bytes <= 1.25 * layer.stored_bytes + 65 * 2 * 2 * 3 * 4
    assert numbers(layer) == list(range(4000))
    assert len(addresses) <= 25


def test_trim_leaves_what_is_stored_and_room():
    layer = filled(2, 40)
    layer.prune(40, torch.tensor([1, 3]))
    layer.trim(room=6)
    assert layer.reserved_bytes == 10 * 2 * 2 * 3 * 4
    assert numbers(layer) == [0, 1, 3, 5]
    address = layer.keys.data_ptr()
    layer.trim(room=5)  # near enough
    for token in range(42, 48):
        layer.update(*states(token, token + 1))
    assert layer.keys.data_ptr() == address
    layer.trim(room=20)
    assert layer.reserved_bytes == 30 * 2 * 2 * 3 * 4


@pytest.mark.spine
def test_crop_of_generated_tokens():
    layer = filled(2, 4)
    layer.prune(4, torch.tensor([0]))
    layer.update(*states(6, 9))
    layer.crop(-2)
    assert numbers(layer) == [0, 1, 2, 6]
    assert layer.get_seq_length() == 7
    layer.crop(0)
    assert layer.get_seq_length() == 7


@pytest.mark.spine
def test_crop_into_pruned_tokens_fails():
    layer = filled(2, 4)
    layer.prune(4, torch.tensor([0]))
    layer.update(*states(6, 7))
    with pytest.raises(CacheError, match="cannot crop 2 tokens: only the last 1"):
        layer.crop(-2)
    with pytest.raises(CacheError, match="negative integer|cannot crop"):  # up to 5.14 a length that is left
        layer.crop(3)
    with pytest.raises(CacheError, match="cannot prune the last 9 of 4"):
        layer.prune(9, torch.tensor([0]))


@pytest.mark.spine
def test_batch_operations_of_beam_search():
    layer = PrunedLayer()
    keys, values = states(0, 4, batch=2)
    keys[1] += 10
    layer.update(keys, -keys)
    layer.batch_repeat_interleave(2)
    assert [numbers(layer, row)[0] for row in range(4)] == [0, 0, 10, 10]
    layer.reorder_cache(torch.tensor([3, 0, 0, 2]))
    assert [numbers(layer, row)[0] for row in range(4)] == [10, 0, 0, 10]
    layer.batch_select_indices(torch.tensor([1, 3]))
    assert [numbers(layer, row)[0] for row in range(2)] == [0, 10]
    layer.update(*states(4, 5, batch=2))
    assert numbers(layer, 1) == [10, 11, 12, 13, 4]


def test_beams_keep_the_room_behind_them():
    layer = PrunedLayer(capacity=8)
    layer.update(*states(0, 4, batch=2))
    for token in range(4, 8):
        layer.reorder_cache(torch.tensor([1, 0]))
        address = layer.keys.data_ptr()
        layer.update(*states(token, token + 1, batch=2))
        assert layer.keys.data_ptr() == address
    assert numbers(layer) == list(range(8))


def test_reset_forgets_everything():
    layer = filled(2, 4)
    layer.prune(4, torch.tensor([0]))
    layer.reset()
    assert layer.get_seq_length() == layer.stored_length == layer.stored_bytes == 0
    layer.update(*states(0, 2))
    assert numbers(layer) == [0, 1]


def test_a_continued_layer_leaves_the_old_one_alone():
    layer = filled(3, capacity=8)
    continued = PrunedLayer.adopt(layer, capacity=20)
    continued.update(*states(3, 6))
    continued.prune(3, torch.tensor([2]))
    assert numbers(continued) == [0, 1, 2, 5]
    assert numbers(layer) == [0, 1, 2]
    assert layer.get_seq_length() == 3


def merged_batch(room=0):
    """Two prompts in 8 columns: one of 8 tokens that stored 6, one of 5 tokens (3 of padding) that stored 4."""
    long, short = filled(2, 6), filled(5)
    long.prune(6, torch.tensor([0, 1, 2, 5]))
    short.prune(3, torch.tensor([0, 2]))
    return merge_rows([long, short], [0, 1, 0], logical_length=8, room=room)


def test_merge_rows_aligns_on_the_right():
    layer = merged_batch()
    assert numbers(layer, 0) == numbers(layer, 2) == [0, 1, 2, 3, 4, 7]
    assert numbers(layer, 1) == [0, 0, 0, 1, 2, 4]
    assert layer.prefill_mask.tolist() == [[True] * 6, [False, False, True, True, True, True], [True] * 6]
    assert (layer.get_seq_length(), layer.stored_length) == (8, 6)


def test_a_batch_is_never_held_twice():
    """Each layer of the rows is free again before the next one is laid side by side."""
    model = tiny_model(num_hidden_layers=6)
    inputs = make_inputs(prompt(3, Clip((16, 4, 8)), 5), prompt(4, Clip((16, 4, 8)), 6))
    with quickprefill.patched(model, keep=1.0, group_frames=2), torch.no_grad(), PeakLiveBytes() as peak:
        layers = model(**inputs, logits_to_keep=1).past_key_values.layers
    assert peak.bytes < 1.4 * sum(layer.reserved_bytes for layer in layers)


def test_a_merged_batch_has_room():
    assert merged_batch(room=5).reserved_bytes == 11 * 3 * 2 * 2 * 3 * 4


@pytest.mark.spine
def test_mask_of_a_merged_batch():
    layer = merged_batch()
    layer.update(*states(8, 10, batch=3))
    caller = torch.tensor(
        [[1] * 10, [0] * 3 + [1] * 7, [1] * 8 + [0, 1]]
    )  # 8 prefilled, 1 generated, 1 in this forward
    slots = [[1] * 8, [0, 0, 1, 1, 1, 1, 1, 1], [1] * 6 + [0, 1]]
    assert visible_slots(layer, caller).int().tolist() == slots
    assert visible_slots(layer, None).int().tolist() == [slots[0], slots[1], slots[0]]


def test_mask_follows_the_rows_and_the_crop():
    layer = merged_batch()
    layer.reorder_cache(torch.tensor([1, 0, 1]))
    assert layer.prefill_mask[:, 0].tolist() == [False, True, False]
    layer.crop(0)
    layer.update(*states(8, 9, batch=3))
    assert visible_slots(layer, torch.ones(3, 9, dtype=torch.long))[:, 0].tolist() == [False, True, False]


def test_mask_of_a_single_unpadded_prompt_is_none():
    layer = merge_rows([filled(4)], [0], logical_length=4)
    layer.update(*states(4, 5))
    assert visible_slots(layer, None) is None
    assert visible_slots(layer, torch.ones(1, 5, dtype=torch.long)).all()
