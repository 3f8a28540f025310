"""Results by what they are: put and get by content over fsspec (a folder, S3, ...), whole and checked.

`KIND/DIGEST.json` is written last and names the blobs of a result with their sha256, and what the result was made of;
`blobs/SHA256` holds the bytes. A result is there when its entry is; a blob that is missing or altered makes the result
missing. Writers of one result may come together: the last entry stands, whole.
"""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
from torch import Tensor

from dd_tasks.errors import InputError
from dd_tasks.folder import PAUSES, Folder
from dd_tasks.seconds import spent

log = logging.getLogger(__name__)
BUFFER = 1 << 20  # bytes of a large file that are written at once
IN_USE = timedelta(hours=1)  # an entry found after more than that is written again, so that it counts as young


@dataclass(frozen=True)
class Ref:
    """A stored result: its kind, and the identity of what made it."""

    kind: str
    digest: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.digest[:12]}"

    @property
    def name(self) -> str:
        """All of it, as `Ref.named` reads."""
        return f"{self.kind}/{self.digest}"

    @staticmethod
    def named(name: str) -> "Ref":
        kind, _, digest = name.rpartition("/")
        return Ref(kind, digest)


@dataclass(frozen=True)
class Result:
    """`facts` are JSON data, `tensors` named groups of tensors."""

    facts: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Entry:
    """What the store says of a result: its facts, the sha256 of its blobs by group, and what it was made of."""

    facts: dict[str, Any]
    blobs: dict[str, str]
    inputs: tuple[Ref, ...] = ()

    def to_bytes(self) -> bytes:
        inputs = [ref.name for ref in dict.fromkeys(self.inputs)]
        return json.dumps(
            {"facts": self.facts, "blobs": self.blobs, "inputs": inputs}, sort_keys=True, indent=1
        ).encode()

    @staticmethod
    def of(data: bytes | None) -> "Entry | None":
        """None for what is no whole entry. One that names no inputs has none."""
        try:
            read = json.loads(data or b"")
        except (ValueError, RecursionError):
            return None
        if not isinstance(read, dict) or not all(isinstance(read.get(part), dict) for part in ("facts", "blobs")):
            return None
        inputs = read.get("inputs", [])
        if not isinstance(inputs, list) or not all(
            isinstance(name, str) for name in (*inputs, *read["blobs"].values())
        ):
            return None
        return Entry(read["facts"], read["blobs"], tuple(map(Ref.named, inputs)))


class Missing(InputError, KeyError):
    """A result that is not there, or not whole: it was never made, or was collected or harmed since."""

    __str__ = Exception.__str__  # KeyError's would quote it


