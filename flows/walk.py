"""A walk through a flow's body that makes nothing: it notes of every result whether the store has it, and what it is
made of. Tasks and flows of ours are called as the plain functions they are while one is under way, and flows also
where no server looks at them (`flows.plain`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar, cast

from prefect import Flow, Task
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import get_call_parameters

from dd_tasks.redaction import redacted
from dd_tasks.store import Ref
from flows import guard
from flows.plain import is_looked_at, is_plain, plainly
from schemas.spec import RunSpec

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Step:
    """One result: `made_of` names its inputs, results by reference and what a run is told by name. A step without a
    reference follows: which results it makes is known once the ones before it are there."""

    what: str
    ref: Ref | None
    runs: bool
    made_of: tuple[Ref | str, ...] = ()


class Reached(Exception):
    """The result that a walk wanted is made."""


@dataclass
class Walk:
    """The steps in the order in which the flow asks for them; or the way to the one result that is `wanted`."""

    steps: list[Step] = field(default_factory=list)
    wanted: Ref | None = None

    def look(self, what: str, ref: Ref, found: bool, made_of: tuple[Ref | str, ...]) -> None:
        """A result that was asked for before is there by now."""
        runs = not found and ref not in self.running
        self.steps.append(Step(what, ref, runs, made_of))

    @property
    def running(self) -> dict[Ref, str]:
        """What will be made, by reference."""
        return {step.ref: step.what for step in self.steps if step.ref and step.runs}


_current: ContextVar[Walk | None] = ContextVar("walk", default=None)


def current() -> Walk | None:
    """The walk that is under way."""
    return _current.get()


@contextmanager
def walking(wanted: Ref | None = None) -> Iterator[Walk]:
    """Within the block, nothing is made and no server is asked: but for the result that is wanted, after which comes
    Reached."""
    walk = Walk(wanted=wanted)
    before = _current.set(walk)
    try:
        yield walk
    finally:
        _current.reset(before)


@contextmanager
def following(what: str) -> Iterator[None]:
    """What is within the block needs to know of results: in a walk it follows where they are not there yet."""
    try:
        yield
    except KeyError:
        if (walk := current()) is None:
            raise
        walk.steps.append(Step(what, None, True))


@dataclass(frozen=True)
class Known(Generic[R]):
    """What a submitted task would come to."""

    value: R

    def wait(self) -> None:
        """It is there."""

    def result(self) -> R:
        return self.value


class Walked(Task[P, R]):
    """A task that is its function in a walk."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs) if current() else super().__call__(*args, **kwargs)

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        return Known(self.fn(*args, **kwargs)) if current() else super().submit(*args, **kwargs)


class WalkedFlow(Flow[P, R]):
    """A flow that is its function in a walk, and where no server looks at it. A server takes parameters of half a
    megabyte at most: it is told the digest of what has one, as data name every class and shard. It is told no secret
    that a URL holds."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        told = super().serialize_parameters({name: getattr(v, "digest", v) for name, v in parameters.items()})
        return {name: _open(value) for name, value in told.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current() or is_plain():
            return self.fn(*args, **kwargs)
        asked = kwargs.keys() & {"return_state", "wait_for"}  # of Prefect
        if asked or is_looked_at(parameters := get_call_parameters(self.fn, args, kwargs)):
            if not PREFECT_API_URL.value():
                guard.start()  # Prefect starts a server, which would outlive a kill
            return super().__call__(*args, **kwargs)
        with plainly():
            function: Any = self.fn
            return function(**(self.validate_parameters(parameters) if self.should_validate_parameters else parameters))


def _open(value: Any) -> Any:
    """JSON data without the secrets in its texts."""
    if isinstance(value, dict):
        return {name: _open(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_open(each) for each in value]
    return redacted(value) if isinstance(value, str) else value


_asked: ContextVar[RunSpec | None] = ContextVar("asked", default=None)


def asked() -> RunSpec | None:
    """What the run that is under way was asked for."""
    return _asked.get()


@contextmanager
def _asked_for(spec: RunSpec) -> Iterator[None]:
    before = _asked.set(spec)
    try:
        yield
    finally:
        _asked.reset(before)


def asking(body: Callable[P, R]) -> Callable[P, R]:
    """A flow's body, during which `asked` is its first argument, `spec`. Ray sends flows with all that they name: so
    this names no variable of a context, which cannot be sent."""

    @wraps(body)
    def within(*arguments: P.args, **named: P.kwargs) -> R:
        with _asked_for(cast(RunSpec, arguments[0] if arguments else named["spec"])):
            return body(*arguments, **named)

    return within


def flow(**options: Any) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """`prefect.flow` for flows of ours."""
    return lambda fn: WalkedFlow(fn, persist_result=False, **options)
