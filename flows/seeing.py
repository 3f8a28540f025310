"""What Prefect's pages show of a run beside its stages and their lines: progress, tables, pictures and links.

No run is worth less for its pages: an artifact that the server refuses costs one line of the log. Descriptions and
texts are Markdown to the pages, so what comes from data is escaped.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.futures import PrefectFuture, as_completed

from dd_tasks.card import escape
from dd_tasks.claims import RESULT_COLUMNS, result_rows, result_title
from dd_tasks.pictures import data_uri, reduced
from dd_tasks.verify import Check
from flows.plain import is_plain
from schemas.manifest import Manifest
from schemas.release import Released

if TYPE_CHECKING:
    from flows.workspace import Seat

log = logging.getLogger(__name__)
R = TypeVar("R")
RARELY = 50  # between two updates of a page, times what one takes: many short stages are not slowed down by it
PICTURE_BYTES = (
    400_000  # of a preview on a page: the server keeps it twice, as an artifact and as the latest of its key
)


def key_of(*words: str) -> str:
    """A key as Prefect wants it: lower case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


def shown(key: str, show: Callable[..., R], *content: Any, **more: Any) -> R | None:
    """What `show` returns, or None: where no server looks on, and with a line in the log where it keeps no artifact."""
    if is_plain():
        return None
    try:
        return show(*content, **more)
    except Exception as error:  # whatever a server or the way to it may do
        log.warning("the run's page goes without %s: %s", key, (str(error).splitlines() or [type(error).__name__])[0])
        return None


def follow(what: str, begun: Sequence[PrefectFuture[Any]]) -> None:
    """Wait until all of the submitted stages have ended, and show on the run's page how many have; of one alone its own
    state tells that. Within a flow."""
    key, failed, several, due = key_of(what), 0, len(begun) > 1, 0.0
    page = shown(key, create_progress_artifact, 0.0, key, _progress(what, 0, len(begun), 0)) if several else None
    for ended, future in enumerate(as_completed(list(begun)), 1):
        future.wait()
        failed += not future.state.is_completed()
        if page and (ended == len(begun) or time.monotonic() >= due):
            told, start = _progress(what, ended - failed, len(begun), failed), time.monotonic()
            page = shown(key, update_progress_artifact, page, 100 * (ended - failed) / len(begun), told)
            due = start + RARELY * (time.monotonic() - start)


def _progress(what: str, done: int, total: int, failed: int) -> str:
    return f"{escape(what)}: {done} of {total} done" + (f", {failed} failed" if failed else "")


def unlinked(seats: "tuple[Seat, ...]") -> "tuple[Seat, ...]":
    """Copies, which Prefect does not trace to the flow that trained them: its usual pages (3.8) show nothing of a task
    run that has such an input."""
    return tuple(replace(seat) for seat in seats)


def show_run(manifest: Manifest, out: Path) -> Manifest:
    """The rows of the claims, the preview and where the report is. Within a flow."""
    name, report = manifest.name, (out / "assets" / "report.html").resolve()
    rows = [dict(zip(RESULT_COLUMNS, row, strict=True)) for row in result_rows(manifest.claims)]
    key = key_of(name, "claims")
    shown(key, create_table_artifact, rows, key, escape(result_title(manifest)))
    key = key_of(name, "preview")
    picture = data_uri(reduced((out / "assets" / "preview.png").read_bytes(), PICTURE_BYTES))
    told = f"# {escape(name)}\n\n![real images above, distilled ones below]({picture})\n"
    shown(key, create_markdown_artifact, told, key, "Some of the images: real ones above, distilled ones below")
    key = key_of(name, "report")
    shown(key, create_link_artifact, report.as_uri(), report.name, key, f"How they came about: {escape(str(report))}")
    return manifest


def show_checks(target: str, checks: Sequence[Check]) -> tuple[Check, ...]:
    """What became of every check. Within a flow."""
    head = ("check", "outcome", "what was found", "seconds")
    cells = [(escape(c.name), c.outcome, escape(c.message), f"{c.seconds:.0f}") for c in checks]
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---", "---", "---", "---:"), *cells)]
    counts = ", ".join(
        f"{sum(check.outcome == outcome for check in checks)} {outcome}" for outcome in ("passed", "failed", "skipped")
    )
    key = key_of("checks of", target)
    shown(key, create_markdown_artifact, "\n".join(lines), key, f"{escape(target)}: {counts}")
    return tuple(checks)


def show_release(released: Released) -> Released:
    """What changed, and where it is. Within a flow."""
    url = released.pull_request or released.url
    changes = [f"- {escape(line)}" for line in released.changelog] or ["Nothing changed."]
    tag = f", tag {escape(released.tag)}" if released.tag else ""
    told = "\n".join([f"[{escape(released.target)}](<{url}>), revision {escape(released.revision)}{tag}", "", *changes])
    key = key_of("release of", released.target)
    shown(key, create_markdown_artifact, told, key, f"{escape(released.target)}: {escape(url)}")
    return released
