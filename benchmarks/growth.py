"""Seconds a class and peak memory of a recovery, from 10 to 10,000 classes: `python -m benchmarks.growth --data DIR`.

E2D in few steps at 16 px with one tiny observer. The images are CIFAR-10's, made smaller, and a class is a running
number: six images each, whatever they show, and the observer is as it is before training. So this measures cost and no
accuracy. Every size has a process that packs shards, one that draws candidates and measures the observer, and one that
finds all of this in the store, chooses the first images and recovers them, by panels of one size: again and again from
other seeds until there were enough panels. Seconds a class are those of `flows.recover`, from the submission of the
panels to the gathered canvas. What a part of a size found lies in `--out` and is not measured again. Written to
benchmarks/results/growth.json and growth.png.
"""

import argparse
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.environment import keep_freed_memory, prepare_environment

prepare_environment()
os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="retort-"))

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from prefect import flow  # noqa: E402

from benchmarks.calls import RESULTS, keep  # noqa: E402
from benchmarks.plots import Chart, plotted  # noqa: E402
from dd_tasks import memory  # noqa: E402
from dd_tasks.committee import seeded, weights_of  # noqa: E402
from dd_tasks.networks import Shape, build  # noqa: E402
from dd_tasks.packing import pack  # noqa: E402
from dd_tasks.shards import Quarantine, held_out, open_source, stream  # noqa: E402
from flows.assemble import resolve  # noqa: E402
from flows.committee import train_committee  # noqa: E402
from flows.engines import ENGINE  # noqa: E402
from flows.recover import recover  # noqa: E402
from flows.settings import Settings  # noqa: E402
from flows.stored import facts_of  # noqa: E402
from flows.tasks import choose_images, draw_candidates, index_shards  # noqa: E402
from flows.workspace import begun_of, machine, panels_of, seed_of  # noqa: E402
from schemas.spec import RunSpec  # noqa: E402

SIZES = (10, 100, 1_000, 10_000)
SIDE, IPC, PANEL, ENOUGH = 16, 5, 50, 100  # panels that are timed at least, after as many more as WARM
WARM = 3
HELD_OUT = 0.1
ARCHITECTURE = "thin_resnet4_w32"
STEPS = {"schedule.phases.0.steps": "3", "schedule.phases.1.steps": "2"}
PARTS = ("pack", "prepare", "recover")


def samples(data: str, classes: int) -> Iterator[tuple[str, bytes, str, int]]:
    """IPC images a class for training and one held out: real ones, in the order of their shards."""
    real = open_source([f"{data}/cifar10-*.tar"], quarantine=Quarantine())
    images = stream(real, quarantine=Quarantine())
    for number, sample in enumerate(itertools.islice(images, classes * (IPC + 1))):
        label, place = divmod(number, IPC + 1)
        keys = (f"image-{number:06d}-{salt}" for salt in itertools.count())
        key = next(key for key in keys if held_out(key, HELD_OUT) == (place == IPC))
        yield key, smaller(sample.image), "png", label


def smaller(image: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX).save(file, "PNG")
    return file.getvalue()


