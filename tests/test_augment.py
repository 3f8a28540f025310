"""Crops, flips and mixing: the same views as torchvision's, from parameters that can be kept."""

import pytest
import tiny
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dd_tasks import augment
from dd_tasks.types import Crops, Views

BOXES = ((0, 0, 16, 16), (3, 2, 7, 9), (0, 0, 1, 1), (15, 15, 1, 1), (0, 5, 16, 3), (4, 0, 2, 16), (8, 7, 8, 9))


def crops(*boxes: tuple[int, int, int, int], flips: list[bool] | None = None) -> Crops:
    return Crops(torch.tensor(boxes), torch.tensor(flips or [False] * len(boxes)))


@pytest.mark.parametrize("side", [None, 7, 16, 24])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (16, 20)])
def test_look_is_torchvisions_resized_crop_and_flip_of_each_image(side, flip, size):
    pixels_NCHW = torch.rand(len(BOXES), 3, *size, generator=tiny.generator())
    seen_NCSS = augment.look(pixels_NCHW, crops(*BOXES, flips=[flip] * len(BOXES)), side)
    for pixels_CHW, box, seen_CSS in zip(pixels_NCHW, BOXES, seen_NCSS, strict=True):
        out = [side or size[0]] * 2
        expected_CSS = tv.resized_crop(pixels_CHW, *box, out, InterpolationMode.BILINEAR, antialias=False)
        expected_CSS = tv.horizontal_flip(expected_CSS) if flip else expected_CSS
        torch.testing.assert_close(seen_CSS, expected_CSS, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [1, 7, 16, 33])
def test_the_whole_crop_is_the_image_itself(side):
    pixels_NCHW = tiny.pixels(3, side=side)
    assert torch.equal(augment.look(pixels_NCHW, augment.whole(3, side)), pixels_NCHW)


def test_the_gradient_of_a_look_flows_into_the_crop_alone():
    boxes = BOXES[:5]
    pixels_NCHW = tiny.pixels(len(boxes)).requires_grad_()
    augment.look(pixels_NCHW, crops(*boxes, flips=[False, True, False, True, True])).sum().backward()
    reached_NHW = (pixels_NCHW.grad != 0).all(1)
    assert torch.equal(reached_NHW, augment.inside(torch.tensor(boxes), 16))
    assert torch.equal(reached_NHW, (pixels_NCHW.grad != 0).any(1))


@pytest.mark.parametrize("side", [16, 33])
@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.08, 1.0), (0.25, 0.25)])
def test_random_crops_lie_inside_and_keep_area_and_aspect_but_for_rounding(side, scale):
    top, left, tall, wide = augment.random_crops(2000, side, scale, tiny.generator()).boxes_N4.unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (tall >= 1).all() and (wide >= 1).all()
    assert (top + tall <= side).all() and (left + wide <= side).all()
    assert ((tall + 0.5) * (wide + 0.5) >= scale[0] * side**2).all()
    assert ((tall - 0.5) * (wide - 0.5) <= scale[1] * side**2).all()
    assert ((wide + 0.5) / (tall - 0.5) >= 3 / 4).all() and ((wide - 0.5) / (tall + 0.5) <= 4 / 3).all()


def test_random_crops_spread_evenly_over_area_aspect_and_place():
    boxes_N4 = augment.random_crops(8000, 64, (0.1, 0.5), tiny.generator()).boxes_N4.double()
    top, left, tall, wide = boxes_N4.unbind(1)
    for values, mean in ((tall * wide / 64**2, 0.3), ((wide / tall).log(), 0), (top / (64 - tall), 0.5)):
        assert values.mean().item() == pytest.approx(mean, abs=0.015)
    assert (left / (64 - wide)).mean().item() == pytest.approx(0.5, abs=0.015)
    assert ((tall * wide / 64**2) < 0.2).double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (top == 0).any() and (left + wide == 64).any()


def test_half_of_random_crops_are_flipped_and_none_without_flip():
    flipped, plain = (augment.random_crops(4000, 16, (0.5, 1.0), tiny.generator(), flip=flip) for flip in (True, False))
    assert flipped.flips_N.double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert not plain.flips_N.any()
    assert torch.equal(flipped.boxes_N4, plain.boxes_N4)


def test_a_scale_that_never_fits_gives_the_whole_image():
    assert augment.random_crops(5, 16, (3.0, 4.0), tiny.generator()).boxes_N4.tolist() == [[0, 0, 16, 16]] * 5


