"""Networks in training, whose features and gradients the images follow (the matching family, methods section 7).

Shape letters: N views, M real images of a class, E embedding, C channels, S side, K classes, P pool of real images.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_tasks.augment import SIAMESE_DRAWS, inside, own_share, random_mix_boxes, siamese
from dd_tasks.clusters import nearest_to_centres
from dd_tasks.committee import seeded
from dd_tasks.errors import InputError
from dd_tasks.networks import Shape, build, builder, with_features
from dd_tasks.ranges import Amount, Count, Decay, Positive
from dd_tasks.types import Observer, Reading, RealImages, Studio

FEW = 20  # iterations of k-means, again and again during a run


@dataclass(frozen=True)
class Learners:
    """Networks drawn anew every `inner` steps, trained on real images one epoch before and `samples` of them after each
    step (IDC's loops, methods section 7). The judge of a step says of every class what it makes of its views and, under
    the same augmentation, of `batch` real images: random ones, or the images nearest to as many k-means centres of its
    own embeddings, chosen again every `interval` steps (DREAM).
    """

    architecture: str = "convnet3"
    inner: Positive = 100
    epochs: Count = 1
    samples: Count = 2000
    rate: Amount = 0.01
    momentum: Decay = 0.9
    weight_decay: Amount = 5e-4
    batch: Positive = 128
    choose: Literal["representative", "random"] = "representative"
    interval: Positive = 10
    among: Positive = 1000  # images of a class that are clustered
    pool: Positive = 5000  # images of a class, at most, that are kept at hand
    needs_priors = False
    needs_real = True
    tells_hardness = True

    def least(self, ipc: int) -> int:
        return 1

    def demand(self, ipc: int) -> int:
        return self.pool

    def at_once(self, committee: int) -> int:
        builder(self.architecture)
        return 1

    def convene(self, studio: Studio) -> Callable[[int], tuple[tuple[Observer, float], ...]]:
        real = studio.real
        if real is None:
            raise ValueError("networks in training need real images")
        learner: list[Learner] = []

        def seated(step: int) -> tuple[tuple[Observer, float], ...]:
            if step % self.inner == 0:
                learner[:] = [Learner(self, studio, real)]
                learner[0].train(self.epochs * len(real))
            else:
                learner[0].train(self.samples)
            if step % self.inner % self.interval == 0:
                learner[0].choose()
            return ((learner[0], 1.0),)

        return seated


class Learner:
    """One such network: an observer that still learns."""

    statistics: tuple[Any, ...] = ()
    patches: tuple[Any, ...] = ()
    prior: float | None = None
    TRAINING_BATCH = 128

    def __init__(self, recipe: Learners, studio: Studio, real: RealImages) -> None:
        self.recipe, self.studio, self.real = recipe, studio, real
        self.name = recipe.architecture
        side = real.images_PCSS.shape[-1]
        shape = Shape(studio.classes, side, studio.mean, studio.std)
        net = seeded(lambda: build(recipe.architecture, shape), studio.new_seed())
        self.net = net.to(studio.device).to(memory_format=torch.channels_last)
        self.weights = [m.weight for m in self.net.modules() if isinstance(m, nn.Conv2d)]
        self.optimiser = torch.optim.SGD(
            self.net.parameters(), recipe.rate, recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.rows_by_class = [real.rows_of(label) for label in range(studio.classes)]
        self.chosen: dict[int, Tensor] = {}

    def read(self, pixels_NCHW: Tensor, *, moments: bool = False, patches: bool = False) -> Reading:
        if moments or patches:
            raise InputError(f"{self.name} in training: no statistics are measured of it; judge by other terms")
        logits_NK, features_NE = with_features(self.net, pixels_NCHW)
        return Reading(logits_NK, features_NE=features_NE)

    def readings(
        self, pixels_NCHW: Tensor, targets_N: Tensor, *, moments: bool = False, patches: bool = False
    ) -> Iterator[tuple[Tensor, Reading]]:
        """For each class its rows, and the reading of their views beside that of real images, augmented alike."""
        rng = self.studio.rng
        for label in targets_N.unique().tolist():
            rows_N = (targets_N == label).nonzero()[:, 0]
            draw = torch.rand(SIAMESE_DRAWS, generator=rng, device=rng.device)
            real_MCSS = self.real.pixels(self._batch(label))
            mean, std = self.studio.mean, self.studio.std
            real = self.read(siamese(real_MCSS, draw, mean, std))
            own = self.read(siamese(pixels_NCHW[rows_N], draw, mean, std), moments=moments, patches=patches)
            yield rows_N, replace(own, weights=tuple(self.weights), real=real)

    @torch.no_grad()
    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return with_features(self.net, pixels_NCHW)[1]

    def batch_statistics(self) -> AbstractContextManager[None]:
        return nullcontext()

    def choose(self) -> None:
        """A representative batch of every class, until the next choice."""
        if self.recipe.choose == "random":
            return
        for label in range(self.studio.classes):
            rows_P = self._some(label, self.recipe.among)
            embedding_PE = torch.cat([self.embed(self.real.pixels(part)) for part in rows_P.split(500)]).cpu()
            centres, seed = min(self.recipe.batch, len(rows_P)), self.studio.new_seed()
            taken = nearest_to_centres(embedding_PE.flatten(1).numpy(), centres, seed, tries=1, iterations=FEW)
            self.chosen[label] = rows_P[torch.tensor(taken, device=rows_P.device)]

    def _batch(self, label: int) -> Tensor:
        return self.chosen[label] if label in self.chosen else self._some(label, self.recipe.batch)

    def _some(self, label: int, most: int) -> Tensor:
        """At most so many random rows of a class."""
        rows_P, rng = self.rows_by_class[label], self.studio.rng
        return rows_P[torch.randperm(len(rows_P), generator=rng, device=rng.device)[:most].to(rows_P.device)]

    def train(self, images: int) -> None:
        """So many random real images, mixed by CutMix."""
        rng, size = self.studio.rng, self.TRAINING_BATCH
        side = self.real.images_PCSS.shape[-1]
        for _ in range(images // size):
            rows_B = torch.randint(0, len(self.real), (size,), generator=rng, device=rng.device)
            rows_B = rows_B.to(self.real.targets_P.device)
            pixels_BCSS, boxes_B4 = self.real.pixels(rows_B), random_mix_boxes(size, side, rng).to(rows_B.device)
            mixed_BCSS = torch.where(inside(boxes_B4, side)[:, None], pixels_BCSS.roll(1, 0), pixels_BCSS)
            targets_B, own_B = self.real.targets_P[rows_B], own_share(boxes_B4, side)
            logits_BK = self.net(mixed_BCSS)
            first_B, second_B = (
                F.cross_entropy(logits_BK, t, reduction="none") for t in (targets_B, targets_B.roll(1))
            )
            self.optimiser.zero_grad()
            (own_B * first_B + (1 - own_B) * second_B).mean().backward()
            self.optimiser.step()
