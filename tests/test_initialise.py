"""The first canvas: which real images, in which order, and none of them twice."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from dd_tasks import initialise
from dd_tasks.clusters import nearest_to_centres
from dd_tasks.decoding import decode
from dd_tasks.errors import InputError
from dd_tasks.initialise import Collage, Noise, Representatives, WholeImages, first_canvas, joined
from dd_tasks.shards import Candidates
from dd_tasks.types import Canvas, Reading
from dd_tasks.voters import Everyone

NOBODY = tiny.studio(None)


class Grey:
    """Embeds an image as its brightness."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return self.scale * 255 * pixels_NCHW.mean((1, 2, 3), keepdim=True)


class Columns:
    """Embeds an image as brightness of its left half."""

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return 255 * pixels_NCHW[..., :8].mean((1, 2, 3), keepdim=True)


def greys(*levels: list[int]) -> Candidates:
    """Images of one grey level, by class."""
    rows = [(level, k) for k, of_class in enumerate(levels) for level in of_class]
    images = tuple(tiny.png(torch.full((3, 16, 16), level, dtype=torch.uint8)) for level, _ in rows)
    return Candidates(images, tuple(k for _, k in rows), tuple(f"{k}-{level}" for level, k in rows))


def images_of(candidates: Candidates, keys: Sequence[tuple[str, ...]]) -> Tensor:
    by_key = dict(zip(candidates.keys, candidates.images, strict=True))
    return torch.stack([decode(by_key[key], tiny.SIDE) for (key,) in keys])


@pytest.mark.parametrize("ipc", [1, 3, 5])
def test_whole_images_are_the_first_of_each_class_by_index_then_class_and_none_twice(ipc):
    candidates = tiny.digit_candidates(5)
    canvas = WholeImages(flip=False).choose(candidates, ipc, tiny.SIDE, tiny.studio())
    of_class = [
        [k for k, label in zip(candidates.keys, candidates.labels, strict=True) if label == c] for c in range(10)
    ]
    assert canvas.sources == tuple((of_class[c][i],) for i in range(ipc) for c in range(10))
    assert len(set(canvas.sources)) == 10 * ipc
    assert canvas.targets_N.tolist() == list(range(10)) * ipc
    assert torch.equal(canvas.images_NCHW, images_of(candidates, canvas.sources))


def test_half_of_whole_images_are_mirrored_as_the_generator_says():
    candidates = tiny.digit_candidates(5)
    first, again, other = (WholeImages().choose(candidates, 5, 16, tiny.studio(seed=s)) for s in (1, 1, 2))
    assert torch.equal(first.images_NCHW, again.images_NCHW)
    assert not torch.equal(first.images_NCHW, other.images_NCHW)
    plain_NCSS = images_of(candidates, first.sources)
    same_N, mirrored_N = ((first.images_NCHW == x).flatten(1).all(1) for x in (plain_NCSS, plain_NCSS.flip(3)))
    assert (same_N | mirrored_N).all()
    assert 10 <= same_N.sum() <= 40 and 10 <= mirrored_N.sum() <= 40


def test_images_are_brought_to_the_side_asked_for():
    canvas = WholeImages(flip=False).choose(greys([10], [200]), 1, 8, NOBODY)
    assert canvas.images_NCHW.shape == (2, 3, 8, 8)
    assert canvas.images_NCHW.flatten(1).float().mean(1).tolist() == [10, 200]


@pytest.mark.parametrize(
    ("initialiser", "ipc", "least", "demand"),
    [
        (Noise(), 10, 0, 0),
        (WholeImages(), 1, 1, 1),
        (WholeImages(), 50, 50, 50),
        (Representatives(candidates=30), 10, 10, 30),
        (Representatives(candidates=30), 30, 30, 30),
        (Representatives(candidates=30), 31, 31, 31),
        (Representatives(candidates=30, factor=2), 8, 32, 32),
        (Collage(factor=1, candidates=30), 10, 10, 30),
        (Collage(factor=2, candidates=30), 7, 28, 30),
        (Collage(factor=2, candidates=30), 8, 32, 32),
    ],
)
def test_images_asked_of_a_class(initialiser, ipc, least, demand):
    assert (initialiser.least(ipc), initialiser.demand(ipc)) == (least, demand)


