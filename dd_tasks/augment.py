"""Crops, flips and mixing as batched tensor functions of explicit parameters, so that any view can be made again.

Shape letters: N images or views, C channels, H x W pixels of the image, S side of the view, B box (top, left, height,
width). Crops follow torchvision's `RandomResizedCrop` and `resized_crop(..., antialias=False)`; mixing is CutMix (Yun
et al. 2019).
"""

import math

import torch
from torch import Tensor

from dd_tasks.types import Crops, Views

RATIO = (3 / 4, 4 / 3)
TRIES = 10


def whole(n: int, side: int, device: torch.device | None = None) -> Crops:
    """The crops that show n whole images."""
    box = torch.tensor([0, 0, side, side], device=device)
    return Crops(box.expand(n, 4).clone(), torch.zeros(n, dtype=torch.bool, device=device))


def random_crops(n: int, side: int, scale: tuple[float, float], rng: torch.Generator, *, flip: bool = True) -> Crops:
    """n crops as `RandomResizedCrop(scale)` draws them (area share and log aspect uniform), half of them flipped."""
    uniform = torch.rand(5, n, TRIES, generator=rng, device=rng.device)
    area = side * side * (scale[0] + (scale[1] - scale[0]) * uniform[0])
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    aspect = torch.exp(low + (high - low) * uniform[1])
    width, height = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (width >= 1) & (width <= side) & (height >= 1) & (height <= side)
    first = fits.long().argmax(1, keepdim=True)  # 0 where no try fits: then the whole image
    height, width = (torch.where(fits.any(1), x.gather(1, first)[:, 0], side) for x in (height, width))
    top = (uniform[2, :, 0] * (side - height + 1)).long()
    left = (uniform[3, :, 0] * (side - width + 1)).long()
    return Crops(torch.stack([top, left, height, width], 1), uniform[4, :, 0] < (0.5 if flip else 0))


def _rows_of(start_N: Tensor, length_N: Tensor, size: int, side: int) -> Tensor:
    """Bilinear weights_NSH that read `side` evenly spaced samples of [start, start + length) from `size` pixels."""
    steps = torch.arange(side, device=start_N.device) + 0.5
    at = (length_N[:, None] * steps / side - 0.5).clamp_min(0).minimum(length_N[:, None] - 1) + start_N[:, None]
    return (1 - (at[..., None] - torch.arange(size, device=start_N.device)).abs()).clamp_min(0)


def look(pixels_NCHW: Tensor, crops: Crops, side: int | None = None) -> Tensor:
    """views_NCSS: each image's own crop, resized bilinearly (no antialias) to `side` (default: H) and flipped.

    Two batched matrix products instead of a gather: differentiable, and deterministic backwards on every device.
    """
    height, width = pixels_NCHW.shape[2:]
    side = side or height
    top, left, tall, wide = crops.boxes_N4.to(pixels_NCHW.device).unbind(1)
    rows_NSH = _rows_of(top, tall, height, side)
    columns_NSW = _rows_of(left, wide, width, side)
    flips_N = crops.flips_N.to(pixels_NCHW.device)
    columns_NSW = torch.where(flips_N[:, None, None], columns_NSW.flip(1), columns_NSW)
    return rows_NSH[:, None].to(pixels_NCHW.dtype) @ pixels_NCHW @ columns_NSW[:, None].to(pixels_NCHW.dtype).mT


def rolled(pixels_NCHW: Tensor, roll_2: Tensor) -> Tensor:
    """`torch.roll` by (down, right) pixels that stay on the device."""
    down, right = roll_2.to(pixels_NCHW.device)
    height, width = (torch.arange(size, device=pixels_NCHW.device) for size in pixels_NCHW.shape[2:])
    rows, columns = (height - down) % len(height), (width - right) % len(width)
    return pixels_NCHW.index_select(2, rows).index_select(3, columns)


def tiles(n: int, side: int, factor: int, device: torch.device | None = None) -> tuple[Tensor, Crops]:
    """The factor x factor tiles of n images, row by row: images_V and the crops that show each."""
    size = side // factor
    top, left = torch.cartesian_prod(*[torch.arange(factor, device=device) * size] * 2).view(-1, 2).unbind(1)
    boxes_T4 = torch.stack([top, left, torch.full_like(top, size), torch.full_like(top, size)], 1)
    images_V = torch.arange(n, device=device).repeat_interleave(factor**2)
    return images_V, Crops(boxes_T4.repeat(n, 1), torch.zeros(len(images_V), dtype=torch.bool, device=device))


SIAMESE_DRAWS = 7


