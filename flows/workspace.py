"""What tasks work with: the data as a run sees it, references between stages, and tensors in and out of the store."""

import dataclasses
import logging
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dd_tasks import codec, committee, shards
from dd_tasks.codec import Labels
from dd_tasks.committee import Member, Observer
from dd_tasks.compact import Coding
from dd_tasks.errors import InputError
from dd_tasks.garbage import Root, record
from dd_tasks.initialise import Demanding, Initialiser
from dd_tasks.networks import Shape
from dd_tasks.recipe import identity
from dd_tasks.shards import Candidates, Fault, Feed, Quarantine, Source, decode
from dd_tasks.statistics import LayerStatistics, from_tensors
from dd_tasks.store import Ref, Store
from dd_tasks.types import Canvas, Crops, Nearest, RealImages, Studio, Views
from flows import console
from flows.engines import is_away, threads_of
from flows.settings import Settings
from flows.walk import Reached, current
from schemas.spec import Normalise

log = logging.getLogger("flows.tasks")
CORES = torch.get_num_threads()
Made = tuple[Mapping[str, Any], dict[str, Any]]  # facts, groups of tensors


@dataclass(frozen=True)
class Data:
    """The real data of a run: where it is, how it is looked at, and which part the observers never see."""

    source: Source
    test: Source | None
    side: int
    held_out: float
    tolerate: int
    faults: tuple[Fault, ...] = ()
    normalise: Normalise = "data"

    @property
    def shape(self) -> Shape:
        index = self.source.index
        mean, std = (index.mean, index.std) if self.normalise == "data" else committee.IMAGENET
        return Shape(len(index.classes), self.side, mean, std)

    @property
    def digest(self) -> str:
        by = {} if self.normalise == "data" else {"normalise": self.normalise}
        return identity("data", 1, source=self.source.digest, side=self.side, held_out=self.held_out, **by)

    def drawn(self, initialiser: Demanding, ipc: int) -> int:
        """Real images of each class for the initialiser to look at; fewer than it would like where a class has fewer,
        never fewer than it needs."""
        wanted, least = initialiser.demand(ipc), initialiser.least(ipc)
        return max(least, self.most_per_class(wanted)) if wanted > least else wanted

    def most_per_class(self, wanted: int) -> int:
        """`wanted`, or as many training images as surely are there of every class."""
        share = 0.8 * (1 - self.held_out)  # the held-out part is drawn by key, so a class's share of it varies
        return max(1, min(wanted, int(share * min(self.source.index.samples_per_class))))

    def is_held_out(self, key: str) -> bool:
        return shards.held_out(key, self.held_out)

    def is_training(self, key: str) -> bool:
        return not self.is_held_out(key)


@dataclass(frozen=True)
class Seat:
    """A member of a committee, by reference; the prior, a student's score, with all that was made for it, and the
    patches' statistics where they were measured."""

    recipe: Member
    weights: Ref
    statistics: Ref
    prior: Ref | None = None
    patches: Ref | None = None
    trial: tuple[Ref, ...] = ()
    score: Ref | None = None  # held-out top-1, where it did not come with the weights

    @property
    def vote(self) -> list[str | None]:
        """What its logits, and the weight they are given, depend on."""
        return [self.weights.digest, self.prior.digest if self.prior else None]

    def accuracy(self, settings: Settings) -> float:
        """Top-1 on the held-out part of the training images."""
        return float(facts_of(self.score or self.weights, settings)["accuracy"])

    @property
    def measured(self) -> list[Ref]:
        """What its layers see of the real data."""
        return [self.statistics, *([self.patches] if self.patches else [])]


@dataclass(frozen=True)
class GuideSeat:
    """A guide, by reference: which of the weights that its training left, and the images and classes it knows."""

    name: str
    architecture: str
    weights: Ref
    checkpoint: str
    shape: Shape


@dataclass(frozen=True)
class Pool:
    """Guides, by the text that asked for them."""

    text: str
    guides: tuple[GuideSeat, ...]

    @property
    def digest(self) -> str:
        return identity("pool", 1, guides=[(g.weights.digest, g.checkpoint) for g in self.guides])