def test_the_row_nearest_each_centre_represents_it_largest_cluster_first():
    rng = np.random.default_rng(0)
    sizes, spots = (4, 9, 6), ((0, 0), (50, 0), (0, 50))
    blobs = [np.array(spot) + rng.normal(size=(n, 2)) for n, spot in zip(sizes, spots, strict=True)]
    embedding_NE = np.concatenate(blobs)
    nearest = [int(((blob - blob.mean(0)) ** 2).sum(1).argmin()) for blob in blobs]
    assert nearest_to_centres(embedding_NE, 3, seed=0) == [4 + nearest[1], 13 + nearest[2], nearest[0]]


def test_two_centres_with_the_same_nearest_row_get_two_rows(monkeypatch):
    embedding_NE = np.array([[0.0], [1.0], [5.0], [9.0], [10.0]])

    class Found:
        """k-means that ended with centres 5.1 and 4.9."""

        def __init__(self, clusters, **options):
            self.labels_ = np.array([1, 1, 0, 0, 0])

        def fit(self, rows):
            return self

        def transform(self, rows):
            return abs(rows - np.array([[5.1, 4.9]]))

    monkeypatch.setattr("sklearn.cluster.KMeans", Found)
    assert nearest_to_centres(embedding_NE, 2, seed=0) == [2, 1]


def test_images_all_alike_are_still_taken_once_each():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken = nearest_to_centres(np.ones((5, 3)), 4, seed=0)
    assert len(set(taken)) == 4


def test_as_many_clusters_as_rows_takes_every_row_once():
    assert sorted(nearest_to_centres(np.arange(6.0)[:, None] ** 2, 6, seed=0)) == list(range(6))


def test_representatives_stand_for_the_clusters_of_their_class():
    candidates = greys([10, 11, 12, 199, 200, 201, 202, 200], [90, 91, 92, 91, 14, 15, 16])
    canvas = Representatives(candidates=8).choose(candidates, 2, 16, tiny.studio(Grey()))
    assert canvas.sources == (("0-200",), ("1-91",), ("0-11",), ("1-15",))
    assert canvas.targets_N.tolist() == [0, 1, 0, 1]
    assert torch.equal(canvas.images_NCHW, images_of(candidates, canvas.sources))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_every_observer_weighs_the_same_in_the_choice(scale):
    images = list(tiny.digit_candidates(4).images)
    plain_NE, scaled_NE = (initialise._embed(images, 16, tiny.studio(Grey(s), Columns())) for s in (1.0, scale))
    assert plain_NE.shape == (40, 2)
    torch.testing.assert_close(plain_NE, scaled_NE)
    torch.testing.assert_close(plain_NE.abs().mean(0), torch.ones(2))


def test_representatives_of_digits_are_of_their_class_distinct_and_a_function_of_the_seed():
    candidates = tiny.digit_candidates(20)
    label_of = dict(zip(candidates.keys, candidates.labels, strict=True))
    canvas, again = (Representatives(candidates=20).choose(candidates, 4, 16, tiny.studio(seed=3)) for _ in range(2))
    assert len(set(canvas.sources)) == 40 and canvas.sources == again.sources
    assert [label_of[key] for (key,) in canvas.sources] == canvas.targets_N.tolist() == list(range(10)) * 4
    assert torch.equal(canvas.images_NCHW, images_of(candidates, canvas.sources))


def test_noise_has_the_mean_and_deviation_of_the_data_class_after_class():
    candidates = Candidates((), (), ())
    canvas, again, other = (Noise().choose(candidates, 2, 64, tiny.studio(seed=s)) for s in (1, 1, 2))
    assert canvas.targets_N.tolist() == [0, 1, 2, 0, 1, 2] and canvas.sources == ((),) * 6
    pixels_NCSS = canvas.images_NCHW / 255
    rough = {"rtol": 0, "atol": 0.02}  # the range of pixels cuts the tails off
    torch.testing.assert_close(pixels_NCSS.mean((0, 2, 3)), torch.tensor(tiny.MEAN), **rough)
    torch.testing.assert_close(pixels_NCSS[:, 1].std(), torch.tensor(tiny.STD[1]), **rough)
    assert torch.equal(canvas.images_NCHW, again.images_NCHW) and not torch.equal(canvas.images_NCHW, other.images_NCHW)


class Bright:
    """Finds class 0 in what is bright in the middle, by `sharpness` nats a grey level; notes what it was shown."""

    def __init__(self, sharpness: float = 0.1) -> None:
        self.sharpness, self.seen = sharpness, []

    def read(self, pixels_NCHW: Tensor, *, moments: bool = False) -> Reading:
        self.seen.append(pixels_NCHW)
        grey_N = 255 * pixels_NCHW[:, :, 4:12, 4:12].mean((1, 2, 3)) * self.sharpness
        return Reading(torch.stack([grey_N, torch.full_like(grey_N, 128 * self.sharpness)], 1))


