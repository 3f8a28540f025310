"""Results by what they are: put and get over fsspec (a folder, S3, ...), atomic and checked.

`KIND/DIGEST.json` is written last and names the blobs of a result with their sha256; `blobs/SHA256` holds the bytes.
A result is there when its entry is; a blob that is missing or altered makes the result missing.
"""

import hashlib
import json
import logging
import posixpath
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import safetensors.torch
from torch import Tensor

from dd_tasks.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ref:
    """A stored result: its kind, and the identity of what made it."""

    kind: str
    digest: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.digest[:12]}"


@dataclass(frozen=True)
class Result:
    """`facts` are JSON data, `tensors` named groups of tensors."""

    facts: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


class Store:
    """The store at a URL or folder. InputError where it cannot be written."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
            self.fs.makedirs(posixpath.join(self.root, "blobs"), exist_ok=True)
            probe = self._path(f".probe-{uuid.uuid4().hex}")
            self.fs.pipe_file(probe, b"")
            self.fs.rm_file(probe)
        except OSError as error:
            raise InputError(f"store {url} cannot be written: {error.strerror or error}") from None
        except (ValueError, ImportError) as error:  # a protocol that nobody knows, or one whose package is missing
            raise InputError(f"store {url}: {error}") from None

    def put(self, ref: Ref, facts: Mapping[str, Any], **groups: Mapping[str, Tensor]) -> Ref:
        """Store JSON facts and groups of tensors; the entry appears whole or not at all."""
        blobs = {name: self._put_blob(safetensors.torch.save(dict(group))) for name, group in groups.items()}
        entry = json.dumps({"facts": dict(facts), "blobs": blobs}, sort_keys=True, indent=1).encode()
        self._write(self._entry(ref), entry)
        return ref

    def find(self, ref: Ref) -> dict[str, Any] | None:
        """The facts of a result that is there and whole, else None. Reads every blob of it; `get` only those named."""
        entry = self._read_entry(ref)
        if entry is None:
            return None
        for name, sha256 in entry["blobs"].items():
            if self._blob(sha256) is None:
                log.warning("%s: its %s is missing or altered in the store; made again", ref, name)
                return None
        return dict(entry["facts"])

    def get(self, ref: Ref, *groups: str) -> Result:
        """The facts of a stored result and the groups of its tensors that are named. KeyError where any is missing."""
        entry = self._read_entry(ref)
        if entry is None:
            raise KeyError(f"{ref} is not in the store {self.url}")
        tensors = {}
        for name in groups:
            blob = self._blob(entry["blobs"][name]) if name in entry["blobs"] else None
            if blob is None:
                raise KeyError(f"{ref}: its {name} is missing or altered in the store {self.url}")
            tensors[name] = safetensors.torch.load(blob)
        return Result(entry["facts"], tensors)

    def size(self, refs: Iterable[Ref]) -> int:
        """Bytes of results that are there: their entries and blobs, each once. KeyError where one is missing."""
        paths = set()
        for ref in refs:
            entry = self._read_entry(ref)
            if entry is None:
                raise KeyError(f"{ref} is not in the store {self.url}")
            paths |= {self._entry(ref), *(self._path("blobs", sha256) for sha256 in entry["blobs"].values())}
        return sum(self.fs.sizes(sorted(paths)))

    def _path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)

    def _entry(self, ref: Ref) -> str:
        return self._path(ref.kind, f"{ref.digest}.json")

    def _read_entry(self, ref: Ref) -> dict[str, Any] | None:
        try:
            entry = json.loads(self.fs.cat_file(self._entry(ref)))
        except (FileNotFoundError, ValueError):
            return None
        whole = isinstance(entry, dict) and all(isinstance(entry.get(part), dict) for part in ("facts", "blobs"))
        return entry if whole else None

    def _put_blob(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        if self._blob(sha256) is None:
            self._write(self._path("blobs", sha256), data)
        return sha256

    def _blob(self, sha256: str) -> bytes | None:
        try:
            data: bytes = self.fs.cat_file(self._path("blobs", sha256))
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == sha256 else None

    def _write(self, path: str, data: bytes) -> None:
        """To a name of its own, then renamed: no reader ever sees half a file."""
        self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex}.partial"
        try:
            self.fs.pipe_file(partial, data)
            self.fs.mv(partial, path)
        except BaseException:
            if self.fs.exists(partial):
                self.fs.rm_file(partial)
            raise
