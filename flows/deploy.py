"""Deployments: the flows with their parameters, on demand or by a schedule, and one machine that runs them.

Machines that share a work pool take theirs from infra/prefect.yaml.
"""

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from prefect import Flow, get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import EntrypointType
from prefect.runner import Runner
from prefect.settings import get_current_settings

from dd_tasks.errors import InputError
from flows.distill import distill_dataset
from flows.interrupts import leave_alone
from flows.release import release_dataset
from flows.settings import VERIFY_STORE, Distilling, Settings, Verifying
from flows.verify import verify_dataset

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

ON_DEMAND, SCHEDULED = "on-demand", "scheduled"


def on_demand(settings: Settings) -> list["RunnerDeployment"]:
    """All three flows; a form of the UI, or `prefect deployment run`, gives the other parameters."""
    here = {"settings": settings.model_dump(mode="json")}
    return [
        _deployment(distill_dataset, ON_DEMAND, here),
        _deployment(verify_dataset, ON_DEMAND, {"strict": True}),
        _deployment(release_dataset, ON_DEMAND, {}),
    ]


def distilling(asked: Distilling, settings: Settings) -> "RunnerDeployment":
    """Distil, and publish where a release is given, by a schedule."""
    parameters = {
        "spec": asked.spec.model_dump(mode="json", by_alias=True), "out": str(asked.out),
        "release": asked.release and asked.release.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
    }  # fmt: skip
    return _deployment(distill_dataset, SCHEDULED, parameters, expect_cron(asked.cron, "--every"))


def verifying(asked: Verifying, settings: Settings) -> "RunnerDeployment":
    """Verify by a schedule, with scores in a store of their own; the run fails where a check does."""
    scores = Settings(store=VERIFY_STORE, device=settings.device)
    parameters = {"target": asked.target, "settings": scores.model_dump(mode="json"), "strict": True}
    return _deployment(verify_dataset, SCHEDULED, parameters, expect_cron(asked.cron, "--verify-every"))


def _deployment(
    flow: Flow[..., Any], name: str, parameters: dict[str, Any], cron: str | None = None
) -> "RunnerDeployment":
    """Found by its module wherever Retort is installed; of one deployment, one run at a time."""
    made: RunnerDeployment = flow.to_deployment(  # type: ignore[assignment]
        name, cron=cron, parameters=parameters, tags=["retort"], concurrency_limit=1,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )  # fmt: skip
    return made


def when(deployment: "RunnerDeployment") -> str:
    """Its cron schedule, or that it waits to be asked."""
    crons = [each.schedule.cron for each in deployment.schedules or [] if isinstance(each.schedule, CronSchedule)]
    return ", ".join(crons) or "on demand"


def expect_cron(cron: str, option: str) -> str:
    """The schedule. InputError for what is none."""
    try:
        return CronSchedule(cron=cron).cron
    except ValueError:
        raise InputError(f"{option} {cron!r}: expected five fields, as in '0 3 * * 0' (Sundays at 3:00 UTC)") from None


def expect_server() -> str:
    """The URL of the Prefect server. InputError where there is none to serve."""
    url = get_current_settings().api.url
    start = "start one by `prefect server start`"
    if not url:
        raise InputError(f"PREFECT_API_URL is not set: there is no Prefect server to serve; {start}")
    with get_client(sync_client=True) as client:
        if client.api_healthcheck() is not None:
            raise InputError(f"PREFECT_API_URL {url}: no Prefect server answers; {start}")
    return url


class Steady(Runner):
    """Ends on SIGTERM as on Ctrl-C: Prefect's own (3.8) leaves in the middle of what it does, and pauses nothing."""

    def handle_sigterm(self, *_: Any) -> None:
        signal.raise_signal(signal.SIGINT)


def serve(deployments: list["RunnerDeployment"]) -> None:
    """Run what is due, one run at a time, until SIGTERM or Ctrl-C; schedules pause with it."""
    runner = Steady(limit=1)
    for deployment in deployments:
        runner.add_deployment(deployment)
    leave_alone()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background commands ignore it
    with suppress(KeyboardInterrupt):
        asyncio.run(runner.start())
