"""A sound artifact has no problems; each way to break one gives a line that names the place."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sample import SIDE, K, N, compact_info, compact_labels, draft, tiny_canvas, tiny_labels, tiny_nearest

from dd_tasks import artifact, card, croissant
from dd_tasks.croissant import CROISSANT
from dd_tasks.errors import InputError
from dd_tasks.validate import validate

IMAGES, VIEWS = "images/train-00000-of-00001.parquet", "soft_labels/train-00000-of-00001.parquet"
Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sound") / "out"
    artifact.write(out, tiny_canvas(), tiny_labels(), draft(), {"preview.png": b"picture"}, nearest=tiny_nearest())
    return out


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def edit_json(change: Callable[[dict], object]) -> Break:
    def broken(out: Path) -> None:
        fields = json.loads((out / "retort.json").read_text())
        change(fields)
        (out / "retort.json").write_text(json.dumps(fields))

    return broken


def seal(out: Path, name: str) -> None:
    """Make manifest, card and croissant.json agree again with a changed file, so that only what it holds is wrong."""
    old, new = artifact.read_manifest(out).files[name], artifact.file_entry(out / name)

    def change(fields: dict) -> None:
        fields["files"][name] = new.model_dump()
        if name == VIEWS:
            fields["labels"]["bytes"] = new.bytes

    edit_json(change)(out)
    edit_card(f"download_size: {old.bytes}", f"download_size: {new.bytes}")(out)
    (out / CROISSANT).write_text(croissant.text(artifact.read_manifest(out)))
    listed(out, CROISSANT)


def listed(out: Path, name: str) -> None:
    """Give the manifest the file's size and checksum."""
    entry = artifact.file_entry(out / name).model_dump()
    edit_json(lambda manifest: manifest["files"].update({name: entry}))(out)


def edit_croissant(change: Callable[[dict], object]) -> Break:
    def broken(out: Path) -> None:
        fields = json.loads((out / CROISSANT).read_text())
        change(fields)
        (out / CROISSANT).write_text(json.dumps(fields))
        listed(out, CROISSANT)

    return broken


def edit_card(old: str, new: str) -> Break:
    def broken(out: Path) -> None:
        text = (out / "README.md").read_text()
        assert old in text
        (out / "README.md").write_text(text.replace(old, new))

    return broken


def edit_table(name: str, change: Callable[[pa.Table], pa.Table]) -> Break:
    def broken(out: Path) -> None:
        pq.write_table(change(pq.read_table(out / name)), out / name)
        seal(out, name)

    return broken


def put(name: str, column: str, row: int, value: object) -> Break:
    """Change one cell of a table, and nothing else."""

    def change(table: pa.Table) -> pa.Table:
        cells = table[column].to_pylist()
        cells[row] = value
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(cells, field.type))

    return edit_table(name, change)


def edit_bytes(name: str, change: Callable[[bytes], bytes]) -> Break:
    return lambda out: (out / name).write_bytes(change((out / name).read_bytes()))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def picture(side: int, mode: str = "RGB", form: str = "PNG") -> dict:
    buffer = io.BytesIO()
    Image.new(mode, (side, side)).save(buffer, form)
    return {"bytes": buffer.getvalue(), "path": None}


def twice(*breaks: Break) -> Break:
    return lambda out: [each(out) for each in breaks]


def renamed_metadata(table: pa.Table) -> pa.Table:
    content = table.schema.metadata[b"huggingface"].replace(b"class_9", b"class_X")
    return table.replace_schema_metadata({b"huggingface": content})


