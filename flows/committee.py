"""@flow train_committee: real shards -> observers, checkpoints, held-out accuracy, statistics."""

from prefect import flow

from dd_tasks.committee import Imported, ObserverRecipe
from flows.settings import Settings
from flows.tasks import ONE_AT_A_TIME, import_observer, index_shards, measure_observer, train_observer
from flows.workspace import Data, Seat


@flow(name="train-committee", validate_parameters=False, task_runner=ONE_AT_A_TIME)
def train_committee(members: tuple[ObserverRecipe | Imported, ...], data: Data, settings: Settings) -> tuple[Seat, ...]:
    """Train, or check in, each observer; then measure what its layers see of the training part of the shards."""
    learning = [
        import_observer.submit(member, data, settings)
        if isinstance(member, Imported)
        else train_observer.submit(member, data, settings)
        for member in members
    ]
    weights = [future.result() for future in learning]
    seats = [measure_observer.submit(member, w, data, settings) for member, w in zip(members, weights, strict=True)]
    return tuple(seat.result() for seat in seats)


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
