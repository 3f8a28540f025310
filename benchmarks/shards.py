"""The command line on the CIFAR-10 shards, as a user would call it, timed."""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def parser(doc: str, out: str) -> argparse.ArgumentParser:
    """The options that every benchmark on these shards takes."""
    made = argparse.ArgumentParser(description=doc.splitlines()[0])
    made.add_argument("--data", required=True, help="folder of the CIFAR-10 shards")
    made.add_argument("--student", default="convnet3")
    made.add_argument("--ipc", type=int, default=10)
    made.add_argument("--out", type=Path, default=Path(out))
    made.add_argument("--store", default="runs/cifar10/store")
    return made


def timed(command: list[str], arguments: argparse.Namespace, further: list[str]) -> dict[str, Any]:
    """`retort COMMAND...` on the shards: the command as others would type it, and the seconds of this call."""
    options = [
        *command, "--shards", f"{arguments.data}/cifar10-train-{{0000..0009}}.tar",
        "--test", f"{arguments.data}/cifar10-test-{{0000..0001}}.tar", "--committee", "small",
        "--ipc", str(arguments.ipc), "--student", arguments.student, *further,
    ]  # fmt: skip
    start = time.perf_counter()
    retort = Path(sys.executable).with_name("retort")
    subprocess.run([retort, *options, "--out", arguments.out, "--store", arguments.store], check=True)
    wall = time.perf_counter() - start
    typed = shlex.join(["retort", *options]).replace(arguments.data, "CIFAR10")
    return {"command": typed, "wall_seconds": round(wall, 1)}
