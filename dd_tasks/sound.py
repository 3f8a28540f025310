"""Which rows of the table `soft_labels` cannot be: masks over the rows, each with what is wrong there.

Shape letters: R rows, V labelled views.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dd_tasks.codec import codec_of
from dd_tasks.columns import BOX, MIX_BOX, PARTNER_BOX, numbers
from schemas.manifest import Manifest

Wrong = tuple[np.ndarray, str]


def wrong_labels(table: pa.Table, manifest: Manifest) -> Iterator[Wrong]:
    """(mask_R, what) for everything that is wrong with rows of either codec."""
    yield from (_wrong_groups if codec_of(table) == "compact" else _wrong_views)(table, manifest)


def shown(table: pa.Table, manifest: Manifest) -> np.ndarray:
    """(epoch, image)_V2 of every view of the table."""
    if codec_of(table) == "exact":
        return np.stack([numbers(table, "epoch"), numbers(table, "image")], 1).astype(np.int64)
    counts = np.clip(numbers(table, "count").astype(np.int64), 0, manifest.labels.views)
    place = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    first, epoch = (np.repeat(numbers(table, name).astype(np.int64), counts) for name in ("first", "epoch"))
    return np.stack([epoch, first + place], 1)


def _images(manifest: Manifest) -> int:
    return manifest.ipc * len(manifest.classes)


def _outside(table: pa.Table, box: tuple[str, ...], side: int) -> np.ndarray:
    top, left, height, width = (numbers(table, edge).astype(np.int64) for edge in box)
    return (top < 0) | (left < 0) | (height < 1) | (width < 1) | (top + height > side) | (left + width > side)


def _wrong_boxes(table: pa.Table, boxes: dict[str, tuple[str, ...]], side: int) -> Iterator[Wrong]:
    mixed = numbers(table, "mix_height") != 0
    for name, box in boxes.items():
        counts = True if box is BOX else mixed
        yield counts & _outside(table, box, side), f"{name} is not inside of {side} x {side} pixels"


def _wrong_views(table: pa.Table, manifest: Manifest) -> Iterator[Wrong]:
    images = _images(manifest)
    for name in ("image", "partner"):
        found = numbers(table, name)
        yield (found < 0) | (found >= images), f"{name} is not within 0..{images - 1}"
    boxes = {"crop": BOX, "partner's crop": PARTNER_BOX, "mix box": MIX_BOX}
    yield from _wrong_boxes(table, boxes, manifest.side)
    yield ~np.isfinite(numbers(table, "logits")).all(1), "logits are not finite"


def _wrong_groups(table: pa.Table, manifest: Manifest) -> Iterator[Wrong]:
    images, top = _images(manifest), manifest.labels.top or 0
    first, count, ahead = (numbers(table, name).astype(np.int64) for name in ("first", "count", "ahead"))
    yield (first < 0) | (count < 1) | (first + count > images), f"images are not within 0..{images - 1}"
    yield (ahead < 0) | (ahead >= np.maximum(count, 1)), "ahead is not within 0..count - 1"
    yield from _wrong_boxes(table, {"crop": BOX, "mix box": MIX_BOX}, manifest.side)
    step = numbers(table, "step")
    yield ~np.isclose(step, manifest.labels.step or 0), f"step is not {manifest.labels.step}"
    lengths = pc.binary_length(table["codes"]).to_numpy()
    yield lengths != count * top, f"codes are not {top} for each image"
    if "classes" in table.column_names:
        yield from _wrong_classes(table, count * top, manifest)


def _wrong_classes(table: pa.Table, wanted_R: np.ndarray, manifest: Manifest) -> Iterator[Wrong]:
    classes, top = len(manifest.classes), manifest.labels.top or 1
    lengths = pc.list_value_length(table["classes"]).to_numpy()
    yield lengths != wanted_R, f"classes are not {top} for each image"
    found = pc.list_flatten(table["classes"]).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(found)) - np.repeat(lengths.cumsum() - lengths, lengths)
    views = np.stack([row, place // top, found], 1)
    _, first = np.unique(views, axis=0, return_index=True)
    for wrong, what in (
        ((found < 0) | (found >= classes), f"a class is not within 0..{classes - 1}"),
        (np.isin(np.arange(len(found)), first, invert=True), "a class stands twice in one view"),
    ):
        yield np.isin(np.arange(len(lengths)), row[wrong]), what
