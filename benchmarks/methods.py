"""Methods side by side on CIFAR-10, `small` committee: `python -m benchmarks.methods --data DIR [PRESET...]`.

Runs `retort compare` as a user would and keeps its comparison.json as benchmarks/results/cifar10-methods-ipcN.json.
A run that was stopped continues. Further options go to `retort compare`, and into the command that the result records.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.cifar10 import RESULTS

SOFT = ("sre2l", "sre2l_pp", "cda", "rded", "edc", "e2d", "cv_dd")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=SOFT)
    parser.add_argument("--data", required=True, help="folder of the CIFAR-10 shards")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10/methods"))
    parser.add_argument("--store", default="runs/cifar10/store")
    arguments, further = parser.parse_known_args()
    options = [
        "compare", *arguments.presets, "--shards", f"{arguments.data}/cifar10-train-{{0000..0009}}.tar",
        "--test", f"{arguments.data}/cifar10-test-{{0000..0001}}.tar", "--committee", "small",
        "--ipc", str(arguments.ipc), "--student", "convnet3", *further,
    ]  # fmt: skip
    start = time.perf_counter()
    retort = Path(sys.executable).with_name("retort")
    subprocess.run([retort, *options, "--out", arguments.out, "--store", arguments.store], check=True)
    wall = time.perf_counter() - start
    found = json.loads((arguments.out / "comparison.json").read_text())
    found |= {
        "benchmark": f"cifar10-methods-ipc{arguments.ipc}",
        "command": shlex.join(["retort", *options]).replace(arguments.data, "CIFAR10"),
        "wall_seconds": round(wall, 1),
    }
    path = RESULTS / f"{found['benchmark']}.json"
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    print(path)


if __name__ == "__main__":
    main()
