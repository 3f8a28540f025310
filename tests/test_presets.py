"""The published methods, part by part, and each of them on real digits."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from test_guides import network
from test_learners import pool

from dd_tasks.distill import distill
from dd_tasks.errors import InputError
from dd_tasks.guides import POOL, TINY_POOL
from dd_tasks.initialise import Collage, Noise, Representatives, WholeImages
from dd_tasks.label import OneHot, Relabel
from dd_tasks.learners import Learners
from dd_tasks.presets import (
    LARGE,
    PRESETS,
    cda,
    clom,
    cv_dd,
    dream_plus,
    e2d,
    edc,
    preset,
    rded,
    retort,
    sre2l,
    sre2l_pp,
)
from dd_tasks.recipe import Ballot, Recipe, identity
from dd_tasks.schedule import Adam, Phase, RandomCrops, Revisit, Schedule, Sgd, SharedCrop, Tiles
from dd_tasks.terms import (
    BatchNormMatching,
    CrossEntropy,
    FeatureMean,
    GradientMatching,
    PatchStatistics,
    SmoothedStatistics,
)
from dd_tasks.voters import Everyone, Lottery, One, RoundRobin

GAP = (CrossEntropy(1.0), BatchNormMatching(0.01, first_layer=10.0))


@pytest.mark.parametrize(
    ("side", "steps", "jitter", "rate"),
    [(32, 1000, 4, 0.25), (64, 1000, 4, 0.25), (65, 4000, 32, 0.1), (224, 4000, 32, 0.1)],
)
def test_sre2l_is_these_five_parts(side, steps, jitter, rate):
    phase = Phase(steps, SharedCrop(scale=(0.08, 1.0), jitter=jitter))
    labeller = Relabel(voters=One(), epochs=300, scale=(0.08, 1.0), mix=True, batch_statistics=None)
    schedule = Schedule((phase,), Adam(rate=rate, betas=(0.5, 0.9), eps=1e-8))
    assert sre2l(side=side) == Recipe(Noise(), (Ballot(One(), GAP),), schedule, labeller)


@pytest.mark.parametrize("side", [32, 224])
def test_cda_without_a_milestone_is_sre2l(side):
    assert cda(side=side, milestone=0) == sre2l(side=side)


def test_cda_is_sre2l_with_crops_that_shrink_up_to_the_milestone():
    parent, half = sre2l(side=32), cda(side=32, milestone=0.5)
    plain = parent.schedule.phases[0].viewer
    assert half.schedule.phases == (Phase(500, replace(plain, start=1.0)), Phase(500, plain))
    assert cda(side=32).schedule.phases == (Phase(1000, replace(plain, start=1.0)),)
    assert replace(half, schedule=parent.schedule) == parent


@pytest.mark.parametrize("milestone", [-0.1, 1.1, float("nan")])
def test_a_milestone_is_a_share(milestone):
    with pytest.raises(InputError, match="is not between 0 and 1"):
        cda(side=32, milestone=milestone)


@pytest.mark.parametrize(("side", "factor"), [(32, 1), (64, 1), (65, 2), (224, 2)])
def test_rded_is_patches_and_labels(side, factor):
    collage = Collage(factor, candidates=300, crops=5, difficulty="easy", judges=One())
    assert rded(side=side) == Recipe(collage, (), Schedule(), Relabel(voters=One(), scale=(0.5, 1.0)))


@pytest.mark.parametrize("side", [16, 32, 224])
def test_committee_voting_is_sre2l_with_other_images_labels_and_votes(side):
    parent, child, grandchild = sre2l(side=side), sre2l_pp(side=side), cv_dd(side=side)
    assert child.initialiser == Collage(factor=2 if side == 224 else 1, difficulty="medium")
    assert child.ballots == parent.ballots and child.schedule.optimiser == Adam(rate=0.25)
    assert [p.steps for p in child.schedule.phases] == [{16: 400, 32: 1000, 224: 4000}[side]]
    assert child.schedule.phases[0].viewer == parent.schedule.phases[0].viewer
    assert child.labeller == replace(parent.labeller, batch_statistics=8)
    assert grandchild.ballots == (Ballot(Lottery(2, temperature=5.0), GAP),)
    assert grandchild.labeller == replace(child.labeller, voters=Everyone(temperature=10.0))
    assert (grandchild.initialiser, grandchild.schedule) == (child.initialiser, child.schedule)


@pytest.mark.parametrize(
    ("side", "weight", "steps", "begin"),
    [(32, 0.01, 75, WholeImages()), (64, 0.01, 1000, WholeImages()), (224, 0.1, 1000, Collage(factor=2))],
)
def test_edc_is_these_five_parts(side, weight, steps, begin):
    recipe = edc(side=side)
    assert recipe.initialiser == begin
    terms = (CrossEntropy(1.0), SmoothedStatistics(weight, momentum=0.8, first_layer=10.0))
    patches = (PatchStatistics(weight, momentum=0.8, first_layer=10.0),) if side > 64 else ()
    assert recipe.ballots == (Ballot(RoundRobin(), (*terms, *patches)),)
    phase = Phase(steps, RandomCrops(scale=(0.5, 1.0), threshold=None))
    assert recipe.schedule == Schedule((phase,), Adam(rate=0.05, betas=(0.5, 0.9)))
    assert recipe.labeller == Relabel(voters=Everyone(), epochs=300, scale=(0.5, 1.0), mix=True, batch_statistics=None)


@pytest.mark.parametrize(
    ("side", "rate", "least"), [(32, 0.1, 0.25), (64, 0.1, 0.25), (65, 0.05, 0.5), (224, 0.05, 0.5)]
)
def test_e2d_is_edc_from_whole_images_in_two_phases(side, rate, least):
    parent, recipe = edc(side=side), e2d(side=side)
    assert recipe.initialiser == WholeImages(flip=True) and recipe.ballots == parent.ballots
    assert recipe.schedule.phases == (
        Phase(140, RandomCrops(scale=(0.5, 1.0), threshold=0.5)),
        Phase(60, Revisit(scale=(0.5, 1.0), threshold=0.5)),
    )
    assert recipe.schedule.optimiser == Adam(rate=rate, betas=(0.5, 0.9))
    assert recipe.labeller == replace(parent.labeller, scale=(least, 1.0))


@pytest.mark.parametrize(
    ("make", "side", "digest"),
    [
        (edc, 32, "4e34cd5c7d9fa08c70bb4a136f163078a15a319110aa55a3f32e646496fc7cff"),
        (edc, 64, "2e3df1ab7d5f9204d62c6655d88b33d90b6459c363750d262f00805a0edb2aeb"),
        (e2d, 32, "48abf519b8938434db9ad002d017a11792e18e93b37fb5087f03aeab4336c303"),
        (e2d, 64, "48abf519b8938434db9ad002d017a11792e18e93b37fb5087f03aeab4336c303"),
    ],
)
def test_what_a_store_holds_of_small_sides_is_found_since_patches_are_matched_above(make, side, digest):
    assert identity("recipe", 1, recipe=make(side=side)) == digest and not make(side=side).needs_patches
    assert make(side=65).needs_patches


def test_e2d_remembers_every_explored_crop():
    schedule = e2d(side=32).schedule
    assert schedule.memory == schedule.phases[0].steps and schedule.steps == 200


@pytest.mark.parametrize("side", [32, 224])
def test_retort_is_e2d_from_representatives(side):
    assert retort(side=side) == replace(e2d(side=side), initialiser=Representatives(candidates=1000))


def test_the_presets_are_these():
    assert list(PRESETS) == [
        "sre2l", "sre2l_pp", "cda", "rded", "edc", "e2d", "cv_dd", "dream_plus", "clom", "retort"
    ]  # fmt: skip


@pytest.mark.parametrize("side", [32, 224])
def test_dream_plus_matches_tiles_with_representative_real_images(side):
    recipe = dream_plus(side=side)
    assert recipe.initialiser == Representatives(candidates=1000, factor=2)
    learners = Learners("convnet3", inner=100, samples=2000, batch=128, choose="representative", interval=10)
    assert recipe.ballots == (Ballot(learners, (FeatureMean(), GradientMatching())),)
    assert recipe.schedule == Schedule((Phase(1000, Tiles(2)),), Sgd(rate=0.1, momentum=0.5), constant=True)
    assert recipe.labeller == OneHot(epochs=300, tiles=2)


def test_tiny_images_are_matched_in_minutes_by_a_smaller_network_and_guides():
    parent, recipe = dream_plus(side=32), dream_plus(side=16)
    assert recipe.ballots[0].voters == replace(parent.ballots[0].voters, architecture="convnet3_w32")
    assert recipe.schedule == replace(parent.schedule, phases=(Phase(40, Tiles(2)),))
    assert replace(recipe, ballots=parent.ballots, schedule=parent.schedule) == parent
    assert [clom(side=side).ballots[-1].voters.pool for side in (16, 17)] == [TINY_POOL, POOL]


def test_a_preset_is_found_by_name():
    assert preset("e2d", side=64) == e2d(side=64) != e2d(side=224)


def test_an_unknown_preset_names_the_choices():
    with pytest.raises(InputError) as refused:
        preset("nope", side=32)
    assert str(refused.value) == f"unknown preset 'nope' (choices: {', '.join(sorted(PRESETS | LARGE))})"


@pytest.mark.parametrize("name", PRESETS | LARGE)
def test_every_preset_says_where_it_comes_from(name):
    doc = (PRESETS | LARGE)[name].__doc__ or ""
    assert "Paper:" in doc and "Departs:" in doc


def test_a_method_of_ones_own_is_found_by_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "our_methods.py").write_text(
        "from dataclasses import replace\n"
        "from dd_tasks.initialise import Representatives\n"
        "from dd_tasks.presets import e2d\n"
        "def chosen(*, side):\n"
        "    return replace(e2d(side=side), initialiser=Representatives())\n"
        "def wrong(*, side):\n"
        "    return side\n"
    )
    monkeypatch.chdir(tmp_path)
    assert preset("our_methods:chosen", side=32) == replace(e2d(side=32), initialiser=Representatives())
    for name, reason in (
        ("our_methods:wrong", "returned int, not a Recipe"),
        ("our_methods:missing", "has no attribute 'missing'"),
        ("no_such_module:chosen", "No module named 'no_such_module'"),
        (":chosen", "Empty module name"),
        ("os:system", "expected a function that takes side=PIXELS alone"),
        ("os:sep", "expected a function that takes side=PIXELS alone"),
        ("..x:y", "relative import"),
    ):
        with pytest.raises(InputError, match=rf"^preset '{name}'.*{reason}"):
            preset(name, side=32)


def test_the_readmes_own_method_is_short_and_distils(tmp_path, monkeypatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "def with_margin" in code)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    (tmp_path / "readme_methods.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    recipe, parent = preset("readme_methods:with_margin", side=tiny.SIDE), e2d(side=tiny.SIDE)
    made, plain = (distill(shortened(r, 20), tiny.canvas(), tiny.studio()) for r in (recipe, parent))
    assert made.loss_T.isfinite().all() and not torch.equal(made.canvas.images_NCHW, plain.canvas.images_NCHW)


def shortened(recipe: Recipe, steps: int) -> Recipe:
    """At most so many steps a phase, two epochs of labels, small networks that stay as they are."""
    phases = tuple(replace(phase, steps=min(phase.steps, steps)) for phase in recipe.schedule.phases)
    small = {"architecture": "convnet2_w8", "samples": 0, "batch": 10, "among": 15}
    ballots = tuple(
        replace(b, voters=replace(b.voters, **small) if isinstance(b.voters, Learners) else b.voters)
        for b in recipe.ballots
    )
    schedule = replace(recipe.schedule, phases=phases)
    return replace(recipe, ballots=ballots, schedule=schedule, labeller=replace(recipe.labeller, epochs=2))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_distils_digits(name):
    """Three classes and steps: finite, in range, loss falls, updates are counted, the seed decides."""
    observers = tuple(replace(o, prior=0.5 + i / 100) for i, o in enumerate(tiny.committee()))
    recipe, candidates = shortened(preset(name, side=tiny.SIDE), 25), tiny.digit_candidates(20, tiny.CLASSES)
    runs = []
    for seed in (1, 1, 2):
        studio = replace(tiny.studio(*observers, seed=seed), real=pool(), guides={TINY_POOL: (network(0), network(1))})
        first = recipe.initialiser.choose(candidates, 2, tiny.SIDE, studio)
        made = distill(recipe, first, studio)
        runs.append((first, made, recipe.labeller.label(made.canvas, studio)))
    (first, made, views), (_, again, views_again), (_, other, views_other) = runs
    seats = sum(ballot.voters.at_once(len(observers)) for ballot in recipe.ballots)
    tiles = 4 if name in ("dream_plus", "clom") else 1
    assert made.image_updates == len(made.loss_T) * len(first) * tiles * seats
    assert made.canvas.targets_N.tolist() == [0, 1, 2, 0, 1, 2] and made.canvas.sources == first.sources
    assert views.logits_VK.isfinite().all() and len(views) == 12
    assert torch.equal(made.canvas.images_NCHW, again.canvas.images_NCHW)
    assert torch.equal(views.logits_VK, views_again.logits_VK)
    assert not torch.equal(views.logits_VK, views_other.logits_VK)
    if recipe.schedule.steps:
        assert made.loss_T.isfinite().all() and made.loss_T[-5:].mean() < made.loss_T[:5].mean()
        assert not torch.equal(made.canvas.images_NCHW, first.images_NCHW)
        assert not torch.equal(made.canvas.images_NCHW, other.canvas.images_NCHW)
    else:
        assert torch.equal(made.canvas.images_NCHW, first.images_NCHW)
