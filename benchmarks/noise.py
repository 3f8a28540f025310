"""How much of a matching step's direction is noise, and whose: `python -m benchmarks.noise --data DIR`.

Four random images a class of CIFAR-10 are matched by a network in training, after so many real images. The direction
of a step is compared, by cosine, with that of a batch of all real images at hand: of random batches, of representative
ones (DREAM, methods section 7), and, between two batches of all, of other draws of the augmentation. Written to
benchmarks/results/cifar10-matching-noise.json.
"""

import argparse
import time
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.calls import keep
from dd_tasks import shards
from dd_tasks.initialise import by_class
from dd_tasks.learners import Learner, Learners
from dd_tasks.shards import Quarantine
from dd_tasks.terms import FeatureMean, GradientMatching, Term
from dd_tasks.types import RealImages, Studio
from flows.workspace import machine

LEARNERS = Learners("convnet3_w32")
TRAINED, BATCHES, REPEATS, AT_HAND, MATCHED = (0, 10_000, 50_000), (8, 16, 64, 128), 3, 1000, 4


def slope(learner: Learner, term: Term, views_VCSS: Tensor, targets_V: Tensor, draw: int) -> Tensor:
    """The loss's gradient by the views, flat; `draw` decides the augmentation of every class."""
    learner.studio.rng.manual_seed(draw)
    leaf_VCSS, loss = views_VCSS.clone().requires_grad_(), term.convene(learner.studio)
    parts = (
        torch.autograd.grad(loss(learner, reading, targets_V[rows]), leaf_VCSS)[0]
        for rows, reading in learner.readings(leaf_VCSS, targets_V)
    )
    return sum(parts, torch.zeros_like(views_VCSS)).flatten()


def measured(learner: Learner, term: Term, views_VCSS: Tensor, targets_V: Tensor) -> dict[str, object]:
    """Mean cosines, over `REPEATS`."""

    def direction(rows: dict[int, Tensor], draw: int) -> Tensor:
        learner.chosen = rows
        return slope(learner, term, views_VCSS, targets_V, draw)

    everything = dict(enumerate(learner.rows_by_class))
    aim = [direction(everything, draw) for draw in range(REPEATS)]
    draws = fmean(torch.cosine_similarity(a, b, 0).item() for a, b in combinations(aim, 2))
    batches = []
    for size in BATCHES:
        learner.recipe = replace(learner.recipe, batch=size)
        near: dict[str, list[float]] = {"random": [], "representative": []}
        for draw in range(REPEATS):
            some = {label: rows_P[torch.randperm(len(rows_P))[:size]] for label, rows_P in everything.items()}
            learner.chosen = {}
            learner.choose()
            for name, rows in (("representative", learner.chosen), ("random", some)):
                near[name].append(torch.cosine_similarity(direction(rows, draw), aim[draw], 0).item())
        batches.append({"batch": size} | {name: fmean(found) for name, found in near.items()})
    return {"term": type(term).__name__, "batches": batches, "other_draws": draws}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", required=True, help="folder of the CIFAR-10 shards")
    arguments, start = options.parse_args(), time.perf_counter()
    source = shards.open_source([f"{arguments.data}/cifar10-train-{{0000..0009}}.tar"], quarantine=Quarantine())
    side = source.index.height
    assert side is not None
    torch.manual_seed(0)
    found = shards.sample_per_class(source, per_class=AT_HAND + MATCHED, seed=0, quarantine=Quarantine())
    pixels_PCSS = torch.stack([shards.decode(image, side) for image in found.images])
    begun = torch.tensor([row for rows in by_class(found) for row in rows[:MATCHED]])
    real = torch.tensor([row for rows in by_class(found) for row in rows[MATCHED:]])
    labels_P = torch.tensor(found.labels)
    studio = Studio(
        (), len(source.index.classes), source.index.mean, source.index.std, torch.Generator().manual_seed(0),
        torch.device("cpu"), real=RealImages(pixels_PCSS[real], labels_P[real]),
    )  # fmt: skip
    assert studio.real is not None
    rows = []
    for images in TRAINED:
        learner = Learner(LEARNERS, studio, studio.real)
        learner.train(images)
        for term in (GradientMatching(), FeatureMean()):
            made = measured(learner, term, pixels_PCSS[begun].float() / 255, labels_P[begun])
            rows.append({"trained_on": images, **made})
            print(rows[-1], flush=True)
    seconds = round(time.perf_counter() - start, 1)
    command = "python -m benchmarks.noise --data CIFAR10"
    result = {"command": command, "machine": machine(), "wall_seconds": seconds, "network": LEARNERS.architecture}
    keep("cifar10-matching-noise", result | {"at_hand": AT_HAND, "noise": rows})


if __name__ == "__main__":
    main()
