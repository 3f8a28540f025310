"""Stages on Ray, through Prefect's task runner for it. Imported where the engine asks for it: Ray is an extra."""

import copy
from typing import Any

import ray
from prefect.context import FlowRunContext
from prefect_ray import RayTaskRunner
from prefect_ray.context import remote_options

from flows.interrupts import kept
from flows.settings import Part

_running: dict[str, tuple[dict[str, Any], "Ray"]] = {}  # at most one; what it was started with


class Ray(RayTaskRunner[Any]):
    """Every stage asks for the resources of its part; one whose worker dies runs again elsewhere."""

    requests: dict[Part, dict[str, Any]]

    def submit(self, task: Any, *arguments: Any, **named: Any) -> Any:
        with remote_options(**self.requests[task.part]):
            return super().submit(task, *arguments, **named)


def started(engine: str, own: dict[str, Any], requests: dict[Part, dict[str, Any]]) -> Ray:
    """A Ray of one's own, or the cluster at ray://HOST:PORT. It stays for all flows of this process, and ends with
    it."""
    environment = {"env_vars": {"PREFECT_API_URL": _server()}, "worker_process_setup_hook": "flows.ray.prepare_worker"}
    begun = {"runtime_env": environment, **(own if engine == "ray" else {})}
    known, found = _running.get(engine, (None, None))
    if found is None or known != begun:
        ray.shutdown()
        _running.clear()
        found = Ray(None if engine == "ray" else engine, copy.deepcopy(begun))  # ray adds to it
        with kept():
            found.__enter__()
        _running[engine] = begun, found
    found.requests = requests
    return found


def _server() -> str:
    """The address of Prefect's server, which workers would otherwise start again, each for itself."""
    context = FlowRunContext.get()
    assert context is not None
    return str(context.client.api_url)


def prepare_worker() -> None:
    """Before a worker does anything: its log lines go to the one who runs the flow."""
    from flows import console
    from flows.environment import keep_freed_memory, prepare_environment

    prepare_environment()
    keep_freed_memory()
    console.start()
