"""@flow train_committee: real shards -> observers, checkpoints, held-out accuracy, statistics; and their priors."""

from dataclasses import replace

from prefect import flow

from dd_tasks.committee import Imported, ObserverRecipe
from dd_tasks.recipe import alone
from flows.assemble import Run, resolve
from flows.guides import train_guides
from flows.recover import recover
from flows.seeing import follow, unlinked
from flows.settings import Settings
from flows.tasks import (
    ONE_AT_A_TIME,
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
from flows.workspace import Data, Pool, Seat, panels_of, seed_of
from schemas.spec import RunSpec


@flow(name="train-committee", validate_parameters=False, task_runner=ONE_AT_A_TIME)
def train_committee(
    members: tuple[ObserverRecipe | Imported, ...], data: Data, settings: Settings, patches: bool = False
) -> tuple[Seat, ...]:
    """Train, or check in, each observer; then measure what its layers see of the training part of the shards, by
    channel and, where asked for, by patch."""
    learning = [
        import_observer.submit(member, data, settings)
        if isinstance(member, Imported)
        else train_observer.submit(member, data, settings)
        for member in members
    ]
    follow("observers", learning)
    weights = [future.result() for future in learning]
    seats = [measure_observer.submit(member, w, data, settings) for member, w in zip(members, weights, strict=True)]
    measured = tuple(seat.result() for seat in seats)
    return tuple(measure_patches(seat, data, settings) for seat in measured) if patches else measured


def measure_priors(
    run: Run, seats: tuple[Seat, ...], data: Data, settings: Settings, pools: tuple[Pool, ...] = ()
) -> tuple[Seat, ...]:
    """Within a flow: each observer distils alone, by the run's recipe; its prior is the top-1 of a student of that, on
    held-out training images (CV-DD, methods section 6)."""
    spec, recipe, data = run.spec, alone(run.recipe), replace(data, test=None)
    candidates = draw_candidates(recipe.initialiser, spec.ipc, data, seed_of(spec.seed, "candidates"), settings)
    panels = panels_of(spec.ipc * data.shape.classes, spec.panel, spec.seed)
    seeds = {what: seed_of(spec.seed, "prior", what) for what in ("choose", "labels")}
    measured = []
    for seat in seats:
        one, what = (seat,), f"images of {seat.recipe.name} alone"
        first = choose_images(recipe.initialiser, candidates, one, spec.ipc, data, seeds["choose"], settings)
        finished, canvas = recover(recipe, first, panels, one, data, spec.seed, settings, pools)
        labels = relabel(recipe.labeller, canvas, one, data, seeds["labels"], settings, what)
        score = train_student(run.students[0], canvas, labels, data, spec.seed, settings, what)
        measured.append(replace(seat, prior=score, trial=(first, *finished, labels, score)))
    return tuple(measured)


@flow(name="priors-from-shards", validate_parameters=False, task_runner=ONE_AT_A_TIME)
def priors_from_shards(spec: RunSpec, settings: Settings) -> tuple[Seat, ...]:
    """The priors by themselves, ahead of the runs that will find them in the store."""
    data = index_shards(spec.shards, (), spec.side, spec.held_out, spec.tolerate, spec.ipc)
    run = resolve(spec, data.side, data.shape.classes)
    seats = unlinked(train_committee(run.observers, data, settings, run.recipe.needs_patches))
    return measure_priors(run, seats, data, settings, train_guides(run, data, settings))


@flow(name="committee-from-shards", validate_parameters=False, task_runner=ONE_AT_A_TIME)
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
    return train_committee(members, data, settings)