LEVELS = [90, 200, 10, 140, 60, 250, 170]


@pytest.mark.parametrize(
    ("difficulty", "of_0", "of_1"),
    [("easy", (250, 200, 170), (10, 60, 90)), ("hard", (10, 60, 90), (250, 200, 170)),
     ("medium", (170, 140, 90), (90, 140, 170))],
)  # fmt: skip
def test_a_collage_of_whole_images_ranks_them_by_difficulty(difficulty, of_0, of_1):
    collage = Collage(factor=1, difficulty=difficulty)
    canvas = collage.choose(greys(LEVELS, LEVELS), 3, 16, tiny.studio(Bright(), classes=2))
    expected = tuple((f"{k}-{level}",) for pair in zip(of_0, of_1, strict=True) for k, level in enumerate(pair))
    assert canvas.sources == expected and canvas.targets_N.tolist() == [0, 1] * 3
    assert canvas.images_NCHW.shape == (6, 3, 16, 16)
    assert [int(image.float().mean()) for image in canvas.images_NCHW] == [int(k.split("-")[1]) for (k,) in expected]


def test_patches_are_laid_out_row_by_row_in_the_order_of_their_ranks():
    canvas = Collage(factor=2).choose(greys(list(range(0, 240, 20))), 2, 16, tiny.studio(Bright(), classes=1))
    for image_CSS, keys, levels in zip(
        canvas.images_NCHW, canvas.sources, ((220, 200, 180, 160), (140, 120, 100, 80)), strict=True
    ):
        corners = [image_CSS[:, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
        assert [set(corner.flatten().tolist()) for corner in corners] == [{level} for level in levels]
        assert keys == tuple(f"0-{level}" for level in levels)


def test_of_every_image_the_easiest_window_is_kept_and_judged_amid_the_mean_colour():
    ramp_CSS = torch.arange(16).mul(15).expand(3, 16, 16).to(torch.uint8)
    candidates = Candidates((tiny.png(ramp_CSS),) * 4, (0,) * 4, tuple("abcd"))
    judge = Bright()
    one = Collage(factor=2, crops=6).choose(candidates, 1, 16, tiny.studio(judge, classes=1))
    (seen_NCSS,) = judge.seen
    torch.testing.assert_close(seen_NCSS[0, :, 0, 0], torch.tensor(tiny.MEAN))
    greys_QP = 255 * seen_NCSS[:, :, 4:12, 4:12].mean((1, 2, 3)).view(6, 4)
    best = sorted(greys_QP.max(0).values.tolist(), reverse=True)
    found = [one.images_NCHW[0, :, y : y + 8, x : x + 8].float().mean().item() for y in (0, 8) for x in (0, 8)]
    assert found == pytest.approx(best) and sorted(key for (keys) in one.sources for key in keys) == list("abcd")


def test_several_judges_of_a_collage_are_weighed():
    chosen = []
    for sharpness in ((0.02,), (-0.03,), (0.02, -0.03)):
        judges = [Bright(s) for s in sharpness]
        canvas = Collage(judges=Everyone()).choose(greys(LEVELS), 1, 16, tiny.studio(*judges, classes=1))
        hardness = {level: sum(math.log1p(math.exp(s * (128 - level))) for s in sharpness) for level in LEVELS}
        easiest = min(LEVELS, key=hardness.__getitem__)
        assert canvas.sources == ((f"0-{easiest}",),)
        chosen.append(easiest)
    assert len(set(chosen)) == 3


def test_a_side_that_patches_do_not_fill_is_refused():
    with pytest.raises(InputError, match="side 16 cannot be laid out in 3 x 3 patches"):
        Collage(factor=3).choose(greys(LEVELS), 1, 16, tiny.studio(Bright(), classes=1))


def test_representatives_can_be_tiles():
    candidates = greys([10, 11, 199, 200, 60, 61, 240, 241])
    canvas = Representatives(candidates=8, factor=2).choose(candidates, 1, 16, tiny.studio(Grey(), classes=1))
    corners = [canvas.images_NCHW[0, :, y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
    levels = [int(key.split("-")[1]) for key in canvas.sources[0]]
    assert [set(corner.flatten().tolist()) for corner in corners] == [{level} for level in levels]
    assert sorted(level // 50 for level in levels) == [0, 1, 3, 4]


def of_three(candidates: Candidates) -> Candidates:
    """Those of the first three classes."""
    rows = [row for row, label in enumerate(candidates.labels) if label < 3]
    return Candidates(*(tuple(column[r] for r in rows) for column in astuple(candidates)))


def sha256(canvas: Canvas) -> str:
    told = (
        canvas.images_NCHW.contiguous().numpy().tobytes() + repr((canvas.targets_N.tolist(), canvas.sources)).encode()
    )
    return hashlib.sha256(told).hexdigest()


EVERY = (
    Noise(),
    WholeImages(),
    WholeImages(flip=False),
    Collage(candidates=8),
    Representatives(candidates=8),
    Representatives(candidates=8, flip=True),
)


@pytest.mark.parametrize("side", [16, 17])
@pytest.mark.parametrize("part", [16, 3, 1])
@pytest.mark.parametrize("initialiser", EVERY)
def test_no_pixel_depends_on_the_size_of_parts(initialiser, part, side, monkeypatch):
    candidates = of_three(tiny.digit_candidates(8))
    whole = initialiser.choose(candidates, 5, side, tiny.studio(seed=5))
    monkeypatch.setattr(initialise, "PART", part)
    assert sha256(initialiser.choose(candidates, 5, side, tiny.studio(seed=5))) == sha256(whole)


@pytest.mark.parametrize("side", [16, 17])
def test_noise_in_parts_is_what_the_generator_gives_at_once(side, monkeypatch):
    monkeypatch.setattr(initialise, "PART", 1)
    at_once_NCSS = torch.randn(21, 3, side, side, generator=tiny.generator(5))
    mean_C11, std_C11 = (torch.tensor(x).view(3, 1, 1) for x in (tiny.MEAN, tiny.STD))
    images_NCSS = ((at_once_NCSS * std_C11 + mean_C11).clamp(0, 1) * 255).round().to(torch.uint8)
    parts = list(Noise().parts((), 7, side, tiny.studio(seed=5)))
    assert len(parts) == 2 and torch.equal(joined([part for _, part in parts]).images_NCHW, images_NCSS)


@pytest.mark.parametrize("initialiser", [WholeImages(), Representatives(candidates=8, flip=True)])
def test_mirroring_is_drawn_in_the_order_of_the_canvas(initialiser):
    candidates, studio = of_three(tiny.digit_candidates(8)), tiny.studio(seed=5)
    canvas = initialiser.choose(candidates, 5, 16, tiny.studio(seed=5))
    for _ in range(3 if isinstance(initialiser, Representatives) else 0):
        studio.new_seed()
    flips_N = torch.rand(15, generator=studio.rng) < 0.5
    plain_NCSS = images_of(candidates, canvas.sources)
    assert torch.equal(canvas.images_NCHW, torch.where(flips_N[:, None, None, None], plain_NCSS.flip(3), plain_NCSS))


def test_candidates_may_come_class_by_class():
    candidates = of_three(tiny.digit_candidates(8))
    each = [
        Candidates(*(tuple(column[r] for r in rows) for column in astuple(candidates)))
        for rows in initialise.by_class(candidates)
    ]
    for initialiser in (WholeImages(), Collage(candidates=8), Representatives(candidates=8)):
        parts = sorted(first_canvas(initialiser, each, 2, 16, tiny.studio(seed=5)), key=lambda part: part[0])
        whole = initialiser.choose(candidates, 2, 16, tiny.studio(seed=5))
        assert sha256(joined([canvas for _, canvas in parts])) == sha256(whole)


def test_parts_are_of_a_size_that_does_not_depend_on_the_number_of_classes():
    for classes in (3, 1000):
        sizes = [len(part) for _, part in Noise().parts((), 2, 64, tiny.studio(classes=classes))]
        assert sum(sizes) == 2 * classes and max(sizes) <= initialise.most_slots(64) == 336


def test_an_initialiser_that_makes_all_at_once_is_cut_into_parts(monkeypatch):
    class Inverted(WholeImages):
        def choose(self, candidates, ipc, side, studio):
            canvas = super().choose(candidates, ipc, side, studio)
            return replace(canvas, images_NCHW=255 - canvas.images_NCHW)

    monkeypatch.setattr(initialise, "PART", 4)
    candidates = of_three(tiny.digit_candidates(8))
    parts = list(first_canvas(Inverted(), (candidates,), 2, 16, tiny.studio(seed=5)))
    assert [start for start, _ in parts] == [0, 4]
    assert sha256(joined([canvas for _, canvas in parts])) == sha256(
        Inverted().choose(candidates, 2, 16, tiny.studio(seed=5))
    )
