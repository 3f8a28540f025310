"""What the images are before the first step: noise, real images, or patches of them. Whole canvases, class by class.

Shape letters: N images, I images of one class, P patches, C channels, S side, T side of a patch, E embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        """The first canvas: `ipc` images of every class, ordered (0, class 0), (0, class 1), ..., (1, class 0), ..."""
        ...


@dataclass(frozen=True)
class Noise:
    """Gaussian noise of the real data's channel mean and std, within the range of pixels (SRe2L, methods section 1)."""

    needs_observers = False
    by_class = needs_scale = True

    def least(self, ipc: int) -> int:
        return 0

    def demand(self, ipc: int) -> int:
        return 0

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        targets_N, rng = torch.arange(studio.classes).repeat(ipc), studio.rng
        noise_NCSS = torch.randn(len(targets_N), 3, side, side, generator=rng, device=rng.device).cpu()
        mean_C11, std_C11 = (torch.tensor(x).view(3, 1, 1) for x in (studio.mean, studio.std))
        images_NCSS = ((noise_NCSS * std_C11 + mean_C11).clamp(0, 1) * 255).round().to(torch.uint8)
        return Canvas(images_NCSS, targets_N, ((),) * len(targets_N))


@dataclass(frozen=True)
class WholeImages:
    """`ipc` random real images of each class, whole, none twice; half of them flipped (E2D, methods section 5a)."""

    flip: bool = True
    needs_observers = False
    by_class, needs_scale = True, False

    def least(self, ipc: int) -> int:
        return ipc

    def demand(self, ipc: int) -> int:
        return ipc

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        rows = [rows[:ipc] for rows in by_class(candidates)]
        return _canvas(candidates, rows, side, studio.rng if self.flip else None)


@dataclass(frozen=True)
class Chosen:
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

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        if side % self.factor:
            raise InputError(f"images of side {side} cannot be laid out in {self.factor} x {self.factor} patches")
        judges = self.judges.convene(studio)(0)
        images, sources = [], []
        for label, rows in enumerate(studio.track(by_class(candidates), "choose patches")):
            images_PCSS = torch.stack([decode(candidates.images[r], side) for r in rows])
            parts = [self._easiest(part, label, judges, studio) for part in images_PCSS.split(AT_ONCE // self.crops)]
            patches_PCTT, hardness_P = (torch.cat(column) for column in zip(*parts, strict=True))
            taken = ranked(hardness_P, self.least(ipc), self.difficulty)
            images.append(tiled(patches_PCTT[taken], self.factor))
            keys = [candidates.keys[rows[i]] for i in taken.tolist()]
            sources.append(grouped(keys, self.factor**2))
        return _interleaved(images, sources)

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

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        chosen = []
        for rows in studio.track(by_class(candidates), "choose representatives"):
            embedding_NE = _embed([candidates.images[r] for r in rows], side, studio)
            taken = nearest_to_centres(embedding_NE.numpy(), self.least(ipc), studio.new_seed())
            chosen.append([rows[i] for i in taken])
        return _canvas(candidates, chosen, side, studio.rng if self.flip else None, self.factor)


def by_class(candidates: Candidates) -> list[list[int]]:
    """The rows of each class, in the order they were drawn."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(candidates.labels):
        rows.setdefault(label, []).append(row)
    return [rows[label] for label in sorted(rows)]


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
        parts.append(features_NE / features_NE.norm(dim=1).mean())
    return torch.cat(parts, 1).cpu()


def _canvas(
    candidates: Candidates, rows: list[list[int]], side: int, rng: torch.Generator | None, factor: int = 1
) -> Canvas:
    """Whole images, factor x factor of them in each of the canvas; half of those flipped where there is a generator."""
    if side % factor:
        raise InputError(f"images of side {side} cannot be laid out in {factor} x {factor} tiles")
    images, sources = [], []
    for of_class in rows:
        tiles_PCTT = torch.stack([decode(candidates.images[r], side // factor) for r in of_class])
        images.append(tiled(tiles_PCTT, factor))
        sources.append(grouped([candidates.keys[r] for r in of_class], factor**2))
    canvas = _interleaved(images, sources)
    if rng is None:
        return canvas
    flips_N = torch.rand(len(canvas), generator=rng, device=rng.device).cpu() < 0.5
    images_NCSS = torch.where(flips_N[:, None, None, None], canvas.images_NCHW.flip(3), canvas.images_NCHW)
    return replace(canvas, images_NCHW=images_NCSS)


def _interleaved(images_ICSS: Sequence[Tensor], sources: Sequence[Sequence[tuple[str, ...]]]) -> Canvas:
    """As many images of every class, in the order of a canvas: (0, class 0), (0, class 1), ..."""
    images_IKCSS = torch.stack(list(images_ICSS), 1)
    ipc, classes = images_IKCSS.shape[:2]
    keys = tuple(key for same_index in zip(*sources, strict=True) for key in same_index)
    return Canvas(images_IKCSS.flatten(0, 1), torch.arange(classes).repeat(ipc), keys)
