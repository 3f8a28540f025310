"""The plain loop and ours: the same pixels from the same crops, in both phases."""

import random

import pytest
import tiny
import torch

from benchmarks import plain_loop, recover
from dd_tasks.networks import Shape
from dd_tasks.schedule import Phase

SHAPE = Shape(tiny.CLASSES, tiny.SIDE, tiny.MEAN, tiny.STD)
BENCH = recover.Bench(tiny.canvas(), tiny.committee(), SHAPE, tiny.CPU)


@pytest.mark.parametrize("steps", [(1, 0), (3, 0), (4, 3)])
def test_the_same_crops_give_the_same_pixels(steps):
    looked: list[plain_loop.Step] = []
    random.seed(1)
    torch.manual_seed(1)
    theirs_NCSS = BENCH.plain(steps, looked.append)
    ours_NCSS = BENCH.ours((Phase(sum(steps), recover.Replayed(looked)),), compiled=False).pixels_NCSS
    torch.testing.assert_close(ours_NCSS, theirs_NCSS, rtol=0, atol=1e-4)
    assert (ours_NCSS - tiny.canvas().images_NCHW / 255).abs().max() > 0.01


def test_exploitation_returns_to_crops_that_were_hard():
    looked: list[plain_loop.Step] = []
    random.seed(2)
    BENCH.plain((4, 3), looked.append)
    seen = {(i, box) for step in looked[:4] for i, box in enumerate(step.boxes)}
    again = [(i, step.boxes[i], place) for step in looked[4:] for i, place in enumerate(step.memory)]
    assert any(place >= 0 for _, _, place in again)
    assert all((i, box) in seen for i, box, place in again if place >= 0)
