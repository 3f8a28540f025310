"""One Prefect adapter a stage: fetch by reference, call a pure function, store by identity.

What is in the store is not made again; the store is the only cache (Prefect's own, keyed by run and blind to nested
types, is off). Between tasks travel `Ref`s, `Data` and small facts; tensors stay in the store.
"""

import dataclasses
import logging
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from dd_tasks import committee, shards, students
from dd_tasks.committee import Imported, Member, Observer, ObserverRecipe
from dd_tasks.distill import distill
from dd_tasks.errors import InputError
from dd_tasks.initialise import Initialiser, WholeImages
from dd_tasks.label import Labeller
from dd_tasks.networks import Shape
from dd_tasks.recipe import Recipe, identity
from dd_tasks.shards import Candidates, Feed, Fault, Quarantine, Source
from dd_tasks.statistics import from_tensors, to_tensors
from dd_tasks.store import Ref, Store
from dd_tasks.types import Canvas, Crops, Studio, Views
from flows import console
from flows.settings import Settings

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def _passing(task: Any, run: Any, state: Any) -> bool:
    """Whether a failure may pass by itself: a connection or a time-out, never bad input or a full disk."""
    return isinstance(state.result(raise_on_failure=False), ConnectionError | TimeoutError)


def stage(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A Prefect task as all of ours are: no cache but the store, retried only where that can help."""
    return task(
        task_run_name=name, cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=[2, 10],
        retry_condition_fn=_passing,
    )  # fmt: skip


@dataclass(frozen=True)
class Data:
    """The real data of a run: where it is, how it is looked at, and which part the observers never see."""

    source: Source
    test: Source | None
    side: int
    held_out: float
    tolerate: int
    faults: tuple[Fault, ...] = ()

    @property
    def shape(self) -> Shape:
        index = self.source.index
        return Shape(len(index.classes), self.side, index.mean, index.std)

    @property
    def digest(self) -> str:
        return identity("data", 1, source=self.source.digest, side=self.side, held_out=self.held_out)

    def is_held_out(self, key: str) -> bool:
        return shards.held_out(key, self.held_out)

    def is_training(self, key: str) -> bool:
        return not self.is_held_out(key)


@dataclass(frozen=True)
class Seat:
    """A member of a committee, by reference."""

    recipe: Member
    weights: Ref
    statistics: Ref


@dataclass(frozen=True)
class Panel:
    """The unit of recovery: slots [start, stop) of the canvas, with a seed of its own."""

    index: int
    start: int
    stop: int
    seed: int


def device_of(settings: Settings) -> torch.device:
    """InputError for a device that is not here."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cpu" and not (name.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(f"device {settings.device!r} is not here (choices: auto, cpu{', cuda' * torch.cuda.is_available()})")
    return torch.device(name)


@lru_cache(maxsize=4)
def store_of(settings: Settings) -> Store:
    return Store(settings.store)


def kept(ref: Ref, what: str, settings: Settings, make: Callable[[], tuple[Mapping[str, Any], dict[str, Any]]]) -> Ref:
    """The reference, once its result is in the store: found there, or made now."""
    store = store_of(settings)
    if store.find(ref) is not None:
        log.info("%s: found in the store (%s)", what, ref)
        return ref
    start = time.perf_counter()
    facts, groups = make()
    seconds = time.perf_counter() - start
    store.put(ref, {**facts, "seconds": round(seconds, 3)}, **groups)
    log.info("%s: made in %.1f s (%s)", what, seconds, ref)
    return ref


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


@stage("index shards")
def index_shards(
    patterns: tuple[str, ...], test: tuple[str, ...], side: int | None, held_out: float, tolerate: int, ipc: int
) -> Data:
    """What the shards hold, checked; InputError where they do not serve the run."""
    quarantine = Quarantine(tolerate)
    source = shards.open_source(patterns, quarantine=quarantine, track=console.track)
    if tolerate:
        source = shards.without_faults(source, quarantine=quarantine, track=console.track)
    tested = None
    if test:
        classes = source.index.classes
        tested = shards.open_source(test, classes=classes, quarantine=Quarantine(), track=console.track)
    fewest = min(zip(source.index.samples_per_class, source.index.classes, strict=True))
    if ipc > fewest[0]:
        raise InputError(f"ipc {ipc} is above the {fewest[0]} images of class {fewest[1]!r}")
    if side is None:
        if source.index.height is None or source.index.width is None:
            raise InputError("the images differ in size: say which side to work at with --side (choices: 32, 64, 160, 224)")
        side = min(source.index.height, source.index.width)
    log.info("%d images of %d classes at %d px", source.index.samples, len(source.index.classes), side)
    return Data(source, tested, side, held_out, tolerate, tuple(quarantine.found))


@stage("train {recipe.name}")
def train_observer(recipe: ObserverRecipe, data: Data, settings: Settings) -> Ref:
    ref = Ref("observer", identity("observer", 1, recipe=recipe, data=data.digest))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        made = committee.train(
            recipe, data.shape, feed_of(data, "training"), feed_of(data, "held-out"),
            device=device_of(settings), track=console.track,
        )  # fmt: skip
        checkpoints = {f"epoch-{epoch}": weights for epoch, weights in made.checkpoints.items()}
        return {"accuracy": made.accuracy, "epochs": made.epochs}, {"weights": made.weights, **checkpoints}

    return kept(ref, f"observer {recipe.name}", settings, make)


@stage("import {member.name}")
def import_observer(member: Imported, data: Data, settings: Settings) -> Ref:
    inputs = {"architecture": member.architecture, "sha256": member.sha256}
    ref = Ref("observer", identity("import", 1, **inputs, data=data.digest))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        weights = committee.load_weights(member, data.shape)
        device = device_of(settings)
        net = committee.restore(member.architecture, weights, data.shape, device)
        return {"accuracy": committee.accuracy(net, feed_of(data, "held-out"), device), "epochs": 0}, {"weights": weights}

    return kept(ref, f"observer {member.name}", settings, make)


@stage("measure {recipe.name}")
def measure_observer(recipe: Member, weights: Ref, data: Data, settings: Settings) -> Seat:
    """The observer's layer statistics over the training images."""
    ref = Ref("statistics", identity("statistics", 1, weights=weights.digest, data=data.digest))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        device = device_of(settings)
        net = _network(Seat(recipe, weights, ref), data, settings)
        measured = committee.statistics(net, feed_of(data, "training"), data.shape.classes, device, console.track)
        return {}, {"statistics": to_tensors(measured)}

    return Seat(recipe, weights, kept(ref, f"statistics of {recipe.name}", settings, make))


def _network(seat: Seat, data: Data, settings: Settings) -> torch.nn.Module:
    weights = store_of(settings).get(seat.weights).tensors["weights"]
    return committee.restore(seat.recipe.architecture, weights, data.shape, device_of(settings))


@lru_cache(maxsize=2)
def _observers(seats: tuple[Seat, ...], shape: Shape, settings: Settings) -> tuple[Observer, ...]:
    store, device = store_of(settings), device_of(settings)
    observers = []
    for seat in seats:
        found = store.get(seat.weights)
        net = committee.restore(seat.recipe.architecture, found.tensors["weights"], shape, device)
        statistics = from_tensors(store.get(seat.statistics).tensors["statistics"], device)
        observers.append(Observer(seat.recipe.name, net, statistics, found.facts["accuracy"]))
    return tuple(observers)


def studio_of(seats: tuple[Seat, ...], data: Data, seed: int, settings: Settings) -> Studio:
    shape, device = data.shape, device_of(settings)
    rng = torch.Generator(device).manual_seed(seed)
    return Studio(_observers(seats, shape, settings), shape.mean, shape.std, rng, device, console.track)


def seed_of(seed: int, *what: object) -> int:
    """A seed of its own for each use, from the run's."""
    return int(identity("seed", 1, seed=seed, what=[str(w) for w in what])[:8], 16)


def panels_of(slots: int, size: int, seed: int) -> tuple[Panel, ...]:
    """The canvas cut into panels of at most `size` slots."""
    starts = range(0, slots, size)
    return tuple(Panel(i, a, min(a + size, slots), seed_of(seed, "panel", i)) for i, a in enumerate(starts))


def _pack_candidates(found: Candidates) -> dict[str, Tensor]:
    sizes = torch.tensor([len(image) for image in found.images])
    return {
        "bytes": torch.frombuffer(bytearray(b"".join(found.images)), dtype=torch.uint8),
        "sizes": sizes,
        "labels": torch.tensor(found.labels),
    }


def _unpack_candidates(store: Store, ref: Ref) -> Candidates:
    found = store.get(ref)
    packed = found.tensors["candidates"]
    images = tuple(bytes(part.numpy()) for part in packed["bytes"].split(packed["sizes"].tolist()))
    return Candidates(images, tuple(packed["labels"].tolist()), tuple(found.facts["keys"]))


def put_canvas(canvas: Canvas) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors = {"images_NCHW": canvas.images_NCHW.contiguous(), "targets_N": canvas.targets_N}
    return {"sources": list(canvas.sources)}, tensors


def get_canvas(ref: Ref, settings: Settings) -> Canvas:
    found = store_of(settings).get(ref)
    return Canvas(**found.tensors["canvas"], sources=tuple(found.facts["sources"]))


@stage("draw candidates (seed {seed})")
def draw_candidates(initialiser: Initialiser, ipc: int, data: Data, seed: int, settings: Settings) -> Ref:
    """Real images a class, in one pass over the training part. Fewer than asked for: all of the smallest class."""
    wanted = initialiser.demand(ipc)
    if wanted > ipc:
        share = 0.8 * (1 - data.held_out)  # the held-out part is drawn by key, so a class's share of it varies
        wanted = max(ipc, min(wanted, int(share * min(data.source.index.samples_per_class))))
    ref = Ref("candidates", identity("candidates", 1, data=data.digest, per_class=wanted, seed=seed))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        found = shards.sample_per_class(
            data.source, per_class=wanted, seed=seed, keep=data.is_training, quarantine=Quarantine(data.tolerate),
            track=console.track, asked="ipc" if wanted == ipc else "candidates per class",
        )  # fmt: skip
        return {"keys": list(found.keys)}, {"candidates": _pack_candidates(found)}

    return kept(ref, f"{wanted} candidates a class", settings, make)


@stage("choose images (seed {seed})")
def choose_images(
    initialiser: Initialiser, candidates: Ref, seats: tuple[Seat, ...], ipc: int, data: Data, seed: int, settings: Settings
) -> Ref:
    """The first canvas, all classes."""
    looks = None if isinstance(initialiser, WholeImages) else [seat.weights.digest for seat in seats]
    inputs = {"initialiser": initialiser, "candidates": candidates.digest, "seats": looks, "ipc": ipc, "seed": seed}
    ref = Ref("canvas", identity("choose", 1, side=data.side, **inputs))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        found = _unpack_candidates(store_of(settings), candidates)
        studio = studio_of(seats, data, seed, settings)
        facts, tensors = put_canvas(initialiser.choose(found, ipc, data.side, studio))
        return facts, {"canvas": tensors}

    return kept(ref, f"{ipc} images a class to begin from", settings, make)


@stage("recover panel {panel.index}")
def recover_panel(
    recipe: Recipe, first: Ref, panel: Panel, seats: tuple[Seat, ...], data: Data, settings: Settings
) -> Ref:
    """One panel through the schedule. The labeller has no part in its identity."""
    judged = {"ballots": recipe.ballots, "schedule": recipe.schedule}
    by = [[seat.weights.digest, seat.statistics.digest] for seat in seats]
    place = [panel.start, panel.stop, panel.seed]
    ref = Ref("panel", identity("recover", 1, **judged, first=first.digest, seats=by, panel=place))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        canvas = get_canvas(first, settings)[panel.start : panel.stop]
        studio = studio_of(seats, data, panel.seed, settings)
        made = distill(recipe, canvas, studio, f"recover panel {panel.index}")
        facts, tensors = put_canvas(made.canvas)
        curves = {"loss_T": made.loss_T, "remembered_T": made.remembered_T, "gaze_NSS": made.gaze_NSS}
        curves = {k: v.contiguous() for k, v in curves.items()}
        return {**facts, "image_updates": made.image_updates}, {"canvas": tensors, "curves": curves}

    return kept(ref, f"panel {panel.index} (slots {panel.start}..{panel.stop - 1})", settings, make)


@stage("gather the canvas")
def gather(panels: tuple[Ref, ...], settings: Settings) -> Ref:
    """The panels' canvases as one."""
    ref = Ref("canvas", identity("gather", 1, panels=[panel.digest for panel in panels]))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        parts = [get_canvas(panel, settings) for panel in panels]
        images_NCHW = torch.cat([part.images_NCHW for part in parts])
        targets_N = torch.cat([part.targets_N for part in parts])
        facts, tensors = put_canvas(Canvas(images_NCHW, targets_N, tuple(s for part in parts for s in part.sources)))
        return facts, {"canvas": tensors}

    return kept(ref, "canvas", settings, make)


@stage("relabel {what}")
def relabel(
    labeller: Labeller, canvas: Ref, seats: tuple[Seat, ...], data: Data, seed: int, settings: Settings, what: str = "distilled"
) -> Ref:
    by = [seat.weights.digest for seat in seats]
    ref = Ref("views", identity("relabel", 1, labeller=labeller, canvas=canvas.digest, seats=by, seed=seed))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        studio = studio_of(seats, data, seed, settings)
        return {}, {"views": put_views(labeller.label(get_canvas(canvas, settings), studio))}

    return kept(ref, f"labels of {what} images", settings, make)


def put_views(views: Views) -> dict[str, Tensor]:
    flat = {f.name: getattr(views, f.name) for f in dataclasses.fields(views)}
    for name in ("crops", "partner_crops"):
        crops = flat.pop(name)
        flat |= {f"{name}.boxes_N4": crops.boxes_N4, f"{name}.flips_N": crops.flips_N}
    return {name: tensor.contiguous() for name, tensor in flat.items()}


def get_views(ref: Ref, settings: Settings) -> Views:
    flat = store_of(settings).get(ref).tensors["views"]
    crops = {
        name: Crops(flat.pop(f"{name}.boxes_N4"), flat.pop(f"{name}.flips_N")) for name in ("crops", "partner_crops")
    }
    return Views(**flat, **crops)


@stage("student {recipe.architecture} on {what} (seed {seed})")
def train_student(
    recipe: students.StudentRecipe, canvas: Ref, views: Ref, data: Data, seed: int, settings: Settings, what: str
) -> Ref:
    inputs = {"canvas": canvas.digest, "views": views.digest, "data": data.digest, "seed": seed}
    ref = Ref("score", identity("student", 1, recipe=recipe, test=data.test.digest if data.test else None, **inputs))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        top1 = students.train(
            recipe, data.shape, get_canvas(canvas, settings), get_views(views, settings), test_feed(data),
            seed=seed, device=device_of(settings), track=console.track,
        )  # fmt: skip
        return {"accuracy": top1}, {}

    return _scored(kept(ref, f"{recipe.architecture} on {what}, seed {seed}", settings, make), settings)


@stage("student {architecture} on full data (seed {seed})")
def train_full_student(architecture: str, epochs: int, data: Data, seed: int, settings: Settings) -> Ref:
    inputs = {"architecture": architecture, "epochs": epochs, "data": data.digest, "seed": seed}
    ref = Ref("score", identity("full", 1, test=data.test.digest if data.test else None, **inputs))

    def make() -> tuple[Mapping[str, Any], dict[str, Any]]:
        top1 = students.train_full(
            architecture, data.shape, feed_of(data, "training"), test_feed(data), epochs=epochs, seed=seed,
            device=device_of(settings), track=console.track,
        )  # fmt: skip
        return {"accuracy": top1}, {}

    return _scored(kept(ref, f"{architecture} on full data, seed {seed}", settings, make), settings)


def _scored(ref: Ref, settings: Settings) -> Ref:
    log.info("  top-1 %.1f%%", 100 * store_of(settings).find(ref)["accuracy"])  # type: ignore[index]
    return ref


def facts_of(ref: Ref, settings: Settings) -> dict[str, Any]:
    facts = store_of(settings).find(ref)
    assert facts is not None, ref
    return facts


def machine() -> str:
    """The machine in words: GPU, processor, cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    words = f"{model}, {torch.get_num_threads()} cores"
    return f"{torch.cuda.get_device_name()}, {words}" if torch.cuda.is_available() else words
