"""What a ballot asks of the views: each term is a scalar loss of one observer's reading.

Shape letters: N views, B batches of them, K classes, C channels of a layer. A term that needs state during a panel (an
average over steps) holds it in the closure that `convene` returns; nothing outlives the panel.

Where a panel is of several batches, `shares_BN` says what part each view has in the mean of each: 1 / its number of
views, or 0. Each batch has a loss as if it were alone, and the sum of them is what a closure returns.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_tasks.errors import InputError
from dd_tasks.ranges import Amount, Decay
from dd_tasks.statistics import LayerStatistics
from dd_tasks.types import Moments, Observer, Reading, Studio

Closure = Callable[..., Tensor]  # (judge: Observer, its reading: Reading, targets_N, shares_BN=None) -> scalar


class Term(Protocol):
    needs_moments: bool  # by channel
    needs_patches: bool
    # matches_data: bool  # whether it looks at the observers' statistics of the real data; taken to, without it
    # by_batch: bool  # whether its closure takes shares_BN; taken not to, without it

    def convene(self, studio: Studio) -> Closure: ...


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of the observer against the image's class."""

    weight: Amount = 1.0
    needs_moments = needs_patches = matches_data = False
    by_batch = True

    def convene(self, studio: Studio) -> Closure:
        def loss(judge: Observer, reading: Reading, targets_N: Tensor, shares_BN: Tensor | None = None) -> Tensor:
            known = reading.logits_NK.shape[1]
            if known != studio.classes:
                raise InputError(
                    f"CrossEntropy of {judge.name}: it knows {known} classes, the images are of {studio.classes}; "
                    "use ContrastivePull"
                )
            if shares_BN is None:
                return self.weight * F.cross_entropy(reading.logits_NK, targets_N)
            return self.weight * (shares_BN @ F.cross_entropy(reading.logits_NK, targets_N, reduction="none")).sum()

        return loss


@dataclass(frozen=True)
class BatchNormMatching:
    """Distance of the batch's statistics at the inputs of BatchNorm layers to their running ones (SRe2L, methods
    section 1): `sum_l a_l (|mean - mean|_2 + |variance - variance|_2)`, a_1 = `first_layer`, the batch's biased
    variance."""

    weight: Amount = 0.01
    first_layer: Amount = 10.0
    needs_moments = True
    needs_patches = False
    matches_data = False  # running statistics are the network's own
    by_batch = True

    def convene(self, studio: Studio) -> Closure:
        def loss(judge: Observer, reading: Reading, targets_N: Tensor, shares_BN: Tensor | None = None) -> Tensor:
            def gap(layer: LayerStatistics, moments: Moments) -> Tensor:
                mean_C, _, variance_C = batch_statistics(moments, shares_BN).float().unbind(0)
                apart = (mean_C - layer.mean_C).norm(dim=-1) + (variance_C - layer.variance_C).norm(dim=-1)
                return apart if shares_BN is None else (apart * shares_BN.sum(1)).sum()  # without those that are empty

            layers = zip(judge.statistics, reading.moments, strict=True)
            return self.weight * _over_layers((gap(*pair) for pair in layers if pair[0].batch_norm), self.first_layer)

        return loss


def _over_layers(gaps: Iterable[Tensor], first_layer: float) -> Tensor:
    """The sum of the layers' gaps, the first one's times `first_layer`."""
    return sum(((first_layer if i == 0 else 1.0) * gap for i, gap in enumerate(gaps)), torch.zeros(()))


@dataclass(frozen=True)
class Matching:
    """A distance between a class's views and real images of it, under a network in training: squared, or L1."""

    weight: Amount = 1.0
    distance: Literal["squared", "l1"] = "squared"
    needs_moments = needs_patches = matches_data = False

    def length(self, gap: Tensor) -> Tensor:
        return gap.square().sum() if self.distance == "squared" else gap.abs().sum()


@dataclass(frozen=True)
class FeatureMean(Matching):
    """Distance of the mean penultimate features (DREAM+, methods section 7)."""

    def convene(self, studio: Studio) -> Closure:
        def loss(judge: Observer, reading: Reading, targets_N: Tensor) -> Tensor:
            real = _real(reading, self)
            assert reading.features_NE is not None and real.features_NE is not None
            gap_E = reading.features_NE.flatten(1).mean(0) - real.features_NE.detach().flatten(1).mean(0)
            return self.weight * self.length(gap_E)

        return loss


@dataclass(frozen=True)
class GradientMatching(Matching):
    """Distance of the gradients that they leave in the network: of their mean cross-entropy, layer by layer, over the
    weights of convolutions (IDC, DREAM+, methods section 7)."""

    def convene(self, studio: Studio) -> Closure:
        def loss(judge: Observer, reading: Reading, targets_N: Tensor) -> Tensor:
            real = _real(reading, self)
            theirs = F.cross_entropy(real.logits_NK, targets_N[:1].expand(len(real.logits_NK)))
            goal = torch.autograd.grad(theirs, reading.weights, retain_graph=True)
            ours = F.cross_entropy(reading.logits_NK, targets_N)
            left = torch.autograd.grad(ours, reading.weights, create_graph=True)
            gaps = (self.length(own - aim) for own, aim in zip(left, goal, strict=True))
            return self.weight * sum(gaps, ours.new_zeros(()))

        return loss


