"""Real images decoded once: a file of the store that every process maps into its memory, so that later passes decode
and copy nothing.

N images in the order in which their shards are read, C channels (3), S x S pixels. The file is uint8 [N, C, S, S];
beside it are labels, keys, and what is wrong with samples that are not there. Which of the images somebody asks for and
how many faults are tolerated has no part in it: training and held-out images are parts of one file.
"""

import errno
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dd_tasks import shards
from dd_tasks.errors import InputError
from dd_tasks.feeds import MEMORY_BYTES, Feed, InMemory, Part
from dd_tasks.recipe import identity
from dd_tasks.shards import Keep
from dd_tasks.sources import Source
from dd_tasks.store import Missing, Ref, Store
from dd_tasks.tars import Quarantine
from dd_tasks.types import Track, untracked

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

log = logging.getLogger(__name__)


class Flaw(NamedTuple):
    """A fault of a sample of the shard that is read at this place; `decoding` where only decoding finds it."""

    place: int
    key: str
    reason: str
    decoding: bool


@dataclass(frozen=True)
class Pixels:
    """All images of a source at one side, and what is wrong with its other samples."""

    images_NCSS: Tensor
    labels_N: Tensor
    keys: tuple[str, ...]
    flaws: tuple[Flaw, ...]

    def part(self, keep: Keep) -> Feed:
        """The images whose key is kept."""
        whole = InMemory(self.images_NCSS, self.labels_N, self.keys)
        rows = [row for row, key in enumerate(self.keys) if keep(key)]
        return whole if len(rows) == len(self.keys) else Part(whole, torch.tensor(rows, dtype=torch.int64))


def ref_of(source: Source, side: int) -> Ref:
    """Of the decoded images of a source in a store."""
    return Ref("pixels", identity("pixels", 1, source=source.digest, side=side))


def belongs(source: Source, side: int, store: Store, memory_bytes: int = MEMORY_BYTES) -> bool:
    """Whether the store is to keep them."""
    return store.local and shards.fits(source, side, memory_bytes)


def feed(
    source: Source, side: int, store: Store, *, keep: Keep = shards.keep_all, quarantine: Quarantine,
    track: Track = untracked, memory_bytes: int = MEMORY_BYTES,
) -> Feed:  # fmt: skip
    """What `shards.feed` serves, with the same faults; where all images fit into `memory_bytes`, out of a file that the
    store has or gets now. For that it lies on this machine and has room: else they are decoded into memory."""
    here = belongs(source, side, store, memory_bytes)
    found = get(source, side, store) if here else None
    if found is not None:
        _tell(found.flaws, source, keep, quarantine)
    elif here and put(source, side, store, keep, quarantine, track):
        found = get(source, side, store)
    if found is None:
        return shards.feed(source, side=side, keep=keep, quarantine=quarantine, memory_bytes=memory_bytes, track=track)
    served = found.part(keep)
    if not served.samples:
        raise InputError(f"none of {source.index.samples} samples is kept")
    return served


def _tell(flaws: Iterable[Flaw], source: Source, keep: Keep, quarantine: Quarantine) -> None:
    """To the quarantine what a pass over the shards would tell it."""
    names = [entry.name for entry, _ in shards.in_order(source)]
    for flaw in flaws:
        if not flaw.decoding or keep(flaw.key):
            quarantine.add(names[flaw.place], flaw.key, flaw.reason)


def get(source: Source, side: int, store: Store) -> Pixels | None:
    """What the store has, mapped into memory; None where it is not there or not whole."""
    ref = ref_of(source, side)
    try:
        path, found = store.file(ref, "images"), store.get(ref, "about")
    except Missing:
        return None
    if path is None:
        return None
    try:
        labels_N, keys = found.tensors["about"]["labels_N"], _unpacked(found.tensors["about"]["keys"])
        flaws = tuple(Flaw(*flaw) for flaw in found.facts["flaws"])
        size = len(labels_N) * 3 * side * side
        agree = os.path.getsize(path) == size and len(keys) == len(labels_N) == labels_N.numel()
    except (KeyError, TypeError, ValueError):
        agree = False
    if not agree:  # to map more than a file has would end the process
        log.warning("%s: what the store has of it does not agree; made again", ref)
        return None
    images_NCSS = torch.from_file(path, shared=False, size=size, dtype=torch.uint8).view(-1, 3, side, side)
    return Pixels(images_NCSS, labels_N.long(), keys, flaws)


def put(source: Source, side: int, store: Store, keep: Keep, quarantine: Quarantine, track: Track) -> bool:
    """Decode all images into the store; whether it had room, and anything to keep. The first fault that whoever asked
    does not tolerate ends it."""
    ledger = Ledger(asked=quarantine, keep=keep)
    samples = track(shards.stream(source, quarantine=ledger), "reading images", source.index.samples)
    labels, keys = list[int](), list[str]()
    try:
        with store.filling("images") as file:
            for key, image_CSS, label in shards.decoded(samples, side, shards.keep_all, replace(ledger, decoding=True)):
                file.write(image_CSS.contiguous().numpy().data)
                labels.append(label)
                keys.append(key)
    except OSError as error:
        if error.errno not in FULL:
            raise
        log.warning("store %s: no room for decoded images (%s); they stay in memory", store.url, error.strerror)
        return False
    if not keys:
        return False
    places = {entry.name: place for place, (entry, _) in enumerate(shards.in_order(source))}
    flaws = [Flaw(places[shard], key, reason, decoding) for shard, key, reason, decoding in ledger.noted]
    about = {"labels_N": torch.tensor(labels, dtype=torch.int64), "keys": _packed(keys)}
    ref = store.put(
        ref_of(source, side), {"side": side, "images": len(keys), "flaws": flaws}, images=file.sha256, about=about
    )
    log.info("%d images decoded at %d px, for later passes (%s)", len(keys), side, ref)
    return True


@dataclass
class Ledger(Quarantine):
    """Stands in for a quarantine while all is decoded: notes every fault, and tells what concerns whoever asked: that
    of a sample whatever its key, that of an image only where its key is kept."""

    asked: Quarantine = field(default_factory=Quarantine)
    keep: Keep = shards.keep_all
    decoding: bool = False
    noted: list[tuple[str, str, str, bool]] = field(default_factory=list)

    def add(self, shard: str, key: str, reason: str) -> None:
        if not self.holds(shard, key):
            if not self.decoding or self.keep(key):
                self.asked.add(shard, key, reason)
            self._tolerated.add((shard, key))
            self.noted.append((shard, key, reason, self.decoding))


def _packed(keys: list[str]) -> Tensor:
    """As bytes, an end mark each: no name of a file has one in it."""
    joined = "".join(f"{key}\0" for key in keys).encode("utf-8", "surrogateescape")
    return torch.from_numpy(np.frombuffer(joined, np.uint8).copy())


def _unpacked(keys: Tensor) -> tuple[str, ...]:
    return tuple(keys.numpy().tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1])
