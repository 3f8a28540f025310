"""Where the seconds of a process go: sections of the code, which may nest, each with what its seconds are spent on.

Every moment since the process began counts once: for the section that was entered last of those still open, in
whatever thread. So the parts add up to the whole. Where nobody counts, a section costs a look at a variable.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ContextDecorator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

T = TypeVar("T")
Spending = Literal[
    "imports", "orchestration", "decode", "observers", "choose", "recover", "nearness", "label", "students", "store",
    "artifact", "validation", "report", "profile",
]  # fmt: skip
SPENDINGS: tuple[Spending, ...] = get_args(Spending)


def _now() -> int:
    """Nanoseconds since the machine began, where the system counts these; processes begin by the same clock."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _begun() -> int:
    """When this process began, to a hundredth of a second; now, where the system does not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return _now()
    return ticks * 10**9 // os.sysconf("SC_CLK_TCK")


@dataclass(eq=False)
class Section:
    """A part of the work that is or was open, in nanoseconds by the clock of the count."""

    spending: Spending
    name: str | None
    begun: int
    ended: int = 0


class Count:
    """Nanoseconds by what they were spent on, since `begun`; those before the first section went into imports."""

    def __init__(self, begun: int) -> None:
        self.begun = self.last = begun
        self.spent = dict.fromkeys(SPENDINGS, 0)
        self.named: list[Section] = []
        self._open = [Section("imports", None, begun)]
        self._lock = threading.Lock()

    @property
    def current(self) -> Section:
        return self._open[-1]

    def enter(self, spending: Spending, name: str | None = None) -> Section:
        with self._lock:
            section = Section(spending, name, self._charge())
            self._open.append(section)
            return section

    def leave(self, section: Section) -> None:
        with self._lock:
            section.ended = self._charge()
            self._open.remove(section)
            if section.name is not None:
                self.named.append(section)

    def _charge(self) -> int:
        now = _now()
        self.spent[self._open[-1].spending] += now - self.last
        self.last = now
        return now

    @property
    def unix_begun(self) -> int:
        """The beginning in nanoseconds since 1970."""
        return time.time_ns() - (_now() - self.begun)

    def seconds(self) -> dict[Spending, float]:
        """Until now, by what they were spent on."""
        with self._lock:
            self._charge()
            return {spending: spent / 1e9 for spending, spent in self.spent.items()}


_count: Count | None = None


def counting() -> Count | None:
    """The count that is under way."""
    return _count


def begin() -> Count:
    """Count from now on. What the process did before is counted as imports; what is in no section, as
    orchestration."""
    global _count
    _count = Count(_begun())
    _count.enter("orchestration")
    return _count


def end() -> None:
    """Count no more."""
    global _count
    _count = None


class spent(ContextDecorator):
    """A section, as a context or around a function."""

    def __init__(self, on: Spending, name: str | None = None) -> None:
        self.on, self.name = on, name

    def _recreate_cm(self) -> "spent":
        return spent(self.on, self.name)  # a function may be under way in several threads

    def __enter__(self) -> None:
        self.count = _count
        if self.count is not None:
            self.section = self.count.enter(self.on, self.name)

    def __exit__(self, *failure: Any) -> None:
        if self.count is not None:
            self.count.leave(self.section)


def spent_on(items: Iterable[T], on: Spending) -> Iterator[T]:
    """The items; making each of them is a section."""
    rest = iter(items)
    while True:
        with spent(on):
            try:
                item = next(rest)
            except StopIteration:
                return
        yield item
