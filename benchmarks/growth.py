"""Seconds a class and peak memory of a recovery, from 10 to 10,000 classes: `python -m benchmarks.growth --data DIR`.

E2D in few steps at 16 px with one tiny observer. The images are CIFAR-10's, made smaller, and a class is a running
number: six images each, whatever they show, of which the observer, untrained, never sees one. So this measures cost and
no accuracy. Every size has a process that draws, measures and so on, and then one that finds all of this in the store,
chooses the first images and recovers them: by panels of one size, again and again from other seeds until there were
enough of them. Written to benchmarks/results/growth.json and growth.png; `--classes` measures some sizes anew.
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
from PIL import Image  # noqa: E402
from prefect import flow  # noqa: E402

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
from flows.workspace import begun_of, panels_of, seed_of  # noqa: E402
from schemas.spec import RunSpec  # noqa: E402

SIZES = (10, 100, 1_000, 10_000)
SIDE, IPC, PANEL, ENOUGH = 16, 5, 50, 100  # panels that are timed at least, after as many more as WARM
WARM = 3
HELD_OUT = 0.1
ARCHITECTURE = "thin_resnet4_w32"
STEPS = {"schedule.phases.0.steps": "6", "schedule.phases.1.steps": "3"}


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


def prepared(data: str, folder: Path, classes: int) -> None:
    """Shards and a committee for so many classes, unless they are there."""
    if not (folder / "shards").exists():
        folder.mkdir(parents=True, exist_ok=True)
        index = pack(samples(data, classes), [str(label) for label in range(classes)], folder / "shards")
        committee(folder, Shape(classes, SIDE, index.mean, index.std))


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


def one(arguments: argparse.Namespace) -> None:
    """In a process of its own: prints one line of JSON."""
    (classes,), folder = arguments.classes, arguments.out / str(arguments.classes[0])
    keep_freed_memory()
    rounds = -(-ENOUGH * PANEL // (classes * IPC)) if arguments.part == "recover" else 0
    found = measured(specification(folder), Settings(store=str(folder / "store"), device="cpu"), rounds)
    print(json.dumps({"rounds": rounds, "stages": found}))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", help="folder of the CIFAR-10 shards")
    options.add_argument("--classes", type=int, nargs="+", default=SIZES)
    options.add_argument("--out", type=Path, default=Path("runs/growth"))
    options.add_argument("--part", choices=["prepare", "recover"])
    arguments = options.parse_args()
    if arguments.part:
        one(arguments)
        return
    for classes in arguments.classes:
        prepared(arguments.data, arguments.out / str(classes), classes)
        for part in ("prepare", "recover"):
            call = [sys.executable, "-m", "benchmarks.growth", "--classes", str(classes), "--part", part]
            told = subprocess.run([*call, "--out", str(arguments.out)], check=True, stdout=subprocess.PIPE).stdout
            print(told.decode().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
