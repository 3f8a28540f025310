"""Writes and reads the artifact: two Parquet tables, a manifest, a card and pictures, laid out as the Hub has it.

Shape letters: N images, V labelled views, K classes, C channels (3), H x W pixels.
"""

import errno
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from dd_tasks import card, croissant
from dd_tasks.card import CARD, MANIFEST
from dd_tasks.codec import Labels, label_schema, views_of
from dd_tasks.columns import numbers
from dd_tasks.croissant import CROISSANT
from dd_tasks.errors import InputError
from dd_tasks.types import Canvas, Nearest, Views, slots_of
from dd_tasks.visible import legible
from dd_tasks.whole import all_or_nothing, refusing
from schemas.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from datasets import Features

TABLES = ("images", "soft_labels")
PARTS = {MANIFEST, CARD, CROISSANT, "assets", *TABLES}
SHARD_BYTES = 500_000_000
MOST_UNPACKED, FEW_BYTES = 100, 1 << 26  # bytes in memory for one of a Parquet file, unless they are few
IMAGE_PARQUET = {"compression": "zstd", "write_page_index": True, "row_group_size": 100}


@dataclass(frozen=True)
class Loaded:
    """An artifact read back; image i of the canvas is row i of the table `images`."""

    manifest: Manifest
    canvas: Canvas
    views: Views
    nearest: Nearest


def image_features(classes: list[str]) -> "Features":
    """Columns of the table `images`, as `datasets` knows them."""
    from datasets import ClassLabel, Features, List, Value
    from datasets import Image as ImageFeature

    return Features(
        image=ImageFeature(),
        label=ClassLabel(names=classes),
        soft_label=List(Value("float32"), length=len(classes)),
        slot=Value("int32"),
        sources=List(Value("string")),
        nearest=Value("string"),
        similarity=Value("float32"),
    )


def label_features(manifest: Manifest) -> "Features":
    """Columns of the table `soft_labels`, as `datasets` knows them."""
    from datasets import Features

    labels = manifest.labels
    return Features.from_arrow_schema(label_schema(labels.codec, len(manifest.classes), labels.top))


def parquet_files(folder: Path, table: str) -> list[Path]:
    """The files of one table, in the order of its rows."""
    return sorted(file for file in (folder / table).glob("train-*.parquet") if file.is_file())


def tables_of(manifest: Manifest) -> tuple[str, ...]:
    """The tables an artifact has: without views no `soft_labels`, since `datasets` fails on a table of no rows."""
    return TABLES if manifest.labels.views else TABLES[:1]


def png(image_CHW: Tensor) -> bytes:
    """The uint8 image as a PNG file; the same image gives the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _image_table(canvas: Canvas, slots_N: Tensor, soft_NK: Tensor, nearest: Nearest, schema: pa.Schema) -> pa.Table:
    files = pa.array([png(image) for image in canvas.images_NCHW.cpu()], pa.binary())
    columns = [
        pa.StructArray.from_arrays([files, pa.nulls(len(files), pa.string())], ["bytes", "path"]),
        pa.array(canvas.targets_N.cpu().numpy(), pa.int64()),
        pa.FixedSizeListArray.from_arrays(pa.array(soft_NK.reshape(-1).numpy()), soft_NK.shape[1]),
        pa.array(slots_N.numpy().astype(np.int32)),
        pa.array([list(keys) for keys in canvas.sources], pa.list_(pa.string())),
        pa.array(nearest.keys, pa.string()),
        pa.array(nearest.similarity_N.numpy(), pa.float32()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _image_tables(canvas: Canvas, soft_NK: Tensor, nearest: Nearest, classes: list[str]) -> Iterator[pa.Table]:
    """One table a shard: the PNG files of all may be more than one arrow array holds."""
    schema = image_features(classes).arrow_schema
    slots = slots_of(canvas.targets_N.cpu())
    for rows in _shards(len(canvas), canvas.images_NCHW[0].numel()):
        yield _image_table(canvas[rows], slots[rows], soft_NK[rows], nearest[rows], schema)


def _label_tables(labels: Labels) -> Iterator[pa.Table]:
    table = labels.table
    for rows in _shards(len(table), table.nbytes // max(1, len(table))):
        yield table.slice(rows.start, rows.stop - rows.start)


def _shards(rows: int, row_bytes: int) -> list[slice]:
    """Equal shares of the rows, each of at most SHARD_BYTES; at least one, perhaps empty."""
    count = max(1, min(rows, -(-rows * row_bytes // SHARD_BYTES)))
    ends = [rows * i // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _write_table(folder: Path, name: str, shards: Iterator[pa.Table], options: Mapping[str, Any]) -> int:
    """Write the shards as Parquet files; returns the bytes of the whole table in memory."""
    (folder / name).mkdir()
    size = 0
    for count, shard in enumerate(shards, start=1):
        file = folder / name / f"{count:05d}"
        pq.write_table(shard, file, **options)
        size += shard.nbytes
    for i in range(count):
        (folder / name / f"{i + 1:05d}").rename(folder / name / f"train-{i:05d}-of-{count:05d}.parquet")
    return size


def file_entry(file: Path) -> FileEntry:
    """Size and checksum of a file."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(bytes=file.stat().st_size, sha256=digest)


