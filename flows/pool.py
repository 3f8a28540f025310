"""Stages on a work pool: each is a run of the deployment `make-stage`, on any machine that reaches Prefect's server and
the store.

What travels is the run's specification and the identity of the result that is wanted: the worker walks the flow until
it comes to that, and makes it alone.
"""

import logging
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectAlreadyExists
from prefect.flows import EntrypointType
from prefect.states import Crashed, Failed

from dd_tasks.errors import InputError, expect_open
from dd_tasks.store import Ref
from flows.assemble import Explained
from flows.distill import distill_dataset
from flows.engines import pool_in, threads_of
from flows.settings import Settings
from flows.walk import Reached, asked, walking
from schemas.spec import RunSpec, whole_path

log = logging.getLogger(__name__)
POLL = 1.0  # seconds between two looks at a run
WORKERS_EVERY = 15  # of these looks: whether its worker is still heard of
REFUSED = "Refused"  # name of the state of a run that had bad input
WORKER = "prefect.worker.name"  # a run's label
_lock = threading.Lock()


class WorkerLostError(ConnectionError):
    """The worker of a run died, or is not heard of any more."""


@flow(name="make-stage", persist_result=False, flow_run_name="{what}")
def make_stage(what: str, spec: RunSpec, kind: str, digest: str, settings: Settings) -> State[Any] | None:
    """On a worker: make one result of the run that `spec` specifies; what it is made of is in the store."""
    wanted = Ref(kind, digest)
    try:
        with walking(wanted):
            distill_dataset.fn(spec, Path(), settings)
    except Reached:
        return None
    except Explained:
        return Failed(name=REFUSED, message=f"{wanted} is no result of {spec.describe()}: is this another version?")
    except InputError as error:
        return Failed(name=REFUSED, message=str(error))
    raise AssertionError("the walk passed the artifact by")


def make(ref: Ref, what: str, settings: Settings) -> None:
    """Have a worker of the pool make a result of the run that is under way, and wait until it has.

    InputError for what the worker refused, WorkerLostError where it died, RuntimeError where it failed.
    """
    spec = asked()
    pool = pool_in(settings)
    if spec is None or pool is None:
        raise InputError(f"engine {settings.engine!r} is for `retort run` and `retort compare` (choices: local, ray)")
    for pattern in (*spec.shards, *spec.test):
        expect_open(pattern, "shards", f"engine {settings.engine!r}")
    with _lock:
        _deploy(pool)
    there = Settings(store=whole_path(settings.store), device=settings.device, threads=threads_of(settings))
    parameters: dict[str, Any] = {"what": what, "kind": ref.kind, "digest": ref.digest}
    parameters |= {"spec": spec.elsewhere(), "settings": there.model_dump(mode="json")}
    begun: Any = run_deployment(f"make-stage/{pool}", parameters=parameters, flow_run_name=what, timeout=0)
    with get_client(sync_client=True) as client:
        _expect_made(_ended(client, begun, pool), what)


@cache
def _deploy(pool: str) -> None:
    """The pool, and in it the deployment; both stay."""
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    log.info(
        "stages go to the work pool %s; machines join it by `prefect worker start --pool %s --type process --limit 1`",
        pool, pool,
    )  # fmt: skip
    made: Any = make_stage.to_deployment(pool, work_pool_name=pool, entrypoint_type=EntrypointType.MODULE_PATH)
    made.apply()


def _ended(client: SyncPrefectClient, begun: FlowRun, pool: str) -> State[Any]:
    """The final state of a run; that of one whose worker is gone is set to crashed."""
    look = 0
    while True:
        look += 1
        run = client.read_flow_run(begun.id)
        assert run.state is not None
        if run.state.is_final():
            return run.state
        if look % WORKERS_EVERY == 0 and _is_lost(client, run, pool):
            gone: State[Any] = Crashed(message="its worker is not heard of any more")
            client.set_flow_run_state(run.id, gone, force=True)
            return gone
        time.sleep(POLL)


def _is_lost(client: SyncPrefectClient, run: FlowRun, pool: str) -> bool:
    worker = run.labels.get(WORKER)
    if worker is None:
        return False
    known = {found.name: found.status for found in client.read_workers_for_work_pool(pool)}
    return known.get(str(worker)) != WorkerStatus.ONLINE


def _expect_made(state: State[Any], what: str) -> None:
    if state.name == REFUSED:
        raise InputError(state.message or what)
    if state.is_crashed() or state.is_cancelled():
        raise WorkerLostError(f"{what}: {state.message}")
    if not state.is_completed():
        raise RuntimeError((state.message or what).removeprefix("Flow run encountered an exception: "))
