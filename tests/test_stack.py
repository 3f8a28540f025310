"""The stack by its script: a schedule fires, a worker runs it with its store on S3 and publishes; all of it stops."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import pytest
import screenshot
import stack
import yaml
from hub_server import client_environment
from hub_state import WRITE, Hub
from PIL import Image
from prefect import flow, get_client
from prefect.settings import PREFECT_API_URL

ROOT = Path(__file__).resolve().parents[1]

NAME = "org/scheduled"


def missing(what: str) -> None:
    assert not os.environ.get("CI"), f"{what} is missing, and CI needs it"
    pytest.skip(f"{what} is not installed")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One that the user postgres can reach, as pytest's are not."""
    try:
        stack.postgres_tools()
    except stack.StackError:
        missing("PostgreSQL")
    with TemporaryDirectory(prefix="retort-stack-") as made:
        os.chmod(made, 0o755)
        yield Path(made)


def processes(folder: Path) -> list[int]:
    """The processes of a stack, whoever their parents are: all have its name in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            names = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RETORT_STACK={folder}".encode() in names:
            found.append(int(path.name))
    return found


def started(folder: Path, *options: str, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "infra" / "stack.py"), "--folder", str(folder), *options]
    return subprocess.Popen(command, env=os.environ | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_schedule_fires_its_run_is_published_and_everything_stops(
    folder: Path, hub: Hub, quick: dict[str, Any], tmp_path: Path
) -> None:
    spec, pictures = tmp_path / "quick.yaml", tmp_path / "pictures"
    spec.write_text(yaml.safe_dump(quick), encoding="utf-8")
    asked = ["--spec", str(spec), "--publish", NAME, "--until-done"]
    if screenshot.chromium():
        asked += ["--pictures", str(pictures)]
    home = client_environment(os.environ["HF_ENDPOINT"], str(tmp_path / "hf")) | {"HF_TOKEN": WRITE}
    running = started(folder, *asked, **home)
    said, complaints = running.communicate(timeout=3600)
    assert running.returncode == 0, said + complaints
    assert re.search(r"^\S+: Completed, begun by a SCHEDULE$", said, re.MULTILINE), said
    assert said.endswith("everything has stopped\n") and processes(folder) == []

    made = (folder / "work" / "quick" / "dataset" / "retort.json").read_bytes()
    repository = hub.repositories["datasets", NAME]
    assert repository.commits[repository.oid("main") or ""].files["retort.json"].content == made
    assert "PUT /retort/store/panel/" in (folder / "s3.log").read_text(), "its store is on S3"
    assert not [path for path in folder.rglob("*.log") if WRITE in path.read_text(errors="replace")]
    if not screenshot.chromium():
        missing("Chromium")
    for name in ("run", "form"):
        with Image.open(pictures / f"{name}.png") as shot:
            page = shot.convert("L").crop((300, 0, 1400, 600))
            assert shot.width == 1400 and (page.getextrema()[1] or 0) > 240, "not there yet, or still fading in"


def test_a_scheduled_run_is_listed_though_no_scheduler_looks_in_time(prefect_server: None, tmp_path: Path) -> None:
    """The tests' server has none at all, and the folder's deployment ran before."""

    @flow
    def distill_dataset() -> None:
        """What the deployment is of."""

    with get_client(sync_client=True) as client:
        deployed = client.create_deployment(client.create_flow(distill_dataset), name="late")
        client.create_flow_run_from_deployment(deployed)
        port = int(str(PREFECT_API_URL.value()).rpartition(":")[2].removesuffix("/api"))
        begun = datetime.now(UTC)
        scheduled = stack.schedule(stack.Stack(tmp_path, {"prefect": port}, ""), "late")
        asked = datetime.now(UTC)
        run = client.read_flow_run(UUID(scheduled))
    assert run.deployment_id == deployed and run.created_by and run.created_by.type == "SCHEDULE"
    assert run.state and run.state.is_scheduled() and run.expected_start_time
    assert begun < run.expected_start_time <= asked + timedelta(minutes=1)


def test_a_stack_that_is_terminated_while_it_starts_leaves_nothing(folder: Path) -> None:
    """Of a folder that was used before, if the test above ran."""
    before = (folder / "prefect.log").stat().st_size if (folder / "prefect.log").exists() else -1
    running = started(folder)
    while running.poll() is None and not (folder / "prefect.log").exists():
        time.sleep(0.1)
    while running.poll() is None and (folder / "prefect.log").stat().st_size <= before:
        time.sleep(0.1)
    among = processes(folder)
    running.send_signal(signal.SIGTERM)
    said, complaints = running.communicate(timeout=600)
    assert running.returncode == 130 and said == "everything has stopped\n", complaints
    assert len(among) >= 3 and processes(folder) == []
    assert not (folder / "postgres" / "postmaster.pid").exists()


def test_a_specification_that_cannot_be_read_starts_nothing(tmp_path: Path) -> None:
    running = started(tmp_path / "stack", "--spec", "none.yaml")
    said, complaints = running.communicate(timeout=600)
    assert (running.returncode, said) == (1, "")
    assert complaints == "stack: cannot read none.yaml: No such file or directory\n"