def test_mix_boxes_are_cutmixs_and_all_zeros_where_empty():
    boxes_N4 = augment.random_mix_boxes(500, 16, tiny.generator())
    empty = 0
    for box, (own, y, x) in zip(boxes_N4.tolist(), torch.rand(3, 500, generator=tiny.generator()).T, strict=True):
        half = int(16 * (1 - own).sqrt()) // 2
        top, bottom = max(int(y * 16) - half, 0), min(int(y * 16) + half, 16)
        left, right = max(int(x * 16) - half, 0), min(int(x * 16) + half, 16)
        area = (bottom - top) * (right - left)
        assert box == ([top, left, bottom - top, right - left] if area else [0, 0, 0, 0])
        empty += not area
    assert 0 < empty < 50


def test_inside_is_true_within_the_box_alone():
    mask_NSS = augment.inside(torch.tensor(BOXES), 16)
    for mask, (top, left, tall, wide) in zip(mask_NSS, BOXES, strict=True):
        rows = [[top <= y < top + tall and left <= x < left + wide for x in range(16)] for y in range(16)]
        assert mask.tolist() == rows


def views(mixes: list[list[int]]) -> Views:
    """Six views of four images, one for each mix box."""
    rng = tiny.generator(3)
    first, second = (augment.random_crops(6, 16, (0.3, 1.0), rng) for _ in range(2))
    images_V, partners_V = (torch.tensor(x, dtype=torch.int32) for x in ([0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 0]))
    boxes_V4 = torch.tensor(mixes, dtype=torch.int16)
    return Views(torch.zeros(6, dtype=torch.int32), images_V, first, partners_V, second, boxes_V4, torch.zeros(6, 3))


MIXES = [[0, 0, 0, 0], [2, 3, 5, 6], [0, 0, 16, 16], [0, 0, 0, 0], [15, 0, 1, 16], [4, 4, 8, 8]]


@pytest.mark.parametrize("chosen", [slice(0, 6), slice(2, 5), torch.tensor([5, 0, 0, 2])])
def test_show_pastes_the_partners_crop_into_the_mix_box(chosen):
    pixels_NCHW, shown = tiny.pixels(4), views(MIXES)
    rows = torch.arange(6)[chosen].tolist()
    seen_VCSS = augment.show(pixels_NCHW, shown, chosen)
    assert len(seen_VCSS) == len(rows)
    for v, seen_CSS in zip(rows, seen_VCSS, strict=True):
        own, partner = (
            augment.look(pixels_NCHW[int(image)][None], of[v : v + 1])[0]
            for image, of in ((shown.images_V[v], shown.crops), (shown.partners_V[v], shown.partner_crops))
        )
        top, left, tall, wide = MIXES[v]
        expected_CSS = own.clone()
        expected_CSS[:, top : top + tall, left : left + wide] = partner[:, top : top + tall, left : left + wide]
        torch.testing.assert_close(seen_CSS, expected_CSS, rtol=0, atol=1e-6)


def test_views_without_partners_are_looks():
    pixels_NCHW, shown = tiny.pixels(4), views([[0] * 4] * 6)
    plain_VCSS = augment.look(pixels_NCHW[shown.images_V.long()], shown.crops)
    assert torch.equal(augment.show(pixels_NCHW, shown, slice(0, 6)), plain_VCSS)


@pytest.mark.parametrize("mixes", [MIXES, [[0] * 4] * 6])
def test_pixels_may_lie_on_another_device_than_the_views(mixes):
    seen_VCSS = augment.show(tiny.pixels(4).to("meta"), views(mixes), torch.tensor([1, 2]))
    assert seen_VCSS.device.type == "meta" and seen_VCSS.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("roll", [(0, 0), (3, 1), (15, 16), (40, 2)])
