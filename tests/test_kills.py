"""Runs that are killed at random moments continue and lose nothing: `python -m benchmarks.kills`, but shorter."""

from typing import Any

import pytest

from benchmarks.kills import Bench, row, summary

KILLS = (4, 3, 3)  # of the runs, by their seeds
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(bench: Bench) -> Rows:
    return [row(seed, bench.trial(seed, kills)) for seed, kills in enumerate(KILLS)]


def test_whatever_moment_a_run_is_killed_at_nothing_is_half_written(found: Rows) -> None:
    made = summary(found)
    assert made["wrong"] == []
    assert 5 <= made["kills"] <= sum(KILLS)  # where the machine is busy with others, one may come after the end
    assert len(made["stages"]) > 2 and {"none", "earlier"} <= set(made["artifact_after_a_kill"])


def test_a_killed_run_completes_with_the_bytes_of_an_undisturbed_one(found: Rows) -> None:
    last = [each["starts"][-1] for each in found]
    assert [(start["stage"], start["artifact"]) for start in last] == [(None, "new")] * len(KILLS)


def test_what_was_finished_before_a_kill_is_found_and_not_made_again(found: Rows) -> None:
    made = summary(found)
    assert made["results_made_again"] == 0 and made["panels_made_again"] == 0
    assert made["results_found"] > made["panels_found"] > 0