def committee(folder: Path, shape: Shape) -> Path:
    """A committee file of one observer as it is before training."""
    content = safetensors.torch.save(weights_of(seeded(lambda: build(ARCHITECTURE, shape), 0)))
    weights, file = folder / "weights.safetensors", folder / "committee.json"
    weights.write_bytes(content)
    member = {
        "architecture": ARCHITECTURE, "weights": str(weights), "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    file.write_text(json.dumps({"observers": [member]}))
    return file


def packed(data: str, folder: Path, classes: int) -> dict[str, Any]:
    """Shards and a committee for so many classes."""
    found: dict[str, Any] = {}
    with stage(found, "pack"):
        names = [str(label) for label in range(classes)]
        index = pack(samples(data, classes), names, folder / "shards", overwrite=True)
    committee(folder, Shape(classes, SIDE, index.mean, index.std))
    return found


@contextmanager
def stage(found: dict[str, Any], name: str) -> Iterator[None]:
    """Seconds of the block, and the bytes that the process held at most during it."""
    with memory.peak_memory(torch.device("cpu")) as above:
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
    found[name] = {"seconds": round(seconds, 3), "bytes_above": above(), "peak_bytes": memory.resident()[1]}


@flow(name="measure-growth", validate_parameters=False, task_runner=ENGINE)
def measured(spec: RunSpec, settings: Settings, rounds: int) -> dict[str, Any]:
    """What each stage took; without rounds those up to the recovery, else choosing and so many recoveries."""
    found: dict[str, Any] = {}
    with stage(found, "index"):
        data = index_shards(spec.shards, (), spec.side, spec.held_out, spec.tolerate, spec.ipc)
    run = resolve(spec, data.side, data.shape.classes)
    begin, drawn, chosen = run.recipe.initialiser, seed_of(spec.seed, "candidates"), seed_of(spec.seed, "choose")
    with stage(found, "draw"):
        candidates = draw_candidates(begin, spec.ipc, data, drawn, settings)
    with stage(found, "statistics"):
        seats = train_committee(run.observers, data, settings)
    if not rounds:
        return found
    with stage(found, "choose"):
        first = choose_images(begin, candidates, seats, spec.ipc, data, chosen, settings)
    with stage(found, "plan panels"):
        begun = begun_of(begin, spec.ipc, data, (drawn, chosen), seats)
        warm, *panels = (panels_of(spec.ipc, begun, data.shape.classes, spec.panel, seed) for seed in range(rounds + 1))
    recover(run.recipe, first, (warm * WARM)[:1], seats, data, 0, settings)
    with stage(found, "recover"):
        made = [recover(run.recipe, first, each, seats, data, 0, settings) for each in panels]
    recovered = [facts_of(panel, settings)["seconds"] for parts, _ in made for panel in parts]
    gathered = [facts_of(canvas, settings)["seconds"] for _, canvas in made]
    found["recover"] |= {"panels": len(recovered), "in_panels": sum(recovered), "in_gathering": sum(gathered)}
    return found


def specification(folder: Path) -> RunSpec:
    return RunSpec(
        preset="e2d", shards=(f"{folder}/shards/*.tar",), ipc=IPC, panel=PANEL, held_out=HELD_OUT, set=STEPS,
        committee=str(folder / "committee.json"),
    )  # fmt: skip


def recoveries(classes: int) -> int:
    """As many as make ENOUGH panels."""
    return -(-ENOUGH * PANEL // (classes * IPC))


def one(part: str, data: str, folder: Path, classes: int) -> None:
    """In a process of its own; leaves FOLDER/PART.json."""
    folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    if part == "pack":
        found = packed(data, folder, classes)
    else:
        rounds = recoveries(classes) if part == "recover" else 0
        found = measured(specification(folder), Settings(store=str(folder / "store"), device="cpu"), rounds)
    (folder / f"{part}.json").write_text(json.dumps(found))


def head_seconds(classes: int) -> float:
    """What of one step grows with the classes by nature: the logits of a panel from the features, their cross-entropy
    and its gradient, and their cross-entropy once more as the crops' hardness. The median of 50."""
    net = build(ARCHITECTURE, Shape(classes, SIDE)).requires_grad_(False)
    head = next(module for module in net.modules() if isinstance(module, torch.nn.Linear))
    features_NE = torch.rand(PANEL, head.in_features, requires_grad=True)
    targets_N, seconds = torch.arange(PANEL) % classes, []
    for _ in range(50):
        start = time.perf_counter()
        logits_NK = head(features_NE)
        torch.autograd.grad(F.cross_entropy(logits_NK, targets_N), features_NE)
        F.cross_entropy(logits_NK.detach(), targets_N, reduction="none")
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def row(data: str, out: Path, classes: int) -> dict[str, Any]:
    """One size, each part in a process of its own."""
    stages: dict[str, Any] = {}
    for part in PARTS:
        path = out / str(classes) / f"{part}.json"
        if not path.exists():
            places = ["--data", data, "--out", str(out), "--classes", str(classes)]
            subprocess.run([sys.executable, "-m", "benchmarks.growth", *places, "--part", part], check=True)
        stages = json.loads(path.read_text()) | stages  # what was made then was found later
    recovery, rounds = stages["recover"], recoveries(classes)
    steps = recovery["panels"] * sum(map(int, STEPS.values()))
    return {
        "classes": classes,
        "panels": recovery["panels"],
        "recoveries": rounds,
        "seconds_a_class": round(recovery["seconds"] / rounds / classes, 5),
        "seconds_a_class_in_panels": round(recovery["in_panels"] / rounds / classes, 5),
        "head_share": round(head_seconds(classes) * steps / recovery["in_panels"], 4),
        "peak_bytes": max(stages[name]["peak_bytes"] for name in ("choose", "recover")),
        "stages": stages,
    }


def drawn(rows: list[dict[str, Any]]) -> bytes:
    def line(value: str, unit: float = 1) -> list[tuple[float, float]]:
        return [(row["classes"], row[value] / unit) for row in rows]

    recovery = {"recovery": line("seconds_a_class"), "of it within panels": line("seconds_a_class_in_panels")}
    memory = {"choosing the first images, and recovery": line("peak_bytes", 1e9)}
    return plotted(
        [Chart("Seconds a class", "classes", recovery), Chart("Peak memory of the process, GB", "classes", memory)]
    )


def spread(rows: list[dict[str, Any]], value: str) -> float:
    """The most by the least."""
    return round(max(row[value] for row in rows) / min(row[value] for row in rows), 3)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", required=True, help="folder of the CIFAR-10 shards")
    options.add_argument("--classes", type=int, nargs="+", default=SIZES)
    options.add_argument("--out", type=Path, default=Path("runs/growth"))
    options.add_argument("--part", choices=PARTS, help="of each size this one alone, in this process")
    arguments = options.parse_args()
    if arguments.part:
        for classes in arguments.classes:
            one(arguments.part, arguments.data, arguments.out / str(classes), classes)
        return
    found = [row(arguments.data, arguments.out, classes) for classes in arguments.classes]
    about = {"side": SIDE, "ipc": IPC, "panel": PANEL, "observer": ARCHITECTURE, "set": STEPS}
    spreads = {value: spread(found, value) for value in ("seconds_a_class", "seconds_a_class_in_panels", "peak_bytes")}
    command = "python -m benchmarks.growth --data CIFAR10"
    keep("growth", {**about, "command": command, "machine": machine(), "rows": found, "spread": spreads})
    (RESULTS / "growth.png").write_bytes(drawn(found))


if __name__ == "__main__":
    main()
