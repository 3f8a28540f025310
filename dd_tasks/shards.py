"""WebDataset shards in: expand, index, stream, decode, sample per class. With packing.py the only import of webdataset.

N images, C channels (3), H x W pixels, S the side of a square image. Images are uint8.
"""

import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import torch
from pydantic import ValidationError
from torch import Tensor
from webdataset.shardlists import expand_urls

from dd_tasks.decoding import PixelStatistics, decode, decode_whole
from dd_tasks.errors import InputError
from dd_tasks.feeds import MEMORY_BYTES, Batch, Feed, InMemory, number, shuffled
from dd_tasks.sources import Source, noted, of_classes, serves
from dd_tasks.tars import (
    IMAGE_SUFFIXES,
    Fault,
    Quarantine,
    Sample,
    Shard,
    base_name,
    expect_few,
    folder_of,
    matching,
    read_beside,
    samples_of,
    size_of,
)
from dd_tasks.types import Track, untracked
from schemas.index import ShardEntry, ShardIndex

__all__ = [
    "IMAGE_SUFFIXES", "Batch", "Candidates", "Fault", "Feed", "InMemory", "Quarantine", "Sample", "Source", "Streaming",
    "decode", "expand", "feed", "held_out", "open_source", "sample_per_class", "stream",
]  # fmt: skip

INDEX, CLASS_NAMES = "index.json", "classes.txt"
MOST_CLASSES = 1 << 16  # without names the largest id decides how many classes there are: a stray id must not
SHUFFLE_BUFFER = 1 << 15  # samples; fewer when memory is short

log = logging.getLogger(__name__)
Keep = Callable[[str], bool]


def keep_all(key: str) -> bool:
    return True


# Which shards


def expand(patterns: Sequence[str]) -> tuple[str, ...]:
    """Globs and brace patterns (`{0000..0009}`, `{a,b}`) to shard paths or URLs, sorted, each once.

    InputError for a glob that matches nothing and for a local file that is missing.
    """
    if isinstance(patterns, str) or not patterns:
        raise InputError(f"shards are given as a list of paths, globs or URLs, got {patterns!r}")
    return tuple(sorted({url for pattern in patterns for url in _expand(str(pattern).removeprefix("file://"))}))


def _expand(pattern: str) -> Iterator[str]:
    if os.path.isfile(pattern):  # its name may hold braces or brackets
        urls = [pattern]
    else:
        expect_few(pattern)
        try:
            urls = expand_urls(pattern)
        except ValueError as error:
            raise InputError(f"brace pattern {pattern!r} cannot be read: {error}") from error
    for url in urls:
        yield from matching(url)


# What they hold


def open_source(
    patterns: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    only: Sequence[str] = (),
    quarantine: Quarantine,
    track: Track = untracked,
) -> Source:
    """The shards matching `patterns` and what they hold: from an index.json that lists just these, else by reading all.
    All are read, too, where faults are tolerated: an index.json counts samples that only decoding finds faulty.
    Where the run is of `only` some classes, the shards that hold none of them need not be there.

    Class names come from `classes`, index.json, a classes.txt beside the shards, or are "0".."max". InputError for
    shards that are missing, cut short, unlike their index.json, or of one name, and for faults above the tolerance.
    """
    by_name = distinct(expand(patterns))
    index = read_index(by_name.values())
    listed = {entry.name: entry for entry in index.shards} if index else {}
    _expect_sizes(by_name, listed)
    names = list(classes) if classes else index.classes if index else class_names(by_name.values())
    _expect_names(names or ())
    indexed = index and names and len(names) == len(index.classes) and serves(index, by_name.keys(), names, only)
    if index and indexed and not quarantine.limit:
        entries = [entry for entry in index.shards if entry.name in by_name]
        found = index.model_copy(update={"classes": names, "shards": entries})
        return of_classes(Source(tuple(by_name[entry.name] for entry in entries), found), only)
    log.info("reading %d shards: %s", len(by_name), "faults are tolerated" if indexed else f"no {INDEX} lists them")
    scanned = _scan(tuple(by_name.values()), names, quarantine, track)
    for entry in scanned.shards:
        if entry.name in listed and entry.sha256 != listed[entry.name].sha256:
            raise InputError(f"shard {by_name[entry.name]!r} is not the one {INDEX} lists: its sha256 differs")
    return of_classes(Source(tuple(by_name.values()), scanned), only)


