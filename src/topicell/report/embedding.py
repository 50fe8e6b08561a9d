"""Two-dimensional maps of the cells, one from counts and one from topics.

`embed_counts` is the map that the scvi-tools tutorial draws: principal components of the
log-normalised genes, neighbours, UMAP, Leiden clusters. `embed_topics` places cells by the
Hellinger distance between their topic proportions. Both work on a scratch copy, so the neighbour
graphs and parameter dictionaries of scanpy never reach the caller's data. Of many cells, a sample
is on the maps (`cells_on_maps`).

Shape suffixes: N cells, M cells on the maps, K topics, S strata, 2 coordinates.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell.progress import step, tracked

if TYPE_CHECKING:
    from anndata import AnnData

    from topicell.config import ReportConfig

MIN_CELLS = 5
"""The fewest cells of which a map says anything."""
FEW_CELLS, N_EPOCHS = 4096, 200
"""Above this number of cells, UMAP makes this number of passes, as it does by default above 10,000
cells; with fewer cells it makes 500. With 10,000 cells, the maps keep 2 to 4 % fewer of the
nearest cells (experiments/LOG.md)."""
N_VOTES = 5
"""Number of nearest cells on the maps that determine the cluster of a cell beside them."""
VOTERS = 5_000
"""Largest number of cells on the maps that can be among these nearest ones."""
CHUNK = 20_000
"""Number of cells whose components or clusters are computed at a time."""


def cells_on_maps(strata_N: np.ndarray, max_cells: int | None, seed: int) -> np.ndarray:
    """Draw the cells of the maps.

    Half of them are divided equally between the strata, as far as these have cells, so that small
    ones are kept; the others are drawn in proportion to what is left of each.

    Parameters
    ----------
    strata_N
        Stratum of each cell, for instance its label and its dominant topic, from 0.
    max_cells
        The number to draw; None, or more than there are, takes all cells.
    seed
        Same seed, same cells.

    Returns
    -------
    Their positions, ascending, shape (M,).
    """
    n_cells = len(strata_N)
    if max_cells is None or n_cells <= max_cells:
        return np.arange(n_cells)
    generator = np.random.default_rng(seed)
    # In random order within each stratum.
    order = generator.permutation(n_cells)
    order = order[np.argsort(strata_N[order], kind="stable")]
    size_S = np.bincount(strata_N)
    first_S = np.cumsum(size_S) - size_S
    rank = np.arange(n_cells) - np.repeat(first_S, size_S)
    kept = rank < max_cells // 2 // np.count_nonzero(size_S)
    rest = order[~kept]
    more = generator.choice(rest, max_cells - int(kept.sum()), replace=False)
    return np.sort(np.concatenate([order[kept], more]))


def mapped(adata: AnnData) -> np.ndarray:
    """Return the positions of the cells that have coordinates on both maps, shape (M,)."""
    finite = [
        np.isfinite(np.asarray(adata.obsm[name])).all(axis=1)
        for name in ("X_umap_counts", "X_umap_topics")
    ]
    return np.flatnonzero(finite[0] & finite[1])


def embed_counts(adata: AnnData, rows_M: np.ndarray, config: ReportConfig, seed: int) -> None:
    """Map and cluster cells by their log-normalised counts.

    Sets ``obsm["X_pca"]``, ``obsm["X_umap_counts"]`` and ``obs["leiden"]``, and nothing else.
    Settings that the data are too small for are lowered to what they allow. The other cells are
    projected on the components of the cells on the map, have the cluster of most of their
    `N_VOTES` nearest cells on it, and NaN as coordinates.

    Parameters
    ----------
    adata
        Cells × modelled genes; ``X`` log-normalised.
    rows_M
        The cells on the map.
    config
        Principal components, neighbours, resolution.
    seed
        Same seed, same map.

    Raises
    ------
    ValueError
        There are fewer than `MIN_CELLS` cells.
    """
    import scanpy as sc

    on_map = len(rows_M) == adata.n_obs
    scratch = _scratch(adata, rows_M, adata.X if on_map else adata.X[rows_M])
    n_components = min(config.n_components, min(scratch.shape) - 1)
    with step("principal components"):
        sc.pp.pca(scratch, n_comps=n_components, random_state=seed)
    _neighbors_and_umap(scratch, "X_pca", config.n_neighbors, seed)
    with step("clusters"):
        sc.tl.leiden(
            scratch,
            resolution=config.leiden_resolution,
            flavor="igraph",
            n_iterations=2,
            directed=False,
            random_state=seed,
        )
    adata.obsm["X_umap_counts"] = _among_all(scratch.obsm["X_umap"], rows_M, adata.n_obs)
    if on_map:
        adata.obsm["X_pca"] = scratch.obsm["X_pca"]
        adata.obs["leiden"] = scratch.obs["leiden"]
        return
    adata.obsm["X_pca"] = _projected(adata.X, scratch)
    adata.obs["leiden"] = _voted(adata.obsm["X_pca"], rows_M, scratch.obs["leiden"].cat, seed)


def _projected(x_NG: Any, scratch: AnnData) -> np.ndarray:
    """Return all cells on the principal components of the scratch cells."""
    axes_GP = scratch.varm["PCs"]
    origin_P = np.asarray(scratch.X.mean(axis=0)).ravel() @ axes_GP
    n_cells = x_NG.shape[0]
    projected_NP = np.empty((n_cells, axes_GP.shape[1]), dtype=scratch.obsm["X_pca"].dtype)
    for first in tracked(range(0, n_cells, CHUNK), "components of all cells"):
        rows = slice(first, first + CHUNK)
        projected_NP[rows] = x_NG[rows] @ axes_GP - origin_P
    return projected_NP


def _voted(pca_NP: np.ndarray, rows_M: np.ndarray, clusters: Any, seed: int) -> Any:
    """Return the cluster of each cell: its own, or that of most of its nearest cells on the map.

    At most `VOTERS` cells on the map have a vote.
    """
    import pandas as pd
    from sklearn.neighbors import KNeighborsClassifier

    codes_M = clusters.codes.to_numpy()
    codes_N = np.empty(len(pca_NP), dtype=int)
    codes_N[rows_M] = codes_M
    others = np.setdiff1d(np.arange(len(pca_NP)), rows_M)
    voters = cells_on_maps(codes_M, VOTERS, seed)
    nearest = KNeighborsClassifier(N_VOTES, algorithm="brute")
    nearest.fit(pca_NP[rows_M[voters]], codes_M[voters])
    for first in tracked(range(0, len(others), CHUNK), "clusters of all cells"):
        rows = others[first : first + CHUNK]
        codes_N[rows] = nearest.predict(pca_NP[rows])
    return pd.Categorical.from_codes(codes_N, clusters.categories)


def _among_all(xy_M2: np.ndarray, rows_M: np.ndarray, n_cells: int) -> np.ndarray:
    """Return coordinates of all cells: NaN for those that are not on the map."""
    xy_N2 = np.full((n_cells, 2), np.nan, dtype=xy_M2.dtype)
    xy_N2[rows_M] = xy_M2
    return xy_N2


def embed_topics(adata: AnnData, rows_M: np.ndarray, config: ReportConfig, seed: int) -> None:
    """Map cells by the Hellinger distance between their topic proportions.

    Sets ``obsm["X_umap_topics"]``, and nothing else; cells that are not on the map have NaN.

    Parameters
    ----------
    adata
        Cells, with topic proportions in ``obsm["X_lda"]`` (array or data frame).
    rows_M
        The cells on the map.
    config
        Neighbours.
    seed
        Same seed, same map.

    Raises
    ------
    ValueError
        There are fewer than `MIN_CELLS` cells.
    """
    theta_MK = np.asarray(adata.obsm["X_lda"], dtype=np.float64)[rows_M]
    scratch = _scratch(adata, rows_M, None)
    # The Hellinger distance is the Euclidean one between √(θ/2). scanpy's metric="hellinger" is
    # refused below 4,096 cells, and compiles for seconds above.
    scratch.obsm["X_hellinger"] = np.sqrt(theta_MK / 2)
    _neighbors_and_umap(scratch, "X_hellinger", config.n_neighbors, seed)
    adata.obsm["X_umap_topics"] = _among_all(scratch.obsm["X_umap"], rows_M, adata.n_obs)


def _scratch(adata: AnnData, rows_M: np.ndarray, X: Any) -> AnnData:
    from anndata import AnnData

    if len(rows_M) < MIN_CELLS:
        raise ValueError(f"a map needs {MIN_CELLS} cells or more, found {len(rows_M)}")
    return AnnData(X, obs=adata.obs[[]].iloc[rows_M].copy())


def _neighbors_and_umap(scratch: AnnData, use_rep: str, n_neighbors: int, seed: int) -> None:
    import scanpy as sc
    from scipy.sparse import SparseEfficiencyWarning

    with warnings.catch_warnings():
        # `import umap` tells everyone who lacks tensorflow that they lack tensorflow
        warnings.filterwarnings("ignore", message="Tensorflow not installed", module="umap")
        _keep_compiled_umap()
        # Equal cells, or groups of cells with nothing between them: scanpy repairs its graph and
        # UMAP starts from a simpler layout; both say so, and neither is for the user to fix
        warnings.filterwarnings("ignore", category=SparseEfficiencyWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"umap\.spectral|sklearn\.")
        with step("nearest cells"):
            sc.pp.neighbors(
                scratch,
                n_neighbors=min(n_neighbors, scratch.n_obs - 1),
                use_rep=use_rep,
                transformer="sklearn",
                random_state=seed,
            )
        n_epochs = None if scratch.n_obs <= FEW_CELLS else N_EPOCHS
        with step("UMAP"), _counted_epochs():
            sc.tl.umap(scratch, maxiter=n_epochs, random_state=seed)


@contextlib.contextmanager
def _counted_epochs() -> Iterator[None]:
    """Show the epochs of UMAP in place of its own bar, which scanpy disables."""
    from umap import layouts

    own = getattr(layouts, "tqdm", None)
    if own is None:
        yield  # another umap: the time is shown without its end
        return
    layouts.tqdm = lambda epochs, **_: tracked(epochs, "", unit="epochs")
    try:
        yield
    finally:
        layouts.tqdm = own


def _keep_compiled_umap() -> None:
    """Let numba keep on disk the functions that umap 0.5 compiles anew in each process: 3 s."""
    from umap import layouts, umap_

    for module, name in (
        (umap_, "smooth_knn_dist"),
        (umap_, "compute_membership_strengths"),
        (layouts, "_nb_optimize_layout_euclidean_single_epoch"),
    ):
        function = getattr(module, name, None)
        if function is None or function.signatures:
            continue  # another umap, or compiled already
        try:
            function.enable_caching()
        except RuntimeError:  # no folder that can be written to: compile, as umap would
            return