def manifest_text(manifest: Manifest) -> str:
    """`retort.json`: sorted keys, indented."""
    fields = manifest.model_dump(mode="json")
    return json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _write_assets(folder: Path, assets: Mapping[str, bytes]) -> None:
    (folder / "assets").mkdir()
    for name, content in assets.items():
        if Path(name).name != name or name.startswith("."):
            raise InputError(f"asset {name!r}: must be a plain file name, it is put into assets/")
        (folder / "assets" / name).write_bytes(content)


def _complete(folder: Path, draft: Manifest) -> Manifest:
    """The draft with what is now known: every file of the folder, and the bytes of the soft labels. Writes the
    croissant.json, which needs the checksums of the tables."""
    listed = _listed(folder, draft)
    (folder / CROISSANT).write_text(croissant.text(listed), encoding="utf-8")
    return _listed(folder, draft)


def _listed(folder: Path, draft: Manifest) -> Manifest:
    files = {
        file.relative_to(folder).as_posix(): file_entry(file) for file in sorted(folder.rglob("*")) if file.is_file()
    }
    label_bytes = sum(entry.bytes for name, entry in files.items() if name.startswith("soft_labels/"))
    labels = draft.labels.model_copy(update={"bytes": label_bytes})
    return draft.model_copy(update={"files": files, "labels": labels})


def _assert_agree(canvas: Canvas, labels: Labels, nearest: Nearest, draft: Manifest) -> None:
    shape = (draft.ipc * len(draft.classes), 3, draft.side, draft.side)
    assert tuple(canvas.images_NCHW.shape) == shape, f"canvas {tuple(canvas.images_NCHW.shape)}, manifest {shape}"
    assert canvas.images_NCHW.dtype == torch.uint8, canvas.images_NCHW.dtype
    assert len(canvas.sources) == len(canvas), (len(canvas.sources), len(canvas))
    assert len(nearest) == len(nearest.similarity_N) == len(canvas), (len(nearest), len(canvas))
    soft = (len(canvas), len(draft.classes))
    assert labels.soft_NK.shape == soft, f"soft labels {tuple(labels.soft_NK.shape)}, manifest {soft}"
    said = (draft.labels.codec, draft.labels.rows)
    assert (labels.codec, len(labels.table)) == said, f"labels {labels.codec} {len(labels.table)}, manifest {said}"


