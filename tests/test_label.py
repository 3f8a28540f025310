"""Soft labels: the committee's mean logits of exactly the views that are stored."""

import copy
import math
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import tiny
import torch
from torch import Tensor, nn

from dd_tasks import augment, compiling, recipe
from dd_tasks.committee import Observer
from dd_tasks.errors import InputError
from dd_tasks.label import OneHot, Relabel
from dd_tasks.pieces import in_pieces
from dd_tasks.types import Crops, Views
from dd_tasks.voters import Everyone, One, RoundRobin


def same(one: Views, other: Views) -> bool:
    def flat(views: Views) -> list[Tensor]:
        values = [getattr(views, f.name) for f in fields(views)]
        return [t for v in values for t in ((v.boxes_N4, v.flips_N) if isinstance(v, Crops) else (v,))]

    return all(torch.equal(a, b) for a, b in zip(flat(one), flat(other), strict=True))


def mean_logits(observers: tuple[Observer, ...], pixels_VCSS: Tensor) -> Tensor:
    with torch.no_grad():
        return sum(o.net(pixels_VCSS) for o in observers) / len(observers)


def close(found_VK: Tensor, expected_VK: Tensor) -> None:
    torch.testing.assert_close(found_VK.float(), expected_VK, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("batch_statistics", [None, 3])
def test_the_voters_of_the_labeller_weigh_the_committee(batch_statistics):
    observers = tuple(replace(o, prior=p) for o, p in zip(tiny.committee(), (0.5, 0.6), strict=True))
    labeller = Relabel(voters=Everyone(temperature=10.0), epochs=2, batch_statistics=batch_statistics)
    weighed = labeller.label(tiny.canvas(), tiny.studio(*observers))
    apart = [replace(labeller, voters=One(i)).label(tiny.canvas(), tiny.studio(*observers)) for i in range(2)]
    share = 1 / (1 + math.exp(1.0))
    close(weighed.logits_VK, share * apart[0].logits_VK.float() + (1 - share) * apart[1].logits_VK.float())
    assert not torch.equal(apart[0].logits_VK, apart[1].logits_VK)


@pytest.mark.parametrize("mix", [True, False])
def test_one_hot_logits_say_the_classes_by_their_areas(mix):
    canvas = tiny.canvas(7)
    views = OneHot(epochs=3, mix=mix).label(canvas, tiny.studio())
    same_draw = Relabel(epochs=3, mix=mix).label(canvas, tiny.studio())
    assert torch.equal(views.mix_boxes_V4, same_draw.mix_boxes_V4) and torch.equal(views.images_V, same_draw.images_V)
    for v in range(len(views)):
        area = int(views.mix_boxes_V4[v, 2]) * int(views.mix_boxes_V4[v, 3]) / tiny.SIDE**2
        expected = torch.zeros(tiny.CLASSES)
        expected[canvas.targets_N[views.images_V[v]]] += 1 - area
        expected[canvas.targets_N[views.partners_V[v]]] += area
        torch.testing.assert_close(views.logits_VK[v].float().softmax(0), expected, rtol=0, atol=2e-3)
    assert len(OneHot(epochs=0).label(canvas, tiny.studio())) == 0


@pytest.mark.parametrize("labeller", [OneHot(epochs=20, tiles=2), Relabel(epochs=20, tiles=2)])
def test_views_of_tiles_lie_within_one_and_all_are_seen(labeller):
    views = labeller.label(tiny.canvas(7), tiny.studio())
    for crops in (views.crops, views.partner_crops):
        top, left, height, width = crops.boxes_N4.unbind(1)
        assert (top // 8 == (top + height - 1) // 8).all() and (left // 8 == (left + width - 1) // 8).all()
        assert {(y, x) for y, x in zip((top // 8).tolist(), (left // 8).tolist(), strict=True)} == {
            (0, 0), (0, 1), (1, 0), (1, 1),
        }  # fmt: skip
    whole = labeller.of_whole_images()
    assert (
        whole == replace(labeller, tiles=1)
        and whole.label(tiny.canvas(7), tiny.studio()).crops.boxes_N4[:, 2].max() > 8
    )


@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("labeller", [OneHot(epochs=9), Relabel(epochs=9, scale=(0.1, 0.5), batch_statistics=3)])
def test_plain_views_show_every_image_or_every_tile_of_it_once_as_it_is(labeller, tiles):
    canvas, plain = tiny.canvas(7), replace(labeller, tiles=tiles).plain()
    views = plain.label(canvas, tiny.studio())
    assert views.epochs_V.tolist() == [e for e in range(tiles**2) for _ in range(7)]
    assert not views.crops.flips_N.any() and not views.mix_boxes_V4.any()
    images_V, every = augment.tiles(7, tiny.SIDE, tiles)
    expected = [(i, *box) for i, box in zip(images_V.tolist(), every.boxes_N4.tolist(), strict=True)]
    found = zip(views.images_V.tolist(), views.crops.boxes_N4.tolist(), strict=True)
    assert sorted((i, *box) for i, box in found) == expected
    if tiles == 1:
        shown_VCSS = augment.show(canvas.images_NCHW.float(), views, slice(None))
        assert torch.equal(shown_VCSS, canvas.images_NCHW[views.images_V.long()].float())
    assert plain.plain() == plain and replace(labeller, tiles=tiles).of_whole_images().plain().epochs == 1


@pytest.mark.parametrize("mix", [True, False])
@pytest.mark.parametrize("batch", [500, 4])
def test_stored_logits_are_the_committees_mean_on_the_stored_views(mix, batch):
    observers, canvas = tiny.committee(), tiny.canvas(7)
    views = Relabel(epochs=3, mix=mix, batch=batch).label(canvas, tiny.studio(*observers))
    seen_VCSS = augment.show(canvas.images_NCHW / 255, views, slice(0, len(views)))
    close(views.logits_VK, mean_logits(observers, seen_VCSS))
    assert bool((views.mix_boxes_V4[:, 2] > 0).any()) is mix


def test_every_image_is_labelled_once_an_epoch_in_an_order_that_changes():
    views = Relabel(epochs=4).label(tiny.canvas(7), tiny.studio())
    assert views.epochs_V.tolist() == [e for e in range(4) for _ in range(7)]
    orders = [views.images_V[views.epochs_V == e].tolist() for e in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders) and len(set(map(tuple, orders))) > 1


def test_the_partner_is_another_image_in_its_own_crop():
    views = Relabel(epochs=2).label(tiny.canvas(7), tiny.studio())
    assert (views.partners_V != views.images_V).all()
    for epoch in range(2):
        rows = torch.nonzero(views.epochs_V == epoch)[:, 0].tolist()
        row_of = {int(views.images_V[v]): v for v in rows}
        partners = torch.tensor([row_of[int(views.partners_V[v])] for v in rows])
        assert sorted(partners.tolist()) == rows
        assert torch.equal(views.partner_crops.boxes_N4[rows], views.crops.boxes_N4[partners])
        assert torch.equal(views.partner_crops.flips_N[rows], views.crops.flips_N[partners])


def test_columns_have_the_types_of_labelled_views():
    views = Relabel(epochs=1).label(tiny.canvas(), tiny.studio())
    assert {views.epochs_V.dtype, views.images_V.dtype, views.partners_V.dtype} == {torch.int32}
    assert views.mix_boxes_V4.dtype == torch.int16 and views.logits_VK.dtype == torch.float16
    for crops in (views.crops, views.partner_crops):
        assert crops.boxes_N4.dtype == torch.int64 and crops.flips_N.dtype == torch.bool


def test_without_mix_the_same_crops_are_drawn_and_nothing_is_pasted():
    mixed, plain = (Relabel(epochs=2, mix=mix).label(tiny.canvas(), tiny.studio()) for mix in (True, False))
    assert not plain.mix_boxes_V4.any() and mixed.mix_boxes_V4.any()
    assert torch.equal(plain.crops.boxes_N4, mixed.crops.boxes_N4) and torch.equal(plain.images_V, mixed.images_V)


def test_crops_follow_scale_and_flip():
    shares = {}
    for scale, flip in (((0.5, 1.0), True), ((0.1, 0.2), False)):
        crops = Relabel(epochs=10, scale=scale, flip=flip).label(tiny.canvas(), tiny.studio(tiny.observer())).crops
        assert bool(crops.flips_N.any()) is flip
        shares[scale] = crops.boxes_N4[:, 2:].prod(1) / 16**2
    assert shares[0.1, 0.2].max() < 0.3 and shares[0.5, 1.0].min() > 0.4


def test_without_epochs_there_are_no_views_of_as_many_classes():
    views = Relabel(epochs=0).label(tiny.canvas(), tiny.studio())
    assert len(views) == 0 and views.logits_VK.shape == (0, tiny.CLASSES)
    some = Relabel(epochs=1).label(tiny.canvas(), tiny.studio())
    assert all(
        getattr(views, f.name).dtype == getattr(some, f.name).dtype for f in fields(views) if "crops" not in f.name
    )


def test_labels_are_a_function_of_the_generator():
    first, again, other = (Relabel(epochs=2).label(tiny.canvas(), tiny.studio(seed=s)) for s in (1, 1, 2))
    assert same(first, again) and not same(first, other)


def by_batch(observer: Observer) -> nn.Module:
    """The network with its BatchNorms in training mode, as a copy: the running statistics of the original stay."""
    net = copy.deepcopy(observer.net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    return net


@pytest.mark.parametrize(
    ("n", "size", "cuts"), [(8, 4, (0, 4, 8)), (7, 3, (0, 3, 7)), (11, 4, (0, 4, 11)), (3, 4, (0, 3))]
)
def test_batch_statistics_are_those_of_batchnorm_in_training_on_each_sub_batch(n, size, cuts):
    observers, canvas = tiny.committee(), tiny.canvas(n)
    before = [{k: v.clone() for k, v in o.net.state_dict().items()} for o in observers]
    views = Relabel(epochs=2, batch_statistics=size).label(canvas, tiny.studio(*observers))
    seen_VCSS = augment.show(canvas.images_NCHW / 255, views, slice(0, len(views)))
    for start in (0, n):
        for a, b in pairwise(cuts):
            part = slice(start + a, start + b)
            with torch.no_grad():
                expected_VK = sum(by_batch(o)(seen_VCSS[part]) for o in observers) / len(observers)
            close(views.logits_VK[part], expected_VK)
    assert (views.logits_VK.float() - mean_logits(observers, seen_VCSS)).abs().max() > 0.01
    for observer, kept in zip(observers, before, strict=True):
        state = observer.net.state_dict()
        assert state.keys() == kept.keys() and all(torch.equal(v, kept[k]) for k, v in state.items())
        assert not any(m.training for m in observer.net.modules())


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_no_sub_batch_is_a_lone_view(size):
    for n in range(2, 14):
        watched = tiny.Watched(tiny.observer())
        Relabel(epochs=1, batch_statistics=size).label(tiny.canvas(n), tiny.studio(watched))
        assert sum(watched.sizes) == n and min(watched.sizes) >= min(n, size)
        assert all(s == size for s in watched.sizes[:-1]) and watched.sizes[-1] < 2 * size


@pytest.mark.parametrize(("n", "group", "tiles"), [(7, 3, 1), (6, 6, 1), (4, 9, 1), (1, 2, 1), (6, 4, 2)])
def test_a_group_shares_crop_flip_mix_box_and_distance_to_the_partner(n, group, tiles):
    views = OneHot(epochs=4, group=group, tiles=tiles).label(tiny.canvas(n), tiny.studio())
    assert views.images_V.tolist() == [*range(n)] * 4 and views.epochs_V.tolist() == [
        e for e in range(4) for _ in range(n)
    ]
    assert torch.equal(views.crops.boxes_N4, views.partner_crops.boxes_N4)
    seen = set()
    for epoch in range(4):
        for first in range(0, n, group):
            rows = slice(epoch * n + first, epoch * n + min(first + group, n))
            count = rows.stop - rows.start
            ahead = (views.partners_V[rows] - views.images_V[rows]) % count
            for same_V in (views.crops.boxes_N4, views.crops.flips_N, views.mix_boxes_V4):
                assert (same_V[rows] == same_V[rows][0]).all()
            assert (ahead == ahead[0]).all() and (count == 1 or ahead[0] > 0)
            assert ((views.partners_V[rows] >= first) & (views.partners_V[rows] < first + count)).all()
            seen.add(tuple(views.crops.boxes_N4[rows][0].tolist()))
    assert len(seen) > 1


def test_views_drawn_alone_are_as_before_groups_were():
    assert same(
        OneHot(epochs=2).label(tiny.canvas(), tiny.studio()),
        OneHot(epochs=2, group=1).label(tiny.canvas(), tiny.studio()),
    )
    assert recipe.identity("x", 1, labeller=OneHot()) == recipe.identity("x", 1, labeller=OneHot(group=1))
    assert recipe.identity("x", 1, labeller=OneHot()) != recipe.identity("x", 1, labeller=OneHot(group=2))
    assert "group" not in recipe.plain(OneHot()) and recipe.plain(OneHot(group=2))["group"] == 2


def test_epochs_with_the_same_judges_are_labelled_together():
    for voters, sizes in ((Everyone(), [12, 12, 6]), (RoundRobin(), [6] * 5)):
        watched = tiny.Watched(tiny.observer()), tiny.Watched(tiny.observer(1))
        views = Relabel(epochs=5, batch=15, voters=voters).label(tiny.canvas(6), tiny.studio(*watched))
        by_first, by_second = (one.sizes for one in watched)
        assert len(views) == 30 and (by_first == sizes if voters == Everyone() else by_first + by_second == sizes)


def test_many_views_are_labelled_by_fused_observers_and_the_same(monkeypatch):
    labeller, one = Relabel(epochs=5, batch=12), tiny.observer(0, "convnet2_bn_w16")
    plain = labeller.label(tiny.canvas(), tiny.studio(one))
    assert not one.graphs
    monkeypatch.setattr(compiling, "worth_compiling", lambda images, side: True)
    made, again = (labeller.label(tiny.canvas(), tiny.studio(one)) for _ in range(2))
    (quick,) = one.graphs.values()
    assert same(made, again) and nn.BatchNorm2d not in [type(module) for module in quick.net.modules()]
    torch.testing.assert_close(made.logits_VK, plain.logits_VK, rtol=2e-3, atol=1e-3)
    assert same(replace(made, logits_VK=plain.logits_VK), plain)


@pytest.mark.parametrize(("batch_statistics", "pieces"), [(3, None), (None, 4)])
def test_labels_by_batch_statistics_or_in_pieces_are_by_observers_as_they_are(monkeypatch, batch_statistics, pieces):
    monkeypatch.setattr(compiling, "worth_compiling", lambda images, side: True)
    one = tiny.observer()
    Relabel(epochs=2, batch_statistics=batch_statistics).label(tiny.canvas(), in_pieces(tiny.studio(one), pieces))
    assert not one.graphs


def test_more_tiles_than_pixels_are_refused():
    with pytest.raises(InputError, match=r"^labeller.tiles 17: images of 16 px have no so many tiles a side$"):
        Relabel(Everyone(), tiles=17).draw(0, 4, 16, torch.Generator())
