"""The one exception that stands for bad input: shown to a user as a single line, exit code 2."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 2000  # characters of a line that is shown


def line(text: str) -> str:
    """One line that a terminal can show, whatever is in it: what is not printable is escaped, what is long is cut."""
    whole = " ".join(text[: 2 * LONGEST].split())
    short = f"{whole[:LONGEST]} ..." if len(whole) > LONGEST or len(text) > 2 * LONGEST else whole
    return short if short.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in short)


class InputError(ValueError):
    """Input that cannot be used. The message names the value, the place and, where there are any, the choices."""


def unknown(what: str, value: str, choices: Iterable[str], shown: Iterable[str] = ()) -> InputError:
    """An InputError for a name that is none of `choices`, with the nearest first; `shown` stands for a long list."""
    known = sorted(choices)
    near = get_close_matches(value, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {what} {value!r}{hint} (choices: {', '.join(shown or known)})")
