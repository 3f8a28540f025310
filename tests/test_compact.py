"""Compact labels: there and back within half a step, few bytes, budgets kept; and what they ask of the views."""

import io
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from sample import EPOCHS, SIDE, K, N, compact_labels, grouped_views, tiny_views

from dd_tasks import codec, compact
from dd_tasks.compact import GROUP, Coding
from dd_tasks.errors import InputError
from schemas.tables import GroupRow


def geometry(views):
    crops = [views.crops.boxes_N4, views.crops.flips_N, views.partner_crops.boxes_N4, views.partner_crops.flips_N]
    return [views.epochs_V, views.images_V, views.partners_V, views.mix_boxes_V4, *crops]


def test_every_class_comes_back_within_half_a_step_and_geometry_exactly() -> None:
    labels, views = compact_labels(top=K, step=0.5, epochs=EPOCHS), grouped_views()
    for before, after in zip(geometry(views), geometry(labels.views), strict=True):
        assert before.dtype == after.dtype and torch.equal(before, after)
    assert (labels.views.logits_VK.float() - views.logits_VK.float()).abs().max() <= 0.25 + 0.02


def test_top_classes_come_back_within_half_a_step_the_others_as_mixed() -> None:
    labels, views = compact_labels(top=3, step=0.25, epochs=EPOCHS), grouped_views()
    top_VT = views.logits_VK.float().topk(3).indices
    left_VK = (labels.views.logits_VK.float() - views.logits_VK.float()).abs()
    assert left_VK.gather(1, top_VT).max() <= 0.125 + 0.02
    mixed_VK = compact.mixed_logits(views, compact.own_logits(labels.soft_NK), SIDE)
    others_VK = torch.ones(len(views), K, dtype=torch.bool).scatter_(1, top_VT, False)
    assert torch.equal(labels.views.logits_VK[others_VK], mixed_VK.half()[others_VK])


def test_a_file_gives_the_same_views() -> None:
    for labels in (compact_labels(), compact_labels(top=3)):
        table = pq.read_table(io.BytesIO(labels.to_bytes()))
        assert table.schema.equals(compact.compact_schema(labels.coding.top == K))
        back = codec.views_of(table, labels.soft_NK, SIDE)
        assert torch.equal(back.logits_VK, labels.views.logits_VK)
        GroupRow.model_validate(table.to_pylist()[0])


def test_own_logits_are_found_again_from_their_mixes() -> None:
    views, rng = grouped_views(epochs=40), torch.Generator().manual_seed(2)
    own_NK = 2 * torch.randn(N, K, generator=rng)
    views = replace(views, logits_VK=compact.mixed_logits(views, own_NK, SIDE).half())
    found_NK = compact.own_logits(compact.fit(views, N, SIDE))
    assert (found_NK - (own_NK - own_NK.mean(1, keepdim=True))).abs().max() < 0.1


def test_groups_larger_than_one_and_a_rest() -> None:
    n = 2 * GROUP + 7
    views = grouped_views(epochs=2, n=n)
    soft_NK = compact.fit(views, n, SIDE)
    table = compact.encode(views, soft_NK, Coding(K, 0.5, 2), SIDE)
    assert table["count"].to_pylist() == [GROUP, GROUP, 7] * 2
    back = compact.decode(table, soft_NK, SIDE)
    assert all(torch.equal(a, b) for a, b in zip(geometry(views), geometry(back), strict=True))


@pytest.mark.parametrize(("epochs", "kept"), [(3, [0, 1, 2]), (2, [0, 1]), (1, [0])])
def test_epochs_are_pruned_evenly_and_numbered_anew(epochs: int, kept: list[int]) -> None:
    views = grouped_views()
    few = compact.pruned(views, epochs)
    assert few.epochs_V.unique().tolist() == list(range(epochs))
    assert torch.equal(few.logits_VK, torch.cat([views.logits_VK[views.epochs_V == e] for e in kept]))


def test_a_budget_is_kept_and_used_first_for_epochs_then_for_finer_steps() -> None:
    views = grouped_views(epochs=30)
    soft_NK, found = compact.fit(views, N, SIDE), []
    for budget in (2200, 3500, 6000, 14000):
        coding = compact.choose(views, soft_NK, SIDE, budget)
        assert compact.size(views, soft_NK, coding, SIDE) <= budget
        found.append(coding)
    assert [c.epochs for c in found] == sorted(c.epochs for c in found)
    assert found[0].epochs < 30 == found[-1].epochs
    assert found[0].step == max(c.step for c in found) > found[-1].step


def test_a_step_is_no_finer_than_codes_reach() -> None:
    views = grouped_views(epochs=4)
    logits_VK = views.logits_VK.clone()
    logits_VK[7, 0] += 200
    views = replace(views, logits_VK=logits_VK)
    labels = codec.fitted(views, N, SIDE, 10**6)
    assert labels.coding.epochs == 4
    assert (labels.views.logits_VK.float() - logits_VK.float()).abs().max() <= labels.coding.step / 2 + 0.1


def test_a_budget_below_one_epoch_is_refused() -> None:
    with pytest.raises(InputError, match=r"3 label bytes per image: one epoch of labels takes \d+"):
        codec.fitted(grouped_views(), N, SIDE, 3 * N)


def test_views_that_share_no_geometry_are_refused() -> None:
    views = tiny_views()
    soft_NK = compact.fit(views, N, SIDE)
    with pytest.raises(InputError, match=r"views drawn in groups of 100 \(labeller.group=100\); or use exact"):
        compact.encode(views, soft_NK, Coding(K, 0.5, EPOCHS), SIDE)
