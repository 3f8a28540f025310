"""The artifact as written: what `datasets` sees of it, and what is left when writing fails."""

import io
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sample import CLASSES, EPOCHS, SIDE, K, N, draft, tiny_canvas, tiny_labels, tiny_nearest, tiny_views

from dd_tasks import artifact
from dd_tasks.errors import InputError
from dd_tasks.types import Views
from schemas.manifest import Manifest
from schemas.tables import ImageRow, ViewRow


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps what it reads in a folder of this test, and asks no server."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def written(out: Path, **options: bool) -> Manifest:
    return artifact.write(
        out, tiny_canvas(), tiny_labels(), draft(), {"preview.png": b"picture"}, nearest=tiny_nearest(), **options
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"command": "retort run digits --verbose"}, True),
        ({"claims": [claim.model_copy(update={"seconds": 9}) for claim in draft().claims]}, True),
        ({"cost": draft().cost.model_copy(update={"machine": "another", "peak_memory_bytes": 1})}, True),
        ({"claims": draft().claims[:2]}, False),
        ({"identity": "f" * 64}, False),
        ({"license": "mit"}, False),
        ({"versions": {"retort": "9"}}, False),
    ],
)
def test_an_artifact_is_there_already_if_it_says_the_same(
    changes: dict[str, object], same: bool, tmp_path: Path
) -> None:
    manifest = written(tmp_path / "out")
    found = artifact.standing(tmp_path / "out", draft(**changes), lambda folder: [])
    assert found == (manifest if same else None)
    assert artifact.standing(tmp_path / "out", draft(), lambda folder: ["a file is altered"]) is None
    assert artifact.standing(tmp_path / "none", draft(), lambda folder: []) is None


def test_load_dataset_gives_images_back(tmp_path: Path) -> None:
    written(tmp_path / "out")
    images = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert images.features == artifact.image_features(CLASSES)
    assert list(images.features) == list(ImageRow.model_fields)
    canvas = tiny_canvas()
    assert all(
        (np.asarray(row["image"]) == canvas.images_NCHW[i].permute(1, 2, 0).numpy()).all()
        for i, row in enumerate(images)
    )
    assert images["label"][:] == canvas.targets_N.tolist()
    assert images["slot"][:] == [i // K for i in range(N)]
    assert images["sources"][:3] == [[], ["one key"], ["a", "b"]]
    assert images["nearest"][:3] == ["other", "one key", "c"]
    assert torch.equal(torch.tensor(images["similarity"][:]), tiny_nearest().similarity_N)
    views = tiny_views()
    for i in (0, N - 1):
        probabilities = views.logits_VK[views.images_V == i].float().softmax(1).mean(0)
        assert torch.allclose(torch.tensor(images[i]["soft_label"]), probabilities, atol=1e-6)


def test_load_dataset_gives_views_back(tmp_path: Path) -> None:
    written(tmp_path / "out")
    views = datasets.load_dataset(str(tmp_path / "out"), "soft_labels", split="train")
    assert views.features == artifact.label_features(draft())
    assert list(views.features) == list(ViewRow.model_fields)
    assert views.data.schema.field("logits").type.value_type == "halffloat"
    assert torch.equal(views.with_format("torch")["logits"][:], tiny_views().logits_VK.float())


def test_streaming_loads(tmp_path: Path) -> None:
    written(tmp_path / "out")
    assert len(list(datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=True))) == N


def test_read_gives_back_what_was_written(tmp_path: Path) -> None:
    manifest = written(tmp_path / "out")
    loaded, canvas = artifact.read(tmp_path / "out"), tiny_canvas()
    assert loaded.manifest == manifest
    assert torch.equal(loaded.canvas.images_NCHW, canvas.images_NCHW)
    assert torch.equal(loaded.canvas.targets_N, canvas.targets_N)
    assert loaded.canvas.sources == canvas.sources
    assert loaded.nearest.keys == tiny_nearest().keys
    assert torch.equal(loaded.nearest.similarity_N, tiny_nearest().similarity_N)
    for field in fields(Views):
        if field.name not in ("crops", "partner_crops"):
            assert torch.equal(getattr(loaded.views, field.name), getattr(tiny_views(), field.name)), field.name
    assert torch.equal(loaded.views.partner_crops.boxes_N4, tiny_views().partner_crops.boxes_N4)


