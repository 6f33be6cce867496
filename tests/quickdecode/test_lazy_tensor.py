"""What torch does to tensors by other ways than their functions: a LazyTensor is a tensor there too, or refuses."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import quickdecode
from quickdecode.lazy.frames import lazy_frames
from quickdecode.lazy.tensor import LazyTensor

SIZE = (56, 84)
Make = Callable[[], LazyTensor]


@pytest.fixture
def make(clip: Path) -> Make:
    return lambda: lazy_frames(quickdecode.stream_video(clip, size=SIZE, workers=1))


@pytest.fixture(scope="module")
def whole(clip: Path) -> torch.Tensor:
    return quickdecode.read_video(clip, size=SIZE).frames


@pytest.fixture(autouse=True, scope="module")
def no_video_is_left() -> Iterator[None]:
    """Errors and the compiler hold tensors, and one that decodes ahead keeps those of later tests from doing so."""
    yield
    torch._dynamo.reset()
    gc.collect()


def is_lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, LazyTensor) and tensor.known() is None


FORMATS: dict[str, Callable[..., torch.Tensor]] = {
    "to": lambda t, f: t.to(memory_format=f),
    "to with a dtype": lambda t, f: t.to("cpu", torch.float32, memory_format=f),
    "to another tensor": lambda t, f: t.to(torch.ones(1), memory_format=f),
    "contiguous": lambda t, f: t.contiguous(memory_format=f),
    "clone": lambda t, f: t.clone(memory_format=f),
    "float": lambda t, f: t.float(memory_format=f),
    "half": lambda t, f: t.half(memory_format=f),
    "cpu": lambda t, f: t.cpu(memory_format=f),
    "type": lambda t, f: t.type(torch.float64, memory_format=f),
    "empty_like": lambda t, f: torch.zeros_like(t, memory_format=f) * 0 + t,
}


@pytest.mark.parametrize("name", FORMATS)
def test_memory_format_is_kept(make: Make, whole: torch.Tensor, name: str) -> None:
    given, expected = (FORMATS[name](tensor, torch.channels_last) for tensor in (make(), whole))
    assert (given.stride(), given.dtype) == (expected.stride(), expected.dtype)
    assert torch.equal(given, expected)
    if name != "empty_like":
        assert is_lazy(FORMATS[name](make(), torch.contiguous_format))


IN_PLACE: dict[str, Callable[[torch.Tensor], Any]] = {
    "add_": lambda t: t.add_(1),
    "clamp_": lambda t: t.clamp_(10, 20),
    "copy_": lambda t: t.copy_(torch.ones(1)),
    "zero_": lambda t: t.zero_(),
    "masked_fill_": lambda t: t.masked_fill_(t > 100, 3),
    "+=": lambda t: t.__iadd__(1),
    "out=": lambda t: torch.add(t, 1, out=t),
    "transpose_": lambda t: t.transpose_(0, 1),
    "unsqueeze_": lambda t: t.unsqueeze_(0),
    "functional": lambda t: torch.nn.functional.relu_(t),
}


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operations_return_what_they_were_given(
    make: Make, whole: torch.Tensor, name: str, made: bool
) -> None:
    given, expected = make(), whole.clone()
    if made:
        given.sum()
    answer = IN_PLACE[name](given)
    IN_PLACE[name](expected)
    assert answer is given
    assert given.shape == expected.shape
    assert torch.equal(given, expected)


def test_augmented_assignment_keeps_the_tensor(make: Make, whole: torch.Tensor) -> None:
    given = other = make()
    given //= 2
    given[3] = 7
    assert given is other
    assert torch.equal(given[:3], whole[:3] // 2) and given[3].eq(7).all()


@pytest.mark.parametrize("made", [False, True])
def test_as_a_parameter(make: Make, whole: torch.Tensor, made: bool) -> None:
    lazy = make().float()
    if made:
        lazy.sum()
    module, plain = torch.nn.Module(), torch.nn.Module()
    module.weight, plain.weight = torch.nn.Parameter(lazy), torch.nn.Parameter(whole.float())
    assert isinstance(module.weight, torch.nn.Parameter) and [name for name, _ in module.named_parameters()] == [
        "weight"
    ]
    for one in (module, plain):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.5)
        (one.weight * 3).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert module.weight.requires_grad and module.weight.is_leaf and module.weight.grad is None
    assert torch.equal(module.weight, plain.weight) and torch.equal(lazy, plain.weight)  # they share memory
    assert torch.equal(module.state_dict()["weight"], plain.weight)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.deepcopy(module).to(torch.float64)):
        assert type(other.weight) is torch.nn.Parameter and other.weight.requires_grad
        assert torch.equal(other.weight, plain.weight)
    with pytest.raises(RuntimeError, match="floating point"):
        torch.nn.Parameter(make())


def test_detached_is_the_same_memory(make: Make, whole: torch.Tensor) -> None:
    lazy = make()
    detached = lazy.detach()
    assert is_lazy(detached) and torch.equal(lazy.rows(2, 4), detached.rows(2, 4)) and is_lazy(lazy)
    detached[5].zero_()
    lazy.detach()[6].zero_()
    assert not lazy[5:7].any() and torch.equal(lazy[7:], whole[7:])
    assert torch.equal(lazy[9].detach(), whole[9])
    grown = make().float().requires_grad_()
    assert grown.requires_grad and not grown.detach().requires_grad


def test_memory_is_not_read_unasked(make: Make, whole: torch.Tensor) -> None:
    """It was, and whoever used what to_dlpack returned was ended by a segmentation fault."""
    for lazy in (make(), make()[2:9], make().float()):
        with pytest.raises(RuntimeError, match="no memory of its own|Cannot access data pointer"):
            torch.utils.dlpack.to_dlpack(lazy)
        assert torch.equal(torch.from_dlpack(lazy), lazy)
    assert torch.equal(torch.from_dlpack(torch.utils.dlpack.to_dlpack(make().data)), whole)
    assert np.array_equal(np.from_dlpack(make()), whole)


COMPILED: dict[str, Callable[[torch.Tensor], Any]] = {
    "cast": lambda t: (t.float() * 2).sum(),
    "arithmetic": lambda t: t * 2 + 1,
    "part": lambda t: t[1:3].float().mean(),
    "facts": lambda t: torch.zeros(t.shape[0]) + t.ndim,
    "in place": lambda t: t.add_(1) * 3,
    "joined": lambda t: torch.cat([t, t[:4]]) + 0,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_sees_a_tensor(make: Make, whole: torch.Tensor, name: str, backend: str) -> None:
    torch._dynamo.reset()
    function = torch.compile(COMPILED[name], backend=backend)
    made = make()
    made.sum()
    for lazy in (make(), made, make().clone()):
        assert torch.equal(function(lazy), COMPILED[name](whole.clone()))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda t: t.float() * 2, backend=backend, fullgraph=True)(make())
