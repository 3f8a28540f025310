"""What a case is, and what may come of it: success, or a refusal in our own words."""

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis.strategies import SearchStrategy

from dd_tasks.errors import InputError
from dd_tasks.folder import Unreachable
from dd_tasks.hub import HubError
from dd_tasks.visible import LONGEST, legible

T = TypeVar("T")
OURS = (InputError, HubError, Unreachable)
REFUSED, ACCEPTED = "refused", "accepted"


class Escaped(Exception):
    """Something that a user must never see."""


@dataclass(frozen=True)
class Family:
    """Cases of one kind: how they are drawn, and `run`, which puts one into an empty folder, makes the calls of users
    on it and returns one word of `asked` or `told` a call. `prepare` is called once, in a process of its own, with the
    folder whose path `run` gets as its third argument."""

    name: str
    cases: SearchStrategy[Any]
    run: Callable[[Any, Path, Path], list[str]]
    prepare: Callable[[Path], None] = lambda folder: None
    cost: float = 1.0  # of the cases of a run, its share


def asked(call: Callable[[], object]) -> str:
    """Whether a function of ours does its work or refuses by an error of ours, of one line that can be shown."""
    try:
        call()
    except OURS as error:
        expect_line(str(error))
        return REFUSED
    return ACCEPTED


def findings(problems: list[str]) -> str:
    """What `validate` and its like return: lines that can be shown."""
    for problem in problems:
        expect_line(problem)
    return REFUSED if problems else ACCEPTED


def expect_line(text: str) -> None:
    """As the command line shows it."""
    shown = legible(text)
    shown.encode()
    if not shown or not shown.isprintable() or len(shown) > 2 * LONGEST:
        raise Escaped(f"no line that can be shown: {text[:200]!r}")


def told(*arguments: str | Path) -> str:
    """`retort ARGUMENTS` in this process: exit code 0; 1 with findings; or 2 with one line that begins `retort: `."""
    from flows.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors, write_through=True) for errors in ("strict", "replace"))
    kept, sys.argv = sys.argv, ["retort", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
    except SystemExit as exit:
        code = exit.code or 0
    finally:
        sys.argv = kept
    said, wrong = (stream.buffer.getvalue().decode(errors="replace") for stream in (out, err))  # type: ignore[attr-defined]
    if "Traceback" in wrong or "\x1b" in said + wrong:
        raise Escaped(f"retort {arguments[0]} shows {wrong[-2000:]!r}")
    if code == 0 or (code == 1 and said.strip()):
        return REFUSED if code else ACCEPTED
    lines = [line for line in wrong.splitlines() if line.startswith("retort: ")]
    if code != 2 or len(lines) != 1 or not wrong.rstrip().endswith(lines[0].rstrip()):
        raise Escaped(f"retort {arguments[0]} ends with {code} and {wrong[-500:]!r}")
    expect_line(lines[0])
    return REFUSED
