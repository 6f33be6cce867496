"""What only a GPU can show. Without one these are skipped, or fail where QUICKVIDEO_REQUIRE_GPU=1."""

import copy
import importlib.util

import pytest
import torch

import quickprefill
from quickprefill.policies import KeyNorm, PruneVid
from tests.tiny import Clip, make_inputs, prompt, rope, tiny_model

pytestmark = pytest.mark.gpu

PROMPTS = [
    prompt(5, Clip((7, 4, 6)), 6),
    prompt(2, Clip((5, 8, 4)), 3, Clip((1, 4, 4), image=True), 2, Clip((2, 4, 4)), 4),
    prompt(9),
]


def to_gpu(inputs, *, pixels_stay=False):
    return {name: value if pixels_stay and "pixel" in name else value.cuda() for name, value in inputs.items()}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs, logits_to_keep=1).logits.float()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_float32_equals_stock(attention):
    model = tiny_model(attention).cuda()
    inputs = to_gpu(make_inputs(*PROMPTS))
    stock = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = logits(model, inputs)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False), stock)
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_long_prefix_makes_no_scores_in_memory(dtype):
    """Without a flash kernel for the dtype or card, block and prefix are merged: a map of all scores is never made."""
    from quickprefill.attention.group import lower_right_attention

    query = torch.randn(1, 4, 512, 64, device="cuda", dtype=dtype)
    key, value = torch.randn(2, 1, 2, 32768, 64, device="cuda", dtype=dtype)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours = lower_right_attention(query, key, value, 0.125)
    assert torch.cuda.max_memory_allocated() - before < 32 << 20
    mask = torch.ones(512, 32768, dtype=torch.bool, device="cuda").tril(32768 - 512)
    wide = (part.double() for part in (query, *(part.repeat_interleave(2, dim=1) for part in (key, value))))
    exact = torch.nn.functional.scaled_dot_product_attention(*wide, attn_mask=mask, scale=0.125)
    error = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(ours.double(), exact, atol=error, rtol=error)


def test_flash_attention_stays_within_the_spread_of_two_stock_backends():
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    options = {"dtype": torch.bfloat16, "hidden_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2}
    options |= rope(4, 6, 6)
    inputs = to_gpu(make_inputs(*PROMPTS))
    flash = tiny_model("flash_attention_2", **options).cuda()
    stock = logits(flash, inputs)
    spread = (logits(tiny_model("sdpa", **options).cuda(), inputs) - stock).abs().max()
    with quickprefill.patched(flash, keep=1.0, group_frames=4):
        assert (logits(flash, inputs) - stock).abs().max() <= 2 * spread
    sdpa = tiny_model("sdpa", **options).cuda()
    with quickprefill.patched(sdpa, keep=0.5, group_frames=4), quickprefill.patched(flash, keep=0.5, group_frames=4):
        assert (logits(flash, inputs) - logits(sdpa, inputs)).abs().max() <= 2 * spread


@pytest.mark.parametrize("group_frames", [2, 4, 100])
def test_pixels_may_stay_on_the_cpu(group_frames):
    """They cross group by group, the next one's while the present one is used."""
    model = tiny_model().cuda()
    inputs = make_inputs(PROMPTS[0])
    with quickprefill.patched(model, keep=0.5, group_frames=group_frames):
        expected = model.generate(**to_gpu(inputs), max_new_tokens=4, do_sample=False)
        assert torch.equal(
            model.generate(**to_gpu(inputs, pixels_stay=True), max_new_tokens=4, do_sample=False), expected
        )


class Watched(KeyNorm):
    """While the second and third group of four pass, an operation that waits for the GPU is an error."""

    def score(self, kv):
        if kv.layer == 0 and kv.group in (1, 3):
            torch.cuda.set_sync_debug_mode("error" if kv.group == 1 else "default")
        return super().score(kv)


@pytest.mark.parametrize("pixels_stay", [False, True])
def test_no_group_waits_for_the_gpu(pixels_stay):
    model, inputs = tiny_model().cuda(), make_inputs(prompt(3, Clip((8, 4, 8)), 5))
    inputs = to_gpu(inputs, pixels_stay=pixels_stay)
    with quickprefill.patched(model, keep=0.5, group_frames=4, policy=Watched()):
        try:
            logits(model, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert quickprefill.report(model).groups == 4


def test_a_model_that_has_run_can_be_copied():
    model, inputs = tiny_model().cuda(), to_gpu(make_inputs(PROMPTS[0]))
    with quickprefill.patched(model, keep=0.5, group_frames=4):
        expected = logits(model, inputs)
        clone = copy.deepcopy(model)
        assert quickprefill.report(clone).seconds == pytest.approx(quickprefill.report(model).seconds)
    torch.testing.assert_close(logits(clone, inputs), expected, atol=1e-4, rtol=1e-4)


def test_pruning_is_the_same_on_cpu_and_gpu():
    inputs = make_inputs(*PROMPTS)
    model = tiny_model()
    for name in sorted(quickprefill.POLICIES):
        policy = PruneVid(layer=1) if name == "prunevid" else name
        with quickprefill.patched(model, keep=0.5, group_frames=4, policy=policy):
            expected = logits(model.cpu(), inputs)
            torch.testing.assert_close(logits(model.cuda(), to_gpu(inputs)).cpu(), expected, atol=1e-3, rtol=1e-3)