def _expect_names(classes: Sequence[str]) -> None:
    if twice := [name for name, times in Counter(classes).items() if times > 1 or not name]:
        raise InputError(f"class names must be non-empty and differ, but {twice[0]!r} is empty or there twice")


def distinct(urls: Iterable[str]) -> dict[str, str]:
    """Base name -> URL. InputError when two shards share a name: faults and index.json name shards by it."""
    by_name: dict[str, str] = {}
    for url in urls:
        if (other := by_name.setdefault(base_name(url), url)) != url:
            raise InputError(f"two shards are called {base_name(url)!r}: {other!r} and {url!r}; rename one")
    return by_name


def read_index(urls: Iterable[str]) -> ShardIndex | None:
    """The index.json beside shards that lie in one folder. InputError when it is malformed."""
    folders = {folder_of(url) for url in urls}
    text = read_beside(folders.pop(), INDEX) if len(folders) == 1 else None
    if text is None:
        return None
    try:
        return ShardIndex.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{INDEX} beside the shards: {'.'.join(map(str, first['loc']))} {first['msg']}") from error


def class_names(urls: Iterable[str]) -> list[str] | None:
    """The classes.txt beside the shards, one name a line. InputError when folders differ in it."""
    texts = {folder: read_beside(folder, CLASS_NAMES) for folder in sorted({folder_of(url) for url in urls})}
    if len(set(texts.values())) > 1:
        raise InputError(f"{CLASS_NAMES} differs between {', '.join(map(repr, texts))}; give the class names")
    text = next(iter(texts.values()))
    return None if text is None else [line.strip() for line in text.strip().splitlines()]


def _expect_sizes(by_name: dict[str, str], listed: dict[str, ShardEntry]) -> None:
    for name in sorted(by_name.keys() & listed.keys()):
        url, expected = by_name[name], listed[name].bytes
        size = size_of(url)
        if size is not None and size != expected:
            how = "is cut short" if size < expected else "has grown"
            raise InputError(f"shard {url!r} {how}: {size} bytes, {INDEX} says {expected}")


def _scan(urls: Sequence[str], names: Sequence[str] | None, quarantine: Quarantine, track: Track) -> ShardIndex:
    pixels, counts, entries = PixelStatistics(), Counter[int](), list[ShardEntry]()
    for url in track(urls, "indexing shards", len(urls)):
        entries.append(scan_shard(url, len(names) if names else MOST_CLASSES, quarantine, pixels, counts))
    if not counts:
        raise InputError(f"no samples in {len(urls)} shards ({urls[0]!r} ...)")
    return index_of(names or [str(label) for label in range(max(counts) + 1)], entries, pixels, counts)


def scan_shard(
    url: str, classes: int, quarantine: Quarantine, pixels: PixelStatistics, counts: Counter[int]
) -> ShardEntry:
    """Reads a shard to its end, decoding every image, and adds to `pixels` and `counts`."""
    shard, found = Shard(url), Counter[int]()
    for sample in samples_of(shard, classes, quarantine):
        try:
            pixels.add(decode_whole(sample.image), sample.label)
        except ValueError as error:
            quarantine.add(shard.name, sample.key, str(error))
        else:
            found[sample.label] += 1
            counts[sample.label] += 1
    return ShardEntry(
        name=shard.name, samples=found.total(), bytes=shard.size, sha256=shard.sha256, classes=noted(found)
    )


