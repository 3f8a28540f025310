"""Runs that are killed at random moments continue and lose nothing: `python -m benchmarks.kills`, but shorter."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import DONE, Bench, checksums, half_written, row, summary, whole

pytestmark = pytest.mark.long

# Of the runs, by their seeds: the stages in which a kill comes, or any. Where a machine is slower than while the run's
# life was taken, more of them come in the stages before; where it is faster, one may come after the run's end.
KILLS = (("panel", "score", None, None), ("observer", "panel", None), ("panel", "canvas", None))
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(bench: Bench) -> Rows:
    return [row(seed, bench.trial(seed, kills)) for seed, kills in enumerate(KILLS)]


def test_whatever_moment_a_run_is_killed_at_nothing_is_half_written(found: Rows) -> None:
    made = summary(found)
    assert made["wrong"] == []
    assert 5 <= made["kills"] <= sum(map(len, KILLS)) and len(made["stages"]) > 2
    assert {"none", "earlier"} <= set(made["artifact_after_a_kill"])


def test_a_killed_run_completes_with_the_bytes_of_an_undisturbed_one(found: Rows) -> None:
    last = [each["starts"][-1] for each in found]
    assert [(start["stage"], start["artifact"]) for start in last] == [(None, "new")] * len(KILLS)


def test_what_was_finished_before_a_kill_is_found_and_not_made_again(found: Rows) -> None:
    made = summary(found)
    assert made["results_made_again"] == 0 and made["panels_made_again"] == 0
    assert made["results_found"] > made["panels_found"] > 0


@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGTERM, "observer/"), (signal.SIGINT, "panel/"), (signal.SIGTERM, "score/")]
)
def test_an_interrupted_run_ends_cleanly_and_continues(
    bench: Bench, tmp_path: Path, number: signal.Signals, after: str
) -> None:
    run, log = bench.begin(tmp_path), tmp_path / "log"
    while run.is_alive() and after not in log.read_text():
        time.sleep(0.001)
    assert run.pid
    os.kill(run.pid, number)
    run.join(30)
    line = f"retort: interrupted by {number.name}; what is finished is kept: the same command continues"
    assert (run.exitcode, log.read_text().splitlines()[-1]) == (130, line)
    assert "Traceback" not in log.read_text() and not (tmp_path / "dataset").exists()
    assert half_written(tmp_path) == set()
    before, wrong = whole(tmp_path / "store")
    assert wrong == [] and any(name.startswith(after) for name in before)
    again = bench.begin(tmp_path)
    again.join(120)
    assert again.exitcode == 0 and checksums(tmp_path / "dataset") == bench.life.files
    assert not before & {name for how, name in DONE.findall(log.read_text()) if not how.startswith("found")}
