"""The main job on real digits, through a real Prefect run."""

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dd_tasks import garbage, packing
from dd_tasks.errors import InputError
from dd_tasks.store import Store
from dd_tasks.validate import validate
from schemas.manifest import Manifest
from schemas.spec import RunSpec

pytestmark = pytest.mark.usefixtures("prefect_server")


def distil(quick: dict[str, object], out: Path, store: Path, **changes: object) -> Manifest:
    from flows.distill import distill_dataset
    from flows.settings import Settings

    spec = RunSpec(**{**quick, **changes})  # type: ignore[arg-type]
    return distill_dataset(spec, out, Settings(store=str(store), device="cpu"))


@pytest.fixture(scope="module")
def first(
    quick: dict[str, object], tmp_path_factory: pytest.TempPathFactory, prefect_server: None
) -> tuple[Path, Path]:
    """(artifact, store) of one run."""
    root = tmp_path_factory.mktemp("run")
    distil(quick, root / "dataset", root / "store")
    return root / "dataset", root / "store"


def parquet(manifest: Manifest) -> dict[str, str]:
    return {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(".parquet")}


def manifest_of(artifact: Path) -> Manifest:
    return Manifest.model_validate_json((artifact / "retort.json").read_text())


def test_the_artifact_is_valid_and_its_rows_are_complete(first: tuple[Path, Path]) -> None:
    artifact, _ = first
    assert validate(artifact) == []
    claims = manifest_of(artifact).claims
    assert {claim.row: len(claim.seeds) for claim in claims} == {"distilled": 2, "random": 2, "full": 2}
    assert {claim.split for claim in claims} == {"test"}


def test_the_artifact_names_the_nearest_real_images(first: tuple[Path, Path]) -> None:
    from dd_tasks.artifact import read

    loaded = read(first[0])
    near = loaded.manifest.nearness
    assert near.began == 20 and "nearness" in loaded.manifest.cost.seconds
    assert near.kept == sum(key in keys for key, keys in zip(loaded.nearest.keys, loaded.canvas.sources, strict=True))
    assert near.kept >= 15  # ten steps leave an image near the one it began from
    assert near.median > near.random_median > 0.5
    assert near.random_most < 1 - 1e-6  # no digit is its own nearest


