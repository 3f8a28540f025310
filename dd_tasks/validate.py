"""Is an artifact sound? Every way in which it is not, as one line that names the place.

Shape letters: N images, V labelled views, K classes. Whether the claims of an artifact are *true* takes training, and
is not asked here.
"""

import io
import json
import math
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ValidationError

from dd_tasks import yamls
from dd_tasks.agreement import claims_problems, croissant_problems, header_problems
from dd_tasks.artifact import (
    CARD,
    MANIFEST,
    file_bytes,
    file_entry,
    image_features,
    label_features,
    parquet_files,
    read_parquet,
    tables_of,
)
from dd_tasks.card import rows
from dd_tasks.columns import numbers
from dd_tasks.croissant import CROISSANT
from dd_tasks.errors import InputError
from dd_tasks.nearness import of_images
from dd_tasks.seconds import spent
from dd_tasks.sound import shown, wrong_labels
from dd_tasks.types import Nearest
from dd_tasks.visible import legible
from schemas.card import CardHeader
from schemas.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from datasets import Features

Model = TypeVar("Model", bound=BaseModel)
TOLERANCE = 1e-6  # of a claim's mean and spread, and of similarities
SOFT_TOLERANCE = 1e-3  # of the sum of a soft label


@spent("validation")
def validate(path: Path) -> list[str]:
    """The problems of the artifact, each one line; none if it is sound. Reads all of it, runs nothing from it.

    Raises InputError where `path` is no folder.
    """
    if not path.is_dir():
        raise InputError(f"{path}: {'is not a folder' if path.exists() else 'does not exist'}")
    found = list[str]()
    try:
        found += (legible(problem) for problem in _problems(path))
    except Exception as error:  # a number that no float holds, say, in a place where nothing has looked at it before
        found.append(f"{MANIFEST}: cannot be checked to its end: {type(error).__name__}: {_line(error)}")
    return found


def loads(path: str, manifest: Manifest, **where: str) -> list[str]:
    """What keeps `load_dataset` from opening the artifact, a folder or a repository, and reading of each table its
    first row. `where` goes to `load_dataset`."""
    return [problem for table in tables_of(manifest) if (problem := _load(path, table, manifest, where))]


def _load(path: str, table: str, manifest: Manifest, where: dict[str, str]) -> str:
    from datasets import load_dataset

    wanted = image_features(manifest.classes) if table == "images" else label_features(manifest)
    try:
        found = load_dataset(path, table, split="train", streaming=True, **where)
        next(iter(found))
    except Exception as error:  # datasets, its file systems and its decoders raise what they like
        return f"{table}: load_dataset fails: {_line(error)}"
    return "" if found.features == wanted else f"{table}: load_dataset finds other columns than {MANIFEST} has"


def _problems(path: Path) -> Iterator[str]:
    manifest, problems = _manifest(path)
    yield from problems
    if manifest is None:
        return
    yield from _files(path, manifest)
    header, body, problems = _card(path)
    yield from problems
    if header:
        yield from header_problems(header, manifest)
        yield from claims_problems(body, manifest)
    fields, problems = _json(path, CROISSANT)
    yield from problems or croissant_problems(fields, manifest)
    yield from _claims(manifest)
    if len(set(manifest.classes)) < len(manifest.classes):
        yield f"{MANIFEST}: classes: some names occur twice"
        return
    yield from _images(path, manifest)
    yield from _views(path, manifest)


def _model(model: type[Model], fields: object, place: str) -> tuple[Model | None, list[str]]:
    try:
        return model.model_validate(fields), []
    except ValidationError as error:
        lines = [f"{place}: {'.'.join(map(str, e['loc'])) or 'all'}: {e['msg']}" for e in error.errors()]
        return None, [line.replace("\n", " ") for line in lines]


def _json(path: Path, name: str) -> tuple[Any, list[str]]:
    try:
        return json.loads(file_bytes(path / name)), []
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"{name}: cannot be read: {_line(error)}"]


def _manifest(path: Path) -> tuple[Manifest | None, list[str]]:
    fields, problems = _json(path, MANIFEST)
    return (None, problems) if problems else _model(Manifest, fields, MANIFEST)


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


# ---- files


def _files(path: Path, manifest: Manifest) -> Iterator[str]:
    for name, entry in sorted(manifest.files.items()):
        if problem := _file(path, name, entry):
            yield f"{name}: {problem}"
    found = {file.relative_to(path) for file in path.rglob("*") if file.is_file()}
    visible = {name.as_posix() for name in found if not name.parts[0].startswith(".")}  # .git and the like are not ours
    for name in sorted(visible - set(manifest.files) - {CARD, MANIFEST}):
        yield f"{name}: is not listed in {MANIFEST}"
    label_bytes = sum(entry.bytes for name, entry in manifest.files.items() if name.startswith("soft_labels/"))
    if manifest.labels.bytes != label_bytes:
        yield f"{MANIFEST}: labels.bytes is {manifest.labels.bytes}, the files have {label_bytes}"


