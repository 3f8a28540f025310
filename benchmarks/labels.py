"""Accuracy against the bytes of soft labels, on CIFAR-10: `python -m benchmarks.labels --data DIR [--ratios R...]`.

One `retort run` a ratio: exact labels, then compact ones of at most 1/R of their bytes. Then students in batches of
other sizes on the labels of the ratio 40. Random images, as many, are labelled and encoded alike; real JPEG images of
as many bytes are scored at the ratios of --bytes-rows. All of it goes to benchmarks/results/cifar10-labels-ipcN.json. A
run that was stopped continues, and several at a time may share a store. Further options go to `retort run`.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.calls import keep, parser, timed

BATCHES_AT = 40  # ratio


def main() -> None:
    options = parser(__doc__, "runs/cifar10/labels")
    options.add_argument("--preset", default="retort")
    options.add_argument("--ratios", nargs="+", type=int, default=[10, 40, 100, 200])
    options.add_argument("--bytes-rows", nargs="+", type=int, default=[1, 40, 100])
    options.add_argument("--batches", nargs="*", type=int, default=[50, 100])
    options.add_argument("--batch-seeds", type=int, default=3, help="students a row in other batches")
    arguments, further = options.parse_known_args()

    folder: Path = arguments.out

    def row(name: str, ratio: int, *more: str, jpegs: bool = True) -> dict[str, Any]:
        arguments.out = folder / name
        scored = [] if jpegs and ratio in arguments.bytes_rows else ["--no-bytes-row"]
        made = timed(["run", arguments.preset], arguments, [*more, *scored, "--full-epochs", "0", *further])
        return {"ratio": ratio, **made, **_told(arguments.out)}

    rows = [row("exact", 1, "--codec", "exact")]
    images = rows[0]["images"]
    for ratio in arguments.ratios:
        rows.append(row(f"ratio-{ratio}", ratio, *_budget(rows[0]["labels"]["bytes"] // ratio // images)))
    for batch in arguments.batches:
        budget = _budget(rows[0]["labels"]["bytes"] // BATCHES_AT // images)
        more = ["--student-batch", str(batch), "--seeds", str(arguments.batch_seeds)]
        rows.append(row(f"batch-{batch}", BATCHES_AT, *budget, *more, jpegs=False))
    machine = json.loads((arguments.out / "retort.json").read_text())["cost"]["machine"]
    keep(f"cifar10-labels-ipc{arguments.ipc}", {"preset": arguments.preset, "machine": machine, "label_rows": rows})


def _budget(per_image: int) -> list[str]:
    return ["--codec", "compact", "--label-bytes-per-image", str(per_image)]


def _told(out: Path) -> dict[str, Any]:
    """Of an artifact: its claims, how its labels are kept, and the bytes of its images."""
    manifest = json.loads((out / "retort.json").read_text())
    size = sum(entry["bytes"] for name, entry in manifest["files"].items() if name.startswith("images/"))
    return {
        "claims": manifest["claims"],
        "labels": manifest["labels"],
        "images": manifest["ipc"] * len(manifest["classes"]),
        "image_bytes": size,
        "student": manifest["student"],
    }


if __name__ == "__main__":
    main()
