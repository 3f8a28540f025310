"""One WebDataset shard, read as a stream: a plain tar whose members KEY.jpg and KEY.cls make up a sample.

What a shard says is not trusted: members are looked up in a whitelist of suffixes, keys are names and never paths, and
a shard is read to its end-of-archive marker before it counts as whole. Nothing is left out silently: what is wrong with
a sample is a Fault, and a Quarantine says how many of those are tolerated (by default none).
"""

import glob
import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, BinaryIO, cast

import fsspec

from dd_tasks.errors import InputError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
CLASS_SUFFIX = "cls"
MOST_BYTES = 1 << 28  # of one member
Parts = list[tuple[str, bytes]]  # (suffix, content) of one key

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One image, still encoded, of class id `label`, from the shard called `shard`."""

    key: str
    image: bytes
    label: int
    shard: str


@dataclass(frozen=True)
class Fault:
    """Why a sample cannot be used."""

    shard: str
    key: str
    reason: str

    def __str__(self) -> str:
        return f"{self.shard}: sample {self.key!r}: {self.reason}"


@dataclass
class Quarantine:
    """Collects faulty samples, each once, and refuses more than `limit` of them; 0 refuses the first."""

    limit: int = 0
    found: list[Fault] = field(default_factory=list)
    _tolerated: set[tuple[str, str]] = field(default_factory=set, repr=False)

    def add(self, shard: str, key: str, reason: str) -> None:
        """Raises InputError when the fault is one more than tolerated."""
        if self.holds(shard, key):
            return
        fault = Fault(shard, key, reason)
        self.found.append(fault)
        if len(self.found) > self.limit:
            raise InputError(str(fault) + (f" ({self.limit} faults were tolerated before it)" if self.limit else ""))
        self._tolerated.add((shard, key))
        log.warning("left out: %s", fault)

    def holds(self, shard: str, key: str) -> bool:
        return (shard, key) in self._tolerated


def is_remote(url: str) -> bool:
    return "://" in url


def base_name(url: str) -> str:
    return _path(url).rpartition("/")[2]


def folder_of(url: str) -> str:
    head, slash, _ = _path(url).rpartition("/")
    return head or ("/" if slash else ".")


def _path(url: str) -> str:
    return url.partition("?")[0] if is_remote(url) else url  # a signed URL carries its signature in the query


def open_binary(url: str) -> BinaryIO:
    """`url` opened for reading: a local path plainly, anything else by fsspec. InputError when it is not there."""
    try:
        return fsspec.open(url, "rb").open() if is_remote(url) else open(url, "rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise InputError(f"cannot read {url!r}: {os.strerror(error.errno) if error.errno else error}") from error
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot read {url!r}: {error}") from error


def matching(url: str) -> list[str]:
    """The files a glob stands for; a plain path or URL stands for itself. InputError when there are none."""
    return _glob_remote(url) if is_remote(url) else _glob_local(url)


def _glob_local(path: str) -> list[str]:
    if os.path.isfile(path):
        return [os.path.normpath(path)]
    if os.path.isdir(path):
        raise InputError(f"{path!r} is a folder; name the shards in it, as {os.path.join(path, '*.tar')!r}")
    if not glob.has_magic(path):
        raise InputError(f"no shard {path!r}")
    if not (found := [os.path.normpath(hit) for hit in glob.glob(path, recursive=True) if os.path.isfile(hit)]):
        raise InputError(f"no shard matches {path!r}")
    return found


def _glob_remote(url: str) -> list[str]:
    if "*" not in url and "[" not in url:
        return [url]
    try:
        system, path = fsspec.core.url_to_fs(url)
        found = [system.unstrip_protocol(hit) for hit in system.glob(path)]
    except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
        raise InputError(f"cannot list {url!r}: {error}") from error
    if not found:
        raise InputError(f"no shard matches {url!r}")
    return found


def size_of(url: str) -> int | None:
    """In bytes; None where the server does not say. InputError when there is no such file."""
    try:
        if not is_remote(url):
            return os.path.getsize(url)
        system, path = fsspec.core.url_to_fs(url)
        return system.size(path)
    except (FileNotFoundError, PermissionError, ImportError, ValueError) as error:
        raise InputError(f"cannot read {url!r}: {error}") from error


def read_beside(folder: str, name: str) -> str | None:
    """The text of a small file, None when there is none."""
    try:
        with open_binary(f"{folder}/{name}") as file:
            return file.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"'{folder}/{name}' is not UTF-8 text") from error
    except InputError:  # none there, or a store that answers "forbidden" for what is not there
        return None


class Tape:
    """Counts and digests what is read through it, and knows how many zero bytes it ended with so far."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.size, self.zeros, self.sha256 = raw, 0, 0, hashlib.sha256()

    def read(self, size: int) -> bytes:
        chunk = self.raw.read(size)
        self.size += len(chunk)
        self.sha256.update(chunk)
        zeros = len(chunk) - len(chunk.rstrip(b"\0"))
        self.zeros = self.zeros + zeros if zeros == len(chunk) else zeros
        return chunk


