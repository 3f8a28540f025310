"""Recovery and labels, and what may go wrong with them: memory that runs out, and losses that are no numbers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dd_tasks.committee import SMALLER
from dd_tasks.distill import Recovered, distill
from dd_tasks.errors import NumericalError
from dd_tasks.label import Labeller, Relabel
from dd_tasks.numerics import Unsound, says
from dd_tasks.pieces import in_pieces, sparing
from dd_tasks.probe import fitting
from dd_tasks.recipe import Recipe
from dd_tasks.schedule import views_each
from dd_tasks.terms import Closure, Term
from dd_tasks.types import Canvas, Observer, Reading, Studio, Tick, Views

REMEDY = "recover fewer slots together (--panel N), or look at smaller images (--side N)"


def recover(recipe: Recipe, canvas: Canvas, studio: Studio, what: str = "recover") -> Recovered:
    """`distill`. Where free memory is too little for all views of a step, or runs out, in which case the panel begins
    anew, its observers look at fewer at once: by arithmetic the same, in floating point as near as another batch size
    is.

    NumericalError naming panel, step, phase, observer and term where a loss or its gradient is not finite;
    ShortOfMemory with the remedy where even single views are too much.
    """
    began, side = studio.rng.get_state(), canvas.images_NCHW.shape[-1]
    frozen = [ballot for ballot in recipe.ballots if not ballot.voters.needs_real]
    terms = [term for ballot in frozen for term in ballot.terms]
    needs = {name: any(getattr(t, f"needs_{name}") for t in terms) for name in ("moments", "patches")}
    views = len(canvas) * max((views_each(phase.viewer) for phase in recipe.schedule.phases), default=1)
    begin = fitting(studio, views, side, what, **needs) if frozen and recipe.schedule.steps else None

    def made(size: int | None) -> Recovered:
        studio.rng.set_state(began)
        return distill(recipe, canvas, in_pieces(studio, size), what)

    try:
        return sparing(made, views if frozen else 1, what, REMEDY, begin)
    except Unsound as found:
        studio.rng.set_state(began)
        raise NumericalError(f"{what}: {_diagnosis(found, recipe, canvas, in_pieces(studio, begin))}") from None


def relabel(labeller: Labeller, canvas: Canvas, studio: Studio, what: str = "relabel") -> Views:
    """The labeller's views. Where free memory is too little for a batch of them, or runs out, in which case it begins
    anew, its observers look at fewer at once."""
    began, side = studio.rng.get_state(), canvas.images_NCHW.shape[-1]
    views, begin = Relabel().batch, None
    if isinstance(labeller, Relabel) and not labeller.batch_statistics:
        views = labeller.together(len(canvas))
        begin = fitting(studio, views, side, what, gradient=False)

    def made(size: int | None) -> Views:
        studio.rng.set_state(began)
        return labeller.label(canvas, in_pieces(studio, size))

    return sparing(made, views, what, SMALLER, begin)


def _diagnosis(found: Unsound, recipe: Recipe, canvas: Canvas, studio: Studio) -> str:
    """Where it went wrong, from doing all up to there once more with an eye on every loss."""
    now = Now()
    ballots = tuple(
        replace(ballot, terms=tuple(Checked.of(term, now) for term in ballot.terms)) for ballot in recipe.ballots
    )
    try:
        distill(replace(recipe, ballots=ballots), canvas, replace(studio, track=now.following, compiled=False))
    except Wrong as wrong:
        if now.step <= found.step:
            return _placed(recipe, now.step, str(wrong))
    except Unsound as again:
        found = again
    judges = " and ".join(dict.fromkeys(now.judges.get(found.step, ())))
    return _placed(recipe, found.step, f"the gradient of the losses by observer {judges or '(unknown)'} is not finite")


def _placed(recipe: Recipe, step: int, wrong: str) -> str:
    """With the step and the phase, counted from 1 as they are shown to a user."""
    past = 0
    for number, phase in enumerate(recipe.schedule.phases):
        past += phase.steps
        if step < past:
            return f"step {step + 1} of {recipe.schedule.steps} (schedule.phases.{number}): {wrong}"
    return f"step {step + 1}: {wrong}"


class Wrong(ArithmeticError):
    """A loss that is not finite."""


class Now:
    """The step that is under way, and who has judged at each."""

    def __init__(self) -> None:
        self.step = 0
        self.judges: dict[int, list[str]] = {}

    def following(self, items: Iterable[Any], what: str, total: int | None = None) -> Iterator[Any]:
        """A Track that notes the step of every tick."""
        for item in items:
            if isinstance(item, Tick):
                self.step = item.step
            yield item


@dataclass(eq=False)
class Checked:
    """A term whose loss is looked at every time, which waits for the device."""

    inner: Term
    now: Now
    needs_moments: bool
    needs_patches: bool
    by_batch: bool

    @classmethod
    def of(cls, term: Term, now: Now) -> "Checked":
        return cls(term, now, term.needs_moments, term.needs_patches, getattr(term, "by_batch", False))

    def convene(self, studio: Studio) -> Closure:
        closure = self.inner.convene(studio)

        def loss(judge: Observer, reading: Reading, targets_N: Tensor, *batches: Tensor) -> Tensor:
            self.now.judges.setdefault(self.now.step, []).append(judge.name)
            found = closure(judge, reading, targets_N, *batches)
            if not found.isfinite():
                raise Wrong(f"{type(self.inner).__name__} of observer {judge.name} is {says(found)}{_also(reading)}")
            return found

        return loss


def _also(reading: Reading) -> str:
    """What is wrong with the reading itself."""
    if not reading.logits_NK.isfinite().all():
        return f"; its logits are {says(reading.logits_NK)}"
    layers = [i for i, m in enumerate(reading.moments) if not (m.mean_NC + m.variance_NC).isfinite().all()]
    return f"; what its layer {layers[0]} takes in is no finite number" if layers else ""
