"""What most tests of a patched model do: generate, ask for logits, count what a cache stores."""

import torch

from quickprefill.versions import CACHE as CACHE  # the keyword by which the installed host takes its cache


def generate(model, inputs, **options):
    """A greedy generate() of four tokens, with its logits and its cache."""
    options = {"do_sample": False, "max_new_tokens": 4, **options}
    return model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)


def forward(model, inputs, **options):
    """A forward() without gradients."""
    with torch.no_grad():
        return model(**inputs, **options)


def stored(cache):
    """How many tokens each layer of a cache stores."""
    return [layer.keys.shape[-2] for layer in cache.layers]


def assert_same_logits(ours, stock, atol=1e-4):
    """Two outputs of generate() agree in every token and every step's logits."""
    assert torch.equal(ours.sequences, stock.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(stock.logits), atol=atol, rtol=1e-4)