def test_rolled_is_torchs_roll(roll):
    pixels_NCHW = tiny.pixels(2)
    assert torch.equal(augment.rolled(pixels_NCHW, torch.tensor(roll)), pixels_NCHW.roll(roll, (2, 3)))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_tiles_are_the_parts_of_an_image_row_by_row_up_sampled(factor):
    pixels_NCHW, size = tiny.pixels(3), 16 // factor
    images_V, crops = augment.tiles(3, 16, factor)
    found = augment.look(pixels_NCHW[images_V], crops)
    at = [(n, y, x) for n in range(3) for y in range(0, 16, size) for x in range(0, 16, size)]
    parts = torch.stack([pixels_NCHW[n, :, y : y + size, x : x + size] for n, y, x in at])
    expected = torch.nn.functional.interpolate(parts, 16, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert images_V.tolist() == [n for n, _, _ in at]


MIDDLE = [0.5] * 5  # no brightness, saturation times 1, contrast times 1, no shift


def siamese(pixels_NCHW, *draw):
    return augment.siamese(pixels_NCHW, torch.tensor(draw), tiny.MEAN, tiny.STD)


def test_one_draw_treats_every_image_alike():
    pixels_NCHW, draw = tiny.pixels(6), torch.rand(7, generator=tiny.generator(3)).tolist()
    together = siamese(pixels_NCHW, *draw)
    assert all(
        torch.allclose(siamese(one[None], *draw)[0], row, atol=1e-6)
        for one, row in zip(pixels_NCHW, together, strict=True)
    )
    assert not torch.allclose(together, siamese(pixels_NCHW, *draw[::-1]))


def test_the_middle_draw_only_cuts_a_square_of_half_the_side_out():
    pixels_NCHW = tiny.pixels(2)
    cut = siamese(pixels_NCHW, *MIDDLE, 0.5, 0.5)
    mean = torch.tensor(tiny.MEAN).view(3, 1, 1)
    expected = pixels_NCHW.clone()
    expected[:, :, 4:12, 4:12] = mean
    torch.testing.assert_close(cut, expected)


def test_a_corner_of_a_draw_shifts_by_an_eighth_and_fills_with_the_mean():
    pixels_NCHW = tiny.pixels(2)
    moved = siamese(pixels_NCHW, 0.5, 0.5, 0.5, 0.0, 0.999, 0.0, 0.0)
    torch.testing.assert_close(moved[:, :, 4:, :14], torch.nn.functional.pad(pixels_NCHW, (0, 0, 0, 0))[:, :, 2:14, 2:])
    torch.testing.assert_close(moved[:, :, :2, 4:], torch.tensor(tiny.MEAN).view(1, 3, 1, 1).expand(2, 3, 2, 12))


def test_brightness_saturation_and_contrast_are_those_of_dsa_in_units_of_the_std():
    pixels_NCHW = tiny.pixels(2)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (tiny.MEAN, tiny.STD))
    scaled = (pixels_NCHW - mean) / std
    grey = scaled.mean(1, keepdim=True)
    level = scaled.mean((1, 2, 3), keepdim=True)
    outside = torch.ones(16, 16, dtype=torch.bool)
    outside[4:12, 4:12] = False
    for draw, expected in (
        ((0.75, 0.5, 0.5), scaled + 0.25),
        ((0.5, 0.25, 0.5), (scaled - grey) * 0.5 + grey),
        ((0.5, 0.5, 0.25), (scaled - level) * 0.75 + level),
    ):
        found = siamese(pixels_NCHW, *draw, 0.5, 0.5, 0.5, 0.5)
        torch.testing.assert_close(found[:, :, outside], (expected * std + mean)[:, :, outside], rtol=1e-4, atol=1e-5)


def test_own_share_is_the_area_outside_the_mix_box():
    boxes_N4 = torch.tensor(MIXES, dtype=torch.int16)
    outside_N = (~augment.inside(boxes_N4, 16)).double().mean((1, 2))
    torch.testing.assert_close(augment.own_share(boxes_N4, 16).double(), outside_N)


def test_classes_share_a_view_by_area():
    """Views 1 and 4 show images 1 and 2, of which 30 pixels, and 0 and 3, of which 16 of 256; view 5, of one class."""
    found_VK = augment.class_shares(views(MIXES), torch.tensor([2, 2, 0, 1]), 3, 16)
    expected_VK = torch.tensor([[0, 0, 256], [30, 0, 226], [0, 0, 256], [0, 256, 0], [0, 16, 240], [0, 0, 256]]) / 256
    torch.testing.assert_close(found_VK, expected_VK)


@pytest.mark.parametrize("flip", [False, True])
def test_shifted_moves_by_up_to_reach_with_reflected_edges_and_every_way_occurs(flip):
    image_CHW, reach = tiny.pixels(1, side=5)[0], 1
    moved_NCHW = augment.shifted(image_CHW.expand(400, -1, -1, -1), reach, tiny.generator(), flip=flip)
    padded = torch.nn.functional.pad(image_CHW[None], (reach,) * 4, mode="reflect")[0]
    windows = [padded[:, y : y + 5, x : x + 5] for y in range(3) for x in range(3)]
    ways = torch.stack(windows + [window.flip(2) for window in windows])
    same_NW = (moved_NCHW[:, None] == ways).flatten(2).all(2)
    assert torch.equal(same_NW.sum(1), torch.ones(400, dtype=torch.int64))
    assert same_NW.any(0).tolist() == [True] * 9 + [flip] * 9


def test_shifted_is_a_function_of_the_generator():
    pixels_NCHW = tiny.pixels(8)
    first, again, other = (augment.shifted(pixels_NCHW, 4, tiny.generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
