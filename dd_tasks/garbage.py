"""What a store holds and for whom, and the collection of what nobody needs any more.

A run that has made its artifact is a root: `runs/KEY.json` names the results it holds. What a root reaches, through the
inputs that entries name, stays; so does what was written or found of late, and all that this was made of: a run in
progress has no root yet.
"""

import json
import re
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from dd_tasks.errors import InputError, unknown
from dd_tasks.folder import File
from dd_tasks.store import Ref, Store

ENTRY = re.compile(r"(?!runs/|blobs/)([^/]+/[0-9a-f]{64})\.json")
BLOB = re.compile(r"blobs/[0-9a-f]{64}")
ROOT = re.compile(r"runs/([^/]+)\.json")
LEFTOVER = re.compile(r"\.probe-[0-9a-f]{32}|[^/]+/[^/]+\.[0-9a-f]{32}\.partial")
AT_ONCE = 16  # requests to the store
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Root:
    """A run that made its artifact: the artifact's name and identity, the method, when (ISO 8601), what it holds."""

    name: str
    identity: str
    preset: str
    when: str
    refs: tuple[Ref, ...]

    @property
    def key(self) -> str:
        """The same for the same artifact of the same name."""
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', self.name).strip('-.') or 'run'}-{self.identity[:12]}"

    def to_bytes(self) -> bytes:
        told = {"name": self.name, "identity": self.identity, "preset": self.preset, "when": self.when}
        return json.dumps({**told, "refs": [ref.name for ref in dict.fromkeys(self.refs)]}, indent=1).encode()

    @staticmethod
    def of(data: bytes) -> "Root":
        """ValueError for what is none."""
        try:
            told = json.loads(data)
            refs = tuple(Ref.named(name) for name in told["refs"])
            name, identity, preset, when = about = [told[what] for what in ("name", "identity", "preset", "when")]
            if not all(isinstance(said, str) for said in about):
                raise TypeError("what it says of the run is no text")
            return Root(name, identity, preset, when, refs)
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class Kept:
    """An entry and its file; what is no whole entry names nothing."""

    file: File
    blobs: frozenset[str] = frozenset()
    inputs: tuple[Ref, ...] = ()


@dataclass(frozen=True)
class Contents:
    """All that is ours in a store. Other files are nobody's business here, and are never touched."""

    entries: dict[Ref, Kept]
    blobs: dict[str, File]  # by sha256
    leftovers: dict[str, File]  # by path: of writes and checks that were killed
    roots: dict[str, Root]  # by key


@dataclass(frozen=True)
class Garbage:
    """What would go: entries, blobs by sha256, leftovers by path, and roots by key. Bytes of all but roots."""

    entries: dict[Ref, File]
    blobs: dict[str, File]
    leftovers: dict[str, File]
    forgotten: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(file.size for part in (self.entries, self.blobs, self.leftovers) for file in part.values())

    def __bool__(self) -> bool:
        return bool(self.entries or self.blobs or self.leftovers or self.forgotten)


@dataclass(frozen=True)
class Kind:
    """Results of one kind: how many, the bytes of their entries and blobs, when the first and the last were written."""

    name: str
    count: int
    bytes: int
    oldest: datetime | None
    newest: datetime | None


def record(store: Store, root: Root) -> None:
    """From now on the store keeps what the run holds. The same again replaces the root."""
    store.write(store.path("runs", f"{root.key}.json"), root.to_bytes(), durable=True)


def contents(store: Store) -> Contents:
    """Read anew. InputError where there is no store, or for a root that cannot be read: what it holds is not known."""
    files = store.files()
    entries = {Ref.named(found[1]): file for path, file in files.items() if (found := ENTRY.fullmatch(path))}
    read = _together(store.entry, entries)
    kept = {
        ref: Kept(file, frozenset(entry.blobs.values()), entry.inputs) if (entry := read[ref]) else Kept(file)
        for ref, file in entries.items()
    }
    keys = [found[1] for path in files if (found := ROOT.fullmatch(path))]
    roots = _together(lambda key: _root(store, key), keys)
    return Contents(
        kept,
        {path.removeprefix("blobs/"): file for path, file in files.items() if BLOB.fullmatch(path)},
        {path: file for path, file in files.items() if LEFTOVER.fullmatch(path)},
        {key: root for key, root in roots.items() if root is not None},
    )


def _root(store: Store, key: str) -> Root | None:
    """None for one that was forgotten meanwhile."""
    data = store.read(path := store.path("runs", f"{key}.json"))
    try:
        return None if data is None else Root.of(data)
    except ValueError:
        raise InputError(
            f"{path} cannot be read, so what that run holds is not known; remove it, or run that again"
        ) from None


