"""Compact soft labels: few bytes a view, by what the views of an image have in common.

The committee's logits of a view are near the mix, by area, of two images' own logits, and these are `soft_NK`, one soft
label an image, which the table `images` has anyway. What is left over is rounded to multiples of a step, for the `top`
classes where the committee's logits are highest. The views of a group share crop, flip and mix box
(`label.Drawn.group`), so these are named once a row. Of the epochs drawn as many are kept, evenly spaced, as a budget
allows.

Shape letters: N images, V labelled views (R rows of M images each), K classes, T the top ones, G groups.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from dd_tasks.augment import own_share
from dd_tasks.columns import BOX, MIX_BOX, by_edge, column, tensor
from dd_tasks.errors import InputError
from dd_tasks.types import Crops, Views

GROUP = 100
RIDGE = 0.1  # keeps an image that hardly shows near the mean
LARGEST = 127  # code
LEAST = 2.0**-149  # probability, the least float32 above 0, which has a logarithm
COARSEST, FINEST = 1.35, 0.05  # steps, in standard deviations of what is left over
FEWEST = 10  # top classes
SAMPLE = 16  # epochs, whose bytes tell those of all
PARQUET = {
    "compression": "brotli", "compression_level": 11, "use_dictionary": False, "write_statistics": False,
    "store_schema": False,
}  # fmt: skip


@dataclass(frozen=True)
class Coding:
    """How much is kept: of every view the logits of `top` classes, to the nearest multiple of `step`; and how many
    epochs."""

    top: int
    step: float
    epochs: int


def compact_schema(every_class: bool) -> pa.Schema:
    """Column names and types; there are no `classes` where the codes are of all of them in order."""
    return pa.schema(
        [
            ("epoch", pa.int16()),
            ("first", pa.int32()),
            ("count", pa.int16()),
            ("ahead", pa.int16()),
            *((name, pa.int16()) for name in BOX),
            ("flip", pa.bool_()),
            *((name, pa.int16()) for name in MIX_BOX),
            ("step", pa.float32()),
            *([] if every_class else [("classes", pa.list_(pa.int16()))]),
            ("codes", pa.binary()),
        ]
    )


def own_logits(soft_NK: Tensor) -> Tensor:
    """float32 logits_NK of the images themselves, of mean zero: what `soft_NK` is the softmax of."""
    logits_NK = soft_NK.float().clamp_min(LEAST).log()
    return logits_NK - logits_NK.mean(1, keepdim=True)


def mixed_logits(views: Views, own_NK: Tensor, side: int) -> Tensor:
    """logits_VK by area: of the image itself, and of its partner where that covers it."""
    share_V1 = own_share(views.mix_boxes_V4, side)[:, None]
    return share_V1 * own_NK[views.images_V.long()] + (1 - share_V1) * own_NK[views.partners_V.long()]


def fit(views: Views, n: int, side: int) -> Tensor:
    """float32 soft_NK: the softmax of the logits_NK whose mixes come nearest to the views' logits (least squares within
    each group)."""
    groups, k = -(-n // GROUP), views.logits_VK.shape[1]
    normal_GMM = (RIDGE * torch.eye(GROUP, dtype=torch.float64)).repeat(groups, 1, 1)
    wanted_NK = torch.zeros(groups * GROUP, k, dtype=torch.float64)
    mean_K = views.logits_VK.float().mean(0)
    for part in _epochs(views, n):
        own_V = own_share(part.mix_boxes_V4, side).double()
        both = ((part.images_V.long(), own_V), (part.partners_V.long(), 1 - own_V))
        for images_V, share_V in both:
            wanted_NK.index_add_(0, images_V, share_V[:, None] * (part.logits_VK.float() - mean_K))
            for others_V, other_V in both:
                at = (images_V // GROUP, images_V % GROUP, others_V % GROUP)
                normal_GMM.index_put_(at, share_V * other_V, accumulate=True)
    own_NK = torch.linalg.solve(normal_GMM, wanted_NK.view(groups, GROUP, k)).reshape(-1, k)[:n]
    return (own_NK + mean_K).softmax(1).float().clamp_min(LEAST)


def _epochs(views: Views, n: int) -> Iterator[Views]:
    return (views[start : start + n] for start in range(0, len(views), n))


def pruned(views: Views, epochs: int) -> Views:
    """`epochs` of them, evenly spaced, numbered anew."""
    drawn = int(views.epochs_V.max()) + 1
    number = torch.full((drawn,), -1, dtype=torch.int32)
    number[[i * drawn // epochs for i in range(epochs)]] = torch.arange(epochs, dtype=torch.int32)
    kept = replace(views, epochs_V=number[views.epochs_V.long()])
    return kept[kept.epochs_V >= 0]


def encode(views: Views, soft_NK: Tensor, coding: Coding, side: int) -> pa.Table:
    """The views, of the epochs that `coding` keeps, as a table of `compact_schema`.

    InputError where the views of a group have not crop, flip, mix box and distance to the partner in common.
    """
    n, k = soft_NK.shape
    views = pruned(views, coding.epochs)
    firsts_R, counts_R = _rows(len(views), n)
    one = views[firsts_R]
    ahead_R = (one.partners_V - one.images_V).long() % counts_R
    if not _shared(views, one, ahead_R, counts_R):
        raise InputError(f"compact labels need views drawn in groups of {GROUP} (labeller.group={GROUP}); or use exact")
    left_VK = (views.logits_VK.float() - mixed_logits(views, own_logits(soft_NK), side)) / coding.step
    columns = {
        "epoch": one.epochs_V,
        "first": one.images_V,
        "count": counts_R,
        "ahead": ahead_R,
        **by_edge(BOX, one.crops.boxes_N4),
        "flip": one.crops.flips_N,
        **by_edge(MIX_BOX, one.mix_boxes_V4),
        "step": torch.full((len(one),), coding.step),
    }
    schema = compact_schema(coding.top == k)
    arrays = [column(name, values, schema.field(name).type) for name, values in columns.items()]
    if coding.top < k:
        classes_VT = views.logits_VK.float().topk(coding.top).indices
        left_VK = left_VK.gather(1, classes_VT)
        starts = np.append(firsts_R.numpy() * coding.top, classes_VT.numel()).astype(np.int32)
        arrays.append(pa.ListArray.from_arrays(pa.array(starts), pa.array(classes_VT.flatten().short().numpy())))
    codes_VT = left_VK.round().clamp(-LARGEST, LARGEST).to(torch.int8).numpy()
    ends = [*firsts_R.tolist(), len(views)]
    arrays.append(pa.array([codes_VT[a:b].tobytes() for a, b in pairwise(ends)], pa.binary()))
    return pa.Table.from_arrays(arrays, schema=schema)


def _rows(v: int, n: int) -> tuple[Tensor, Tensor]:
    """Of each row the number of its first view, and how many views it has."""
    starts = torch.arange(0, n, GROUP)
    firsts_R = (torch.arange(0, v, n)[:, None] + starts).reshape(-1)
    return firsts_R, (n - starts).clamp_max(GROUP).repeat(v // n)


def _shared(views: Views, one: Views, ahead_R: Tensor, counts_R: Tensor) -> bool:
    row_V = torch.repeat_interleave(torch.arange(len(one)), counts_R)
    again = _spread(one, ahead_R, counts_R, views.logits_VK)
    return all(
        torch.equal(a, b)
        for a, b in (
            (views.epochs_V, one.epochs_V[row_V]),
            (views.images_V, again.images_V),
            (views.partners_V, again.partners_V),
            (views.mix_boxes_V4, again.mix_boxes_V4),
            *((crops.boxes_N4, again.crops.boxes_N4) for crops in (views.crops, views.partner_crops)),
            *((crops.flips_N, again.crops.flips_N) for crops in (views.crops, views.partner_crops)),
        )
    )


def _spread(one: Views, ahead_R: Tensor, counts_R: Tensor, logits_VK: Tensor) -> Views:
    """All views of the rows, from the first of each."""
    row_V = torch.repeat_interleave(torch.arange(len(one)), counts_R)
    place_V = torch.arange(len(row_V)) - (counts_R.cumsum(0) - counts_R)[row_V]
    first_V = one.images_V[row_V]
    partners_V = first_V + ((place_V + ahead_R[row_V]) % counts_R[row_V]).int()
    crops = one.crops[row_V]
    return Views(
        one.epochs_V[row_V], first_V + place_V.int(), crops, partners_V, crops, one.mix_boxes_V4[row_V], logits_VK
    )


def decode(table: pa.Table, soft_NK: Tensor, side: int) -> Views:
    """The views of a table made by `encode`, as `soft_NK`, the column `soft_label` of the images, completes them."""
    k, every_class = soft_NK.shape[1], "classes" not in table.column_names
    counts_R = tensor(table, "count", torch.int64)
    crops = Crops(tensor(table, BOX, torch.int64), tensor(table, "flip", torch.bool))
    first_R, none = tensor(table, "first", torch.int32), torch.zeros(len(table), 0)
    one = Views(
        tensor(table, "epoch", torch.int32), first_R, crops, first_R, crops, tensor(table, MIX_BOX, torch.int16), none
    )
    views = _spread(one, tensor(table, "ahead", torch.int64), counts_R, none)
    steps_V1 = tensor(table, "step", torch.float32).repeat_interleave(counts_R)[:, None]
    codes = np.frombuffer(b"".join(table["codes"].to_pylist()), np.int8).copy()
    left_VT = steps_V1 * torch.from_numpy(codes).reshape(len(views), -1)
    if not every_class:
        flat = table["classes"].combine_chunks().flatten().to_numpy()
        classes_VT = torch.from_numpy(flat.astype(np.int64)).view_as(left_VT)
        left_VT = torch.zeros(len(views), k).scatter_(1, classes_VT, left_VT)
    return replace(views, logits_VK=(mixed_logits(views, own_logits(soft_NK), side) + left_VT).half())


def size(views: Views, soft_NK: Tensor, coding: Coding, side: int) -> int:
    """Bytes of the Parquet file that the table of the views makes."""
    file = io.BytesIO()
    pq.write_table(encode(views, soft_NK, coding, side), file, **PARQUET)
    return len(file.getvalue())


def choose(views: Views, soft_NK: Tensor, side: int, budget: int) -> Coding:
    """The coding of at most `budget` bytes: all epochs and the finest step that fits; where even the coarsest does not,
    that, and as many epochs as fit. InputError where not one does."""
    n, drawn = len(soft_NK), len(views) // len(soft_NK)
    sample = pruned(views, min(drawn, SAMPLE))
    left_VK = sample.logits_VK.float() - mixed_logits(sample, own_logits(soft_NK), side)
    chosen = None
    for coding in _codings(left_VK, drawn):
        fitting = _epochs_within(budget, sample, soft_NK, coding, side)
        chosen = chosen or replace(coding, epochs=min(max(fitting, 1), drawn))
        if fitting < drawn:
            break
        chosen = coding
    assert chosen is not None
    if chosen.epochs < drawn:
        needed = size(views, soft_NK, chosen, side)
        chosen = replace(chosen, epochs=min(max(chosen.epochs * budget // needed, 1), drawn))
    while (needed := size(views, soft_NK, chosen, side)) > budget and chosen.epochs > 1:
        chosen = replace(chosen, epochs=chosen.epochs - max(1, chosen.epochs // 100))
    if needed > budget:
        raise InputError(
            f"{budget / n:.0f} label bytes per image: one epoch of labels takes {-(-needed // n)}; "
            "allow more (--label-bytes-per-image N), or take exact ones (--codec exact)"
        )
    return chosen


def _codings(left_VK: Tensor, epochs: int) -> Iterator[Coding]:
    """From coarse to fine, for what is rounded, as far as a code can tell the largest of it."""
    spread, classes = max(float(left_VK.std()), 1e-3), left_VK.shape[1]
    finest = max(FINEST * spread, float(left_VK.abs().max()) / LARGEST)
    step, finer = COARSEST * spread, 1.0
    while finer == 1 or step / finer > finest:
        yield Coding(min(classes, round(FEWEST * finer)), float(np.float32(max(step / finer, finest))), epochs)
        finer *= 2**0.5


def _epochs_within(budget: int, sample: Views, soft_NK: Tensor, coding: Coding, side: int) -> int:
    """How many epochs `budget` bytes hold, by the bytes of a sample of them."""
    most = len(sample) // len(soft_NK)
    few = max(1, most // 2)
    all_bytes, few_bytes = (size(sample, soft_NK, replace(coding, epochs=e), side) for e in (most, few))
    each = (all_bytes - few_bytes) / (most - few) if most > few else all_bytes
    return int((budget - all_bytes) / each) + most
