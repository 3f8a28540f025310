"""A run that is killed and started again, as processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

RETORT = Path(sys.executable).with_name("retort")


def start(folder: Path, quick: dict[str, object]) -> subprocess.Popen[str]:
    spec = folder / "spec.yaml"
    folder.mkdir(exist_ok=True)
    spec.write_text(yaml.safe_dump(quick))
    command = [RETORT, "run", spec, "--out", folder / "dataset", "--store", folder / "store", "--device", "cpu"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def checksums(folder: Path) -> dict[str, str]:
    files = json.loads((folder / "dataset" / "retort.json").read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith((".parquet", "preview.png"))}


def test_a_killed_run_continues_and_ends_with_the_same_bytes(tmp_path: Path, quick: dict[str, object]) -> None:
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

    _, said = start(tmp_path / "killed", quick).communicate(timeout=300)
    for what in finished:
        assert f"{what}: found in the store" in said, (what, said)
    _, undisturbed = start(tmp_path / "whole", quick).communicate(timeout=300)
    assert "found in the store" not in undisturbed
    assert checksums(tmp_path / "killed") == checksums(tmp_path / "whole")


def test_no_server_outlives_a_killed_run(tmp_path: Path, quick: dict[str, object]) -> None:
    run = start(tmp_path / "run", quick)
    assert run.stderr
    next(line for line in run.stderr if "images of 10 classes" in line)
    children = [int(pid) for pid in Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()]
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in children if alive(pid)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