FULL_LINE = "| all real images | resnet\\_18 | 1 | 80.00 | 3 | test |"
CUT = {"bytes": picture(SIDE)["bytes"][:50], "path": None}
BROKEN: dict[str, tuple[Break, str]] = {
    "a byte flipped": (edit_bytes(IMAGES, flipped), f"{IMAGES}: its checksum is not the one in retort.json"),
    "a file cut": (edit_bytes(VIEWS, lambda b: b[:1000]), f"{VIEWS}: has 1000 bytes, retort.json says"),
    "Parquet cut": (twice(edit_bytes(VIEWS, lambda b: b[:1000]), lambda o: seal(o, VIEWS)), f"{VIEWS}: cannot be read"),
    "a file gone": (lambda out: (out / "assets/preview.png").unlink(), "assets/preview.png: is missing"),
    "a table gone": (lambda out: shutil.rmtree(out / "images"), "images: has no Parquet file"),
    "an unknown file": (lambda out: (out / "more.bin").touch(), "more.bin: is not listed in retort.json"),
    "a path outside": (
        edit_json(lambda m: m["files"].update({"../x": m["files"][IMAGES]})),
        "../x: leads out of the folder",
    ),
    "no manifest": (lambda out: (out / "retort.json").unlink(), "retort.json: cannot be read: No such file"),
    "broken JSON": (edit_bytes("retort.json", lambda b: b[:100]), "retort.json: cannot be read: "),
    "JSON too deep": (edit_bytes("retort.json", lambda b: b"[" * 10**6), "retort.json: cannot be read: "),
    "not UTF-8": (edit_bytes("retort.json", lambda b: b"\xff\xff"), "retort.json: cannot be read: "),
    "field missing": (edit_json(lambda m: m.pop("ipc")), "retort.json: ipc: Field required"),
    "field of no use": (edit_json(lambda m: m["cost"].update(x=1)), "retort.json: cost.x: Extra inputs"),
    "label bytes": (edit_json(lambda m: m["labels"].update(bytes=1)), "retort.json: labels.bytes is 1, the files have"),
    "classes twice": (edit_json(lambda m: m.update(classes=["a"] * K)), "retort.json: classes: some names occur twice"),
    "mean changed": (
        edit_json(lambda m: m["claims"][0].update(mean=0.6)),
        "claims.0 (distilled, resnet_18): mean is 0.6",
    ),
    "std changed": (edit_json(lambda m: m["claims"][1].update(std=0.0)), "claims.1 (random, resnet_18): std is 0.0"),
    "nearness changed": (
        edit_json(lambda m: m["nearness"].update(median=0.5)),
        "retort.json: nearness.median is 0.5, the table images gives 0.55",
    ),
    "nearness odd": (
        edit_json(lambda m: m["nearness"].update(most=1.5)),
        "retort.json: nearness.most: Input should be",
    ),
    "no nearness": (edit_json(lambda m: m.pop("nearness")), "retort.json: nearness: Field required"),
    "a licence of no kind": (
        edit_json(lambda m: m.update(license="CC-BY 4")),
        "retort.json: license: the Hub knows no licence 'CC-BY 4'; did you mean cc-by-4.0",
    ),
    "no source's name": (
        edit_json(lambda m: m.update(source_dataset="a b")),
        "source_dataset: 'a b' is not a dataset's",
    ),
    "ipc changed": (edit_json(lambda m: m.update(ipc=3)), "images: has 20 rows, by retort.json it should be 30"),
    "epochs changed": (
        edit_json(lambda m: m["labels"].update(epochs=4)),
        "epochs are 0..2 (3 of them), retort.json says 0..3",
    ),
    "accuracy odd": (
        edit_json(lambda m: m["claims"][0].update(accuracies=[float("inf"), float("nan")])),
        "claims.0 (distilled, resnet_18): an accuracy is not within 0..1",
    ),
    "a name too long": (
        edit_json(lambda m: m["files"].update({"x" * 300: m["files"][IMAGES]})),
        "xxx: cannot be read: File",
    ),
    "a number that no float holds": (
        edit_json(lambda m: m["nearness"].update(above=10**400)),
        "retort.json: cannot be checked to its end: OverflowError",
    ),
    "a pipe for a card": (
        lambda out: ((out / "README.md").unlink(), os.mkfifo(out / "README.md")),
        "README.md: cannot be read: not a regular file",
    ),
    "a pipe for a table": (lambda out: ((out / IMAGES).unlink(), os.mkfifo(out / IMAGES)), f"{IMAGES}: is missing"),
    "a date that is none": (
        edit_card("license: unknown", "license: 2001-99-99"),
        "README.md: cannot be read: a value in",
    ),
    "brackets": (edit_card("license: unknown", f"license: {'[' * 3000}"), "README.md: cannot be read: more than 100 "),
    "a name of escapes": (
        edit_card("- dataset-distillation\n", '- "\\e[2J"\n'),
        "README.md header: all: Value error, tags must name",
    ),
    "a partner that is not there": (
        twice(put(VIEWS, "partner", 5, 99), put(VIEWS, "mix_height", 5, 0)),
        f"{VIEWS}: row 5: partner is not within 0..19",
    ),
    "YAML of a kind": (edit_card("license: unknown", "license: !!bool x"), "README.md: cannot be read: "),
    "no card": (lambda out: (out / "README.md").unlink(), "README.md: cannot be read: No such file"),
    "no header": (edit_bytes("README.md", lambda b: b"# hello"), "README.md: has no YAML header"),
    "header no YAML": (edit_card("license: unknown", "license: [unknown"), "README.md: cannot be read: "),
    "header a list": (edit_bytes("README.md", lambda b: b"---\n- a\n---\n"), "README.md header: all: Input should be"),
    "header tags": (edit_card("- dataset-distillation\n", ""), "README.md header: all: Value error, tags must name"),
    "card's licence": (
        edit_card("license: unknown", "license: mit"),
        "README.md header: license is mit, by retort.json it should be unknown",
    ),
    "no licence": (
        edit_card("license: unknown", "license: my-own"),
        "README.md header: license: the Hub knows no licence 'my-own'; choices: apache-2.0, mit",
    ),
    "card's task": (
        edit_card("- multi-class-image-classification", "- multi-class"),
        "README.md header: task_ids.0: the Hub knows no kind of image classification 'multi-class'",
    ),
    "card's origin": (
        edit_card("source_datasets: []", "source_datasets: [my photos]"),
        "README.md header: source_datasets.0: 'my photos' is not `original`, NAME, OWNER/NAME or extended|NAME",
    ),
    "card's accuracy": (
        edit_card("| 2 | 51.00 ± 1.41 |", "| 2 | 91.00 ± 1.41 |"),
        "README.md: the table of accuracies has a line that retort.json does not claim: the distilled images | "
        "resnet\\_18 | 2 | 91.00 ± 1.41 | 3 | test",
    ),
    "a card of before": (
        edit_json(lambda m: m["claims"][2].update(accuracies=[0.75], mean=0.75)),
        "README.md: the table of accuracies lacks a claim of retort.json: all real images | resnet\\_18 | 1 | 75.00 |",
    ),
    "a line too many": (
        edit_card(FULL_LINE, f"{FULL_LINE}\n{FULL_LINE}"),
        "README.md: the table of accuracies has a line that retort.json does not claim: all real images",
    ),
    "a line gone": (edit_card(f"{FULL_LINE}\n", ""), "the table of accuracies lacks a claim of retort.json: all real"),
    "no accuracies": (
        edit_card("| trained on |", "| made of |"),
        "the table of accuracies lacks a claim of retort.json",
    ),
    "no Croissant": (lambda out: (out / CROISSANT).unlink(), "croissant.json: cannot be read: No such file"),
    "Croissant no JSON": (edit_bytes(CROISSANT, lambda b: b[:50]), "croissant.json: cannot be read: "),
    "Croissant a list": (edit_bytes(CROISSANT, lambda b: b"[]"), "croissant.json: is not as this tool writes it"),
    "an older Croissant": (
        edit_croissant(lambda c: [part.update(sha256="0" * 64) for part in c["distribution"] if "sha256" in part]),
        f"croissant.json: distribution {IMAGES} (and 1 more) is not as by retort.json: of an earlier run, or edited",
    ),
    "Croissant's column": (
        edit_croissant(lambda c: c["recordSet"][0]["field"].pop(1)),
        "croissant.json: recordSet images/label is not as by retort.json",
    ),
    "Croissant's classes": (
        edit_croissant(lambda c: c["recordSet"][-1]["data"].pop()),
        "croissant.json: recordSet classes is not as by retort.json",
    ),
    "Croissant's licence": (
        edit_croissant(lambda c: c.update(license="mit")),
        "croissant.json: license is not as by retort.json",
    ),
    "card's classes": (edit_card("'9': class_9", "'9': class_X"), "images: column label: class names differ"),
    "card's type": (edit_card("list: float16", "list: float32"), "soft_labels: column logits: type is not as by"),
    "card's column": (edit_card("name: slot", "name: slit"), "README.md header: images: columns are image, label"),
    "card's rows": (
        edit_card("num_examples: 60", "num_examples: 61"),
        "soft_labels: num_examples is 61, by retort.json it",
    ),
    "card's files": (
        edit_card("path: images/train-*", "path: images/test-*"),
        "images: data_files must be images/train-*",
    ),
    "Parquet's classes": (
        edit_table(IMAGES, renamed_metadata),
        f"{IMAGES}: class names or column types in the schema's",
    ),
    "no metadata": (
        edit_table(IMAGES, lambda t: t.replace_schema_metadata()),
        f"{IMAGES}: class names or column types",
    ),
    "no column": (edit_table(VIEWS, lambda t: t.drop_columns(["flip"])), f"{VIEWS}: columns are image, epoch"),
    "a type": (
        edit_table(VIEWS, lambda t: t.set_column(1, "epoch", t["epoch"].cast(pa.int64()))),
        f"{VIEWS}: column epoch is int64 instead of int16",
    ),
    "a null": (put(IMAGES, "slot", 3, None), f"{IMAGES}: column slot has missing values"),
    "a null image": (put(IMAGES, "image", 3, None), f"{IMAGES}: column image has missing values"),
    "a null logit": (put(VIEWS, "logits", 3, [None] * K), f"{VIEWS}: column logits has missing values"),
    "rows gone": (
        edit_table(VIEWS, lambda t: t.slice(0, 40)),
        "soft_labels: has 40 rows, by retort.json it should be 60",
    ),
    "similarity NaN": (put(IMAGES, "similarity", 3, float("nan")), f"{IMAGES}: row 3: similarity is not within -1..1"),
    "similarity 2": (put(IMAGES, "similarity", 3, 2.0), f"{IMAGES}: row 3: similarity is not within -1..1"),
    "similarity put": (
        put(IMAGES, "similarity", 0, 0.05),
        "retort.json: nearness.least is 0.1, the table images gives",
    ),
    "nearest put": (put(IMAGES, "nearest", 1, "x"), "retort.json: nearness.kept is 7, the table images gives 6"),
    "nearest null": (put(IMAGES, "nearest", 1, None), f"{IMAGES}: column nearest has missing values"),
    "no similarity": (
        edit_table(IMAGES, lambda t: t.drop_columns(["nearest", "similarity"])),
        f"{IMAGES}: columns are image, label, soft_label, slot, sources",
    ),
    "label too large": (put(IMAGES, "label", 3, 10), f"{IMAGES}: row 3: label is not within 0..9"),
    "label changed": (put(IMAGES, "label", 3, 4), "images: class 3 (a|b) has 1 images instead of 2"),
    "slot taken": (put(IMAGES, "slot", 3, 1), "images: slot 1 of class 3 (a|b) occurs more than once"),
    "slot too large": (put(IMAGES, "slot", 3, 2), f"{IMAGES}: row 3: slot is not within 0..1"),
    "soft label NaN": (put(IMAGES, "soft_label", 3, [float("nan")] * K), f"{IMAGES}: row 3: soft_label is not finite"),
    "soft label sum": (put(IMAGES, "soft_label", 3, [0.2] * K), f"{IMAGES}: row 3: soft_label is no probability"),
    "image size": (put(IMAGES, "image", 3, picture(8)), f"{IMAGES}: row 3: image is 8 x 8 RGB instead of 16 x 16 RGB"),
    "image grey": (put(IMAGES, "image", 3, picture(SIDE, "L")), f"{IMAGES}: row 3: image is 16 x 16 L instead"),
    "image a JPEG": (put(IMAGES, "image", 3, picture(SIDE, form="JPEG")), f"{IMAGES}: row 3: image is no PNG"),
    "image cut": (put(IMAGES, "image", 3, CUT), f"{IMAGES}: row 3: image cannot be read"),
    "logit NaN": (put(VIEWS, "logits", 7, [float("nan")] * K), f"{VIEWS}: row 7: logits are not finite"),
    "view of no image": (put(VIEWS, "image", 7, N), f"{VIEWS}: row 7: image is not within 0..19"),
    "partner of none": (put(VIEWS, "partner", 7, -1), f"{VIEWS}: row 7: partner is not within 0..19"),
    "crop outside": (put(VIEWS, "left", 7, 16), f"{VIEWS}: row 7: crop is not inside of 16 x 16 pixels"),
    "crop empty": (put(VIEWS, "height", 7, 0), f"{VIEWS}: row 7: crop is not inside of 16 x 16 pixels"),
    "partner outside": (put(VIEWS, "partner_top", 7, -1), f"{VIEWS}: row 7: partner's crop is not inside"),
    "mix box outside": (put(VIEWS, "mix_width", 7, 17), f"{VIEWS}: row 7: mix box is not inside of 16 x 16 pixels"),
    "a view twice": (put(VIEWS, "image", 7, 8), "soft_labels: image 8 has more than one view in epoch 0"),
    "an epoch too many": (
        put(VIEWS, "epoch", 59, 5),
        "soft_labels: epochs are 0..5 (4 of them), retort.json says 0..2",
    ),
}


