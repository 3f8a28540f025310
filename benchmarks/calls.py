"""The command line, as a user would call it, timed."""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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


def call(options: Sequence[str], places: Sequence[str | Path], names: Mapping[str, str]) -> dict[str, Any]:
    """`retort OPTIONS... PLACES...`: the command as others would type it, with `names` for the paths of this machine,
    and the seconds it took."""
    retort, start = Path(sys.executable).with_name("retort"), time.perf_counter()
    subprocess.run([retort, *options, *places], check=True)
    wall, typed = time.perf_counter() - start, shlex.join(["retort", *options])
    for path, name in names.items():
        typed = typed.replace(path, name)
    return {"command": typed, "wall_seconds": round(wall, 1)}


def timed(
    command: Sequence[str], arguments: argparse.Namespace, further: Sequence[str], *, held_out: bool = False
) -> dict[str, Any]:
    """A command on the CIFAR-10 shards; its final rows are of the test images, or of training images held out."""
    test = [] if held_out else ["--test", f"{arguments.data}/cifar10-test-{{0000..0001}}.tar"]
    options = [
        *command, "--shards", f"{arguments.data}/cifar10-train-{{0000..0009}}.tar", *test, "--committee", "small",
        "--ipc", str(arguments.ipc), "--student", arguments.student, *further,
    ]  # fmt: skip
    return call(options, ["--out", arguments.out, "--store", arguments.store], {arguments.data: "CIFAR10"})


def compared(
    presets: Sequence[str], arguments: argparse.Namespace, further: Sequence[str], *, held_out: bool = False
) -> dict[str, Any]:
    """`retort compare` on the CIFAR-10 shards: its comparison.json with the command and its seconds."""
    made = timed(["compare", *presets], arguments, further, held_out=held_out)
    found: dict[str, Any] = json.loads((arguments.out / "comparison.json").read_text())
    return found | made


def keep(name: str, result: Mapping[str, Any]) -> None:
    """As benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, **result}, indent=1, sort_keys=True) + "\n")
    print(path)