def _together(call: Callable[[A], B], items: Iterable[A]) -> dict[A, B]:
    """The answers by item: a store far away is asked for several at once."""
    listed = list(items)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return dict(zip(listed, pool.map(call, listed), strict=True))


def reachable(entries: Mapping[Ref, Kept], begin: Iterable[Ref]) -> set[Ref]:
    """These, and through inputs all that they were made of."""
    found: set[Ref] = set()
    ahead = list(begin)
    while ahead:
        ref = ahead.pop()
        if ref not in found:
            found.add(ref)
            ahead += entries[ref].inputs if ref in entries else ()
    return found


def garbage(found: Contents, before: datetime, forget: Iterable[str] = ()) -> Garbage:
    """What no root reaches and no young entry was made of, the blobs that no other entry names, and leftovers; of all
    these, what was written before that time. Roots to forget are told by their key, or a name that only one has."""
    forgotten = tuple(dict.fromkeys(_key(name, found.roots) for name in forget))
    held = [ref for key, root in found.roots.items() if key not in forgotten for ref in root.refs]
    young = [ref for ref, kept in found.entries.items() if not _older(kept.file, before)]
    stay = reachable(found.entries, [*held, *young])
    entries = {ref: kept.file for ref, kept in found.entries.items() if ref not in stay}
    leftovers = {path: file for path, file in found.leftovers.items() if _older(file, before)}
    return Garbage(entries, _unnamed(found, entries, before), leftovers, forgotten)


def _unnamed(found: Contents, gone: Container[Ref], before: datetime) -> dict[str, File]:
    """The blobs from before that time that no entry names, but for those that are gone."""
    named = {sha256 for ref, kept in found.entries.items() if ref not in gone for sha256 in kept.blobs}
    return {sha256: file for sha256, file in found.blobs.items() if sha256 not in named and _older(file, before)}


def _older(file: File, before: datetime) -> bool:
    return file.written is not None and file.written < before


def _key(name: str, roots: Mapping[str, Root]) -> str:
    keys = [key for key, root in roots.items() if name in (key, root.name)]
    if not keys:
        raise unknown("run", name, roots)
    if len(keys) > 1 and name not in roots:
        raise InputError(f"run {name!r}: several have that name (choices: {', '.join(sorted(keys))})")
    return name if name in roots else keys[0]


def collect(store: Store, before: datetime, forget: Iterable[str] = ()) -> Garbage:
    """Delete the garbage, and return what was deleted.

    Safe while runs go on. Entries go first; then all entries are read again, and blobs that none of them names go. Each
    file's time is looked at once more just before, since `find` and `put` make young what they use. A run that uses a
    result in that very moment finds it missing: that costs making it again, never a wrong result.
    """
    first = garbage(contents(store), before, forget)
    for key in first.forgotten:
        store.remove(store.path("runs", f"{key}.json"))
    entries = _delete(store, {f"{ref.name}.json": file for ref, file in first.entries.items()}, before)
    unnamed = _unnamed(contents(store), (), before)
    blobs = _delete(store, {f"blobs/{sha256}": file for sha256, file in unnamed.items()}, before)
    leftovers = _delete(store, first.leftovers, before)
    return Garbage(
        {Ref.named(path.removesuffix(".json")): file for path, file in entries.items()},
        {path.removeprefix("blobs/"): file for path, file in blobs.items()},
        leftovers,
        first.forgotten,
    )


def _delete(store: Store, files: Mapping[str, File], before: datetime) -> dict[str, File]:
    """Those of the files that were still as old."""

    def gone(path: str) -> bool:
        written = store.written(store.path(path))
        if written is None or written >= before:
            return False
        store.remove(store.path(path))
        return True

    done = _together(gone, files)
    return {path: file for path, file in files.items() if done[path]}


def kinds(found: Contents) -> list[Kind]:
    """By name. A blob counts once in each kind that names it."""
    by_kind: dict[str, list[Kept]] = {}
    for ref, kept in found.entries.items():
        by_kind.setdefault(ref.kind, []).append(kept)
    return [_summary(name, every, found.blobs) for name, every in sorted(by_kind.items())]


def _summary(name: str, every: list[Kept], blobs: Mapping[str, File]) -> Kind:
    named = {sha256 for kept in every for sha256 in kept.blobs} & blobs.keys()
    times = [kept.file.written for kept in every if kept.file.written]
    size = sum(kept.file.size for kept in every) + sum(blobs[sha256].size for sha256 in named)
    return Kind(name, len(every), size, min(times, default=None), max(times, default=None))