@dataclass(frozen=True)
class Panel:
    """The unit of recovery: slots [start, stop) of the canvas, with a seed of its own; `begun` tells what their first
    images are made of, where that is not all of the canvas."""

    index: int
    start: int
    stop: int
    seed: int
    begun: str | None = None


def device_of(settings: Settings) -> torch.device:
    """InputError for a device that is not here."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(
            f"device {settings.device!r} is not here (choices: auto, cpu{', cuda' * torch.cuda.is_available()})"
        )
    return torch.device(name)


@lru_cache(maxsize=4)
def store_of(settings: Settings) -> Store:
    return Store(settings.store)


def voting(seats: tuple[Seat, ...]) -> tuple[Ref, ...]:
    """What the votes of a committee are made of."""
    return tuple(ref for seat in seats for ref in (seat.weights, seat.prior) if ref)


def kept(
    ref: Ref, what: str, settings: Settings, make: Callable[[], Made], made_of: tuple[Ref | str, ...] = (),
    read: Iterable[Ref] = (),
) -> Ref:  # fmt: skip
    """The reference, once its result is in the store: found there, or made now. In a walk neither, but noted.

    `made_of` are the results that go into it, and by their names in `explain.changes` the parts of the specification
    that do; `read` are results that `make` reads besides.
    """
    walk = current()
    if walk and walk.wanted not in (None, ref):
        return ref
    store = store_of(settings)
    found = store.find(ref) is not None
    if walk and walk.wanted is None:
        walk.look(what, ref, found, made_of)
        return ref
    if found:
        log.info("%s: found in the store (%s)", what, ref)
    elif is_away():
        _have_made(ref, what, settings)
    else:
        _make(ref, what, settings, make, [*(part for part in made_of if isinstance(part, Ref)), *read])
    if walk:
        raise Reached
    return ref


def _have_made(ref: Ref, what: str, settings: Settings) -> None:
    from flows import pool

    pool.make(ref, what, settings)
    if store_of(settings).find(ref) is None:
        raise InputError(f"{what}: its worker left no {ref} in the store {settings.store}: is that the worker's too?")
    log.info("%s: made by a worker (%s)", what, ref)


def _make(ref: Ref, what: str, settings: Settings, make: Callable[[], Made], inputs: Iterable[Ref]) -> None:
    use_threads(settings)
    began, start = time.time(), time.perf_counter()
    facts, groups = make()
    seconds = time.perf_counter() - start
    store_of(settings).put(ref, {**facts, "began": round(began, 3), "seconds": round(seconds, 3)}, inputs, **groups)
    log.info("%s: made in %.1f s (%s)", what, seconds, ref)


def use_threads(settings: Settings) -> None:
    """Work on as many cores as a stage may have: sums over a batch depend on their number."""
    wanted = threads_of(settings) or CORES
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def hold(name: str, digest: str, preset: str, refs: Iterable[Ref], settings: Settings) -> None:
    """From now on the store keeps these results of a run, and all that they were made of."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    record(store_of(settings), Root(name, digest, preset, when, tuple(refs)))


_feeds: dict[tuple[str, str], Feed] = {}


def feed_of(data: Data, part: str) -> Feed:
    """The `training`, `held-out` or `test` images; decoded once a process where they fit into memory."""
    key = (f"{data.digest} {data.test.digest if data.test else ''}", part)
    if key not in _feeds:
        if len(_feeds) > 6:
            _feeds.clear()
        keep = {"training": data.is_training, "held-out": data.is_held_out, "test": shards.keep_all}[part]
        source = data.test if part == "test" else data.source
        assert source is not None
        quarantine = Quarantine(data.tolerate)
        _feeds[key] = shards.feed(source, side=data.side, keep=keep, quarantine=quarantine, track=console.track)
    return _feeds[key]


def test_feed(data: Data) -> Feed:
    return feed_of(data, "test" if data.test else "held-out")


def network_of(recipe: Member, weights: Ref, shape: Shape, settings: Settings) -> torch.nn.Module:
    found = store_of(settings).get(weights, "weights").tensors["weights"]
    return committee.restore(recipe.architecture, found, shape, device_of(settings))


