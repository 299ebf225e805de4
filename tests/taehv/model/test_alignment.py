"""The frame rule: lengths by table, and the pairing on pictures that move."""

import pytest
import torch
from torch import Tensor

from taehv.model.alignment import FrameAlignment, frames_to_trim, pair, repeat_last_frame

PUBLIC = FrameAlignment(4, 4)
COGVIDEOX = FrameAlignment(4, 4, trims_even=False)
EIGHTFOLD = FrameAlignment(8, 8)


@pytest.mark.parametrize(
    ("alignment", "frames", "latents", "decoded"),
    [
        (PUBLIC, 1, 1, 1),
        (PUBLIC, 4, 1, 1),
        (PUBLIC, 5, 2, 5),
        (PUBLIC, 8, 2, 5),
        (PUBLIC, 9, 3, 9),
        (PUBLIC, 12, 3, 9),
        (PUBLIC, 17, 5, 17),
        (COGVIDEOX, 4, 1, 1),
        (COGVIDEOX, 5, 2, 8),
        (COGVIDEOX, 8, 2, 8),
        (COGVIDEOX, 9, 3, 9),
        (COGVIDEOX, 12, 3, 9),
        (COGVIDEOX, 13, 4, 16),
        (COGVIDEOX, 17, 5, 17),
        (EIGHTFOLD, 1, 1, 1),
        (EIGHTFOLD, 9, 2, 9),
        (EIGHTFOLD, 10, 2, 9),
        (EIGHTFOLD, 17, 3, 17),
    ],
)
def test_lengths(alignment: FrameAlignment, frames: int, latents: int, decoded: int) -> None:
    assert alignment.num_latents(frames) == latents
    assert alignment.num_decoded(frames) == decoded


@pytest.mark.parametrize(
    ("alignment", "whole"),
    [(PUBLIC, [1, 5, 9, 13, 17]), (COGVIDEOX, [1, 9, 17, 25]), (EIGHTFOLD, [1, 9, 17, 25])],
)
def test_a_padded_video_comes_back_whole_and_is_the_shortest_such(
    alignment: FrameAlignment, whole: list[int]
) -> None:
    for frames in range(1, whole[-1] + 1):
        length = alignment.padded_length(frames)
        assert length == min(one for one in whole if one >= frames)
        assert alignment.num_decoded(length) == length
        # The raw frames before the first that is kept are as many as for any other length.
        assert alignment.frames_to_trim(alignment.num_latents(length)) == alignment.time_upscale - 1


def test_lengths_that_teach_another_rule() -> None:
    lengths = range(1, 18)
    assert [n for n in lengths if COGVIDEOX.learns_another_rule(n)] == [5, 6, 7, 8, 13, 14, 15, 16]
    assert not any(PUBLIC.learns_another_rule(n) for n in lengths)


def test_the_trim() -> None:
    assert [frames_to_trim(n, 4) for n in (1, 2, 3, 4)] == [3, 3, 3, 3]
    assert [frames_to_trim(n, 4, trims_even=False) for n in (1, 2, 3, 4)] == [3, 0, 3, 0]
    assert frames_to_trim(2, 8) == 7
    assert frames_to_trim(2, 1) == 0


def test_pair_cuts_both_to_what_they_share() -> None:
    frames, decoded = torch.rand(2, 12, 3, 4, 4), torch.rand(2, 9, 3, 4, 4)
    a, b = pair(frames, decoded)
    assert torch.equal(a, frames[:, :9])
    assert torch.equal(b, decoded)
    c, d = pair(frames[:, :5], decoded[:, :8])
    assert torch.equal(c, frames[:, :5])
    assert torch.equal(d, decoded[:, :5])


def test_a_decoder_of_fewer_frames_pairs_with_each_second_frame() -> None:
    alignment = FrameAlignment(4, 2)
    frames = torch.arange(9.0).reshape(1, 9, 1, 1, 1)
    assert alignment.num_decoded(9) == 5
    a, b = alignment.pair(frames, torch.zeros(1, 5, 1, 1, 1))
    assert a.flatten().tolist() == [0, 2, 4, 6, 8]
    assert b.shape == a.shape


def test_a_decoder_of_more_frames_than_went_in_has_no_pairs() -> None:
    with pytest.raises(ValueError, match="8 frames per latent cannot be compared"):
        FrameAlignment(4, 8).pair(torch.zeros(1, 9, 1, 1, 1), torch.zeros(1, 9, 1, 1, 1))


def test_extension_repeats_the_last_frame_and_never_shortens() -> None:
    frames = torch.rand(2, 3, 3, 4, 4)
    longer = repeat_last_frame(frames, 5)
    assert torch.equal(longer[:, :3], frames)
    assert torch.equal(longer[:, 3], frames[:, 2])
    assert torch.equal(longer[:, 4], frames[:, 2])
    assert torch.equal(repeat_last_frame(frames, 2), frames)


def moving_gradient(num_frames: int, size: int) -> Tensor:
    """A ramp that slides one pixel per frame along the width; [1, T, 3, size, size]."""
    x = torch.arange(size)[None, :] + torch.arange(num_frames)[:, None]
    picture = (x % size).float() / size
    return picture[None, :, None, None, :].expand(1, -1, 3, size, -1)


def ideal_decoder(frames: Tensor, alignment: FrameAlignment) -> Tensor:
    """What a decoder that does its work perfectly gives: raw frame r shows input frame r - 3.

    Before the start it can only show the first frame, after the end the last one.
    """
    latents = alignment.num_latents(frames.shape[1])
    trim = alignment.frames_to_trim(latents)
    source = torch.arange(latents * alignment.time_upscale) - trim
    raw = frames[:, source.clamp(0, frames.shape[1] - 1)]
    return raw[:, trim:]


@pytest.mark.parametrize("alignment", [PUBLIC, COGVIDEOX, EIGHTFOLD])
@pytest.mark.parametrize("num_frames", [8, 9, 12, 13, 17])
def test_every_shifted_pairing_scores_worse(alignment: FrameAlignment, num_frames: int) -> None:
    frames = moving_gradient(num_frames, 32)
    decoded = ideal_decoder(frames, alignment)
    a, b = alignment.pair(frames, decoded)
    assert a.shape == b.shape
    assert (a - b).square().mean() == 0
    for shift in (-3, -2, -1, 1, 2, 3):
        late, early = frames[:, max(shift, 0) :], decoded[:, max(-shift, 0) :]
        n = min(late.shape[1], early.shape[1])
        if n > 0:
            assert (late[:, :n] - early[:, :n]).square().mean() > 1e-3
