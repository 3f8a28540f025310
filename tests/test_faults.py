"""Runs as processes: one that is killed and started again, one whose server is, two of the same at a time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from servers import prefect_server
from stack import free_port

from dd_tasks.validate import validate

RETORT = Path(sys.executable).with_name("retort")


def start(folder: Path, quick: dict[str, object], *options: str, **environment: str) -> subprocess.Popen[str]:
    spec = folder / "spec.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    spec.write_text(yaml.safe_dump(quick))
    places = ["--out", folder / "dataset", "--store", folder / "store", "--device", "cpu"]
    command = [RETORT, "run", spec, *places, *options]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        env=os.environ | environment,
    )  # fmt: skip


def checksums(folder: Path) -> dict[str, str]:
    files = json.loads((folder / "dataset" / "retort.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith((".parquet", "preview.png"))}


@pytest.fixture(scope="module")
def whole(quick: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    _, said = start(folder, quick).communicate(timeout=1800)
    assert "found in the store" not in said
    return folder


def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    tmp_path: Path, quick: dict[str, object], whole: Path
) -> None:
    killed = start(tmp_path / "killed", quick)
    assert killed.stderr
    finished = []
    for line in killed.stderr:
        if "made in" in line:
            finished.append(line.split(" ", 1)[1].split(":")[0])
        if line.split(" ", 1)[-1].startswith("panel 0"):
            break
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert finished[-1].startswith("panel 0"), finished
    assert not (tmp_path / "killed" / "dataset").exists()

    _, said = start(tmp_path / "killed", quick).communicate(timeout=1800)
    for what in finished:
        assert f"{what}: found in the store" in said, (what, said)
    assert checksums(tmp_path / "killed") == checksums(whole)


def until(run: subprocess.Popen[str], beginning: str) -> list[str]:
    """The lines of a run up to the first that begins so, without their times."""
    said: list[str] = []
    assert run.stderr
    for line in run.stderr:
        said.append(line.strip().split(" ", 1)[-1])
        if said[-1].startswith(beginning):
            return said
    raise AssertionError("\n".join(said))


def test_a_run_outlives_a_restart_of_prefects_server(tmp_path: Path, quick: dict[str, object], whole: Path) -> None:
    port = free_port()
    with prefect_server(tmp_path / "home", port) as environment:
        run = start(tmp_path / "run", quick, **environment)
        until(run, "panel 0")
    time.sleep(3)
    with prefect_server(tmp_path / "home", port):
        _, said = run.communicate(timeout=1800)
        if run.returncode:
            again = start(tmp_path / "run", quick, **environment)
            _, said = again.communicate(timeout=1800)
            assert again.returncode == 0 and "panel 0 (slots 0..9): found in the store" in said
    assert checksums(tmp_path / "run") == checksums(whole)


def test_two_runs_of_the_same_at_a_time_make_one_artifact(
    tmp_path: Path, quick: dict[str, object], whole: Path
) -> None:
    both = [start(tmp_path / "run", quick, PREFECT_HOME=str(tmp_path / name)) for name in "ab"]
    said = [run.communicate(timeout=1800)[1] for run in both]
    assert [run.returncode for run in both] == [0, 0], said
    for panel in ("panel 0", "panel 1"):
        assert 1 <= sum(line.startswith(panel) for one in said for line in made(one)) <= 2
    assert validate(tmp_path / "run" / "dataset") == [] and checksums(tmp_path / "run") == checksums(whole)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name not in ("dataset", "store", "spec.yaml")]


def made(said: str) -> list[str]:
    """What a run made itself."""
    return [line.split(" ", 1)[1] for line in said.splitlines() if "made in" in line]
