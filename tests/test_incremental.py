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
from dd_tasks.presets import PRESETS
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


def cut(bench: Bench) -> Bench:
    """Class 9 is known no more."""
    write(bench.root / "shards", [part for part in SHARDS if part[0] != 9])
    path = bench.root / "shards" / "index.json"
    index = json.loads(path.read_text())
    for name in ("classes", "samples_per_class", "pixels_per_class"):
        index[name].pop()
    path.write_text(json.dumps(index))
    return bench


def told(**spec: Any) -> Callable[[Bench], Bench]:
    """Fields of the specification; of overrides those that are named."""
    return lambda bench: Bench(bench.root, {**bench.spec, **spec, "set": {**bench.spec["set"], **spec.get("set", {})}})


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
UNUSED = {  # of which no result depends
    "its shard": without("train-0009.tar"),
    "its images": shards(*(part for part in SHARDS if part[0] != 8)),
    "its name": cut,
}


def kind(what: str) -> str:
    """Less the name of an observer and the number of candidates."""
    return re.sub(
        r"^(observer|statistics of|held-out top-1 of) .*|^\d+ (candidates)",
        lambda m: f"{m[1]} *" if m[1] else f"* {m[2]}",
        what,
    )


def tables(manifest: Manifest) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(".parquet")}


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
    bench = changed(untouched.copy(tmp_path))
    kept = agree(bench, expected, caplog)
    if change == "a shard replaced":  # panels that were kept are those that a run from nothing makes
        shutil.rmtree(bench.root / "store")
        made = bench.run()
        assert tables(kept) == tables(made) and kept.claims[0].accuracies == made.claims[0].accuracies


