"""Phases, their crops, and what is remembered of them: both sides of every boundary."""

import math
from itertools import pairwise

import pytest
import tiny
import torch
from torch import Tensor

from dd_tasks.augment import random_crops
from dd_tasks.schedule import Adam, Chosen, Phase, RandomCrops, Revisit, Rolled, Schedule, Sgd, SharedCrop, Tiles
from dd_tasks.types import CropMemory, Crops

NONE = -math.inf
JUST_ABOVE = float(torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)))


def memory(*hardness: list[float]) -> CropMemory:
    """The crop at place m of image n has the box (m, n, 1 + m, 1) and is flipped at odd places."""
    hardness_NM = torch.tensor(hardness)
    n, m = hardness_NM.shape
    places, images = torch.arange(m).expand(n, m), torch.arange(n)[:, None].expand(n, m)
    boxes_NM4 = torch.stack([places, images, 1 + places, torch.ones_like(places)], 2)
    return CropMemory(boxes_NM4, places % 2 == 1, hardness_NM, torch.zeros(n, dtype=torch.int64))


def chosen(n: int, memory_N: Tensor | None = None) -> Chosen:
    """The box (9, 9, 2, 2 + n), flipped, for image n."""
    boxes_N4 = torch.tensor([[9, 9, 2, 2 + i] for i in range(n)])
    crops = Crops(boxes_N4, torch.ones(n, dtype=torch.bool))
    return Chosen(crops, torch.full((n,), -1) if memory_N is None else memory_N)


def crops_of(of: CropMemory, image: int) -> list[tuple[list[int], bool, float]]:
    rows = of.boxes_NM4[image].tolist(), of.flips_NM[image].tolist(), of.hardness_NM[image].tolist()
    return list(zip(*rows, strict=True))


REMEMBERED = [  # before, hardness, place taken (threshold .5)
    ([NONE, NONE], 0.5, None),
    ([NONE, NONE], JUST_ABOVE, 0),
    ([0.9, NONE], 0.5, None),
    ([0.9, NONE], 0.6, 1),
    ([0.9, 0.6], 0.4, None),
    ([0.9, 0.6], 0.55, None),
    ([0.9, 0.6], 0.6, None),
    ([0.9, 0.6], 0.7, 1),
    ([0.6, 0.9], 0.7, 0),
    ([0.9, 0.6], 2.0, 1),
]


def test_a_hard_crop_takes_an_empty_place_or_that_of_the_easiest_crop_below_it():
    before = memory(*(hardness for hardness, _, _ in REMEMBERED))
    now = chosen(len(REMEMBERED))
    after = RandomCrops(threshold=0.5).remember(before, now, torch.tensor([h for _, h, _ in REMEMBERED]))
    for image, (_, hardness, place) in enumerate(REMEMBERED):
        expected = crops_of(before, image)
        if place is not None:
            expected[place] = ([9, 9, 2, 2 + image], True, pytest.approx(hardness, rel=1e-6))
        assert crops_of(after, image) == expected


def test_a_memory_fills_up_to_its_capacity_and_keeps_the_hardest():
    held, viewer = CropMemory.empty(1, 3, tiny.CPU), RandomCrops(threshold=0.5)
    sizes = []
    for hardness in (0.7, 0.2, 0.9, 0.6, 0.8, 0.65, 3.0):
        held = viewer.remember(held, chosen(1), torch.tensor([hardness]))
        sizes.append(int(held.occupied_NM.sum()))
    assert sizes == [1, 1, 2, 3, 3, 3, 3]
    assert sorted(held.hardness_NM[0].tolist()) == pytest.approx([0.8, 0.9, 3.0])


def test_exploration_draws_fresh_crops_whatever_is_remembered():
    viewer = RandomCrops(scale=(0.3, 0.8))
    now = viewer.choose(memory([1.0, 2.0], [NONE, NONE]), 16, tiny.generator(4))
    fresh = random_crops(2, 16, (0.3, 0.8), tiny.generator(4))
    assert torch.equal(now.crops.boxes_N4, fresh.boxes_N4) and torch.equal(now.crops.flips_N, fresh.flips_N)
    assert now.memory_N.tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("place", "hardness", "after"),
    [
        (0, 0.75, [0.75, 2.0, NONE]),
        (1, 5.0, [1.0, 5.0, NONE]),
        (1, JUST_ABOVE, [1.0, JUST_ABOVE, NONE]),
        (1, 0.5, [1.0, NONE, NONE]),
        (0, 0.1, [NONE, 2.0, NONE]),
        (-1, 9.0, [1.0, 2.0, NONE]),
    ],
)
def test_a_revisited_crop_is_refreshed_or_forgotten_and_a_fresh_one_not_remembered(place, hardness, after):
    before = memory([1.0, 2.0, NONE])
    held = Revisit(threshold=0.5).remember(before, chosen(1, torch.tensor([place])), torch.tensor([hardness]))
    assert held.hardness_NM.tolist() == [after]
    assert torch.equal(held.boxes_NM4, before.boxes_NM4) and torch.equal(held.flips_NM, before.flips_NM)


