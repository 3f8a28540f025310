"""The exceptions that are shown to a user as a single line, with exit code 2: bad input, and what comes of it."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Input that cannot be used. The message names the value, the place and, where there are any, the choices."""


class NumericalError(InputError):
    """A number that is none, or infinite, where a result needs one. The message names who said it, when, and what may
    help. Made again it would be the same."""


class ShortOfMemory(OSError):
    """More memory is asked for than is free, though the work was cut as small as it can be. The message names what may
    help."""


def unknown(what: str, value: str, choices: Iterable[str], shown: Iterable[str] = ()) -> InputError:
    """An InputError for a name that is none of `choices`, with the nearest first; `shown` stands for a long list."""
    known = sorted(choices)
    near = get_close_matches(value, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {what} {value!r}{hint} (choices: {', '.join(shown or known)})")
