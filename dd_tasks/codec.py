"""Labelled views <-> columns of the table `soft_labels`: exact, one float16 logit per class and view.

Shape letters: V labelled views, K classes. The columns are those of `schemas.tables.ViewRow`.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from dd_tasks.errors import InputError
from dd_tasks.types import Crops, Views

BOX = ("top", "left", "height", "width")
MIX_BOX = tuple(f"mix_{side}" for side in BOX)
PARTNER_BOX = tuple(f"partner_{side}" for side in BOX)


def view_schema(classes: int) -> pa.Schema:
    """Column names and types of a table of views with `classes` logits each."""
    return pa.schema(
        [
            ("image", pa.int32()),
            ("epoch", pa.int16()),
            *((name, pa.int16()) for name in BOX),
            ("flip", pa.bool_()),
            ("partner", pa.int32()),
            *((name, pa.int16()) for name in PARTNER_BOX),
            ("partner_flip", pa.bool_()),
            *((name, pa.int16()) for name in MIX_BOX),
            ("logits", pa.list_(pa.float16(), classes)),
        ]
    )


def _column(name: str, values_V: Tensor, kind: pa.DataType) -> pa.Array:
    """One arrow column; InputError where a number does not fit."""
    values = values_V.cpu().numpy()
    if pa.types.is_integer(kind) and len(values):
        limits = np.iinfo(kind.to_pandas_dtype())
        if values.min() < limits.min or values.max() > limits.max:
            raise InputError(f"views: {name} {values.min()}..{values.max()} does not fit {limits.min}..{limits.max}")
    return pa.array(values.astype(kind.to_pandas_dtype(), copy=False), kind)


def _boxes(names: tuple[str, ...], boxes_V4: Tensor) -> dict[str, Tensor]:
    return dict(zip(names, boxes_V4.unbind(1), strict=True))


def views_to_table(views: Views) -> pa.Table:
    """The views as a table of `view_schema(K)`, sorted by (epoch, image), equal ones in their order in `views`.

    Raises InputError for a number that its column cannot hold.
    """
    schema = view_schema(views.logits_VK.shape[1])
    columns = {
        "image": views.images_V,
        "epoch": views.epochs_V,
        **_boxes(BOX, views.crops.boxes_N4),
        "flip": views.crops.flips_N,
        "partner": views.partners_V,
        **_boxes(PARTNER_BOX, views.partner_crops.boxes_N4),
        "partner_flip": views.partner_crops.flips_N,
        **_boxes(MIX_BOX, views.mix_boxes_V4),
    }
    order = np.lexsort((views.images_V.cpu().numpy(), views.epochs_V.cpu().numpy()))
    order_V = torch.from_numpy(order)
    arrays = [_column(name, column.cpu()[order_V], schema.field(name).type) for name, column in columns.items()]
    logits = views.logits_VK.to("cpu", torch.float16)[order_V].contiguous().numpy()
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1]))
    return pa.Table.from_arrays(arrays, schema=schema)


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers or booleans without nulls; lists of one length become a second dimension."""
    kind = table.schema.field(name).type
    if not pa.types.is_fixed_size_list(kind):
        return table[name].to_numpy()
    flat = pc.list_flatten(table[name]).to_numpy()
    return flat.reshape(-1, kind.list_size)


def _tensor(table: pa.Table, names: str | tuple[str, ...], dtype: torch.dtype) -> Tensor:
    if isinstance(names, str):
        return torch.from_numpy(numbers(table, names).copy()).to(dtype)
    return torch.stack([_tensor(table, name, dtype) for name in names], 1)


def table_to_views(table: pa.Table) -> Views:
    """The views of a table made by `views_to_table`, in the order of its rows.

    Raises InputError for columns that are missing or of another type.
    """
    classes = getattr(table.schema.field("logits").type, "list_size", 0) if "logits" in table.column_names else 0
    if not table.schema.equals(view_schema(classes)):
        raise InputError(f"soft_labels: columns {table.schema.names} or their types are not those of labelled views")
    return Views(
        epochs_V=_tensor(table, "epoch", torch.int32),
        images_V=_tensor(table, "image", torch.int32),
        crops=Crops(_tensor(table, BOX, torch.int64), _tensor(table, "flip", torch.bool)),
        partners_V=_tensor(table, "partner", torch.int32),
        partner_crops=Crops(_tensor(table, PARTNER_BOX, torch.int64), _tensor(table, "partner_flip", torch.bool)),
        mix_boxes_V4=_tensor(table, MIX_BOX, torch.int16),
        logits_VK=_tensor(table, "logits", torch.float16),
    )
