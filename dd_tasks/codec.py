"""Soft labels as they are published: labelled views <-> the table `soft_labels`, and the views seen again.

Two codecs: `exact` (`dd_tasks.exact`; columns: `schemas.tables.ViewRow`), one row a view and a float16 logit per class;
and `compact` (`dd_tasks.compact`; columns: `schemas.tables.GroupRow`), few bytes a view.

Shape letters: N images, V labelled views, K classes, C channels, S side.
"""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset

from dd_tasks import compact, exact
from dd_tasks.augment import show
from dd_tasks.compact import Coding
from dd_tasks.decoding import decode_whole
from dd_tasks.errors import InputError
from dd_tasks.types import Views
from dd_tasks.visible import legible

CHUNK = 128  # views of a stream that are made together
Codec = Literal["exact", "compact"]


@dataclass(frozen=True)
class Labels:
    """The table `soft_labels` of N images at `side`, and `soft_NK`, the soft label of each image as a whole; `coding`
    where the table is compact."""

    table: pa.Table
    soft_NK: Tensor
    side: int
    coding: Coding | None = None

    @property
    def codec(self) -> Codec:
        return "compact" if self.coding else "exact"

    @cached_property
    def views(self) -> Views:
        """What the table says, in the order of its rows: what students train on."""
        return views_of(self.table, self.soft_NK, self.side)

    @property
    def parquet(self) -> dict[str, Any]:
        """How its files are written."""
        return compact.PARQUET if self.coding else exact.PARQUET

    def to_bytes(self) -> bytes:
        """The table as one Parquet file."""
        file = io.BytesIO()
        pq.write_table(self.table, file, **self.parquet)
        return file.getvalue()


def whole(views: Views, targets_N: Tensor, side: int) -> Labels:
    """The views as they are."""
    soft_NK = mean_probabilities(views, targets_N, views.logits_VK.shape[1])
    return Labels(exact.encode(views), soft_NK, side)


def fitted(views: Views, n: int, side: int, budget: int) -> Labels:
    """Compact labels of views drawn in groups, in at most `budget` bytes. InputError where these hold no epoch."""
    soft_NK = compact.fit(views, n, side)
    coding = compact.choose(views, soft_NK, side, budget)
    return Labels(compact.encode(views, soft_NK, coding, side), soft_NK, side, coding)


def views_of(table: pa.Table, soft_NK: Tensor, side: int) -> Views:
    """The views of a table of either codec. InputError for columns that are missing or of another type."""
    return compact.decode(table, soft_NK, side) if codec_of(table) == "compact" else exact.decode(table)


def codec_of(table: pa.Table) -> Codec:
    return "compact" if "codes" in table.column_names else "exact"


def label_schema(codec: Codec, classes: int, top: int | None = None) -> pa.Schema:
    """Column names and types of the table `soft_labels`."""
    return exact.view_schema(classes) if codec == "exact" else compact.compact_schema(top == classes)


def mean_probabilities(views: Views, targets_N: Tensor, classes: int, chunk: int = 65536) -> Tensor:
    """float32 probabilities_NK: of each image the mean over its views of softmax(logits); one-hot where it has none."""
    total = torch.zeros(len(targets_N), classes, dtype=torch.float64)
    images = views.images_V.long().cpu()
    for start in range(0, len(views), chunk):
        logits = views.logits_VK[start : start + chunk].cpu().double()
        total.index_add_(0, images[start : start + chunk], logits.softmax(1))
    seen = torch.bincount(images, minlength=len(targets_N))[:, None]
    return torch.where(seen > 0, total / seen.clamp_min(1), F.one_hot(targets_N, classes)).float()


Seen = tuple[Tensor, Tensor]


class Rows(Protocol):
    """A table as `datasets.load_dataset` gives it, at hand or streamed."""

    def with_format(self, kind: str) -> Any: ...


def replay(images: Rows, soft_labels: Rows, epochs: int | None = None) -> "Replay | Stream":
    """(view_CSS, logits_K), float32, views in [0, 1], as the committee saw and labelled them.

    `images` and `soft_labels` are the configs of these names, as `load_dataset(NAME, ..., split="train")` opens them.
    Of `epochs` passes over the images (default: the stored ones) those beyond the stored ones cycle. At hand, views
    come in any order, batch size and number of workers. With `streaming=True` they come in the order of the rows:
    `soft_labels.shuffle(...)` shuffles these. InputError for other tables.
    """
    with _readable("images"):
        pixels_NCSS, soft_NK = _images(images.with_format("arrow"))
    labels = soft_labels.with_format("arrow")
    if hasattr(labels, "__len__"):
        with _readable("soft_labels"):
            return Replay(pixels_NCSS, _views(_table(labels[:]), pixels_NCSS, soft_NK), epochs)
    return Stream(pixels_NCSS, soft_NK, labels, epochs)


