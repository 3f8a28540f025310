"""Measures a device with real networks and the loops of a run, a few seconds each: the rates that a plan is made of.

Every loop is one of ours, which a `Stopwatch` ends early; images are drawn, weights are fresh: neither changes how long
a step takes. N images, S side, K classes.
"""

import io
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from dd_tasks import codec, committee, nearness, packing, presets, shards, students
from dd_tasks.clusters import nearest_to_centres
from dd_tasks.committee import Observer, ObserverRecipe, seeded
from dd_tasks.compact import GROUP
from dd_tasks.compiling import WORTH_COMPILING
from dd_tasks.distill import distill
from dd_tasks.feeds import Batch, InMemory
from dd_tasks.label import OneHot, Relabel
from dd_tasks.memory import peak_memory
from dd_tasks.networks import SMALL_SIDE, Shape, build
from dd_tasks.plan import AT_ONCE, TRIES, terms_of
from dd_tasks.rates import operations
from dd_tasks.recipe import Recipe, alone
from dd_tasks.shards import Quarantine
from dd_tasks.statistics import from_tensors, measure, to_tensors
from dd_tasks.students import StudentRecipe
from dd_tasks.types import Canvas, Studio, Track, untracked
from dd_tasks.voters import One
from schemas.calibration import Operation, Rate

T = TypeVar("T")
WARM = 3  # first repeats of a loop, which also compile and fill caches
STRETCHES, LEAST = 20, 5  # of a loop, each timed by itself: as many as its seconds ask for, and at least
FOREVER = 10**6  # epochs: the stopwatch ends them
CLUSTERED = (100, 3, 100), (500, 10, 500)  # images, centres, features
LARGER = 1.9  # the side of stored photographs, above small ones, in sides at which a run works


@dataclass(frozen=True)
class Trial:
    """What is measured: networks by name, at a side, and sizes of batches; `seconds` each."""

    side: int
    classes: int
    committee: str
    students: tuple[str, ...]
    presets: tuple[str, ...]
    panels: tuple[int, ...]
    student_batches: tuple[int, ...]
    compiled: bool
    seconds: float


@dataclass
class Stopwatch:
    """A Track that times stretches of a loop and ends it after so many seconds; `start` is what the first WARM items
    took."""

    seconds: float
    device: torch.device
    per_second: list[float] = field(default_factory=list)  # items, a stretch each
    start: float = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        begun, done = self.now(), 0
        for i, item in enumerate(items):
            yield item
            done += 1
            if i < WARM:
                if i == WARM - 1:
                    self.start, begun, done = self.now() - begun, self.now(), 0
                    ahead = begun + self.seconds
                continue
            if time.perf_counter() - begun < self.seconds / STRETCHES:
                continue
            end = self.now()
            self.per_second.append(done / (end - begun))
            if end > ahead and len(self.per_second) >= LEAST:
                return
            begun, done = end, 0
        if done and not self.per_second:  # a short loop: all of it
            self.per_second.append(done / (self.now() - begun))


@dataclass(frozen=True)
class Bench:
    """Where measurements are made."""

    trial: Trial
    device: torch.device

    @property
    def shape(self) -> Shape:
        return Shape(self.trial.classes, self.trial.side)

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(self.trial.seconds, self.device)

    def rate(
        self, operation: Operation, units: float, loop: Callable[[Stopwatch], object], batch: int, **about: Any
    ) -> Rate:
        """The rate of a loop whose every item is so many units."""
        watch, trial = self.stopwatch(), self.trial
        with peak_memory(self.device) as held:
            loop(watch)
        median = statistics.median(watch.per_second)
        return Rate(
            operation=operation, side=trial.side, batch=batch, per_second=units * median,
            flops=operations(operation, about.get("architecture"), trial.side, trial.classes),
            spread=_spread(watch.per_second), repeats=len(watch.per_second),
            start_seconds=max(0.0, watch.start - WARM / median), memory_bytes=held(), **about,
        )  # fmt: skip


