"""CIFAR-10 with the `small` committee, all rows, 3 seeds: `python -m benchmarks.cifar10 --data DIR`.

Runs the command line as a user would and writes benchmarks/results/cifar10-PRESET-ipcN-STUDENT.json from the manifest.
A run that was stopped continues: `stage_seconds` are those of when a stage really ran, `wall_seconds` those of this
call. Further options go to `retort run`, and into the command that the result records.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the CIFAR-10 shards")
    parser.add_argument("--preset", default="e2d")
    parser.add_argument("--student", default="convnet3")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10/dataset"))
    parser.add_argument("--store", default="runs/cifar10/store")
    arguments, further = parser.parse_known_args()
    options = [
        "run", arguments.preset, "--shards", f"{arguments.data}/cifar10-train-{{0000..0009}}.tar",
        "--test", f"{arguments.data}/cifar10-test-{{0000..0001}}.tar", "--committee", "small",
        "--ipc", str(arguments.ipc), "--student", arguments.student, *further,
    ]  # fmt: skip
    start = time.perf_counter()
    retort = Path(sys.executable).with_name("retort")
    subprocess.run([retort, *options, "--out", arguments.out, "--store", arguments.store], check=True)
    wall = time.perf_counter() - start
    manifest = json.loads((arguments.out / "retort.json").read_text())
    command = " ".join(["retort", *options]).replace(arguments.data, "CIFAR10")
    cost = manifest["cost"]
    kept = ("preset", "recipe", "ipc", "seed", "observers", "labels", "claims", "versions")
    result = {key: manifest[key] for key in kept} | {
        "benchmark": f"cifar10-{arguments.preset}-ipc{arguments.ipc}-{arguments.student}",
        "command": command,
        "wall_seconds": round(wall, 1),
        "stage_seconds": cost["seconds"],
        "total_stage_seconds": round(sum(cost["seconds"].values()), 1),
        "image_updates": cost["image_updates"],
        "peak_memory_bytes": cost["peak_memory_bytes"],
        "machine": cost["machine"],
        "source": manifest["source"]["digest"],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['benchmark']}.json"
    shutil.copy(arguments.out / "assets" / "preview.png", path.with_suffix(".png"))
    path.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(path)


if __name__ == "__main__":
    main()
