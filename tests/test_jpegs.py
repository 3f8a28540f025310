"""Real images for as many bytes as a dataset has."""

import io

import pytest
import tiny
import torch
from PIL import Image

from dd_tasks.jpegs import jpeg, spend


def test_a_file_is_a_jpeg_of_the_image() -> None:
    ramp = torch.arange(16, dtype=torch.uint8).mul(16).expand(3, 16, 16)
    image = Image.open(io.BytesIO(jpeg(ramp)))
    assert image.format == "JPEG" and image.size == (16, 16)
    assert abs(image.getpixel((15, 3))[0] - 240) < 10


@pytest.mark.parametrize("each", [1, 2, 4])
def test_as_many_of_each_class_as_fit_and_not_one_more(each: int) -> None:
    found = tiny.digit_candidates(4)
    full, most = spend(found, tiny.SIDE, 10**9)
    assert len(full) == 40
    _, needed = spend(found, tiny.SIDE, sum(_sizes(found, each)))
    canvas, used = spend(found, tiny.SIDE, needed)
    assert used == needed <= most and torch.bincount(canvas.targets_N).tolist() == [each] * 10
    assert len(spend(found, tiny.SIDE, needed - 1)[0]) == 10 * max(1, each - 1)
    assert canvas.images_NCHW.shape[1:] == (3, tiny.SIDE, tiny.SIDE)
    assert torch.equal(canvas.images_NCHW[0], full.images_NCHW[0])


def _sizes(found, each: int) -> list[int]:
    from dd_tasks.decoding import decode

    taken: dict[int, int] = {}
    sizes = []
    for image, label in zip(found.images, found.labels, strict=True):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= each:
            sizes.append(len(jpeg(decode(image, tiny.SIDE))))
    return sizes
