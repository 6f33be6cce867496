"""What Cubes can learn: at first it does what the rule does, and gradients say where cubes should have begun."""

import copy
import math

import pytest
import torch

from quickprefill.errors import ConfigError
from quickprefill.policies import Cubes
from quickprefill.policies.shared.cube_gate import straight_through
from quickprefill.policies.shared.cube_resampler import Resampler
from quickprefill.policies.shared.learned_cubes import CubesWeights
from quickprefill.prompt.spans import Grid
from quickprefill.prompt.tokens import VideoTokens

LEARNED = {"gate": "learned", "resampler": "attention"}


def video(slices=12, rows=2, columns=3, *, width=16, levels=0, num_kept=None, dtype=torch.float32, seed=0):
    """A video whose rows have `levels` more features behind the first `width`."""
    grid = Grid(slices, rows, columns, slice_frames=2)
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(grid.num_tokens, width * (1 + levels), generator=generator).to(dtype)
    places = torch.arange(grid.num_tokens)
    positions = torch.stack([places // grid.slice_tokens * 2 + 100, places + 200, places + 300])
    return VideoTokens(embeds, positions, places, grid, num_kept=num_kept, width=width if levels else None)


def compressed(policy, tokens, weights, training=False):
    return policy.compress(VideoTokens(**{**vars(tokens), "weights": weights, "training": training}))


def stirred(weights, seed=1):
    """The same weights, moved away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in weights.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return weights


@pytest.mark.parametrize("levels", [0, 2])
@pytest.mark.parametrize("options", [LEARNED, {"gate": "learned"}, {"resampler": "attention"}])
@pytest.mark.parametrize("tokens_per_cube", [None, 2])
def test_untrained_weights_do_what_the_rule_does(options, tokens_per_cube, levels):
    tokens = video(levels=levels, num_kept=10)
    policy = Cubes(tokens_per_cube=tokens_per_cube, **options)
    rule = Cubes(tokens_per_cube=tokens_per_cube).compress(tokens)
    learned = compressed(policy, tokens, policy.new_weights(16).eval())
    assert torch.equal(learned.source, rule.source)
    assert torch.equal(learned.embeds, rule.embeds)
    assert torch.equal(learned.positions, rule.positions)
    assert learned.thumbnail is None


def test_a_gate_in_bf16_decides_as_in_float32():
    policy, weights = Cubes(gate="learned"), stirred(Cubes(gate="learned").new_weights(16).eval()).bfloat16()
    tokens = video(40, num_kept=60, dtype=torch.bfloat16)
    precise = video(40, num_kept=60)
    precise = VideoTokens(**{**vars(precise), "embeds": tokens.embeds.float()})
    cut = compressed(policy, tokens, weights).source
    assert torch.equal(cut, compressed(policy, precise, copy.deepcopy(weights).float()).source)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cut, compressed(policy, tokens, weights).source)
    assert not torch.equal(cut, Cubes().compress(tokens).source), "the gate was moved"


@pytest.mark.parametrize("tokens_per_cube", [None, 2])
def test_the_resampler_equals_attention_cube_by_cube(tokens_per_cube):
    policy = Cubes(gate="fixed", resampler="attention", tokens_per_cube=tokens_per_cube)
    tokens, weights = video(11, num_kept=None), stirred(policy.new_weights(16).eval()).double()
    tokens = VideoTokens(**{**vars(tokens), "embeds": tokens.embeds.double(), "num_kept": 8})
    resampler: Resampler = weights.resampler
    result = compressed(policy, tokens, weights)
    mean = Cubes(gate="fixed", tokens_per_cube=tokens_per_cube).compress(tokens)
    size = 2 if tokens_per_cube else 6
    starts = sorted({int(place) // 6 for place in result.source})
    for cube, (start, stop) in enumerate(zip(starts, [*starts[1:], 11], strict=True)):
        own = slice(cube * size, min((cube + 1) * size, 8))
        places = result.source[own]
        keys = resampler.norm_key(tokens.embeds[start * 6 : stop * 6])
        codes = torch.stack([code(2 * (at // 6), at % 6 // 3, at % 3) for at in range(start * 6, stop * 6)])
        asks = torch.stack([code(2 * start, int(at) % 6 // 3, int(at) % 3) for at in places])
        queries = resampler.to_query(resampler.norm_query(mean.embeds[own] + resampler.query) + asks)
        weights_of = (queries @ resampler.to_key(keys + codes).T / math.sqrt(16)).softmax(-1)
        expected = mean.embeds[own] + resampler.out(weights_of @ resampler.to_value(keys))
        torch.testing.assert_close(result.embeds[own], expected, atol=1e-5, rtol=1e-5)


def code(time, row, column, width=16):
    parts = []
    for number, size in ((time, width // 4), (row, width * 3 // 8), (column, width * 3 // 8)):
        angles = [number * 10000.0 ** (-at / (size // 2)) for at in range(size // 2)]
        parts += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return torch.tensor(parts, dtype=torch.double)


def test_the_gate_learns_by_its_choice():
    policy = Cubes(gate="learned", logit_penalty=0.0)
    weights = stirred(policy.new_weights(16).train())
    weights.noise = 0.0
    tokens = video(12, num_kept=24)
    result = compressed(policy, tokens, weights, training=True)
    assert torch.equal(result.embeds, compressed(policy, tokens, weights).embeds), "only the gradient is new"
    assert compressed(policy, tokens, weights).thumbnail is None
    assert compressed(policy, tokens, weights.eval(), training=True).thumbnail is None
    assert result.thumbnail.shape == (6, 16)
    starts = sorted({int(place) // 6 for place in result.source})
    slices = tokens.embeds.view(12, 6, 16)
    torch.testing.assert_close(result.thumbnail, slices[starts].mean(0))
    result.thumbnail.sum().backward()
    assert weights.gate.look.weight.grad.abs().sum() > 0
    assert weights.gate.log_prior.grad.abs() > 0


def test_straight_through_gives_every_slice_the_gradient_of_its_probability():
    logits = torch.tensor([0.3, 2.0, -1.0, 0.9], dtype=torch.double, requires_grad=True)
    chosen = straight_through(logits, 3, 0.0, 0.5, 0.0)
    assert chosen.starts == [0, 2, 4]
    assert torch.equal(chosen.straight, torch.zeros(5, dtype=torch.double))
    weight = torch.tensor([7.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.double)
    (chosen.straight * weight).sum().backward()
    probability = ((logits.detach() - (0.3 + 0.9) / 2) / 0.5).sigmoid()
    torch.testing.assert_close(logits.grad, weight[1:] * probability * (1 - probability) / 0.5)


def test_the_penalty_enters_in_the_backward_pass():
    def gradient(penalty):
        logits = torch.tensor([0.3, 2.0, -1.0, 0.9], dtype=torch.double, requires_grad=True)
        straight_through(logits, 3, 0.0, 0.5, penalty).straight.sum().backward()
        return logits.grad

    logits = torch.tensor([0.3, 2.0, -1.0, 0.9], dtype=torch.double, requires_grad=True)
    centred = logits - 0.6
    (0.25 * torch.stack([-centred / 2, centred / 2]).norm(dim=0).mean()).backward()
    torch.testing.assert_close(gradient(0.25) - gradient(0.0), logits.grad)


def test_noise_is_logistic_and_only_in_training():
    torch.manual_seed(0)
    logits = torch.zeros(20000, dtype=torch.double)
    first = torch.tensor([straight_through(logits[:2], 2, 1.0, 0.5, 0.0).starts[1] for _ in range(2000)])
    assert 0.45 < (first == 1).double().mean() < 0.55
    far = torch.tensor([0.0, 2.0], dtype=torch.double)
    won = torch.tensor([straight_through(far, 2, 1.0, 0.5, 0.0).starts[1] for _ in range(4000)])
    # P(logistic - logistic > 2), the difference of two logistic variables
    expected = 1 - (math.exp(2) * (2 - 1) + 1) / (math.exp(2) - 1) ** 2
    assert abs((won == 2).double().mean() - expected) < 0.03
    policy = Cubes(gate="learned")
    weights = policy.new_weights(16).eval()
    weights.noise = 5.0

    def cuts(training):
        tokens = video(30, num_kept=60)
        return len({tuple(compressed(policy, tokens, weights, training).source.tolist()) for _ in range(5)})

    assert cuts(training=True) == 1
    weights.train()
    assert cuts(training=False) == 1, "a rollout draws none"
    assert cuts(training=True) > 1
    weights.requires_grad_(False)
    assert cuts(training=True) == 1, "nor what does not learn"


def test_a_policy_without_what_it_learns_is_refused():
    with pytest.raises(ConfigError, match="which quickprefill.apply\\(model\\) makes; got tokens without them"):
        Cubes(gate="learned").compress(video(num_kept=12))
    with pytest.raises(ConfigError, match="widths that 16 divides, but the model is 24 wide"):
        CubesWeights(24, gate=False, resampler=True)
    for options in ({"temperature": 0}, {"logit_penalty": -1.0}, {"temperature": math.inf}):
        with pytest.raises(ConfigError, match="temperature must be > 0 and logit_penalty >= 0"):
            Cubes(**options)


def literal_cuts(weights, tokens, cubes, alpha=0.8):
    """The original's rule for inference, number by number: two logits a frame, their softmax, the most probable."""
    gate, size = weights.gate, tokens.grid.slice_tokens
    rows = tokens.embeds.double().tolist()
    matrix = {name: parameter.double().tolist() for name, parameter in gate.named_parameters()}

    def line(name, vector):
        weight = matrix[f"{name}.weight"]
        pairs = zip(weight, matrix.get(f"{name}.bias", [0.0] * len(weight)), strict=True)
        return [sum(w * x for w, x in zip(row, vector, strict=True)) + bias for row, bias in pairs]

    def smooth(x):
        return x * (1 + math.erf(x / math.sqrt(2))) / 2

    momentum, probability = None, {}
    for at in range(1, tokens.grid.slices):
        change = [
            [a - b for a, b in zip(rows[at * size + place], rows[(at - 1) * size + place], strict=True)]
            for place in range(size)
        ]
        if momentum is not None:
            change = [
                [alpha * a + (1 - alpha) * b for a, b in zip(*pair, strict=True)]
                for pair in zip(change, momentum, strict=True)
            ]
        momentum = change
        glances = [[smooth(x) for x in line("look", place)] for place in momentum]
        seen = [sum(column) / size for column in zip(*glances, strict=True)]
        mean = sum(seen) / len(seen)
        spread = math.sqrt(sum((x - mean) ** 2 for x in seen) / len(seen) + 1e-5)
        normed = [
            (x - mean) / spread * w + b
            for x, w, b in zip(seen, matrix["norm.weight"], matrix["norm.bias"], strict=True)
        ]
        (learned,) = line("score", [smooth(x) for x in line("hidden", normed)])
        moved = sum(math.sqrt(sum(x * x for x in place)) for place in momentum) / size
        logit = 2 * math.exp(matrix["log_prior"][0]) * math.log(moved + 1e-6) + learned
        first, second = math.exp(-logit / 2 / 0.5), math.exp(logit / 2 / 0.5)
        probability[at] = second / (first + second)
    return sorted([0, *sorted(probability, key=lambda at: (-probability[at], at))[: cubes - 1]])


@pytest.mark.parametrize("cubes", [1, 2, 4, 8])
def test_cuts_are_those_of_the_originals_rule(cubes):
    policy = Cubes(gate="learned")
    weights = stirred(policy.new_weights(16).eval(), seed=cubes)
    tokens = video(9, 1, 2, num_kept=2 * cubes, seed=cubes)
    tokens = VideoTokens(**{**vars(tokens), "embeds": tokens.embeds * 0.05})  # so that no probability rounds to 1
    expected = literal_cuts(weights, tokens, cubes)
    assert sorted({int(place) // 2 for place in compressed(policy, tokens, weights).source}) == expected
    if cubes == 4:
        assert expected != sorted({int(place) // 2 for place in Cubes().compress(tokens).source}), "the gate was moved"


def test_ties_go_to_the_earlier():
    assert straight_through(torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0], dtype=torch.double), 3).starts == [0, 2, 3]