def index_of(
    classes: Sequence[str], entries: list[ShardEntry], pixels: PixelStatistics, counts: Counter[int]
) -> ShardIndex:
    """InputError when the class names are not distinct."""
    _expect_names(classes)
    height, width = pixels.size or (None, None)
    mean, std = pixels.mean_and_std()
    return ShardIndex(
        classes=list(classes), shards=entries, samples_per_class=[counts[label] for label in range(len(classes))],
        height=height, width=width, mean=mean, std=std, pixels_per_class=pixels.by_class(len(classes)),
    )  # fmt: skip


def stream(source: Source, *, quarantine: Quarantine, shuffle_shards_seed: int | None = None) -> Iterator[Sample]:
    """Every sound sample of the classes in use, shard after shard, never holding a shard in memory.

    The order follows from the shards' content and the seed. InputError for a shard that is missing, cut short or
    damaged, or no longer the one that was indexed.
    """
    shards = in_order(source)
    if shuffle_shards_seed is not None:
        random.Random(f"shards {shuffle_shards_seed}").shuffle(shards)
    numbers = {label: number for number, label in enumerate(source.ids)}
    for entry, url in shards:
        shard = Shard(url)
        for sample in samples_of(shard, len(source.known or source.index.classes), quarantine):
            if not source.known:
                yield sample
            elif sample.label in numbers:
                yield replace(sample, label=numbers[sample.label])
        if shard.sha256 != entry.sha256:
            raise InputError(f"shard {url!r} is no longer the one that was indexed: its sha256 differs")


def in_order(source: Source) -> list[tuple[ShardEntry, str]]:
    """The shards and where they lie, in an order that follows from their content."""
    return sorted(zip(source.index.shards, source.urls, strict=True), key=lambda pair: pair[0].sha256)


def held_out(key: str, share: float) -> bool:
    """Whether the sample belongs to the held-out `share` (0 to 1): by its key alone, so that added shards move none."""
    return number("held out", key) < share * (1 << 64)


# For training


@dataclass(frozen=True)
class Streaming:
    """Read anew every epoch: shards in shuffled order, through a shuffle buffer of `buffer` decoded samples."""

    source: Source
    side: int
    keep: Keep
    buffer: int
    quarantine: Quarantine

    @cached_property
    def samples(self) -> int:
        """How many are kept: the first use reads the shards once, without decoding (undecodable ones are included)."""
        if self.keep is keep_all:
            return self.source.index.samples
        return sum(self.keep(sample.key) for sample in stream(self.source, quarantine=self.quarantine))

    def batches(self, size: int, *, seed: int | None, epoch: int = 0, drop_last: bool = False) -> Iterator[Batch]:
        shards_seed = None if seed is None else number(seed, epoch)
        samples = stream(self.source, quarantine=self.quarantine, shuffle_shards_seed=shards_seed)
        images = decoded(samples, self.side, self.keep, self.quarantine)
        if seed is not None:
            images = shuffled(images, self.buffer, random.Random(f"buffer {seed} {epoch}"))
        while chunk := list(islice(images, size)):
            if len(chunk) == size or not drop_last:
                _, images_CSS, labels = zip(*chunk, strict=True)
                yield Batch(torch.stack(images_CSS), torch.tensor(labels))

    def keyed(self, size: int) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
        samples = stream(self.source, quarantine=self.quarantine)
        images = decoded(samples, self.side, self.keep, self.quarantine)
        while chunk := list(islice(images, size)):
            keys, images_CSS, _ = zip(*chunk, strict=True)
            yield torch.stack(images_CSS), keys


def decoded(
    samples: Iterable[Sample], side: int, keep: Keep, quarantine: Quarantine
) -> Iterator[tuple[str, Tensor, int]]:
    """Key, uint8 image_CSS and label of those whose key is kept; what cannot be decoded goes to the quarantine."""
    for sample in samples:
        if not keep(sample.key):
            continue
        try:
            image_CSS = decode(sample.image, side)
        except ValueError as error:
            quarantine.add(sample.shard, sample.key, str(error))
        else:
            yield sample.key, image_CSS, sample.label