def test_what_runs_again_with_trained_observers(
    trained: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replaced = shards(*REPLACED)(trained.copy(tmp_path))
    agree(replaced, CHOSEN | OBSERVERS | LOW | HIGH, caplog)


@pytest.mark.parametrize("which", UNUSED)
def test_nothing_depends_on_a_class_that_is_not_used(which: str, trained: Bench, tmp_path: Path) -> None:
    lines = UNUSED[which](trained.copy(tmp_path)).explain()
    assert {line.fate for line in lines[:-1]} == {"found"} and lines[-1].fate == "is already this"


REASONS = {
    "shards": (
        shards(*REPLACED, (5, 1)),
        "observer convnet3_bn_w32: runs: its input 'data' changed "
        "(shards: 1 replaced: train-0003.tar; 1 added: train-0011.tar)",
    ),
    "classes": (
        told(classes=USED[1:]),
        "observer convnet3_bn_w32: runs: its input 'data' changed "
        "(shards: 1 removed: train-0000.tar, classes: removed: 0)",
    ),
    "labeller": (
        told(set={"labeller.epochs": "3"}),
        "labels of random images: runs: its input 'labeller' changed (epochs: 2 -> 3)",
    ),
    "students": (
        told(student_epochs=2),
        "convnet3_w32 on random images, seed 0: runs: its input 'student' changed (convnet3_w32: 1 -> 2)",
    ),
    "observers": (
        told(set={"observers.epochs": "2"}),
        "observer thin_vgg_w16: runs: its input 'observers' changed "
        "(thin_resnet6_w16: 1 -> 2, convnet3_bn_w32: 1 -> 2, thin_vgg_w16: 1 -> 2)",
    ),
    "an input": (
        told(set={"observers.epochs": "2"}),
        "statistics of thin_vgg_w16: runs: its input 'observer thin_vgg_w16' runs",
    ),
    "a setting": (
        told(set={"schedule.phases.0.steps": "3"}),
        "panel 0 (slots 0..3): runs: its input 'schedule' changed (phases.0.steps: 2 -> 3)",
    ),
    "seed": (told(seed=1), "2 candidates a class: runs: its input 'seed' changed (0 -> 1)"),
    "what follows": (told(bytes_row=True), "students on JPEG images: follows: "),
    "what is lost": (told(label_bytes_per_image=100), "compact labels of random images: runs: not in the store"),
}


@pytest.mark.parametrize("change", REASONS)
def test_what_runs_says_why(change: str, trained: Bench, tmp_path: Path) -> None:
    changed, line = REASONS[change]
    said = changed(trained.copy(tmp_path)).explain()
    assert any(str(each).startswith(line) for each in said), "\n".join(map(str, said))


IMAGENET = {"normalise": "imagenet"}
RECOVERED = {
    "rded": ({"preset": "rded"}, LOW),  # no step is made
    "sre2l": ({"preset": "sre2l"}, LOW | HIGH),  # all pixels have another mean and std
    "noise": ({"preset": "sre2l", **IMAGENET}, set()),
    "tiles": ({"preset": "sre2l_pp", **IMAGENET}, LOW),
    "statistics": ({"preset": "edc", **IMAGENET}, LOW | HIGH),  # those of all images are matched
    "real images": ({"preset": "dream_plus", **IMAGENET}, LOW | HIGH),  # of all classes are at hand
}


def panels(bench: Bench) -> dict[str, Any]:
    from flows.assemble import Explained
    from flows.distill import distill_dataset
    from flows.walk import walking

    with walking() as walk, pytest.raises(Explained):
        distill_dataset.fn(*bench.arguments())
    return {step.what: step.ref for step in walk.steps if step.what.startswith("panel")}


@pytest.mark.parametrize("method", RECOVERED)
def test_a_replaced_shard_changes_the_panels_that_see_it(method: str, untouched: Bench, tmp_path: Path) -> None:
    spec, expected = RECOVERED[method]
    bench = told(**spec)(untouched.copy(tmp_path))
    before = panels(bench)
    after = panels(shards(*REPLACED)(bench))
    assert {what for what, ref in after.items() if ref != before[what]} == expected


def test_an_artifact_of_some_classes_is_verified_on_these(untouched: Bench, tmp_path: Path) -> None:
    from dd_tasks.verify import Scope, named
    from flows.settings import Settings
    from flows.verify import verify_dataset

    bench = untouched.copy(tmp_path)
    scope = Scope((), False, (), tuple(bench.spec["shards"]))
    checks = verify_dataset(str(bench.root / "dataset"), scope, Settings(store=f"{tmp_path}/verified", device="cpu"))
    manifest = Manifest.model_validate_json((bench.root / "dataset" / "retort.json").read_text())
    outcomes = {check.name: check.outcome for check in checks}
    assert outcomes[named(manifest.claims[0])] == "passed" and "failed" not in outcomes.values(), checks
    assert manifest.classes == list(USED) and manifest.source.classes == list("0123456789")
    assert [shard.name for shard in manifest.source.shards] == [f"train-{i:04d}.tar" for i in (*range(8), 10)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_is_explained_before_anything_is_made(preset: str, tmp_path: Path) -> None:
    write(tmp_path / "shards", SHARDS)
    spec = {"preset": preset, "shards": [f"{tmp_path}/shards/*.tar"], "ipc": 2, "committee": "tiny", "full_epochs": 1}
    lines = Bench(tmp_path, spec).explain()
    assert {line.fate for line in lines} <= {"runs", "found", "follows"} and lines[-1].fate == "follows"
    whats = [line.what for line in lines]
    assert {"observer thin_vgg_w16", "panel 0 (slots 0..19)", "canvas", "convnet3 on full data"} <= set(whats)
    assert not (tmp_path / "dataset").exists() and not list((tmp_path / "store").rglob("*.json"))


def test_the_identity_of_whole_data_is_what_it_was_before_classes_could_be_chosen() -> None:
    from dd_tasks.sources import Source
    from flows.workspace import Data
    from schemas.index import ShardEntry, ShardIndex

    entry = ShardEntry(name="a.tar", samples=3, bytes=1, sha256="0" * 64)
    index = ShardIndex(
        classes=["x", "y"], shards=[entry], samples_per_class=[1, 2], height=8, width=8, mean=(0, 0, 0), std=(1, 1, 1)
    )
    whole = Data(Source(("a.tar",), index), None, 8, 0.1, 0)
    assert whole.digest == "35cfad0a0576838ed3c147f21470a97ab0fc722d8213a96c2425c0a5b5f3e03e"


def test_decoded_images_have_no_part_in_what_runs_again(
    trained: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are gone nothing runs for that; what needs them decodes them once, and later runs decode none."""
    from dd_tasks import shards
    from dd_tasks.garbage import contents, reachable
    from dd_tasks.store import Store
    from flows import workspace

    bench = trained.copy(tmp_path)
    kept = bench.root / "store" / "pixels"
    assert len(list(kept.iterdir())) == 1
    shutil.rmtree(kept)
    monkeypatch.setattr(workspace, "_feeds", {})
    agree(bench, set(), caplog)
    assert not kept.exists()
    caplog.clear()
    agree(told(student_epochs=2)(bench), SCORED, caplog)
    assert len(list(kept.iterdir())) == 1
    found = contents(Store(f"{bench.root}/store"))
    held = reachable(found.entries, [ref for root in found.roots.values() for ref in root.refs])
    assert {ref.digest for ref in held if ref.kind == "pixels"} == {path.stem for path in kept.iterdir()}

    monkeypatch.setattr(workspace, "_feeds", {})
    monkeypatch.setattr(shards, "decode", lambda *_: pytest.fail("an image is decoded"))
    caplog.clear()
    agree(told(student_epochs=3)(bench), SCORED, caplog)
