"""Who is seated: the whole committee, or one observer in turn."""

import pytest

from dd_tasks.schedule import RandomCrops
from dd_tasks.types import Tick
from dd_tasks.voters import Everyone, RoundRobin


def tick(step: int) -> Tick:
    return Tick(step, RandomCrops(), 0.1)


@pytest.mark.parametrize(
    ("voters", "step", "committee", "seats"),
    [
        (Everyone(), 0, 1, ((0, 1.0),)),
        (Everyone(), 7, 2, ((0, 0.5), (1, 0.5))),
        (Everyone(), 1, 4, ((0, 0.25), (1, 0.25), (2, 0.25), (3, 0.25))),
        (RoundRobin(), 0, 3, ((0, 1.0),)),
        (RoundRobin(), 2, 3, ((2, 1.0),)),
        (RoundRobin(), 3, 3, ((0, 1.0),)),
        (RoundRobin(), 5, 1, ((0, 1.0),)),
    ],
)
def test_who_is_seated(voters, step, committee, seats):
    assert voters.seated(tick(step), committee) == seats


@pytest.mark.parametrize("voters", [Everyone(), RoundRobin()])
@pytest.mark.parametrize("committee", [1, 3, 7])
def test_the_weights_of_a_step_sum_to_one_and_all_sit_equally_over_a_round(voters, committee):
    rounds = [voters.seated(tick(step), committee) for step in range(committee)]
    assert all(sum(weight for _, weight in seats) == pytest.approx(1) for seats in rounds)
    shares = [sum(weight for seats in rounds for seat, weight in seats if seat == i) for i in range(committee)]
    assert shares == pytest.approx([1.0] * committee)
