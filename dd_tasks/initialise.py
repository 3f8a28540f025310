"""What the images are before the first step: which real ones, and how many of them. Whole canvases, class by class.

Shape letters: N images, C channels, S side, E embedding.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dd_tasks.ranges import Positive
from dd_tasks.shards import Candidates, decode
from dd_tasks.types import Canvas, Studio


class Initialiser(Protocol):
    needs_observers: bool  # whether `choose` asks the committee

    def demand(self, ipc: int) -> int:
        """Real images a class to draw at random, without replacement, before `choose`."""
        ...

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        """The first canvas: `ipc` images of every class, ordered (0, class 0), (0, class 1), ..., (1, class 0), ..."""
        ...


@dataclass(frozen=True)
class WholeImages:
    """`ipc` random real images of each class, whole, none twice; half of them flipped (E2D, methods section 5a)."""

    flip: bool = True
    needs_observers = False

    def demand(self, ipc: int) -> int:
        return ipc

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        rows = [rows[:ipc] for rows in by_class(candidates)]
        return _canvas(candidates, rows, side, studio.rng if self.flip else None)


@dataclass(frozen=True)
class Representatives:
    """Of `candidates` random real images of a class, the one nearest each of `ipc` k-means centres of the committee's
    embeddings, largest cluster first (DREAM+, section 7 of the methods)."""

    candidates: Positive = 300
    flip: bool = False
    needs_observers = True

    def demand(self, ipc: int) -> int:
        return max(self.candidates, ipc)

    def choose(self, candidates: Candidates, ipc: int, side: int, studio: Studio) -> Canvas:
        chosen = []
        for rows in studio.track(by_class(candidates), "choose representatives"):
            embedding_NE = _embed([candidates.images[r] for r in rows], side, studio)
            chosen.append([rows[i] for i in nearest_to_centres(embedding_NE.numpy(), ipc, _seed(studio.rng))])
        return _canvas(candidates, chosen, side, studio.rng if self.flip else None)


def by_class(candidates: Candidates) -> list[list[int]]:
    """The rows of each class, in the order they were drawn."""
    rows: dict[int, list[int]] = {}
    for row, label in enumerate(candidates.labels):
        rows.setdefault(label, []).append(row)
    return [rows[label] for label in sorted(rows)]


def nearest_to_centres(embedding_NE: np.ndarray, clusters: int, seed: int) -> list[int]:
    """k-means; the row nearest each centre, no row twice, largest cluster first."""
    from sklearn.cluster import KMeans

    fitted = KMeans(clusters, n_init=5, random_state=seed).fit(embedding_NE)
    distance_NK = fitted.transform(embedding_NE)
    taken: list[int] = []
    for cluster in np.argsort(-np.bincount(fitted.labels_, minlength=clusters), kind="stable"):
        order = np.argsort(distance_NK[:, cluster], kind="stable")
        taken.append(int(next(row for row in order if row not in taken)))
    return taken


def _embed(images: list[bytes], side: int, studio: Studio) -> Tensor:
    """embedding_NE: the observers' embeddings, each scaled to unit mean norm, side by side."""
    pixels_NCSS = torch.stack([decode(image, side) for image in images]).to(studio.device).float() / 255
    parts = []
    for observer in studio.observers:
        features_NE = torch.cat([observer.embed(part) for part in pixels_NCSS.split(500)]).flatten(1)
        parts.append(features_NE / features_NE.norm(dim=1).mean())
    return torch.cat(parts, 1).cpu()


def _seed(rng: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=rng, device=rng.device))


def _canvas(candidates: Candidates, rows: list[list[int]], side: int, rng: torch.Generator | None) -> Canvas:
    order = [row for same_index in zip(*rows, strict=True) for row in same_index]
    images_NCSS = torch.stack([decode(candidates.images[r], side) for r in order])
    if rng is not None:
        flips_N = torch.rand(len(order), generator=rng, device=rng.device).cpu() < 0.5
        images_NCSS = torch.where(flips_N[:, None, None, None], images_NCSS.flip(3), images_NCSS)
    targets_N = torch.tensor([candidates.labels[r] for r in order])
    return Canvas(images_NCSS, targets_N, tuple(candidates.keys[r] for r in order))
