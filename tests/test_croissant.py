"""croissant.json: mlcroissant finds it valid, and reads from it the rows that were written."""

import json
from pathlib import Path

import mlcroissant
import numpy as np
import pytest
from sample import CLASSES, EPOCHS, K, N, draft, tiny_canvas, tiny_nearest, tiny_views

from dd_tasks import artifact, croissant
from dd_tasks.card import columns
from dd_tasks.codec import view_schema


def written(out: Path, epochs: int = EPOCHS) -> mlcroissant.Dataset:
    artifact.write(out, tiny_canvas(), tiny_views(epochs), draft(epochs), {}, nearest=tiny_nearest())
    return mlcroissant.Dataset(jsonld=str(out / croissant.CROISSANT))


def test_mlcroissant_finds_nothing_wrong_and_reads_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SHARD_BYTES", 2000)  # several files a table
    dataset = written(tmp_path / "out")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert [issue for issue in issues.warnings if "datePublished" not in issue] == []
    images, canvas, near = list(dataset.records("images")), tiny_canvas(), tiny_nearest()
    assert len(images) == N
    for i, row in enumerate(images):
        assert (np.asarray(row["images/image"]) == canvas.images_NCHW[i].permute(1, 2, 0).numpy()).all()
        assert row["images/label"] == canvas.targets_N[i]
        assert tuple(key.decode() for key in row["images/sources"]) == canvas.sources[i]
        assert row["images/nearest"].decode() == near.keys[i] and row["images/similarity"] == near.similarity_N[i]
        assert sum(row["images/soft_label"]) == pytest.approx(1, abs=1e-5)
    classes = [row["classes/name"] for row in dataset.records("classes")]
    assert classes == CLASSES
    views = list(dataset.records("soft_labels"))
    assert len(views) == N * EPOCHS
    assert {len(row["soft_labels/logits"]) for row in views} == {K}
    assert [int(row["soft_labels/image"]) for row in views[:N]] == list(range(N))


def test_without_views_only_images_are_named(tmp_path: Path) -> None:
    dataset = written(tmp_path / "out", 0)
    assert [records.id for records in dataset.metadata.record_sets] == ["images", "classes"]
    assert len(list(dataset.records("images"))) == N


def test_every_parquet_file_has_its_checksum(tmp_path: Path) -> None:
    written(tmp_path / "out")
    fields = json.loads((tmp_path / "out" / croissant.CROISSANT).read_text())
    files = {part["@id"]: part["sha256"] for part in fields["distribution"] if part["@type"] == "cr:FileObject"}
    manifest = artifact.read_manifest(tmp_path / "out")
    assert files == {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(".parquet")}
    assert croissant.CROISSANT in manifest.files
    assert (fields["version"], fields["license"], fields["name"]) == ("1.0.0+0123456789ab", "unknown", "digits")
    assert "@misc{retort-0123456789ab" in fields["citeAs"]


def test_types_are_those_of_the_columns() -> None:
    for table, found in columns(draft()).items():
        types = {column.name: croissant.data_type(column) for column in found}
        if table == "soft_labels":
            assert types.keys() == set(view_schema(K).names)
            assert types["logits"] == "cr:Float16" and types["flip"] == "sc:Boolean" and types["top"] == "cr:Int16"
        else:
            assert types["image"] == "sc:ImageObject" and types["similarity"] == "cr:Float32"