def _file(path: Path, name: str, entry: FileEntry) -> str:
    """What is wrong with a listed file; empty if nothing."""
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return "leads out of the folder"
    try:
        if not (path / name).is_file():
            return "is missing"
        if (size := (path / name).stat().st_size) != entry.bytes:
            return f"has {size} bytes, {MANIFEST} says {entry.bytes}"
        return "" if file_entry(path / name) == entry else f"its checksum is not the one in {MANIFEST}"
    except OSError as error:
        return f"cannot be read: {_line(error)}"


# ---- card


def _card(path: Path) -> tuple[CardHeader | None, str, list[str]]:
    """The header, the text below it, and what is wrong with them."""
    try:
        text = file_bytes(path / CARD).decode().replace("\r\n", "\n")
        opening, separator, rest = text.partition("---\n")
        fields, closing, body = rest.partition("\n---\n")
        if opening or not separator or not closing:
            return None, "", [f"{CARD}: has no YAML header between two lines of ---"]
        header, problems = _model(CardHeader, yamls.read(fields), f"{CARD} header")
        return header, body, problems
    except Exception as error:  # broken YAML makes the reader raise KeyError and others, too
        return None, "", [f"{CARD}: cannot be read: {_line(error)}"]


# ---- claims


def _claims(manifest: Manifest) -> Iterator[str]:
    for i, claim in enumerate(manifest.claims):
        place = f"{MANIFEST}: claims.{i} ({claim.row}, {claim.student})"
        if not all(0 <= accuracy <= 1 for accuracy in claim.accuracies):
            yield f"{place}: an accuracy is not within 0..1"
            continue
        std = statistics.stdev(claim.accuracies) if len(claim.accuracies) > 1 else 0.0
        for what, said, is_ in (("mean", claim.mean, statistics.fmean(claim.accuracies)), ("std", claim.std, std)):
            if not math.isclose(said, is_, rel_tol=0, abs_tol=TOLERANCE):
                yield f"{place}: {what} is {said}, its accuracies give {is_:.6f}"


# ---- tables


def _tables(path: Path, name: str, features: "Features", rows: int) -> Iterator[tuple[str, int, pa.Table | None, str]]:
    """Of each file of the table: its place, the number of its first row, and its rows or else a problem."""
    files, row = parquet_files(path, name), 0
    if not files:
        yield name, 0, None, "has no Parquet file"
    for file in files:
        place = file.relative_to(path).as_posix()
        table, problem = _parquet(file, features)
        yield place, row, table, problem
        if table is None:
            return
        row += len(table)
    if files and row != rows:
        yield name, 0, None, f"has {row} rows, by {MANIFEST} it should be {rows}"


def _parquet(file: Path, features: "Features") -> tuple[pa.Table | None, str]:
    try:
        table = read_parquet(file)
        table.validate(full=True)
    except Exception as error:  # whatever a broken file makes the reader raise is a problem of that file
        return None, f"cannot be read: {_line(error)}"
    wanted = features.arrow_schema
    if table.schema.names != wanted.names:
        return None, f"columns are {', '.join(table.schema.names)}"
    for found, field in zip(table.schema, wanted, strict=True):
        if not found.type.equals(field.type):
            return None, f"column {field.name} is {found.type} instead of {field.type}"
        if _has_nulls(table[field.name]):
            return None, f"column {field.name} has missing values"
    if "label" in wanted.names and not _same_metadata(table.schema, wanted):
        return None, f"class names or column types in the schema's metadata are not as by {MANIFEST}"
    return table, ""


def _has_nulls(column: pa.ChunkedArray) -> bool:
    if pa.types.is_struct(column.type):
        return column.null_count > 0 or pc.struct_field(column, "bytes").null_count > 0
    inner = pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type)
    return column.null_count > 0 or (inner and pc.list_flatten(column).null_count > 0)


def _same_metadata(found: pa.Schema, wanted: pa.Schema) -> bool:
    try:
        is_, should = (json.loads(schema.metadata[b"huggingface"]) for schema in (found, wanted))
        return is_["info"]["features"] == should["info"]["features"]
    except (TypeError, KeyError, ValueError):
        return False


def _where(place: str, first_row: int, wrong: np.ndarray, what: str) -> Iterator[str]:
    """One line for all rows that are wrong, naming the first."""
    if len(rows := np.flatnonzero(wrong)):
        others = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        yield f"{place}: row {first_row + rows[0]}{others}: {what}"


