"""The loop: what it depends on, when it ends, and what it leaves alone."""

import math
from dataclasses import dataclass, replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from dd_tasks import augment
from dd_tasks.distill import convene, distill, shares
from dd_tasks.errors import InputError
from dd_tasks.initialise import WholeImages
from dd_tasks.label import Relabel
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.schedule import Adam, Chosen, Phase, RandomCrops, Revisit, Schedule
from dd_tasks.terms import BatchNormMatching, CrossEntropy, FeatureMean, PatchStatistics, SmoothedStatistics
from dd_tasks.types import CropMemory, Tick
from dd_tasks.voters import Everyone, RoundRobin

EVER = -1.0  # a threshold that every crop is above
NEVER = 1e9  # and one that none is


def recipe(*phases: Phase, ballots: tuple[Ballot, ...] = (), rate: float = 0.05) -> Recipe:
    ballots = ballots or (Ballot(RoundRobin(), (CrossEntropy(), SmoothedStatistics())),)
    return Recipe(WholeImages(), ballots, Schedule(phases, Adam(rate), memory=2), Relabel())


SHORT = recipe(Phase(4, RandomCrops(threshold=EVER)), Phase(3, Revisit(threshold=EVER)))


@dataclass(frozen=True)
class Whole:
    """Looks at the whole image and remembers nothing."""

    may_finish = False

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        n = len(memory.hardness_NM)
        return Chosen(augment.whole(n, side), torch.full((n,), -1))

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        return memory


@dataclass(frozen=True)
class Remembering(Whole):
    """Puts one crop an image into memory, as hard as told."""

    hardness: tuple[float, ...] = ()

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        hardness_NM = torch.full_like(memory.hardness_NM, -torch.inf)
        hardness_NM[:, 0] = torch.tensor(self.hardness)
        return replace(memory, hardness_NM=hardness_NM)


