"""Image vectors -> places on a map, and groups of near-duplicates."""

from typing import Any

import numpy as np
from tqdm import tqdm

Array = np.ndarray[Any, Any]

COMPONENTS = 50
LANDMARKS = 2_000
NEIGHBOURS = 3
BLOCK_CELLS = 1 << 22  # cosines computed at a time: 17 MB, and pairs of at worst 250 MB


def unit(vectors: Array) -> Array:
    """Scale rows of shape (n, dimensions) to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Array = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result


def place(vectors: Array) -> Array:
    """Lay vectors of shape (n, dimensions) out on a plane: (n, 2) within 0..1, similar ones near each other.

    t-SNE of up to LANDMARKS of them after PCA; each of the others goes between its nearest landmarks, which takes
    seconds where t-SNE of 25,000 takes minutes. Few or equal vectors, for which neither works, go on a circle.
    """
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    number, dimensions = vectors.shape
    directions = unit(vectors)
    if number < 5 or np.ptp(directions, axis=0).max() < 1e-6:
        angles = np.arange(number) * 2 * np.pi / number
        return framed(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    rng = np.random.default_rng(0)
    directions = PCA(min(COMPONENTS, number, dimensions), random_state=0).fit_transform(directions)
    if number <= LANDMARKS:
        return framed(embed(directions))
    chosen = rng.choice(number, LANDMARKS, replace=False)
    landmarks = embed(directions[chosen])
    distances, nearest = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(directions[chosen]).kneighbors(directions)
    weights = 1 / np.maximum(distances, 1e-6) ** 2
    places = (landmarks[nearest] * (weights / weights.sum(1, keepdims=True))[..., None]).sum(1)
    gaps = NearestNeighbors(n_neighbors=2).fit(landmarks).kneighbors(landmarks)[0][:, 1]
    return framed(places + rng.normal(0, np.median(gaps) / 2, places.shape))  # or they would cover one another


def embed(directions: Array) -> Array:
    """t-SNE of directions of shape (n, components) into the plane: (n, 2)."""
    from sklearn.manifold import TSNE

    init: Any = "pca" if directions.shape[1] > 1 else "random"
    tsne = TSNE(init=init, perplexity=min(30, (len(directions) - 1) / 3), max_iter=500, random_state=0)
    places: Array = tsne.fit_transform(directions)
    return places


def framed(places: Array) -> Array:
    """Rotate places of shape (n, 2) so that they vary most along x, and scale them into 0..1, keeping proportions."""
    centred = places - places.mean(0)
    rotated = centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    low, high = rotated.min(0), rotated.max(0)
    result: Array = 0.5 + (rotated - (low + high) / 2) / max(float((high - low).max()), 1e-9)
    return result


def group(vectors: Array, threshold: float) -> Array:
    """Number groups of near-duplicates among vectors of shape (n, dimensions): (n,), 0 for an image without any.

    Two images are in one group if their cosine is at least the threshold, directly or through others. Group 1 is the
    largest. The time grows with the square of n: seconds for 25,000.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    directions, number = unit(vectors), len(vectors)
    labels = np.arange(number)
    rows_at_once = max(1, BLOCK_CELLS // number)
    for start in tqdm(range(0, number, rows_at_once), desc="near-duplicates", unit=" blocks", disable=None):
        cosines = directions[start : start + rows_at_once] @ directions[start:].T
        first, second = np.nonzero(cosines >= threshold - 1e-6)  # a rounding error must not separate equal vectors
        first, second = labels[first + start], labels[second + start]
        links = coo_array((np.ones(len(first), bool), (first, second)), shape=(number, number))
        merged = connected_components(links, directed=False)[1]
        labels = merged[labels]
    return numbered(labels)


def numbered(labels: Array) -> Array:
    """Labels of components, (n,), to group numbers from 1, the largest first; components of one image become 0."""
    _, firsts, inverse, sizes = np.unique(labels, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((firsts, -sizes))
    numbers = np.empty_like(order)
    numbers[order] = np.arange(1, len(order) + 1)
    numbers[sizes == 1] = 0
    result: Array = numbers[inverse]
    return result