def test_a_sound_artifact_has_no_problems(out: Path, tmp_path: Path) -> None:
    assert validate(out) == []
    artifact.write(tmp_path / "hard", tiny_canvas(), tiny_labels(0), draft(0), {}, nearest=tiny_nearest())
    assert validate(tmp_path / "hard") == []
    (out / ".gitattributes").touch()
    assert validate(out) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_artifact_is_told(name: str, out: Path) -> None:
    broken, says = BROKEN[name]
    broken(out)
    problems = validate(out)
    assert any(says in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("label too large", 2),  # its class is also short of one
        ("mean changed", 3),  # the card has another line than the manifest now gives
        ("card's accuracy", 2),
        ("a line too many", 1),
        ("a line gone", 1),
        ("image cut", 1),
        ("logit NaN", 1),
        ("mix box outside", 1),
        ("card's type", 1),
        ("card's licence", 1),
        ("similarity NaN", 1),
        ("nearness changed", 1),
        ("an older Croissant", 1),
        ("Croissant's column", 1),
    ],
)
def test_nothing_else_is_told(name: str, lines: int, out: Path) -> None:
    BROKEN[name][0](out)
    assert len(validate(out)) == lines


def test_the_card_of_a_repository_is_as_sound(out: Path) -> None:
    text = (out / "README.md").read_text()
    (out / "README.md").write_text(card.for_repository(text, "org/digits"))
    assert validate(out) == []


