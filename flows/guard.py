"""The processes that a run started, and their end. As a program, `guard.py PID`: a process that ends them where the run
is killed and cannot do so itself (Prefect's own server would stay). Linux alone tells who started whom; elsewhere
nothing is ended here. Imports the standard library alone.
"""

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

EVERY = 0.5  # seconds between two looks at what a run started
PATIENCE = 2.0  # seconds that a process has to end by itself

Started = dict[int, str]  # process -> when it started: numbers come again
_guards: list[subprocess.Popen[bytes]] = []  # at most one


def start() -> None:
    """From now on what this process starts ends with it, even where it is killed."""
    if not _guards and Path("/proc/self/stat").exists():
        command = [sys.executable, "-I", __file__, str(os.getpid())]
        _guards.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def descendants(process: int) -> Started:
    """All that a process started, and that these started, as far as they live."""
    parents = {number: found for number in _numbers() if (found := _stat(number))}
    known, started = {process}, Started()
    while new := {number for number, (parent, _) in parents.items() if parent in known} - known:
        known |= new
        started |= {number: parents[number][1] for number in new}
    return started


def _numbers() -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return []


def _stat(process: int) -> tuple[int, str] | None:
    """Who started a process that lives, and when."""
    with suppress(OSError):
        state, parent, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else (int(parent), rest[17])
    return None


def living(started: Started) -> list[int]:
    """Those that have not ended."""
    return [number for number, since in started.items() if (found := _stat(number)) and found[1] == since]


def end(started: Started, patience: float = PATIENCE) -> None:
    """End processes: politely first, after so many seconds without asking."""
    _send(living(started), signal.SIGTERM)
    _send(_left(started, patience), signal.SIGKILL)
    _left(started, PATIENCE)


def _left(started: Started, patience: float) -> list[int]:
    """Those that live when all should have ended."""
    until = time.monotonic() + patience
    while (left := living(started)) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def _send(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(OSError):
            os.kill(process, number)


def main(process: int) -> None:
    """Note what the process starts, until it is gone; then end what is left of that."""
    started = Started()
    while not select.select([0], [], [], EVERY)[0]:
        started |= descendants(process)
    started.pop(os.getpid(), None)
    end(started)


if __name__ == "__main__":
    main(int(sys.argv[1]))
