"""What a stage is to Prefect: a task that is retried where that can help, and placed by what its part asks for."""

import functools
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect.cache_policies import NO_CACHE
from prefect.utilities.annotations import opaque

from dd_tasks import seconds
from dd_tasks.errors import InputError
from dd_tasks.pieces import whole_or_none
from dd_tasks.seconds import Spending
from flows.engines import TRIES, line_of
from flows.interrupts import interruptible
from flows.logs import on_its_page
from flows.plain import Ended, is_plain
from flows.settings import Part
from flows.walk import Walked, current
from flows.workspace import Data

log = logging.getLogger(__name__)
MORE = "free some, or run on a machine with more"
PAUSES = (1, 4)  # seconds before a stage is tried again
assert len(PAUSES) == TRIES - 1
P = ParamSpec("P")
R = TypeVar("R")


def _passing(error: BaseException) -> bool:
    """Whether a failure may pass by itself: a connection or a time-out, never bad input or a full disk."""
    return isinstance(error, ConnectionError | TimeoutError)


def _any_but_input(error: BaseException) -> bool:
    return not isinstance(error, InputError)


def _condition(may_pass: Callable[[BaseException], bool]) -> Callable[[Any, Any, Any], bool]:
    """As Prefect wants it: of a task, its run and the state of that."""
    return lambda task, run, state: may_pass(state.result(raise_on_failure=False))


class Stage(Walked[P, R]):
    """A Prefect task as all of ours are: no cache but the store, retried only where that can help: a panel always, for
    another GPU may do better. `part` says what an engine sets aside for it where it is submitted."""

    def __init__(self, function: Callable[P, R], name: str, part: Part | None) -> None:
        self.part, self.may_pass = part, _any_but_input if part == "panels" else _passing
        super().__init__(
            function, task_run_name=name, cache_policy=NO_CACHE, persist_result=False, retries=TRIES - 1,
            retry_delay_seconds=list(PAUSES), retry_condition_fn=_condition(self.may_pass),
        )  # fmt: skip

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_plain() and not current():
            return self._tried(*args, **kwargs)
        return super().__call__(*map(_closed, args), **{name: _closed(value) for name, value in kwargs.items()})

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        if is_plain() and not current():
            return Ended(lambda: self._tried(*args, **kwargs))
        return super().submit(*map(_closed, args), **{name: _closed(value) for name, value in kwargs.items()})

    def _tried(self, *args: Any, **kwargs: Any) -> Any:
        """What its function returns, tried as often as Prefect would."""
        for pause in PAUSES:
            try:
                return self.fn(*args, **kwargs)
            except Exception as error:
                if not self.may_pass(error):
                    raise
                log.warning("%s: %s; again in %d s", self.fn.__name__, line_of(error), pause)
                time.sleep(pause)
        return self.fn(*args, **kwargs)


def _closed(value: Any) -> Any:
    """For each stage Prefect looks for task runs in all that its parameters hold. Data, which name every class and
    shard, are told as one thing: else the time of a panel would grow with the classes of all."""
    return opaque(value) if isinstance(value, Data) and not current() else value


SPENT: dict[Part, Spending] = {
    "observers": "observers", "panels": "recover", "labels": "label", "students": "students",
}  # fmt: skip


def stage(
    name: str, part: Part | None = None, spent: Spending = "orchestration"
) -> Callable[[Callable[P, R]], Stage[P, R]]:
    """A function as a stage; its seconds are spent on its part's work, or on what is said."""
    on = SPENT[part] if part else spent
    return lambda function: Stage(interruptible(on_its_page(_counted(_named(function), name, on))), name, part)


def _named(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose shortage of memory is told in one line."""

    @functools.wraps(function)
    def named(*arguments: P.args, **parameters: P.kwargs) -> R:
        return whole_or_none(function.__name__.replace("_", " "), MORE, lambda: function(*arguments, **parameters))

    return named


def _counted(function: Callable[P, R], name: str, on: Spending) -> Callable[P, R]:
    """The function as a section of the count that is under way, by the name of the stage."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def counted(*arguments: P.args, **named: P.kwargs) -> R:
        if seconds.counting() is None:
            return function(*arguments, **named)
        bound = signature.bind(*arguments, **named)
        bound.apply_defaults()
        with seconds.spent(on, name.format(**bound.arguments)):
            return function(*arguments, **named)

    return counted
