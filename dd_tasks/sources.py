"""A set of shards and what they hold, whole or of some classes alone; and its identity, as a whole and by class."""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dd_tasks.decoding import mean_and_std_of
from dd_tasks.errors import InputError, unknown
from schemas.index import ShardEntry, ShardIndex

MOST_LISTED = 100  # classes of one shard that an index names: of large sets it would be larger than what it describes


@dataclass(frozen=True)
class Source:
    """A set of shards: `urls[i]` is where `index.shards[i]` lies. Where some of their classes are used, the index is of
    these and of the shards that hold them, and `known` are all the classes, by id."""

    urls: tuple[str, ...]
    index: ShardIndex
    known: tuple[str, ...] = ()

    @cached_property
    def ids(self) -> tuple[int, ...]:
        """The ids, in the shards, of the classes that are used."""
        places = {name: i for i, name in enumerate(self.known or self.index.classes)}
        return tuple(places[name] for name in self.index.classes)

    @property
    def digest(self) -> str:
        """Of the shards' content and the class names; where the shards lie and what they are called does not count."""
        content: dict[str, Any] = {"classes": self.index.classes, "shards": _sha256s(self.index.shards)}
        return _digest(content | ({"ids": self.ids} if self.known else {}))

    @cached_property
    def class_digests(self) -> tuple[str, ...]:
        """Of each class, of the content of the shards that hold it or may hold it."""
        anywhere = _sha256s(shard for shard in self.index.shards if shard.classes is None)
        holding: dict[int, list[str]] = {label: [] for label in self.ids}
        for shard in self.index.shards:
            for label in holding.keys() & set(shard.classes or ()):
                holding[label].append(shard.sha256)
        shared = _digest({"shards": anywhere})
        return tuple(_digest({"id": i, "shared": shared, "shards": sorted(found)}) for i, found in holding.items())


def _sha256s(shards: Iterable[ShardEntry]) -> list[str]:
    return sorted(shard.sha256 for shard in shards)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def serves(index: ShardIndex, names: Set[str], classes: Sequence[str], only: Sequence[str]) -> bool:
    """Whether the index lists all shards of these names, and says of all others that they hold no class in use."""
    if not only:
        return {entry.name for entry in index.shards} == names
    wanted = set(only)
    used = {label for label, name in enumerate(classes) if name in wanted}
    needed = {entry.name for entry in index.shards if entry.classes is None or used.intersection(entry.classes)}
    return index.pixels_per_class is not None and needed <= names <= {entry.name for entry in index.shards}


def of_classes(source: Source, only: Sequence[str]) -> Source:
    """The part of a source that holds these classes, in their order there; all of it where none are named.

    InputError for a class that it has not, and for one class alone.
    """
    known, index = source.index.classes, source.index
    names, wanted = set(known), set(only)
    if strangers := [name for name in only if name not in names]:
        raise unknown("class", strangers[0], known)
    ids = [label for label, name in enumerate(known) if name in wanted]
    if len(ids) == 1:
        raise InputError(f"class {only[0]!r} alone: a run needs two classes or more")
    if len(ids) in (0, len(known)):
        return source
    assert index.pixels_per_class is not None
    if not any(index.samples_per_class[label] for label in ids):
        raise InputError(f"classes {', '.join(only)}: there is no image of them")
    pairs = zip(index.shards, source.urls, strict=True)
    used = [(e, url) for e, url in pairs if e.classes is None or not set(ids).isdisjoint(e.classes)]
    mean, std = mean_and_std_of([index.pixels_per_class[label] for label in ids])
    update = {
        "classes": [known[label] for label in ids], "shards": [entry for entry, _ in used], "mean": mean, "std": std,
        "samples_per_class": [index.samples_per_class[label] for label in ids],
        "pixels_per_class": [index.pixels_per_class[label] for label in ids],
    }  # fmt: skip
    return Source(tuple(url for _, url in used), index.model_copy(update=update), tuple(known))


def noted(labels: Collection[int]) -> list[int] | None:
    """The classes of a shard as an index names them."""
    return sorted(labels) if len(labels) <= MOST_LISTED else None
