"""CIFAR-10 with the `small` committee, all rows, 3 seeds: `python -m benchmarks.cifar10 --data DIR`.

Runs the command line as a user would and writes benchmarks/results/cifar10-PRESET-ipcN-STUDENT.json from the manifest.
A run that was stopped continues: `stage_seconds` are those of when a stage really ran, `wall_seconds` those of this
call. Further options go to `retort run`, and into the command that the result records.
"""

import json
import shutil

from benchmarks.calls import RESULTS, keep, parser, timed


def main() -> None:
    options = parser(__doc__, "runs/cifar10/dataset")
    options.add_argument("--preset", default="e2d")
    arguments, further = options.parse_known_args()
    made = timed(["run", arguments.preset, "--codec", "exact", "--no-bytes-row"], arguments, further)
    manifest = json.loads((arguments.out / "retort.json").read_text())
    cost = manifest["cost"]
    kept = ("preset", "recipe", "ipc", "seed", "observers", "labels", "claims", "versions")
    measured = {
        "stage_seconds": cost["seconds"],
        "total_stage_seconds": round(sum(cost["seconds"].values()), 1),
        "image_updates": cost["image_updates"],
        "peak_memory_bytes": cost["peak_memory_bytes"],
        "machine": cost["machine"],
        "source": manifest["source"]["digest"],
    }
    name = f"cifar10-{arguments.preset}-ipc{arguments.ipc}-{arguments.student}"
    keep(name, {key: manifest[key] for key in kept} | made | measured)
    shutil.copy(arguments.out / "assets" / "preview.png", RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
