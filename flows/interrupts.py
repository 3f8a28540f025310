"""SIGTERM and Ctrl-C: one line, exit code 130, and no process left behind.

Whatever a run is in the middle of may be left at any moment: results appear in the store whole. So an interrupt is an
exception wherever work is done, which clears away what was half-written; where that does not end the process within
GRACE seconds (a library is busy in C, or swallowed the exception), or at a second Ctrl-C, it is ended as it stands.
Imports nothing heavy.
"""

import ctypes
import functools
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, ParamSpec, TypeVar

from flows import guard

P = ParamSpec("P")
R = TypeVar("R")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 5.0  # seconds; containers that are stopped are killed after ten
CODE = 130

_came: list[signal.Signals] = []  # the first one is told
_working: set[int] = set()  # threads that are in a stage
_ending = threading.Lock()


class Interrupted(KeyboardInterrupt):
    """SIGTERM or Ctrl-C; raised wherever work is done."""


def came() -> bool:
    """Whether this process was interrupted."""
    return bool(_came)


@contextmanager
def expected() -> Iterator[None]:
    """Within the block, in the main thread, an interrupt raises Interrupted; one that is ignored stays so. The end of
    the process is up to whoever catches it: `end`."""
    listened = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread() or not listened:
        yield
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {each: signal.signal(each, _interrupt) for each in listened}
    earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True, name="interrupts").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        for each, handler in before.items():
            signal.signal(each, handler)
        os.close(writing)


def leave_alone() -> None:
    """From here on interrupts are somebody else's business."""
    signal.set_wakeup_fd(-1)


@contextmanager
def kept() -> Iterator[None]:
    """What answers to interrupts before the block does so after it: Ray's own handler ends in an abort."""
    before = {each: signal.getsignal(each) for each in SIGNALS}
    yield
    with suppress(ValueError):  # of another thread than the main one
        for each, handler in before.items():
            signal.signal(each, handler)


def interruptible(function: Callable[P, R]) -> Callable[P, R]:
    """A function of a stage, which an interrupt leaves in whatever thread it runs."""

    @functools.wraps(function)
    def within(*arguments: P.args, **named: P.kwargs) -> R:
        with at_work():
            return function(*arguments, **named)

    return within


@contextmanager
def at_work() -> Iterator[None]:
    """This thread is in a stage; none begins after an interrupt."""
    if _came:
        raise Interrupted(_came[0].name)
    known = threading.get_ident()
    _working.add(known)
    try:
        yield
    finally:
        _working.discard(known)


def _interrupt(number: int, frame: Any) -> None:
    """In the main thread, which may be told twice: Prefect sends a SIGTERM again that it has caught."""
    _note(number)
    if not _ending.locked():
        raise Interrupted(signal.Signals(number).name)


def _note(number: int) -> None:
    if not _came:
        _came.append(signal.Signals(number))
        sys.unraisablehook = _say_nothing
        threading.excepthook = _say_nothing


def _say_nothing(told: Any) -> None:
    """Of what is torn apart."""


def _watch(reading: int) -> None:
    """In a thread of its own, which hears of signals whatever the others do."""
    try:
        if _heard(reading):
            main = threading.main_thread().ident
            for thread in [each for each in _working if each != main]:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))
            while select.select([reading], [], [], GRACE)[0]:
                if (again := _heard(reading)) == signal.SIGINT:
                    end(patience=0)
                if again is None:
                    return
            end()
    finally:
        os.close(reading)


def _heard(reading: int) -> int | None:
    """The next interrupt; None where the block was left."""
    while read := os.read(reading, 1):
        if read[0] in SIGNALS:
            _note(read[0])
            return read[0]
    return None


def end(patience: float = guard.PATIENCE) -> NoReturn:
    """Say so once, end all processes that this one started, and leave with CODE."""
    if _ending.acquire(blocking=False):  # for good
        name = _came[0].name if _came else "SIGINT"
        clear = "\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else ""  # of a progress bar, which hides the cursor
        line = f"{clear}retort: interrupted by {name}; what is finished is kept: the same command continues\n"
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        with suppress(OSError):
            os.write(2, line.encode())
    guard.end(guard.descendants(os.getpid()), patience)
    os._exit(CODE)