def test_what_another_version_would_say_otherwise_is_not_told(out: Path) -> None:
    edit_card("## Accuracy", "## How accurate\n\nSome words.")(out)
    edit_card("| trained on | student | seeds", "|trained on |  student| seeds")(out)
    edit_croissant(lambda c: c.update(description="other words", citeAs="", keywords=[]))(out)
    assert validate(out) == []


def compact(out: Path) -> Path:
    shutil.rmtree(out)
    labels = compact_labels(top=3)
    artifact.write(out, tiny_canvas(), labels, draft(labels=compact_info(labels)), {}, nearest=tiny_nearest())
    return out


BROKEN_COMPACT: dict[str, tuple[Break, str]] = {
    "an image too far": (put(VIEWS, "first", 1, 1), f"{VIEWS}: row 1: images are not within 0..19"),
    "no image": (put(VIEWS, "count", 1, 0), f"{VIEWS}: row 1: images are not within 0..19"),
    "partner outside": (put(VIEWS, "ahead", 1, N), f"{VIEWS}: row 1: ahead is not within 0..count - 1"),
    "crop outside": (put(VIEWS, "left", 0, 16), f"{VIEWS}: row 0: crop is not inside of 16 x 16 pixels"),
    "mix box outside": (put(VIEWS, "mix_height", 0, 17), f"{VIEWS}: row 0: mix box is not inside of 16 x 16 pixels"),
    "another step": (put(VIEWS, "step", 1, 0.25), f"{VIEWS}: row 1: step is not 0.5"),
    "step NaN": (put(VIEWS, "step", 1, float("nan")), f"{VIEWS}: row 1: step is not 0.5"),
    "codes cut": (put(VIEWS, "codes", 1, b"abc"), f"{VIEWS}: row 1: codes are not 3 for each image"),
    "classes cut": (put(VIEWS, "classes", 1, [0, 1, 2]), f"{VIEWS}: row 1: classes are not 3 for each image"),
    "no class": (put(VIEWS, "classes", 1, [0, 1, 10] * N), f"{VIEWS}: row 1: a class is not within 0..9"),
    "a class twice": (put(VIEWS, "classes", 0, [0, 1, 1] * N), f"{VIEWS}: row 0: a class stands twice in one view"),
    "views gone": (put(VIEWS, "count", 1, N - 1), "soft_labels: 39 views, by retort.json it should be 40"),
    "an epoch twice": (put(VIEWS, "epoch", 1, 0), "soft_labels: image 0 has more than one view in epoch 0"),
    "a null code": (put(VIEWS, "codes", 1, None), f"{VIEWS}: column codes has missing values"),
    "a column gone": (edit_table(VIEWS, lambda t: t.drop_columns(["ahead"])), f"{VIEWS}: columns are epoch, first"),
    "top changed": (edit_json(lambda m: m["labels"].update(top=2)), f"{VIEWS}: row 0 (and 1 more): codes are not 2"),
}


