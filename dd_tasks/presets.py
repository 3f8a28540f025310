"""The published methods, as functions returning a Recipe. A preset's docstring names its paper and where it departs."""

from collections.abc import Callable, Mapping

from dd_tasks.errors import unknown
from dd_tasks.initialise import WholeImages
from dd_tasks.label import Relabel
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.schedule import Adam, Phase, RandomCrops, Revisit, Schedule
from dd_tasks.terms import CrossEntropy, SmoothedStatistics
from dd_tasks.voters import RoundRobin


def e2d(*, side: int) -> Recipe:
    """E2D: exploration, then exploitation of the hard crops, from whole real images.

    Paper: exploration-exploitation distillation (methods section 5); statistics and labels of EDC (section 4).
    200 steps: 140 of exploration, 60 of exploitation; threshold .5; Adam .05; observers in turn; mean logits of the
    committee as labels. Statistics weigh .01 up to 64 px, .1 above, as EDC sets them.
    Departs: images never start from the same real one twice; the average of the statistics starts at the first step's
    value, not at zero, and does not leak from one panel to the next; EDC's patch statistics are left out. Up to 64 px
    the pixels' rate is doubled and labelled crops begin at a quarter of the area: each measured better on training
    images of CIFAR-10 that were held out.
    """
    small = side <= 64
    return Recipe(
        initialiser=WholeImages(),
        ballots=(Ballot(RoundRobin(), (CrossEntropy(), SmoothedStatistics(weight=0.01 if small else 0.1))),),
        schedule=Schedule(
            (Phase(140, RandomCrops()), Phase(60, Revisit())), Adam(rate=0.1 if small else 0.05), memory=140
        ),
        labeller=Relabel(scale=(0.25, 1.0) if small else (0.5, 1.0)),
    )


PRESETS: Mapping[str, Callable[..., Recipe]] = {"e2d": e2d}


def preset(name: str, *, side: int) -> Recipe:
    """The recipe of a preset for images of this side. InputError for an unknown name."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name](side=side)
