"""A work pool: workers that know a run by its specification alone make its panels, also when one of them is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from servers import free_port, prefect_server
from test_faults import checksums, start, until

NAME = "gpus"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of clients of Prefect's server, which has a work pool with a worker that runs one stage at a time."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home, free_port()) as settings:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", NAME, "--type", "process"]
        worker = subprocess.Popen(
            [*command, "--limit", "1"], cwd=home, env=os.environ | settings, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        yield settings
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(60)


def kill_a_panel(api: str, beside: subprocess.Popen[str]) -> None:
    """As soon as a worker runs one, while the run goes on."""
    with SyncPrefectClient(api) as client:
        while beside.poll() is None:
            for run in client.read_flow_runs():
                if run.name.startswith("panel") and run.infrastructure_pid and run.state and run.state.is_running():
                    os.kill(int(run.infrastructure_pid.rpartition(":")[2]), signal.SIGKILL)
                    return
            time.sleep(0.1)
    raise AssertionError("the run ended before a worker ran a panel")


def test_workers_make_the_panels_of_a_run_again_where_one_was_killed(
    quick: dict[str, object], tmp_path: Path, environment: dict[str, str]
) -> None:
    start(tmp_path / "here", quick, "--threads", "1").communicate(timeout=300)
    shutil.copytree(tmp_path / "here" / "store", tmp_path / "away" / "store")
    shutil.rmtree(tmp_path / "away" / "store" / "panel")
    run = start(tmp_path / "away", quick, "--engine", f"pool:{NAME}", **environment)
    kill_a_panel(environment["PREFECT_API_URL"], run)
    told = until(run, "panel") + until(run, "panel")
    assert run.communicate(timeout=300) and run.returncode == 0
    assert len([line for line in told if line.startswith("panel") and "made by a worker" in line]) == 2
    assert checksums(tmp_path / "away") == checksums(tmp_path / "here")