@lru_cache(maxsize=2)
def observers_of(seats: tuple[Seat, ...], shape: Shape, settings: Settings) -> tuple[Observer, ...]:
    def seen(measured: Ref | None) -> tuple[LayerStatistics, ...]:
        found = store_of(settings).get(measured, measured.kind).tensors[measured.kind] if measured else {}
        return from_tensors(found, device_of(settings))

    observers = []
    for seat in seats:
        net = network_of(seat.recipe, seat.weights, shape, settings)
        accuracy = seat.accuracy(settings)
        prior = facts_of(seat.prior, settings)["accuracy"] if seat.prior else None
        observers.append(Observer(seat.recipe.name, net, seen(seat.statistics), accuracy, prior, seen(seat.patches)))
    return tuple(observers)


@lru_cache(maxsize=1)
def guides_of(pools: tuple[Pool, ...], settings: Settings) -> dict[str, tuple[torch.nn.Module, ...]]:
    """The networks of the pools, frozen, on the device."""

    def network(guide: GuideSeat) -> torch.nn.Module:
        weights = store_of(settings).get(guide.weights, guide.checkpoint).tensors[guide.checkpoint]
        net = committee.restore(guide.architecture, weights, guide.shape, device_of(settings))
        return net.eval().requires_grad_(False)

    return {pool.text: tuple(network(guide) for guide in pool.guides) for pool in pools}


def studio_of(
    seats: tuple[Seat, ...], data: Data, seed: int, settings: Settings, real: Ref | None = None,
    pools: tuple[Pool, ...] = (),
) -> Studio:  # fmt: skip
    shape, device = data.shape, device_of(settings)
    rng = torch.Generator(device).manual_seed(seed)
    observers, pool = observers_of(seats, shape, settings), pool_of(real, data.side, settings) if real else None
    guides = guides_of(pools, settings)
    return Studio(observers, shape.classes, shape.mean, shape.std, rng, device, console.track, pool, guides)


@lru_cache(maxsize=1)
def pool_of(real: Ref, side: int, settings: Settings) -> RealImages:
    """Real images at hand, decoded, on the device."""
    found, device = get_candidates(real, settings), device_of(settings)
    images_PCSS = torch.stack([decode(image, side) for image in found.images])
    return RealImages(images_PCSS.to(device), torch.tensor(found.labels, device=device))


def seed_of(seed: int, *what: object) -> int:
    """A seed of its own for each use, from the run's."""
    return int(identity("seed", 1, seed=seed, what=[str(w) for w in what])[:8], 16)


def begun_of(
    initialiser: Initialiser, ipc: int, data: Data, seeds: tuple[int, int], seats: tuple[Seat, ...]
) -> tuple[str, ...]:  # fmt: skip
    """Of each class what its part of the first canvas is made of, with the seeds of drawing and of choosing; nothing
    where the initialiser does not take classes one by one. So a panel is made again only if its own classes changed."""
    if not getattr(initialiser, "by_class", False):
        return ()
    looks = [seat.vote for seat in seats] if initialiser.needs_observers else None
    scale = [data.shape.mean, data.shape.std] if getattr(initialiser, "needs_scale", True) else None
    wanted = data.drawn(initialiser, ipc)
    shared = identity(
        "begun", 1, initialiser=initialiser, ipc=ipc, per_class=wanted, seeds=seeds, seats=looks, scale=scale,
        side=data.side, classes=data.shape.classes, held_out=data.held_out,
    )  # fmt: skip
    return tuple(
        identity("begun class", 1, shared=shared, number=number, real=content if wanted else None)
        for number, content in enumerate(data.source.class_digests)
    )


def panels_of(ipc: int, begun: tuple[str, ...], classes: int, size: int, seed: int) -> tuple[Panel, ...]:
    """The canvas cut into panels of at most `size` slots; slot i is of class i modulo the number of classes."""
    slots = ipc * classes

    def panel(index: int, start: int, stop: int) -> Panel:
        own = [begun[slot % classes] for slot in range(start, stop)] if begun else None
        made_of = identity("begun panel", 1, slots=own) if own else None
        return Panel(index, start, stop, seed_of(seed, "panel", index), made_of)

    return tuple(panel(i, start, min(start + size, slots)) for i, start in enumerate(range(0, slots, size)))


