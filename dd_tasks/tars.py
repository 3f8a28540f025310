"""One WebDataset shard, read as a stream: a plain tar whose members KEY.jpg and KEY.cls make up a sample.

What a shard says is not trusted: members are looked up in a whitelist of suffixes, keys are names and never paths, and
a shard is read to its end-of-archive marker before it counts as whole. Nothing is left out silently: what is wrong with
a sample is a Fault, and a Quarantine says how many of those are tolerated (by default none).
"""

import glob
import hashlib
import logging
import math
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, BinaryIO, cast

import fsspec

from dd_tasks.errors import InputError
from dd_tasks.whole import told

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
CLASS_SUFFIX = "cls"
SUFFIXES = frozenset((*IMAGE_SUFFIXES, CLASS_SUFFIX))
MOST_BYTES = 1 << 28  # of one member
CHUNK = 1 << 20  # bytes that are read at a time
MOST_SHARDS = 1 << 20  # of one brace pattern: a slip of the pen must not fill the memory with names
BRACES = re.compile(r"[{][^{}]*[}]")
RANGE = re.compile(r"[{](-?[0-9]{1,99})[.]{2}(-?[0-9]{1,99})(?:[.]{2}(-?[0-9]{1,99}))?[}]")
NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$").match
OCTAL = re.compile(rb"[0-7]+").fullmatch
# By which fsspec tells of a package that is missing, and of a URL or protocol that serves for something else.
UNREADABLE = (ImportError, ValueError, TypeError, NotImplementedError)
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
        with told(url):
            return fsspec.open(url, "rb").open() if is_remote(url) else open(url, "rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        number: object = error.errno  # fsspec's own errors have whatever they like there
        said = os.strerror(number) if isinstance(number, int) else "it is not there, or no server answers"
        raise InputError(f"cannot read {url!r}: {said}") from error
    except UNREADABLE as error:
        raise InputError(f"cannot read {url!r}: {error}") from error


def expect_few(pattern: str) -> None:
    """Before they are written out: braces in a row multiply what they stand for."""
    ranges = (RANGE.fullmatch(braces) for braces in BRACES.findall(pattern))
    sizes = [abs(int(found[2]) - int(found[1])) // max(1, abs(int(found[3] or 1))) + 1 for found in ranges if found]
    lists = [braces.count(",") + 1 for braces in BRACES.findall(pattern) if "," in braces]
    if math.prod(sizes + lists) > MOST_SHARDS:
        raise InputError(f"brace pattern {pattern!r} stands for more than {MOST_SHARDS:,} shards")


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
        with told(url):
            system, path = fsspec.core.url_to_fs(url)
            found = [system.unstrip_protocol(hit) for hit in system.glob(path)]
    except (FileNotFoundError, PermissionError, *UNREADABLE) as error:
        raise InputError(f"cannot list {url!r}: {error}") from error
    if not found:
        raise InputError(f"no shard matches {url!r}")
    return found


def size_of(url: str) -> int | None:
    """In bytes; None where the server does not say. InputError when there is no such file."""
    try:
        if not is_remote(url):
            return os.path.getsize(url)
        with told(url):
            system, path = fsspec.core.url_to_fs(url)
            return system.size(path)
    except (FileNotFoundError, PermissionError, *UNREADABLE) as error:
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
    """Read forward alone, in large chunks; counts and digests all that it reads, and knows how many zero bytes it ended
    with so far."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.size, self.zeros, self.sha256 = raw, 0, 0, hashlib.sha256()
        self._chunk, self._at = b"", 0

    def tell(self) -> int:
        return self.size - len(self._chunk) + self._at

    def peek(self, size: int) -> bytes:
        """What `read` would return, without moving."""
        if len(self._chunk) - self._at < size:
            self._load(size)
        return self._chunk[self._at : self._at + size]

    def read(self, size: int) -> bytes:
        data = self.peek(size)
        self._at += len(data)
        return data

    def seek(self, position: int) -> None:
        """Forward, at most to the end. tarfile.StreamError for a place that lies behind."""
        if position < self.tell():
            raise tarfile.StreamError("a shard is read forward alone")
        while (ahead := position - self.tell()) and self.read(min(ahead, CHUNK)):
            pass

    def finish(self) -> None:
        """Read to the end."""
        while self.read(CHUNK):
            pass

    def _load(self, size: int) -> None:
        parts, have = [self._chunk[self._at :]], len(self._chunk) - self._at
        while have < size and (part := self.raw.read(CHUNK)):
            self.size += len(part)
            self.sha256.update(part)
            zeros = len(part) - len(part.rstrip(b"\0"))
            self.zeros = self.zeros + zeros if zeros == len(part) else zeros
            parts.append(part)
            have += len(part)
        self._chunk, self._at = b"".join(parts), 0


class Member(tarfile.TarInfo):
    """A member's header. Of an ordinary file's only name and size are looked at: with small images most of the work is
    headers."""

    __slots__ = ()

    @classmethod
    def fromtarfile(cls, tar: Any) -> Any:
        tape: Tape = tar.fileobj
        found = None if tar.pax_headers else _ordinary(tape.peek(tarfile.BLOCKSIZE))
        if found is None:
            return super().fromtarfile(tar)
        name, size = found
        member = cls(name.decode(tar.encoding, tar.errors))
        member.size, member.offset = size, tape.tell()
        tape.read(tarfile.BLOCKSIZE)
        member.offset_data = member.offset + tarfile.BLOCKSIZE
        tar.offset = member.offset_data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        return member


def _ordinary(header: bytes) -> tuple[bytes, int] | None:
    """Name and size of an ordinary file; None for whatever else a header says, and for one that is damaged."""
    name, _, _ = header[:100].partition(b"\0")
    size, checksum = (header[at:end].strip(b" \0") for at, end in ((124, 136), (148, 156)))
    ours = header[156:157] in (b"0", b"\0") and not header[345:346].strip(b"\0") and name and name[-1:] != b"/"
    if not (ours and len(header) == tarfile.BLOCKSIZE and OCTAL(size) and OCTAL(checksum)):
        return None
    # The sum of all bytes, with spaces for the sum itself; most of them are zeros, which are faster left out.
    found = sum(header.translate(None, b"\0")) - sum(header[148:156]) + 8 * ord(" ")
    return (name, int(size, 8)) if found == int(checksum, 8) else None


@dataclass
class Shard:
    """A shard at `url`; `size` in bytes and `sha256` are of the whole file, known once it has been read to its end."""

    url: str
    size: int = 0
    sha256: str = ""

    @cached_property
    def name(self) -> str:
        return base_name(self.url)

    def groups(self) -> Iterator[tuple[str, Parts]]:
        """Neighbours of one key, images and classes only, in file order. InputError when cut short or damaged."""
        for key, group in groupby(self._members(), key=itemgetter(0)):
            yield key, list(_kept(group))

    def _members(self) -> Iterator[tuple[str, str, bytes]]:
        with told(self.url), open_binary(self.url) as raw:
            tape = Tape(raw)
            try:
                with tarfile.open(fileobj=cast(BinaryIO, tape), mode="r:", tarinfo=Member) as tar:
                    yield from _wanted(tar, tape)
                    end = tar.offset
            except OSError:
                raise
            except Exception as error:  # tarfile raises ValueError and others for what it cannot make a number of
                raise InputError(f"shard {self.url!r} is cut short or not a plain tar: {error}") from error
            tape.finish()
        _expect_marker(self.url, tape, end)
        self.size, self.sha256 = tape.size, tape.sha256.hexdigest()


def _kept(group: Iterator[tuple[str, str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Of several images or classes of one key, which make up no sample, the first alone is held."""
    seen = set[bool]()
    for _, suffix, content in group:
        yield suffix, b"" if (suffix == CLASS_SUFFIX) in seen else content
        seen.add(suffix == CLASS_SUFFIX)


def split_name(name: str) -> tuple[str, str] | None:
    """(key, suffix) by WebDataset's convention: the suffix starts at the first dot of the base name."""
    found = NAME(name)
    return (found[1], found[2].lower()) if found and not name.startswith("__") else None  # __x__ describes the shard


def _wanted(tar: Any, tape: Tape) -> Iterator[tuple[str, str, bytes]]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # tarfile remembers each, and a shard may hold millions
        named = split_name(member.name)
        if not named or named[1] not in SUFFIXES or not member.isreg():
            continue
        yield *named, _content(tar, member, tape)


def _content(tar: Any, member: Any, tape: Tape) -> bytes:
    """Nothing of a member above MOST_BYTES. tarfile.ReadError when it is cut short."""
    if member.size > MOST_BYTES:
        return b""
    if member.issparse():
        return bytes(tar.extractfile(member).read())
    tape.seek(member.offset_data)
    content = tape.read(member.size)
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


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
    name = shard.name
    for key, parts in shard.groups():
        if quarantine.holds(name, key):
            continue
        try:
            sample = _sample(name, key, parts, classes)
        except ValueError as error:
            quarantine.add(name, key, str(error))
        else:
            yield sample
