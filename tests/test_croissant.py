"""croissant.json: mlcroissant finds it valid, and reads from it the rows that were written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sample import CLASSES, EPOCHS, K, N, compact_info, compact_labels, draft, tiny_canvas, tiny_labels, tiny_nearest

from dd_tasks import artifact, croissant
from dd_tasks.card import columns
from dd_tasks.exact import view_schema

# In a process of its own: importing mlcroissant changes how the whole process logs.
READER = """if True:
    import json, sys
    import mlcroissant, numpy

    def plain(value):
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else numpy.asarray(value).tolist()

    dataset = mlcroissant.Dataset(jsonld=sys.argv[1])
    issues, records = dataset.metadata.ctx.issues, {}
    for records_of in dataset.metadata.record_sets:
        rows = list(dataset.records(records_of.id))
        records[records_of.id] = {name.split("/")[1]: [plain(row[name]) for row in rows] for name in rows[0]}
    print(json.dumps({"errors": list(issues.errors), "warnings": list(issues.warnings), "records": records}))
"""


def written(out: Path, epochs: int = EPOCHS) -> Path:
    artifact.write(out, tiny_canvas(), tiny_labels(epochs), draft(epochs), {}, nearest=tiny_nearest())
    return out / croissant.CROISSANT


def read_by_mlcroissant(file: Path) -> dict:
    """The columns of each record set, by name; fails where mlcroissant finds an error or more than a missing date."""
    done = subprocess.run([sys.executable, "-c", READER, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["errors"] == [] and [line for line in found["warnings"] if "datePublished" not in line] == []
    return found["records"]


def test_mlcroissant_finds_nothing_wrong_and_reads_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SHARD_BYTES", 2000)  # several files a table
    records = read_by_mlcroissant(written(tmp_path / "out"))
    images, views, canvas, near = records["images"], records["soft_labels"], tiny_canvas(), tiny_nearest()
    assert torch.equal(torch.tensor(images["image"]), canvas.images_NCHW.permute(0, 2, 3, 1))
    assert images["label"] == canvas.targets_N.tolist()
    assert [tuple(keys) for keys in images["sources"]] == list(canvas.sources)
    assert tuple(images["nearest"]) == near.keys
    assert images["similarity"] == near.similarity_N.tolist()
    assert torch.tensor(images["soft_label"]).sum(1).tolist() == pytest.approx([1] * N, abs=1e-5)
    assert records["classes"] == {"number": list(range(K)), "name": CLASSES}
    assert torch.tensor(views["logits"]).shape == (N * EPOCHS, K)
    assert views["image"] == [*range(N)] * EPOCHS


def test_compact_labels_are_read_too(tmp_path: Path) -> None:
    labels, out = compact_labels(top=3), tmp_path / "out"
    artifact.write(out, tiny_canvas(), labels, draft(labels=compact_info(labels)), {}, nearest=tiny_nearest())
    rows = read_by_mlcroissant(out / croissant.CROISSANT)["soft_labels"]
    assert rows["count"] == [N] * 2 and rows["classes"][0] == labels.table["classes"][0].as_py()
    assert rows["codes"][0].encode("utf-8", "surrogateescape") == labels.table["codes"][0].as_py()


def test_without_views_only_images_are_named(tmp_path: Path) -> None:
    records = read_by_mlcroissant(written(tmp_path / "out", 0))
    assert list(records) == ["images", "classes"] and len(records["images"]["image"]) == N


def test_every_parquet_file_has_its_checksum(tmp_path: Path) -> None:
    written(tmp_path / "out")
    fields = json.loads((tmp_path / "out" / croissant.CROISSANT).read_text())
    files = {part["@id"]: part["sha256"] for part in fields["distribution"] if part["@type"] == "cr:FileObject"}
    manifest = artifact.read_manifest(tmp_path / "out")
    assert files == {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith(".parquet")}
    assert croissant.CROISSANT in manifest.files
    assert (fields["version"], fields["license"], fields["name"]) == ("1.0.0+0123456789ab", "unknown", "digits")
    assert "@misc{retort-0123456789ab" in fields["citeAs"]
    told = "20 images, 2 for each of 10 classes, distilled from 100 real ones by sre2l, with 60 soft labels"
    assert fields["description"].startswith(told)


def test_types_are_those_of_the_columns() -> None:
    for table, found in columns(draft()).items():
        types = {column.name: croissant.data_type(column) for column in found}
        if table == "soft_labels":
            assert types.keys() == set(view_schema(K).names)
            assert types["logits"] == "cr:Float16" and types["flip"] == "sc:Boolean" and types["top"] == "cr:Int16"
        else:
            assert types["image"] == "sc:ImageObject" and types["similarity"] == "cr:Float32"
