"""Views <-> columns, without loss."""

from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from dd_tasks.errors import InputError
from dd_tasks.exact import decode, encode, view_schema
from dd_tasks.types import Crops, Views
from schemas.tables import ViewRow


def random_views(count: int, classes: int = 5) -> Views:
    rng = torch.Generator().manual_seed(0)

    def draw(*shape: int, below: int = 1000) -> torch.Tensor:
        return torch.randint(0, below, shape, generator=rng)

    crops = [Crops(draw(count, 4), draw(count, below=2).bool()) for _ in range(2)]
    logits = torch.randn(count, classes, generator=rng).half()
    epochs, images, partners = draw(count, below=3).int(), draw(count, below=4).int(), draw(count).int()
    return Views(epochs, images, crops[0], partners, crops[1], draw(count, 4).short(), logits)


def tensors(views: Views) -> list[torch.Tensor]:
    crops = [views.crops.boxes_N4, views.crops.flips_N, views.partner_crops.boxes_N4, views.partner_crops.flips_N]
    return [views.epochs_V, views.images_V, views.partners_V, views.mix_boxes_V4, views.logits_VK, *crops]


@pytest.mark.parametrize("count", [0, 1, 50])
def test_there_and_back(count: int) -> None:
    views = random_views(count)
    order = sorted(range(count), key=lambda v: (views.epochs_V[v].item(), views.images_V[v].item()))
    back = decode(encode(views))
    for before, after in zip(tensors(views), tensors(back), strict=True):
        assert before.dtype == after.dtype
        assert torch.equal(before[order], after)


def test_extreme_logits_stay() -> None:
    logits = torch.tensor([[65504.0, -65504.0, 6e-8, -0.0, 1.0]]).half()
    back = decode(encode(replace(random_views(1), logits_VK=logits)))
    assert back.logits_VK.view(torch.int16).equal(logits.view(torch.int16))


def test_columns_are_those_of_the_schema() -> None:
    table = encode(random_views(2))
    assert table.column_names == list(ViewRow.model_fields)
    ViewRow.model_validate(table.to_pylist()[0])
    assert {str(table.schema.field(name).type) for name in ("image", "partner")} == {"int32"}
    assert {str(table.schema.field(name).type) for name in ("epoch", "left", "partner_top", "mix_width")} == {"int16"}


def test_a_slice_of_a_table_is_read_from_its_own_rows() -> None:
    table = encode(random_views(50))
    assert decode(table.slice(20, 5)).logits_VK.equal(decode(table).logits_VK[20:25])
    several = pa.concat_tables([table.slice(0, 20), table.slice(20)])
    assert decode(several).logits_VK.equal(decode(table).logits_VK)


def test_a_number_too_large_is_told() -> None:
    views = random_views(2)
    with pytest.raises(InputError, match=r"views: epoch 0\.\.40000 does not fit"):
        encode(replace(views, epochs_V=torch.tensor([0, 40000], dtype=torch.int32)))


@pytest.mark.parametrize("table", [pa.table({"image": [1]}), view_schema(3).empty_table().drop_columns(["epoch"])])
def test_another_table_is_refused(table: pa.Table) -> None:
    with pytest.raises(InputError, match="not those of labelled views"):
        decode(table)