def test_images_are_refreshed_each_at_its_own_place():
    before = memory([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])
    held = Revisit().remember(before, chosen(3, torch.tensor([1, -1, 0])), torch.tensor([0.9, 0.9, 0.1]))
    assert held.hardness_NM.tolist() == [[1.0, pytest.approx(0.9)], [3.0, 4.0], [NONE, 6.0]]


def test_a_remembered_crop_is_drawn_with_probability_softmax_of_hardness():
    hardness = [0.0, 1.0, NONE, 2.0]
    held = memory(*[hardness] * 6000)
    now = Revisit().choose(held, 16, tiny.generator())
    shares = torch.bincount(now.memory_N, minlength=4) / 6000
    total = sum(map(math.exp, hardness))
    assert shares.tolist() == pytest.approx([math.exp(h) / total for h in hardness], abs=0.02)
    assert shares[2] == 0
    rows = torch.arange(6000)
    assert torch.equal(now.crops.boxes_N4, held.boxes_NM4[rows, now.memory_N])
    assert torch.equal(now.crops.flips_N, held.flips_NM[rows, now.memory_N])


def test_an_image_without_crops_left_gets_a_fresh_one():
    viewer = Revisit(scale=(0.3, 0.8))
    now = viewer.choose(memory([NONE, NONE], [NONE, 1.0], [NONE, NONE]), 16, tiny.generator(4))
    fresh = random_crops(3, 16, (0.3, 0.8), tiny.generator(4))
    assert now.memory_N.tolist() == [-1, 1, -1]
    assert now.crops.boxes_N4.tolist() == [fresh.boxes_N4[0].tolist(), [1, 1, 2, 1], fresh.boxes_N4[2].tolist()]
    assert now.crops.flips_N.tolist() == [bool(fresh.flips_N[0]), True, bool(fresh.flips_N[2])]


def test_without_a_threshold_nothing_is_remembered():
    before = memory([NONE, NONE], [0.9, NONE])
    assert RandomCrops(threshold=None).remember(before, chosen(2), torch.tensor([9.0, 9.0])) is before


def test_a_shared_crop_is_one_for_the_whole_panel_and_a_new_one_every_step():
    viewer, rng, nothing = SharedCrop(scale=(0.08, 1.0), jitter=4), tiny.generator(), CropMemory.empty(5, 1, tiny.CPU)
    steps = [viewer.choose(nothing, 32, rng) for _ in range(200)]
    assert all(len(s.crops.boxes_N4.unique(dim=0)) == len(s.crops.flips_N.unique()) == 1 for s in steps)
    assert all(s.memory_N.tolist() == [-1] * 5 for s in steps)
    areas = torch.tensor([s.crops.boxes_N4[0, 2] * s.crops.boxes_N4[0, 3] / 32**2 for s in steps])
    assert areas.min() < 0.12 and areas.max() > 0.9 and len(areas.unique()) > 50
    assert {tuple(s.roll_2.tolist()) for s in steps} == {(down, right) for down in range(5) for right in range(5)}
    assert viewer.remember(nothing, steps[0], torch.full((5,), 9.0)) is nothing


def test_without_jitter_nothing_is_rolled():
    assert SharedCrop().choose(CropMemory.empty(2, 1, tiny.CPU), 16, tiny.generator()).roll_2 is None