@pytest.mark.parametrize("name", BROKEN_COMPACT)
def test_broken_compact_labels_are_told(name: str, out: Path) -> None:
    broken, says = BROKEN_COMPACT[name]
    assert validate(compact(out)) == []
    broken(out)
    problems = validate(out)
    assert any(says in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_many_rows_make_one_line(out: Path) -> None:
    edit_table(VIEWS, lambda t: t.set_column(3, t.schema.field("left"), pa.array([99] * len(t), pa.int16())))(out)
    assert validate(out) == [f"{VIEWS}: row 0 (and 59 more): crop is not inside of 16 x 16 pixels"]


def test_an_empty_folder_is_told(tmp_path: Path) -> None:
    assert validate(tmp_path) == ["retort.json: cannot be read: No such file or directory"]


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        validate(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        validate(tmp_path / "file")


def test_shards_count_rows_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "SHARD_BYTES", 2000)
    artifact.write(tmp_path / "out", tiny_canvas(), tiny_labels(), draft(), {}, nearest=tiny_nearest())
    assert validate(tmp_path / "out") == []
    last = artifact.parquet_files(tmp_path / "out", "soft_labels")[-1]
    table = pq.read_table(last)
    wrong = pa.array([99] + [0] * (len(table) - 1), pa.int32())
    pq.write_table(table.set_column(0, table.schema.field("image"), wrong), last)
    assert any("row 30: image is not within" in problem for problem in validate(tmp_path / "out"))
