"""What a user is told where a command cannot be done, or finds something wrong: lines without secrets. Heavy libraries
are imported where they are needed."""

import sys
import traceback
from types import TracebackType


def tell(problems: list[str]) -> None:
    """A line each; what comes from data cannot end it."""
    for problem in problems:
        print(shown(problem))


def line_of(error: ValueError | OSError) -> str | None:
    """What is wrong with the input or with the machine; None for a failure of our own."""
    from dd_tasks.errors import InputError

    if isinstance(error, InputError):
        return shown(str(error))
    if isinstance(error, OSError):
        named = error.filename and error.strerror
        return shown(f"{error.filename}: {error.strerror}" if named else str(error.strerror or error))
    return None


def shown(text: str) -> str:
    """On one line, without secrets."""
    from dd_tasks.redaction import redacted
    from dd_tasks.visible import legible

    return legible(redacted(text))


def placed(error: Exception, message: str) -> str:
    """The message of a mistake in the arguments; of a value that is none for its option, led by both."""
    _, said, reason = message.partition(": ")
    options = getattr(getattr(error, "param", None), "opts", [])
    if not message.startswith("Invalid value for ") or not said:
        return message[:1].lower() + message[1:].rstrip(".")
    for at, word in enumerate(sys.argv):
        option, equals, value = word.partition("=")
        if option in options:
            given = value if equals else sys.argv[at + 1]
            return f"{option} {given!r}: {reason[:1].lower()}{reason[1:]}"
    return message


def failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Shows a failure that nobody expected."""
    from dd_tasks.redaction import redacted

    print(redacted("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")