class Store(Folder):
    """The store at a URL or folder. InputError where it cannot be written; Unreachable, an OSError, once it has not
    answered for more than a minute."""

    def __init__(self, url: str, pauses: tuple[float, ...] = PAUSES, *, checked: bool = True) -> None:
        super().__init__(url, pauses)
        if checked:
            self.check()

    @spent("store")
    def put(
        self, ref: Ref, facts: Mapping[str, Any], inputs: Iterable[Ref] = (), **groups: Mapping[str, Tensor] | str
    ) -> Ref:
        """Store JSON facts and groups of tensors, made of other results; the entry appears whole or not at all. A group
        that is there already, or a file that was filled, is told by its sha256, as `put_group` returns it."""
        blobs = {name: group if isinstance(group, str) else self.put_group(group) for name, group in groups.items()}
        self.write(self._entry(ref), Entry(dict(facts), blobs, tuple(inputs)).to_bytes(), durable=True)
        return ref

    @spent("store")
    def find(self, ref: Ref) -> dict[str, Any] | None:
        """The facts of a result that is there and whole, else None. Reads every blob of it; `get` only those named.

        Garbage collection spares what was found of late.
        """
        entry = self.entry(ref)
        if entry is None:
            return None
        for name, sha256 in entry.blobs.items():
            if self._blob(sha256) is None:
                log.warning("%s: its %s is missing or altered in the store; made again", ref, name)
                return None
        self._use(ref, entry)
        return dict(entry.facts)

    def _use(self, ref: Ref, entry: Entry) -> None:
        written = self.written(self._entry(ref))
        if written is not None and datetime.now(UTC) - written > IN_USE:
            self.write(self._entry(ref), entry.to_bytes())

    @spent("store")
    def get(self, ref: Ref, *groups: str) -> Result:
        """The facts of a stored result and the groups of its tensors that are named. Missing where any is."""
        entry, tensors = self.known(ref), {}
        for name in groups:
            blob = self._blob(entry.blobs[name]) if name in entry.blobs else None
            if blob is None:
                raise Missing(
                    f"{ref}: its {name} is missing or altered in the store {self.url}; the same command makes it again"
                )
            tensors[name] = self._tensors(ref, name, blob)
        return Result(entry.facts, tensors)

    def _tensors(self, ref: Ref, name: str, blob: bytes) -> dict[str, Tensor]:
        try:
            return safetensors.torch.load(blob)
        except Exception as error:  # whatever a file that is none makes its reader raise
            raise Missing(f"{ref}: its {name} in the store {self.url} is no safetensors file ({error})") from None

    @contextmanager
    def filling(self, name: str) -> Iterator["Filling"]:
        """A large file of a store on this machine, to be written piece by piece. Once the block is left it is there
        whole, under its sha256; or, after an exception, not at all."""
        assert self.local
        partial = Path(self.path("blobs", f"{name}.{uuid.uuid4().hex}.partial"))
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb", buffering=BUFFER) as raw:
                yield (file := Filling(raw))
                raw.flush()
                os.fsync(raw.fileno())
            path = self.path("blobs", file.sha256)
            partial.replace(path)
            _checked[path] = _state(path), file.sha256
        finally:
            partial.unlink(missing_ok=True)

    def file(self, ref: Ref, group: str) -> str | None:
        """Where a group that was filled lies on this machine, to be mapped; None where it is not there and whole. Its
        content is checked once a process, and again where it was touched since. Counts as a use, as `find` does."""
        entry = self.entry(ref) if self.local else None
        if entry is None or group not in entry.blobs:
            return None
        path = self.path("blobs", entry.blobs[group])
        if not os.path.isfile(path) or _sha256_of(path) != entry.blobs[group]:
            log.warning("%s: its %s is missing or altered in the store; made again", ref, group)
            return None
        self._use(ref, entry)
        return path

    @spent("store")
    def size(self, refs: Iterable[Ref]) -> int:
        """Bytes of results that are there: their entries and blobs, each once. Missing where one is."""
        paths = set()
        for ref in refs:
            entry = self.known(ref)
            paths |= {self._entry(ref), *(self.path("blobs", sha256) for sha256 in entry.blobs.values())}
        try:
            return sum(self.fs.sizes(sorted(paths)))
        except FileNotFoundError as error:
            raise Missing(f"a blob is missing in the store {self.url}: {error.filename or error}") from None

    def entry(self, ref: Ref) -> Entry | None:
        return Entry.of(self.read(self._entry(ref)))

    def known(self, ref: Ref) -> Entry:
        """The entry of a result that is there. Missing where it is not."""
        entry = self.entry(ref)
        if entry is None:
            raise Missing(f"{ref} is not in the store {self.url}; the same command makes it again")
        return entry

    def _entry(self, ref: Ref) -> str:
        return self.path(f"{ref.name}.json")

    def put_group(self, group: Mapping[str, Tensor]) -> str:
        """Store a group of tensors ahead of the results that will name it by the sha256 returned.

        Written even where it is there: it counts as young then, and garbage collection leaves it.
        """
        data = safetensors.torch.save(dict(group))
        sha256 = hashlib.sha256(data).hexdigest()
        self.write(self.path("blobs", sha256), data)
        return sha256

    def _blob(self, sha256: str) -> bytes | None:
        data = self.read(self.path("blobs", sha256), small=False)
        return data if data is not None and hashlib.sha256(data).hexdigest() == sha256 else None


class Filling:
    """A file that is being written, and the sha256 of what was written so far."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._sha256 = raw, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        self._raw.write(data)
        self._sha256.update(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def _state(path: str) -> tuple[int, ...]:
    """Changes whenever a file is written or replaced."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sha256_of(path: str) -> str:
    """Of a large file; read once a process, and again when it was touched."""
    state = _state(path)
    if _checked.get(path, ((), ""))[0] != state:
        with open(path, "rb") as file:
            _checked[path] = state, hashlib.file_digest(file, "sha256").hexdigest()
    return _checked[path][1]


_checked: dict[str, tuple[tuple[int, ...], str]] = {}  # path -> its state when it was read, and the sha256
