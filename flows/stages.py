"""What a stage is to Prefect: a task that is retried where that can help, and placed by what its part asks for."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import opaque

from dd_tasks.errors import InputError
from flows.engines import TRIES
from flows.logs import on_its_page
from flows.settings import Part
from flows.walk import Walked, current
from flows.workspace import Data

P = ParamSpec("P")
R = TypeVar("R")


def _passing(task: Any, run: Any, state: Any) -> bool:
    """Whether a failure may pass by itself: a connection or a time-out, never bad input or a full disk."""
    return isinstance(state.result(raise_on_failure=False), ConnectionError | TimeoutError)


def _any_but_input(task: Any, run: Any, state: Any) -> bool:
    return not isinstance(state.result(raise_on_failure=False), InputError)


class Stage(Walked[P, R]):
    """A Prefect task as all of ours are: no cache but the store, retried only where that can help: a panel always, for
    another GPU may do better. `part` says what an engine sets aside for it where it is submitted."""

    def __init__(self, function: Callable[P, R], name: str, part: Part | None) -> None:
        super().__init__(
            function, task_run_name=name, cache_policy=NO_CACHE, persist_result=False, retries=TRIES - 1,
            retry_delay_seconds=[1, 4], retry_condition_fn=_any_but_input if part == "panels" else _passing,
        )  # fmt: skip
        self.part = part

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*map(_closed, args), **{name: _closed(value) for name, value in kwargs.items()})

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        return super().submit(*map(_closed, args), **{name: _closed(value) for name, value in kwargs.items()})


def _closed(value: Any) -> Any:
    """For each stage Prefect looks for task runs in all that its parameters hold. Data, which name every class and
    shard, are told as one thing: else the time of a panel would grow with the classes of all."""
    return Closed(value) if isinstance(value, Data) and not current() else value


class Closed(opaque[Any]):
    """Prefect's annotation as it is after a journey: its own comes to Ray's workers wrapped once more."""

    def __getnewargs__(self) -> tuple[Any]:
        return (self.unwrap(),)


def stage(name: str, part: Part | None = None) -> Callable[[Callable[P, R]], Stage[P, R]]:
    return lambda function: Stage(on_its_page(function), name, part)