def fits(source: Source, side: int, memory_bytes: int = MEMORY_BYTES) -> bool:
    """Whether all images, decoded, take no more."""
    return source.index.samples * 3 * side * side <= memory_bytes


def feed(
    source: Source,
    *,
    side: int,
    keep: Keep = keep_all,
    quarantine: Quarantine,
    memory_bytes: int = MEMORY_BYTES,
    track: Track = untracked,
) -> Feed:
    """The samples whose key is kept, S x S: in memory when all would fit into `memory_bytes`, else read every epoch.

    InputError when none is kept.
    """
    most = source.index.samples
    served: Feed
    if not fits(source, side, memory_bytes):
        buffer = max(1, min(SHUFFLE_BUFFER, memory_bytes // (3 * side * side)))
        served = Streaming(source, side, keep, buffer, quarantine)
    else:
        images_NCHW, labels_N = (
            torch.empty(most, 3, side, side, dtype=torch.uint8),
            torch.empty(most, dtype=torch.int64),
        )
        samples = track(stream(source, quarantine=quarantine), "reading images", most)
        keys: list[str] = []
        for row, (key, image_CSS, label) in enumerate(decoded(samples, side, keep, quarantine)):
            images_NCHW[row], labels_N[row] = image_CSS, label
            keys.append(key)
        served = InMemory(images_NCHW[: len(keys)], labels_N[: len(keys)], tuple(keys))
    if not served.samples:
        raise InputError(f"none of {most} samples is kept")
    return served


# For initialisation


@dataclass(frozen=True)
class Candidates:
    """Chosen images, still encoded, sorted by class."""

    images: tuple[bytes, ...]
    labels: tuple[int, ...]
    keys: tuple[str, ...]


def sample_per_class(
    source: Source,
    *,
    per_class: int,
    seed: int,
    keep: Keep = keep_all,
    quarantine: Quarantine,
    track: Track = untracked,
    asked: str = "images per class",
) -> Candidates:
    """`per_class` images of each class without replacement, in one pass that holds no more than these.

    Each class fills a reservoir of its own (Vitter 1985, algorithm R), then shuffles it. InputError when a class has
    fewer; `asked` is what the user calls `per_class`.
    """
    if not per_class:
        return Candidates((), (), ())
    _expect_enough(source, source.index.samples_per_class, per_class, asked)
    draws = [random.Random(f"sample {seed} {label}") for label in range(len(source.index.classes))]
    reservoirs: list[list[Sample]] = [[] for _ in draws]
    seen = [0] * len(draws)
    for sample in track(stream(source, quarantine=quarantine), "sampling", source.index.samples):
        if not keep(sample.key):
            continue
        reservoir, slot = reservoirs[sample.label], draws[sample.label].randrange(seen[sample.label] + 1)
        if slot < per_class or len(reservoir) < per_class:
            if not _decodable(sample, quarantine):
                continue
            if len(reservoir) < per_class:
                reservoir.append(sample)
            else:
                reservoir[slot] = sample
        seen[sample.label] += 1
    _expect_enough(source, seen, per_class, asked)
    for rng, reservoir in zip(draws, reservoirs, strict=True):
        rng.shuffle(reservoir)
    chosen = [sample for reservoir in reservoirs for sample in reservoir]
    return Candidates(
        tuple(sample.image for sample in chosen),
        tuple(sample.label for sample in chosen),
        tuple(sample.key for sample in chosen),
    )


def _expect_enough(source: Source, available: Sequence[int], per_class: int, asked: str) -> None:
    for name, images, whole in zip(source.index.classes, available, source.index.samples_per_class, strict=True):
        if images < per_class:
            others = whole - images
            left = f" that are left of {whole}, {others} being held out or at fault" if others else ""
            raise InputError(f"{asked} {per_class} is above the {images} images of class {name!r}{left}")


def _decodable(sample: Sample, quarantine: Quarantine) -> bool:
    try:
        decode_whole(sample.image)
    except ValueError as error:
        quarantine.add(sample.shard, sample.key, str(error))
        return False
    return True
