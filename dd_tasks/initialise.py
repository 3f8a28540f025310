"""What the images are before the first step: noise, real images, or patches of them, class by class.

A canvas comes in parts, so that no more of it is held than one part of every index.

Shape letters: N images, I images of a class, K classes, P patches, C channels, S side, T side of a patch, E embedding.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_tasks.clusters import nearest_to_centres
from dd_tasks.errors import InputError
from dd_tasks.ranges import Positive
from dd_tasks.shards import Candidates, decode
from dd_tasks.types import Canvas, Studio
from dd_tasks.voters import Judges, One, Voters

AT_ONCE = 500  # images before an observer
PART, PART_BYTES = 480, 4 << 20  # slots of a canvas that lie together, at most, and bytes of their pixels
Part = tuple[int, Canvas]  # the first slot, and what is there and in those after it
OfClass = tuple[Tensor, Sequence[tuple[str, ...]]]  # images_ICSS of one class, and the keys that each began from


class Demanding(Protocol):
    """What asks for real images."""

    def least(self, ipc: int) -> int:
        """Real images of every class without which there is nothing to choose."""
        ...

    def demand(self, ipc: int) -> int:
        """Real images a class to draw at random, without replacement."""
        ...


class Initialiser(Demanding, Protocol):
    needs_observers: bool  # whether `choose` asks the committee

    # Without these two, what it makes of a class is taken to depend on the candidates of all, and on the scale of their
    # pixels:
    # by_class: bool  # whether what it makes of a class depends on the candidates of that class alone
    # needs_scale: bool  # whether it looks at the real data's mean and std
    # Without this one, the candidates of all classes and the whole canvas are held in memory:
    # def parts(self, candidates: Iterable[Candidates], ipc, side, studio) -> Iterator[Part]: as InParts says

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        """The first canvas: `ipc` images of every class, ordered (0, class 0), (0, class 1), ..., (1, class 0), ..."""
        ...


class InParts:
    """An initialiser that makes its canvas part by part."""

    def parts(self, candidates: Iterable[Candidates], ipc: int, side: int, studio: Studio) -> Iterator[Part]:
        """The parts of the first canvas, each of at most `most_slots(side)` slots, in the order they are made; together
        they are all of it. Candidates come by classes, whole ones, in their order."""
        raise NotImplementedError

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        """All at once."""
        classes = len(set(candidates.labels)) or studio.classes
        parts = sorted(self.parts((candidates,), ipc, side, replace(studio, classes=classes)), key=lambda part: part[0])
        return joined([canvas for _, canvas in parts])


def first_canvas(
    initialiser: Initialiser, candidates: Iterable[Candidates], ipc: int, side: int, studio: Studio
) -> Iterator[Part]:
    """The parts of an initialiser's canvas, in the order they are made; where it knows none, they are cut from all."""
    if isinstance(initialiser, InParts) and type(initialiser).choose is InParts.choose:
        yield from initialiser.parts(candidates, ipc, side, studio)
        return
    found = list(candidates)
    images, labels, keys = (tuple(x for part in found for x in getattr(part, f)) for f in ("images", "labels", "keys"))
    yield from cut(initialiser.choose(Candidates(images, labels, keys), ipc, side, studio))


