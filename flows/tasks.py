"""One Prefect adapter a stage: fetch by reference, call a pure function, store by identity.

What is in the store is not made again; the store is the only cache (Prefect's own, keyed by run and blind to nested
types, is off). Between tasks travel `Ref`s, `Data` and small facts; tensors stay in the store.
"""

import logging
from dataclasses import replace
from typing import Any, Literal

import torch

from dd_tasks import artifact, codec, committee, jpegs, nearness, recovery, shards, students
from dd_tasks.committee import Imported, Member, ObserverRecipe
from dd_tasks.errors import InputError
from dd_tasks.initialise import AT_ONCE, Demanding, Initialiser, cut, first_canvas
from dd_tasks.label import Labeller, OneHot
from dd_tasks.networks import Shape
from dd_tasks.numerics import expect_colours, expect_finite
from dd_tasks.pieces import in_pieces, sparing
from dd_tasks.recipe import Recipe, identity
from dd_tasks.shards import Quarantine
from dd_tasks.statistics import to_tensors
from dd_tasks.store import Ref
from flows import console, walk
from flows.settings import Settings
from flows.stages import stage
from flows.stored import (
    Made,
    facts_of,
    get_candidates,
    get_canvas,
    get_labels,
    get_views,
    join_canvases,
    kept,
    put_candidates,
    put_canvas,
    put_labels,
    put_nearest,
    put_views,
)
from flows.workspace import Data, Panel, Pool, Seat, device_of, feed_of, network_of, seen, studio_of, test_feed, voting
from schemas.spec import Normalise

log = logging.getLogger(__name__)


@stage("index shards", spent="decode")
def index_shards(
    patterns: tuple[str, ...], test: tuple[str, ...], side: int | None, held_out: float, tolerate: int, ipc: int,
    classes: tuple[str, ...] = (), normalise: Normalise = "data",
) -> Data:  # fmt: skip
    """What the shards hold, checked; InputError where they do not serve the run."""
    quarantine = Quarantine(tolerate)
    source = shards.open_source(patterns, only=classes, quarantine=quarantine, track=console.track)
    tested = None
    if test:
        known = source.known or source.index.classes
        tested = shards.open_source(
            test, classes=known, only=classes, quarantine=Quarantine(), track=console.track
        )  # fmt: skip
    fewest = min(zip(source.index.samples_per_class, source.index.classes, strict=True))
    if ipc > fewest[0]:
        raise InputError(f"ipc {ipc} is above the {fewest[0]} images of class {fewest[1]!r}")
    expect_colours(source.index.std)
    if side is None:
        if source.index.height is None or source.index.width is None:
            raise InputError(
                "the images differ in size: say which side to work at with --side (choices: 32, 64, 160, 224)"
            )
        side = min(source.index.height, source.index.width)
    log.info("%d images of %d classes at %d px", source.index.samples, len(source.index.classes), side)
    return Data(source, tested, side, held_out, tolerate, tuple(quarantine.found), normalise)


@stage("train {recipe.name}", "observers")
def train_observer(recipe: ObserverRecipe, data: Data, settings: Settings) -> Ref:
    ref = Ref("observer", identity("observer", committee.VERSION, recipe=recipe, data=data.digest))

    def make() -> Made:
        made = committee.train(
            recipe, data.shape, feed_of(data, "training", settings), feed_of(data, "held-out", settings),
            device=device_of(settings), track=console.track,
        )  # fmt: skip
        checkpoints = {f"epoch-{epoch}": weights for epoch, weights in made.checkpoints.items()}
        return {"accuracy": made.accuracy, "epochs": made.epochs}, {"weights": made.weights, **checkpoints}

    return kept(ref, f"observer {recipe.name}", settings, make, ("data", "observers"), seen(data, settings))


@stage("import {member.name}", "observers")
def import_observer(member: Imported, data: Data, settings: Settings) -> Ref:
    """Its weights, checked. What it is does not depend on the images; how well it knows them, `measure_observer`
    measures."""
    fitted = {"classes": data.shape.classes, "side": data.side}
    ref = Ref("observer", identity("import", 2, architecture=member.architecture, sha256=member.sha256, **fitted))

    def make() -> Made:
        weights = committee.load_weights(member, data.shape)
        committee.restore(member.architecture, weights, data.shape, device_of(settings))
        return {"epochs": 0}, {"weights": weights}

    return kept(ref, f"observer {member.name}", settings, make, ("observers",))


