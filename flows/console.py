"""What a terminal shows of a run: progress with rate and time left, or plain lines where there is no terminal."""

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger("flows")
EVERY = 15.0  # seconds between plain lines of one loop


class PlainTrack:
    """Progress as log lines: one every EVERY seconds and one at the end of any loop that took longer than that."""

    def __call__(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        total = len(items) if total is None and isinstance(items, Sized) else total
        start = shown = time.monotonic()
        done = 0
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() - shown > EVERY:
                shown = time.monotonic()
                log.info("%s: %s", what, _progress(done, total, shown - start))
        if shown != start:
            log.info("%s: done, %d in %.0f s", what, done, time.monotonic() - start)


def _progress(done: int, total: int | None, seconds: float) -> str:
    rate = done / seconds
    if not total:
        return f"{done}, {rate:.3g}/s"
    return f"{done}/{total} ({done / total:.0%}), {rate:.3g}/s, {(total - done) / rate:.0f} s left"


class RichTrack:
    """Progress bars on a terminal's standard error; loops may nest and run in several threads."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Any) -> Text:
                return Text(f"{task.speed:,.1f}/s" if task.speed else "", style="progress.data.speed")

        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn(),
            console=self.console, transient=True,
        )  # fmt: skip
        self.open = 0
        self.lock = threading.Lock()

    def __call__(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        self._count(+1)
        try:
            yield from self._tracked(items, what, total)
        finally:
            self._count(-1)

    def _tracked(self, items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
        total = len(items) if total is None and isinstance(items, Sized) else total
        bar = self.progress.add_task(what, total=total)
        try:
            for item in items:
                yield item
                self.progress.advance(bar)
        finally:
            self.progress.remove_task(bar)

    def _count(self, change: int) -> None:
        with self.lock:
            self.open += change
            if change > 0 and self.open == 1:
                self.progress.start()
            if self.open == 0:
                self.progress.stop()


track: Any = PlainTrack()


def start(verbose: bool = False) -> None:
    """Show our loggers' lines and progress on standard error: bars on a terminal, plain lines elsewhere."""
    global track
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        track = RichTrack()
        handler = RichHandler(console=track.console, show_path=False, show_level=False)
    handler.setLevel(logging.DEBUG if verbose else logging.INFO)
    for name in ("dd_tasks", "flows"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.DEBUG)  # a run's page shows more than the terminal
        logger.handlers[:] = [handler]
