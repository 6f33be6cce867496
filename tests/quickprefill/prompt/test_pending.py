"""PendingVideo: slices on demand, and the whole features for anything that treats it as a tensor."""

import copy

import torch

from quickprefill.prompt.pending import PendingVideo, PendingVideos
from quickprefill.prompt.spans import Grid


def pending(slices=3, closing=None, present=None):
    calls = []

    def encode(rows, count):
        calls.append((tuple(rows.shape), count))
        return rows.view(count * 2, 2, 4).sum(1)  # two patches to a token, two tokens to a slice

    pixels = torch.arange(slices * 4 * 4, dtype=torch.float32).view(slices * 4, 4)
    device = torch.device("cpu")
    options = {"width": 4, "dtype": torch.float32, "device": device, "closing": closing}
    return PendingVideo(pixels, Grid(slices, 1, 2, present), encode, **options), calls


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


def test_tokens_that_the_prompt_does_not_hold_are_made_and_left_out():
    video, _ = pending(present=torch.tensor([[True, True], [False, True], [True, False]]))
    whole = video.features()
    assert (whole.shape, len(video)) == ((6, 4), 4), "the host takes them out of all features itself"
    assert torch.equal(video.encode(0, 3), whole[[0, 1, 3, 4]])
    assert torch.equal(video.encode(1, 2), whole[[3]])


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


def test_what_closes_a_video_stands_behind_its_features():
    video, calls = pending(closing=torch.full((1, 4), 7.0))
    assert (video.shape, calls) == ((7, 4), [])
    assert torch.equal(video[:6], video.encode(0, 3))
    assert torch.equal(video[6:], torch.full((1, 4), 7.0))


def test_several_videos_in_one_tensor_are_taken_out_repeated_and_stacked_without_encoding_them():
    """What generate() does to them for beams."""
    (one, calls), (two, more) = pending(), pending()
    both = PendingVideos([one, two])
    assert isinstance(both, torch.Tensor)
    assert (both.shape, len(both), both.ndim) == ((2, 6, 4), 2, 3)
    repeated = [video for part in (both[0:1], both[1:]) for video in part.repeat((3,) + (1,) * (part.ndim - 1))]
    stacked = torch.stack(repeated, dim=0)
    assert isinstance(stacked, PendingVideos)
    assert stacked.videos == (one, one, one, two, two, two)
    assert both[1] is two
    assert both.to("cpu", torch.float32) is both
    assert copy.deepcopy(both) is both
    assert (calls, more) == ([], [])


def test_anything_else_makes_all_of_several_videos():
    (one, calls), (two, more) = pending(), pending()
    both, features = PendingVideos([one, two]), torch.stack([one.features(), two.features()])
    assert torch.equal(both.flatten(0, 1), features.flatten(0, 1))
    assert torch.equal(torch.cat([video.reshape(-1, 4) for video in both])[[0, 7]], features.view(-1, 4)[[0, 7]])
    assert torch.equal(both[:, 1:3], features[:, 1:3])
    assert torch.equal(both.repeat(1, 2, 1), features.repeat(1, 2, 1))
    assert torch.equal(torch.stack([one, features[1]]), features)
    assert both.to(torch.float64).dtype == torch.float64
    assert len(calls) == len(more) == 1, "encoded once"
