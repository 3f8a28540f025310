"""Rates from what is kept of panels."""

import pytest

from dd_tasks.throughput import busy, metrics
from schemas.manifest import Cost


def panel(began: float | None, seconds: float, updates: int = 100) -> dict[str, float]:
    return {"seconds": seconds, "image_updates": updates} | ({} if began is None else {"began": began})


@pytest.mark.parametrize(
    ("spells", "seconds"),
    [
        ([], 0),
        ([(5, 2)], 2),
        ([(0, 2), (2, 3)], 5),  # one after the other
        ([(0, 2), (0, 2)], 2),  # two workers
        ([(3, 4), (0, 4)], 7),  # overlapping, in any order
        ([(0, 10), (2, 3), (9, 2)], 11),  # one within another
        ([(0, 1), (1000, 1)], 2),  # a run that was stopped for a while
        ([(None, 2), (None, 3), (0, 1)], 6),  # those that an older store does not date
    ],
)
def test_time_in_which_any_panel_was_under_way(spells: list[tuple[float | None, float]], seconds: float) -> None:
    assert busy(panel(*spell) for spell in spells) == pytest.approx(seconds)


def test_two_workers_recover_twice_as_fast_and_the_seconds_of_all_stages_add_up() -> None:
    cost = Cost(image_updates=300, seconds={"recover": 4, "students": 6}, peak_memory_bytes=0, machine="box")
    one, two = (metrics([panel(0, 2), panel(began, 2)], cost, {"recover": 7}) for began in (2, 0))
    assert (one.panels, one.panels_per_second, one.image_updates_per_second) == (2, 0.5, 50)
    assert (two.panels_per_second, two.image_updates_per_second) == (1, 100)
    assert one.image_updates_per_second_overall == two.image_updates_per_second_overall == 30
    assert one.store_bytes == {"recover": 7}


def test_panels_of_no_time_have_a_rate() -> None:
    cost = Cost(image_updates=0, seconds={}, peak_memory_bytes=0, machine="box")
    assert metrics([panel(0, 0, 0)], cost, {}).panels_per_second == 1000