@contextmanager
def _readable(table: str) -> Iterator[None]:
    """What a broken table makes its readers raise, as an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{table}: cannot be read: {legible(str(error)) or type(error).__name__}") from error


def _views(table: pa.Table, pixels_NCSS: Tensor, soft_NK: Tensor) -> Views:
    """The views of a table. InputError for one that shows what the images have not."""
    n, side = len(pixels_NCSS), pixels_NCSS.shape[-1]
    views = views_of(table, soft_NK, side)
    mixed = views[views.mix_boxes_V4[:, 2] != 0]
    for images_V in (views.images_V, views.partners_V):
        if len(images_V) and not 0 <= int(images_V.min()) <= int(images_V.max()) < n:
            raise InputError(f"soft_labels: images {int(images_V.min())}..{int(images_V.max())} of {n} are shown")
    for boxes_V4 in (views.crops.boxes_N4, mixed.partner_crops.boxes_N4, mixed.mix_boxes_V4.long()):
        corner_V2, size_V2 = boxes_V4[:, :2], boxes_V4[:, 2:]
        if bool(((corner_V2 < 0) | (size_V2 < 1) | (corner_V2 + size_V2 > side)).any()):
            raise InputError(f"soft_labels: a crop or a mix box is not inside of {side} x {side} pixels")
    return views


def _images(images: Any) -> tuple[Tensor, Tensor]:
    """pixels_NCSS in [0, 1], and soft_NK."""
    table = _table(images[:]) if hasattr(images, "__len__") else pa.concat_tables(map(_table, images))
    if missing := {"image", "soft_label"} - set(table.column_names):
        raise InputError(f"images: no column {min(missing)} (there are {', '.join(table.column_names)})")
    files = pc.struct_field(table["image"], "bytes").to_pylist()
    pixels_NCSS = torch.stack([decode_whole(file) for file in files]).float() / 255
    return pixels_NCSS, torch.from_numpy(np.stack(table["soft_label"].to_numpy()).astype(np.float32))


def _table(part: Any) -> pa.Table:
    return part if isinstance(part, pa.Table) else pa.Table.from_batches([part])


class Replay(Dataset[Seen]):
    """The views at hand; item i is view i of the table, and what lies beyond its end begins again."""

    def __init__(self, pixels_NCSS: Tensor, views: Views, epochs: int | None) -> None:
        self.pixels_NCSS, self.views = pixels_NCSS, views
        self.length = len(views) if epochs is None else epochs * len(pixels_NCSS)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Seen:
        return self.__getitems__([i])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Seen]:
        if not all(-self.length <= i < self.length for i in rows):
            raise IndexError(f"row {min(rows)}..{max(rows)} of {self.length}")
        rows_V = torch.tensor([i % self.length for i in rows]) % len(self.views)
        seen_VCSS = show(self.pixels_NCSS, self.views, rows_V)
        return list(zip(seen_VCSS, self.views.logits_VK[rows_V].float(), strict=True))


class Stream(IterableDataset[Seen]):
    """The views of a streamed table, in the order of its rows; the images are at hand."""

    def __init__(self, pixels_NCSS: Tensor, soft_NK: Tensor, labels: Any, epochs: int | None) -> None:
        self.pixels_NCSS, self.soft_NK, self.labels, self.epochs = pixels_NCSS, soft_NK, labels, epochs

    def __iter__(self) -> Iterator[Seen]:
        n = len(self.pixels_NCSS)
        left = math.inf if self.epochs is None else self.epochs * n
        while left > 0:
            before = left
            for table in _chunks(map(_table, self.labels)):
                with _readable("soft_labels"):
                    views = _views(table, self.pixels_NCSS, self.soft_NK)
                views = views[: int(min(left, len(views)))]
                yield from zip(show(self.pixels_NCSS, views, slice(None)), views.logits_VK.float(), strict=True)
                if (left := left - len(views)) <= 0:
                    return
            if self.epochs is None or left == before:
                return


def _chunks(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Rows of exact labels, some at a time; a row of compact ones is many views already."""
    while some := list(islice(rows, 1)):
        if codec_of(some[0]) == "exact":
            some += islice(rows, CHUNK - 1)
        yield pa.concat_tables(some)
