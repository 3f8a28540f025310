"""Shards out: folders, `datasets` and scikit-learn's digits into reproducible WebDataset shards, and their check."""

import hashlib
import io
import logging
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image
from webdataset.writer import TarWriter

from dd_tasks.decoding import MOST_PIXELS, PixelStatistics, decode_whole
from dd_tasks.errors import InputError, unknown
from dd_tasks.shards import (
    CLASS_NAMES,
    INDEX,
    MOST_CLASSES,
    Quarantine,
    class_names,
    distinct,
    expand,
    index_of,
    read_index,
    scan_shard,
)
from dd_tasks.sources import noted
from dd_tasks.tars import CLASS_SUFFIX, IMAGE_SUFFIXES, folder_of, size_of
from dd_tasks.types import Track, untracked
from dd_tasks.whole import all_or_nothing, refusing
from schemas.index import ShardEntry, ShardIndex

Encoded = tuple[str, bytes, str, int]  # key, image as it lies on disk, its suffix, class id
OTHERS = ("BMP", "GIF", "JPEG2000", "PPM", "TGA", "TIFF")  # none of those that run a program of their own
LONGEST_KEY = 90  # with its suffix it must fit the 100 bytes of a tar header

log = logging.getLogger(__name__)


def pack(
    samples: Iterable[Encoded],
    classes: Sequence[str],
    out: Path,
    *,
    prefix: str = "train",
    samples_per_shard: int = 10_000,
    overwrite: bool = False,
    track: Track = untracked,
) -> ShardIndex:
    """Write `samples` as out/PREFIX-0000.tar ..., index.json and classes.txt; the same samples give the same bytes.

    All or nothing: `out` appears once it is complete. InputError when `out` holds anything (with `overwrite`: anything
    but shards), when there are no samples, and for a sample that could not be read back.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", prefix) or samples_per_shard < 1:
        raise InputError(f"prefix {prefix!r} and {samples_per_shard} samples per shard: expected a word and 1 or more")
    _expect_free(out, overwrite)
    _expect_lines(classes)
    with all_or_nothing(out, overwrite=overwrite) as draft:
        return _write(iter(track(samples, "packing")), classes, draft, prefix, samples_per_shard)


def _expect_free(out: Path, overwrite: bool) -> None:
    if parent := refusing(out):
        raise InputError(f"'{out}': cannot write into {parent}; name another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"'{out}' is a file; shards are packed into a folder")
    names = sorted(path.name for path in out.iterdir())
    if names and not overwrite:
        raise InputError(f"'{out}' is not empty ({names[0]!r} ...); name a new folder, or overwrite it")
    if foreign := [name for name in names if name not in (INDEX, CLASS_NAMES) and not name.endswith(".tar")]:
        raise InputError(f"'{out}' holds {foreign[0]!r}, which is no shard; it is not overwritten")


def _expect_lines(classes: Sequence[str]) -> None:
    for name in classes:
        if name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(f"class name {name!r} does not fit on a line of {CLASS_NAMES}")


def _write(samples: Iterator[Encoded], classes: Sequence[str], out: Path, prefix: str, per_shard: int) -> ShardIndex:
    entries: list[ShardEntry] = []
    pixels, counts, keys = PixelStatistics(), Counter[int](), set[str]()
    while (first := next(samples, None)) is not None:
        name = f"{prefix}-{len(entries):04d}.tar"
        before, labels = counts.total(), set[int]()
        with open(out / name, "wb") as file, TarWriter(file, user="", group="", encoder=False, mtime=0) as tar:
            for key, image, suffix, label in chain([first], islice(samples, per_shard - 1)):
                _expect_sound(key, suffix, label, len(classes), keys)
                try:
                    pixels.add(decode_whole(image), label)
                except ValueError as error:
                    raise InputError(f"sample {key!r}: {error}") from error
                tar.write({"__key__": key, suffix: image, CLASS_SUFFIX: str(label).encode()})
                counts[label] += 1
                labels.add(label)
        entries.append(_entry(out / name, counts.total() - before, labels))
    if not entries:
        raise InputError("no samples to pack")
    index = index_of(classes, entries, pixels, counts)
    (out / INDEX).write_text(index.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (out / CLASS_NAMES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    return index


def _expect_sound(key: str, suffix: str, label: int, classes: int, keys: set[str]) -> None:
    if suffix not in IMAGE_SUFFIXES:
        raise unknown(f"image suffix of sample {key!r}", suffix, IMAGE_SUFFIXES)
    if not 0 <= label < classes:
        raise InputError(f"sample {key!r}: class id {label} out of range 0..{classes - 1}")
    if "." in key or key.startswith(("/", "__")) or not 0 < len(key.encode()) <= LONGEST_KEY or key.endswith("/"):
        raise InputError(f"key {key!r} does not fit a shard: 1 to {LONGEST_KEY} bytes, no dots, no leading '/' or '__'")
    if key in keys:
        raise InputError(f"two samples have the key {key!r}")
    keys.add(key)


def _entry(path: Path, samples: int, labels: set[int]) -> ShardEntry:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ShardEntry(
        name=path.name, samples=samples, bytes=path.stat().st_size, sha256=sha256, classes=noted(labels)
    )  # fmt: skip


# What is packed: each of these returns the class names and the samples, in a mixed order that never changes


def is_dataset(root: Path) -> bool:
    """Whether a folder is one for `datasets` (it holds tables, or a dataset card) and not one of class folders."""
    tables = (".parquet", ".arrow", ".jsonl", ".csv")
    files = chain(root.glob("*"), root.glob("*/*"))
    return (root / "README.md").is_file() or any(path.suffix in tables for path in files)


def samples_of(
    source: str, split: str, image_column: str | None = None, label_column: str | None = None, side: int = 16
) -> tuple[list[str], Iterator[Encoded]]:
    """The samples of whatever `source` names: `digits`, a folder of class folders, or a dataset for `datasets`."""
    if source == "digits":
        return digits_samples(split, side=side)
    if Path(source).is_dir() and not is_dataset(Path(source)):
        return folder_samples(Path(source))
    if Path(source).is_file() and not source.endswith(".parquet"):
        raise InputError(f"'{source}' is a file; expected a folder of class folders, a dataset, or `digits`")
    return dataset_samples(source, split, image_column, label_column)


def folder_samples(root: Path) -> tuple[list[str], Iterator[Encoded]]:
    """root/CLASS/*.jpg (jpeg, png, webp; deeper folders too), bytes as they are. InputError for an empty class."""
    if not root.is_dir():
        raise InputError(f"no folder '{root}'")
    classes = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise InputError(f"'{root}' holds no class folders (expected CLASS/*.jpg)")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        inside = sorted(path for path in (root / name).rglob("[!.]*") if path.is_file())
        images = [path for path in inside if path.suffix[1:].lower() in IMAGE_SUFFIXES]
        if not images:
            raise InputError(f"class folder '{root / name}' holds no images ({', '.join(IMAGE_SUFFIXES)})")
        if len(images) < len(inside):
            log.warning("%s: %d files that are no images are not packed", root / name, len(inside) - len(images))
        files += [(path, label) for path in images]
    random.Random(0).shuffle(files)
    return classes, _read(root, files)


def _read(root: Path, files: list[tuple[Path, int]]) -> Iterator[Encoded]:
    used: set[str] = set()
    for path, label in files:
        relative = path.relative_to(root).as_posix()
        key = re.sub(r"[^\w-]+", "-", os.path.splitext(relative)[0])
        if key in used or len(key.encode()) > LONGEST_KEY or key.startswith("__"):
            key = f"image-{hashlib.sha256(os.fsencode(relative)).hexdigest()[:24]}"
        used.add(key)
        yield key, path.read_bytes(), path.suffix[1:].lower(), label


def dataset_samples(
    name_or_path: str, split: str, image_column: str | None = None, label_column: str | None = None
) -> tuple[list[str], Iterator[Encoded]]:
    """A split of anything `datasets.load_dataset` loads: from the Hub by name, or a local folder or Parquet file.

    The image column is the one of type Image, the label column the one of type ClassLabel, unless named; labels that
    are plain integers are named "0".."max", strings by themselves. InputError when columns are missing or ambiguous.
    """
    import datasets  # takes seconds to import

    table = _load(name_or_path, split)
    image_column = _column(table, image_column, datasets.Image, "image")
    label_column = _column(table, label_column, datasets.ClassLabel, "label")
    if not isinstance(table.features[image_column], datasets.Image):
        raise InputError(f"column {image_column!r} holds {table.features[image_column]}, not images")
    classes, ids = _classes(table, label_column)
    rows = table.select_columns([image_column, label_column]).cast_column(image_column, datasets.Image(decode=False))
    return classes, _rows(rows, split, image_column, label_column, ids)


def _load(name_or_path: str, split: str) -> Any:
    import datasets

    try:
        if name_or_path.endswith(".parquet"):
            return datasets.load_dataset("parquet", data_files={split: name_or_path}, split=split)
        return datasets.load_dataset(name_or_path, split=split)
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        raise InputError(f"dataset {name_or_path!r}, split {split!r}: {str(error).splitlines()[0]}") from error


def _column(table: Any, name: str | None, feature: type, what: str) -> str:
    if name is not None:
        if name not in table.features:
            raise unknown(f"{what} column", name, table.features)
        return name
    found = [column for column, kind in table.features.items() if isinstance(kind, feature)]
    if len(found) != 1:
        columns = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in table.features.items())
        raise InputError(
            f"{len(found)} columns of type {feature.__name__}; name the {what} column (choices: {columns})"
        )
    return found[0]


def _classes(table: Any, column: str) -> tuple[list[str], dict[Any, int]]:
    """The class names, and what stands in the column -> class id."""
    values = table.unique(column)
    if names := getattr(table.features[column], "names", None):
        return list(names), {value: value for value in values}
    if all(isinstance(value, str) for value in values):
        names = sorted(values)
        return names, {name: label for label, name in enumerate(names)}
    if not all(isinstance(value, int) and 0 <= value < MOST_CLASSES for value in values):
        raise InputError(f"column {column!r} holds {values[0]!r} ...; a label is a name or an id below {MOST_CLASSES}")
    return [str(label) for label in range(max(values, default=0) + 1)], {value: value for value in values}


def _rows(table: Any, split: str, image_column: str, label_column: str, ids: dict[Any, int]) -> Iterator[Encoded]:
    order = list(range(len(table)))
    random.Random(0).shuffle(order)
    stem = re.sub(r"[^\w-]+", "-", split)[:40]
    for i in order:
        row = table[i]
        cell, value = row[image_column], row[label_column]
        if cell is None or value is None:
            raise InputError(f"row {i} of split {split!r} lacks its {'image' if cell is None else 'label'}")
        image = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        yield f"{stem}-{i:08d}", *_suffixed(image, i), ids[value]


def _suffixed(image: bytes, row: int) -> tuple[bytes, str]:
    """JPEG, PNG and WebP bytes as they are, a few other formats as PNG."""
    for suffix, magic in (("jpg", b"\xff\xd8\xff"), ("png", b"\x89PNG\r\n\x1a\n"), ("webp", b"RIFF")):
        if image.startswith(magic):
            return image, suffix
    try:
        with Image.open(io.BytesIO(image), formats=OTHERS) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} is above {MOST_PIXELS} pixels")
            return _png(picture), "png"
    except Exception as error:  # whatever a broken file makes its reader raise
        raise InputError(f"row {row}: image cannot be read: {error}") from error


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.convert("RGB").save(file, "PNG")
    return file.getvalue()


def digits_samples(split: str, side: int = 16) -> tuple[list[str], Iterator[Encoded]]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 scaled to `side` (bilinear), RGB PNG; "test" is a fixed fifth."""
    if split not in ("train", "test"):
        raise unknown("split of the digits", split, ("train", "test"))
    if side < 1:
        raise InputError(f"side {side} is below 1 pixel")
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = sorted(range(len(digits.target)), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    chosen: list[int] = []
    for label in range(10):
        rows = [i for i in order if digits.target[i] == label]
        fifth = len(rows) // 5
        chosen += rows[:fifth] if split == "test" else rows[fifth:]
    random.Random(0).shuffle(chosen)
    return [str(label) for label in range(10)], (
        (f"digit-{i:04d}", _digit(digits.images[i], side), "png", int(digits.target[i])) for i in chosen
    )


def _digit(grey_HW: Any, side: int) -> bytes:
    """PNG of a digit whose values run from 0 to 16."""
    picture = Image.fromarray((grey_HW * 255 / 16).round().astype("uint8"))
    return _png(picture.resize((side, side), Image.Resampling.BILINEAR))


# Whether shards are sound


def check(patterns: Sequence[str], *, quarantine: Quarantine, track: Track = untracked) -> list[str]:
    """Every problem of the shards as one line, none when they are sound: they are read whole and each image is decoded.

    Compares with an index.json beside them. Faulty samples go to the quarantine and are problems when they are more
    than it tolerates. InputError only for patterns that match nothing.
    """
    urls = expand(patterns)
    try:
        by_name, index = distinct(urls), read_index(urls)
        names = index.classes if index else class_names(urls)
    except InputError as error:
        return [str(error)]
    problems = _missing(by_name, index)
    collected, pixels, counts = Quarantine(sys.maxsize), PixelStatistics(), Counter[int]()
    for url in track(urls, "checking shards", len(urls)):
        try:
            entry = scan_shard(url, len(names) if names else MOST_CLASSES, collected, pixels, counts)
        except InputError as error:
            problems.append(str(error))
        else:
            problems += _differences(entry, index)
    quarantine.found += collected.found
    if len(collected.found) > quarantine.limit:
        problems += map(str, collected.found)
    if index and not problems and len(by_name) == len(index.shards):
        problems += _miscounts(index, counts)
    return problems


def _missing(by_name: dict[str, str], index: ShardIndex | None) -> list[str]:
    folder = folder_of(next(iter(by_name.values())))
    names = [entry.name for entry in index.shards if entry.name not in by_name] if index else []
    problems = []
    for name in names:
        try:
            size_of(f"{folder}/{name}")
        except InputError:
            problems.append(f"{INDEX} lists {name!r}, which is not there")
    return problems


def _differences(entry: ShardEntry, index: ShardIndex | None) -> list[str]:
    if index is None:
        return []
    listed = next((other for other in index.shards if other.name == entry.name), None)
    if listed is None:
        return [f"shard {entry.name!r} is not listed in {INDEX}"]
    found, expected = entry.model_dump(), listed.model_dump()
    return [
        f"shard {entry.name!r}: {what} {found[what]}, {INDEX} says {expected[what]}"
        for what in ("bytes", "sha256")
        if found[what] != expected[what]
    ]


def _miscounts(index: ShardIndex, counts: Counter[int]) -> list[str]:
    return [
        f"class {name!r} has {counts[label]} images, {INDEX} says {listed}"
        for label, (name, listed) in enumerate(zip(index.classes, index.samples_per_class, strict=True))
        if counts[label] != listed
    ]
