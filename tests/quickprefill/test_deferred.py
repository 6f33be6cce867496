"""What waits until it is needed: a host's module, a video's features, an attention function's name."""

import pytest
import torch

import quickprefill
from quickprefill import QuickPrefillConfig
from quickprefill.policies import VidCom2
from tests.quickprefill import fresh
from tests.tiny import Clip, make_inputs, prompt, tiny_model

PREPARE = "_prepare_multimodal_encoder_kwargs_for_generation"
MODELING = "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl"


def test_a_class_patch_imports_no_host():
    fresh.run(f"""
        import sys, quickprefill
        quickprefill.apply(keep=0.5)
        assert "{MODELING}" not in sys.modules, "the host was imported"
        from tests.tiny import Clip, make_inputs, prompt, tiny_model
        from tests.quickprefill.calls import forward, generate, stored
        model, inputs = tiny_model(), make_inputs(prompt(3, Clip((4, 4, 4)), 3))
        assert "keep=0.5" in repr(model)
        assert stored(forward(model, inputs).past_key_values) == [8 + 8] * 3
        assert stored(generate(model, inputs, max_new_tokens=1).past_key_values) == [8 + 8] * 3
        assert quickprefill.report().stored_tokens == (8, 8, 8)
        quickprefill.remove()
        for model in (model, tiny_model()):
            assert "quickprefill" not in repr(model)
            assert stored(forward(model, inputs).past_key_values) == [8 + 16] * 3
    """)


def test_a_class_patch_that_is_gone_before_the_host_comes_changes_nothing():
    fresh.run(f"""
        import sys, quickprefill
        quickprefill.remove()
        with quickprefill.patched(keep=0.5):
            quickprefill.apply(keep=0.25)
        quickprefill.remove()
        assert "{MODELING}" not in sys.modules, "the host was imported"
        from tests.tiny import Clip, make_inputs, prompt, tiny_model
        from tests.quickprefill.calls import forward, stored
        model = tiny_model()
        assert "quickprefill" not in repr(model)
        assert stored(forward(model, make_inputs(prompt(3, Clip((4, 4, 4)), 3))).past_key_values) == [8 + 16] * 3
    """)


def test_remove_takes_the_attention_functions_with_it():
    """Those of a model's patch, then those of a class's, in a process that had none before."""
    fresh.run("""
        import quickprefill
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
        from tests.tiny import Clip, make_inputs, prompt, tiny_model
        from tests.quickprefill.calls import generate, stored
        model, other, inputs = tiny_model(), tiny_model(), make_inputs(prompt(3, Clip((4, 4, 4)), 3))

        def ours():
            return [name for names in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS) for name in names
                    if "quickprefill" in name]

        for target in (model, None):
            quickprefill.apply(target, keep=0.5)
            quickprefill.apply(other, keep=0.25)
            cache = generate(model, inputs).past_key_values
            assert stored(generate(other, inputs, max_new_tokens=1).past_key_values) == [8 + 4] * 3
            quickprefill.remove(target)
            assert stored(generate(other, inputs, max_new_tokens=1).past_key_values) == [8 + 4] * 3, "still patched"
            quickprefill.remove(other)
            assert ours() == [], (target, ours())
            assert stored(generate(model, inputs, max_new_tokens=1).past_key_values) == [8 + 16] * 3
    """)


# Videos that generate() has not encoded yet.


@pytest.fixture
def deferred():
    """A patched model's videos, the features that a stock model makes of them, and a count of the tower's calls."""
    model = tiny_model()
    if not hasattr(model, PREPARE):
        pytest.skip("this transformers version encodes in forward()")
    inputs = make_inputs(prompt(3, Clip((4, 4, 4)), 2, Clip((2, 4, 8)), 3))
    with torch.no_grad():
        stock = getattr(model, PREPARE)(dict(inputs))["mm_encoder_outputs"]["video"].pooler_output
    calls = []
    model.model.visual.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), quickprefill.patched(model, keep=0.5):
        videos = getattr(model, PREPARE)(dict(inputs))["mm_encoder_outputs"]["video"].pooler_output
        assert len(videos) == len(stock) == 2
        yield videos, stock, calls


def test_probing_a_video_encodes_nothing(deferred):
    videos, _, calls = deferred
    for video in videos:
        for name in ("no_such_name", "keys", "_private", "__fspath__", "__dataframe__"):
            assert not hasattr(video, name)
            assert getattr(video, name, None) is None
        assert repr(video)
    assert calls == []


def test_a_video_is_a_tensor_of_known_shape(deferred):
    videos, stock, calls = deferred
    for video, features in zip(videos, stock, strict=True):
        assert isinstance(video, torch.Tensor)
        assert (video.shape, video.dtype, video.device) == (features.shape, features.dtype, features.device)
        assert (video.ndim, len(video), video.size(-1)) == (2, len(features), 48)
        assert video.numel() == features.numel()
    assert calls == []


def test_joined_videos_are_the_stock_models_features(deferred):
    videos, stock, calls = deferred
    torch.testing.assert_close(torch.cat(tuple(videos)), torch.cat(tuple(stock)))
    assert len(calls) > 0
    torch.testing.assert_close(videos[1].sum(dim=0) + 1, stock[1].sum(dim=0) + 1)


# Configs as keys.


def test_configs_with_several_policies_hash_by_value():
    given = QuickPrefillConfig(policy=["key_norm"])
    same = QuickPrefillConfig(policy=("key_norm",))
    assert given == same and hash(given) == hash(same)
    objects = QuickPrefillConfig(keep=0.25, policy=[VidCom2(retention_ratio=0.5), "key_norm"])
    assert hash(objects) == hash(QuickPrefillConfig(keep=0.25, policy=(VidCom2(retention_ratio=0.5), "key_norm")))
    assert len({given, same, objects}) == 2
    assert QuickPrefillConfig.from_json(objects.to_json()).policies == objects.policies
