"""Images in batches, in an order that is a function of (seed, epoch).

N images, C channels (3), H x W pixels.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
MEMORY_BYTES = 4 << 30  # of decoded images that are kept at hand; more are read anew every time


def number(*what: object) -> int:
    """A 64-bit number drawn from `what`, the same everywhere."""
    text = "\0".join(map(str, what)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8])


@dataclass(frozen=True)
class Batch:
    """uint8 `images_NCHW`, int64 `labels_N`."""

    images_NCHW: Tensor
    labels_N: Tensor


class Feed(Protocol):
    """Serves `samples` images in batches, shuffled anew every epoch; where seed is None in their own order."""

    @property
    def samples(self) -> int: ...

    def batches(self, size: int, *, seed: int | None, epoch: int = 0, drop_last: bool = False) -> Iterator[Batch]: ...

    def keyed(self, size: int) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
        """Each image once, in their own order: uint8 images_NCHW and their keys."""
        ...


@dataclass(frozen=True)
class InMemory:
    """All images at once, on any device: uint8 `images_NCHW`, int64 `labels_N`; `keys`, where they are asked for."""

    images_NCHW: Tensor
    labels_N: Tensor
    keys: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        return len(self.labels_N)

    def batches(self, size: int, *, seed: int | None, epoch: int = 0, drop_last: bool = False) -> Iterator[Batch]:
        for rows in _batches(self.samples, size, seed, epoch, drop_last):
            yield self.at(rows)

    def at(self, rows: slice | Tensor) -> Batch:
        rows = rows.to(self.labels_N.device) if isinstance(rows, Tensor) else rows
        return Batch(self.images_NCHW[rows], self.labels_N[rows])

    def keyed(self, size: int) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
        assert len(self.keys) == self.samples, (len(self.keys), self.samples)
        yield from ((self.images_NCHW[i : i + size], self.keys[i : i + size]) for i in range(0, self.samples, size))


@dataclass(frozen=True)
class Part:
    """The images of these rows, int64 and rising, of which no copy is held."""

    whole: InMemory
    rows_N: Tensor

    @property
    def samples(self) -> int:
        return len(self.rows_N)

    def batches(self, size: int, *, seed: int | None, epoch: int = 0, drop_last: bool = False) -> Iterator[Batch]:
        for rows in _batches(self.samples, size, seed, epoch, drop_last):
            yield self.whole.at(self.rows_N[rows])

    def keyed(self, size: int) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
        for rows in self.rows_N.split(size):
            yield self.whole.images_NCHW[rows], tuple(self.whole.keys[row] for row in rows.tolist())


def _batches(samples: int, size: int, seed: int | None, epoch: int, drop_last: bool) -> Iterator[slice | Tensor]:
    """The rows of each batch."""
    stop = samples - samples % size if drop_last else samples
    if seed is None:
        yield from (slice(i, min(i + size, stop)) for i in range(0, stop, size))
        return
    rng = torch.Generator().manual_seed(number(seed, epoch) >> 1)
    yield from torch.randperm(samples, generator=rng)[:stop].split(size)


def shuffled(items: Iterable[T], buffer: int, rng: random.Random) -> Iterator[T]:
    """Through a buffer: each item that comes in displaces one drawn at random."""
    held: list[T] = []
    for item in items:
        if len(held) < buffer:
            held.append(item)
            continue
        slot = rng.randrange(buffer)
        yield held[slot]
        held[slot] = item
    rng.shuffle(held)
    yield from held
