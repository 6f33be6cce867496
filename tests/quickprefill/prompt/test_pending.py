"""PendingVideo: slices on demand, and the whole features for anything that treats it as a tensor."""

import copy

import torch

from quickprefill.prompt.pending import PendingVideo
from quickprefill.prompt.spans import Grid


def pending(slices=3):
    calls = []

    def encode(rows, count):
        calls.append((tuple(rows.shape), count))
        return rows.view(count * 2, 2, 4).sum(1)  # two patches to a token, two tokens to a slice

    pixels = torch.arange(slices * 4 * 4, dtype=torch.float32).view(slices * 4, 4)
    device = torch.device("cpu")
    return PendingVideo(pixels, Grid(slices, 1, 2), encode, width=4, dtype=torch.float32, device=device), calls


def test_slices_are_encoded_when_asked_for():
    video, calls = pending()
    assert calls == []
    part = video.encode(1, 3)
    assert calls == [((8, 4), 2)]
    assert torch.equal(part, video.features()[2:])


def test_its_shape_is_known_before_it_is_encoded():
    video, calls = pending()
    assert isinstance(video, torch.Tensor)
    assert (len(video), video.shape, video.ndim, video.numel()) == (6, (6, 4), 2, 24)
    assert (video.dtype, video.device.type) == (torch.float32, "cpu")
    assert not hasattr(video, "no_such_attribute")
    assert calls == []


def test_torch_functions_see_the_features():
    video, calls = pending()
    other, _ = pending()
    both = torch.cat([video, other], dim=0)
    assert type(both) is torch.Tensor
    assert torch.equal(both, torch.cat([video.features(), other.features()]))
    assert video.flatten().shape == (24,)
    assert torch.equal(video[1:3], video.features()[1:3])
    with torch.inference_mode():
        assert torch.equal(video + 1, video.features() + 1)
    assert len(calls) == 1, "encoded once"


def test_moving_and_copying_encode_nothing():
    video, calls = pending()
    assert video.to("cpu") is video
    assert video.to("cpu", torch.float32) is video
    assert video.detach() is video
    assert copy.deepcopy([video])[0] is video
    assert "slices=3" in repr(video)
    assert calls == []
    assert video.to(torch.float64).dtype == torch.float64


def test_same_as_compares_pixels():
    video, _ = pending()
    twin, _ = pending()
    assert video.same_as(twin)
    twin.pixels[0, 0] += 1
    assert not video.same_as(twin)
    assert not video.same_as(pending(2)[0])


def test_levels_are_columns_of_the_same_rows():
    calls = []

    def encode(rows, count):
        calls.append(count)
        return torch.cat([rows, rows + 100, rows + 200], dim=1)

    pixels = torch.arange(12.0).view(6, 2)
    video = PendingVideo(pixels, Grid(3, 1, 2), encode, width=2, dtype=torch.float32, device=torch.device("cpu"))
    second = video.level(2)
    assert (second.shape, video.encode(1, 2).shape) == ((6, 2), (2, 6))
    assert torch.equal(second + 0, pixels + 200)
    assert torch.equal(video + 0, pixels)
    assert calls == [1, 3], "the whole video is encoded once for all levels"
