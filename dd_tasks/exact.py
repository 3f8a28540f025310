"""Exact soft labels: one row a labelled view, one float16 logit per class. The columns are those of
`schemas.tables.ViewRow`.

Shape letters: V labelled views, K classes.
"""

import numpy as np
import pyarrow as pa
import torch

from dd_tasks.columns import BOX, MIX_BOX, PARTNER_BOX, by_edge, column, tensor
from dd_tasks.errors import InputError
from dd_tasks.types import Crops, Views

PARQUET = {"compression": "zstd", "write_page_index": True, "row_group_size": 8192}


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


def encode(views: Views) -> pa.Table:
    """The views as a table of `view_schema(K)`, sorted by (epoch, image), equal ones in their order in `views`.

    Raises InputError for a number that its column cannot hold.
    """
    schema = view_schema(views.logits_VK.shape[1])
    columns = {
        "image": views.images_V,
        "epoch": views.epochs_V,
        **by_edge(BOX, views.crops.boxes_N4),
        "flip": views.crops.flips_N,
        "partner": views.partners_V,
        **by_edge(PARTNER_BOX, views.partner_crops.boxes_N4),
        "partner_flip": views.partner_crops.flips_N,
        **by_edge(MIX_BOX, views.mix_boxes_V4),
    }
    order = np.lexsort((views.images_V.cpu().numpy(), views.epochs_V.cpu().numpy()))
    order_V = torch.from_numpy(order)
    arrays = [column(name, values.cpu()[order_V], schema.field(name).type) for name, values in columns.items()]
    logits = views.logits_VK.to("cpu", torch.float16)[order_V].contiguous().numpy()
    arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(logits.reshape(-1)), logits.shape[1]))
    return pa.Table.from_arrays(arrays, schema=schema)


def decode(table: pa.Table) -> Views:
    """The views of a table made by `encode`, in the order of its rows.

    Raises InputError for columns that are missing or of another type.
    """
    classes = getattr(table.schema.field("logits").type, "list_size", 0) if "logits" in table.column_names else 0
    if not table.schema.equals(view_schema(classes)):
        raise InputError(f"soft_labels: columns {table.schema.names} or their types are not those of labelled views")
    return Views(
        epochs_V=tensor(table, "epoch", torch.int32),
        images_V=tensor(table, "image", torch.int32),
        crops=Crops(tensor(table, BOX, torch.int64), tensor(table, "flip", torch.bool)),
        partners_V=tensor(table, "partner", torch.int32),
        partner_crops=Crops(tensor(table, PARTNER_BOX, torch.int64), tensor(table, "partner_flip", torch.bool)),
        mix_boxes_V4=tensor(table, MIX_BOX, torch.int16),
        logits_VK=tensor(table, "logits", torch.float16),
    )
