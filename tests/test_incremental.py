"""What runs again after a change: what --explain says beforehand, and what the run's log says it did."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from dd_tasks.committee import seeded, weights_of
from dd_tasks.networks import Shape, build
from dd_tasks.packing import digits_samples, pack
from schemas.manifest import Manifest
from schemas.spec import RunSpec

EACH = 30  # images a shard, all of one class
SHARDS = [(label, 0) for label in range(10)] + [(4, 1)]  # (class, which of its images); class 4 has two
USED = tuple("01234567")


def write(folder: Path, parts: list[tuple[int, int]]) -> None:
    """Digits, a shard for each of the parts, in their order."""
    names, samples = digits_samples("train", side=16)
    by_class: list[list[Any]] = [[] for _ in names]
    for sample in samples:
        by_class[sample[3]].append(sample)
    chosen = [sample for label, part in parts for sample in by_class[label][part * EACH : (part + 1) * EACH]]
    pack(chosen, names, folder, samples_per_shard=EACH, overwrite=True)


def imported(folder: Path) -> Path:
    """A committee file of one observer that was not trained on these images."""
    shape = Shape(len(USED), 16, (0.5,) * 3, (0.25,) * 3)
    content = safetensors.torch.save(weights_of(seeded(lambda: build("convnet2_bn_w4", shape), 0)))
    weights = folder / "weights.safetensors"
    weights.write_bytes(content)
    member = {
        "architecture": "convnet2_bn_w4", "weights": str(weights), "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    (folder / "committee.json").write_text(json.dumps({"observers": [member]}))
    return folder / "committee.json"


@dataclass(frozen=True)
class Bench:
    """A folder of shards, a store and an artifact, and the specification that joins them."""

    root: Path
    spec: dict[str, Any]

    def copy(self, to: Path) -> "Bench":
        """Shards are found at a place of their own, which no identity knows."""
        shutil.copytree(self.root, to, dirs_exist_ok=True)
        return Bench(to, {**self.spec, "shards": [f"{to}/shards/*.tar"]})

    def arguments(self) -> tuple[Any, ...]:
        from flows.settings import Settings

        return RunSpec(**self.spec), self.root / "dataset", Settings(store=f"{self.root}/store", device="cpu")

    def explain(self) -> list[Any]:
        from flows.explain import explain

        return list(explain(*self.arguments()))

    def run(self) -> Manifest:
        from flows.distill import distill_dataset

        return distill_dataset(*self.arguments())


def bench(root: Path, **spec: Any) -> Bench:
    write(root / "shards", SHARDS)
    common = {
        "shards": [f"{root}/shards/*.tar"], "ipc": 2, "classes": USED, "students": ["convnet3_w32"], "seeds": 1,
        "student_epochs": 1, "student_batch": 8, "full_epochs": 0, "bytes_row": False, "panel": 4, "flip": False,
        "set": {"labeller.epochs": "2"},
    }  # fmt: skip
    made = Bench(root, {**common, **spec})
    made.run()
    return made


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Bench:
    """Of images that an imported observer chose and that no step changes."""
    root = tmp_path_factory.mktemp("untouched")
    return bench(root, preset="rded", committee=str(imported(root)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Bench:
    """Of images that observers trained on the same shards changed."""
    few = {"observers.epochs": "1", "schedule.phases.0.steps": "2", "schedule.phases.1.steps": "2"}
    return bench(
        tmp_path_factory.mktemp("trained"), preset="e2d", committee="tiny", set={**few, "labeller.epochs": "2"}
    )


def shards(*parts: tuple[int, int]) -> Callable[[Bench], Bench]:
    def changed(bench: Bench) -> Bench:
        write(bench.root / "shards", list(parts))
        return bench

    return changed


def without(name: str) -> Callable[[Bench], Bench]:
    def changed(bench: Bench) -> Bench:
        (bench.root / "shards" / name).unlink()
        return bench

    return changed


def told(**spec: Any) -> Callable[[Bench], Bench]:
    return lambda bench: Bench(bench.root, {**bench.spec, **spec})


REPLACED = [(3, 2) if part == (3, 0) else part for part in SHARDS]
SCORED = {"convnet3_w32 on distilled images, seed 0", "convnet3_w32 on random images, seed 0"}
LABELLED = SCORED | {
    f"{what} of {images} images" for what in ("labels", "compact labels") for images in ("distilled", "random")
}
LOOKED = {"statistics of *", "held-out top-1 of *"}
CHOSEN = LABELLED | {"* candidates a class", "2 images a class to begin from", "canvas", "nearness to real images"}
LOW, HIGH = (
    {f"panel {i} (slots {4 * i}..{4 * i + 3})" for i in (0, 2)},
    {f"panel {i} (slots {4 * i}..{4 * i + 3})" for i in (1, 3)},
)

CHANGES = {
    "nothing": (lambda bench: bench, set()),
    "a shard replaced": (shards(*REPLACED), CHOSEN | LOOKED | LOW),  # of class 3
    "a shard added": (shards(*SHARDS, (5, 1)), CHOSEN | LOOKED | HIGH),
    "a shard removed": (shards(*SHARDS[:-1]), CHOSEN | LOOKED | HIGH),  # of class 4
    "an unused class removed": (without("train-0009.tar"), set()),
    "labeller": (told(set={"labeller.epochs": "3"}), LABELLED),
    "student epochs": (told(student_epochs=2), SCORED),
    "seed": (told(seed=1), CHOSEN | LOW | HIGH),
}  # fmt: skip
OBSERVERS = {"observer *", "statistics of *"}
TRAINED = {
    "a shard replaced": (shards(*REPLACED), CHOSEN | OBSERVERS | LOW | HIGH),
    "an unused class removed": (shards(*(part for part in SHARDS if part[0] != 8)), set()),
}  # fmt: skip


def kind(what: str) -> str:
    """Less the name of an observer and the number of candidates."""
    return re.sub(
        r"^(observer|statistics of|held-out top-1 of) .*|^\d+ (candidates)",
        lambda m: f"{m[1]} *" if m[1] else f"* {m[2]}",
        what,
    )


def agree(bench: Bench, expected: set[str], caplog: pytest.LogCaptureFixture) -> Manifest:
    """The run does what was said, and that is what was expected; said again, nothing is left to do."""
    said = bench.explain()
    with caplog.at_level(logging.INFO, "flows"):
        manifest = bench.run()
    did = [re.fullmatch(r"(.*): (found|made) in .*", record.getMessage()) for record in caplog.records]
    fates = {"found": "found", "made": "runs"}
    assert sorted((m[1], fates[m[2]]) for m in did if m) == sorted((line.what, line.fate) for line in said[:-1])
    assert {kind(line.what) for line in said[:-1] if line.fate == "runs"} == expected
    assert said[-1].fate == ("follows" if expected else "is already this")
    assert ("it is not written again" in caplog.text) == (not expected)
    after = bench.explain()
    assert {line.fate for line in after[:-1]} == {"found"} and after[-1].fate == "is already this"
    return manifest


@pytest.mark.parametrize("change", CHANGES)
def test_what_runs_again_with_an_imported_observer(
    change: str, untouched: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed, expected = CHANGES[change]
    agree(changed(untouched.copy(tmp_path)), expected, caplog)


@pytest.mark.parametrize("change", TRAINED)
def test_what_runs_again_with_trained_observers(
    change: str, trained: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed, expected = TRAINED[change]
    agree(changed(trained.copy(tmp_path)), expected, caplog)
