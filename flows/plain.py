"""Runs that no Prefect server looks at: flows and stages as the plain functions that they are, in this process, one
after the other. Starting a server for them would take longer than some of them run."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, TypeVar, cast

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Failed

from flows.settings import Settings

R = TypeVar("R")
_plain: ContextVar[bool] = ContextVar("plain", default=False)


def is_plain() -> bool:
    """Whether the run that is under way is such a one."""
    return _plain.get()


@contextmanager
def plainly() -> Iterator[None]:
    """Within the block no Prefect server is asked for anything."""
    before = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(before)


def is_looked_at(parameters: Mapping[str, Any]) -> bool:
    """Whether a flow with these parameters has a server: where PREFECT_API_URL names one, within a run that has one,
    and for any engine but the local one, whose workers report to it."""
    settings = parameters.get("settings") or Settings()
    return bool(PREFECT_API_URL.value()) or FlowRunContext.get() is not None or settings.engine != "local"


class Ended(Generic[R]):
    """A submitted stage, which has ended. What it failed with is raised where its result is asked for."""

    def __init__(self, make: Callable[[], R]) -> None:
        self._made: R | None = None
        self._error: Exception | None = None
        self.state: State[Any] = Completed()
        try:
            self._made = make()
        except Exception as error:
            self._error, self.state = error, Failed()

    def wait(self) -> None:
        """It has ended."""

    def result(self) -> R:
        if self._error is not None:
            raise self._error
        return cast(R, self._made)