@stage("import guide {member.name}", spent="observers")
def import_guide(member: Imported, shape: Shape, settings: Settings) -> tuple[Ref, Shape]:
    """A pre-trained guide as it is, and the classes that it knows, which need not be those of the images."""
    ref = Ref("guide", identity("guide", 1, architecture=member.architecture, sha256=member.sha256))

    def make() -> Made:
        weights = committee.load_weights(member, shape)
        classes = committee.classes_in(member.architecture, weights, shape)
        committee.restore(member.architecture, weights, replace(shape, classes=classes), device_of(settings))
        return {"classes": classes}, {"weights": weights}

    found = kept(ref, f"guide {member.name}", settings, make)
    if (walked := walk.current()) and walked.wanted is None:
        return found, shape  # no identity depends on it
    return found, replace(shape, classes=facts_of(found, settings)["classes"])


@stage("measure {recipe.name}", "observers")
def measure_observer(recipe: Member, weights: Ref, data: Data, settings: Settings) -> Seat:
    """The observer's layer statistics over the training images; of an imported one also its held-out top-1."""
    statistics = _measured("statistics", recipe, weights, data, settings)
    score = _accuracy(recipe, weights, data, settings) if isinstance(recipe, Imported) else None
    return Seat(recipe, weights, statistics, score=score)


@stage("measure patches of {seat.recipe.name}", spent="observers")
def measure_patches(seat: Seat, data: Data, settings: Settings) -> Seat:
    """The statistics of the patches of its convolutions' inputs beside them."""
    return replace(seat, patches=_measured("patches", seat.recipe, seat.weights, data, settings))


def _accuracy(member: Imported, weights: Ref, data: Data, settings: Settings) -> Ref:
    ref = Ref("score", identity("held-out", 1, weights=weights.digest, data=data.digest))

    def make() -> Made:
        net, device = network_of(member, weights, data.shape, settings), device_of(settings)
        return {"accuracy": committee.accuracy(net, feed_of(data, "held-out", settings), device)}, {}

    return kept(ref, f"held-out top-1 of {member.name}", settings, make, (weights, "data"), seen(data, settings))


def _measured(
    kind: Literal["statistics", "patches"], recipe: Member, weights: Ref, data: Data, settings: Settings
) -> Ref:
    ref = Ref(kind, identity(kind, 2, weights=weights.digest, data=data.digest))

    def make() -> Made:
        net, feed = network_of(recipe, weights, data.shape, settings), feed_of(data, "training", settings)
        found = committee.statistics(
            net, feed, data.shape.classes, device_of(settings), console.track, patches=kind == "patches"
        )
        tensors = to_tensors(found)
        expect_finite(tensors, f"{kind} of observer {recipe.name}", " (LAYER.FIELD)")
        return {}, {kind: tensors}

    return kept(ref, f"{kind} of {recipe.name}", settings, make, (weights, "data"), seen(data, settings))


@stage("draw candidates (seed {seed})", spent="decode")
def draw_candidates(initialiser: Demanding, ipc: int, data: Data, seed: int, settings: Settings) -> Ref:
    """Real images a class, in one pass over the training part."""
    wanted = data.drawn(initialiser, ipc)
    ref = Ref("candidates", identity("candidates", 2, data=data.digest, per_class=wanted, seed=seed))

    def make() -> Made:
        found = shards.sample_per_class(
            data.source, per_class=wanted, seed=seed, keep=data.is_training, quarantine=Quarantine(data.tolerate),
            track=console.track, asked="ipc" if wanted == ipc else "candidates per class",
        )  # fmt: skip
        return put_candidates(found, settings)

    return kept(ref, f"{wanted} candidates a class", settings, make, ("data", "ipc", "seed"))


@stage("choose images (seed {seed})", spent="choose")
def choose_images(
    initialiser: Initialiser,
    candidates: Ref,
    seats: tuple[Seat, ...],
    ipc: int,
    data: Data,
    seed: int,
    settings: Settings,
) -> Ref:
    """The first canvas, all classes."""
    looks = [seat.vote for seat in seats] if initialiser.needs_observers else None
    inputs = {"initialiser": initialiser, "candidates": candidates.digest, "seats": looks, "ipc": ipc, "seed": seed}
    ref = Ref("canvas", identity("choose", 2, side=data.side, **inputs))

    def make() -> Made:
        def chosen(size: int | None) -> Made:
            studio = in_pieces(studio_of(seats, data, seed, settings), size)
            found = get_candidates(candidates, settings)
            return put_canvas(first_canvas(initialiser, found, ipc, data.side, studio), settings)

        return sparing(chosen, AT_ONCE, "choosing images", committee.SMALLER)

    made_of: tuple[Ref | str, ...] = (candidates, *voting(seats if looks else ()), "initialiser", "ipc", "seed")
    return kept(ref, f"{ipc} images a class to begin from", settings, make, made_of)


