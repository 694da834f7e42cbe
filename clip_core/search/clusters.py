"""Clusters of embeddings, by k-means on the unit sphere."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from clip_core.errors import ClipError
from clip_core.installation import requirement
from clip_core.search.store import Store
from clip_core.similarity import normalize

MANY = 20_000  # vectors from which on k-means learns from small batches
SAMPLE = 200_000  # vectors that it learns from at most
BATCH = 4096


class Clusters(NamedTuple):
    """Clusters by their size, the largest first."""

    labels: np.ndarray  # int64 [n], the cluster of each vector
    centres: np.ndarray  # float32 [k, d], of length 1; of equal vectors there may be fewer than were asked for
    cosines: np.ndarray  # float32 [n], of each vector with the centre of its cluster


def check_library() -> None:
    """Import scikit-learn.

    Raises:
        ClipError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ClipError(
            f"Clusters need scikit-learn ({error}); install it with: pip install {requirement('search')}."
        ) from error


def clusters(store: Store, count: int, seed: int = 0) -> Clusters:
    """Divide all vectors into ``count`` clusters.

    Args:
        seed: of the first centres, and of the sample that many vectors are learnt from.

    Raises:
        ClipError: there are fewer vectors than clusters, or scikit-learn is not installed.
    """
    check_library()
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    vectors = store.hold().vectors
    if len(vectors) < count:
        raise ClipError(f"{store.folder} has {len(vectors)} rows, too few for {count} clusters; ask for fewer with -k.")
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(len(vectors), min(len(vectors), SAMPLE), replace=False))
    sample = normalize(vectors[chosen].astype(np.float32))
    kind = KMeans if len(sample) < MANY else MiniBatchKMeans
    options = {} if kind is KMeans else {"batch_size": BATCH}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # there are fewer different vectors than clusters
        fitted = kind(count, n_init=3, random_state=seed, **options).fit(sample)
    centres = normalize(fitted.cluster_centers_.astype(np.float32))
    labels, cosines = np.empty(len(vectors), np.int64), np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), BATCH):
        products = normalize(vectors[start : start + BATCH].astype(np.float32)) @ centres.T
        labels[start : start + BATCH] = products.argmax(axis=1)
        cosines[start : start + BATCH] = products.max(axis=1)
    sizes = np.bincount(labels, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    return Clusters(np.argsort(order)[labels], centres[order[: np.count_nonzero(sizes)]], cosines)
