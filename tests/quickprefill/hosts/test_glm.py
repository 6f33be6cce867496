"""GLM-4V: video under the image token, told from images by the tokens around it."""

from dataclasses import replace

import pytest
import torch

import quickprefill
from quickprefill import versions
from quickprefill.hosts.glm import GLM_4_1V
from tests.families import FAMILIES, build_inputs
from tests.processors import clip, glm
from tests.tiny import IMAGE, VIDEO, Clip, prompt

MIXED = [prompt(2, Clip((1, 4, 6), image=True), 3, Clip((5, 4, 4)), 1, Clip((1, 8, 4), image=True), 4)]


def first_logits(model, inputs, **config):
    with torch.no_grad(), quickprefill.patched(model, keep=1.0, group_frames=4, **config):
        return model(**inputs, logits_to_keep=1).logits


@pytest.fixture(scope="module")
def model():
    return FAMILIES["glm4v"].model()


@pytest.mark.spine
def test_an_image_beside_a_video_is_what_a_forward_over_embeddings_makes_of_them(model):
    """The stock model takes them for each other, and raises."""
    inputs = build_inputs("glm4v", *MIXED)
    with torch.no_grad():
        with pytest.raises(ValueError, match="do not match"):
            model(**inputs)
        core, ids = model.model, inputs["input_ids"]
        named = GLM_4_1V().named(core, ids[0])[None]
        types = (named == IMAGE).int() + 2 * (named == VIDEO).int()
        embeds = core.get_input_embeddings()(ids)
        for kind, features in (
            (1, core.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])),
            (2, core.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])),
        ):
            embeds[types == kind] = torch.cat(versions.pooled(features))
        given = {**inputs, "mm_token_type_ids": types}
        positions, _ = core.get_rope_index(**versions.known_arguments(core.get_rope_index, given))
        stock = model(inputs_embeds=embeds, position_ids=positions, logits_to_keep=1).logits
    torch.testing.assert_close(first_logits(model, inputs), stock, atol=1e-4, rtol=1e-4)


def test_what_stands_between_the_tokens_of_a_video_is_video(model, monkeypatch):
    inputs = build_inputs("glm4v", *MIXED)
    named = GLM_4_1V().named(model.model, inputs["input_ids"][0])
    monkeypatch.setitem(FAMILIES, "glm4v", replace(FAMILIES["glm4v"], video_id=VIDEO))
    assert torch.equal(named == VIDEO, build_inputs("glm4v", *MIXED)["input_ids"][0] == VIDEO)
    assert int((named == VIDEO).sum()) == 5 * 4


def test_a_fault_shows(model, monkeypatch):
    inputs = build_inputs("glm4v", prompt(3, Clip((4, 4, 8)), 4))
    with torch.no_grad():
        stock = model(**inputs, logits_to_keep=1).logits
    torch.testing.assert_close(first_logits(model, inputs), stock, atol=1e-4, rtol=1e-4)
    whole = inputs["input_ids"].shape[1]
    monkeypatch.setattr(GLM_4_1V, "position_ids", lambda *_: torch.arange(whole).expand(3, 1, -1))
    assert (first_logits(model, inputs) - stock).abs().max() > 1e-2, "another family's positions"
    monkeypatch.undo()
    monkeypatch.setattr(GLM_4_1V, "named", lambda self, core, ids: ids)
    with pytest.raises(quickprefill.InputError, match="features"):
        first_logits(model, inputs)


def test_a_token_passes_two_experts_and_the_shared_one():
    model = FAMILIES["glm4v_moe"].model()
    assert quickprefill.FAMILIES["glm4v_moe"].geometry(model.model).mlp == 3 * 32


# As chat_template.jinja of zai-org/GLM-4.1V-9B-Thinking lays a user's turn out, roles and thinking left away.
VIDEO_PART = "<|begin_of_video|><|video|><|end_of_video|>"


@pytest.mark.spine
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", sorted({"glm4v", "glm4v_moe", "glm46v"} & set(FAMILIES)))
def test_prompts_of_the_real_processor(family):
    model = FAMILIES[family].model()
    metadata = [{"fps": 1, "total_num_frames": 8, "frames_indices": list(range(8))}] * 2
    inputs = glm(family)(
        text=[f"\nuser{VIDEO_PART}and {VIDEO_PART}what is new?"],
        videos=[clip(8), clip(8, seed=1)],
        video_metadata=metadata,
        return_tensors="pt",
    )
    assert inputs["video_grid_thw"][:, 0].tolist() == [4, 4]
    stock = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    with quickprefill.patched(model, keep=1.0, group_frames=4):
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), stock)
        assert quickprefill.report(model).groups == 4
        assert quickprefill.estimate(model, inputs).groups == 4
