"""Where a run's seconds went: every moment counts once, and the profile of a run says so of each kind of stage."""

import builtins
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from dd_tasks import seconds
from dd_tasks.seconds import SPENDINGS, Count, Spending, spent, spent_on
from flows import cli, profile
from flows.profile import PROFILE, TRACE, Trace
from schemas.profile import Profile


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in nanoseconds, which passes only as a test says."""
    now = [0]
    monkeypatch.setattr(seconds, "_now", lambda: now[0])
    return now


def whole(count: Count) -> dict[Spending, int]:
    """Seconds that were spent on anything."""
    return {on: int(s) for on, s in count.seconds().items() if s}


def passes(clock: list[int], so_many: int) -> None:
    clock[0] += so_many * 10**9


def test_every_moment_counts_for_the_innermost_section(clock: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count(0)
    monkeypatch.setattr(seconds, "_count", count)
    passes(clock, 5)
    with spent("recover", "panel 0"):
        passes(clock, 1)
        for _ in spent_on(range(3), "decode"):
            passes(clock, 2)
        with spent("store"):
            passes(clock, 4)
        passes(clock, 1)
    passes(clock, 1)
    assert whole(count) == {"imports": 6, "recover": 8, "store": 4}
    (section,) = count.named
    assert (section.name, section.begun, section.ended) == ("panel 0", 5 * 10**9, 17 * 10**9)


def test_sections_of_several_threads_count_once_for_the_last_that_began(clock: list[int]) -> None:
    count = Count(0)
    first = count.enter("students")
    passes(clock, 1)
    other: list[seconds.Section] = []
    thread = threading.Thread(target=lambda: other.append(count.enter("decode")))
    thread.start()
    thread.join()
    passes(clock, 2)
    count.leave(first)  # ends within the other
    passes(clock, 4)
    count.leave(other[0])
    passes(clock, 8)
    assert whole(count) == {"students": 1, "decode": 6, "imports": 8} and sum(whole(count).values()) == 15


def test_the_count_begins_with_the_process_and_a_section_ends_with_a_failure() -> None:
    count = seconds.begin()
    try:
        with pytest.raises(KeyError), spent("report"):
            raise KeyError
        assert count.current.spending == "orchestration" and count.begun < seconds._now()
        found = count.seconds()
        assert found["imports"] > 0 and sum(found.values()) == pytest.approx((count.last - count.begun) / 1e9)
    finally:
        seconds.end()


def test_where_nobody_counts_sections_are_nothing() -> None:
    assert seconds.counting() is None
    with spent("store"):
        assert list(spent_on([1, 2], "decode")) == [1, 2]


@pytest.mark.parametrize(("length", "traced"), [(2, 0), (4, 1), (100, profile.STEPS)])
def test_a_trace_shows_some_steps_of_the_first_loop_of_each_kind(length: int, traced: int) -> None:
    trace = Trace(lambda items, what, total=None: iter(items))
    with profile.counted(), spent("label"):
        for _ in range(2):
            assert list(trace(range(length), "relabel")) == list(range(length))
    named = [event["name"] for event in trace.events if "relabel" in event["name"]]
    steps = range(profile.FIRST, profile.FIRST + traced)
    assert sorted(set(named)) == [f"label: relabel, step {step}" for step in steps]
    assert [each.steps for each in trace.traced] == [traced] * bool(traced)


def test_a_trace_leaves_out_the_shortest_events_of_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(profile, "MOST", 5)
    trace = Trace(lambda items, what, total=None: iter(items))
    with profile.counted(), spent("students"):
        for _ in trace(range(9), "student"):
            torch.rand(8, 8) @ torch.rand(8, 8)
    (kept,) = trace.traced
    assert kept.events == len(trace.events) == 5 and kept.left_out > 0
    longest = sorted(trace.events, key=lambda event: -event["dur"])[:2]  # a step is longer than what is within it
    assert any("student, step" in event["name"] for event in longest)


@pytest.fixture
def run(quick: dict[str, Any], tmp_path: Path) -> list[object]:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({**quick, "seeds": 1}))
    return ["run", spec, "--out", tmp_path / "out", "--store", tmp_path / "store", "--device", "cpu"]


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["retort", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_a_run_says_where_its_seconds_went(
    run: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__
    assert call(monkeypatch, *run, "--profile") == 0
    assert builtins.__import__ is imported and seconds.counting() is None
    found = Profile.model_validate_json((tmp_path / "out-profile" / PROFILE).read_text())
    spent_here = {each.on: each.seconds for each in found.spent}
    assert tuple(spent_here) == SPENDINGS and sum(spent_here.values()) == pytest.approx(found.wall_seconds)
    everything = set(SPENDINGS) - {"nearness"}  # of moments
    assert min(spent_here[on] for on in everything) > 0
    table = capsys.readouterr().out.split("where the seconds of this process went")[1]
    for on in (*SPENDINGS, "in all"):
        assert on in table
    events = json.loads((tmp_path / "out-profile" / TRACE).read_text())["traceEvents"]
    names = {event["name"] for event in events}
    assert {"recover panel 0", "train thin_vgg_w16", "relabel distilled", "assemble", "index shards"} <= names
    assert {each.on for each in found.traced} >= {"observers", "recover", "students"}
    last = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X")
    assert 0 < last / 1e6 < found.wall_seconds and any(name.startswith("aten::") for name in names)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--profile-to", "{}/spec.yaml"], "retort: --profile-to {}/spec.yaml: nothing can be written there: File exi"),
        (["--profile-to", "{}/spec.yaml/a"], "retort: --profile-to {}/spec.yaml/a: nothing can be written there: Not"),
        (["--profile", "--engine", "ray"], "retort: --profile: the work of engine 'ray' is in other processes (choi"),
        (["--profile", "--explain"], "retort: --profile is of a run that is made: leave out --dry-run and --explain"),
    ],
)
def test_a_profile_that_cannot_be_had_is_one_line_before_the_run(
    options: list[str], line: str, run: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert call(monkeypatch, *run, *(option.format(tmp_path) for option in options)) == 2
    (said,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("retort: ")]
    assert said.startswith(line.format(tmp_path)), said
    assert not (tmp_path / "out").exists()
