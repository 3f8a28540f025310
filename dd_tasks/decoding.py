"""Encoded images to uint8 tensors, within bounds, and the exact statistics of their pixels.

C channels (3, RGB), H x W pixels, S the side of a square image.
"""

import io
import math
import re
from collections.abc import Iterable, Sequence
from struct import unpack_from

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from dd_tasks.pngs import expect_whole

MOST_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP")
RGB = 3  # torchvision.io.ImageReadMode.RGB
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # of JPEG, before the size
FLUSH = 1 << 20  # pixels; counting few at a time costs more than the counting


def decode_whole(image: bytes) -> Tensor:
    """uint8 [3, H, W] of a JPEG, PNG or WebP: grey and CMYK converted, alpha dropped. ValueError with the reason.

    On the processor also where a GPU is at hand: nvJPEG's pixels are others, and results would depend on the machine.
    """
    import torchvision.io  # noqa: F401  # registers the operator; takes seconds

    width, height = _size_of_png(image) or _size_of_jpeg(image) or _size_by_pillow(image)
    if width * height > MOST_PIXELS:
        raise ValueError(f"image of {width} x {height} is above {MOST_PIXELS} pixels")
    try:
        expect_whole(image)
        # The operator behind torchvision.io.decode_image, which formats a deprecation warning at every call.
        image_CHW = torch.ops.image.decode_image(torch.frombuffer(bytearray(image), dtype=torch.uint8), RGB, False)
    except (RuntimeError, ValueError) as error:
        reason = re.sub(r"^\w+, \S+:\d+, ", "", str(error).splitlines()[0])  # less the place in torchvision's source
        raise ValueError(f"image of {width} x {height} cannot be decoded: {reason}") from error
    return _eight_bits(image_CHW) if image_CHW.dtype == torch.uint16 else image_CHW


def _eight_bits(image_CHW: Tensor) -> Tensor:
    """Of 16; row by row, as the largest image leaves room for few copies."""
    found = np.empty(image_CHW.shape, np.uint8)
    for row, values_CW in enumerate(image_CHW.numpy().swapaxes(0, 1)):
        found[:, row] = values_CW // 257
    return torch.from_numpy(found)


# The first two save half the time of a small image; they answer None for whatever is out of the ordinary.


def _size_of_png(image: bytes) -> tuple[int, int] | None:
    if image[:8] != b"\x89PNG\r\n\x1a\n" or image[12:16] != b"IHDR" or len(image) < 24:
        return None
    width, height = unpack_from(">II", image, 16)
    return width, height


def _size_of_jpeg(image: bytes) -> tuple[int, int] | None:
    if image[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(image) and image[at] == 0xFF and image[at + 1] >= 0xC0:
        length, _, height, width = unpack_from(">HBHH", image, at + 2)
        if image[at + 1] in FRAME_MARKERS:
            return width, height
        at += 2 + length
    return None


def _size_by_pillow(image: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as header:
            return header.size
    except Image.UnidentifiedImageError:
        raise ValueError(f"{len(image)} bytes that are no image ({', '.join(FORMATS)})") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"image cannot be opened: {error}") from error


def decode(image: bytes, side: int) -> Tensor:
    """uint8 [3, S, S]: the central square, resized to `side` (bilinear, antialiased). ValueError with the reason.

    The same as resizing the short side and cropping the centre, but an image of 1 x 1,000,000 stays small.
    """
    image_CHW = decode_whole(image)
    _, height, width = image_CHW.shape
    if height == width == side:
        return image_CHW
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    square_CSS = image_CHW[:, top : top + short, left : left + short]
    if short == side:
        return square_CSS.contiguous()
    return interpolate(square_CSS[None], (side, side), mode="bilinear", antialias=True, align_corners=False)[0]


class PixelStatistics:
    """Counts every value of every channel, so that mean and std are exact and know no order; and by class how many
    pixels there are, their sums and those of their squares."""

    def __init__(self) -> None:
        self._counts_C256 = torch.zeros(3, 256, dtype=torch.int64)
        self._sums_7: dict[int, Tensor] = {}
        self._waiting: dict[int, list[Tensor]] = {}
        self._pixels_waiting = 0
        self._sizes: set[tuple[int, int]] = set()

    def add(self, image_CHW: Tensor, label: int = 0) -> None:
        """Takes uint8 [3, H, W] of class id `label`."""
        _, height, width = image_CHW.shape
        if len(self._sizes) < 2:
            self._sizes.add((height, width))
        self._waiting.setdefault(label, []).append(image_CHW.flatten(1))
        self._pixels_waiting += height * width
        if self._pixels_waiting >= FLUSH:
            self._flush()

    def _flush(self) -> None:
        value_256 = torch.arange(256)
        for label, images in self._waiting.items():
            counts_C256 = torch.stack([values.bincount(minlength=256) for values in torch.cat(images, 1)])
            self._counts_C256 += counts_C256
            sums = counts_C256[0].sum()[None], counts_C256 @ value_256, counts_C256 @ value_256.square()
            self._sums_7[label] = self._sums_7.get(label, 0) + torch.cat(sums)
        self._waiting, self._pixels_waiting = {}, 0

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images, None when they differ in it."""
        return next(iter(self._sizes)) if len(self._sizes) == 1 else None

    def by_class(self, classes: int) -> list[tuple[int, ...]]:
        """Of each class the number of pixels, their sums by channel and the sums of their squares."""
        self._flush()
        return [tuple(self._sums_7[label].tolist()) if label in self._sums_7 else (0,) * 7 for label in range(classes)]

    def mean_and_std(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Per channel over all pixels in [0, 1]; the std is biased. An image counts by its pixels."""
        self._flush()
        values, counts_C256 = torch.arange(256, dtype=torch.float64) / 255, self._counts_C256.double()
        shares_C256 = counts_C256 / counts_C256.sum(1, keepdim=True)
        mean_C = shares_C256 @ values
        std_C = (shares_C256 * (values - mean_C[:, None]) ** 2).sum(1).sqrt()
        (r, g, b), (sr, sg, sb) = mean_C.tolist(), std_C.tolist()
        return (r, g, b), (sr, sg, sb)


def mean_and_std_of(parts: Iterable[Sequence[int]]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The same, of `by_class`'s sums of some classes; exact until the last division."""
    pixels, *sums = (sum(column) for column in zip(*parts, strict=True))
    mean = [total / pixels / 255 for total in sums[:3]]
    std = [
        math.sqrt((pixels * square - total**2) / pixels**2) / 255
        for total, square in zip(sums[:3], sums[3:], strict=True)
    ]
    (r, g, b), (sr, sg, sb) = mean, std
    return (r, g, b), (sr, sg, sb)
