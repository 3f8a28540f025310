"""The published methods, as functions returning a Recipe. A preset's docstring names its paper and where it departs."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from dd_tasks.errors import InputError, unknown
from dd_tasks.guides import POOL, TINY_POOL, Guides
from dd_tasks.initialise import Collage, Noise, Representatives, WholeImages
from dd_tasks.label import OneHot, Relabel
from dd_tasks.learners import Learners
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.schedule import Adam, Phase, RandomCrops, Revisit, Rolled, Schedule, Sgd, SharedCrop, Tiles
from dd_tasks.terms import (
    BatchNormMatching,
    ContrastivePull,
    CrossEntropy,
    FeatureMean,
    GradientMatching,
    PatchStatistics,
    SmoothedStatistics,
)
from dd_tasks.voters import Everyone, Lottery, One, RoundRobin

SMALL_SIDE = 64  # up to here the papers have settings of their own
TINY_SIDE = 16  # up to here the slowest methods have ours: minutes on two cores


def sre2l(*, side: int) -> Recipe:
    """SRe2L: noise that one observer recognises, with its BatchNorm statistics.

    Paper: squeeze, recover, relabel (methods section 1). 1000 steps (4000 above 64 px); one crop of .08..1 a step for
    the whole panel, then a roll of up to 4 pixels (32 above 64 px); BatchNorm gap .01; Adam .25 (.1 above 64 px);
    labels of the same observer.
    Departs: students train as everywhere here, by MSE on logits instead of KL at temperature 20.
    """
    steps, rate = (1000, 0.25) if side <= SMALL_SIDE else (4000, 0.1)
    return Recipe(
        initialiser=Noise(),
        ballots=(Ballot(One(), (CrossEntropy(), BatchNormMatching(0.01))),),
        schedule=Schedule((Phase(steps, _shared_crop(side)),), Adam(rate=rate)),
        labeller=Relabel(voters=One(), scale=(0.08, 1.0)),
    )


def _shared_crop(side: int) -> SharedCrop:
    return SharedCrop((0.08, 1.0), jitter=4 if side <= SMALL_SIDE else 32)


def cda(*, side: int, milestone: float = 1.0) -> Recipe:
    """CDA: SRe2L with crops that begin with whole images and grow harder.

    Paper: curriculum data augmentation (methods section 2). The smallest crop falls from 1 to .08 along half a cosine
    over the first `milestone` share of the steps, then stays; `milestone=0` is SRe2L.
    Departs: as sre2l does. InputError for a milestone outside [0, 1].
    """
    if not 0 <= milestone <= 1:
        raise InputError(f"milestone {milestone} is not between 0 and 1")
    parent, crop = sre2l(side=side), _shared_crop(side)
    steps = parent.schedule.steps
    harder = round(milestone * steps)
    phases = Phase(harder, replace(crop, start=1.0)), Phase(steps - harder, crop)
    return replace(parent, schedule=replace(parent.schedule, phases=tuple(p for p in phases if p.steps)))


def cda_21k(*, side: int) -> Recipe:
    """CDA as its authors ran it on ImageNet-21K (10,450 classes).

    Paper: as cda. 2000 steps; Adam .05 over pixels in [0, 1] that are not normalised, which is .22 of a channel std.
    Departs: as cda does; the first noise has the data's mean and std.
    """
    parent = cda(side=side)
    (phase,) = parent.schedule.phases
    return replace(parent, schedule=Schedule((replace(phase, steps=2000),), Adam(rate=0.22)))


def rded(*, side: int) -> Recipe:
    """RDED: the easiest patches of real images, laid out, never optimised.

    Paper: realistic, diverse and efficient distillation (methods section 3). 300 candidates a class, 5 windows each,
    2 x 2 patches an image, whole images up to 64 px; labels of the one observer that chose them, crops .5..1.
    Departs: students train as everywhere here.
    """
    return Recipe(
        initialiser=Collage(factor=1 if side <= SMALL_SIDE else 2),
        ballots=(),
        schedule=Schedule(),
        labeller=Relabel(voters=One()),
    )


def sre2l_pp(*, side: int) -> Recipe:
    """SRe2L++: SRe2L from real patches of medium difficulty, with batch-specific labels.

    Paper: the baseline of committee voting (methods section 6). 4000 steps, Adam .25; labels with BatchNorm on
    sub-batches of 8.
    Departs: as sre2l does; up to 32 px 1000 steps, as many as SRe2L's, up to 16 px 400.
    """
    steps = 400 if side <= TINY_SIDE else 1000 if side <= 32 else 4000
    return replace(
        sre2l(side=side),
        initialiser=Collage(factor=1 if side <= SMALL_SIDE else 2, difficulty="medium"),
        schedule=Schedule((Phase(steps, _shared_crop(side)),), Adam(rate=0.25)),
        labeller=Relabel(One(), scale=(0.08, 1.0), batch_statistics=8),
    )


def cv_dd(*, side: int) -> Recipe:
    """CV-DD: SRe2L++ judged by two observers a panel, who vote by their measured priors.

    Paper: committee voting (methods section 6). Pairs drawn by panel, weights softmax(prior / 5) in recovery and
    softmax(prior / 10) over the whole committee in labels.
    Departs: as sre2l does; priors are measured on held-out training images, the original's on test images.
    """
    parent = sre2l_pp(side=side)
    (ballot,) = parent.ballots
    return replace(
        parent,
        ballots=(replace(ballot, voters=Lottery(drawn=2, temperature=5.0)),),
        labeller=Relabel(Everyone(temperature=10.0), scale=(0.08, 1.0), batch_statistics=8),
    )


def edc(*, side: int) -> Recipe:
    """EDC: real images that observers in turn pull towards the statistics of their classes.

    Paper: elucidating the design space of distillation (methods section 4). 1000 steps (75 up to 32 px), crops of
    .5..1, Adam .05; statistics weigh .01 up to 64 px, .1 above; mean logits of the committee as labels. Begins from
    whole images up to 64 px, from RDED's above.
    Departs: the average of the statistics starts at the first step's value, not at zero, and does not leak from one
    panel to the next; up to 64 px the statistics of patches are left out.
    """
    small = side <= SMALL_SIDE
    terms = (CrossEntropy(), SmoothedStatistics(weight=0.01 if small else 0.1))
    return Recipe(
        initialiser=WholeImages() if small else Collage(factor=2),
        ballots=(Ballot(RoundRobin(), terms if small else (*terms, PatchStatistics())),),
        schedule=Schedule((Phase(75 if side <= 32 else 1000, RandomCrops(threshold=None)),), Adam(rate=0.05)),
        labeller=Relabel(),
    )


def e2d(*, side: int) -> Recipe:
    """E2D: exploration, then exploitation of the hard crops, from whole real images.

    Paper: exploration-exploitation distillation (methods section 5): EDC from whole images, in 200 steps: 140 of
    exploration, 60 of exploitation; threshold .5.
    Departs: as edc does; images never start from the same real one twice. Up to 64 px the pixels' rate is doubled and
    labelled crops begin at a quarter of the area: each measured better on training images of CIFAR-10 that were held
    out. On ImageNet-1K the whole committee labels, four of its observers in the original.
    """
    parent, small = edc(side=side), side <= SMALL_SIDE
    return replace(
        parent,
        initialiser=WholeImages(),
        schedule=Schedule(
            (Phase(140, RandomCrops()), Phase(60, Revisit())), Adam(rate=0.1 if small else 0.05), memory=140
        ),
        labeller=Relabel(scale=(0.25, 1.0) if small else (0.5, 1.0)),
    )


def e2d_21k(*, side: int) -> Recipe:
    """E2D as its authors ran it on ImageNet-21K (10,450 classes): one observer, its BatchNorm statistics, longer.

    Paper: as e2d. 280 steps of exploration, 120 of exploitation, threshold .3; crops of .5..1 rolled as in sre2l;
    BatchNorm gap .01; Adam .005 over pixels in [0, 1], which is .022 of a channel std; labels of the same observer.
    Departs: labels are stored, not made while a student trains: 650 GB at 10 images a class, in proportion less with
    fewer `labeller.epochs`; images never start from the same real one twice; students train as everywhere here.
    """
    jitter = _shared_crop(side).jitter
    explore, exploit = RandomCrops(threshold=0.3), Revisit(threshold=0.3)
    phases = Phase(280, Rolled(explore, jitter)), Phase(120, Rolled(exploit, jitter))
    return replace(
        e2d(side=side),
        ballots=sre2l(side=side).ballots,
        schedule=Schedule(phases, Adam(rate=0.022), memory=280),
        labeller=Relabel(voters=One()),
    )


def dream_plus(*, side: int) -> Recipe:
    """DREAM+: tiles that leave the same features and gradients in networks in training as representative real images.

    Paper: representative, bidirectional matching (methods section 7). 2 x 2 tiles an image, begun from k-means
    representatives; networks drawn anew every 100 steps; SGD with momentum .5 on the pixels; class labels.
    Departs: representatives by the committee's embeddings; a student sees the views of every labeller here (crop, flip,
    CutMix), not DSA's; up to 16 px 40 steps and networks of a quarter of the width.
    """
    steps, learners = (40, Learners("convnet3_w32")) if side <= TINY_SIDE else (1000, Learners())
    return Recipe(
        initialiser=Representatives(candidates=1000, factor=2),
        ballots=(Ballot(learners, (FeatureMean(), GradientMatching())),),
        schedule=Schedule((Phase(steps, Tiles(2)),), Sgd(rate=0.1, momentum=0.5), constant=True),
        labeller=OneHot(tiles=2),
    )


def clom(base: str = "dream_plus", *, side: int, alpha: float = 1000.0, guides: str | None = None) -> Recipe:
    """CLoM: another method, with pre-trained models that pull the images towards their classes.

    Paper: contrastive learning-based guidance by a pool of models (methods section 8). The base's recipe and
    `alpha` times the contrastive term, of one guide a step, drawn from the pool. On the command line `clom(e2d)` is E2D
    with these guides, `clom(e2d, POOL)` with others.
    Departs: guides look at the views that the base looks at; up to 16 px they are fewer and smaller.
    """
    parent, guides = preset(base, side=side), guides or (TINY_POOL if side <= TINY_SIDE else POOL)
    return replace(parent, ballots=(*parent.ballots, Ballot(Guides(guides), (ContrastivePull(alpha),))))


def retort(*, side: int) -> Recipe:
    """Retort: E2D from representative images, at E2D's image-updates.

    E2D (methods section 5) begun from the whole images nearest the k-means centres of 1000 candidates a class in the
    committee's embedding (section 7). With one image a class random ones are the better start (table in the README).
    Paper: none. What was tried is `benchmarks.variants`, on training images of CIFAR-10 that were held out: nothing
    else was shown to be better, and what was not is left out.
    Departs: as e2d does.
    """
    return replace(e2d(side=side), initialiser=Representatives(candidates=1000))


PRESETS: Mapping[str, Callable[..., Recipe]] = {
    method.__name__: method for method in (sre2l, sre2l_pp, cda, rded, edc, e2d, cv_dd, dream_plus, clom, retort)
}

LARGE: Mapping[str, Callable[..., Recipe]] = {method.__name__: method for method in (cda_21k, e2d_21k)}  # ImageNet-21K


def preset(name: str, *, side: int) -> Recipe:
    """The recipe of a preset, of `clom(BASE)`, `clom(BASE, GUIDES)` or MODULE:FUNCTION, for images of this side.
    InputError where there is none."""
    if match := re.fullmatch(r"clom\(([^,]+)(?:, *(.+))?\)", name):
        return clom(match[1], side=side, guides=match[2])
    if ":" in name:
        return _own(name, side)
    known = {**PRESETS, **LARGE}
    if name not in known:
        raise unknown("preset", name, known)
    return known[name](side=side)


def _own(name: str, side: int) -> Recipe:
    """What a user's own function, importable from the working directory, returns."""
    module, _, function = name.partition(":")
    sys.path.insert(0, here := str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), function)
    except Exception as error:  # a module may raise what it likes
        raise InputError(f"preset {name!r}: {error or type(error).__name__}") from None
    finally:
        sys.path.remove(here)
    try:
        inspect.signature(make).bind(side=side)
    except (TypeError, ValueError):
        raise InputError(f"preset {name!r}: expected a function that takes side=PIXELS alone") from None
    made = make(side=side)
    if not isinstance(made, Recipe):
        raise InputError(f"preset {name!r} returned {type(made).__name__}, not a Recipe")
    return made
