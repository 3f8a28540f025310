"""Runs that are killed at random moments continue, and lose nothing: what `python -m benchmarks.kills` does, shorter."""


import pytest

from benchmarks.kills import LAST, Bench, Trial, summary

KILLS = (4, 3, 3)  # of the runs, by their seeds


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    bench = Bench(tmp_path_factory.mktemp("kills"))
    return [bench.trial(seed, kills) for seed, kills in enumerate(KILLS)]


def test_whatever_moment_a_run_is_killed_at_nothing_is_half_written(found: list[Trial]) -> None:
    made = summary(found)
    assert made["wrong"] == []
    assert 5 <= made["kills"] <= sum(KILLS)  # on a machine that is busy elsewhere one may come too late
    assert len(made["stages"]) > 2 and set(made["artifact_after_a_kill"]) <= {"none", "earlier", "new"}
    assert {"none", "earlier"} <= set(made["artifact_after_a_kill"])


def test_a_killed_run_completes_with_the_bytes_of_an_undisturbed_one(found: list[Trial]) -> None:
    assert [trial[-1].artifact for trial in found] == ["new"] * len(KILLS)
    assert [trial[-1].stage for trial in found] == [None] * len(KILLS)


def test_what_was_finished_before_a_kill_is_found_and_not_made_again(found: list[Trial]) -> None:
    made = summary(found)
    assert made["results_made_again"] == 0 and made["panels_made_again"] == 0
    assert made["panels_found"] and made["results_found"] >= sum(trial[0].stage != LAST for trial in found)
