"""Students: what a labelled set is worth, as top-1 of networks trained on it from scratch, last epoch.

Shape letters: N images, V views, C channels, S side, K classes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_tasks.augment import class_shares, show
from dd_tasks.claims import ORDINARY_UPDATES
from dd_tasks.committee import accuracy, as_one, autocast, seeded
from dd_tasks.compiling import for_training, worth_compiling
from dd_tasks.errors import InputError
from dd_tasks.lean import fused
from dd_tasks.networks import Shape, build, builder
from dd_tasks.numerics import ASK_EVERY, Watch, expect_learning
from dd_tasks.pieces import whole_or_none
from dd_tasks.ranges import LATER, Amount, Decay, Positive, Several, Share
from dd_tasks.shards import Feed
from dd_tasks.types import Canvas, Track, Views, untracked
from schemas.manifest import Claim


@dataclass(frozen=True)
class StudentRecipe:
    """EDC's and E2D's student (methods sections 4 and 5c): AdamW; `MSE(logits, labels) + class_weight * CE`; an average
    of the weights (`ema`) is what is scored; the rate falls along half a cosine of twice the length until `tail` of the
    epochs are left, then linearly to 0. `hard` trains on the class labels of the same views instead. `mirror` shows
    half of the views mirrored; with `across` a pass over the stored views is shuffled as a whole, not epoch by epoch:
    what few or alike views ask for."""

    architecture: str = "convnet3"
    epochs: Positive = 300
    batch: Several = 50
    rate: Amount = 1e-3
    weight_decay: Amount = 0.01
    class_weight: Amount = 0.025
    ema: Decay = 0.99
    tail: Share = 1 / 6
    hard: bool = False
    mirror: bool = field(default=False, metadata=LATER)
    across: bool = field(default=False, metadata=LATER)


OF_A_CLAIM = ("architecture", "epochs", "hard")  # what a claim says itself
SHARED = tuple(field.name for field in fields(StudentRecipe) if field.name not in OF_A_CLAIM)


def shared(recipe: StudentRecipe) -> dict[str, Any]:
    """What all students of a run have in common, as a manifest keeps it."""
    return {name: getattr(recipe, name) for name in SHARED}


def for_claim(common: Mapping[str, Any], claim: Claim) -> StudentRecipe:
    """The student of a claim, by what its manifest keeps of all.

    InputError for a field that is missing, unknown or out of its range, and for an architecture that nobody knows.
    """
    from pydantic import TypeAdapter, ValidationError

    if common.keys() != set(SHARED):
        named = ", ".join(sorted(common)) or "nothing"
        raise InputError(f"student: the manifest gives {named}; training one again takes {', '.join(SHARED)}")
    builder(claim.student)
    own = {"architecture": claim.student, "epochs": claim.epochs, "hard": claim.row.endswith("_hard")}
    try:
        return TypeAdapter(StudentRecipe).validate_python({**common, **own})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"student: {place} {first['input']!r}: {first['msg'].lower()}") from None


VERSION = 8  # of what a training computes: where it differs, whatever was stored by it is made again
ORDINARY_CROPS = (0.25, 1.0)
LOWER_RATE = "; lower its rate (--set student.rate=X)"
NUMBERS = 2**22  # numbers of the pixels of views, or of their labels, that are made together


def ordinary(student: StudentRecipe, images: int, distilled: int) -> StudentRecipe:
    """How one trains the student's architecture on so many real images with their classes, without us: crops, flips and
    CutMix, drawn anew in every epoch, and ORDINARY_UPDATES times the image-updates that students of the distilled
    images get."""
    epochs = max(1, round(ORDINARY_UPDATES * student.epochs * distilled / images))
    return replace(student, epochs=epochs, hard=True, mirror=False, across=False)


def rate_at(progress: float, tail: float) -> float:
    """The share of the peak rate at `progress` in [0, 1]: .5 (1 + cos(pi p / 2)), then linear to 0 over `tail`."""
    smooth = 0.5 * (1 + math.cos(math.pi * min(progress, 1 - tail) / 2))
    return smooth if progress < 1 - tail else smooth * (1 - progress) / tail


def batches(views: Views, size: int, epochs: int, rng: torch.Generator, *, across: bool = False) -> Iterator[Tensor]:
    """Rows of `views` in batches of `size`, `epochs` views of every image in all; epochs beyond those stored cycle.

    They are shuffled within each epoch or, `across` epochs, all stored ones together. The order follows from the seed
    and the views, not from where these stand: an artifact's table, which is sorted, trains the same student as the
    labels it was written from. A last lone view of an epoch joins the batch before it. InputError without any view.
    """
    if not len(views):
        raise InputError("no labelled views to train a student on")
    stored = int(views.epochs_V.max()) + 1
    sorted_V = torch.argsort(views.images_V, stable=True)
    every_V = sorted_V[torch.argsort(views.epochs_V[sorted_V], stable=True)]
    rows_by_epoch = list(every_V.split(torch.bincount(views.epochs_V, minlength=stored).tolist()))
    n = len(rows_by_epoch[0])
    for epoch in range(epochs):
        if across and epoch % stored == 0:
            rows_by_epoch = list(every_V[torch.randperm(len(views), generator=rng)].split(n))
        rows = rows_by_epoch[epoch % stored]
        if not across:
            rows = rows[torch.randperm(len(rows), generator=rng)]
        yield from rows.split(batch_sizes(len(rows), size))


def batch_sizes(n: int, size: int) -> list[int]:
    """n views in batches of `size`, the last one the smaller, or larger by the lone view that would be left over."""
    whole, rest = divmod(n, size)
    if rest == 1 and whole:  # BatchNorm in training needs two
        return [size] * (whole - 1) + [size + 1]
    return [size] * whole + [rest] * (rest > 0)


def train(
    recipe: StudentRecipe,
    shape: Shape,
    canvas: Canvas,
    views: Views,
    test: Feed,
    *,
    seed: int,
    device: torch.device,
    track: Track = untracked,
) -> float:
    """Top-1 (a fraction) on `test` of a student trained on the labelled views.

    NumericalError where its loss or its weights do not stay finite; ShortOfMemory.
    """
    what, remedy = f"student {recipe.architecture} seed {seed}", "train it in smaller batches (--student-batch N)"

    def trained() -> nn.Module:
        return _trained(recipe, shape, canvas, views, seed, device, track)

    net = whole_or_none(what, remedy, trained)
    if worth_compiling(recipe.epochs * len(canvas), shape.side):
        net = fused(net.eval())
    return accuracy(net, test, device)


def _trained(
    recipe: StudentRecipe, shape: Shape, canvas: Canvas, views: Views, seed: int, device: torch.device, track: Track
) -> nn.Module:
    """A student, with the average of its weights."""
    net = seeded(lambda: build(recipe.architecture, shape), seed).to(device).to(memory_format=torch.channels_last)
    fast = for_training(net, recipe.epochs * len(canvas), shape.side)
    weights = as_one(net)
    optimiser = torch.optim.AdamW([weights], recipe.rate, weight_decay=recipe.weight_decay, fused=True)
    average = Average([weights.detach(), *(t for t in net.buffers() if t.is_floating_point())], recipe.ema)
    steps = recipe.epochs * len(batch_sizes(len(canvas), recipe.batch))
    lessons, watch = _lessons(recipe, canvas, views, seed, device), Watch(steps, device)
    what = f"student {recipe.architecture} seed {seed}"
    for step, lesson in enumerate(track(lessons, what, steps)):
        optimiser.param_groups[0]["lr"] = recipe.rate * rate_at(step / steps, recipe.tail)
        with autocast(device):  # type: ignore[attr-defined]
            logits_VK = fast(lesson.pixels_VCSS)
        loss = objective(recipe, logits_VK.float(), lesson.labels_VK, lesson.shares_VK)
        watch.note(step, loss)
        optimiser.zero_grad(set_to_none=False)
        loss.backward()
        optimiser.step()
        average.update()
        if step % ASK_EVERY == 0:
            expect_learning(watch, steps, what, LOWER_RATE)
    average.restore()
    watch.note(steps - 1, *average.now)
    expect_learning(watch, steps, what, LOWER_RATE)
    return net


class Average:
    """The moving average of a network's weights and buffers: at first what they are, then `decay` of what it was."""

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self.decay, self.now = decay, list(tensors)
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        if self.kept:
            torch._foreach_lerp_(self.kept, self.now, 1 - self.decay)
        else:
            self.kept = [t.clone() for t in self.now]

    @torch.no_grad()
    def restore(self) -> None:
        """The average takes their place."""
        torch._foreach_copy_(self.now, self.kept)


