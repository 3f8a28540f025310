"""How near distilled images are to real ones, so that a reader can judge what was memorised.

Shape letters: N distilled images, A of them and B real ones in a block, P pairs of these, D pixel values, C channels
(3), S x S pixels.
"""

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor

from dd_tasks.feeds import Feed
from dd_tasks.types import Nearest, Track, untracked
from schemas.manifest import Nearness

BLOCK_ROWS, BLOCK_BYTES = 4096, 128 << 20  # images compared at once, and what they take as floats
LEAST_NORM = 0.5  # below that of any image of more than one colour, above rounding
DIGITS = 6  # of what is said of many similarities


def centred(images_NCSS: Tensor) -> Tensor:
    """pixels_ND less each image's own mean, of length 1; all about 0 for an image of one colour."""
    pixels_ND = images_NCSS.flatten(1).float()
    pixels_ND -= pixels_ND.mean(1, keepdim=True)
    return pixels_ND.div_(pixels_ND.norm(dim=1, keepdim=True).clamp_min(LEAST_NORM))


@torch.no_grad()
def nearest(
    images_NCSS: Tensor,
    feed: Feed,
    *,
    besides: Sequence[Sequence[str]] | None = None,
    device: torch.device,
    track: Track = untracked,
) -> Nearest:
    """Of each uint8 image the nearest of the feed, by the cosine similarity of their centred pixels; one that is like
    its mirror image counts as well. One pass over the feed, in blocks of bounded size.

    `besides` names, of each image, keys that are passed over. ValueError where the feed has no others.
    """
    rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * images_NCSS[0].numel())))
    passed: dict[str, list[int]] = {}
    for i, keys in enumerate(besides or ()):
        for key in keys:
            passed.setdefault(key, []).append(i)
    names, most_N = [""] * len(images_NCSS), torch.full((len(images_NCSS),), -torch.inf)
    for reals_BCSS, keys in track(feed.keyed(rows), "measuring nearness", ceil(feed.samples / rows)):
        pairs = [(i, b) for b, key in enumerate(keys) for i in passed.get(key, ())]
        passed_P2 = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
        best_N, at_N = _best(images_NCSS, centred(reals_BCSS.to(device)), passed_P2, rows)
        for i in (best_N > most_N).nonzero()[:, 0].tolist():
            names[i] = keys[int(at_N[i])]
        most_N = torch.maximum(most_N, best_N)
    if not most_N.isfinite().all():
        raise ValueError("no training image is left to compare an image with")
    return Nearest(tuple(names), most_N.clamp(-1, 1))


def _best(images_NCSS: Tensor, reals_BD: Tensor, passed_P2: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Of each image the highest similarity, as it is or mirrored, and the real image that has it; not of the pairs
    (image, real image) that are passed over."""
    found = []
    for start in range(0, len(images_NCSS), rows):
        images_ACSS = images_NCSS[start : start + rows].to(reals_BD.device)
        ways = [centred(images) @ reals_BD.T for images in (images_ACSS, images_ACSS.flip(-1))]
        similarity_AB = torch.maximum(*ways)
        here_P2 = passed_P2[(passed_P2[:, 0] >= start) & (passed_P2[:, 0] < start + rows)].to(reals_BD.device)
        similarity_AB[here_P2[:, 0] - start, here_P2[:, 1]] = -torch.inf
        found.append([part.cpu() for part in similarity_AB.max(1)])
    best_N, at_N = (torch.cat(column) for column in zip(*found, strict=True))
    return best_N, at_N


def quantiles(similarity_N: Tensor, *shares: float) -> list[float]:
    """Interpolated, rounded to DIGITS."""
    found = similarity_N.double().quantile(torch.tensor(shares, dtype=torch.float64))
    return [round(value, DIGITS) for value in found.tolist()]


def of_images(near: Nearest, sources: Sequence[Sequence[str]], random_95: float) -> dict[str, Any]:
    """The fields of Nearness that the images themselves decide."""
    least, median, most = quantiles(near.similarity_N, 0, 0.5, 1)
    return {
        "least": least,
        "median": median,
        "most": most,
        "above": int((near.similarity_N.double() > random_95).sum()),
        "began": sum(map(bool, sources)),
        "kept": sum(key in keys for key, keys in zip(near.keys, sources, strict=True)),
    }


def summary(near: Nearest, sources: Sequence[Sequence[str]], random_N: Tensor) -> Nearness:
    """What the manifest says of images that began from `sources`, and of the similarities `random_N` of random real
    images to others."""
    least, median, random_95, most = quantiles(random_N, 0, 0.5, 0.95, 1)
    return Nearness(
        **of_images(near, sources, random_95),
        random_least=least,
        random_median=median,
        random_95=random_95,
        random_most=most,
    )
