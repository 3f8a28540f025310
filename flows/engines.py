"""Where the submitted stages of a flow run: in this process one after the other, or side by side on Ray or on the
workers of a work pool.

Settings alone decide; no result depends on it. A stage finds its inputs in the store and leaves its result there, so
what travels is references, and a worker that dies loses no more than the stages it was in.
"""

import importlib.util
import os
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import opaque

from dd_tasks.errors import InputError
from dd_tasks.redaction import redacted
from flows.plain import is_plain
from flows.seeing import follow
from flows.settings import PARTS, Part, Request, Settings
from flows.walk import current

if TYPE_CHECKING:
    from flows.ray import Ray

R = TypeVar("R")
TRIES = 3  # of a panel that fails, and of any stage whose worker dies
AT_ONCE = 64  # stages of a work pool that one run waits for
OBJECTS = 128 << 20  # bytes of memory that Ray shares between workers: only references travel
KEPT = "what the others made is kept, and the same command continues"


class EngineError(OSError):
    """A stage failed as often as it may. The message is one line."""


class Engine(TaskRunner[PrefectFuture[Any]]):
    """Submits a stage to the engine that its parameter `settings` names."""

    def __init__(self) -> None:
        super().__init__()
        self.here: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=1)  # every stage uses all cores
        self.waiting: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=AT_ONCE)

    def duplicate(self) -> "Engine":
        return type(self)()

    def __enter__(self) -> "Engine":
        super().__enter__()
        self.here.__enter__()
        self.waiting.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self.waiting.__exit__(*failure)
        self.here.__exit__(*failure)
        super().__exit__(*failure)

    def submit(self, task: Any, parameters: dict[str, Any], *waiting: Any, **more: Any) -> PrefectFuture[Any]:
        settings: Settings = parameters.get("settings", Settings())
        if settings.engine.startswith("ray"):  # whose task runner takes no annotated parameters
            plain = {name: value.unwrap() if isinstance(value, opaque) else value for name, value in parameters.items()}
            return _ray(settings).submit(task, plain, *waiting, **more)
        away = _away.set(pool_in(settings) is not None)
        try:
            chosen = self.waiting if is_away() else self.here
            return chosen.submit(task, parameters, *waiting, **more)
        finally:
            _away.reset(away)


ENGINE: Any = Engine()
_away: ContextVar[bool] = ContextVar("away", default=False)


def is_away() -> bool:
    """Within a stage: whether a worker of a work pool is to make its result."""
    return _away.get()


def pool_in(settings: Settings) -> str | None:
    """The work pool's name, of an engine that is one."""
    kind, _, name = settings.engine.partition(":")
    return (name or "retort") if kind == "pool" else None


def _ray(settings: Settings) -> "Ray":
    expect(settings)
    from flows import ray

    return ray.started(settings.engine, own_of(settings), requests_of(settings))


def expect(settings: Settings) -> None:
    """InputError where the engine's package is missing, or workers elsewhere would know no server to report to."""
    if settings.engine not in ("local", "ray") and not PREFECT_API_URL.value():
        raise InputError(
            f"engine {settings.engine!r}: PREFECT_API_URL is not set; its workers report to that Prefect server"
        )
    if settings.engine.startswith("ray") and importlib.util.find_spec("prefect_ray") is None:
        raise InputError(f"engine {settings.engine!r} needs the extra retort[ray] (choices: local, pool)")


def threads_of(settings: Settings) -> int | None:
    """Of a stage on the processor; None for all cores."""
    return settings.threads or (None if settings.engine == "local" else 1)


def requests_of(settings: Settings) -> dict[Part, dict[str, Any]]:
    """Of every part what is set aside for one stage, as Ray names it."""
    asked = {request.part: request for request in settings.requests}
    return {part: _resources(asked.get(part, Request(part=part)), settings) for part in PARTS}


def _resources(request: Request, settings: Settings) -> dict[str, Any]:
    here = settings.device == "auto" and torch.cuda.is_available()
    usual = 1.0 if here or settings.device.startswith("cuda") else 0.0
    found: dict[str, Any] = {
        "num_cpus": request.cpus or threads_of(settings),
        "num_gpus": usual if request.gpus is None else request.gpus,
        "max_retries": TRIES - 1,
    }
    return found | ({"memory": request.memory} if request.memory else {})


def own_of(settings: Settings) -> dict[str, Any]:
    """How a Ray of one's own is started: on loopback, without its pages, for so many stages at once."""
    threads = threads_of(settings) or 1
    workers = settings.workers or max((os.cpu_count() or 1) // threads, 1)
    return {
        "num_cpus": workers * threads, "include_dashboard": False, "object_store_memory": OBJECTS,
        "_node_ip_address": "127.0.0.1", "logging_level": "warning",
    }  # fmt: skip


def finished(begun: Iterable[tuple[str, PrefectFuture[R]]], what: str | None = None) -> tuple[R, ...]:
    """What submitted stages made, by their names, once all of them have ended: what the others made is kept. The page
    of the run shows the progress of `what`.

    The first failure is raised: InputError and OSError as they are, EngineError for any other.
    """
    named = tuple(begun)
    if what and not current() and not is_plain():
        follow(what, [future for _, future in named])
    for _, future in named:
        future.wait()
    return tuple(_result(name, future) for name, future in named)


def _result(name: str, future: PrefectFuture[R]) -> R:
    try:
        return future.result()
    except (InputError, OSError):
        raise
    except Exception as error:
        how = f"its worker died {TRIES} times" if future.state.is_crashed() else "failed"
        raise EngineError(f"{name}: {how}: {line_of(error)}; {KEPT}") from error


def line_of(error: BaseException) -> str:
    """The first line of what it says, or its name; no secret."""
    return redacted(next(iter(str(error).splitlines()), "")) or type(error).__name__