@dataclass(frozen=True)
class CountingDown(Whole):
    """Revisits the first crop; every crop becomes easier by 1 a step and is forgotten at 0."""

    may_finish = True

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        return replace(super().choose(memory, side, rng), memory_N=torch.zeros(len(memory.hardness_NM)).long())

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        easier_NM = memory.hardness_NM - 1
        return replace(memory, hardness_NM=torch.where(easier_NM > 0, easier_NM, -torch.inf))


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    first, again, other = (distill(SHORT, tiny.canvas(), tiny.studio(seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.canvas.images_NCHW, again.canvas.images_NCHW)
    assert torch.equal(first.loss_T, again.loss_T) and torch.equal(first.gaze_NSS, again.gaze_NSS)
    assert not torch.equal(first.canvas.images_NCHW, other.canvas.images_NCHW)


def test_a_panel_does_not_depend_on_the_panels_before_it():
    observers = tiny.committee()
    alone = distill(SHORT, tiny.canvas(seed=1), tiny.studio(*tiny.committee(), seed=1))
    distill(SHORT, tiny.canvas(n=3, seed=2), tiny.studio(*observers, seed=2))
    after = distill(SHORT, tiny.canvas(seed=1), tiny.studio(*observers, seed=1))
    assert torch.equal(alone.canvas.images_NCHW, after.canvas.images_NCHW) and torch.equal(alone.loss_T, after.loss_T)


def test_the_loop_is_adam_on_scaled_pixels_against_the_committees_mean_cross_entropy():
    observers, canvas = tiny.committee(), tiny.canvas()
    asked = recipe(Phase(3, Whole()), ballots=(Ballot(Everyone(), (CrossEntropy(2.0),)),), rate=0.1)
    made = distill(asked, canvas, tiny.studio(*observers))

    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (tiny.MEAN, tiny.STD))
    scaled_NCSS = (canvas.images_NCHW / 255 - mean) / std
    first, second, losses = torch.zeros_like(scaled_NCSS), torch.zeros_like(scaled_NCSS), []
    for t, rate in enumerate((0.1, 0.075, 0.025), 1):
        scaled_NCSS.requires_grad_()
        pixels_NCSS = scaled_NCSS * std + mean
        loss = sum(F.cross_entropy(o.net(pixels_NCSS), canvas.targets_N) for o in observers)  # 2 x their mean
        (slope,) = torch.autograd.grad(loss, scaled_NCSS)
        first, second = 0.5 * first + 0.5 * slope, 0.9 * second + 0.1 * slope**2
        step = (first / (1 - 0.5**t)) / ((second / (1 - 0.9**t)).sqrt() + 1e-8)
        scaled_NCSS = (scaled_NCSS.detach() - rate * step).clamp(-mean / std, (1 - mean) / std)
        losses.append(loss.item())
    torch.testing.assert_close(made.loss_T, torch.tensor(losses), rtol=1e-4, atol=1e-5)
    expected = (scaled_NCSS * std + mean) * 255
    assert (made.canvas.images_NCHW.float() - expected).abs().max() < 0.6
    assert (made.canvas.images_NCHW != canvas.images_NCHW).any()


def test_the_loss_falls_and_classes_sources_and_size_stay():
    canvas = tiny.canvas()
    asked = recipe(Phase(20, Whole()), ballots=(Ballot(RoundRobin(), (CrossEntropy(),)),), rate=0.1)
    made = distill(asked, canvas, tiny.studio(tiny.observer()))
    assert made.loss_T[-1] < 0.9 * made.loss_T[0]
    assert torch.equal(made.canvas.targets_N, canvas.targets_N) and made.canvas.sources == canvas.sources
    assert made.canvas.images_NCHW.dtype == torch.uint8 and made.canvas.images_NCHW.shape == canvas.images_NCHW.shape


def test_the_loop_stops_early_only_when_no_image_has_a_crop_left():
    phases = Phase(1, Remembering(hardness=(15.0, 5.0))), Phase(49, CountingDown())
    made = distill(recipe(*phases), tiny.canvas(2), tiny.studio(tiny.observer()))
    left = [2] + [(15 - t > 0) + (5 - t > 0) for t in range(1, 20)]  # it asks at 10, where one has, and at 20
    assert made.remembered_T.tolist() == left
    assert len(made.loss_T) == 20 and (made.loss_T > 0).all() and made.image_updates == 40


@pytest.mark.parametrize(
    ("phases", "steps"),
    [
        ((Phase(10, RandomCrops(threshold=NEVER)), Phase(12, Revisit())), 10),
        ((Phase(10, RandomCrops(threshold=EVER)), Phase(12, Revisit(threshold=EVER))), 22),
        ((Phase(25, RandomCrops(threshold=NEVER)),), 25),
        ((Phase(7, RandomCrops(threshold=NEVER)), Phase(8, Revisit())), 10),
        ((Phase(4, RandomCrops(threshold=NEVER)), Phase(3, Revisit())), 7),
    ],
)
def test_exploration_never_stops_and_exploitation_at_the_first_question_with_nothing_left(phases, steps):
    made = distill(recipe(*phases), tiny.canvas(3), tiny.studio(tiny.observer()))
    assert len(made.loss_T) == len(made.remembered_T) == steps and made.image_updates == 3 * steps


def test_an_image_that_has_been_explored_leaves_the_batch_and_its_pixels_stay():
    phases = Phase(25, RandomCrops(threshold=NEVER, patience=10)), Phase(15, Revisit(active=True))
    made = distill(recipe(*phases), tiny.canvas(3), tiny.studio(tiny.observer()))
    alone = distill(recipe(Phase(40, RandomCrops(threshold=NEVER))), tiny.canvas(3), tiny.studio(tiny.observer()))
    assert made.image_updates == 30 and alone.image_updates == 120
    assert made.loss_T[:10].isfinite().all() and made.loss_T[10:].isnan().all() and len(made.loss_T) == 30


@pytest.mark.parametrize("steps", [3, 5])
def test_exploitation_of_the_active_images_leaves_the_others_as_they_are(steps):
    hard = Phase(1, Remembering(hardness=(9.0, -math.inf, 9.0)))
    first = distill(recipe(hard), tiny.canvas(3), tiny.studio(tiny.observer()))
    phases = hard, Phase(steps, Revisit(threshold=EVER, active=True))
    made = distill(recipe(*phases), tiny.canvas(3), tiny.studio(tiny.observer()))
    assert made.image_updates == 3 + 2 * steps
    assert torch.equal(made.pixels_NCSS[1], first.pixels_NCSS[1])
    assert all(not torch.equal(made.pixels_NCSS[i], first.pixels_NCSS[i]) for i in (0, 2))


def test_a_panel_tells_its_loss_four_times_to_whoever_listens(caplog):
    studio = tiny.studio()
    with caplog.at_level("DEBUG", "dd_tasks.distill"):
        made = distill(recipe(Phase(8, Whole())), tiny.canvas(), studio, "panel 3 (slots 0..5)")
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"panel 3 (slots 0..5): step {t} of 8, loss {made.loss_T[t - 1]:.4g}" for t in (2, 4, 6, 8)]
    caplog.clear()
    with caplog.at_level("INFO", "dd_tasks.distill"):
        assert torch.equal(distill(recipe(Phase(8, Whole())), tiny.canvas(), tiny.studio()).loss_T, made.loss_T)
    assert not caplog.records


