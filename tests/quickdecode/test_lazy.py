"""A video that is still being decoded is a tensor to any code that is not told otherwise."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import pickle
import threading
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
    return lambda: lazy_frames(quickdecode.stream_video(clip, size=SIZE, workers=2))


@pytest.fixture(scope="module")
def whole(clip: Path) -> torch.Tensor:
    return quickdecode.read_video(clip, size=SIZE).frames


@pytest.fixture(autouse=True, scope="module")
def collecting_is_cheap() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("quickdecode")]


def is_lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, LazyTensor) and tensor.known() is None


def saved_and_loaded(tensor: torch.Tensor) -> Any:
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return torch.load(file)


TOUCHES: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": lambda t: t.numpy(),
    "np.asarray": lambda t: np.asarray(t),
    "tolist": lambda t: t[0, 0].tolist(),
    "item": lambda t: t[0, 0, 0, 0].item(),
    "stack": lambda t: torch.stack([t, t]) + 0,
    "stack along another dimension": lambda t: torch.stack([t, t], dim=1),
    "stack of items": lambda t: torch.stack([t[3], t[5]]),
    "stack with a tensor": lambda t: torch.stack([t, torch.ones(60, 3, *SIZE, dtype=torch.uint8)]),
    "cat with a tensor": lambda t: torch.cat([t, torch.ones(1, 3, *SIZE)]),
    "cat of other sizes": lambda t: torch.cat([t.flatten(1), torch.ones(1, 3 * 56 * 84, dtype=torch.uint8)]),
    "flatten": lambda t: t.flatten(),
    "flatten of frames": lambda t: t.flatten(1, 2),
    "unsqueeze": lambda t: t.unsqueeze(1),
    "cat along another dimension": lambda t: torch.cat([t, t], dim=1),
    "fancy index": lambda t: t[[0, 3]],
    "mask": lambda t: t[t > 200],
    "stepped slice": lambda t: t[::7],
    "empty slice": lambda t: t[5:5],
    "iteration": lambda t: list(t)[3],
    "arithmetic": lambda t: 1 + t * 2,
    "comparison": lambda t: t == t,
    "bool": lambda t: bool((t >= 0).all()),
    "contains": lambda t: 3 in t,
    "view": lambda t: t.view(-1),
    "permute": lambda t: t.permute(0, 2, 3, 1).contiguous(),
    "interpolate": lambda t: torch.nn.functional.interpolate(t.float(), (28, 28)),
    "clone": lambda t: t.clone() + 0,
    "deepcopy": lambda t: copy.deepcopy(t) + 0,
    "copy": lambda t: copy.copy(t) + 0,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "torch.save": saved_and_loaded,
    "DLPack": lambda t: torch.from_dlpack(t),
    "collate": lambda t: torch.utils.data.default_collate([t, t]),
    "item of an item": lambda t: t[2][1] + 0,
    "bfloat16 of float": lambda t: t.float().to(torch.bfloat16) + 0,
    "slice of a slice": lambda t: t[10:30][3:5] + 0,
    "repeat": lambda t: t.repeat(2, 1, 1, 1) + 0,
    "split": lambda t: torch.split(t, [10, 50])[1] + 0,
    "to another tensor": lambda t: t.to(torch.ones(1)) + 0,
    "requires_grad": lambda t: t.float().requires_grad_().sum().requires_grad,
    "torch.equal": lambda t: torch.equal(t, t.clone()),
    "format": lambda t: f"{t.sum()}",
}


@pytest.mark.parametrize("name", TOUCHES)
def test_host_code_sees_a_tensor(make: Make, whole: torch.Tensor, name: str) -> None:
    given, expected = TOUCHES[name](make()), TOUCHES[name](whole)
    if isinstance(expected, torch.Tensor):
        assert type(given) is torch.Tensor
        assert given.dtype == expected.dtype
        assert torch.equal(given, expected)
    else:
        assert np.array_equal(given, expected)


def test_facts_and_cheap_conversions_make_nothing(make: Make, whole: torch.Tensor) -> None:
    lazy = make()
    assert (lazy.shape, lazy.dtype, lazy.device, len(lazy)) == (whole.shape, whole.dtype, whole.device, len(whole))
    assert (lazy.ndim, lazy.size(1), lazy.numel(), lazy.nbytes) == (4, 3, whole.numel(), whole.nbytes)
    assert isinstance(lazy, torch.Tensor) and not lazy.is_floating_point() and not lazy.is_cuda
    assert repr(lazy) == "LazyTensor(shape=(60, 3, 56, 84), dtype=torch.uint8, device='cpu', not yet made)"
    assert {lazy: 1}[lazy] == 1
    derived: list[Any] = [lazy.float(), lazy.to("cpu", torch.float16), lazy.half().bfloat16(), lazy.pin_memory()]
    derived += [lazy.cpu(), lazy.contiguous(), lazy.to("meta"), lazy[3], lazy[4:9], *lazy.split(20), lazy.clone()]
    derived += [torch.cat([lazy, lazy]), lazy.repeat(3, 1, 1, 1), copy.deepcopy(lazy), lazy.type(torch.float64)]
    assert all(map(is_lazy, [lazy, *derived]))
    assert [part.shape[0] for part in derived[-4:]] == [120, 180, 60, 60]
    assert lazy.to("cpu") is lazy and lazy.float().dtype == torch.float32


def test_rows_in_any_order(make: Make, whole: torch.Tensor) -> None:
    lazy = torch.cat([make(), make()[5:50]]).to(torch.bfloat16)
    expected = torch.cat([whole, whole[5:50]]).to(torch.bfloat16)
    assert isinstance(lazy, LazyTensor)
    for start, stop in [(0, 16), (16, 32), (32, 40), (8, 9), (50, 70), (0, 105), (104, 105)]:
        assert torch.equal(lazy.rows(start, stop), expected[start:stop])
    assert is_lazy(lazy)
    assert torch.equal(lazy, expected)


def test_parts_share_memory_and_copies_do_not(make: Make, whole: torch.Tensor) -> None:
    lazy = make()
    part, item, other = lazy[2:4], lazy[7], lazy.clone()
    part.zero_()
    item.fill_(1)
    assert torch.equal(lazy[:2], whole[:2]) and not lazy[2:4].any() and lazy[7].eq(1).all()
    assert torch.equal(lazy.rows(7, 8), torch.ones(1, 3, *SIZE))
    assert torch.equal(other, whole)


def test_same_rows_makes_nothing(make: Make) -> None:
    one, two = make(), make()
    assert one.same_rows(one) and one.float().same_rows(one.float()) and one[3:9].same_rows(one[3:9])
    assert not one.same_rows(two) and not one.same_rows(one.float()) and not one[:5].same_rows(one[5:10])
    assert not one.same_rows(torch.zeros(3))
    assert is_lazy(one) and is_lazy(two)


def test_two_readers_of_one_video(make: Make, whole: torch.Tensor) -> None:
    lazy, wrong = make(), []

    def read() -> None:
        for start in range(0, 60, 6):
            if not torch.equal(lazy.rows(start, start + 6), whole[start : start + 6]):
                wrong.append(start)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not wrong and is_lazy(lazy)


class Items(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, make: Make) -> None:
        self.made, self.make = make(), make

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.make()[:4] if index else self.made[:4]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_data_loader_workers(make: Make, whole: torch.Tensor) -> None:
    """One item was begun before the fork, so its threads are missing in the worker."""
    items = Items(make)
    loader = torch.utils.data.DataLoader(items, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for item in loader:
        assert torch.equal(item, whole[:4])


def test_only_one_video_decodes_before_it_is_asked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from quickdecode.decode import ring

    monkeypatch.setattr(ring, "READ_AHEAD_BYTES", 1)

    def threads() -> int:
        return sum(thread.name.startswith("quickdecode") for thread in threading.enumerate())

    videos = [make() for _ in range(3)]
    assert threads() <= 2
    videos[1].rows(0, 1)
    assert 1 <= threads() <= 4
    videos.clear()
    assert threads() == 0