def _images(path: Path, manifest: Manifest) -> Iterator[str]:
    classes = len(manifest.classes)
    pairs, near = [np.zeros((0, 2), np.int64)], list[pa.Table]()
    for place, first, table, problem in _tables(
        path, "images", image_features(manifest.classes), rows(manifest)["images"]
    ):
        if table is None:
            yield f"{place}: {problem}"
            continue
        label, slot, soft = (numbers(table, name) for name in ("label", "slot", "soft_label"))
        outside = (label < 0) | (label >= classes)
        yield from _where(place, first, outside, f"label is not within 0..{classes - 1}")
        yield from _where(
            place, first, (slot < 0) | (slot >= manifest.ipc), f"slot is not within 0..{manifest.ipc - 1}"
        )
        yield from _where(place, first, ~np.isfinite(soft).all(1), "soft_label is not finite")
        bad = (soft < 0).any(1) | (np.abs(soft.astype(np.float64).sum(1) - 1) > SOFT_TOLERANCE)
        yield from _where(place, first, bad, "soft_label is no probability distribution")
        far = ~(np.abs(numbers(table, "similarity")) <= 1)
        yield from _where(place, first, far, "similarity is not within -1..1")
        yield from _pictures(place, first, table, manifest.side)
        pairs.append(np.stack([label, slot], 1)[~outside])
        if not far.any():
            near.append(table.select(["sources", "nearest", "similarity"]))
    yield from _balance(np.concatenate(pairs), manifest)
    yield from _nearness(near, manifest)


def _nearness(tables: list[pa.Table], manifest: Manifest) -> Iterator[str]:
    """Where the manifest's summary is not that of the rows; nothing while rows are missing or broken."""
    if sum(map(len, tables)) != rows(manifest)["images"]:
        return
    table = pa.concat_tables(tables)
    near = Nearest(tuple(table["nearest"].to_pylist()), torch.from_numpy(numbers(table, "similarity").copy()))
    found = of_images(near, table["sources"].to_pylist(), manifest.nearness.random_95)
    for what, is_ in found.items():
        if not math.isclose(said := getattr(manifest.nearness, what), is_, rel_tol=0, abs_tol=TOLERANCE):
            yield f"{MANIFEST}: nearness.{what} is {said}, the table images gives {is_}"


def _balance(label_slot_N2: np.ndarray, manifest: Manifest) -> Iterator[str]:
    if not len(label_slot_N2):
        return
    for i, count in enumerate(np.bincount(label_slot_N2[:, 0], minlength=len(manifest.classes))):
        if count != manifest.ipc:
            yield f"images: class {i} ({manifest.classes[i]}) has {count} images instead of {manifest.ipc}"
    unique, counts = np.unique(label_slot_N2, axis=0, return_counts=True)
    for label, slot in unique[counts > 1][:1]:
        yield f"images: slot {slot} of class {label} ({manifest.classes[label]}) occurs more than once"


def _pictures(place: str, first: int, table: pa.Table, side: int) -> Iterator[str]:
    found = [_picture(file, side) for file in pc.struct_field(table["image"], "bytes").to_pylist()]
    for problem in sorted(set(filter(None, found))):
        yield from _where(place, first, np.array([line == problem for line in found]), problem)


def _picture(file: bytes, side: int) -> str:
    """What is wrong with the PNG file; empty if nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of some broken or huge files
            image = Image.open(io.BytesIO(file), formats=["PNG"])
            if (image.mode, image.size) != ("RGB", (side, side)):
                return f"image is {image.width} x {image.height} {image.mode} instead of {side} x {side} RGB"
            image.load()
    except Exception as error:  # whatever a broken file makes the decoder raise is a problem of that image
        return (
            "image is no PNG" if isinstance(error, UnidentifiedImageError) else f"image cannot be read: {_line(error)}"
        )
    return ""


def _views(path: Path, manifest: Manifest) -> Iterator[str]:
    if not manifest.labels.views:
        return
    seen = [np.zeros((0, 2), np.int64)]
    for place, first, table, problem in _tables(path, "soft_labels", label_features(manifest), manifest.labels.rows):
        if table is None:
            yield f"{place}: {problem}"
            continue
        for wrong, what in wrong_labels(table, manifest):
            yield from _where(place, first, wrong, what)
        seen.append(shown(table, manifest))
    yield from _epochs(np.concatenate(seen), manifest)


def _epochs(epoch_image_V2: np.ndarray, manifest: Manifest) -> Iterator[str]:
    if not len(epoch_image_V2):
        return
    found, epochs = np.unique(epoch_image_V2[:, 0]), manifest.labels.epochs
    if len(epoch_image_V2) != manifest.labels.views:
        yield f"soft_labels: {len(epoch_image_V2)} views, by {MANIFEST} it should be {manifest.labels.views}"
    if len(found) != epochs or (found != np.arange(epochs)).any():
        yield f"soft_labels: epochs are {found[0]}..{found[-1]} ({len(found)} of them), {MANIFEST} says 0..{epochs - 1}"
    unique, counts = np.unique(epoch_image_V2, axis=0, return_counts=True)
    for epoch, image in unique[counts > 1][:1]:
        yield f"soft_labels: image {image} has more than one view in epoch {epoch}"
