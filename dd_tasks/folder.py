"""A folder of whole files over fsspec (a disk, S3, ...): each is there whole or not at all, and a failure that may pass
by itself is waited out."""

import contextlib
import logging
import os
import posixpath
import random
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dd_tasks.errors import InputError
from dd_tasks.redaction import redacted
from dd_tasks.whole import sync, told

log = logging.getLogger(__name__)
T = TypeVar("T")
S3 = ("s3", "s3a")
ATOMIC = {*S3, "gs", "gcs", "abfs", "az"}  # object stores: what is put appears whole
PAUSES = (1.0, 2.0, 4.0, 8.0, *[10.0] * 5)  # seconds between tries: more than a minute in all
CONNECT, READ = 5, 20  # seconds
SLOWEST = 250_000  # bytes a second: an upload that is slower is given up and tried again
PASSING = {
    "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestTimeout", "OperationAborted",
    "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch",
}  # fmt: skip
TIMES = ("LastModified", "mtime", "last_modified", "updated", "modified", "created")  # as file systems call it


@dataclass(frozen=True)
class File:
    """Size in bytes, and when it was last written; None where the file system does not tell."""

    size: int
    written: datetime | None


class Folder:
    """The folder at a URL or path; `pauses` are the seconds between tries of what may pass.

    Once tries are used up, and for any other failure away from this machine, an OSError of one line. Listings are read
    anew each time, so what other processes wrote is seen.
    """

    def __init__(self, url: str, pauses: tuple[float, ...] = PAUSES) -> None:
        self.url, self.pauses = redacted(url), pauses
        if not url.strip():
            raise InputError(f"store {url!r}: expected a folder or a URL")
        if re.search(r"//[^/@\s]*:[^/@\s]*@", url):
            raise InputError(
                f"store {url}: a password in a URL ends in logs and manifests; give it by the environment or "
                "fsspec's configuration"
            )
        protocol = url.partition(":")[0] if "://" in url else "file"
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url, **_options(protocol))
        except ImportError as error:  # of a protocol whose package is missing
            hint = " (pip install 'retort[s3]')" if protocol in S3 else ""
            raise InputError(f"store {url}: {error}{hint}") from None
        except (ValueError, TypeError, NotImplementedError) as error:  # a protocol unknown, or none for this
            raise InputError(f"store {url}: {error}") from None
        self.atomic, self.local = protocol in ATOMIC, isinstance(self.fs, LocalFileSystem)
        self._failures: tuple[type[Exception], ...] = () if self.local else (OSError, ValueError, NotImplementedError)
        self._passing: tuple[type[Exception], ...] = (ConnectionError, TimeoutError)
        self._once: dict[str, int] = {}
        if protocol in S3:
            self.fs.retries = 1  # tries are ours: those of s3fs and botocore would multiply
            self._once = {"max_concurrency": 1}  # one request a small file; s3fs would ask for its size first
            others, cut = _s3_errors()
            self._failures, self._passing = self._failures + others, self._passing + cut

    def check(self) -> None:
        """InputError unless files can be written, read and removed. On this machine no folder is made for that."""
        probe = posixpath.join(_standing(self.root) if self.local else self.root, f".probe-{uuid.uuid4().hex}")
        try:
            if not (self.local or self.atomic):
                self.fs.makedirs(self.root, exist_ok=True)
            self._patiently(lambda: self.fs.pipe_file(probe, b""))
            self.remove(probe)
            self.read(probe)  # a store that must not be listed refuses, instead of saying that it is not there
        except Unreachable:
            raise
        except OSError as error:
            if self.local:
                raise InputError(f"store {self.url} cannot be written: {error.strerror or error}") from None
            raise InputError(str(error)) from None

    def path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)

    def read(self, path: str, small: bool = True) -> bytes | None:
        """The bytes of a file; None where it is not there."""
        try:
            return self._patiently(lambda: bytes(self.fs.cat_file(path, **(self._once if small else {}))))
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes, durable: bool = False) -> None:
        """No reader ever sees half of it, and `durable` files outlive a power cut: an object store puts whole files,
        elsewhere it goes to a name of its own, which is then renamed."""
        if self.atomic:
            seconds = {"timeout": READ + len(data) / SLOWEST} if getattr(self.fs, "async_impl", False) else {}
            self._patiently(lambda: self.fs.pipe_file(path, data, **seconds))
            return
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        with told(self.url, self.root) if self.local else contextlib.nullcontext():
            self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
            try:
                self._patiently(lambda: self._rename(partial, path, data, durable))
            except BaseException:
                with contextlib.suppress(OSError):
                    self.fs.rm_file(partial)
                raise

    def _rename(self, partial: str, path: str, data: bytes, durable: bool) -> None:
        self.fs.pipe_file(partial, data)
        if self.local:
            sync(partial)
        self.fs.mv(partial, path)
        if self.local and durable:
            sync(posixpath.dirname(path))

    def remove(self, path: str) -> None:
        """Whether it is there or not."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self.fs.rm_file(path))

    def written(self, path: str) -> datetime | None:
        """When a file was last written; None where it is not there or the file system does not tell."""
        try:
            return _when(self._patiently(lambda: self.fs.info(path)))
        except FileNotFoundError:
            return None

    def files(self) -> dict[str, File]:
        """All files by their paths within the folder. InputError where there is no such folder or bucket."""
        try:
            found = self._patiently(lambda: self.fs.find(self.root, detail=True))
        except FileNotFoundError as error:
            raise InputError(str(error)) from None
        if not found and not self.atomic and not self.fs.exists(self.root):
            raise InputError(f"store {self.url}: nothing is there")
        if self.local and os.path.isfile(self.root):
            raise InputError(f"store {self.url}: is a file; expected a folder or a URL")
        start = len(self.root.rstrip("/")) + 1
        return {path[start:]: File(int(info["size"] or 0), _when(info)) for path, info in found.items()}

    def _patiently(self, call: Callable[[], T]) -> T:
        """The answer of a call; one that may be asked again."""
        begun = time.monotonic()
        for pause in (*self.pauses, None):
            try:
                return call()
            except self._failures as error:
                if not (isinstance(error, self._passing) or _is_busy(error)):
                    raise self._told(error) from None
                said = _said(error)
                if pause is None:
                    raise Unreachable(
                        f"store {self.url}: not reached for {time.monotonic() - begun:.0f} s ({said}); nothing that is "
                        "stored is lost: the same command continues where this one stopped"
                    ) from None
                pause *= random.uniform(1, 1.2)  # many that wait for one store should not come back together
                log.warning("store %s: %s; again in %.1f s", self.url, said, pause)
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _told(self, error: Exception) -> OSError:
        """A failure that will not pass, of a kind that callers tell apart, in one line."""
        kind = next((k for k in (FileNotFoundError, PermissionError) if isinstance(error, k)), OSError)
        bucket = f"bucket {self.root.partition('/')[0]!r}: " if self._once else ""
        return kind(f"store {self.url}: {bucket}{_said(error)}")


def _standing(path: str) -> str:
    """The path itself, or the nearest folder above it that is there."""
    while not os.path.lexists(path):
        path = posixpath.dirname(path) or "/"
    return path


class Unreachable(OSError):
    """A store that gave no answer for as long as one waits."""


def _said(error: Exception) -> str:
    """A failure in one line, without secrets."""
    words = str(getattr(error, "strerror", None) or error)
    return redacted(" ".join(words.split())).rstrip(".") or "no answer in time"


def _options(protocol: str) -> dict[str, Any]:
    """What s3fs should do otherwise than by default; what fsspec's configuration says of time-outs counts."""
    if protocol not in S3:
        return {}
    usual = {"connect_timeout": CONNECT, "read_timeout": READ, "retries": {"total_max_attempts": 1, "mode": "standard"}}
    configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    return {"use_listings_cache": False, "config_kwargs": usual | configured}


def _s3_errors() -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
    """What s3fs raises beside OSErrors; and of these, an answer that did not come or was cut off."""
    from aiohttp import ClientError
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    cut = (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError)
    return (exceptions.BotoCoreError, ResponseParserError, ClientError), (*cut, ResponseParserError, ClientError)


def _is_busy(error: Exception) -> bool:
    """Whether a server answered that it is busy or ill, or that what it got is not what was sent."""
    answer = getattr(error.__cause__, "response", None)  # of botocore, which s3fs makes an OSError of
    if not isinstance(answer, Mapping):
        return False
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 or status == 429 or answer.get("Error", {}).get("Code") in PASSING


def _when(info: Mapping[str, Any]) -> datetime | None:
    found = next((info[name] for name in TIMES if info.get(name) is not None), None)
    if isinstance(found, int | float):
        return datetime.fromtimestamp(found, UTC)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    return found.astimezone(UTC) if isinstance(found, datetime) else None
