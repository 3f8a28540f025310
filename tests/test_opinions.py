"""Opinions of frozen observers, compiled: the same numbers as without, one graph for panels of a size."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_distill import recipe

from dd_tasks.committee import Observer
from dd_tasks.distill import distill, shares
from dd_tasks.opinions import Panellist, pays_off
from dd_tasks.recipe import Ballot
from dd_tasks.schedule import Phase, RandomCrops
from dd_tasks.terms import BatchNormMatching, CrossEntropy, PatchStatistics, SmoothedStatistics
from dd_tasks.voters import RoundRobin

TERMS = (CrossEntropy(), SmoothedStatistics(), BatchNormMatching(), PatchStatistics(0.2))


def pooling() -> Observer:
    """With BatchNorm and max pooling."""
    return tiny.observer(0, "thin_vgg_w4")


def opinions(observer: Observer, compiled: int) -> list[tuple[torch.Tensor, ...]]:
    """Of three steps of one panel: loss, slope, hardness."""
    studio = tiny.studio(observer)
    panellist = Panellist(TERMS, tuple(term.convene(studio) for term in TERMS), True, compiled)
    found = []
    for step in range(3):
        (one,) = panellist.opinions(observer, tiny.pixels(4, step), tiny.labels(4))
        assert one.hardness_V is not None
        found.append((one.loss, one.slope_VCSS, one.hardness_V))
    return found


def test_compiled_opinions_are_those_of_the_plain_pass_with_the_averages_of_the_steps_before():
    observer = pooling()
    plain, compiled = opinions(observer, 0), opinions(observer, 4)
    assert len(observer.graphs) == 1
    for one, other in zip(plain, compiled, strict=True):
        for before, after in zip(one, other, strict=True):
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
    assert plain[1][0] != plain[2][0]


def test_panels_of_one_size_share_a_graph():
    studio = replace(tiny.studio(tiny.observer()), compiled=True)
    short = recipe(Phase(3, RandomCrops()), ballots=(Ballot(RoundRobin(), TERMS[:2]),))
    for images in (4, 4, 3):
        distill(short, tiny.canvas(images), studio)
    (graphs,) = (observer.graphs for observer in studio.observers)  # type: ignore[attr-defined]
    assert [shape[0] for _, _, shape, *_ in graphs] == [4, 3]


def test_opinions_of_two_batches_are_also_compiled():
    observer, studio, shares_BV, terms = tiny.observer(), tiny.studio(), shares(torch.arange(4), 2, 4), TERMS[:2]
    found = []
    for size in (0, 4):
        panellist = Panellist(terms, tuple(term.convene(studio) for term in terms), True, size)
        made = [next(panellist.opinions(observer, tiny.pixels(4, i), tiny.labels(4), shares_BV)) for i in range(2)]
        found.append(made[-1])
    assert len(observer.graphs) == 1
    for name in ("loss", "slope_VCSS", "hardness_V"):
        torch.testing.assert_close(*(getattr(one, name) for one in found), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "side", "worth"), [(20_000, 32, False), (100_000, 32, True), (1_000, 224, False), (2_000, 224, True)]
)
def test_long_runs_alone_are_compiled(images, side, worth):
    assert pays_off(images, side, tiny.CPU) == worth
