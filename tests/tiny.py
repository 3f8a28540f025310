"""Small observers, studios and canvases: three classes, 16 pixels a side, no training."""

import io
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from dd_tasks.committee import Observer, seeded
from dd_tasks.decoding import decode
from dd_tasks.feeds import InMemory
from dd_tasks.networks import Shape, build
from dd_tasks.packing import digits_samples
from dd_tasks.shards import Candidates
from dd_tasks.statistics import measure
from dd_tasks.types import Canvas, Crops, Studio, T, Views

SIDE, CLASSES = 16, 3
CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.6), (0.25, 0.2, 0.3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """Floats in [0, 1]."""
    return torch.rand(n, 3, side, side, generator=generator(seed))


def labels(n: int) -> Tensor:
    return torch.arange(n) % CLASSES


def observer(seed: int = 0, architecture: str = "convnet2_bn_w4", side: int = SIDE) -> Observer:
    """Random weights; the running statistics and those of the layers and patches are measured on random pixels."""
    net = seeded(lambda: build(architecture, Shape(CLASSES, side, MEAN, STD)), seed)
    with torch.no_grad():
        net.train()(pixels(24, seed + 100, side))
    net.eval()
    real = [(pixels(24, seed + 200, side), labels(24))]
    statistics, patches = (measure(net, real, CLASSES, patches=by_patch)[0] for by_patch in (False, True))
    return Observer(architecture, net, statistics, patches=patches)


def committee() -> tuple[Observer, ...]:
    return observer(0), observer(1, "thin_resnet4_w4")


def studio(*observers: object, seed: int = 0, classes: int = CLASSES) -> Studio:
    return Studio(observers or committee(), classes, MEAN, STD, generator(seed), CPU)  # type: ignore[arg-type]


def canvas(n: int = 6, seed: int = 0, side: int = SIDE) -> Canvas:
    images_NCSS = (pixels(n, seed, side) * 255).round().to(torch.uint8)
    return Canvas(images_NCSS, labels(n), tuple((f"real-{i}",) for i in range(n)))


def unmixed(images_V: Tensor, crops: Crops, logits_VK: Tensor, epochs_V: Tensor | None = None) -> Views:
    """Views without partners."""
    n = len(images_V)
    zeros = torch.zeros(n, dtype=torch.int32)
    boxes_V4 = torch.zeros(n, 4, dtype=torch.int16)
    epochs_V = zeros if epochs_V is None else epochs_V
    return Views(epochs_V.int(), images_V.int(), crops, zeros, crops, boxes_V4, logits_VK.half())


def png(image_CHW: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()


@cache
def digits(split: str, most: int, side: int = SIDE) -> InMemory:
    """The first of scikit-learn's digits."""
    chosen = list(islice(digits_samples(split, side)[1], most))
    images_NCSS = torch.stack([decode(image, side) for _, image, _, _ in chosen])
    return InMemory(images_NCSS, torch.tensor([label for *_, label in chosen]))


@cache
def digit_candidates(per_class: int, classes: int = 10) -> Candidates:
    """The first `per_class` digits of each class, sorted by class as `shards.sample_per_class` leaves them."""
    found: list[list[tuple[bytes, int, str]]] = [[] for _ in range(classes)]
    for key, image, _, label in digits_samples("train", SIDE)[1]:
        if label < classes and len(found[label]) < per_class:
            found[label].append((image, label, key))
    images, ids, keys = zip(*(one for of_class in found for one in of_class), strict=True)
    return Candidates(images, ids, keys)


class Watched:
    """An observer that notes what it is asked: sizes of batches, lowest and highest pixel, whether moments, patches."""

    def __init__(self, inner: Observer) -> None:
        self.inner, self.name, self.statistics, self.prior = inner, inner.name, inner.statistics, inner.prior
        self.patches = inner.patches
        self.sizes: list[int] = []
        self.moments: list[bool] = []
        self.asked_patches: list[bool] = []
        self.lowest, self.highest = float("inf"), float("-inf")

    def read(self, pixels_NCHW: Tensor, *, moments: bool = False, patches: bool = False) -> object:
        self.sizes.append(len(pixels_NCHW))
        self.moments.append(moments)
        self.asked_patches.append(patches)
        self.lowest = min(self.lowest, pixels_NCHW.min().item())
        self.highest = max(self.highest, pixels_NCHW.max().item())
        return self.inner.read(pixels_NCHW, moments=moments, patches=patches)

    def readings(
        self, pixels_NCHW: Tensor, targets_N: Tensor, *, moments: bool = False, patches: bool = False
    ) -> Iterator[object]:
        yield slice(None), self.read(pixels_NCHW, moments=moments, patches=patches)

    def embed(self, pixels_NCHW: Tensor) -> Tensor:
        return self.inner.embed(pixels_NCHW)

    def batch_statistics(self) -> object:
        return self.inner.batch_statistics()


class Counted:
    """A Track that notes how many items each loop announced and how many it had."""

    def __init__(self) -> None:
        self.announced: list[int | None] = []
        self.had: list[int] = []

    def __call__(self, items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
        self.announced.append(total)
        self.had.append(0)
        for item in items:
            self.had[-1] += 1
            yield item
