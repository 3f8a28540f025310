"""Images of every kind to RGB, within bounds."""

import io

import pytest
import torch
from PIL import Image

from dd_tasks.decoding import PixelStatistics, decode, decode_whole, mean_and_std_of


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
