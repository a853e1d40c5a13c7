"""Image vectors -> places on a map."""

from typing import Any

import numpy as np

from vec_pipeline.similarity import unit

Array = np.ndarray[Any, Any]

COMPONENTS = 50
LANDMARKS = 2_000
NEIGHBOURS = 3


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