def _spread(values: list[float]) -> float:
    """Interquartile range over the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def measured(bench: Bench) -> Iterator[Rate]:
    """Every rate of a trial. InputError for a committee, preset or architecture that nobody knows."""
    trial = bench.trial
    recipes = [alone(presets.preset(name, side=trial.side)) for name in trial.presets]
    members = committee.named(trial.committee)
    yield from reading(bench)
    yield from (nearest(bench), encoding(bench), *clustering(bench))
    for member in dict.fromkeys(members):
        observer = frozen(bench, member.architecture)
        yield from recovering(bench, observer, recipes)
        yield from labelling(bench, observer, recipes)
        yield from (measuring(bench, observer, patches) for patches in (False, True))
        yield scoring(bench, member.architecture, observer)
        if isinstance(member, ObserverRecipe):
            yield from observing(bench, member)
    for architecture in trial.students:
        yield from learning(bench, architecture)
        yield scoring(bench, architecture, frozen(bench, architecture))


def _ways(trial: Trial) -> tuple[bool, ...]:
    return (False, True) if trial.compiled else (False,)


def drawn(bench: Bench, n: int) -> InMemory:
    """n images of all classes, smooth as photographs are."""
    rng, side = torch.Generator().manual_seed(n), bench.trial.side
    images_NCSS = _photographs(n, side, rng)
    return InMemory(images_NCSS, torch.arange(n) % bench.trial.classes, tuple(map(str, range(n))))


def _photographs(n: int, side: int, rng: torch.Generator) -> Tensor:
    """images_NCSS of coarse patterns and a little noise."""
    coarse = torch.rand(n, 3, max(2, side // 8), max(2, side // 8), generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    noise = 0.05 * torch.randn(n, 3, side, side, generator=rng)
    return ((smooth + noise).clamp(0, 1) * 255).to(torch.uint8)


def canvas(bench: Bench, n: int) -> Canvas:
    found = drawn(bench, n)
    return Canvas(found.images_NCHW, found.labels_N, ((),) * n)


def frozen(bench: Bench, architecture: str) -> Observer:
    """Fresh weights, and statistics of a few images."""
    net = seeded(lambda: build(architecture, bench.shape), 0).to(bench.device).to(memory_format=torch.channels_last)
    few = drawn(bench, 8)
    real = [(committee.to_pixels(few.images_NCHW, bench.device), few.labels_N)]
    found = [measure(net.eval(), real, bench.trial.classes, patches=patches)[0] for patches in (False, True)]
    by_channel, by_patch = (from_tensors(to_tensors(layers), bench.device) for layers in found)
    return Observer(architecture, net, by_channel, patches=by_patch)


def studio(bench: Bench, *observers: Observer, track: Track = untracked) -> Studio:
    shape, rng = bench.shape, torch.Generator(bench.device).manual_seed(0)
    return Studio(observers, shape.classes, shape.mean, shape.std, rng, bench.device, track)


def recovering(bench: Bench, observer: Observer, recipes: Iterable[Recipe]) -> Iterator[Rate]:
    """By the terms of each method, in panels of several sizes."""
    judged = {terms_of(ballot): (recipe, ballot) for recipe in recipes for ballot in recipe.ballots}
    for terms, (recipe, ballot) in judged.items():
        if ballot.voters.needs_real:
            continue
        one = replace(recipe, ballots=(replace(ballot, voters=One()),))
        for n in bench.trial.panels:
            began = canvas(bench, n)

            def loop(watch: Stopwatch, one: Recipe = one, began: Canvas = began) -> object:
                return distill(one, began, studio(bench, observer, track=watch))

            yield bench.rate("recover", n, loop, n, architecture=observer.name, terms=terms)


def labelling(bench: Bench, observer: Observer, recipes: Iterable[Recipe]) -> Iterator[Rate]:
    """By running statistics, and by batch statistics where a method asks for these."""
    asked = [recipe.labeller for recipe in recipes]
    sizes = {labeller.batch_statistics for labeller in asked if isinstance(labeller, Relabel)} | {None}
    for size in sorted(sizes, key=lambda size: size or 0):
        labeller = Relabel(One(), epochs=FOREVER, batch_statistics=size)
        n = size or labeller.batch
        seen = canvas(bench, 4 * n if size else n)

        def loop(watch: Stopwatch, labeller: Relabel = labeller, seen: Canvas = seen) -> object:
            return labeller.label(seen, studio(bench, observer, track=watch))

        yield bench.rate("label", len(seen), loop, n, architecture=observer.name)


def measuring(bench: Bench, observer: Observer, patches: bool) -> Rate:
    """Statistics of a pass over real images."""
    feed = Endless(drawn(bench, AT_ONCE))

    def loop(watch: Stopwatch) -> object:
        return committee.statistics(observer.net, feed, bench.trial.classes, bench.device, watch, patches=patches)

    return bench.rate("patches" if patches else "statistics", AT_ONCE, loop, AT_ONCE, architecture=observer.name)


def scoring(bench: Bench, architecture: str, observer: Observer) -> Rate:
    def loop(watch: Stopwatch) -> object:
        return committee.accuracy(observer.net, Endless(drawn(bench, AT_ONCE), watch), bench.device)

    return bench.rate("score", AT_ONCE, loop, AT_ONCE, architecture=architecture)


@dataclass(frozen=True)
class Endless:
    """A Feed that serves the same images again and again, until whoever watches it ends."""

    inner: InMemory
    track: Track = untracked

    @property
    def samples(self) -> int:
        return self.inner.samples

    def batches(self, size: int, *, seed: int | None, epoch: int = 0, drop_last: bool = False) -> Iterator[Batch]:
        def again() -> Iterator[Batch]:
            for epoch in range(FOREVER):
                yield from self.inner.batches(size, seed=seed, epoch=epoch, drop_last=drop_last)

        yield from self.track(again(), "batches")

    def keyed(self, size: int) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
        for _ in range(FOREVER):
            yield from self.inner.keyed(size)


def epochs_of(bench: Bench, images: int, compiled: bool) -> int:
    """As many of so many images as there can be in a long training, or a short one; none where even one is too much."""
    return FOREVER if compiled else int((WORTH_COMPILING - 1) // (images * bench.trial.side**2))


def observing(bench: Bench, member: ObserverRecipe) -> Iterator[Rate]:
    """Training of an observer, short and long (with torch.compile)."""
    size, feed = member.batch, drawn(bench, member.batch)
    for compiled in _ways(bench.trial):
        recipe = replace(member, epochs=epochs_of(bench, size, compiled), reach=min(member.reach, bench.trial.side - 1))

        def loop(watch: Stopwatch, recipe: ObserverRecipe = recipe) -> object:
            return committee.train(recipe, bench.shape, feed, feed, device=bench.device, track=watch)

        if recipe.epochs > WARM:
            about = {"architecture": recipe.architecture, "compiled": compiled}
            yield bench.rate("observer", size, loop, size, **about)


def learning(bench: Bench, architecture: str) -> Iterator[Rate]:
    """Training of a student in batches of several sizes, short and long."""
    for compiled in _ways(bench.trial):
        for size in bench.trial.student_batches:
            n = max(100, size)
            recipe = StudentRecipe(architecture, epochs=epochs_of(bench, n, compiled), batch=size)
            if recipe.epochs * n // size > WARM:
                yield _taught(bench, recipe, n, compiled)


def _taught(bench: Bench, recipe: StudentRecipe, n: int, compiled: bool) -> Rate:
    seen, test = canvas(bench, n), drawn(bench, 10)
    views = Relabel(One(), epochs=4).label(seen, studio(bench, frozen(bench, recipe.architecture)))

    def loop(watch: Stopwatch) -> object:
        return students.train(recipe, bench.shape, seen, views, test, seed=0, device=bench.device, track=watch)

    about = {"architecture": recipe.architecture, "compiled": compiled}
    return bench.rate("student", recipe.batch, loop, recipe.batch, **about)


def nearest(bench: Bench) -> Rate:
    """Pairs of images that are compared."""
    n = 2 * GROUP
    images, real = drawn(bench, n), Endless(drawn(bench, 2000))
    rows = max(1, min(nearness.BLOCK_ROWS, nearness.BLOCK_BYTES // (4 * images.images_NCHW[0].numel()), 2000))

    def loop(watch: Stopwatch) -> object:
        return nearness.nearest(images.images_NCHW, real, device=bench.device, track=watch)

    return bench.rate("compare", n * rows, loop, n)


def clustering(bench: Bench) -> Iterator[Rate]:
    """k-means of few and of many images."""
    for images, centres, features in CLUSTERED:
        rng = torch.Generator().manual_seed(images)
        embedding_NE = torch.randn(images, features, generator=rng).relu().numpy()

        def loop(watch: Stopwatch, embedding_NE: Any = embedding_NE, centres: int = centres) -> object:
            return [
                nearest_to_centres(embedding_NE, centres, seed, tries=TRIES)
                for seed in watch(range(FOREVER), "cluster")
            ]

        values = images * centres * features
        yield bench.rate("cluster", TRIES * values, loop, values)


def encoding(bench: Bench) -> Rate:
    """Compact labels of the finest step, compressed."""
    n, k, rng = GROUP, bench.trial.classes, torch.Generator().manual_seed(0)
    views = OneHot(epochs=5, group=GROUP).label(canvas(bench, n), studio(bench))
    views = replace(views, logits_VK=torch.randn(len(views), k, generator=rng).half())

    def loop(watch: Stopwatch) -> object:
        for _ in watch(range(FOREVER), "encode"):
            codec.fitted(views, n, bench.trial.side, n * 3 * bench.trial.side**2)
        return None

    return bench.rate("encode", len(views) * k, loop, k)


def reading(bench: Bench) -> Iterator[Rate]:
    """Of JPEG files in a shard: read alone, then also decoded."""
    side = bench.trial.side
    stored = side if side <= SMALL_SIDE else round(LARGER * side)
    rng = torch.Generator().manual_seed(0)
    files = [_jpeg(image) for image in _photographs(100, stored, rng)]
    with TemporaryDirectory() as folder:
        samples = (
            (f"{i:06d}", files[i % len(files)], "jpg", i % bench.trial.classes)
            for i in range(max(2000, bench.trial.classes))
        )
        packing.pack(samples, [str(k) for k in range(bench.trial.classes)], Path(folder))
        source = shards.open_source([f"{folder}/*.tar"], quarantine=Quarantine())

        def endless() -> Iterator[shards.Sample]:
            for _ in range(FOREVER):
                yield from shards.stream(source, quarantine=Quarantine())

        def read(watch: Stopwatch) -> object:
            return sum(1 for _ in watch(endless(), "read"))

        def decode(watch: Stopwatch) -> object:
            return sum(len(shards.decode(sample.image, side)) for sample in watch(endless(), "decode"))

        one, both = bench.rate("read", 1, read, 1), bench.rate("decode", 1, decode, 1)
        yield one
        yield both.model_copy(update={"per_second": 1 / max(1 / both.per_second - 1 / one.per_second, 1e-9)})


def _jpeg(image_CSS: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_CSS.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=90)
    return file.getvalue()
