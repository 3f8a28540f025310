"""Which rows stand for many: k-means, as DREAM chooses real images (methods section 7)."""

import warnings
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

from dd_tasks.errors import NumericalError


@cache
def _threads() -> ThreadpoolController:
    """Of the libraries that are loaded by now."""
    return ThreadpoolController()


def nearest_to_centres(
    embedding_NE: np.ndarray, clusters: int, seed: int, *, tries: int = 5, iterations: int = 300
) -> list[int]:
    """k-means; the row nearest each centre, no row twice, largest cluster first. NumericalError for rows that are not
    finite."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if not np.isfinite(embedding_NE).all():
        wrong = int((~np.isfinite(embedding_NE)).any(1).sum())
        raise NumericalError(f"k-means: embeddings of {wrong} of {len(embedding_NE)} images are not finite")
    one_thread = _threads().limit(limits=1)  # several add up what they found in the order in which they are done
    with one_thread, warnings.catch_warnings():  # alike images, fewer of them than centres, are chosen as well
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(clusters, n_init=tries, max_iter=iterations, random_state=seed).fit(embedding_NE)
        distance_NK = fitted.transform(embedding_NE)
    taken: dict[int, None] = {}
    for cluster in np.argsort(-np.bincount(fitted.labels_, minlength=clusters), kind="stable"):
        order = np.argsort(distance_NK[:, cluster], kind="stable")
        taken[int(next(row for row in order if row not in taken))] = None
    return list(taken)
