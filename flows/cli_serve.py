"""`retort serve`: one machine that runs the flows by schedule and on demand."""

from pathlib import Path
from typing import Annotated

import typer

from flows.options import Device, Engine, Requests, Store, Threads, Verbose, Workers, settings_of, spec_of


def serve(
    distill: Annotated[Path | None, typer.Option(help="SPEC.yaml to distil by schedule.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of its artifact.")] = Path("runs/dataset"),
    every: Annotated[str | None, typer.Option(help="Its cron schedule, in UTC.  [default: 0 3 * * 0]")] = None,
    publish: Annotated[str | None, typer.Option(help="Then publish it to ORG/NAME, or file:///FOLDER.")] = None,
    verify: Annotated[str | None, typer.Option(help="ORG/NAME[@REVISION] to verify by schedule.")] = None,
    verify_every: Annotated[str | None, typer.Option(help="Its cron schedule, in UTC.  [default: 0 2 * * *]")] = None,
    store: Store = "runs/store",
    device: Device = "auto",
    engine: Engine = "local",
    workers: Workers = None,
    threads: Threads = None,
    request: Requests = None,
    verbose: Verbose = False,
) -> None:
    """Run the flows that the Prefect server (PREFECT_API_URL) asks for, by schedule and on demand, until Ctrl-C."""
    from dd_tasks.errors import InputError
    from flows import launch

    for option, value, needs, subject in (
        ("--every", every, "--distill SPEC.yaml", distill), ("--publish", publish, "--distill SPEC.yaml", distill),
        ("--verify-every", verify_every, "--verify ORG/NAME", verify),
    ):  # fmt: skip
        if value is not None and subject is None:
            raise InputError(f"{option} {value!r}: needs {needs}")
    from flows.settings import NIGHTLY, WEEKLY, Distilling, Verifying
    from schemas.release import ReleaseSpec

    distilling = verifying = None
    if distill is not None:
        release = None if publish is None else ReleaseSpec(target=publish)
        distilling = Distilling(spec_of(str(distill)), out, release, WEEKLY if every is None else every)
    if verify is not None:
        verifying = Verifying(verify, NIGHTLY if verify_every is None else verify_every)
    settings = settings_of(store, device, verbose, engine=engine, workers=workers, threads=threads, requests=request)
    launch.serve(distilling, verifying, settings)
