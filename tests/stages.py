"""`python tests/stages.py THREADS PANEL...`: every stage on digits with so many threads, but training with one, and the
panels in this order; one line of JSON: stage -> sha256 of what it made.

A process of its own, so that what it is started with (threads, hash seed, locale, time zone) is its own as well.
Observers come from seeds, not from training, so that what follows from them is told apart from how they are trained.
"""

import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import tiny
import torch
from torch import Tensor

from dd_tasks import artifact, codec, committee, learners, nearness, packing, shards, students
from dd_tasks.committee import Observer, ObserverRecipe, seeded
from dd_tasks.compact import GROUP
from dd_tasks.distill import distill
from dd_tasks.initialise import Collage, Noise, Representatives
from dd_tasks.label import OneHot, Relabel
from dd_tasks.networks import Shape, build
from dd_tasks.presets import e2d, sre2l
from dd_tasks.recipe import Ballot, Recipe
from dd_tasks.schedule import Phase, SharedCrop
from dd_tasks.students import StudentRecipe
from dd_tasks.terms import FeatureMean
from dd_tasks.types import Canvas, RealImages, Studio

SHAPE = Shape(10, tiny.SIDE, tiny.MEAN, tiny.STD)
PANEL, IPC = 10, 3
ARCHITECTURES = ("thin_resnet6_w16", "convnet3_bn_w32", "thin_vgg_w16")


def digest(*found: object) -> str:
    made = hashlib.sha256()
    for part in found:
        made.update(part.contiguous().numpy().tobytes() if isinstance(part, Tensor) else repr(part).encode())
    return made.hexdigest()


def observers() -> tuple[Observer, ...]:
    feed, found = tiny.digits("train", 300), []
    for seed, architecture in enumerate(ARCHITECTURES):
        net = seeded(lambda name=architecture: build(name, SHAPE), seed).to(memory_format=torch.channels_last)
        found.append(Observer(architecture, net, committee.statistics(net, feed, 10, tiny.CPU)))
    return tuple(found)


def studio(seats: tuple[Observer, ...], seed: int) -> Studio:
    images = tiny.digits("train", 300)
    real = RealImages(images.images_NCHW, images.labels_N)
    return replace(tiny.studio(*seats, seed=seed, classes=10), real=real)


def short(recipe: Recipe) -> Recipe:
    phases = tuple(replace(phase, steps=4) for phase in recipe.schedule.phases)
    return replace(recipe, schedule=replace(recipe.schedule, phases=phases))


def recovered(recipe: Recipe, canvas: Canvas, seats: tuple[Observer, ...], order: list[int]) -> Canvas:
    """The canvas, its panels recovered in this order, put together in their own."""
    made = {}
    for panel in order:
        slots = slice(PANEL * panel, PANEL * (panel + 1))
        made[panel] = distill(short(recipe), canvas[slots], studio(seats, 100 + panel)).canvas
    images_NCHW = torch.cat([made[panel].images_NCHW for panel in sorted(made)])
    return replace(canvas, images_NCHW=images_NCHW)


def packed() -> tuple[str, ...]:
    """sha256 of the shards, and the images drawn from them."""
    with tempfile.TemporaryDirectory() as folder:
        classes, samples = packing.digits_samples("test", side=tiny.SIDE)
        index = packing.pack(samples, classes, Path(folder) / "out", samples_per_shard=100)
        source = shards.open_source([f"{folder}/out/*.tar"], quarantine=shards.Quarantine())
        drawn = shards.sample_per_class(source, per_class=3, seed=1, quarantine=shards.Quarantine())
        return (*(entry.sha256 for entry in index.shards), digest(index.mean, index.std), digest(*drawn.keys))


def made(order: list[int]) -> dict[str, str]:
    seats, feed, found = observers(), tiny.digits("train", 300), {"pack, draw": digest(*packed())}
    found["statistics"] = digest(*(t for o in seats for layer in o.statistics for t in vars(layer).values()))
    candidates = tiny.digit_candidates(20)
    for initialiser in (Noise(), Collage(factor=2, candidates=20), Representatives(candidates=20)):
        canvas = initialiser.choose(candidates, IPC, tiny.SIDE, studio(seats, 1))
        found[f"choose {type(initialiser).__name__}"] = digest(canvas.images_NCHW, canvas.sources)
    for method in (e2d, sre2l):
        done = recovered(method(side=tiny.SIDE), canvas, seats, order)
        found[f"recover {method.__name__}"] = digest(done.images_NCHW)
    labels = Relabel(epochs=3, group=GROUP).label(done, studio(seats, 2))
    found["label"] = digest(labels.logits_VK, labels.crops.boxes_N4, labels.images_V, labels.partners_V)
    found["encode"] = digest(codec.fitted(labels, len(done), tiny.SIDE, 10**6).to_bytes())
    found["draw"] = digest(*(artifact.png(image) for image in done.images_NCHW))
    near = nearness.nearest(done.images_NCHW, replace(feed, keys=tuple(map(str, range(300)))), device=tiny.CPU)
    found["nearness"] = digest(near.similarity_N, near.keys)
    return found | trained(canvas, labels, seats)


def trained(canvas: Canvas, labels: object, seats: tuple[Observer, ...]) -> dict[str, str]:
    """What networks in training made, with one thread."""
    torch.set_num_threads(1)
    feed = tiny.digits("train", 300)
    recipe = ObserverRecipe("convnet3_bn_w32", 1, 0.05, batch=64)
    made = committee.train(recipe, SHAPE, feed, feed, device=tiny.CPU)
    score = students.train(
        StudentRecipe("convnet3_w32", 2, batch=10),
        SHAPE,
        canvas,
        labels,
        feed,
        seed=0,
        device=tiny.CPU,  # type: ignore[arg-type]
    )
    voters = learners.Learners("convnet3_w32", samples=128, epochs=0, batch=8, among=20)
    matched = replace(sre2l(side=tiny.SIDE), ballots=(Ballot(voters, (FeatureMean(),)),))
    matched = replace(matched, schedule=replace(matched.schedule, phases=(Phase(3, SharedCrop()),)))
    pixels_NCSS = distill(matched, canvas[:10], studio(seats, 3)).pixels_NCSS
    one_hot = OneHot(epochs=2).label(canvas, studio(seats, 4)).logits_VK
    return {
        "train observers": digest(*made.weights.values()), "train students": digest(score),
        "match networks in training": digest(pixels_NCSS), "label by class": digest(one_hot),
    }  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(made(list(map(int, sys.argv[2:])))))