@dataclass
class Shard:
    """A shard at `url`; `size` in bytes and `sha256` are of the whole file, known once it has been read to its end."""

    url: str
    size: int = 0
    sha256: str = ""

    @property
    def name(self) -> str:
        return base_name(self.url)

    def groups(self) -> Iterator[tuple[str, Parts]]:
        """Neighbours of one key, images and classes only, in file order. InputError when cut short or damaged."""
        for key, group in groupby(self._members(), key=lambda member: member[0]):
            yield key, [(suffix, content) for _, suffix, content in group]

    def _members(self) -> Iterator[tuple[str, str, bytes]]:
        with open_binary(self.url) as raw:
            tape = Tape(raw)
            try:
                with tarfile.open(fileobj=cast(BinaryIO, tape), mode="r|") as tar:
                    yield from _wanted(tar)
                    end = tar.offset
            except tarfile.TarError as error:
                raise InputError(f"shard {self.url!r} is cut short or not a plain tar: {error}") from error
            while tape.read(1 << 20):
                pass
        _expect_marker(self.url, tape, end)
        self.size, self.sha256 = tape.size, tape.sha256.hexdigest()


def split_name(name: str) -> tuple[str, str] | None:
    """(key, suffix) by WebDataset's convention: the suffix starts at the first dot of the base name."""
    found = re.match(r"((?:.*/|)[^.]+)[.]([^/]*)$", name)
    return (found[1], found[2].lower()) if found and not name.startswith("__") else None  # __x__ describes the shard


def _wanted(tar: Any) -> Iterator[tuple[str, str, bytes]]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # tarfile remembers each, and a shard may hold millions
        named = split_name(member.name)
        if not member.isreg() or not named or named[1] not in (*IMAGE_SUFFIXES, CLASS_SUFFIX):
            continue
        content = tar.extractfile(member) if member.size <= MOST_BYTES else None
        yield *named, content.read() if content else b""


def _expect_marker(url: str, tape: Tape, end: int) -> None:
    """tarfile stops silently at a damaged header and at a missing end marker (two zero blocks); both are errors."""
    if tape.size - tape.zeros > end:
        raise InputError(f"shard {url!r} is cut short or damaged at byte {end} of {tape.size}: no tar header there")
    if tape.size - end < 2 * tarfile.BLOCKSIZE or tape.size % tarfile.BLOCKSIZE:
        raise InputError(f"shard {url!r} is cut short: it ends at byte {tape.size}, without its end-of-archive marker")


def _sample(shard: str, key: str, parts: Parts, classes: int) -> Sample:
    """ValueError with the reason when the group is no sample of `classes` classes."""
    images = [content for suffix, content in parts if suffix != CLASS_SUFFIX]
    labels = [content.strip() for suffix, content in parts if suffix == CLASS_SUFFIX]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{len(images)} images ({', '.join(IMAGE_SUFFIXES)}) and {len(labels)} classes (cls), not 1 and 1"
        )
    if not images[0]:
        raise ValueError(f"image of 0 bytes, or of more than {MOST_BYTES}")
    text = labels[0][:20].decode("utf-8", "replace")
    if not labels[0].isdigit() or len(labels[0]) > 18:
        raise ValueError(f"class {text!r} is not a whole number")
    if int(text) >= classes:
        raise ValueError(f"class id {int(text)} out of range 0..{classes - 1}")
    return Sample(key, images[0], int(text), shard)


def samples_of(shard: Shard, classes: int, quarantine: Quarantine) -> Iterator[Sample]:
    """The sound samples of one shard; what is wrong with the others goes to the quarantine."""
    for key, parts in shard.groups():
        if quarantine.holds(shard.name, key):
            continue
        try:
            sample = _sample(shard.name, key, parts, classes)
        except ValueError as error:
            quarantine.add(shard.name, key, str(error))
        else:
            yield sample
