"""Time as data: phases with step counts, how each chooses its crops, and the pixels' optimiser.

Shape letters: N images, M remembered crops an image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from dd_tasks.augment import random_crops, tiles
from dd_tasks.ranges import LATER, Amount, Count, Decay, Positive, Scale, Share, Steps
from dd_tasks.types import CropMemory, Crops, Tick


@dataclass(frozen=True)
class Chosen:
    """This step's crops; `memory_N` says which remembered crop each is, -1 for a fresh one. Where `roll_2` is set, the
    views are rolled by so many pixels, down and right. Where `images_V` is set, the crops are of these images."""

    crops: Crops
    memory_N: Tensor
    roll_2: Tensor | None = None
    images_V: Tensor | None = None


class Viewer(Protocol):
    """How a phase chooses crops, and what it remembers of them."""

    may_finish: bool  # whether a run may stop early once no image remembers a crop

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        """Crops for every image of the panel; `progress` is the share of the phase that is past, in [0, 1)."""
        ...

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory: ...


def at_work(viewer: Viewer, memory: CropMemory) -> Tensor | None:
    """mask_N of the images that still have something to gain in this phase; None where all stay in it to its end."""
    if isinstance(viewer, RandomCrops) and viewer.patience:
        return memory.easy_N < viewer.patience
    if isinstance(viewer, Revisit) and viewer.active:
        return memory.occupied_NM.any(1)
    return at_work(viewer.viewer, memory) if isinstance(viewer, Rolled) else None


@dataclass(frozen=True)
class RandomCrops:
    """A fresh crop and flip for every image. Exploration: crops harder than `threshold` (cross-entropy, nats) are
    remembered, and a full memory gives up its easiest crop for a harder one; without a threshold none is. With
    `patience` an image that had so many easy crops in a row has been explored, and leaves the batch."""

    scale: Scale = (0.5, 1.0)
    threshold: Amount | None = 0.5
    flip: bool = True
    patience: Count = field(default=0, metadata=LATER)
    may_finish = False

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        crops = random_crops(len(memory.hardness_NM), side, self.scale, rng, flip=self.flip)
        return Chosen(crops, torch.full_like(crops.flips_N, -1, dtype=torch.int64))

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        if self.threshold is None:
            return memory
        easiest_N1 = memory.hardness_NM.argmin(1, keepdim=True)  # an empty place, -inf, comes before any crop
        least_N = memory.hardness_NM.gather(1, easiest_N1)[:, 0]
        keep_N1 = ((hardness_N > self.threshold) & (hardness_N > least_N))[:, None]
        place_NM = torch.zeros_like(memory.flips_NM).scatter(1, easiest_N1, keep_N1)
        return CropMemory(
            torch.where(place_NM[..., None], chosen.crops.boxes_N4[:, None], memory.boxes_NM4),
            torch.where(place_NM, chosen.crops.flips_N[:, None], memory.flips_NM),
            torch.where(place_NM, hardness_N[:, None], memory.hardness_NM),
            torch.where(hardness_N > self.threshold, 0, memory.easy_N + 1),
        )


@dataclass(frozen=True)
class SharedCrop:
    """One crop and flip for the whole panel, then a roll of up to `jitter` pixels each way (SRe2L, methods section 1).

    With a `start` the smallest area falls from there to `scale[0]` along half a cosine over the phase (CDA, section 2).
    """

    scale: Scale = (0.08, 1.0)
    jitter: Count = 0
    start: Share | None = None
    flip: bool = True
    may_finish = False

    def smallest(self, progress: float) -> float:
        """The smallest area of a crop at this share of the phase."""
        start, end = self.start or self.scale[0], self.scale[0]
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        n = len(memory.hardness_NM)
        crop = random_crops(1, side, (self.smallest(progress), self.scale[1]), rng, flip=self.flip)
        crops = Crops(crop.boxes_N4.expand(n, 4), crop.flips_N.expand(n))
        return Chosen(crops, torch.full_like(crops.flips_N, -1, dtype=torch.int64), random_roll(self.jitter, rng))

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        return memory


def random_roll(jitter: int, rng: torch.Generator) -> Tensor | None:
    """roll_2 of 0 to `jitter` pixels each way; none where it is 0."""
    return torch.randint(0, jitter + 1, (2,), generator=rng, device=rng.device) if jitter else None


@dataclass(frozen=True)
class Tiles:
    """Every image as its factor x factor tiles, each up-sampled to its full size (IDC's multi-formation, methods
    section 7)."""

    factor: Positive = 2
    may_finish = False

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        images_V, crops = tiles(len(memory.hardness_NM), side, self.factor, rng.device)
        return Chosen(crops, torch.full_like(images_V, -1), images_V=images_V)

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        return memory


def views_each(viewer: object) -> int:
    """Views that a step has of every image."""
    return viewer.factor**2 if isinstance(viewer, Tiles) else 1


@dataclass(frozen=True)
class Revisit:
    """Exploitation: an image draws one of its remembered crops with probability softmax(hardness); afterwards the
    crop's hardness is refreshed, or the crop forgotten once it is at most `threshold`. Without any left: a random crop,
    which is not remembered; or, where `active`, it leaves the batch."""

    scale: Scale = (0.5, 1.0)
    threshold: Amount = 0.5
    flip: bool = True
    active: bool = field(default=False, metadata=LATER)
    may_finish = True

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        fresh = random_crops(len(memory.hardness_NM), side, self.scale, rng, flip=self.flip)
        left_N = memory.occupied_NM.any(1)
        odds_NM = torch.where(left_N[:, None], memory.hardness_NM, 0).softmax(1)
        drawn_N1 = torch.multinomial(odds_NM, 1, generator=rng)
        boxes_N4 = memory.boxes_NM4.gather(1, drawn_N1[..., None].expand(-1, -1, 4))[:, 0]
        flips_N = memory.flips_NM.gather(1, drawn_N1)[:, 0]
        crops = Crops(
            torch.where(left_N[:, None], boxes_N4, fresh.boxes_N4), torch.where(left_N, flips_N, fresh.flips_N)
        )
        return Chosen(crops, torch.where(left_N, drawn_N1[:, 0], -1))

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        places = torch.arange(memory.hardness_NM.shape[1], device=hardness_N.device)
        revisited_NM = chosen.memory_N[:, None] == places
        fresh_N1 = torch.where(hardness_N > self.threshold, hardness_N, -torch.inf)[:, None]
        return replace(memory, hardness_NM=torch.where(revisited_NM, fresh_N1, memory.hardness_NM))


@dataclass(frozen=True)
class Rolled:
    """The crops of another viewer, all rolled alike by up to `jitter` pixels each way (E2D on ImageNet-21K, methods
    section 5). A remembered crop is rolled anew."""

    viewer: RandomCrops | Revisit = RandomCrops()
    jitter: Count = 32

    @property
    def may_finish(self) -> bool:
        return self.viewer.may_finish

    def choose(self, memory: CropMemory, side: int, rng: torch.Generator, progress: float = 0.0) -> Chosen:
        chosen = self.viewer.choose(memory, side, rng, progress)
        return replace(chosen, roll_2=random_roll(self.jitter, rng))

    def remember(self, memory: CropMemory, chosen: Chosen, hardness_N: Tensor) -> CropMemory:
        return self.viewer.remember(memory, chosen, hardness_N)


@dataclass(frozen=True)
class Adam:
    """The pixels' optimiser; `rate` in units of the data's channel std."""

    rate: Amount = 0.05
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    eps: Amount = 1e-8

    def over(self, pixels_NCHW: Tensor) -> torch.optim.Optimizer:
        return torch.optim.Adam([pixels_NCHW], self.rate, self.betas, self.eps, fused=True)


@dataclass(frozen=True)
class Sgd:
    """Plain gradient descent with momentum; `rate` in units of the data's channel std."""

    rate: Amount = 0.1
    momentum: Decay = 0.5

    def over(self, pixels_NCHW: Tensor) -> torch.optim.Optimizer:
        return torch.optim.SGD([pixels_NCHW], self.rate, self.momentum)


@dataclass(frozen=True)
class Phase:
    steps: Steps
    viewer: RandomCrops | SharedCrop | Revisit | Tiles | Rolled


@dataclass(frozen=True)
class Schedule:
    """Phases in order; the rate falls along a cosine over all of them, or stays where `constant`. `memory` crops are
    kept an image (M). The losses are of `batch` neighbouring images each, side by side in one pass; 0: of the whole
    panel."""

    phases: tuple[Phase, ...] = ()
    optimiser: Adam | Sgd = Adam()
    memory: Positive = 1
    constant: bool = False
    batch: Count = field(default=0, metadata=LATER)

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def ticks(self) -> Iterator[Tick]:
        step = 0
        for phase in self.phases:
            for past in range(phase.steps):
                left = 1.0 if self.constant else 0.5 * (1 + math.cos(math.pi * step / self.steps))
                yield Tick(step, phase.viewer, self.optimiser.rate * left, past / phase.steps)
                step += 1
