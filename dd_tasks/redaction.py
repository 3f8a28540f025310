"""Secrets kept out of whatever is shown, logged or written: what the environment holds, and what URLs carry."""

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # characters of a secret; what is shorter would be found in ordinary words
SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY|AUTH_STRING|CONNECTION_STRING)(?:$|_ID$)|SECRET_", re.I
)
USERINFO = re.compile(r"(?<=//)[^/\s'\"]*@")
QUERY = re.compile(r"(\w://[^\s?'\"]*)\?[^\s'\"]*=[^\s'\"]*")  # of a signed URL; a glob's `?` has no `=` after it
_told: set[str] = set()


def hide(secret: str) -> None:
    """Keep this, too, out of everything from now on."""
    if len(secret) >= SHORTEST:
        _told.add(secret)


def redacted(text: str) -> str:
    """The text without secrets: user, password and query of its URLs, and every value that is secret here."""
    if "://" in text:
        text = QUERY.sub(rf"\1?{HIDDEN}", USERINFO.sub(f"{HIDDEN}@", text))
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def is_secret(text: str) -> bool:
    """Whether something of it must not be shown."""
    return redacted(text) != text


def _secrets() -> set[str]:
    """Values of the environment and of fsspec's configuration whose names say that they are secret."""
    found = set(_told)
    for name, value in os.environ.items():
        if SECRET.search(name):
            found.add(value)
        elif name.startswith("FSSPEC_") and value.startswith("{"):
            found |= set(_named_secret(_json(value)))
    if configuration := sys.modules.get("fsspec.config"):
        found |= set(_named_secret(configuration.conf))
    return {secret for secret in found if len(secret) >= SHORTEST}


def _named_secret(values: Any) -> Iterator[str]:
    """Those of nested values whose own name says so."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _named_secret(value)
        elif isinstance(value, str) and SECRET.search(str(name)):
            yield value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def without_secrets(error: Exception) -> Exception:
    """The error, without its causes where one of them tells a secret; and one of its kind, in words without it, where
    the error itself does.

    What runs a flow keeps the words of its errors, and of what they came from.
    """
    if not any(map(_tells, _chain(error))):
        return error
    error.__cause__ = error.__context__ = None
    if not _tells(error):
        return error
    kinds = (ConnectionError, TimeoutError, OSError, ValueError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)
    return kind(redacted(f"{type(error).__name__}: {error}"))


def _tells(error: BaseException) -> bool:
    return is_secret(f"{error} {error.args}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class Line(logging.LogRecord):
    """A line of any logger, without secrets."""

    def getMessage(self) -> str:
        return redacted(super().getMessage())


def hush() -> None:
    """Keep secrets out of every line that is logged in this process, by other libraries too."""
    logging.setLogRecordFactory(Line)
