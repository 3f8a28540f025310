"""Images of every kind to RGB, within bounds."""

import io
import struct
import zlib

import pytest
import torch
from PIL import Image

from dd_tasks.decoding import PixelStatistics, decode, decode_whole, mean_and_std_of
from dd_tasks.pngs import PASSES


def encoded(value: int = 100, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).convert(mode).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "WEBP")]
)
def test_every_mode_decodes_to_rgb(mode, kind):
    image = decode_whole(encoded(100, mode=mode, kind=kind))
    assert image.shape == (3, 8, 8) and image.dtype == torch.uint8
    assert (image.int() - 100).abs().max() <= 2


def test_sixteen_bits_become_eight():
    file = io.BytesIO()
    Image.new("I;16", (4, 4), 65535).save(file, "PNG")
    assert decode_whole(file.getvalue()).unique().tolist() == [255]


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (40, 20), (21, 33), (1, 5000)])
def test_decode_crops_and_resizes(size):
    image = decode(encoded(77, size=size), 16)
    assert image.shape == (3, 16, 16) and image.unique().tolist() == [77]


def test_the_centre_is_kept():
    picture = Image.new("L", (24, 8), 0)
    picture.paste(255, (8, 0, 16, 8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    assert decode(file.getvalue(), 8).unique().tolist() == [255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_bomb_is_refused_by_its_header(kind):
    image = bytearray(encoded(kind=kind))
    if kind == "PNG":
        image[16:24] = (60_000).to_bytes(4) * 2
    else:
        frame = image.index(b"\xff\xc0")
        image[frame + 5 : frame + 9] = (60_000).to_bytes(2) * 2
    with pytest.raises(ValueError, match="60000 x 60000 is above 64000000 pixels"):
        decode_whole(bytes(image))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: bytes, *, side: int = 8, interlaced: int = 0, spoil: int | None = None) -> bytes:
    """8-bit RGB with these rows, whatever they hold; `spoil` changes a byte of the packed ones."""
    packed = bytearray(zlib.compress(rows))
    if spoil is not None:
        packed[spoil] ^= 0xFF
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, interlaced)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", bytes(packed)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (png(bytes([9]) * 25 * 8), "a row of pixels has an unknown filter"),
        (png(bytes(25 * 7)), "some of the pixels are not there"),
        (png(b""), "some of the pixels are not there"),
        (png(bytes(25 * 8), spoil=2), "the pixels cannot be unpacked"),
        (png(bytes(25 * 8), spoil=-1), "the pixels cannot be unpacked"),
        (png(bytes(25 * 8))[:-25], "some of the pixels are not there"),
        (png(bytes(25 * 8)).replace(b"IDATx", b"IDATy"), "pixels are unlike their checksum, or cut short"),
        (png(bytes(25 * 8)).replace(b"IDAT", b"iDAT"), "some of the pixels are not there"),
        (png(bytes(24 * 8), interlaced=1), "some of the pixels are not there"),
        (png(bytes(3001 * 700) + bytes([7]) + bytes(3001 * 300 - 1), side=1000), "an unknown filter"),
    ],
)  # fmt: skip
def test_a_png_whose_pixels_are_damaged_is_refused_before_libpng_ends_the_process(image, reason):
    with pytest.raises(ValueError, match=f"cannot be decoded: PNG: .*{reason}"):
        decode_whole(image)


def test_a_png_of_deep_pixels_is_refused_by_its_header():
    image = bytearray(png(bytes(25 * 8)))
    image[16:26] = struct.pack(">IIBB", 8000, 8000, 16, 6)
    with pytest.raises(ValueError, match="the pixels take 512008000 bytes, above 268435456"):
        decode_whole(bytes(image))


@pytest.mark.parametrize("side", [1, 3, 8, 1200])
def test_a_png_of_any_size_interlaced_or_not_is_whole(side):
    plain = png(bytes((1 + 3 * side) * side), side=side)
    assert decode_whole(plain).shape == (3, side, side)
    passes = [(-(-(side - x) // dx), -(-(side - y) // dy)) for x, y, dx, dy in PASSES]
    rows = bytes(sum((1 + 3 * wide) * high for wide, high in passes if wide > 0 and high > 0))
    assert decode_whole(png(rows, side=side, interlaced=1)).shape == (3, side, side)


def test_statistics_of_some_classes_are_those_of_their_pixels():
    images = [torch.randint(0, 256, (3, 4, 4 + label), dtype=torch.uint8) for label in (0, 1, 2, 1)]
    statistics = PixelStatistics()
    for image, label in zip(images, (0, 1, 2, 1), strict=True):
        statistics.add(image, label)
    by_class = statistics.by_class(4)
    assert by_class[3] == (0,) * 7
    some = torch.cat([images[i].flatten(1) for i in (1, 2, 3)], 1).double() / 255
    mean, std = mean_and_std_of([by_class[label] for label in (1, 2)])
    assert mean == pytest.approx(some.mean(1).tolist()) and std == pytest.approx(some.std(1, correction=0).tolist())
    whole = mean_and_std_of(by_class)
    for found, expected in zip(whole, statistics.mean_and_std(), strict=True):
        assert found == pytest.approx(expected)


def test_statistics_are_those_of_all_pixels():
    images = [torch.randint(0, 256, (3, size, 5), dtype=torch.uint8) for size in (3, 4)]
    statistics = PixelStatistics()
    for image in images:
        statistics.add(image)
    pixels = torch.cat([image.flatten(1) for image in images], 1).double() / 255
    mean, std = statistics.mean_and_std()
    assert mean == pytest.approx(pixels.mean(1).tolist()) and std == pytest.approx(pixels.std(1, correction=0).tolist())