def siamese(
    pixels_NCHW: Tensor, draw_7: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> Tensor:
    """Colour, crop and cutout by one draw of SIAMESE_DRAWS uniform numbers for all images, so that two batches can be
    treated alike (DSA: Zhao & Bilen 2021, its defaults): brightness by up to half a std, saturation times 0..2,
    contrast times .5..1.5, a shift by up to an eighth of the side, and a square of half the side cut out; gaps show the
    mean colour.
    """
    side, device = pixels_NCHW.shape[-1], pixels_NCHW.device
    mean_C11, std_C11 = (torch.tensor(x, device=device).view(3, 1, 1) for x in (mean, std))
    draw_7 = draw_7.to(device)
    scaled_NCHW = (pixels_NCHW - mean_C11) / std_C11 + (draw_7[0] - 0.5)
    grey_N1HW = scaled_NCHW.mean(1, keepdim=True)
    scaled_NCHW = (scaled_NCHW - grey_N1HW) * 2 * draw_7[1] + grey_N1HW
    level_N111 = scaled_NCHW.mean((1, 2, 3), keepdim=True)
    scaled_NCHW = (scaled_NCHW - level_N111) * (0.5 + draw_7[2]) + level_N111
    reach = max(side // 8, 1)
    padded = torch.nn.functional.pad(scaled_NCHW, (reach,) * 4)
    at = torch.arange(side, device=device)
    rows, columns = (at + (draw_7[i] * (2 * reach + 1)).long() for i in (3, 4))
    moved_NCHW = padded.index_select(2, rows).index_select(3, columns)
    hole = side // 2
    top, left = ((draw_7[i] * (side + 1)).long() - hole // 2 for i in (5, 6))
    in_rows, in_columns = (at >= top) & (at < top + hole), (at >= left) & (at < left + hole)
    cut_NCHW = moved_NCHW.masked_fill(in_rows[:, None] & in_columns, 0)
    return cut_NCHW * std_C11 + mean_C11


def random_mix_boxes(n: int, side: int, rng: torch.Generator) -> Tensor:
    """n CutMix boxes_N4: area share uniform in [0, 1] (Beta(1, 1)), centre uniform, clipped to the view."""
    uniform = torch.rand(3, n, generator=rng, device=rng.device)
    half = (side * (1 - uniform[0]).sqrt()).long() // 2
    ends = []
    for centre in (uniform[1:] * side).long():
        ends.append(((centre - half).clamp(0, side), (centre + half).clamp(0, side)))
    (top, bottom), (left, right) = ends
    empty = (bottom == top) | (right == left)
    boxes = torch.stack([top, left, bottom - top, right - left], 1)
    return torch.where(empty[:, None], 0, boxes)


def inside(boxes_N4: Tensor, side: int) -> Tensor:
    """mask_NSS: True within each box."""
    at = torch.arange(side, device=boxes_N4.device)
    top, left, tall, wide = boxes_N4.long()[..., None].unbind(1)
    rows, columns = (at >= top) & (at < top + tall), (at >= left) & (at < left + wide)
    return rows[:, :, None] & columns[:, None, :]


def show(pixels_NCHW: Tensor, views: Views, chosen: Tensor | slice) -> Tensor:
    """pixels_VCSS of the chosen labelled views, exactly as the committee saw them, on the device of the pixels."""
    first = look(pixels_NCHW[views.images_V[chosen].long()], views.crops[chosen])
    second = look(pixels_NCHW[views.partners_V[chosen].long()], views.partner_crops[chosen])
    mixed_VSS = inside(views.mix_boxes_V4[chosen].to(first.device), first.shape[-1])
    return torch.where(mixed_VSS[:, None], second, first)


def own_share(mix_boxes_V4: Tensor, side: int) -> Tensor:
    """share_V of each view's area that shows its own image rather than its partner's."""
    return 1 - mix_boxes_V4[:, 2].float() * mix_boxes_V4[:, 3].float() / (side * side)


def class_shares(views: Views, targets_N: Tensor, classes: int, side: int) -> Tensor:
    """shares_VK of each view's area that show images of these classes."""
    own_V1 = own_share(views.mix_boxes_V4, side)[:, None]
    shares_VK = own_V1.new_zeros(len(views), classes)
    for images_V, share_V1 in ((views.images_V, own_V1), (views.partners_V, 1 - own_V1)):
        shares_VK.scatter_add_(1, targets_N[images_V.long()][:, None], share_V1)
    return shares_VK


def shifted(pixels_NCHW: Tensor, reach: int, rng: torch.Generator, *, flip: bool = True) -> Tensor:
    """Each image moved by up to `reach` pixels, edges reflected, half of them flipped: the usual view for training."""
    n, _, height, width = pixels_NCHW.shape
    padded = torch.nn.functional.pad(pixels_NCHW, (reach,) * 4, mode="reflect")
    down, right = torch.randint(0, 2 * reach + 1, (2, n), generator=rng, device=rng.device)
    flips_N = torch.rand(n, generator=rng, device=rng.device) < (0.5 if flip else 0)
    columns = torch.arange(width, device=rng.device)
    columns = right[:, None] + torch.where(flips_N[:, None], columns.flip(0), columns)
    rows = down[:, None] + torch.arange(height, device=rng.device)
    image = torch.arange(n, device=rng.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
