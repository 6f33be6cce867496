"""apply() and remove() beside what others put around forward(), in any order: each keeps what is its own."""

import copy

import pytest
import torch

import quickprefill
from tests.quickprefill.calls import forward, generate, stored
from tests.quickprefill.wrapping import KINDS
from tests.tiny import Clip, make_inputs, prompt, tiny_model

INPUTS = make_inputs(prompt(3, Clip((4, 4, 4)), 3))
TEXT, VIDEO = 8, 16
STEPS = {
    "apply": lambda model, wrapper: quickprefill.apply(model, keep=0.5),
    "again": lambda model, wrapper: quickprefill.apply(model, keep=0.25),
    "remove": lambda model, wrapper: quickprefill.remove(model),
    "wrap": lambda model, wrapper: wrapper.wrap(model),
    "unwrap": lambda model, wrapper: wrapper.unwrap(model),
}
KEEPS = {"apply": 0.5, "again": 0.25, "remove": 1.0}
ORDERS = [
    "wrap apply remove unwrap",
    "wrap apply unwrap remove",
    "wrap apply again remove",
    "apply wrap remove unwrap",
    "apply wrap unwrap remove",
    "apply wrap again remove unwrap",
    "apply wrap again unwrap remove",
    "apply wrap remove again unwrap remove",
    "apply again wrap remove apply",
]


@pytest.fixture
def model():
    return tiny_model("eager")  # the order matters here, and eager attention runs in any precision


@pytest.fixture(params=KINDS)
def wrapper(request):
    wrapper = KINDS[request.param]()
    yield wrapper
    wrapper.close()


@pytest.fixture
def class_patch():
    yield
    quickprefill.remove()
    assert "quickprefill" not in repr(tiny_model())


def stock_logits(wrapped, wrapper):
    """Logits of a model that was never patched, with or without the same kind of wrapper."""
    model = tiny_model("eager")
    if wrapped:
        wrapper.wrap(model)
    return forward(model, INPUTS).logits


def check(model, wrapper, keep, wrapped):
    """One call prunes to `keep`, or is the stock model's, and passes through the wrapper if there is one."""
    before = wrapper.calls
    output = forward(model, INPUTS)
    assert wrapper.calls == before + wrapped
    assert stored(output.past_key_values) == [TEXT + keep * VIDEO] * 3
    assert ("quickprefill" in repr(model)) == (keep < 1)
    if keep == 1:
        assert torch.equal(output.logits, stock_logits(wrapped, type(wrapper)()))


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_patch_and_wrapper(model, wrapper, order):
    keep, wrapped = 1.0, False
    for step in order.split():
        STEPS[step](model, wrapper)
        keep = KEEPS.get(step, keep)
        wrapped = {"wrap": True, "unwrap": False}.get(step, wrapped)
        check(model, wrapper, keep, wrapped)


def test_every_step_of_a_generation_passes_through_the_wrapper(model, wrapper):
    wrapper.wrap(model)
    quickprefill.apply(model, keep=0.25)
    output = generate(model, INPUTS, max_new_tokens=3)
    assert wrapper.calls == 3
    assert stored(output.past_key_values) == [TEXT + 4 + 2] * 3


def test_patched_inside_a_wrapper_leaves_it_in_place(model, wrapper):
    quickprefill.apply(model, keep=0.5)
    wrapper.wrap(model)
    with quickprefill.patched(model, keep=0.25):
        check(model, wrapper, 0.25, wrapped=True)
    check(model, wrapper, 0.5, wrapped=True)


def test_a_later_class_patch_reaches_wrapped_models(model, wrapper, class_patch):
    quickprefill.apply(keep=0.5)
    wrapper.wrap(model)
    check(model, wrapper, 0.5, wrapped=True)
    quickprefill.apply(keep=0.25)
    check(model, wrapper, 0.25, wrapped=True)
    assert quickprefill.report().stored_tokens == (4, 4, 4)
    quickprefill.remove()
    check(model, wrapper, 1.0, wrapped=True)


def test_a_class_patch_for_a_while_leaves_wrapped_models_stock(model, wrapper):
    with quickprefill.patched(keep=0.5):
        wrapper.wrap(model)
        check(model, wrapper, 0.5, wrapped=True)
        assert quickprefill.report(model).stored_tokens == (8, 8, 8)
    check(model, wrapper, 1.0, wrapped=True)


@pytest.mark.filterwarnings("ignore:You are calling .generate")  # the host's, up to 5.17, for weights on "meta"
def test_a_later_class_patch_reaches_offloaded_models(model, class_patch):
    from accelerate import cpu_offload

    expected = forward(model, INPUTS).logits
    quickprefill.apply(keep=0.5)
    offloaded = cpu_offload(copy.deepcopy(model), execution_device="cpu")
    assert stored(forward(offloaded, INPUTS).past_key_values) == [TEXT + 8] * 3
    quickprefill.apply(keep=0.25)
    assert stored(generate(offloaded, INPUTS, max_new_tokens=1).past_key_values) == [TEXT + 4] * 3
    assert quickprefill.report().stored_tokens == (4, 4, 4)
    quickprefill.remove()
    assert torch.equal(forward(offloaded, INPUTS).logits, expected)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft's way to ask the host
@pytest.mark.parametrize("first", ["peft", "apply"])
def test_adapters_around_a_patched_model(model, first):
    peft = pytest.importorskip("peft")

    def adapt():
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2))

    expected = forward(model, INPUTS).logits  # a fresh adapter changes nothing
    if first == "apply":
        quickprefill.apply(model, keep=0.5)
        adapted = adapt()
    else:
        adapted = adapt()
        quickprefill.apply(adapted, keep=0.5)
    assert stored(forward(adapted, INPUTS).past_key_values) == [TEXT + 8] * 3
    quickprefill.apply(adapted, keep=0.25)
    assert stored(generate(adapted, INPUTS, max_new_tokens=1).past_key_values) == [TEXT + 4] * 3
    quickprefill.remove(adapted)
    torch.testing.assert_close(forward(adapted, INPUTS).logits, expected)
    unloaded = adapted.unload()
    assert stored(forward(unloaded, INPUTS).past_key_values) == [TEXT + VIDEO] * 3


def test_a_method_that_somebody_kept_follows_the_patch(model):
    expected = forward(model, INPUTS).logits
    quickprefill.apply(model, keep=0.5)
    kept = model.forward
    quickprefill.apply(model, keep=0.25)
    with torch.no_grad():
        assert stored(kept(**INPUTS).past_key_values) == [TEXT + 4] * 3
        quickprefill.remove(model)
        assert torch.equal(kept(**INPUTS).logits, expected)
