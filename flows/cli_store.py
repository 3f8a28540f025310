"""`retort store ...`: what the store of finished results holds, and the collection of what no run needs."""

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from flows import console
from flows.options import Store

if TYPE_CHECKING:
    from rich.table import Table

    from dd_tasks.garbage import Contents, Garbage

store_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into the store, and tidy it.")


@store_app.command("ls")
def ls(
    store: Store = "runs/store",
    runs: Annotated[bool, typer.Option("--runs", help="List the runs whose results are kept.")] = False,
) -> None:
    """Results by kind: how many, bytes, oldest and newest."""
    from rich.console import Console

    from dd_tasks import garbage
    from dd_tasks.store import Store as Opened

    console.start()
    found = garbage.contents(Opened(store, checked=False))
    Console(width=None if sys.stdout.isatty() else 120).print(_runs(found) if runs else _kinds(found, store))


def _kinds(found: "Contents", store: str) -> "Table":
    from rich.table import Table

    from dd_tasks import garbage

    table = Table(title=store, show_footer=True)
    total = sum(kept.file.size for kept in found.entries.values()) + sum(file.size for file in found.blobs.values())
    table.add_column("kind", "all, each blob once")
    for name, footer in (("results", len(found.entries)), ("bytes", total)):
        table.add_column(name, f"{footer:,}", justify="right")
    table.add_column("oldest")
    table.add_column("newest")
    for kind in garbage.kinds(found):
        table.add_row(kind.name, f"{kind.count:,}", f"{kind.bytes:,}", _time(kind.oldest), _time(kind.newest))
    return table


def _runs(found: "Contents") -> "Table":
    from rich.table import Table

    from dd_tasks import garbage

    table = Table(title="runs whose results are kept")
    for name in ("run", "method", "recorded", "results reached"):
        table.add_column(name, justify="right" if name == "results reached" else "left", overflow="fold")
    for key, root in sorted(found.roots.items(), key=lambda item: item[1].when):
        reached = garbage.reachable(found.entries, root.refs) & found.entries.keys()
        table.add_row(key, root.preset, root.when, f"{len(reached):,}")
    return table


def _time(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC" if when else ""


@store_app.command("gc")
def gc(
    store: Store = "runs/store",
    older: Annotated[
        float, typer.Option(min=0, max=36_500, help="Days: nothing made or found since is touched.")
    ] = 1.0,
    forget: Annotated[list[str] | None, typer.Option(help="A run (`store ls --runs`) to keep no longer.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete. Without it, only tell.")] = False,
) -> None:
    """Tell, or delete, what no run holds: results, blobs and what killed writes left.

    A run in progress is held by its age alone: keep --older above how long its longest stage takes.
    """
    from dd_tasks import garbage
    from dd_tasks.store import Store as Opened

    console.start()
    opened, before = Opened(store, checked=False), datetime.now(UTC) - timedelta(days=older)
    names = forget or []
    if yes:
        print(_told(garbage.collect(opened, before, names), "deleted"))
    else:
        print(_told(garbage.garbage(garbage.contents(opened), before, names), "would go"))
        print("nothing was deleted; --yes deletes")


def _told(found: "Garbage", what: str) -> str:
    """One line a sort."""
    if not found:
        return f"{what}: nothing"
    by_kind: dict[str, int] = {}
    for ref in found.entries:
        by_kind[ref.kind] = by_kind.get(ref.kind, 0) + 1
    kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(by_kind.items()))
    lines = [
        f"{what}: {len(found.entries):,} results{f' ({kinds})' if kinds else ''}",
        f"{what}: {len(found.blobs):,} blobs",
        f"{what}: {len(found.leftovers):,} leftovers of writes",
        *(f"{what}: run {key}" for key in found.forgotten),
        f"{found.bytes:,} bytes",
    ]
    return "\n".join(lines)