@pytest.mark.parametrize("inner", [RandomCrops(threshold=0.3), Revisit(threshold=0.3)])
def test_a_rolled_viewer_is_the_inner_one_but_for_the_roll(inner):
    viewer, full, nothing = Rolled(inner, jitter=4), memory([1.0, 0.4], [NONE, 0.6]), CropMemory.empty(2, 2, tiny.CPU)
    assert viewer.may_finish == inner.may_finish
    for seed, before in ((0, full), (1, full), (2, nothing)):
        rolled, plain = (v.choose(before, 16, tiny.generator(seed)) for v in (viewer, inner))
        assert torch.equal(rolled.crops.boxes_N4, plain.crops.boxes_N4)
        assert torch.equal(rolled.memory_N, plain.memory_N) and plain.roll_2 is None
        after, expected = (v.remember(before, plain, torch.tensor([0.2, 0.9])) for v in (viewer, inner))
        assert torch.equal(after.hardness_NM, expected.hardness_NM)
        assert torch.equal(after.boxes_NM4, expected.boxes_NM4)
    rng = tiny.generator()
    rolls = {tuple(viewer.choose(full, 16, rng).roll_2.tolist()) for _ in range(300)}
    assert rolls == {(down, right) for down in range(5) for right in range(5)}


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.9])
def test_the_smallest_crop_of_a_curriculum_falls_along_half_a_cosine(progress):
    viewer = SharedCrop(scale=(0.08, 1.0), start=1.0)
    expected = 0.08 + 0.92 * (1 + math.cos(math.pi * progress)) / 2
    assert viewer.smallest(progress) == pytest.approx(expected)
    assert SharedCrop(scale=(0.08, 1.0)).smallest(progress) == pytest.approx(0.08)
    nothing, rng = CropMemory.empty(1, 1, tiny.CPU), tiny.generator()
    boxes = torch.cat([viewer.choose(nothing, 64, rng, progress).crops.boxes_N4 for _ in range(300)])
    areas = boxes[:, 2] * boxes[:, 3] / 64**2
    assert areas.min() >= expected - 0.03 and areas.min() <= expected + 0.05


@pytest.mark.parametrize("viewer", [RandomCrops(flip=False), Revisit(flip=False), SharedCrop(flip=False)])
def test_without_flip_no_fresh_crop_is_flipped(viewer):
    assert not viewer.choose(CropMemory.empty(200, 2, tiny.CPU), 16, tiny.generator()).crops.flips_N.any()


def test_phases_follow_each_other_under_one_cosine():
    explore, revisit = RandomCrops(), Revisit()
    schedule = Schedule((Phase(2, explore), Phase(0, revisit), Phase(3, revisit)), Adam(rate=0.4))
    ticks = list(schedule.ticks())
    assert schedule.steps == 5 and [tick.step for tick in ticks] == [0, 1, 2, 3, 4]
    assert [tick.viewer for tick in ticks] == [explore, explore, revisit, revisit, revisit]
    assert [tick.progress for tick in ticks] == pytest.approx([0, 1 / 2, 0, 1 / 3, 2 / 3])
    assert [tick.rate for tick in ticks] == pytest.approx([0.2 * (1 + math.cos(math.pi * t / 5)) for t in range(5)])
    assert ticks[0].rate == 0.4 and all(a.rate > b.rate > 0 for a, b in pairwise(ticks))


def test_a_constant_rate_stays():
    schedule = Schedule((Phase(3, Tiles()),), Sgd(rate=0.4), constant=True)
    assert [tick.rate for tick in schedule.ticks()] == [0.4] * 3


def test_tiles_show_every_part_of_every_image_and_remember_nothing():
    nothing = CropMemory.empty(3, 1, tiny.CPU)
    now = Tiles(2).choose(nothing, 16, tiny.generator())
    assert now.images_V.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and now.memory_N.tolist() == [-1] * 12
    assert now.crops.boxes_N4[:4].tolist() == [[0, 0, 8, 8], [0, 8, 8, 8], [8, 0, 8, 8], [8, 8, 8, 8]]
    assert Tiles(2).remember(nothing, now, torch.full((12,), 9.0)) is nothing


def test_descents_first_steps_have_momentum():
    pixels_NCHW = torch.zeros(1, 3, 2, 2, requires_grad=True)
    optimiser = Sgd(rate=0.1, momentum=0.5).over(pixels_NCHW)
    for _ in range(2):
        optimiser.zero_grad()
        pixels_NCHW.sum().backward()
        optimiser.step()
    torch.testing.assert_close(pixels_NCHW.detach(), torch.full((1, 3, 2, 2), -0.1 - 0.15))


@pytest.mark.parametrize("phases", [(), (Phase(0, RandomCrops()),)])
def test_a_schedule_without_steps_has_no_ticks(phases):
    assert Schedule(phases).steps == 0 and list(Schedule(phases).ticks()) == []


def test_adams_first_step_moves_every_pixel_by_the_rate():
    pixels_NCHW = torch.zeros(1, 3, 2, 2, requires_grad=True)
    push_NCHW = torch.linspace(-3, 3, 12).view(1, 3, 2, 2)
    optimiser = Adam(rate=0.05).over(pixels_NCHW)
    (pixels_NCHW * push_NCHW).sum().backward()
    optimiser.step()
    torch.testing.assert_close(pixels_NCHW.detach(), -0.05 * push_NCHW.sign())
