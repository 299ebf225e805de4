"""The adversary against its formulas, written out again here in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from taehv.errors import TrainingError
from taehv.losses.discriminator import (
    Discriminator,
    GroupBatchNorm2d,
    batch_norms,
    commit_statistics,
)
from taehv.losses.replay import ReplayBuffer
from taehv.losses.seraena import (
    FAKE,
    REAL,
    SeraenaConfig,
    clip_context,
    corrected_targets,
    discriminator_loss,
    group_frames,
    sample_discriminator_batch,
    ungroup_frames,
)
from taehv.slots import SURPLUS, SlotLayout

WIDTHS = (4, 8, 8, 8, 8, 8)


def discriminator(channels: int = 16) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(9, channels, WIDTHS)


def clips(
    n: int = 2, t: int = 9, seed: int = 0, size: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Real and fake [n, t, 3, size, size], latents [n, 3, 16, size / 8, size / 8]."""
    generator = torch.Generator().manual_seed(seed)
    real, fake = (torch.rand(n, t, 3, size, size, generator=generator) for _ in range(2))
    return real, fake, torch.randn(n, 3, 16, size // 8, size // 8, generator=generator)


@pytest.mark.parametrize(("frames", "groups"), [(9, 3), (3, 1), (8, 3), (1, 1), (2, 1), (10, 4)])
def test_grouping_repeats_from_the_start_and_comes_back(frames: int, groups: int) -> None:
    video = torch.rand(2, frames, 3, 4, 4)
    grouped = group_frames(video, 3)
    assert grouped.shape == (2 * groups, 9, 4, 4)
    for clip in range(2):
        for position in range(groups * 3):
            group, place = divmod(position, 3)
            picture = grouped[clip * groups + group, 3 * place : 3 * place + 3]
            assert torch.equal(picture, video[clip, position % frames])
    assert torch.equal(ungroup_frames(grouped, 2, frames, 3), video)


def test_the_context_is_the_mean_over_time() -> None:
    latents = torch.randn(2, 3, 16, 2, 2)
    expected = np.mean(latents.double().numpy(), axis=1)
    assert np.allclose(clip_context(latents).numpy(), expected, atol=1e-6)


def test_the_discriminator_has_six_maps_and_the_public_shape() -> None:
    public = Discriminator(9, 16, (64, 128, 256, 512, 512, 512))
    kernels = [m.weight.shape for m in public.modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [
        (64, 25, 3, 3),
        (128, 64, 4, 4),
        (256, 128, 4, 4),
        (512, 256, 4, 4),
        (512, 512, 3, 3),
        (512, 512, 3, 3),
        *((1, width, 1, 1) for width in (64, 128, 256, 512, 512, 512)),
    ]
    assert all(m.bias is None for m in public.modules() if isinstance(m, nn.Conv2d))
    scores = discriminator()(torch.rand(2, 9, 24, 40), torch.randn(2, 16, 3, 5))
    assert scores.shape == (2, 6, 3, 5)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_correction_is_the_descent_direction_over_its_spread(groups: int) -> None:
    """Against central differences, in float64, of the distance between the score maps."""
    network = discriminator()
    real, fake, latents = clips()
    target = corrected_targets(network, real, fake, latents, SeraenaConfig(), groups)
    correction = (target - fake).double()
    # The spread of g / (s + 1e-5) is s / (s + 1e-5): it tells the gradient's own spread s.
    ratio = correction.reshape(groups, -1).std(1, correction=0)
    spread = 1e-5 * ratio / (1 - ratio)

    network = network.double().eval()
    context = latents.double().mean(1).repeat_interleave(3, 0)

    def distance(video: torch.Tensor) -> float:
        with torch.no_grad():
            a = network(group_frames(video, 3), context)
            b = network(group_frames(real.double(), 3), context)
        return float((a - b).square().flatten(1).mean(1).sum())

    random = np.random.default_rng(0)
    slopes, corrections = [], []
    for _ in range(60):
        clip = int(random.integers(2))
        place = (clip, *(int(random.integers(k)) for k in (9, 3, 16, 16)))
        step = torch.zeros_like(fake, dtype=torch.float64)
        step[place] = 1e-5
        slopes.append(distance(fake.double() + step) - distance(fake.double() - step))
        own = spread[clip * groups // 2]
        corrections.append(float(-correction[place] * (own + 1e-5)) * 2e-5)
    assert slopes == pytest.approx(corrections, rel=1e-2, abs=1e-3 * max(map(abs, slopes)))


def test_the_target_has_no_gradient_and_leaves_the_discriminator_alone() -> None:
    network = discriminator()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    real, fake, latents = clips(1)
    target = corrected_targets(
        network, real, fake.requires_grad_(), latents.requires_grad_(), SeraenaConfig(), 1
    )
    assert not target.requires_grad
    assert network.training
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("n", "t"), [(1, 9), (3, 9), (1, 1), (5, 4)])
def test_odd_sizes_and_single_clips_work(n: int, t: int) -> None:
    real, fake, latents = clips(n, t)
    replay = ReplayBuffer(10**7, slots=8, seed=0)
    for step in range(4):
        batch = sample_discriminator_batch(
            real, fake, latents, list(range(n)), step, replay, SeraenaConfig()
        )
        scores = discriminator()(batch.images, batch.context)
        assert discriminator_loss(scores, batch.target, n).shape == (n,)
    assert (
        corrected_targets(discriminator(), real, fake, latents, SeraenaConfig(), n).shape
        == fake.shape
    )


def test_what_is_shown_is_real_or_fake_as_its_target_says() -> None:
    replay = ReplayBuffer(10**8, slots=4, seed=0)
    config = SeraenaConfig()
    targets, old = [], 0
    past: list[torch.Tensor] = []
    for step in range(60):
        real, fake, latents = clips(4, seed=step)
        batch = sample_discriminator_batch(real, fake, latents, [0, 1, 2, 3], step, replay, config)
        reals, fakes = group_frames(real, 3), group_frames(fake, 3)
        past.append(fakes)
        for i, target in enumerate(batch.target.tolist()):
            targets.append(target)
            if target == REAL:
                assert torch.equal(batch.images[i], reals[i])
            elif not torch.equal(batch.images[i], fakes[i]):
                old += 1
                # An earlier fake of the same slot and place, at half precision.
                assert any(torch.allclose(batch.images[i], f[i], atol=1e-3) for f in past)
    count = len(targets)
    assert 0.42 < targets.count(FAKE) / count < 0.58
    assert 0.40 < old / targets.count(FAKE) < 0.60


def test_what_is_shown_does_not_depend_on_who_holds_the_slot() -> None:
    real, fake, latents = clips(4)
    together = sample_discriminator_batch(
        real, fake, latents, [0, 1, 2, 3], 5, ReplayBuffer(10**7, 4, 1), SeraenaConfig()
    )
    apart = sample_discriminator_batch(
        real[2:], fake[2:], latents[2:], [2, 3], 5, ReplayBuffer(10**7, 4, 1), SeraenaConfig()
    )
    assert torch.equal(together.images[6:], apart.images)
    assert torch.equal(together.target[6:], apart.target)


def test_surplus_slots_leave_no_trace() -> None:
    replay = ReplayBuffer(10**7, slots=4, seed=0)
    sample_discriminator_batch(*clips(2), [3, SURPLUS], 0, replay, SeraenaConfig())
    assert set(replay.memory) == {3}


def test_the_replay_buffer_is_bounded_and_replaces_at_random() -> None:
    images, context = torch.rand(3, 9, 8, 8), torch.rand(16, 1, 1)
    entry = 2 * (images.numel() + context.numel())
    replay = ReplayBuffer(entry * 4 * 5 + 3, slots=4, seed=0)
    for step in range(50):
        for slot in range(4):
            replay.insert(step, slot, images + step, context)
    held = [{int(i[0, 0, 0, 0]) for i, _ in memory} for memory in replay.memory.values()]
    assert all(len(memory) == 5 for memory in replay.memory.values())
    assert sum(t.nbytes for m in replay.memory.values() for e in m for t in e) <= entry * 20
    assert len({frozenset(steps) for steps in held}) > 1
    state = replay.snapshot()()
    assert state["slot.2.images"].dtype == torch.float16
    copy = ReplayBuffer(entry * 4 * 5 + 3, slots=4, seed=0)
    copy.load(2, state, torch.device("cpu"))
    for step in range(50, 60):
        assert torch.equal(copy.sample(step, 2, 1)[0], replay.sample(step, 2, 1)[0])


def test_clips_of_another_size_take_the_place_of_what_was_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As after a resume with other `data.*`: what is shown together has to be of one shape."""
    old = ReplayBuffer(10**7, slots=4, seed=0)
    for step in range(3):
        sample_discriminator_batch(*clips(4, size=32), [0, 1, 2, 3], step, old, SeraenaConfig())
    replay = ReplayBuffer(10**7, slots=4, seed=0)
    for slot in range(4):
        replay.load(slot, old.snapshot()(), torch.device("cpu"))
    for step in range(3, 6):
        real, fake, latents = clips(4, size=16, seed=step)
        batch = sample_discriminator_batch(
            real, fake, latents, [0, 1, 2, 3], step, replay, SeraenaConfig()
        )
        assert batch.images.shape[-2:] == (16, 16)
    for slot, memory in replay.memory.items():
        assert {images.shape for images, _ in memory} == {(3, 9, 16, 16)}, slot
        assert len(memory) == 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert "3 groups of 32x32" in line
    assert "3 groups of 16x16" in line


def test_a_memory_that_no_longer_fits_is_not_loaded() -> None:
    """Entries that are too large for today's bound say nothing about today's clips."""
    old = ReplayBuffer(10**7, slots=4, seed=0)
    old.insert(0, 0, torch.rand(3, 9, 32, 32), torch.rand(16, 4, 4))
    replay = ReplayBuffer(40_000, slots=4, seed=0)
    replay.load(0, old.snapshot()(), torch.device("cpu"))
    replay.insert(1, 0, torch.rand(3, 9, 8, 8), torch.rand(16, 1, 1))
    assert replay.sample(1, 0, 0)[0].shape == (9, 8, 8)


def test_a_replay_buffer_too_small_for_a_clip_says_so() -> None:
    with pytest.raises(TrainingError, match=r"raise --seraena\.replay-gigabytes"):
        ReplayBuffer(1000, slots=4, seed=0).insert(
            0, 0, torch.rand(3, 9, 8, 8), torch.rand(16, 1, 1)
        )


def test_batch_norm_by_groups_is_batch_norm_of_each_group() -> None:
    ours, theirs = GroupBatchNorm2d(4), nn.BatchNorm2d(4, momentum=1.0)
    x = torch.randn(6, 4, 5, 5)
    output = ours(x, torch.tensor([1.0, 1.0, 0.0]))
    means, variances = [], []
    for part, result in zip(x.chunk(3), output.chunk(3), strict=True):
        assert torch.allclose(theirs(part).relu(), result, atol=1e-5)
        assert theirs.running_mean is not None
        assert theirs.running_var is not None
        means.append(theirs.running_mean.clone())
        variances.append(theirs.running_var.clone())
    commit_statistics(ours, groups=2)
    assert ours.running_mean is not None
    assert ours.running_var is not None
    # The third group is surplus. PyTorch's momentum is 0.1, its start 0 and 1.
    assert torch.allclose(ours.running_mean, 0.1 * (means[0] + means[1]) / 2, atol=1e-6)
    assert torch.allclose(ours.running_var, 0.9 + 0.1 * (variances[0] + variances[1]) / 2)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_slots_are_shared_out_whole(workers: int) -> None:
    layout = SlotLayout(8, 2, workers)
    held = [s for rank in range(workers) for s in layout.slots(rank).tolist()]
    assert sorted(s for s in held if s != SURPLUS) == list(range(8))
    for step in range(3):
        samples = [s for rank in range(workers) for s in layout.samples(step, rank).tolist()]
        assert sorted(s for s in samples if s != SURPLUS) == list(range(8 * step, 8 * step + 8))


def test_layouts_that_cannot_be() -> None:
    for arguments, message in (
        ((8, 3, 1), "not a multiple"),
        ((8, 2, 5), "at most 4 workers"),
        ((8, 4, 1, 2), "lower train.slots_per_group"),
    ):
        with pytest.raises(ValueError, match=message):
            SlotLayout(*arguments)
    assert SlotLayout(16, 2, 2, max_clips_per_pass=5).passes == 2
    assert SlotLayout(16, 2, 2, max_clips_per_pass=5).slots_per_pass == 4


def test_a_refused_step_leaves_the_running_statistics() -> None:
    network = Discriminator(9, 16, (4, 8, 8, 8, 8, 8))
    network(torch.rand(4, 9, 16, 16), torch.rand(4, 16, 2, 2), torch.ones(2))
    commit_statistics(network, 2, torch.tensor(0.0))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert all(norm.num_batches_tracked == 1 for norm in batch_norms(network))
    assert before["blocks.0.1.running_mean"].any()
    network(torch.full((4, 9, 16, 16), torch.nan), torch.rand(4, 16, 2, 2), torch.ones(2))
    commit_statistics(network, 2, torch.tensor(1.0))
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(not norm.sums.any() for norm in batch_norms(network))