def test_manifest_lists_every_file_but_itself_and_the_card(tmp_path: Path) -> None:
    manifest = written(tmp_path / "out")
    assert set(contents(tmp_path / "out")) - set(manifest.files) == {"README.md", "retort.json"}
    assert manifest.labels.bytes == manifest.files["soft_labels/train-00000-of-00001.parquet"].bytes
    text = (tmp_path / "out" / "retort.json").read_text()
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_rewriting_gives_the_same_bytes(tmp_path: Path) -> None:
    written(tmp_path / "a")
    written(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_without_views_there_are_images_with_one_hot_labels(tmp_path: Path) -> None:
    artifact.write(tmp_path / "out", tiny_canvas(), tiny_labels(0), draft(0), {}, nearest=tiny_nearest())
    assert len(artifact.read(tmp_path / "out").views) == 0
    images = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert images[3]["soft_label"] == [float(k == 3) for k in range(K)]
    assert datasets.get_dataset_config_names(str(tmp_path / "out")) == ["images"]


def test_large_tables_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SHARD_BYTES", 2000)
    written(tmp_path / "out")
    files = artifact.parquet_files(tmp_path / "out", "soft_labels")
    assert [file.name for file in files] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert sum(pq.read_metadata(file).num_rows for file in files) == N * EPOCHS
    assert torch.equal(artifact.read(tmp_path / "out").canvas.images_NCHW, tiny_canvas().images_NCHW)
    assert len(datasets.load_dataset(str(tmp_path / "out"), "soft_labels", split="train")) == N * EPOCHS


def test_a_failure_leaves_nothing_and_the_old_artifact_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "out")
    before = contents(tmp_path)

    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(artifact, "manifest_text", fail)
    for out in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            written(out, overwrite=True)
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_rename_puts_the_old_artifact_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "out")
    before, rename = contents(tmp_path), Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="no"):
        written(tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before


def test_overwriting_replaces_the_whole_artifact(tmp_path: Path) -> None:
    written(tmp_path / "out")
    artifact.write(
        tmp_path / "out", tiny_canvas(), tiny_labels(0), draft(0), {}, nearest=tiny_nearest(), overwrite=True
    )
    assert os.listdir(tmp_path) == ["out"]
    only = {"README.md", "retort.json", "croissant.json", "images/train-00000-of-00001.parquet"}
    assert set(contents(tmp_path / "out")) == only


def test_check_out(tmp_path: Path) -> None:
    artifact.check_out(tmp_path / "new" / "deep")
    (tmp_path / "empty").mkdir()
    artifact.check_out(tmp_path / "empty")
    written(tmp_path / "out")
    artifact.check_out(tmp_path / "out")
    with pytest.raises(InputError, match="holds an artifact already"):
        written(tmp_path / "out")
    (tmp_path / "out" / ".git").mkdir()
    with pytest.raises(InputError, match=r"holds '\.git', which is no part"):
        artifact.check_out(tmp_path / "out")
    with pytest.raises(InputError, match=r"not an artifact \(no retort.json\); choose another or empty it"):
        artifact.check_out(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="not an artifact"):
        artifact.check_out(tmp_path / "file")
    with pytest.raises(InputError, match="cannot write into"):
        artifact.check_out(tmp_path / "file" / "out")


def test_writes_into_an_empty_folder_and_new_parents(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    written(tmp_path / "empty")
    written(tmp_path / "new" / "deep")
    assert contents(tmp_path / "empty") == contents(tmp_path / "new" / "deep")


def test_assets_are_plain_file_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'\.\./x': must be a plain file name"):
        artifact.write(tmp_path / "out", tiny_canvas(), tiny_labels(), draft(), {"../x": b""}, nearest=tiny_nearest())
    assert not os.listdir(tmp_path)


def test_what_disagrees_is_not_written(tmp_path: Path) -> None:
    short = replace(tiny_canvas(), sources=())
    with pytest.raises(AssertionError):
        artifact.write(tmp_path / "out", short, tiny_labels(), draft(), {}, nearest=tiny_nearest())


def test_reading_what_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not an artifact: cannot read retort\.json"):
        artifact.read(tmp_path)
    written(tmp_path / "out")
    artifact.parquet_files(tmp_path / "out", "images")[0].write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot read its tables"):
        artifact.read(tmp_path / "out")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "retort.json")
    with pytest.raises(InputError, match=r"cannot read retort\.json \(not a regular file\)"):
        artifact.read(tmp_path / "pipe")


def test_images_of_another_size_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    written(tmp_path / "out")
    (file,) = artifact.parquet_files(tmp_path / "out", "images")
    table = pq.read_table(file)
    large = io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    cells = [{"bytes": large.getvalue(), "path": None}] * len(table)
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array(cells, table.schema.field(0).type)), file)
    with pytest.raises(InputError, match=f"an image is 9000 x 9000 instead of {SIDE} x {SIDE}"):
        artifact.read(tmp_path / "out")


def test_a_table_of_far_more_bytes_than_its_file_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "FEW_BYTES", 1000)
    pq.write_table(pa.table({"a": ["x" * 1000] * 100_000}), tmp_path / "bomb")
    with pytest.raises(ValueError, match=r"its rows take more than .* bytes, 100 times its own"):
        artifact.read_parquet(tmp_path / "bomb")
    plain = pa.table({"a": list(range(10_000))})
    pq.write_table(plain, tmp_path / "plain")
    assert artifact.read_parquet(tmp_path / "plain").equals(plain)
