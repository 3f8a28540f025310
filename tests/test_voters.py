"""Who is seated, and what each vote weighs."""

from collections import Counter
from dataclasses import replace

import pytest
import tiny
import torch

from dd_tasks.errors import InputError
from dd_tasks.types import Studio
from dd_tasks.voters import Everyone, Judges, Lottery, One, RoundRobin


def indices(judges: Judges) -> tuple[tuple[int, float], ...]:
    """(number of the observer, weight)."""
    return tuple((int(judge.name[1:]), weight) for judge, weight in judges)


def seated(n: int, seed: int = 0, priors: tuple[float | None, ...] = ()) -> Studio:
    """A committee of n, with these priors."""
    observers = [replace(tiny.observer(), name=f"o{i}", prior=p) for i, p in enumerate(priors or (None,) * n)]
    return tiny.studio(*observers, seed=seed)


@pytest.mark.parametrize(
    ("voters", "step", "committee", "seats"),
    [
        (One(), 5, 3, ((0, 1.0),)),
        (One(2), 0, 3, ((2, 1.0),)),
        (Everyone(), 0, 1, ((0, 1.0),)),
        (Everyone(), 7, 2, ((0, 0.5), (1, 0.5))),
        (Everyone(), 1, 4, ((0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25))),
        (RoundRobin(), 0, 3, ((0, 1.0),)),
        (RoundRobin(), 2, 3, ((2, 1.0),)),
        (RoundRobin(), 3, 3, ((0, 1.0),)),
        (RoundRobin(), 5, 1, ((0, 1.0),)),
        (Lottery(), 3, 1, ((0, 1.0),)),
        (Lottery(temperature=None), 3, 2, ((0, 0.5), (1, 0.5))),
    ],
)
def test_who_is_seated(voters, step, committee, seats):
    assert indices(voters.convene(seated(committee))(step)) == seats
    assert voters.at_once(committee) == len(seats)


@pytest.mark.parametrize("voters", [Everyone(), RoundRobin()])
@pytest.mark.parametrize("committee", [1, 3, 7])
def test_the_weights_of_a_step_sum_to_one_and_all_sit_equally_over_a_round(voters, committee):
    seating = voters.convene(seated(committee))
    rounds = [indices(seating(step)) for step in range(committee)]
    assert all(sum(weight for _, weight in seats) == pytest.approx(1) for seats in rounds)
    shares = [sum(weight for seats in rounds for seat, weight in seats if seat == i) for i in range(committee)]
    assert shares == pytest.approx([1.0] * committee)


def test_a_lottery_draws_pairs_evenly_and_keeps_them_for_the_panel():
    pairs = Counter()
    for seed in range(300):
        seating = Lottery(temperature=None).convene(seated(3, seed))
        assert seating(0) == seating(17)
        pairs[tuple(seat for seat, _ in indices(seating(0)))] += 1
    assert set(pairs) == {(0, 1), (0, 2), (1, 2)} and min(pairs.values()) > 70


def test_votes_are_softmax_of_priors_in_percent_over_the_temperature():
    priors = (0.63, 0.653, 0.685)
    odds = [torch.tensor(100 * p / 10, dtype=torch.float64).exp().item() for p in priors]
    expected = tuple((i, pytest.approx(o / sum(odds))) for i, o in enumerate(odds))
    assert indices(Everyone(temperature=10.0).convene(seated(3, priors=priors))(0)) == expected
    for seed in range(5):
        seats = dict(indices(Lottery(temperature=5.0).convene(seated(3, seed, priors))(0)))
        odds = {i: torch.tensor(100 * priors[i] / 5, dtype=torch.float64).exp().item() for i in seats}
        assert seats == {i: pytest.approx(o / sum(odds.values())) for i, o in odds.items()}


@pytest.mark.parametrize("voters", [Everyone(temperature=10.0), Lottery()])
def test_a_missing_prior_is_named_and_a_lone_observer_needs_none(voters):
    assert voters.needs_priors
    with pytest.raises(ValueError, match=r"observers without a measured prior: o1$"):
        voters.convene(seated(2, priors=(0.5, None)))
    assert indices(voters.convene(seated(1))(0)) == ((0, 1.0),)


@pytest.mark.parametrize("voters", [One(), Everyone(), RoundRobin(), Lottery(temperature=None)])
def test_equal_votes_need_no_priors_nor_real_images(voters):
    assert not voters.needs_priors and not voters.needs_real


def test_a_seat_beyond_the_committee_is_refused():
    with pytest.raises(InputError, match=r"seat 3 is not in a committee of 3 \(choices: 0 to 2\)"):
        One(3).at_once(3)