def test_gaze_counts_what_exploitation_looked_at():
    explored = distill(recipe(Phase(5, RandomCrops(threshold=EVER))), tiny.canvas(), tiny.studio(tiny.observer()))
    assert explored.gaze_NSS.shape == (6, 16, 16) and not explored.gaze_NSS.any()
    nothing_left = recipe(Phase(3, RandomCrops(threshold=NEVER)), Phase(4, Revisit()))
    assert not distill(nothing_left, tiny.canvas(), tiny.studio(tiny.observer())).gaze_NSS.any()
    revisited = distill(SHORT, tiny.canvas(), tiny.studio(tiny.observer()))
    looks_N = revisited.gaze_NSS.mean((1, 2))  # three, each at half of the image or more, but for rounding
    assert (looks_N > 3 * 0.4).all() and (looks_N <= 3).all() and revisited.gaze_NSS.max() == 3
    phases = Phase(1, Remembering(hardness=(9.0, 9.0))), Phase(4, CountingDown())
    assert (distill(recipe(*phases), tiny.canvas(2), tiny.studio(tiny.observer())).gaze_NSS == 4).all()


@pytest.mark.parametrize(("voters", "seats"), [(RoundRobin(), 1), (Everyone(), 2)])
def test_an_update_is_one_image_through_one_observer(voters, seats):
    observers = [tiny.Watched(o) for o in tiny.committee()]
    ballots = (Ballot(voters, (CrossEntropy(), SmoothedStatistics())),)
    made = distill(recipe(Phase(4, Whole()), ballots=ballots), tiny.canvas(), tiny.studio(*observers))
    assert made.image_updates == 6 * 4 * seats == sum(sum(o.sizes) for o in observers)


def test_pixels_stay_in_range_however_large_the_steps():
    watched = tiny.Watched(tiny.observer())
    made = distill(recipe(Phase(4, Whole()), rate=50.0), tiny.canvas(), tiny.studio(watched))
    assert watched.lowest == pytest.approx(0, abs=1e-5) and watched.highest == pytest.approx(1, abs=1e-5)
    assert made.canvas.images_NCHW.min() == 0 and made.canvas.images_NCHW.max() == 255


def test_a_schedule_without_steps_returns_the_canvas_unchanged():
    canvas = tiny.canvas()
    made = distill(recipe(), canvas, tiny.studio())
    assert torch.equal(made.canvas.images_NCHW, canvas.images_NCHW) and torch.equal(
        made.canvas.targets_N, canvas.targets_N
    )
    assert made.canvas.sources == canvas.sources and made.image_updates == 0
    assert len(made.loss_T) == len(made.remembered_T) == 0 and not made.gaze_NSS.any()


def test_frozen_observers_stay_as_they_are():
    observers = tiny.committee()
    before = [{k: v.clone() for k, v in o.net.state_dict().items()} for o in observers]
    distill(SHORT, tiny.canvas(), tiny.studio(*observers))
    for observer, kept in zip(observers, before, strict=True):
        assert all(torch.equal(v, kept[k]) for k, v in observer.net.state_dict().items())
        assert all(p.grad is None and not p.requires_grad for p in observer.net.parameters())
        assert not any(m.training or m._forward_pre_hooks for m in observer.net.modules())


def test_hardness_is_the_seated_observers_weighted_cross_entropy_image_by_image():
    observers, pixels_NCHW, targets_N = tiny.committee(), tiny.pixels(5), tiny.labels(5)
    own = [F.cross_entropy(o.net(pixels_NCHW), targets_N, reduction="none") for o in observers]
    for voters, step, expected_N in (
        (Everyone(), 0, (own[0] + own[1]) / 2),
        (RoundRobin(), 2, own[0]),
        (RoundRobin(), 3, own[1]),
    ):
        judge = convene((Ballot(voters, (CrossEntropy(3.0),)),), tiny.studio(*observers))
        found = judge(pixels_NCHW, targets_N, Tick(step, Whole(), 0.1))
        torch.testing.assert_close(found.hardness_V, expected_N)
        torch.testing.assert_close(found.loss, 3 * expected_N.mean())
        assert found.seats == (2 if isinstance(voters, Everyone) else 1)


def test_rolled_views_are_what_the_committee_judges():
    @dataclass(frozen=True)
    class Rolling(Whole):
        def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
            return replace(super().choose(memory, side, rng), roll_2=torch.tensor([3, 1]))

    observer, canvas = tiny.observer(), tiny.canvas()
    ballots = (Ballot(Everyone(), (CrossEntropy(),)),)
    made = distill(recipe(Phase(1, Rolling()), ballots=ballots), canvas, tiny.studio(observer))
    seen_NCSS = (canvas.images_NCHW / 255).roll((3, 1), (2, 3))
    expected = F.cross_entropy(observer.net(seen_NCSS), canvas.targets_N)
    torch.testing.assert_close(made.loss_T, expected.detach()[None])


