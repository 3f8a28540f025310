"""A work pool: workers that know a run by its specification alone make its panels, also when one of them dies."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dying import deaths, set_aside
from servers import prefect_server
from stack import free_port
from test_faults import checksums, start, until

NAME = "gpus"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of clients of Prefect's server, which has a work pool with a worker that runs one stage at a time."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(home, free_port()) as settings:
        settings["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", NAME, "--type", "process"]
        worker = subprocess.Popen(
            [*command, "--limit", "1"], cwd=home, env=os.environ | settings, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        yield settings
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(600)


def test_workers_make_the_panels_of_a_run_again_where_one_was_killed(
    quick: dict[str, object], tmp_path: Path, environment: dict[str, str]
) -> None:
    dying, home = {**quick, "preset": "dying:e2d"}, environment["PREFECT_HOME"]
    start(tmp_path / "here", dying, "--threads", "1", PYTHONPATH=environment["PYTHONPATH"]).communicate(timeout=1800)
    shutil.copytree(tmp_path / "here" / "store", tmp_path / "away" / "store")
    shutil.rmtree(tmp_path / "away" / "store" / "panel")
    set_aside(home, 1)
    run = start(tmp_path / "away", dying, "--engine", f"pool:{NAME}", **environment)
    told = until(run, "panel") + until(run, "panel")
    assert run.communicate(timeout=1800) and run.returncode == 0 and deaths(home) == []
    assert len([line for line in told if line.startswith("panel") and "made by a worker" in line]) == 2
    assert checksums(tmp_path / "away") == checksums(tmp_path / "here")
