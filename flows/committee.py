"""@flow train_committee: real shards -> observers, checkpoints, held-out accuracy, statistics; and their priors."""

from dataclasses import replace

from dd_tasks.committee import Imported, ObserverRecipe
from dd_tasks.recipe import alone, identity
from flows.assemble import Run, resolve
from flows.engines import ENGINE, finished
from flows.guides import train_guides
from flows.recover import recover
from flows.seeing import unlinked
from flows.settings import Settings
from flows.stored import hold
from flows.tasks import (
    choose_images,
    draw_candidates,
    import_observer,
    index_shards,
    measure_observer,
    measure_patches,
    relabel,
    train_observer,
    train_student,
)
from flows.walk import flow
from flows.workspace import Data, Pool, Seat, begun_of, panels_of, seed_of, voting
from schemas.spec import RunSpec


@flow(name="train-committee", validate_parameters=False, task_runner=ENGINE)
def train_committee(
    members: tuple[ObserverRecipe | Imported, ...], data: Data, settings: Settings, patches: bool = False
) -> tuple[Seat, ...]:
    """Train, or check in, each observer; then measure what its layers see of the training part of the shards, by
    channel and, where asked for, by patch."""
    learning = [
        (member.name, import_observer.submit(member, data, settings))
        if isinstance(member, Imported)
        else (member.name, train_observer.submit(member, data, settings))
        for member in members
    ]
    weights = finished(learning, "observers")
    measured = finished(
        (member.name, measure_observer.submit(member, found, data, settings))
        for member, found in zip(members, weights, strict=True)
    )
    return tuple(measure_patches(seat, data, settings) for seat in measured) if patches else measured


def measure_priors(
    run: Run, seats: tuple[Seat, ...], data: Data, settings: Settings, pools: tuple[Pool, ...] = ()
) -> tuple[Seat, ...]:
    """Within a flow: each observer distils alone, by the run's recipe; its prior is the top-1 of a student of that, on
    held-out training images (CV-DD, methods section 6)."""
    spec, recipe, data = run.spec, alone(run.recipe), replace(data, test=None)
    drawn = seed_of(spec.seed, "candidates")
    candidates = draw_candidates(recipe.initialiser, spec.ipc, data, drawn, settings)
    seeds = {what: seed_of(spec.seed, "prior", what) for what in ("choose", "labels")}
    measured = []
    for seat in seats:
        one, what = (seat,), f"images of {seat.recipe.name} alone"
        first = choose_images(recipe.initialiser, candidates, one, spec.ipc, data, seeds["choose"], settings)
        begun = begun_of(recipe.initialiser, spec.ipc, data, (drawn, seeds["choose"]), one)
        panels = panels_of(spec.ipc, begun, data.shape.classes, spec.panel, spec.seed)
        recovered, canvas = recover(recipe, first, panels, one, data, spec.seed, settings, pools)
        labels = relabel(recipe.labeller, canvas, one, data, seeds["labels"], settings, what)
        score = train_student(run.students[0], canvas, labels, data, spec.seed, settings, what)
        measured.append(replace(seat, prior=score, trial=(first, *recovered, labels, score)))
    return tuple(measured)


@flow(name="priors-from-shards", validate_parameters=False, task_runner=ENGINE)
def priors_from_shards(spec: RunSpec, settings: Settings) -> tuple[Seat, ...]:
    """The priors by themselves, ahead of the runs that will find them in the store."""
    data = index_shards(
        spec.shards, (), spec.side, spec.held_out, spec.tolerate, spec.ipc, spec.classes, spec.normalise
    )
    run = resolve(spec, data.side, data.shape.classes)
    seats = unlinked(train_committee(run.observers, data, settings, run.recipe.needs_patches))
    seats = measure_priors(run, seats, data, settings, train_guides(run, data, settings))
    _held(seats, settings)
    return seats


def _held(seats: tuple[Seat, ...], settings: Settings) -> None:
    """A committee that waits in the store for its runs."""
    refs = [*voting(seats), *(ref for seat in seats for ref in (*seat.measured, seat.score) if ref)]
    about = ", ".join(seat.recipe.name for seat in seats)
    hold("committee", identity("committee", 1, refs=[ref.digest for ref in refs]), about, refs, settings)


@flow(name="committee-from-shards", validate_parameters=False, task_runner=ENGINE)
def committee_from_shards(
    members: tuple[ObserverRecipe | Imported, ...],
    patterns: tuple[str, ...],
    side: int | None,
    held_out: float,
    tolerate: int,
    settings: Settings,
) -> tuple[Seat, ...]:
    """A committee by itself, ahead of the runs that will find it in the store."""
    data = index_shards(patterns, (), side, held_out, tolerate, ipc=1)
    seats = train_committee(members, data, settings)
    _held(seats, settings)
    return seats
