"""What a ballot asks of the views: each term is a scalar loss of one observer's reading.

Shape letters: N views, K classes, C channels of a layer. A term that needs state during a panel (an average over steps)
holds it in the closure that `convene` returns; nothing outlives the panel.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_tasks.errors import InputError
from dd_tasks.ranges import Amount, Decay
from dd_tasks.statistics import LayerStatistics
from dd_tasks.types import Moments, Observer, Reading, Studio

Closure = Callable[[Observer, Reading, Tensor], Tensor]  # (judge, its reading, targets_N) -> scalar


class Term(Protocol):
    needs_moments: bool  # by channel
    needs_patches: bool
    # matches_data: bool  # whether it looks at the observers' statistics of the real data; taken to, without it

    def convene(self, studio: Studio) -> Closure: ...


@dataclass(frozen=True)
class CrossEntropy:
    """Mean cross-entropy of the observer against the image's class."""

    weight: Amount = 1.0
    needs_moments = needs_patches = matches_data = False

    def convene(self, studio: Studio) -> Closure:
        def loss(judge: Observer, reading: Reading, targets_N: Tensor) -> Tensor:
            known = reading.logits_NK.shape[1]
            if known != studio.classes:
                raise InputError(
                    f"CrossEntropy of {judge.name}: it knows {known} classes, the images are of {studio.classes}; "
                    "use ContrastivePull"
                )
            return self.weight * F.cross_entropy(reading.logits_NK, targets_N)

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

    def convene(self, studio: Studio) -> Closure:
        def loss(judge: Observer, reading: Reading, targets_N: Tensor) -> Tensor:
            def gap(layer: LayerStatistics, moments: Moments) -> Tensor:
                mean_C, _, variance_C = batch_statistics(moments).float().unbind(0)
                return (mean_C - layer.mean_C).norm() + (variance_C - layer.variance_C).norm()

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
            return self.weight * (distance_MN * same_MN).sum() / distance_MN.sum()

        return loss


def _directions(reading: Reading) -> Tensor:
    assert reading.features_NE is not None
    return F.normalize(reading.features_NE.flatten(1).float())


Layers = Iterable[tuple[LayerStatistics, Moments]]


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

    def over(self, matched: Callable[[Observer, Reading], Layers]) -> Closure:
        averages: dict[tuple[int, int], Tensor] = {}

        def smoothed(key: tuple[int, int], current: Tensor) -> Tensor:
            before = averages.get(key, current.detach())
            averages[key] = self.momentum * before + (1 - self.momentum) * current.detach()
            return current + (averages[key] - current).detach()

        def loss(judge: Observer, reading: Reading, targets_N: Tensor) -> Tensor:
            gaps = (
                _gap(layer, smoothed((id(judge), i), batch_statistics(moments)), targets_N)
                for i, (layer, moments) in enumerate(matched(judge, reading))
            )
            return self.weight * _over_layers(gaps, self.first_layer)

        return loss


@dataclass(frozen=True)
class SmoothedStatistics(Smoothed):
    """Smoothed, over the channels of BatchNorm layers' inputs and, with `convolutions`, of those of convolutions."""

    convolutions: bool = True
    needs_moments = True
    needs_patches = False

    def convene(self, studio: Studio) -> Closure:
        def matched(judge: Observer, reading: Reading) -> Layers:
            layers = zip(judge.statistics, reading.moments, strict=True)
            return (pair for pair in layers if pair[0].batch_norm or self.convolutions)

        return self.over(matched)


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
        def matched(judge: Observer, reading: Reading) -> Layers:
            if not judge.patches:
                raise InputError(f"PatchStatistics needs statistics of patches, and {judge.name} has none")
            return zip(judge.patches, reading.patches, strict=True)

        return self.over(matched)


def batch_statistics(moments: Moments) -> Tensor:
    """statistics_3C of a batch: mean, mean over samples of a sample's variance, and variance over the whole batch."""
    variance_C = moments.variance_NC.mean(0)
    between_C = moments.mean_NC.var(0, correction=0)
    return torch.stack([moments.mean_NC.mean(0), variance_C, variance_C + between_C])


def _gap(layer: LayerStatistics, own_3C: Tensor, targets_N: Tensor) -> Tensor:
    # BatchNorm's running variance is taken over samples and positions together; the others are within a sample.
    mean_C, within_C, whole_C = own_3C.float().unbind(0)
    overall = (mean_C - layer.mean_C).norm() + ((whole_C if layer.batch_norm else within_C) - layer.variance_C).norm()
    class_mean_C, class_variance_C = layer.mean_KC[targets_N].mean(0), layer.variance_KC[targets_N].mean(0)
    return 0.5 * overall + 0.5 * ((mean_C - class_mean_C).norm() + (within_C - class_variance_C).norm())