def test_the_artifact_opens_without_our_code(first: tuple[Path, Path], tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        from datasets import load_dataset
        images = load_dataset({str(first[0])!r}, split="train")
        views = load_dataset({str(first[0])!r}, "soft_labels", split="train")
        assert not {{"dd_tasks", "flows", "schemas"}} & set(sys.modules)
        print(len(images), images[0]["image"].size, images.features["label"].num_classes, len(views))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["20", "(16,", "16)", "10", "3"], done.stderr


def test_real_images_of_as_many_bytes_are_scored_and_the_card_says_who_wins(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path
) -> None:
    manifest = distil(quick, tmp_path / "d", first[1], bytes_row=True)
    jpeg = next(claim for claim in manifest.claims if claim.row == "jpeg")
    taken = sum(entry.bytes for name, entry in manifest.files.items() if name.endswith(".parquet"))
    assert jpeg.images and 20 <= jpeg.images < taken / 300 and jpeg.images % 10 == 0  # no JPEG has fewer bytes
    assert len(jpeg.accuracies) == 2 and validate(tmp_path / "d") == []
    told = (tmp_path / "d" / "README.md").read_text()
    assert f"{jpeg.images:,} random real images, as JPEG files of quality 75" in told


def test_exact_labels_keep_every_view_and_compact_ones_a_budget(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path
) -> None:
    exact = distil(quick, tmp_path / "exact", first[1], codec="exact").labels
    assert (exact.codec, exact.epochs, exact.rows, exact.views) == ("exact", 3, 60, 60)
    small = distil(quick, tmp_path / "small", first[1], label_bytes_per_image=120).labels
    assert small.codec == "compact" and small.bytes <= 120 * 20 < exact.bytes
    assert 1 <= small.epochs <= small.drawn == 3 and small.views == 20 * small.epochs
    assert validate(tmp_path / "exact") == validate(tmp_path / "small") == []
    with pytest.raises(InputError, match="5 label bytes per image: one epoch of labels takes"):
        distil(quick, tmp_path / "none", first[1], label_bytes_per_image=5)


def test_the_same_run_again_makes_nothing_and_ends_with_the_same_bytes(
    first: tuple[Path, Path], quick: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    artifact, store = first
    before = manifest_of(artifact)
    with caplog.at_level(logging.INFO, "flows"):
        again = distil(quick, artifact, store)
    said = [record.getMessage() for record in caplog.records if record.name == "flows.tasks"]
    assert not [line for line in said if "made in" in line]
    assert len([line for line in said if line.startswith("panel") and "found in the store" in line]) == 2
    assert again.files == before.files and again.metrics == before.metrics


def test_another_labeller_does_not_repeat_the_recovery(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = {"set": {**quick["set"], "labeller.batch_statistics": "5"}}  # type: ignore[dict-item]
    with caplog.at_level(logging.INFO, "flows"):
        other = distil(quick, tmp_path / "dataset", first[1], **changed)
    made = [record.getMessage() for record in caplog.records if "made in" in record.getMessage()]
    assert made and not [line for line in made if line.startswith(("panel", "observer", "statistics"))]
    assert other.labels.batch_statistics == 5
    images, labels = sorted(parquet(other)), sorted(parquet(manifest_of(first[0])))
    assert images == labels
    assert parquet(other)[images[1]] != parquet(manifest_of(first[0]))[images[1]]


def test_an_empty_store_gives_the_same_bytes(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path
) -> None:
    again = distil(quick, tmp_path / "d", tmp_path / "store")
    assert parquet(again) == parquet(manifest_of(first[0]))
    assert again.metrics and (again.metrics.panels, again.cost.image_updates) == (2, 200)
    assert again.metrics.panels_per_second > 0 and again.metrics.image_updates_per_second > 0
    kinds = [kind for kind in (tmp_path / "store").iterdir() if kind.name != "runs"]
    stored = sum(file.stat().st_size for kind in kinds for file in kind.iterdir())
    store = Store(str(tmp_path / "store"))
    decoded = [ref for ref in garbage.contents(store).entries if ref.kind == "pixels"]
    assert len(decoded) == 2 and sum(again.metrics.store_bytes.values()) == stored - store.size(decoded)


def test_committee_voting_measures_priors_on_held_out_images_once(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = {"preset": "cv_dd", "seeds": 1, "full_epochs": 0}
    changed["set"] = {"observers.epochs": "1", "schedule.phases.0.steps": "4", "labeller.epochs": "3"}
    with caplog.at_level(logging.INFO, "flows"):
        manifest = distil(quick, tmp_path / "d", first[1], **changed)
    said = [record.getMessage() for record in caplog.records if record.name == "flows.tasks"]
    alone = [line for line in said if line.startswith("convnet3_w32 on images of") and "made in" in line]
    assert len(alone) == 3 and validate(tmp_path / "d") == []
    assert manifest.recipe["ballots"][0]["voters"]["type"] == "Lottery"
    images = 10 * manifest.ipc
    assert manifest.cost.image_updates == 4 * images * (3 * 1 + 2)  # each observer alone, then two together
    assert manifest.cost.seconds["priors"] > 0
    from flows.committee import priors_from_shards
    from flows.settings import Settings

    caplog.clear()
    spec = RunSpec(**{**quick, **changed})  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "flows"):
        seats = priors_from_shards(spec, Settings(store=str(first[1]), device="cpu"))
    assert not [record for record in caplog.records if "made in" in record.getMessage()]
    assert len({seat.prior for seat in seats} - {None}) == 3
    roots = garbage.contents(Store(str(first[1]))).roots.values()
    (held,) = [root for root in roots if root.name == "committee"]  # it waits for its runs; nothing collects it
    assert {ref for seat in seats for ref in (seat.weights, seat.prior, seat.statistics)} == set(held.refs)


def test_patches_are_measured_once_and_only_where_they_are_matched(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not (first[1] / "patches").exists()
    changed = {"seeds": 1, "full_epochs": 0, "set": {**quick["set"], "ballots.0.terms.0": "PatchStatistics"}}  # type: ignore[dict-item]
    with caplog.at_level(logging.INFO, "flows"):
        manifest = distil(quick, tmp_path / "d", first[1], **changed)
    made = [record.getMessage() for record in caplog.records if "made in" in record.getMessage()]
    assert len([line for line in made if line.startswith("patches of")]) == 3
    assert len([line for line in made if line.startswith("panel")]) == 2
    assert not [line for line in made if line.startswith(("observer", "statistics"))]
    assert manifest.recipe["ballots"][0]["terms"][0]["type"] == "PatchStatistics" and validate(tmp_path / "d") == []
    caplog.clear()
    with caplog.at_level(logging.INFO, "flows"):
        again = distil(quick, tmp_path / "again", first[1], **changed)
    assert not [record for record in caplog.records if "made in" in record.getMessage()]
    assert parquet(again) == parquet(manifest)


def test_the_panels_of_a_committee_without_patches_keep_their_identity() -> None:
    from dd_tasks.committee import ObserverRecipe
    from dd_tasks.store import Ref
    from flows.workspace import Seat

    weights, statistics, patches = (Ref(kind, kind[0]) for kind in ("observer", "statistics", "patches"))
    seat = Seat(ObserverRecipe("convnet3", 1), weights, statistics)
    assert seat.measured == [statistics] and replace(seat, patches=patches).measured == [statistics, patches]


def test_methods_are_compared_under_the_same_labels_and_random_rows(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.compare import compare_presets
    from flows.settings import Settings
    from schemas.comparison import Comparison

    changed = {"full_epochs": 0, "labels": "e2d", "set": {"observers.epochs": "1", "labeller.epochs": "3"}}
    specs = tuple(RunSpec(**{**quick, **changed, "preset": name}) for name in ("rded", "edc"))  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "flows"):
        found = compare_presets(specs, tmp_path / "out", Settings(store=str(first[1]), device="cpu"), "command")
    said = [record.getMessage() for record in caplog.records if record.name == "flows.tasks"]
    assert len([line for line in said if "random images" in line and "made in" in line]) <= 4
    rded, edc = found.rows
    assert (rded.image_updates, edc.image_updates) == (0, 20 * 75)
    random = [[c.accuracies for c in row.claims if c.row == "random"] for row in found.rows]
    assert random[0] == random[1]
    assert Comparison.model_validate_json((tmp_path / "out" / "comparison.json").read_text()) == found
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "rded-ipc2", "edc-ipc2", "comparison.json", "comparison.md", "comparison.html",
    }  # fmt: skip


def test_images_that_follow_networks_in_training_are_scored_by_their_classes(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path
) -> None:
    small = {"architecture": "convnet2_w8", "epochs": "0", "samples": "128", "batch": "8", "among": "20", "pool": "60"}
    changed = {"preset": "dream_plus", "seeds": 1, "full_epochs": 0}
    changed["set"] = {f"ballots.0.voters.{name}": text for name, text in small.items()} | {
        "observers.epochs": "1", "initialiser.candidates": "20", "schedule.phases.0.steps": "3", "labeller.epochs": "3",
    }  # fmt: skip
    manifest = distil(quick, tmp_path / "d", first[1], **changed)
    assert validate(tmp_path / "d") == []
    assert [claim.row for claim in manifest.claims] == ["distilled_hard", "random_hard"]
    assert manifest.cost.image_updates == 3 * 20 * 4
    from dd_tasks import artifact

    loaded = artifact.read(tmp_path / "d")
    assert {len(keys) for keys in loaded.canvas.sources} == {4}
    assert (loaded.views.crops.boxes_N4[:, 2:] <= 8).all()
    again = distil(quick, tmp_path / "again", first[1], **changed)
    assert parquet(again) == parquet(manifest)


def test_guides_are_trained_once_and_named_in_the_artifact(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = tmp_path / "foreign"
    samples = [sample for sample in packing.digits_samples("test", 16)[1] if sample[3] < 4]
    packing.pack(iter(samples), packing.digits_samples("test", 16)[0][:4], foreign, prefix="train")
    pool = f"convnet2_w4@epoch=1,2 seeds=0..1; convnet2_w4@epoch=1 source={foreign}/train-0000.tar"
    changed = {"preset": "clom(e2d)", "seeds": 1, "full_epochs": 0, "guides": pool}
    changed["set"] = {"observers.epochs": "1", "schedule.phases.0.steps": "4", "schedule.phases.1.steps": "2"}
    changed["set"] |= {"labeller.epochs": "3"}
    with caplog.at_level(logging.INFO, "flows"):
        manifest = distil(quick, tmp_path / "d", first[1], **changed)
    assert validate(tmp_path / "d") == [] and len(re.findall(r"observer convnet2_w4.* made in", caplog.text)) == 3
    assert [guide.checkpoint for guide in manifest.guides] == ["epoch-1", "epoch-2", "epoch-1", "epoch-2", "epoch-1"]
    assert manifest.cost.seconds["guides"] > 0 and "convnet2\\_w4" in (tmp_path / "d" / "README.md").read_text()
    caplog.clear()
    changed |= {"preset": f"clom(e2d, {pool})", "guides": None}
    with caplog.at_level(logging.INFO, "flows"):
        again = distil(quick, tmp_path / "again", first[1], **changed)
    assert "made in" not in caplog.text and parquet(again) == parquet(manifest)


def test_noise_needs_no_real_images_and_is_published_without_sources(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path
) -> None:
    changed = {"preset": "sre2l", "seeds": 1, "full_epochs": 0}
    changed["set"] = {"observers.epochs": "1", "schedule.phases.0.steps": "4", "labeller.epochs": "3"}
    distil(quick, tmp_path / "d", first[1], **changed)
    from dd_tasks import artifact

    assert artifact.read(tmp_path / "d").canvas.sources == ((),) * 20 and validate(tmp_path / "d") == []


def test_another_seed_gives_other_images(first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path) -> None:
    other = distil(quick, tmp_path / "d", first[1], seed=1, seeds=1, full_epochs=0)
    assert (
        parquet(other)["images/train-00000-of-00001.parquet"]
        != parquet(manifest_of(first[0]))["images/train-00000-of-00001.parquet"]
    )


def test_without_test_shards_the_held_out_part_scores(
    first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path
) -> None:
    manifest = distil(quick, tmp_path / "d", first[1], test=(), seeds=1, hard_rows=True, full_epochs=0)
    assert {claim.split for claim in manifest.claims} == {"held-out"}
    assert {claim.row for claim in manifest.claims} == {"distilled", "random", "distilled_hard", "random_hard"}


@pytest.mark.parametrize("labels", [None, "dream_plus"])
def test_students_without_augmentation_are_rows_of_their_own(
    labels: str | None, first: tuple[Path, Path], quick: dict[str, object], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    changed = {"labels": labels, "full_epochs": 0, "plain_rows": True}
    with caplog.at_level(logging.INFO, "flows"):
        manifest = distil(quick, tmp_path / "d", first[1], **changed)
    usual = "_hard" if labels else ""
    assert {claim.row: len(claim.seeds) for claim in manifest.claims} == {
        f"distilled{usual}": 2, f"random{usual}": 2, "distilled_plain": 2, "random_plain": 2,
    }  # fmt: skip
    assert validate(tmp_path / "d") == []
    text = (tmp_path / "d" / "README.md").read_text()
    assert "| the distilled images, no augmentation |" in text and "(no augmentation), this dataset" in text
    assert manifest.labels.epochs == 3
    if not labels:  # nothing that other rows have in the store is made again
        assert parquet(manifest) == parquet(manifest_of(first[0]))
        made = [r.getMessage() for r in caplog.records if r.name == "flows.tasks" and "made in" in r.getMessage()]
        assert [line.split(" images")[0] for line in made] == [
            "labels of distilled", *["labels of random"] * 2,
            *["convnet3_w32 on distilled", "convnet3_w32 on random"] * 2,
        ]  # fmt: skip


def test_a_panel_that_went_missing_is_made_again(
    first: tuple[Path, Path], quick: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    artifact, store = first
    before = manifest_of(artifact)
    with caplog.at_level(logging.INFO, "flows"):
        distil(quick, artifact, store)
    (found,) = re.findall(r"panel 0 .*found in the store \(panel/(\w+)\)", caplog.text)
    caplog.clear()
    (panel,) = (store / "panel").glob(f"{found}*.json")
    blob = json.loads(panel.read_text())["blobs"]["canvas-0"]
    (store / "blobs" / blob).write_bytes(b"altered")
    with caplog.at_level(logging.INFO, "flows"):
        again = distil(quick, artifact, store)
    made = [record.getMessage() for record in caplog.records if "made in" in record.getMessage()]
    assert len([line for line in made if line.startswith("panel")]) == 1
    assert parquet(again) == parquet(before)
