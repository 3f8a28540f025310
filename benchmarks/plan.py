"""Plans against runs: `python -m benchmarks.plan --data DIR`, the digits of the quickstart and a part of CIFAR-10.

Each is calibrated, planned, run with an empty store, and calibrated again, one after another on the same cores. What
the first calibration foresaw and what was found goes to benchmarks/results/plan.json. Recovery that stopped early is
held against the plan of as many image-updates. `cpu_share` is the processor time of a call over its seconds: where that
of the calibration and that of the run differ, other programs took the cores. `again` is what the second calibration
foresees over what the first one did: 1 on a machine that nobody else uses.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.calls import keep

RETORT = Path(sys.executable).with_name("retort")
WORTH_NAMING = 1.0  # seconds, foreseen or found, from which a stage is listed


@dataclass(frozen=True)
class Case:
    """A run, and what to calibrate for it."""

    name: str
    run: tuple[str, ...]
    calibrate: tuple[str, ...]


def cases(data: str, folder: Path) -> list[Case]:
    digits = f"{folder}/digits"
    quick = (
        "infra/quickstart.yaml",
        "--shards",
        f"{digits}/train/*.tar",
        "--test",
        f"{digits}/test/*.tar",
        "--seeds",
        "2",
    )
    cifar = (
        "e2d", "--shards", f"{data}/cifar10-train-0000.tar", "--test", f"{data}/cifar10-test-0000.tar", "--ipc", "5",
        "--seeds", "2", "--student-epochs", "40", "--full-epochs", "0", "--set", "observers.epochs=2",
        "--set", "labeller.epochs=40", "--no-bytes-row",
    )  # fmt: skip
    tiny = ("--side", "16", "--committee", "tiny", "--student", "convnet3_w32", "--panel", "10")
    return [
        Case("quickstart", quick, (*tiny, "--student-batch", "10")),
        Case("cifar10", cifar, ("--side", "32", "--committee", "small", "--panel", "50", "--student-batch", "10")),
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--data", required=True, help="folder of the CIFAR-10 shards")
    options.add_argument("--folder", type=Path, default=Path("runs/plan"))
    arguments = options.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    called("shards", "pack", "digits", "--split", "train", "--split", "test", "--out", arguments.folder / "digits")
    made = [compared(case, arguments.folder) for case in cases(arguments.data, arguments.folder)]
    names = {arguments.data: "CIFAR10", str(arguments.folder / "digits"): "DIGITS", str(arguments.folder): "FOLDER"}
    text = json.dumps({"machine": made[0]["machine"], "plans": made})
    for path, name in names.items():
        text = text.replace(path, name)
    keep("plan", json.loads(text))


def called(*command: object) -> tuple[str, dict[str, float]]:
    """Standard output of a command, its seconds, and the processor time that it and its children had of these."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([str(part) for part in (RETORT, *command)], check=True, stdout=subprocess.PIPE, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, {"wall_seconds": round(wall, 1), "cpu_share": round(used / wall, 2)}


def compared(case: Case, folder: Path) -> dict[str, Any]:
    """One case calibrated, planned and run."""
    out = folder / case.name
    plan, calibrating = planned(case, folder / f"{case.name}-before.json")
    _, running = called("run", *case.run, "--out", out, "--store", folder / f"{case.name}-store")
    later, _ = planned(case, folder / f"{case.name}-after.json")
    manifest = json.loads((out / "retort.json").read_text())
    return {
        "name": case.name,
        "command": " ".join(["retort run", *case.run]),
        "machine": manifest["cost"]["machine"],
        "calibration": calibrating,
        "run": running,
        "again": round(later["totals"]["seconds"] / plan["totals"]["seconds"], 2),
        **ratios(plan, manifest),
        "store_bytes": _both(plan["totals"]["store_bytes"], _blobs(folder / f"{case.name}-store")),
    }


def planned(case: Case, rates: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """The plan by a calibration made for it, and what that took."""
    _, calibrating = called("calibrate", *case.calibrate, "--no-compile", "--out", rates)
    return json.loads(called("plan", *case.run, "--calibration", rates, "--json")[0]), calibrating


def ratios(plan: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    """What the plan foresaw beside what the manifest says, stage by stage and in all."""
    measured, totals, updates = manifest["cost"]["seconds"], plan["totals"], manifest["cost"]["image_updates"]
    foreseen = {stage: plan["stage_seconds"].get(stage, 0.0) for stage in measured}
    foreseen["recover"] *= updates / totals["image_updates"]
    stages = [
        {"stage": stage, **_both(foreseen[stage], seconds)}
        for stage, seconds in measured.items()
        if max(seconds, foreseen[stage]) >= WORTH_NAMING
    ]
    files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    kinds = {line["kind"]: line["bytes"] for line in plan["bytes"] if line["where"] == "artifact"}
    sizes = [
        {"kind": kind, **_both(kinds[kind], sum(n for name, n in files.items() if name.startswith(f"{kind}/")))}
        for kind in ("images", "soft_labels")
    ]
    return {
        "stages": stages,
        "seconds": _both(sum(foreseen.values()), sum(measured.values())),
        "all_seconds": totals["seconds"],
        "image_updates": {
            "least": totals["least_image_updates"],
            "most": totals["image_updates"],
            "measured": updates,
        },
        "labelled_views": _both(totals["labelled_views"], manifest["labels"]["drawn"] * _images(manifest)),
        "students": _both(totals["students"], sum(len(claim["seeds"]) for claim in manifest["claims"])),
        "artifact_bytes": _both(totals["upload_bytes"], sum(files.values())),
        "kinds": sizes,
        "peak_memory_bytes": _both(totals["peak_memory_bytes"], manifest["cost"]["peak_memory_bytes"]),
    }


def _both(foreseen: float, measured: float) -> dict[str, float]:
    ratio = round(foreseen / measured, 2) if measured else 0.0
    return {"foreseen": round(foreseen, 1), "measured": round(measured, 1), "ratio": ratio}


def _images(manifest: dict[str, Any]) -> int:
    return int(manifest["ipc"]) * len(manifest["classes"])


def _blobs(store: Path) -> int:
    return sum(path.stat().st_size for path in (store / "blobs").iterdir())


if __name__ == "__main__":
    main()