@stage("recover panel {panel.index}", "panels")
def recover_panel(
    recipe: Recipe, first: Ref, panel: Panel, seats: tuple[Seat, ...], data: Data, settings: Settings,
    real: Ref | None = None, pools: tuple[Pool, ...] = (),
) -> Ref:  # fmt: skip
    """One panel through the schedule. Of its first images its own count, and of the committee what judges them; the
    labeller has no part in its identity."""
    judged: dict[str, Any] = {"ballots": recipe.ballots, "schedule": recipe.schedule, "real": real and real.digest}
    if panel.compiled:
        judged["compiled"] = True
    if pools:
        judged["pools"] = [pool.digest for pool in pools]
    by = [ref for seat in seats for ref in (*voting((seat,)), *(seat.measured if recipe.matches_data else ()))]
    if recipe.schedule.steps:
        shape = data.shape
        judged |= {"seats": [ref.digest for ref in by], "scale": [shape.classes, shape.mean, shape.std]}
    place, what = [panel.start, panel.stop, panel.seed], f"panel {panel.index} (slots {panel.start}..{panel.stop - 1})"
    ref = Ref("panel", identity("recover", 9, **judged, first=panel.begun or first.digest, panel=place))

    def make() -> Made:
        canvas = get_canvas(first, settings, slice(panel.start, panel.stop))
        studio = replace(studio_of(seats, data, panel.seed, settings, real, pools), compiled=panel.compiled)
        made = recovery.recover(recipe, canvas, studio, what)
        facts, groups = put_canvas(cut(made.canvas), settings)
        curves = {"loss_T": made.loss_T, "remembered_T": made.remembered_T, "gaze_NSS": made.gaze_NSS}
        curves = {k: v.contiguous() for k, v in curves.items()}
        return {**facts, "image_updates": made.image_updates}, {**groups, "curves": curves}

    made_of: tuple[Ref | str, ...] = ("data", "initialiser", "ipc", "seed", *voting(seats)) if panel.begun else (first,)
    if recipe.schedule.steps:
        made_of = (*made_of, "ballots", "schedule", "scale", *by, *([real] if real else []))
    read = [
        first,
        *(ref for seat in seats for ref in seat.measured),
        *(g.weights for pool in pools for g in pool.guides),
    ]
    return kept(ref, what, settings, make, made_of, read)


@stage("gather the canvas", spent="store")
def gather(panels: tuple[Ref, ...], settings: Settings) -> Ref:
    """The panels' canvases as one."""
    ref = Ref("canvas", identity("gather", 2, panels=[panel.digest for panel in panels]))
    return kept(ref, "canvas", settings, lambda: join_canvases(panels, settings), panels)


@stage("measure nearness", spent="nearness")
def measure_nearness(canvas: Ref, random: Ref, data: Data, settings: Settings) -> Ref:
    """Of every image the nearest training image; of random real ones the nearest of the others."""
    ref = Ref("nearness", identity("nearness", 1, canvas=canvas.digest, random=random.digest, data=data.digest))

    def make() -> Made:
        ours, theirs = get_canvas(canvas, settings), get_canvas(random, settings)
        near = nearness.nearest(
            torch.cat([ours.images_NCHW, theirs.images_NCHW]), feed_of(data, "training", settings),
            besides=[()] * len(ours) + list(theirs.sources), device=device_of(settings), track=console.track,
        )  # fmt: skip
        return put_nearest(near[: len(ours)], near.similarity_N[len(ours) :])

    return kept(ref, "nearness to real images", settings, make, (canvas, random, "data"), seen(data, settings))


@stage("relabel {what}", "labels")
def relabel(
    labeller: Labeller,
    canvas: Ref,
    seats: tuple[Seat, ...],
    data: Data,
    seed: int,
    settings: Settings,
    what: str = "distilled",
) -> Ref:
    by = [seat.vote for seat in seats]
    ref = Ref("views", identity("relabel", 5, labeller=labeller, canvas=canvas.digest, seats=by, seed=seed))

    def make() -> Made:
        images, studio = get_canvas(canvas, settings), studio_of(seats, data, seed, settings)
        return {}, {"views": put_views(recovery.relabel(labeller, images, studio, f"labels of {what} images"))}

    made_of: tuple[Ref | str, ...] = (canvas, *voting(seats), "labeller", "seed")
    return kept(ref, f"labels of {what} images", settings, make, made_of)


@stage("encode the labels of {what}", "labels")
def encode_labels(views: Ref, canvas: Ref, per_image: int | None, data: Data, settings: Settings, what: str) -> Ref:
    """The compact labels, of at most `per_image` bytes an image; by default as many as its PNG file has."""
    ref = Ref("labels", identity("encode", 1, views=views.digest, canvas=canvas.digest, per_image=per_image))

    def make() -> Made:
        images = get_canvas(canvas, settings)
        budget = per_image * len(images) if per_image else sum(len(artifact.png(image)) for image in images.images_NCHW)
        return put_labels(codec.fitted(get_views(views, settings), len(images), data.side, budget))

    return kept(ref, f"compact labels of {what}", settings, make, (views, canvas))