def most_slots(side: int) -> int:
    """Slots of one part: at most PART, and no more than PART_BYTES hold; a multiple of 16 where they may be as many."""
    slots = max(1, min(PART, PART_BYTES // (3 * side**2)))
    return slots // 16 * 16 or slots


def cut(canvas: Canvas) -> Iterator[Part]:
    """A canvas in parts."""
    most = most_slots(canvas.images_NCHW.shape[-1])
    yield from ((start, canvas[start : start + most]) for start in range(0, len(canvas), most))


def joined(parts: Sequence[Canvas]) -> Canvas:
    """The parts one after the other."""
    images_NCHW = torch.cat([part.images_NCHW for part in parts])
    targets_N = torch.cat([part.targets_N for part in parts])
    return Canvas(images_NCHW, targets_N, tuple(keys for part in parts for keys in part.sources))


@dataclass(frozen=True)
class Noise(InParts):
    """Gaussian noise of the real data's channel mean and std, within the range of pixels (SRe2L, methods section 1)."""

    needs_observers = False
    by_class = needs_scale = True

    def least(self, ipc: int) -> int:
        return 0

    def demand(self, ipc: int) -> int:
        return 0

    def parts(self, candidates: Iterable[Candidates], ipc: int, side: int, studio: Studio) -> Iterator[Part]:
        slots, most = ipc * studio.classes, -(-most_slots(side) // 16) * 16  # a processor draws 16 values together
        for start in range(0, slots, most):
            targets_N = torch.arange(start, min(start + most, slots)) % studio.classes
            yield start, Canvas(self._images(len(targets_N), side, studio), targets_N, ((),) * len(targets_N))

    def _images(self, n: int, side: int, studio: Studio) -> Tensor:
        rng = studio.rng
        noise_NCSS = torch.randn(n, 3, side, side, generator=rng, device=rng.device).cpu()
        mean_C11, std_C11 = (torch.tensor(x).view(3, 1, 1) for x in (studio.mean, studio.std))
        return ((noise_NCSS * std_C11 + mean_C11).clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class WholeImages(InParts):
    """`ipc` random real images of each class, whole, none twice; half of them flipped (E2D, methods section 5a)."""

    flip: bool = True
    needs_observers = False
    by_class, needs_scale = True, False

    def least(self, ipc: int) -> int:
        return ipc

    def demand(self, ipc: int) -> int:
        return ipc

    def parts(self, candidates: Iterable[Candidates], ipc: int, side: int, studio: Studio) -> Iterator[Part]:
        flips_N = _flips(ipc, studio) if self.flip else None
        chosen = (_whole(found, rows[:ipc], side) for found, rows in _classes(candidates))
        return _interleaved(chosen, side, studio.classes, flips_N)


@dataclass(frozen=True)
class Chosen(InParts):
    """The committee chooses among `candidates` random real images of a class; factor x factor of them fill an image."""

    factor: Positive = 1
    candidates: Positive = 300
    needs_observers = True
    by_class = True

    @property
    def needs_scale(self) -> bool:
        """Tiles are seen amid the mean colour."""
        return self.factor > 1

    def least(self, ipc: int) -> int:
        return ipc * self.factor**2

    def demand(self, ipc: int) -> int:
        return max(self.candidates, self.least(ipc))


@dataclass(frozen=True)
class Collage(Chosen):
    """`factor` x `factor` square patches of real images in one (RDED, methods section 3).

    Of `candidates` random real images of a class, `crops` windows each of side S / factor; of each image its window
    with the least cross-entropy by `judges`, who see it in the middle of an image of the data's mean colour. Ranked by
    that, the easiest, the middle ones or the hardest are laid out, row by row, image by image.
    """

    crops: Positive = 5
    difficulty: Literal["easy", "medium", "hard"] = "easy"
    judges: Voters = One()

    def parts(self, candidates: Iterable[Candidates], ipc: int, side: int, studio: Studio) -> Iterator[Part]:
        if side % self.factor:
            raise InputError(f"images of side {side} cannot be laid out in {self.factor} x {self.factor} patches")
        judges = self.judges.convene(studio)(0)

        def of_class(found: Candidates, rows: list[int], label: int) -> OfClass:
            images_PCSS = torch.stack([decode(found.images[r], side) for r in rows])
            parts = [self._easiest(part, label, judges, studio) for part in images_PCSS.split(AT_ONCE // self.crops)]
            patches_PCTT, hardness_P = (torch.cat(column) for column in zip(*parts, strict=True))
            taken = ranked(hardness_P, self.least(ipc), self.difficulty)
            keys = [found.keys[rows[i]] for i in taken.tolist()]
            return tiled(patches_PCTT[taken], self.factor), grouped(keys, self.factor**2)

        each = studio.track(_classes(candidates), "choose patches", studio.classes)
        chosen = (of_class(found, rows, label) for label, (found, rows) in enumerate(each))
        return _interleaved(chosen, side, studio.classes)

    def _easiest(self, images_PCSS: Tensor, label: int, judges: Judges, studio: Studio) -> tuple[Tensor, Tensor]:
        """Of each image the window that is easiest: patches_PCTT, and its hardness_P."""
        n, _, side, _ = images_PCSS.shape
        size, rng = side // self.factor, studio.rng
        tries = self.crops if self.factor > 1 else 1  # of a whole image all windows are one
        corners_2QP = torch.randint(0, side - size + 1, (2, tries, n), generator=rng, device=rng.device).cpu()
        windows_QPCTT = torch.stack(
            [_windows(images_PCSS, top_P, left_P, size) for top_P, left_P in zip(*corners_2QP.unbind(0), strict=True)]
        )
        hardness_N = _hardness(windows_QPCTT.flatten(0, 1), side, label, judges, studio)
        least_P, which_P = hardness_N.view(tries, n).min(0)
        return windows_QPCTT[which_P, torch.arange(n)], least_P


@torch.no_grad()
def _hardness(windows_NCTT: Tensor, side: int, label: int, judges: Judges, studio: Studio) -> Tensor:
    """hardness_N: the seated observers' weighted cross-entropy, in nats, of windows amid the data's mean colour."""
    n, channels, size, _ = windows_NCTT.shape
    mean_C11 = torch.tensor(studio.mean, device=studio.device).view(channels, 1, 1)
    seen_NCSS = mean_C11.expand(n, channels, side, side).clone()
    edge = (side - size) // 2
    seen_NCSS[:, :, edge : edge + size, edge : edge + size] = windows_NCTT.to(studio.device).float() / 255
    targets_N = torch.full((n,), label, device=studio.device)
    hardness_N = torch.zeros(n, device=studio.device)
    for judge, weight in judges:
        logits_NK = judge.read(seen_NCSS).logits_NK
        hardness_N += weight * F.cross_entropy(logits_NK, targets_N, reduction="none")
    return hardness_N.cpu()


@dataclass(frozen=True)
class Representatives(Chosen):
    """Of `candidates` random real images of a class, the one nearest each of `ipc` k-means centres of the committee's
    embeddings, largest cluster first (DREAM+, section 7 of the methods). With a `factor` above 1, factor x factor times
    as many, each made smaller to be one of an image's tiles."""

    flip: bool = False

    def parts(self, candidates: Iterable[Candidates], ipc: int, side: int, studio: Studio) -> Iterator[Part]:
        if side % self.factor:
            raise InputError(f"images of side {side} cannot be laid out in {self.factor} x {self.factor} tiles")
        seeds = [studio.new_seed() for _ in range(studio.classes)]
        flips_N = _flips(ipc, studio) if self.flip else None

        def of_class(found: Candidates, rows: list[int], seed: int) -> OfClass:
            embedding_NE = _embed([found.images[r] for r in rows], side, studio)
            taken = nearest_to_centres(embedding_NE.numpy(), self.least(ipc), seed)
            return _whole(found, [rows[i] for i in taken], side, self.factor)

        each = studio.track(_classes(candidates), "choose representatives", studio.classes)
        chosen = (of_class(found, rows, seed) for (found, rows), seed in zip(each, seeds, strict=True))
        return _interleaved(chosen, side, studio.classes, flips_N)


def by_class(candidates: Candidates) -> list[list[int]]:
    """The rows of each class, in the order they were drawn."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(candidates.labels):
        rows.setdefault(label, []).append(row)
    return [rows[label] for label in sorted(rows)]


def _classes(candidates: Iterable[Candidates]) -> Iterator[tuple[Candidates, list[int]]]:
    """Class by class: the candidates that it is among, and its rows of these."""
    yield from ((found, rows) for found in candidates for rows in by_class(found))


def ranked(hardness_P: Tensor, n: int, difficulty: str) -> Tensor:
    """The rows of the n easiest, hardest (hardest first) or middle ones."""
    order_P = hardness_P.argsort(stable=True, descending=difficulty == "hard")
    start = (len(order_P) - n) // 2 if difficulty == "medium" else 0
    return order_P[start : start + n]


def tiled(patches_PCTT: Tensor, factor: int) -> Tensor:
    """images_ICSS of factor x factor patches each, in order, row by row."""
    p, channels, size, _ = patches_PCTT.shape
    grid = patches_PCTT.view(p // factor**2, factor, factor, channels, size, size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, factor * size, factor * size)


def grouped(keys: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """As many at a time as an image began from."""
    return [tuple(keys[i : i + size]) for i in range(0, len(keys), size)]


def _windows(images_PCSS: Tensor, top_P: Tensor, left_P: Tensor, size: int) -> Tensor:
    """windows_PCTT, each image's own."""
    at = torch.arange(size)
    image = torch.arange(len(images_PCSS))[:, None, None]
    rows_PT1, columns_P1T = (top_P[:, None] + at)[:, :, None], (left_P[:, None] + at)[:, None, :]
    return images_PCSS[image, :, rows_PT1, columns_P1T].permute(0, 3, 1, 2)


def _embed(images: list[bytes], side: int, studio: Studio) -> Tensor:
    """embedding_NE: the observers' embeddings, each scaled to unit mean norm, side by side."""
    pixels_NCSS = torch.stack([decode(image, side) for image in images]).to(studio.device).float() / 255
    parts = []
    for observer in studio.observers:
        features_NE = torch.cat([observer.embed(part) for part in pixels_NCSS.split(AT_ONCE)]).flatten(1)
        length = features_NE.norm(dim=1).mean()
        parts.append(features_NE / torch.where(length > 0, length, 1))  # one that sees nothing tells none apart
    return torch.cat(parts, 1).cpu()


def _whole(found: Candidates, rows: list[int], side: int, factor: int = 1) -> OfClass:
    """Whole images, factor x factor of them in each."""
    tiles_PCTT = torch.stack([decode(found.images[r], side // factor) for r in rows])
    return tiled(tiles_PCTT, factor), grouped([found.keys[r] for r in rows], factor**2)


def _flips(ipc: int, studio: Studio) -> Tensor:
    """flips_N of all slots of a canvas: half of them, at random."""
    return torch.rand(ipc * studio.classes, generator=studio.rng, device=studio.rng.device).cpu() < 0.5


def _interleaved(chosen: Iterable[OfClass], side: int, classes: int, flips_N: Tensor | None = None) -> Iterator[Part]:
    """As many images of every class, in the order of a canvas: (0, class 0), (0, class 1), ..., (1, class 0), ...; of
    some classes at a time the first images, the second ones and so on, each a part."""
    remaining, label = iter(chosen), 0
    while found := list(islice(remaining, most_slots(side))):
        images_IKCSS = torch.stack([images_ICSS for images_ICSS, _ in found], 1)
        targets_K = torch.arange(label, label + len(found))
        for index, keys in enumerate(zip(*(keys for _, keys in found), strict=True)):
            start, images_KCSS = index * classes + label, images_IKCSS[index]
            if flips_N is not None:
                flips_K111 = flips_N[start : start + len(found), None, None, None]
                images_KCSS = torch.where(flips_K111, images_KCSS.flip(3), images_KCSS)
            yield start, Canvas(images_KCSS, targets_K, keys)
        label += len(found)