def _real(reading: Reading, term: Term) -> Reading:
    if reading.real is None:
        raise InputError(f"{type(term).__name__} compares with real images: it needs voters in training (Learners)")
    return reading.real


@dataclass(frozen=True)
class ContrastivePull:
    """How near a guide sees the views to real images of their classes, relative to all real images (CLoM, methods
    section 8): `sum(D M) / sum(D)`, D_ij = 1 - cos(F(real_i), F(view_j)), M_ij whether their classes are the same. The
    guide may know other classes: its features F are asked, not its logits."""

    weight: Amount = 1000.0
    needs_moments = needs_patches = matches_data = False

    def convene(self, studio: Studio) -> Closure:
        def loss(judge: Observer, reading: Reading, targets_N: Tensor) -> Tensor:
            if reading.real is None or reading.real_targets_M is None:
                raise InputError("ContrastivePull compares with real images of all classes: it needs voters Guides")
            real_ME, own_NE = (_directions(r) for r in (reading.real, reading))
            distance_MN = 1 - real_ME @ own_NE.T
            same_MN = reading.real_targets_M[:, None] == targets_N
            whole = distance_MN.sum()
            return self.weight * (distance_MN * same_MN).sum() / torch.where(whole > 0, whole, 1)  # 0 where all agree

        return loss


def _directions(reading: Reading) -> Tensor:
    assert reading.features_NE is not None
    return F.normalize(reading.features_NE.flatten(1).float())


@dataclass(frozen=True)
class Goals:
    """What the real data looks like to several layers, channel after channel (C in all; L layers): `mean_C` and
    `variance_C`, the latter of whole batches where `whole_C`; `part_CL` tells which layer a channel is of."""

    whole_C: Tensor
    mean_C: Tensor
    variance_C: Tensor
    part_CL: Tensor

    @classmethod
    def of(cls, layers: Sequence[LayerStatistics]) -> "Goals":
        device = layers[0].mean_C.device
        sizes = [len(layer.mean_C) for layer in layers]
        of_C = torch.arange(len(layers)).repeat_interleave(torch.tensor(sizes))
        return cls(
            torch.tensor([layer.batch_norm for layer in layers])[of_C].to(device),
            torch.cat([layer.mean_C for layer in layers]),
            torch.cat([layer.variance_C for layer in layers]),
            F.one_hot(of_C, len(layers)).float().to(device),
        )

    def gaps(self, own_3C: Tensor, classes_2C: Tensor) -> Tensor:
        """gap_L of each layer between a batch's statistics and these, half of it to those of the batch's classes; of
        own_3BC and classes_2BC gap_BL."""
        mean_C, within_C, whole_C = own_3C.float().unbind(0)
        # BatchNorm's running variance is taken over samples and positions together; the others are within a sample.
        varied_C = torch.where(self.whole_C, whole_C, within_C)
        apart_4C = torch.stack([
            mean_C - self.mean_C, varied_C - self.variance_C, mean_C - classes_2C[0], within_C - classes_2C[1]
        ])  # fmt: skip
        squares_4L = apart_4C.square() @ self.part_CL
        some_4L = squares_4L != 0  # the root's slope at 0 is taken to be 0, as a norm's is
        return 0.5 * torch.where(some_4L, torch.where(some_4L, squares_4L, 1.0).sqrt(), 0.0).sum(0)


