"""`retort run --profile`: where the seconds of this process went, and a trace of some steps of each kind of stage.

What a section counts is in `dd_tasks.seconds`; here are the imports, the trace, and what is written of both.
"""

import builtins
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dd_tasks import seconds
from dd_tasks.errors import InputError
from dd_tasks.seconds import Count, Spending
from flows import console
from flows.settings import Settings
from schemas.profile import Kind, Profile, Spent, Traced

T = TypeVar("T")
Event = dict[str, Any]
PROFILE, TRACE = "profile.json", "trace.json"
FIRST, STEPS = 3, 3  # steps of a loop before the trace, and in it
MOST = 20_000  # events of one kind of stage
FILES: tuple[Spending, ...] = ("store", "artifact", "validation", "report")
OVERHEAD: tuple[Spending, ...] = ("imports", "orchestration", "profile")


@dataclass
class Trace:
    """Steps of the first loop of each kind of stage, by torch's profiler: on the clock of the count, in microseconds
    since the process began."""

    track: Callable[..., Iterator[Any]]  # how loops are shown without
    events: list[Event] = field(default_factory=list)
    traced: list[Traced] = field(default_factory=list)

    def __call__(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        count = seconds.counting()
        shown: Iterator[T] = self.track(items, what, total)
        if count is None or (kind := count.current.spending) in [each.on for each in self.traced]:
            yield from shown
        else:
            yield from self._steps(shown, what, kind)

    def _steps(self, items: Iterator[T], what: str, kind: Spending) -> Iterator[T]:
        from torch.profiler import record_function

        profiler, steps = None, 0
        try:
            for number, item in enumerate(items):
                if number == FIRST and not any(each.on == kind for each in self.traced):
                    profiler = _started()
                if profiler is not None and steps == STEPS:
                    self._keep(profiler, kind, steps)
                    profiler = None
                if profiler is None:
                    yield item
                    continue
                steps += 1
                with record_function(f"{kind}: {what}, step {number}"):
                    yield item
        finally:
            if profiler is not None:
                self._keep(profiler, kind, steps)

    @seconds.spent("profile")
    def _keep(self, profiler: Any, kind: Spending, steps: int) -> None:
        profiler.stop()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "steps.json"
            profiler.export_chrome_trace(str(file))
            found = json.loads(file.read_bytes())
        count = seconds.counting()
        assert count is not None
        shift = found.get("baseTimeNanoseconds", 0) / 1000 - count.unix_begun / 1000
        events = [e for e in found["traceEvents"] if e.get("ph") == "X"]
        kept = sorted(events, key=lambda e: -float(e.get("dur", 0)))[:MOST]
        self.events += [e | {"ts": e["ts"] + shift} for e in sorted(kept, key=lambda e: float(e["ts"]))]
        self.traced.append(Traced(on=kind, steps=steps, events=len(kept), left_out=len(events) - len(kept)))


@seconds.spent("profile")
def _started() -> Any:
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    profiler = profile(activities=[ProfilerActivity.CPU, *cuda])
    profiler.start()
    return profiler


@contextmanager
def counted() -> Iterator[None]:
    """Count the seconds of this process, imports by themselves. Before torch is imported, whose profiler then says
    nothing of its own."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    seconds.begin()
    builtins.__import__ = _imported
    try:
        yield
    finally:
        builtins.__import__ = _import
        seconds.end()


_import = builtins.__import__


def _imported(*what: Any, **more: Any) -> Any:
    with seconds.spent("imports"):
        return _import(*what, **more)


def expect(folder: Path, settings: Settings) -> None:
    """The folder, made. InputError for one that cannot be had, and for an engine whose work is in other processes."""
    if settings.engine != "local":
        raise InputError(f"--profile: the work of engine {settings.engine!r} is in other processes (choices: local)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TRACE).touch()
    except OSError as error:
        raise InputError(f"--profile-to {folder}: nothing can be written there: {error.strerror}") from None


@contextmanager
def profiled(folder: Path, command: str) -> Iterator[None]:
    """A run within a count: its profile is written into the folder, and shown."""
    before, count = console.track, seconds.counting()
    assert count is not None
    console.track = trace = Trace(console.track)
    try:
        yield
        from flows.workspace import machine

        with seconds.spent("profile"):
            named = machine()
            (folder / TRACE).write_text(
                json.dumps({"displayTimeUnit": "ms", "traceEvents": [*_spans(count), *trace.events]})
            )
        found = _profile(count, trace.traced, command, named)
        (folder / PROFILE).write_text(found.model_dump_json(indent=1) + "\n")
        show(found, folder)
    finally:
        console.track = before


def _profile(count: Count, traced: list[Traced], command: str, machine: str) -> Profile:
    """What was counted until now."""
    spent = [Spent(on=on, kind=_kind(on), seconds=s) for on, s in count.seconds().items()]
    whole = sum(each.seconds for each in spent)
    return Profile(command=command, machine=machine, wall_seconds=whole, spent=spent, traced=traced)


def _kind(on: Spending) -> Kind:
    return "files" if on in FILES else "overhead" if on in OVERHEAD else "work"


def _spans(count: Count) -> Iterator[Event]:
    """The stages of the run, for the trace: a row for each kind."""
    usual = {"pid": "retort", "cat": "stage"}
    rows = list(dict.fromkeys(section.spending for section in count.named))
    yield {"ph": "M", "name": "process_name", "pid": "retort", "args": {"name": "stages of the run"}}
    for row, spending in enumerate(rows):
        yield {"ph": "M", "name": "thread_name", "pid": "retort", "tid": row, "args": {"name": spending}}
    for each in count.named:
        begun, took = (each.begun - count.begun) / 1000, (each.ended - each.begun) / 1000
        yield usual | {"ph": "X", "name": each.name, "tid": rows.index(each.spending), "ts": begun, "dur": took}


def show(found: Profile, folder: Path) -> None:
    """The table: seconds and shares by what they were spent on."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="where the seconds of this process went")
    for column in ("spent on", "", "seconds", "share"):
        table.add_column(column, justify="right" if column in ("seconds", "share") else "left")
    for each in found.spent:
        table.add_row(each.on, each.kind, f"{each.seconds:.1f}", f"{each.seconds / found.wall_seconds:.1%}")
    table.add_section()
    table.add_row("in all", "", f"{found.wall_seconds:.1f}", "100.0%")
    shown = Console(width=None if sys.stdout.isatty() else 100)
    shown.print(table)
    shown.print(f"profile: {folder / PROFILE}, trace: {folder / TRACE}", highlight=False, soft_wrap=True)