def write(
    out: Path,
    canvas: Canvas,
    labels: Labels,
    draft: Manifest,
    assets: Mapping[str, bytes],
    *,
    nearest: Nearest,
    overwrite: bool = False,
    check: Callable[[Path], list[str]] = lambda folder: [],
) -> Manifest:
    """Write the artifact `out` all at once or, on any failure, not at all; returns the manifest as written.

    `draft` is the manifest without `files` and `labels.bytes`, which are filled in; `assets` maps plain file names to
    contents; `nearest` is of the canvas. The same arguments give the same bytes. Raises InputError as
    `check_out(out, overwrite=overwrite)` does.
    """
    check_out(out, overwrite=overwrite)
    _assert_agree(canvas, labels, nearest, draft)
    with all_or_nothing(out, overwrite=overwrite) as folder:
        tables = {
            "images": (_image_tables(canvas, labels.soft_NK, nearest, draft.classes), IMAGE_PARQUET),
            "soft_labels": (_label_tables(labels), labels.parquet),
        }
        table_bytes = {name: _write_table(folder, name, *tables[name]) for name in tables_of(draft)}
        _write_assets(folder, assets)
        manifest = _complete(folder, draft)
        (folder / CARD).write_text(card.render(manifest, table_bytes), encoding="utf-8")
        (folder / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
        if problems := check(folder):
            raise ValueError(f"the artifact is not valid and was not put in place: {'; '.join(problems[:5])}")
    return manifest


def standing(out: Path, draft: Manifest, check: Callable[[Path], list[str]]) -> Manifest | None:
    """The manifest of the artifact in `out`, where it is sound and the one that `draft` would become.

    When, where and by which command it was made does not count, nor by which versions of other packages.
    """
    if not (out / MANIFEST).is_file():
        return None
    try:
        there = read_manifest(out)
    except InputError:
        return None
    return there if _content(there) == _content(draft) and not check(out) else None


def _content(manifest: Manifest) -> dict[str, Any]:
    """All that a manifest says, less what differs from one making to the next."""
    said = manifest.model_dump(mode="json", exclude={"files", "cost", "metrics", "command", "versions"})
    said["labels"]["bytes"] = 0
    for entry in (*said["claims"], *said["observers"]):
        del entry["seconds"]
    for data in filter(None, (said["source"], said["test"])):
        del data["shards"], data["classes"]  # the digest has their content; names and classes not in use do not count
    return {**said, "version": manifest.versions.get("retort")}


def check_out(out: Path, *, overwrite: bool = True, option: str = "--out") -> None:
    """InputError unless an artifact can be written to `out`: new, an empty folder or, to `overwrite`, an artifact.

    The message calls it by the `option` that named it.
    """
    if parent := refusing(out):
        raise InputError(f"{option} {out}: cannot write into {parent}; choose another place")
    if not out.exists():
        return
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else {""}
    if names and MANIFEST not in names:
        raise InputError(f"{option} {out} exists and is not an artifact (no {MANIFEST}); choose another or empty it")
    if names - PARTS:
        raise InputError(
            f"{option} {out} holds {min(names - PARTS)!r}, which is no part of an artifact; choose another"
        )
    if names and not overwrite:
        raise InputError(f"{option} {out} holds an artifact already; choose another, or allow it to be overwritten")


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def file_bytes(file: Path) -> bytes:
    """Of a file. OSError where there is none, and for what is no file to read to its end: a pipe, a device."""
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    return file.read_bytes()


def read_manifest(path: Path) -> Manifest:
    """The manifest of the artifact; InputError where there is none, or an invalid one."""
    try:
        return Manifest.model_validate_json(file_bytes(path / MANIFEST))
    except OSError as error:
        raise InputError(f"{path} is not an artifact: cannot read {MANIFEST} ({error.strerror})") from error
    except ValidationError as error:
        raise InputError(f"{path / MANIFEST}: {_first_error(error)}") from error


def read(path: Path) -> Loaded:
    """The artifact for re-use: manifest, canvas (PNG files decoded) and views in the order of the table.

    Raises InputError where it is no artifact or cannot be read; whether it is sound, `validate.validate` tells.
    """
    manifest = read_manifest(path)
    try:
        tables = {name: _read_table(path, name) for name in tables_of(manifest)}
        labels = tables.get("soft_labels", label_schema("exact", len(manifest.classes)).empty_table())
        soft_NK = torch.from_numpy(numbers(tables["images"], "soft_label").copy())
        views = views_of(labels, soft_NK, manifest.side)
        return Loaded(manifest, _canvas(tables["images"], manifest.side), views, _nearest(tables["images"]))
    except Exception as error:  # whatever a broken table makes its readers raise
        said = legible(str(error)) or type(error).__name__
        raise InputError(f"{path}: cannot read its tables ({said}); validate it") from error


def _read_table(path: Path, name: str) -> pa.Table:
    return pa.concat_tables([read_parquet(file) for file in parquet_files(path, name)])


def read_parquet(file: Path) -> pa.Table:
    """All of a Parquet file. ValueError, before they are all there, where its rows take far more bytes than it has."""
    most = max(FEW_BYTES, MOST_UNPACKED * file.stat().st_size)
    with pq.ParquetFile(file) as opened:
        about, size, batches = opened.metadata, 0, list[pa.RecordBatch]()
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        widest = max((group.total_byte_size for group in groups), default=1)  # one value of it may fill all rows
        for batch in opened.iter_batches(batch_size=min(1 << 16, max(1, most // max(1, widest)))):
            batches.append(batch)
            if (size := size + batch.nbytes) > most:
                raise ValueError(f"its rows take more than {most} bytes, {most // file.stat().st_size} times its own")
        return pa.Table.from_batches(batches, opened.schema_arrow)


def _pixels(file: bytes, side: int) -> np.ndarray:
    """[S, S, 3] of a PNG file. ValueError, before it is decoded, where it is of another size."""
    with Image.open(io.BytesIO(file), formats=["PNG"]) as image:
        if image.size != (side, side):
            raise ValueError(f"an image is {image.width} x {image.height} instead of {side} x {side}")
        return np.asarray(image.convert("RGB"))


def _canvas(table: pa.Table, side: int) -> Canvas:
    images = [_pixels(row["bytes"], side) for row in table["image"].to_pylist()]
    sources = tuple(map(tuple, table["sources"].to_pylist()))
    images_NCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return Canvas(images_NCHW, torch.from_numpy(numbers(table, "label").copy()), sources)


def _nearest(table: pa.Table) -> Nearest:
    return Nearest(tuple(table["nearest"].to_pylist()), torch.from_numpy(numbers(table, "similarity").copy()))
