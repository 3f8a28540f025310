"""Tensors <-> columns of numbers in a Parquet table. Shape letters: V rows."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from dd_tasks.errors import InputError

BOX = ("top", "left", "height", "width")
MIX_BOX = tuple(f"mix_{side}" for side in BOX)
PARTNER_BOX = tuple(f"partner_{side}" for side in BOX)


def column(name: str, values_V: Tensor, kind: pa.DataType) -> pa.Array:
    """One arrow column; InputError where a number does not fit."""
    values = values_V.cpu().numpy()
    if pa.types.is_integer(kind) and len(values):
        limits = np.iinfo(kind.to_pandas_dtype())
        if values.min() < limits.min or values.max() > limits.max:
            raise InputError(f"views: {name} {values.min()}..{values.max()} does not fit {limits.min}..{limits.max}")
    return pa.array(values.astype(kind.to_pandas_dtype(), copy=False), kind)


def by_edge(names: tuple[str, ...], boxes_V4: Tensor) -> dict[str, Tensor]:
    """The four columns of boxes."""
    return dict(zip(names, boxes_V4.unbind(1), strict=True))


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers or booleans without nulls; lists of one length become a second dimension."""
    kind = table.schema.field(name).type
    if not pa.types.is_fixed_size_list(kind):
        return table[name].to_numpy()
    flat = pc.list_flatten(table[name]).to_numpy()
    return flat.reshape(-1, kind.list_size)


def tensor(table: pa.Table, names: str | tuple[str, ...], dtype: torch.dtype) -> Tensor:
    """One column, or several side by side."""
    if isinstance(names, str):
        return torch.from_numpy(numbers(table, names).copy()).to(dtype)
    return torch.stack([tensor(table, name, dtype) for name in names], 1)
