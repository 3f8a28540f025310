"""The exceptions that are shown to a user as a single line, with exit code 2: bad input, and what comes of it."""

from collections.abc import Iterable
from difflib import get_close_matches

from dd_tasks.redaction import is_secret, redacted


class InputError(ValueError):
    """Input that cannot be used. The message names the value, the place and, where there are any, the choices; it tells
    no secret that they hold."""

    def __init__(self, message: object) -> None:
        super().__init__(redacted(str(message)))


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
    choices = f"choices: {', '.join(shown or known)}" if known else "there is none"
    return InputError(f"unknown {what} {value!r}{hint} ({choices})")


def expect_open(url: str, what: str, keeper: str) -> None:
    """InputError for a URL with a password or a signature in it where `keeper` would keep it."""
    if is_secret(url):
        raise InputError(
            f"{what} {url!r}: it holds a password or a signature, which {keeper} would keep; give that by the "
            "environment or fsspec's configuration"
        )
