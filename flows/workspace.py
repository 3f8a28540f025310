"""What tasks work with: the data as a run sees it, references between stages, and the networks that are seated."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from dd_tasks import committee, pixels, shards
from dd_tasks.committee import Member, Observer
from dd_tasks.errors import InputError
from dd_tasks.feeds import Batch, InMemory, Part
from dd_tasks.initialise import Demanding, Initialiser
from dd_tasks.networks import Shape
from dd_tasks.numerics import divisible
from dd_tasks.recipe import identity
from dd_tasks.seconds import counting, spent, spent_on
from dd_tasks.shards import Fault, Feed, Quarantine, Source, decode
from dd_tasks.statistics import LayerStatistics, from_tensors
from dd_tasks.store import Ref
from dd_tasks.types import RealImages, Studio
from flows import console
from flows.settings import Settings
from flows.stored import facts_of, get_candidates, store_of
from schemas.spec import Normalise


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
        mean, std = (index.mean, divisible(index.std)) if self.normalise == "data" else committee.IMAGENET
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
    images are made of, where that is not all of the canvas. `compiled` panels are recovered by compiled observers."""

    index: int
    start: int
    stop: int
    seed: int
    begun: str | None = None
    compiled: bool = False


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


def voting(seats: tuple[Seat, ...]) -> tuple[Ref, ...]:
    """What the votes of a committee are made of."""
    return tuple(ref for seat in seats for ref in (seat.weights, seat.prior) if ref)


_feeds: dict[tuple[str, str, str], Feed] = {}


def feed_of(data: Data, part: str, settings: Settings) -> Feed:
    """The `training`, `held-out` or `test` images; where they fit into memory decoded once, for all that share a store
    on this machine."""
    key = (f"{data.digest} {data.test.digest if data.test else ''}", part, settings.store)
    if key not in _feeds:
        if len(_feeds) > 6:
            _feeds.clear()
        keep = {"training": data.is_training, "held-out": data.is_held_out, "test": shards.keep_all}[part]
        source = data.test if part == "test" else data.source
        assert source is not None
        quarantine = Quarantine(data.tolerate)
        with spent("decode"):
            found = pixels.feed(
                source, data.side, store_of(settings), keep=keep, quarantine=quarantine, track=console.track
            )
        _feeds[key] = Counted(found) if counting() and not isinstance(found, InMemory | Part) else found
    return _feeds[key]


@dataclass(frozen=True)
class Counted:
    """A feed that decodes as it goes; its seconds are spent on that."""

    feed: Feed

    @property
    def samples(self) -> int:
        return self.feed.samples

    def batches(self, size: int, *, seed: int | None, epoch: int = 0, drop_last: bool = False) -> Iterator[Batch]:
        return spent_on(self.feed.batches(size, seed=seed, epoch=epoch, drop_last=drop_last), "decode")

    def keyed(self, size: int) -> Iterator[tuple[torch.Tensor, tuple[str, ...]]]:
        return spent_on(self.feed.keyed(size), "decode")


def seen(data: Data, settings: Settings) -> tuple[Ref, ...]:
    """What the store keeps, or comes to keep, of the decoded images."""
    sources, store = [source for source in (data.source, data.test) if source], store_of(settings)
    return tuple(pixels.ref_of(each, data.side) for each in sources if pixels.belongs(each, data.side, store))


def test_feed(data: Data, settings: Settings) -> Feed:
    return feed_of(data, "test" if data.test else "held-out", settings)


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
    device, parts = device_of(settings), []
    for found in get_candidates(real, settings):
        images_PCSS = torch.stack([decode(image, side) for image in found.images])
        parts.append((images_PCSS.to(device), torch.tensor(found.labels, device=device)))
    images, targets = zip(*parts, strict=True)
    return RealImages(torch.cat(images), torch.cat(targets))


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


def machine() -> str:
    """The machine in words: GPU, processor, cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    threads = torch.get_num_threads()
    words = f"{model}, {threads} core{'s' if threads > 1 else ''}"
    return f"{torch.cuda.get_device_name()}, {words}" if torch.cuda.is_available() else words