@stage("student {recipe.architecture} on {what} (seed {seed})", "students")
def train_student(
    recipe: students.StudentRecipe, canvas: Ref, views: Ref, data: Data, seed: int, settings: Settings, what: str
) -> Ref:
    test = data.test.digest if data.test else None
    inputs = {"canvas": canvas.digest, "views": views.digest, "data": data.digest, "test": test, "seed": seed}
    ref = Ref("score", identity("student", students.VERSION, recipe=recipe, **inputs))

    def make() -> Made:
        images = get_canvas(canvas, settings)
        labels = get_labels(views, images, settings).views if views.kind == "labels" else get_views(views, settings)
        top1 = students.train(
            recipe, data.shape, images, labels, test_feed(data, settings), seed=seed, device=device_of(settings),
            track=console.track,
        )  # fmt: skip
        return {"accuracy": top1}, {}

    made_of = (canvas, views, "data", "test", "student")
    what = f"{recipe.architecture} on {what}, seed {seed}"
    return _scored(kept(ref, what, settings, make, made_of, seen(data, settings)), settings)


@stage("student {recipe.name} on full data", "students")
def train_on_full_data(recipe: ObserverRecipe, data: Data, settings: Settings) -> Ref:
    """The full-data row: a student's architecture, trained as observers are."""
    inputs = {"data": data.digest, "test": data.test.digest if data.test else None}
    ref = Ref("score", identity("full", committee.VERSION, recipe=recipe, **inputs))

    def make() -> Made:
        made = committee.train(
            recipe, data.shape, feed_of(data, "training", settings), test_feed(data, settings),
            device=device_of(settings), track=console.track,
        )  # fmt: skip
        return {"accuracy": made.accuracy}, {}

    made_of = ("data", "test", "full")
    return _scored(kept(ref, f"{recipe.name} on full data", settings, make, made_of, seen(data, settings)), settings)


@stage("real images of as many bytes (seed {seed})", spent="decode")
def spend_on_jpegs(canvas: Ref, labels: Ref, random: Ref, data: Data, seed: int, settings: Settings) -> Ref:
    """Random real images whose JPEG files take as many bytes as the distilled images and their labels do."""
    inputs = {"canvas": canvas.digest, "labels": labels.digest, "data": data.digest}
    ref = Ref("canvas", identity("jpegs", 2, **inputs, seed=seed))

    def make() -> Made:
        images = get_canvas(canvas, settings)
        published = get_labels(labels, images, settings)
        budget = (
            len(published.to_bytes()) + published.soft_NK.nbytes + sum(map(len, map(artifact.png, images.images_NCHW)))
        )
        tried = [len(jpegs.jpeg(image)) for image in get_canvas(random, settings).images_NCHW]
        each = data.most_per_class(1 + int(1.2 * budget * len(tried) / sum(tried) / data.shape.classes))
        found = shards.sample_per_class(
            data.source, per_class=each, seed=seed, keep=data.is_training, quarantine=Quarantine(data.tolerate),
            track=console.track, asked="JPEG images per class",
        )  # fmt: skip
        spent, size = jpegs.spend(found, data.side, budget)
        facts, groups = put_canvas(cut(spent), settings)
        return {**facts, "bytes": size, "budget": budget}, groups

    made_of = (canvas, labels, random, "data", "seed")
    return kept(ref, "JPEG images of as many bytes", settings, make, made_of)


@stage("student {recipe.architecture} on JPEG images (seed {seed})", "students")
def train_ordinarily(
    recipe: students.StudentRecipe, canvas: Ref, flip: bool, data: Data, seed: int, settings: Settings
) -> Ref:
    """A student of real images with their classes, as one would train it without us (`students.ordinary`)."""
    labeller = OneHot(epochs=recipe.epochs, scale=students.ORDINARY_CROPS, flip=flip)
    test = data.test.digest if data.test else None
    inputs = {"canvas": canvas.digest, "data": data.digest, "test": test, "labeller": labeller, "seed": seed}
    ref = Ref("score", identity("ordinary", students.VERSION, recipe=recipe, **inputs))

    def make() -> Made:
        images = get_canvas(canvas, settings)
        views = labeller.label(images, studio_of((), data, seed, settings))
        top1 = students.train(
            recipe, data.shape, images, views, test_feed(data, settings), seed=seed, device=device_of(settings),
            track=console.track,
        )  # fmt: skip
        return {"accuracy": top1, "images": len(images)}, {}

    made_of = (canvas, "data", "test", "student")
    what = f"{recipe.architecture} on JPEG images, seed {seed}"
    return _scored(kept(ref, what, settings, make, made_of, seen(data, settings)), settings)


def _scored(ref: Ref, settings: Settings) -> Ref:
    if not walk.current():
        log.info("  top-1 %.1f%%", 100 * facts_of(ref, settings)["accuracy"])
    return ref
