"""A very small map of one topic."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imsave

PIXELS = 48


def thumbnail(embedding_N2: np.ndarray, theta_N: np.ndarray, color: str) -> bytes:
    """Draw a small map of one topic as PNG: the mean proportion of the cells in each square.

    Squares without cells are transparent, those without the topic are grey, so that the map is
    visible on light and dark pages.

    Parameters
    ----------
    embedding_N2
        Coordinates of the cells.
    theta_N
        Proportion of the topic in the cells.
    color
        Colour of the topic.
    """
    low, high = embedding_N2.min(axis=0), embedding_N2.max(axis=0)
    span = max(float((high - low).max()), 1e-9)
    place = ((embedding_N2 - (low + high) / 2) / span + 0.5) * (PIXELS - 1)
    column, row = np.rint(place).astype(int).T
    square_N = (PIXELS - 1 - row) * PIXELS + column
    n_cells = np.bincount(square_N, minlength=PIXELS**2).reshape(PIXELS, PIXELS)
    total = np.bincount(square_N, weights=theta_N, minlength=PIXELS**2).reshape(PIXELS, PIXELS)
    share = np.divide(total, n_cells, out=np.zeros_like(total), where=n_cells > 0)[..., None]
    image = np.empty((PIXELS, PIXELS, 4))
    image[..., :3] = (1 - share) * 0.6 + share * np.array(to_rgb(color))
    image[..., 3] = np.where(n_cells > 0, np.where(share[..., 0] > 0.1, 1.0, 0.45), 0.0)
    file = io.BytesIO()
    imsave(file, image, format="png")
    return file.getvalue()