class SmoothedLoss:
    """A Smoothed term at work on one panel: `averages` by judge. What a step takes in besides the reading, `state`, and
    what it leaves, `keep`, are apart from its arithmetic, `of`, which may be compiled."""

    def __init__(
        self,
        term: "Smoothed",
        layers: Callable[[Observer], Sequence[LayerStatistics]],
        moments: Callable[[Observer, Reading], Iterable[Moments]],
    ) -> None:
        self.term, self.layers, self.moments = term, layers, moments
        self.averages: dict[int, Tensor] = {}
        self.goals: dict[int, Goals] = {}
        self.classes: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, judge: Observer, reading: Reading, targets_N: Tensor, shares_BN: Tensor | None = None) -> Tensor:
        loss, kept = self.of(judge, reading, *self.state(judge, targets_N, shares_BN), shares_BN)
        self.keep(judge, kept)
        return loss

    def state(self, judge: Observer, targets_N: Tensor, shares_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The average_3C so far, NaN before the first step, and classes_2C: mean and variance, over the batch, of what
        its classes look like; of several batches average_3BC and classes_2BC."""
        known_N, classes_2C = self.classes.get(id(judge), (None, None))
        if known_N is not targets_N or classes_2C is None:
            layers = self.layers(judge)
            by_class = [
                [_mean(x[targets_N], shares_BN) for x in (layer.mean_KC, layer.variance_KC)] for layer in layers
            ]
            classes_2C = torch.stack([torch.cat(of_layers, -1) for of_layers in zip(*by_class, strict=True)])
            self.classes[id(judge)] = targets_N, classes_2C
        if id(judge) not in self.averages:
            self.goals[id(judge)] = Goals.of(self.layers(judge))
            self.averages[id(judge)] = classes_2C.new_full((3, *classes_2C.shape[1:]), torch.nan)
        return self.averages[id(judge)], classes_2C

    def of(
        self, judge: Observer, reading: Reading, average_3C: Tensor, classes_2C: Tensor, shares_BN: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss and the new average_3C, or 3BC."""
        current_3C = batch_statistics(_joined(self.moments(judge, reading)), shares_BN)
        before_3C = torch.where(average_3C.isnan(), current_3C.detach(), average_3C)
        after_3C = self.term.momentum * before_3C + (1 - self.term.momentum) * current_3C.detach()
        gap_L = self.goals[id(judge)].gaps(current_3C + (after_3C - current_3C).detach(), classes_2C)
        if shares_BN is not None:  # a batch whose images have all left waits
            some_B1 = shares_BN.sum(1, keepdim=True)
            after_3C, gap_L = torch.where(some_B1 > 0, after_3C, before_3C), gap_L * some_B1
        return self.term.weight * (gap_L.sum() + (self.term.first_layer - 1) * gap_L[..., 0].sum()), after_3C

    def keep(self, judge: Observer, average_3C: Tensor) -> None:
        self.averages[id(judge)] = average_3C


def _joined(moments: Iterable[Moments]) -> Moments:
    every = tuple(moments)
    return Moments(torch.cat([m.mean_NC for m in every], 1), torch.cat([m.variance_NC for m in every], 1))


@dataclass(frozen=True)
class Smoothed:
    """Distance of the batch's layer statistics to those of the real data (G-VBSM; EDC, methods section 4):
    `sum_l a_l R_l`, R_l the mean of the distances to the global statistics and to the mean of the batch classes' own;
    a distance is |mean - mean|_2 + |variance - variance|_2, and a_1 = `first_layer`.

    The batch's statistics are an exponential average over this panel's steps, begun at the first step's value, with
    straight-through gradient: the value of the average, the gradient of the current batch.
    """

    weight: Amount = 0.1
    momentum: Decay = 0.8
    first_layer: Amount = 10.0
    by_batch = True


@dataclass(frozen=True)
class SmoothedStatistics(Smoothed):
    """Smoothed, over the channels of BatchNorm layers' inputs and, with `convolutions`, of those of convolutions."""

    convolutions: bool = True
    needs_moments = True
    needs_patches = False

    def convene(self, studio: Studio) -> Closure:
        def matched(layer: LayerStatistics) -> bool:
            return layer.batch_norm or self.convolutions

        def moments(judge: Observer, reading: Reading) -> Iterable[Moments]:
            return (m for layer, m in zip(judge.statistics, reading.moments, strict=True) if matched(layer))

        return SmoothedLoss(self, lambda judge: [layer for layer in judge.statistics if matched(layer)], moments)


@dataclass(frozen=True)
class PatchStatistics(Smoothed):
    """Smoothed, over the patches of convolutions' inputs on a grid of at most 16 x 16 (`patches_of`): what G-VBSM adds
    to the R_l of convolutions, beside SmoothedStatistics of the same weight. Patches keep their places: the original's
    shuffle changes nothing.

    InputError for an observer without statistics of patches.
    """

    needs_moments = False
    needs_patches = True

    def convene(self, studio: Studio) -> Closure:
        def layers(judge: Observer) -> Sequence[LayerStatistics]:
            if not judge.patches:
                raise InputError(f"PatchStatistics needs statistics of patches, and {judge.name} has none")
            return tuple(judge.patches)

        return SmoothedLoss(self, layers, lambda judge, reading: reading.patches)


def batch_statistics(moments: Moments, shares_BN: Tensor | None = None) -> Tensor:
    """statistics_3C of a batch: mean, mean over samples of a sample's variance, and variance over the whole batch; of
    several batches statistics_3BC."""
    mean_C, variance_C = (_mean(x, shares_BN) for x in (moments.mean_NC, moments.variance_NC))
    if shares_BN is None:
        between_C = moments.mean_NC.var(0, correction=0)
    else:  # about the mean over all, so that little cancels
        apart_NC = moments.mean_NC - moments.mean_NC.detach().mean(0)
        between_C = shares_BN @ apart_NC.square() - (shares_BN @ apart_NC).square()
    return torch.stack([mean_C, variance_C, variance_C + between_C])


def _mean(each_NC: Tensor, shares_BN: Tensor | None) -> Tensor:
    """mean_C over all, or mean_BC of each batch."""
    return each_NC.mean(0) if shares_BN is None else shares_BN @ each_NC
