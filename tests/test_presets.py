"""The published methods, part by part."""

import pytest

from dd_tasks.errors import InputError
from dd_tasks.initialise import WholeImages
from dd_tasks.label import Relabel
from dd_tasks.presets import PRESETS, e2d, preset
from dd_tasks.recipe import Ballot
from dd_tasks.schedule import Adam, Phase, RandomCrops, Revisit
from dd_tasks.terms import CrossEntropy, SmoothedStatistics
from dd_tasks.voters import RoundRobin


@pytest.mark.parametrize(
    ("side", "weight", "rate", "least"),
    [(32, 0.01, 0.1, 0.25), (64, 0.01, 0.1, 0.25), (65, 0.1, 0.05, 0.5), (224, 0.1, 0.05, 0.5)],
)
def test_e2d_is_these_five_parts(side, weight, rate, least):
    recipe = e2d(side=side)
    assert recipe.initialiser == WholeImages(flip=True)
    assert recipe.ballots == (
        Ballot(RoundRobin(), (CrossEntropy(1.0), SmoothedStatistics(weight, momentum=0.8, first_layer=10.0))),
    )
    assert recipe.schedule.phases == (
        Phase(140, RandomCrops(scale=(0.5, 1.0), threshold=0.5)),
        Phase(60, Revisit(scale=(0.5, 1.0), threshold=0.5)),
    )
    assert recipe.schedule.optimiser == Adam(rate=rate, betas=(0.5, 0.9))
    assert recipe.labeller == Relabel(epochs=300, scale=(least, 1.0), mix=True, batch_statistics=None)


def test_e2d_remembers_every_explored_crop():
    schedule = e2d(side=32).schedule
    assert schedule.memory == schedule.phases[0].steps and schedule.steps == 200


def test_a_preset_is_found_by_name():
    assert preset("e2d", side=64) == e2d(side=64) != e2d(side=224)


def test_an_unknown_preset_names_the_choices():
    with pytest.raises(InputError) as refused:
        preset("nope", side=32)
    assert str(refused.value) == f"unknown preset 'nope' (choices: {', '.join(sorted(PRESETS))})"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_where_it_comes_from(name):
    doc = PRESETS[name].__doc__ or ""
    assert "Paper:" in doc and "Departs:" in doc
