"""Shards out: the same samples give the same bytes, and every source comes back as it went in."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from dd_tasks import shards
from dd_tasks.errors import InputError
from dd_tasks.packing import check, dataset_samples, digits_samples, folder_samples, is_dataset, pack
from dd_tasks.shards import Quarantine
from schemas.index import ShardIndex


def encoded(value: int, kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(file, kind)
    return file.getvalue()


def some(count: int = 5) -> list[tuple[str, bytes, str, int]]:
    return [(f"k{i}", encoded(i), "png", i % 2) for i in range(count)]


def read(folder: Path) -> list[shards.Sample]:
    source = shards.open_source([str(folder / "*.tar")], quarantine=Quarantine())
    return list(shards.stream(source, quarantine=Quarantine()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_packing_is_reproducible_to_the_byte(tmp_path):
    first = pack(some(), ["cat", "dog"], tmp_path / "a", samples_per_shard=2)
    assert first == pack(iter(some()), ["cat", "dog"], tmp_path / "b", samples_per_shard=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == ["classes.txt", "index.json", *(f"train-000{i}.tar" for i in range(3))]
    with tarfile.open(tmp_path / "a" / "train-0000.tar") as tar:
        assert tar.getnames() == ["k0.cls", "k0.png", "k1.cls", "k1.png"]
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_the_index_written_is_the_one_a_scan_finds(tmp_path):
    written = pack(some(), ["cat", "dog"], tmp_path / "a", samples_per_shard=2)
    assert written.samples_per_class == [3, 2] and [entry.samples for entry in written.shards] == [2, 2, 1]
    (tmp_path / "a" / "index.json").unlink()
    scanned = shards.open_source([str(tmp_path / "a" / "*.tar")], quarantine=Quarantine())
    assert scanned.index == written
    assert {(sample.key, sample.image, "png", sample.label) for sample in read(tmp_path / "a")} == set(some())


def test_what_is_there_is_left_alone(tmp_path):
    out = tmp_path / "a"
    out.mkdir()
    pack(some(2), ["0", "1"], out)
    with pytest.raises(InputError, match="not empty"):
        pack(some(4), ["0", "1"], out)
    assert pack(some(4), ["0", "1"], out, overwrite=True).samples == 4 and len(read(out)) == 4
    (out / "thesis.doc").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.doc"):
        pack(some(2), ["0", "1"], out, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (("k", b"no image", "png", 0), "'k': 8 bytes that are no image"),
        (("k", encoded(0), "png", 2), "class id 2 out of range 0..1"),
        (("k", encoded(0), "gif", 0), "'gif'"),
        (("k.1", encoded(0), "png", 0), "key 'k.1'"),
        (("../k", encoded(0), "png", 0), "key '../k'"),
        (("k" * 200, encoded(0), "png", 0), "90 bytes"),
        (("k0", encoded(0), "png", 0), "two samples have the key 'k0'"),
    ],
)
def test_a_bad_sample_leaves_nothing_behind(tmp_path, sample, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        pack([*some(3), sample], ["0", "1"], tmp_path / "a", samples_per_shard=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (["a", "a"], {}, "'a'"),
        (["a", "b\nc"], {}, "line"),
        (["a", "b"], {"prefix": "../x"}, "prefix"),
        (["a", "b"], {"samples_per_shard": 0}, "0 samples per shard"),
    ],
)
def test_bad_arguments_are_named(tmp_path, classes, options, message):
    with pytest.raises(InputError, match=message):
        pack(some(), classes, tmp_path / "a", **options)
    with pytest.raises(InputError, match="no samples"):
        pack([], ["0"], tmp_path / "a")


# Sources


def test_a_folder_comes_back_as_it_was(tmp_path):
    images = {"cat/a.1.jpg": encoded(1, "JPEG"), "cat/a-1.JPG": encoded(2, "JPEG"), "cat/deep/b.png": encoded(3)}
    images |= {"dog/é.webp": encoded(4, "WEBP"), f"dog/{'x' * 100}.png": encoded(5)}
    for name, image in images.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(image)
    (tmp_path / "in" / "cat" / "notes.txt").write_text("not packed")
    classes, samples = folder_samples(tmp_path / "in")
    index = pack(samples, classes, tmp_path / "out")
    assert index.classes == ["cat", "dog"] and index.samples_per_class == [3, 2]
    assert {sample.image for sample in read(tmp_path / "out")} == set(images.values())
    assert list(folder_samples(tmp_path / "in")[1]) == list(folder_samples(tmp_path / "in")[1])


def test_a_folder_is_mixed(tmp_path):
    for i in range(20):
        path = tmp_path / "ab"[i // 10] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(i))
    labels = [label for *_, label in folder_samples(tmp_path)[1]]
    assert labels != sorted(labels)


@pytest.mark.parametrize(
    ("name", "expected"), [("cat/a.jpg", False), ("data/a.parquet", True), ("a.parquet", True), ("README.md", True)]
)
def test_class_folders_are_told_from_datasets(tmp_path, name, expected):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert is_dataset(tmp_path) is expected


@pytest.mark.parametrize(("make", "message"), [([], "no class folders"), (["cat"], "cat' holds no images")])
def test_an_empty_folder_is_refused(tmp_path, make, message):
    for name in make:
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=message):
        folder_samples(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        folder_samples(tmp_path / "none")


def test_digits_come_in_two_fixed_parts():
    train, test = (list(digits_samples(split)[1]) for split in ("train", "test"))
    assert len(train) + len(test) == 1797 and len(test) == 355
    assert not {key for key, *_ in train} & {key for key, *_ in test}
    assert {label for *_, label in test} == set(range(10))
    with Image.open(io.BytesIO(test[0][1])) as picture:
        assert picture.size == (16, 16) and picture.mode == "RGB"
    with pytest.raises(InputError, match="'tset'; did you mean 'test'"):
        digits_samples("tset")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def parquet(path: Path, columns: dict[str, list], features: dict | None = None) -> str:
    import datasets

    kinds = {"image": datasets.Image(), **(features or {})}
    datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).to_parquet(str(path))
    return str(path)


@pytest.mark.usefixtures("own_cache")
def test_a_dataset_comes_back_as_it_was(tmp_path):
    from datasets import ClassLabel, Value

    images = [encoded(i, kind) for i, kind in enumerate(("JPEG", "PNG", "WEBP", "BMP"))]
    columns = {"image": [{"bytes": image, "path": None} for image in images], "label": [0, 1, 1, 2], "fold": [0] * 4}
    kinds = {"label": ClassLabel(names=["cat", "dog", "eel"]), "fold": Value("int64")}
    path = parquet(tmp_path / "a.parquet", columns, kinds)
    classes, samples = dataset_samples(path, "train")
    index = pack(samples, classes, tmp_path / "out")
    assert index.classes == ["cat", "dog", "eel"] and index.samples_per_class == [1, 2, 1]
    back = {sample.key: sample.image for sample in read(tmp_path / "out")}
    assert [back[f"train-0000000{i}"] for i in range(3)] == images[:3]
    with Image.open(io.BytesIO(back["train-00000003"])) as picture:
        assert picture.format == "PNG" and picture.getpixel((0, 0)) == (3, 0, 0)

    assert dataset_samples(path, "train", label_column="fold")[0] == ["0"]
    for options, message in [
        ({"label_column": "labell"}, "did you mean 'label'"),
        ({"image_column": "fold"}, "not im"),
    ]:
        with pytest.raises(InputError, match=message):
            dataset_samples(path, "train", **options)
    with pytest.raises(InputError, match=r"none\.parquet"):
        dataset_samples(str(tmp_path / "none.parquet"), "train")


@pytest.mark.parametrize(
    ("values", "kind", "classes"), [([0, 3], "int64", ["0", "1", "2", "3"]), (["dog", "cat"], "string", ["cat", "dog"])]
)
@pytest.mark.usefixtures("own_cache")
def test_labels_without_names(tmp_path, values, kind, classes):
    from datasets import Value

    columns = {"image": [{"bytes": encoded(i), "path": None} for i in range(2)], "y": values}
    path = parquet(tmp_path / "a.parquet", columns, {"y": Value(kind)})
    with pytest.raises(InputError, match=r"0 columns of type ClassLabel.*y \(Value\)"):
        dataset_samples(path, "train")
    found, samples = dataset_samples(path, "train", label_column="y")
    labels = {key: label for key, _, _, label in samples}
    assert found == classes and [classes[labels[f"train-0000000{i}"]] for i in range(2)] == [str(v) for v in values]


@pytest.mark.parametrize(
    ("kind", "size", "reason"),
    [("EPS", (8, 8), "cannot identify"), ("GIF", (20_000, 4_000), "20000 x 4000 is above"), ("BMP", (8, 8), None)],
)
@pytest.mark.usefixtures("own_cache")
def test_of_other_formats_no_program_is_run_and_no_bomb_decoded(tmp_path, kind, size, reason):
    from datasets import Value

    file = io.BytesIO()
    Image.new("L", size).save(file, kind)
    columns = {"image": [{"bytes": file.getvalue(), "path": None}], "y": [0]}
    _, samples = dataset_samples(
        parquet(tmp_path / "a.parquet", columns, {"y": Value("int64")}), "train", label_column="y"
    )
    if reason is None:
        assert [(suffix, label) for _, _, suffix, label in samples] == [("png", 0)]
        return
    with pytest.raises(InputError, match=f"^row 0: image cannot be read: {reason}"):
        list(samples)


# Check


def checked(folder: Path, tolerate: int = 0) -> list[str]:
    return check([str(folder / "*.tar")], quarantine=Quarantine(tolerate))


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_check_finds_every_problem(tmp_path):
    out = tmp_path / "a"
    pack(some(), ["cat", "dog"], out, samples_per_shard=2)
    assert checked(out) == []

    (out / "train-0002.tar").rename(tmp_path / "gone.tar")
    whole = (out / "train-0000.tar").read_bytes()
    (out / "train-0000.tar").write_bytes(whole[:1500])
    with tarfile.open(out / "train-0001.tar", "a") as tar:
        for name in ("bad.png", "bad.cls"):
            tar.addfile(tarfile.TarInfo(name))
    (out / "other.tar").write_bytes(whole)
    problems = checked(out)
    for expected in (
        "lists 'train-0002.tar'",
        "train-0000.tar' is cut short",
        "'bad': image of 0",
        "'other.tar' is not",
    ):
        assert sum(expected in problem for problem in problems) == 1, (expected, problems)
    assert any("'train-0001.tar': sha256" in problem for problem in problems)


def test_check_counts_and_tolerates(tmp_path):
    out = tmp_path / "a"
    pack(some(), ["cat", "dog"], out)
    rewrite(out, samples_per_class=[2, 3])
    assert [problem.split(",")[0] for problem in checked(out)] == [
        "class 'cat' has 3 images", "class 'dog' has 2 images",
    ]  # fmt: skip
    rewrite(out, classes=["cat"], samples_per_class=[5], pixels_per_class=None)
    (out / "classes.txt").unlink()
    assert sum("class id 1 out of range 0..0" in problem for problem in checked(out)) == 2
    (out / "index.json").unlink()
    (out / "classes.txt").write_text("cat\n")
    quarantine = Quarantine(2)
    assert check([str(out / "*.tar")], quarantine=quarantine) == [] and len(quarantine.found) == 2
    assert len(checked(out, tolerate=1)) == 2


def test_a_malformed_index_is_one_line(tmp_path):
    out = tmp_path / "a"
    pack(some(), ["cat", "dog"], out)
    rewrite(out, samples_per_class=[5])
    for problem in checked(out):
        assert "1 counts for 2 classes" in problem and "\n" not in problem
    assert len(checked(out)) == 1
    with pytest.raises(InputError, match=r"index\.json"):
        read(out)


ENTRY = {"name": "a.tar", "samples": 3, "bytes": 1, "sha256": "0" * 64}
INDEX = {
    "format": "retort-shards-1", "classes": ["x", "y"], "shards": [ENTRY], "samples_per_class": [1, 2],
    "height": None, "width": None, "mean": (0, 0, 0), "std": (1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": [{**ENTRY, "name": "../a.tar"}]}, "bare file name"),
        ({"shards": [ENTRY, {**ENTRY, "samples": 0}]}, "listed twice"),
        ({"samples_per_class": [1, 1]}, "shards hold 3 samples, classes 2"),
        ({"samples_per_class": [4, -1]}, "negative"),
        ({"samples_per_class": [3]}, "1 counts for 2 classes"),
        ({"pixels_per_class": [(0,) * 7]}, "pixels of 1 for 2 classes"),
        ({"classes": ["x", "x"]}, "differ"),
        ({"format": "retort-shards-2"}, "retort-shards-1"),
        ({"more": 1}, "Extra"),
    ],
)
def test_the_index_refuses_what_does_not_add_up(changes, message):
    assert ShardIndex(**INDEX).samples == 3
    with pytest.raises(ValidationError, match=message):
        ShardIndex(**{**INDEX, **changes})