def put_candidates(found: Candidates) -> dict[str, Tensor]:
    packed = np.frombuffer(b"".join(found.images), np.uint8).copy()
    sizes = torch.tensor([len(image) for image in found.images], dtype=torch.int64)
    return {
        "bytes": torch.from_numpy(packed),
        "sizes": sizes,
        "labels": torch.tensor(found.labels, dtype=torch.int64),
    }


def get_candidates(ref: Ref, settings: Settings) -> Candidates:
    found = store_of(settings).get(ref, "candidates")
    packed = found.tensors["candidates"]
    images = tuple(bytes(part.numpy()) for part in packed["bytes"].split(packed["sizes"].tolist()))
    return Candidates(images, tuple(packed["labels"].tolist()), tuple(found.facts["keys"]))


def put_canvas(canvas: Canvas) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {"images_NCHW": canvas.images_NCHW.contiguous(), "targets_N": canvas.targets_N}
    return {"sources": list(canvas.sources)}, tensors


def get_canvas(ref: Ref, settings: Settings) -> Canvas:
    found = store_of(settings).get(ref, "canvas")
    return Canvas(**found.tensors["canvas"], sources=tuple(map(tuple, found.facts["sources"])))


def put_nearest(near: Nearest, random_N: Tensor) -> Made:
    """The nearest real images of a canvas, and beside them the similarities of as many random real ones to others."""
    similarities = {"similarity_N": near.similarity_N.contiguous(), "random_N": random_N.contiguous()}
    return {"keys": list(near.keys)}, {"nearness": similarities}


def get_nearest(ref: Ref, settings: Settings) -> tuple[Nearest, Tensor]:
    found = store_of(settings).get(ref, "nearness")
    similarities = found.tensors["nearness"]
    return Nearest(tuple(found.facts["keys"]), similarities["similarity_N"]), similarities["random_N"]


def put_views(views: Views) -> dict[str, Tensor]:
    flat = {f.name: getattr(views, f.name) for f in dataclasses.fields(views)}
    for name in ("crops", "partner_crops"):
        crops = flat.pop(name)
        flat |= {f"{name}.boxes_N4": crops.boxes_N4, f"{name}.flips_N": crops.flips_N}
    return {name: tensor.contiguous() for name, tensor in flat.items()}


def images_of(canvas: Ref, settings: Settings) -> int:
    """How many images a canvas has."""
    return len(facts_of(canvas, settings)["sources"])


def put_labels(labels: Labels) -> Made:
    """Compact labels: the file as it is published, and what completes it."""
    assert labels.coding is not None
    file = torch.from_numpy(np.frombuffer(labels.to_bytes(), np.uint8).copy())
    return {"coding": dataclasses.asdict(labels.coding), "side": labels.side}, {
        "labels": {"parquet": file, "soft_NK": labels.soft_NK.contiguous()}
    }


def get_labels(ref: Ref, canvas: Canvas, settings: Settings) -> Labels:
    """The labels of the canvas as they are published, of either codec."""
    if ref.kind == "views":
        return codec.whole(get_views(ref, settings), canvas.targets_N, canvas.images_NCHW.shape[-1])
    found = store_of(settings).get(ref, "labels")
    tensors, coding = found.tensors["labels"], Coding(**found.facts["coding"])
    table = pq.read_table(pa.BufferReader(tensors["parquet"].numpy().tobytes()))
    return Labels(table, tensors["soft_NK"], found.facts["side"], coding)


def get_views(ref: Ref, settings: Settings) -> Views:
    flat = store_of(settings).get(ref, "views").tensors["views"]
    crops = {
        name: Crops(flat.pop(f"{name}.boxes_N4"), flat.pop(f"{name}.flips_N")) for name in ("crops", "partner_crops")
    }
    columns: dict[str, Any] = {**flat, **crops}
    return Views(**columns)


def facts_of(ref: Ref, settings: Settings) -> dict[str, Any]:
    return store_of(settings).get(ref).facts


def machine() -> str:
    """The machine in words: GPU, processor, cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    threads = torch.get_num_threads()
    words = f"{model}, {threads} core{'s' if threads > 1 else ''}"
    return f"{torch.cuda.get_device_name()}, {words}" if torch.cuda.is_available() else words
