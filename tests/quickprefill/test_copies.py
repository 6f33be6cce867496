"""However a patched model is copied, the copy is patched, and on its own."""

import copy
import io
import pickle

import pytest
import torch

import quickprefill
from tests.quickprefill.calls import forward, generate, stored
from tests.quickprefill.wrapping import Prepared
from tests.tiny import Clip, make_inputs, prompt, tiny_model

INPUTS = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
TEXT, VIDEO = 8, 16


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
    "deepcopy": copy.deepcopy,
    "copy of a copy": lambda model: pickle.loads(pickle.dumps(copy.deepcopy(model))),
}


def kept(model):
    """Share of the video tokens that a forward() and a generate() keep, as long as they agree."""
    caches = forward(model, INPUTS).past_key_values, generate(model, INPUTS, max_new_tokens=1).past_key_values
    (length,) = {length for cache in caches for length in stored(cache)}
    return (length - TEXT) / VIDEO


def seen_by_another_process(model):
    return kept(model), "keep=0.25" in repr(model)


@pytest.fixture
def model():
    return tiny_model()


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_keeps_the_patch(model, copied):
    clone = copied(quickprefill.apply(model, keep=0.25, policy="value_norm", group_frames=4))
    assert kept(clone) == 0.25
    line = next(line for line in repr(clone).splitlines() if "quickprefill" in line)
    assert all(part in line for part in ("keep=0.25", "ValueNorm", "group_frames=4"))
    assert quickprefill.report(clone).groups == 2


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_is_independent(model, copied):
    clone = copied(quickprefill.apply(model, keep=0.25))
    quickprefill.apply(clone, keep=0.5)
    assert (kept(model), kept(clone)) == (0.25, 0.5)
    quickprefill.remove(model)
    assert (kept(model), kept(clone)) == (1.0, 0.5)
    assert "quickprefill" not in repr(model)
    quickprefill.remove(clone)
    assert kept(clone) == 1.0
    assert "quickprefill" not in repr(clone)


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_of_a_model_that_was_restored_is_stock(model, copied):
    clone = copied(quickprefill.remove(quickprefill.apply(model, keep=0.25)))
    assert kept(clone) == 1.0
    with quickprefill.patched(keep=0.5):
        assert kept(clone) == 0.5


def test_a_spawned_process_gets_the_patch(model):
    quickprefill.apply(model, keep=0.25)
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(seen_by_another_process, (model,)).get(timeout=120) == (0.25, True)


@pytest.mark.parametrize("first", ["apply", "prepare"])
def test_unwrapping_mixed_precision_keeps_the_patch(first):
    model, prepared = tiny_model("eager"), Prepared()
    try:
        for step in (first, "apply" if first == "prepare" else "prepare"):
            quickprefill.apply(model, keep=0.25) if step == "apply" else prepared.wrap(model)
        prepared.unwrap(model)
        assert kept(model) == 0.25
        quickprefill.remove(model)
        assert kept(model) == 1.0
    finally:
        prepared.close()
