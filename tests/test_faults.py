"""A run that is killed and started again, as processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

RETORT = Path(sys.executable).with_name("retort")


def start(folder: Path, quick: dict[str, object]) -> subprocess.Popen[str]:
    spec = folder / "spec.yaml"
    folder.mkdir(exist_ok=True)
    spec.write_text(yaml.safe_dump(quick))
    command = [RETORT, "run", spec, "--out", folder / "dataset", "--store", folder / "store", "--device", "cpu"]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )


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
    os.killpg(killed.pid, signal.SIGKILL)  # Prefect's server outlives a killed run
    assert finished[-1].startswith("panel 0"), finished
    assert not (tmp_path / "killed" / "dataset").exists()

    _, said = start(tmp_path / "killed", quick).communicate(timeout=300)
    for what in finished:
        assert f"{what}: found in the store" in said, (what, said)
    _, undisturbed = start(tmp_path / "whole", quick).communicate(timeout=300)
    assert "found in the store" not in undisturbed
    assert checksums(tmp_path / "killed") == checksums(tmp_path / "whole")
