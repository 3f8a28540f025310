"""What the small Hub of the tests holds: repositories of commits of files, large objects, and how it is to fail."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

WRITE = "hf_write_token_of_the_tests"
LARGE = (".parquet", ".png", ".safetensors")  # kept as LFS objects
DATE = "2026-01-01T00:00:00.000Z"
Files = dict[str, "File"]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a revision; `large` where git has only a pointer to it."""

    content: bytes
    large: bool

    @property
    def pointer(self) -> bytes:
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{sha256(self.content)}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        blob = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return sha256(self.content) if self.large else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        """As the tree lists it."""
        found = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        lfs = {"oid": sha256(self.content), "size": len(self.content), "pointerSize": len(self.pointer)}
        return found | ({"lfs": lfs} if self.large else {})


@dataclass(frozen=True)
class Commit:
    files: Files
    title: str
    description: str = ""
    parent: str | None = None

    @property
    def oid(self) -> str:
        tree = {path: file.oid for path, file in sorted(self.files.items())}
        return hashlib.sha1(json.dumps([tree, self.title, self.description, self.parent]).encode()).hexdigest()


@dataclass
class Repository:
    """Commits by id, and refs (`refs/heads/main`, `refs/tags/v1`, `refs/pr/1`) to them."""

    kind: str
    name: str
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pull_requests: list[str] = field(default_factory=list)  # their titles

    def add(self, ref: str, commit: Commit) -> str:
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit.oid

    def oid(self, revision: str) -> str | None:
        names = [f"refs/heads/{revision}", f"refs/tags/{revision}", revision]
        named = [self.refs[name] for name in names if name in self.refs]
        return named[0] if named else revision if revision in self.commits else None

    def named(self, prefix: str) -> list[dict[str, str]]:
        found = {ref.removeprefix(prefix): oid for ref, oid in self.refs.items() if ref.startswith(prefix)}
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in found.items()]


@dataclass
class Fault:
    """What happens to calls number `first` to `last`, counted from 1 when the fault is set, of those with `on` in them.

    `kind`: a status (429, 500, 503), `reset` (the connection breaks while the request is sent), `slow` (the call is
    done after `seconds`, or as soon as the client waits no longer), or `lost` (it is done, its answer never comes).
    """

    kind: str
    first: int = 1
    last: int = 1
    seconds: float = 0.0
    on: str = ""
    count: int = 0

    def strikes(self, call: str) -> bool:
        self.count += self.on in call
        return self.on in call and self.first <= self.count <= self.last


@dataclass
class Hub:
    """`tokens` may read and write everything; others read what is public."""

    tokens: set[str] = field(default_factory=lambda: {WRITE})
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    fault: Fault | None = None
    calls: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def create(self, kind: str, name: str, private: bool = False) -> Repository:
        made = self.repositories[kind, name] = Repository(kind, name, private)
        rules = "".join(f"*{ending} filter=lfs diff=lfs merge=lfs -text\n" for ending in LARGE)
        made.add("refs/heads/main", Commit({".gitattributes": File(rules.encode(), False)}, "initial commit"))
        return made