@dataclass(frozen=True)
class Lesson:
    """A batch on the device: pixels in channels-last, float labels, and the classes by the area that they fill."""

    pixels_VCSS: Tensor
    labels_VK: Tensor
    shares_VK: Tensor


def _lessons(recipe: StudentRecipe, canvas: Canvas, views: Views, seed: int, device: torch.device) -> Iterator[Lesson]:
    """Every batch in turn. As many as fit into NUMBERS are made together."""
    rng = torch.Generator().manual_seed(seed)
    pixels_NCSS, targets_N = canvas.images_NCHW.to(device).float() / 255, canvas.targets_N.to(device)
    every, classes = _turned(recipe, views, rng), views.logits_VK.shape[1]
    many = max(1, NUMBERS // (recipe.batch * max(pixels_NCSS[0].numel(), classes)))
    while some := list(islice(every, many)):
        rows_V, flips_V = (torch.cat(parts) for parts in zip(*some, strict=True))
        chosen = views[rows_V].to(device)
        seen_VCSS = show(pixels_NCSS, chosen, slice(None))
        if recipe.mirror:
            seen_VCSS = torch.where(flips_V.to(device)[:, None, None, None], seen_VCSS.flip(3), seen_VCSS)
        seen_VCSS = seen_VCSS.contiguous(memory_format=torch.channels_last)
        shares_VK = class_shares(chosen, targets_N, classes, seen_VCSS.shape[-1])
        tensors, sizes = (seen_VCSS, chosen.logits_VK.float(), shares_VK), [len(rows) for rows, _ in some]
        for parts in zip(*(tensor.split(sizes) for tensor in tensors), strict=True):
            yield Lesson(*parts)


def _turned(recipe: StudentRecipe, views: Views, rng: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of every batch, and of each row whether a `mirror` shows it flipped."""
    for rows_V in batches(views, recipe.batch, recipe.epochs, rng, across=recipe.across):
        flips_V = torch.rand(len(rows_V), generator=rng) < 0.5 if recipe.mirror else torch.zeros(len(rows_V))
        yield rows_V, flips_V


def objective(recipe: StudentRecipe, logits_VK: Tensor, labels_VK: Tensor, shares_VK: Tensor) -> Tensor:
    """The loss on some views: soft labels by MSE plus a little cross-entropy, by the area that a class fills, or
    cross-entropy alone where `hard`."""
    by_class = F.cross_entropy(logits_VK, shares_VK)
    if recipe.hard:
        return by_class
    return F.mse_loss(logits_VK, labels_VK) + recipe.class_weight * by_class
