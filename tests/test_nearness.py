"""The nearest real image of a distilled one: found among all, block by block, and what is said of many of them."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tiny import CPU, Counted, digits, pixels
from torch import Tensor

from dd_tasks import nearness
from dd_tasks.feeds import InMemory
from dd_tasks.types import Nearest


def named(images_NCSS: Tensor) -> InMemory:
    count = len(images_NCSS)
    return InMemory(images_NCSS, torch.zeros(count, dtype=torch.int64), tuple(f"real-{i}" for i in range(count)))


def real(count: int = 40) -> InMemory:
    return named(digits("train", count).images_NCHW)


def random_images(count: int) -> Tensor:
    return (pixels(count) * 255).to(torch.uint8)


def found(images_NCSS: Tensor, feed: InMemory, besides: Sequence[Sequence[str]] | None = None) -> Nearest:
    return nearness.nearest(images_NCSS, feed, besides=besides, device=CPU)


def test_a_copy_has_similarity_1_and_its_key() -> None:
    feed = real()
    near = found(feed.images_NCHW[[7, 30]], feed)
    assert near.keys == ("real-7", "real-30")
    assert near.similarity_N.dtype == torch.float32
    assert torch.allclose(near.similarity_N, torch.ones(2), atol=1e-6) and near.similarity_N.max() <= 1


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: image.flip(-1),
        lambda image: image // 2,
        lambda image: image // 2 + 100,
        lambda image: image.float().add(torch.randn(image.shape, generator=torch.Generator().manual_seed(0))).byte(),
    ],
    ids=["mirrored", "darker", "of less contrast", "with noise"],
)
def test_an_altered_copy_is_still_near(changed: object) -> None:
    feed = real()
    image_CSS = feed.images_NCHW[11].clamp(10, 240)
    near = found(changed(image_CSS)[None], feed)  # type: ignore[operator]
    assert near.keys == ("real-11",) and near.similarity_N[0] > 0.99


def test_blocks_give_what_all_at_once_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    feed, images_NCSS = named(random_images(23)), random_images(10).flip(0)
    besides = [(f"real-{i}", "of no image") for i in range(10)]
    wanted_keys, wanted = by_hand(images_NCSS, feed, besides)
    for rows in (1, 4, 23, 100):
        monkeypatch.setattr(nearness, "BLOCK_ROWS", rows)
        track = Counted()
        near = nearness.nearest(images_NCSS, feed, besides=besides, device=CPU, track=track)
        assert near.keys == wanted_keys
        assert near.similarity_N.numpy() == pytest.approx(wanted, abs=1e-6)
        assert track.announced == track.had == [math.ceil(23 / rows)]


def by_hand(
    images_NCSS: Tensor, feed: InMemory, besides: Sequence[Sequence[str]]
) -> tuple[tuple[str, ...], list[float]]:
    """Pair by pair, by numpy's correlation."""
    keys, best = [], []
    for image_CSS, passed in zip(images_NCSS.numpy(), besides, strict=True):
        scores = {
            key: max(np.corrcoef(way.ravel(), real_CSS.ravel())[0, 1] for way in (image_CSS, image_CSS[..., ::-1]))
            for key, real_CSS in zip(feed.keys, feed.images_NCHW.numpy(), strict=True)
            if key not in passed
        }
        keys.append(max(scores, key=lambda key: scores[key]))
        best.append(scores[keys[-1]])
    return tuple(keys), best


def test_few_bytes_make_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearness, "BLOCK_BYTES", 3 * 4 * 3 * 16 * 16)
    track = Counted()
    nearness.nearest(random_images(2), real(10), device=CPU, track=track)
    assert track.had == [4]  # three images at once


def test_images_can_be_passed_over_each_its_own() -> None:
    feed = real()
    near = found(feed.images_NCHW[[3, 5, 5]], feed, [("real-3",), (), ("real-0", "real-5")])
    assert near.keys[0] != "real-3" and near.keys[1] == "real-5" and near.keys[2] not in ("real-0", "real-5")
    assert near.similarity_N[1] > 0.9999 > near.similarity_N[[0, 2]].max()


def test_two_images_of_one_key_are_both_passed_over() -> None:
    images_NCSS = digits("train", 40).images_NCHW
    feed = InMemory(images_NCSS[[4, 6, 4]], torch.zeros(3, dtype=torch.int64), ("same", "other", "same"))
    assert found(images_NCSS[[4]], feed, [("same",)]).keys == ("other",)


def test_passing_over_all_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no training image is left"):
        found(random_images(1), real(1), [("real-0",)])


def test_an_image_of_one_colour_is_like_none() -> None:
    plain = torch.full((2, 3, 224, 224), 255, dtype=torch.uint8)
    plain[1] = 37
    assert (nearness.centred(plain).abs() < 1e-3).all()
    assert found(plain[:, :, :16, :16], real()).similarity_N.abs().max() < 1e-3


def test_one_differing_pixel_value_is_seen() -> None:
    image = torch.full((1, 3, 16, 16), 9, dtype=torch.uint8)
    image[0, 0, 0, 0] = 10
    assert nearness.centred(image).norm().item() == pytest.approx(1, abs=1e-3)


def test_the_summary_counts_what_is_near() -> None:
    near = Nearest(("a", "b", "c", "d"), torch.tensor([0.2, 0.9, 0.6, 1.0]))
    said = nearness.summary(near, [("a", "x"), ("x",), (), ("d",)], torch.linspace(0, 0.8, 101))
    assert (said.least, said.median, said.most) == pytest.approx((0.2, 0.75, 1))
    assert (said.above, said.began, said.kept) == (2, 3, 2)
    scale = (said.random_least, said.random_median, said.random_95, said.random_most)
    assert scale == pytest.approx((0, 0.4, 0.76, 0.8), abs=1e-6)
