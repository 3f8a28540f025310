"""Soft labels: the committee's logits of many random views of the finished images.

Shape letters: N images, V views, C channels, S side, K classes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_tasks.augment import class_shares, random_crops, random_mix_boxes, show
from dd_tasks.compiling import swift
from dd_tasks.errors import InputError, NumericalError
from dd_tasks.numerics import says
from dd_tasks.ranges import LATER, Positive, Scale, Several, Steps
from dd_tasks.types import Canvas, Crops, Observer, Studio, Views
from dd_tasks.voters import Everyone, Judges, Voters

NEVER = -30.0  # logit of a class that a view does not show
LARGEST = torch.finfo(torch.float16).max


class Labeller(Protocol):
    hard: bool  # whether the labels say no more than the classes do

    @property
    def epochs(self) -> int: ...

    def label(self, canvas: Canvas, studio: Studio) -> Views: ...

    def of_whole_images(self) -> "Labeller":
        """The same for images that are not made of tiles."""
        ...

    def plain(self) -> "Labeller":
        """The same without augmentation."""
        ...


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """`epochs` random views of every image: a crop, a flip, and where `mix` a CutMix partner. With `tiles` above 1 each
    view lies within one of the image's tiles x tiles tiles. Each `group` images in a row share crop, flip and mix box,
    and partners lie equally far ahead, around within the group: compact labels (`codec`) name these once."""

    epochs: Steps = 300
    scale: Scale = (0.5, 1.0)
    flip: bool = True
    mix: bool = True
    tiles: Positive = 1
    group: Positive = field(default=1, metadata=LATER)

    def of_whole_images(self) -> Self:
        return replace(self, tiles=1)

    def plain(self) -> Self:
        """Every image whole and as it is, in one epoch; of images made of tiles every tile, in as many epochs."""
        return replace(self, epochs=self.tiles**2, scale=(1.0, 1.0), flip=False, mix=False)

    def draw(self, epoch: int, n: int, side: int, rng: torch.Generator) -> Views:
        """One view of every image: in random order, a partner the next in that order; or, in groups, in their own."""
        if self.group > 1:
            return self._grouped(epoch, n, side, rng)
        order_V = torch.randperm(n, generator=rng, device=rng.device)
        crops, boxes_V4 = self._boxes(epoch, n, side, rng)
        epochs_V = torch.full((n,), epoch, dtype=torch.int32)
        return Views(
            epochs_V, order_V.int(), crops, order_V.roll(1).int(),
            Crops(crops.boxes_N4.roll(1, 0), crops.flips_N.roll(1)), boxes_V4.short(), torch.zeros(n, 0),
        )  # fmt: skip

    def _grouped(self, epoch: int, n: int, side: int, rng: torch.Generator) -> Views:
        images_V = torch.arange(n, device=rng.device)
        group_V, place_V = images_V // self.group, images_V % self.group
        crops, boxes_G4 = self._boxes(epoch, int(group_V[-1]) + 1, side, rng)
        sizes_V = (n - group_V * self.group).clamp_max(self.group)
        ahead_V = 1 + (torch.rand(len(boxes_G4), generator=rng, device=rng.device)[group_V] * (sizes_V - 1)).long()
        partners_V = group_V * self.group + (place_V + ahead_V) % sizes_V
        epochs_V = torch.full((n,), epoch, dtype=torch.int32)
        return Views(
            epochs_V, images_V.int(), crops[group_V], partners_V.int(), crops[group_V], boxes_G4[group_V].short(),
            torch.zeros(n, 0),
        )  # fmt: skip

    def _boxes(self, epoch: int, n: int, side: int, rng: torch.Generator) -> tuple[Crops, Tensor]:
        """n crops, and boxes_N4 to mix."""
        if self.tiles > side:
            raise InputError(f"labeller.tiles {self.tiles}: images of {side} px have no so many tiles a side")
        crops = random_crops(n, side // self.tiles, self.scale, rng, flip=self.flip)
        if self.tiles > 1:
            corners_N2 = self._tiles(epoch, n, rng) * (side // self.tiles)
            crops = Crops(crops.boxes_N4 + F.pad(corners_N2, (0, 2)), crops.flips_N)
        boxes_N4 = random_mix_boxes(n, side, rng)
        return crops, boxes_N4 if self.mix else torch.zeros_like(boxes_N4)

    def _tiles(self, epoch: int, n: int, rng: torch.Generator) -> Tensor:
        """tiles_V2 (row, column): of every image any one; of plain views that of the epoch."""
        if self == self.plain():
            return torch.tensor(divmod(epoch, self.tiles), device=rng.device).expand(n, 2)
        return torch.randint(0, self.tiles, (n, 2), generator=rng, device=rng.device)


@dataclass(frozen=True)
class OneHot(Drawn):
    """The classes themselves, of mixed views by the areas they fill: logits whose softmax is that."""

    hard = True

    def label(self, canvas: Canvas, studio: Studio) -> Views:
        n, side = len(canvas), canvas.images_NCHW.shape[-1]
        every = [self.draw(epoch, n, side, studio.rng) for epoch in range(self.epochs)]
        if not every:
            return no_views(studio.classes)
        views = _joined(every).to(torch.device("cpu"))
        shares_VK = class_shares(views, canvas.targets_N, studio.classes, side)
        return replace(views, logits_VK=shares_VK.log().clamp_min(NEVER).half())


@dataclass(frozen=True)
class Relabel(Drawn):
    """The voters' weighted logits of the views.

    `batch_statistics=b` lets BatchNorm normalise by sub-batches of b views (CV-DD's batch-specific soft labels, methods
    section 6) instead of by running statistics.
    """

    voters: Voters = Everyone()
    batch_statistics: Several | None = None
    batch: Positive = 500
    hard = False

    def label(self, canvas: Canvas, studio: Studio) -> Views:
        pixels_NCSS, n = canvas.images_NCHW.to(studio.device).float() / 255, len(canvas)
        if not self.batch_statistics:
            swiftly = tuple(swift(judge, self.epochs * n, pixels_NCSS.shape[-1]) for judge in studio.observers)
            studio = replace(studio, observers=swiftly)
        labelled = [self._labelled(pixels_NCSS, *lot) for lot in self._lots(n, pixels_NCSS.shape[-1], studio)]
        return _joined(labelled).to(torch.device("cpu")) if labelled else no_views(studio.classes)

    def together(self, n: int) -> int:
        """Views that are labelled at once, where the judges of all epochs are the same: whole epochs, if one fits."""
        return self.batch_statistics or (min(self.batch // n, self.epochs) * n if n <= self.batch else self.batch)

    def _lots(self, n: int, side: int, studio: Studio) -> Iterator[tuple[Views, Judges]]:
        """Drawn views with their judges: together as many epochs in a row as fit into a batch and have the same ones;
        by batch statistics each alone."""
        seating = self.voters.convene(studio)
        seated: Judges = ()
        held: list[Views] = []
        for epoch in studio.track(range(self.epochs), "relabel"):
            judges = seating(epoch)
            alone = self.batch_statistics or (len(held) + 1) * n > self.batch or not _same(judges, seated)
            if held and alone:
                yield _joined(held), seated
                held = []
            seated = judges
            held.append(self.draw(epoch, n, side, studio.rng))
        if held:
            yield _joined(held), seated

    @torch.no_grad()
    def _labelled(self, pixels_NCSS: Tensor, views: Views, judges: Judges) -> Views:
        with _by_batch([judge for judge, _ in judges] if self.batch_statistics else []):
            logits = [
                torch.stack([weight * judge.read(seen_BCSS).logits_NK for judge, weight in judges]).sum(0)
                for seen_BCSS in self._shown(pixels_NCSS, views)
            ]
            logits_VK = torch.cat(logits).half()
            if not logits_VK.isfinite().all():
                raise NumericalError(_wrong(judges, self._shown(pixels_NCSS, views)))
        return replace(views, logits_VK=logits_VK)

    def _shown(self, pixels_NCSS: Tensor, views: Views) -> Iterator[Tensor]:
        for part in _parts(len(views), self.batch_statistics or self.batch):
            yield show(pixels_NCSS, views, part).contiguous(memory_format=torch.channels_last)


def _wrong(judges: Judges, batches: Iterable[Tensor]) -> str:
    """Whose logits of which view are not finite, or greater than a label holds."""
    before = 0
    for seen_BCSS in batches:
        for judge, weight in judges:
            logits_BK = judge.read(seen_BCSS).logits_NK
            wrong_B = ~(weight * logits_BK).half().isfinite().all(1)
            if wrong_B.any():
                row = int(wrong_B.long().argmax())
                return f"soft labels: observer {judge.name}, view {before + row}: {_excess(logits_BK[row])}"
        before += len(seen_BCSS)
    return f"soft labels: the sum of the observers' logits is beyond {LARGEST:,.0f}, the largest that a label holds"


def _excess(logits_K: Tensor) -> str:
    if not logits_K.isfinite().all():
        return f"its logits are {says(logits_K)}"
    most = logits_K.abs().max().item()
    return f"a logit of {most:,.0f} is beyond {LARGEST:,.0f}, the largest that a label (float16) holds"


def _same(some: Judges, others: Judges) -> bool:
    return [(id(judge), weight) for judge, weight in some] == [(id(judge), weight) for judge, weight in others]


def _parts(n: int, size: int) -> Iterator[slice]:
    """Slices of `size`, the last one the larger: a lone view would have no batch statistics."""
    cuts = [*range(0, max(n - size, 0) + 1, size), n] if n > size else [0, n]
    return (slice(a, b) for a, b in pairwise(cuts) if b > a)


@contextmanager
def _by_batch(observers: Sequence[Observer]) -> Iterator[None]:
    with ExitStack() as stack:
        for observer in observers:
            stack.enter_context(observer.batch_statistics())
        yield


def _joined(parts: list[Views]) -> Views:
    def crops(which: str) -> Crops:
        found = [getattr(p, which) for p in parts]
        return Crops(torch.cat([c.boxes_N4 for c in found]), torch.cat([c.flips_N for c in found]))

    def column(which: str) -> Tensor:
        return torch.cat([getattr(p, which) for p in parts])

    return Views(
        column("epochs_V"), column("images_V"), crops("crops"), column("partners_V"), crops("partner_crops"),
        column("mix_boxes_V4"), column("logits_VK"),
    )  # fmt: skip


def no_views(classes: int) -> Views:
    """Labels of a recipe that labels by class alone."""
    nothing = Crops(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))
    none = torch.zeros(0, dtype=torch.int32)
    boxes = torch.zeros(0, 4, dtype=torch.int16)
    return Views(none, none, nothing, none, nothing, boxes, torch.zeros(0, classes, dtype=torch.float16))