def test_ballots_add_up_and_only_those_that_need_moments_ask_for_them():
    pixels_NCHW, targets_N, tick = tiny.pixels(5), tiny.labels(5), Tick(0, Whole(), 0.1)
    ballots = Ballot(RoundRobin(), (CrossEntropy(),)), Ballot(Everyone(), (CrossEntropy(0.5), SmoothedStatistics()))
    watched = [tiny.Watched(o) for o in tiny.committee()]
    found = convene(ballots, tiny.studio(*watched))(pixels_NCHW, targets_N, tick)
    apart = [convene((b,), tiny.studio(*tiny.committee()))(pixels_NCHW, targets_N, tick) for b in ballots]
    torch.testing.assert_close(found.loss, sum(one.loss for one in apart))
    torch.testing.assert_close(found.slope_VCSS, sum(one.slope_VCSS for one in apart))
    assert found.seats == 3 and [o.moments for o in watched] == [[False, True], [True]]
    assert not any(any(o.asked_patches) for o in watched)


def test_only_statistics_of_patches_ask_for_them():
    watched = [tiny.Watched(o) for o in tiny.committee()]
    ballots = Ballot(RoundRobin(), (CrossEntropy(),)), Ballot(Everyone(), (CrossEntropy(), PatchStatistics()))
    convene(ballots, tiny.studio(*watched))(tiny.pixels(5), tiny.labels(5), Tick(0, Whole(), 0.1))
    assert [o.asked_patches for o in watched] == [[False, True], [True]] and not any(any(o.moments) for o in watched)


ALL_BY_BATCH = (CrossEntropy(), SmoothedStatistics(), BatchNormMatching(), PatchStatistics(0.2))


def test_batches_of_a_panel_are_judged_as_if_each_were_alone():
    observer, images, targets_N = tiny.observer(), [tiny.pixels(5, seed) for seed in range(2)], tiny.labels(5)
    ballots, shares_BV = (Ballot(RoundRobin(), ALL_BY_BATCH),), shares(torch.arange(5), 3, 5)
    together = convene(ballots, tiny.studio(observer))
    alone = [(part, convene(ballots, tiny.studio(observer))) for part in (slice(0, 3), slice(3, 5))]
    for step, pixels_NCHW in enumerate(images):
        tick = Tick(step, Whole(), 0.1)
        found = together(pixels_NCHW, targets_N, tick, shares_BV)
        parts = [judge(pixels_NCHW[part], targets_N[part], tick) for part, judge in alone]
        torch.testing.assert_close(found.loss, sum(one.loss for one in parts))
        for name in ("slope_VCSS", "hardness_V"):
            expected = torch.cat([getattr(one, name) for one in parts])
            torch.testing.assert_close(getattr(found, name), expected, rtol=1e-4, atol=1e-6)


def test_a_batch_that_has_left_has_no_loss_and_finds_its_averages_when_it_returns():
    observer, every_N = tiny.observer(), torch.arange(6)
    ballots, targets_N = (Ballot(RoundRobin(), ALL_BY_BATCH),), tiny.labels(6)
    together, alone = (convene(ballots, tiny.studio(observer)) for _ in range(2))
    for step, gone in enumerate((False, True, False)):
        here_V, pixels_NCHW, tick = every_N[3:] if gone else every_N, tiny.pixels(6, step), Tick(step, Whole(), 0.1)
        found = together(pixels_NCHW[here_V], targets_N[here_V], tick, shares(here_V, 3, 6))
        if not gone:
            own = alone(pixels_NCHW[:3], targets_N[:3], tick)
            torch.testing.assert_close(found.slope_VCSS[:3], own.slope_VCSS, rtol=1e-4, atol=1e-6)
    assert found.loss.isfinite()


def test_a_panel_of_two_batches_has_the_mean_of_their_losses_and_its_own_pixels():
    short = recipe(Phase(2, RandomCrops()), ballots=(Ballot(RoundRobin(), ALL_BY_BATCH),))
    split = replace(short, schedule=replace(short.schedule, batch=3))
    whole, parted, same = (
        distill(one, tiny.canvas(), tiny.studio(tiny.observer()))
        for one in (short, split, replace(split, schedule=replace(split.schedule, batch=6)))
    )
    assert torch.equal(whole.pixels_NCSS, same.pixels_NCSS) and not torch.equal(whole.pixels_NCSS, parted.pixels_NCSS)
    assert parted.loss_T.isfinite().all() and (parted.loss_T / whole.loss_T).max() < 2


def test_a_term_that_knows_whole_panels_alone_refuses_batches():
    short = recipe(Phase(2, RandomCrops()), ballots=(Ballot(RoundRobin(), (CrossEntropy(), FeatureMean())),))
    split = replace(short, schedule=replace(short.schedule, batch=3))
    with pytest.raises(InputError, match=r"schedule\.batch=3: FeatureMean is of whole panels"):
        distill(split, tiny.canvas(), tiny.studio(tiny.observer()))
