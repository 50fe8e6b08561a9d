"""Two-dimensional maps of the cells, one from counts and one from topics.

`embed_counts` is the map that the scvi-tools tutorial draws: principal components of the
log-normalised genes, neighbours, UMAP, Leiden clusters. `embed_topics` places cells by the
Hellinger distance between their topic proportions. Both work on a scratch copy, so the neighbour
graphs and parameter dictionaries of scanpy never reach the caller's data.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

    from topicell.config import ReportConfig

MIN_CELLS = 5
"""The fewest cells of which a map says anything."""


def embed_counts(adata: AnnData, config: ReportConfig, seed: int) -> None:
    """Map and cluster cells by their log-normalised counts.

    Sets ``obsm["X_pca"]``, ``obsm["X_umap_counts"]`` and ``obs["leiden"]``, and nothing else.
    Settings that the data are too small for are lowered to what they allow.

    Parameters
    ----------
    adata
        Cells × modelled genes; ``X`` log-normalised.
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

    scratch = _scratch(adata, adata.X)
    n_components = min(config.n_components, min(scratch.shape) - 1)
    sc.pp.pca(scratch, n_comps=n_components, random_state=seed)
    _neighbors_and_umap(scratch, "X_pca", config.n_neighbors, seed)
    sc.tl.leiden(
        scratch,
        resolution=config.leiden_resolution,
        flavor="igraph",
        n_iterations=2,
        directed=False,
        random_state=seed,
    )
    adata.obsm["X_pca"] = scratch.obsm["X_pca"]
    adata.obsm["X_umap_counts"] = scratch.obsm["X_umap"]
    adata.obs["leiden"] = scratch.obs["leiden"]


def embed_topics(adata: AnnData, config: ReportConfig, seed: int) -> None:
    """Map cells by the Hellinger distance between their topic proportions.

    Sets ``obsm["X_umap_topics"]``, and nothing else.

    Parameters
    ----------
    adata
        Cells, with topic proportions in ``obsm["X_lda"]`` (array or data frame).
    config
        Neighbours.
    seed
        Same seed, same map.

    Raises
    ------
    ValueError
        There are fewer than `MIN_CELLS` cells.
    """
    theta_NK = np.asarray(adata.obsm["X_lda"], dtype=np.float64)
    scratch = _scratch(adata, None)
    # The Hellinger distance is the Euclidean one between √(θ/2). scanpy's metric="hellinger" is
    # refused below 4,096 cells, and compiles for seconds above.
    scratch.obsm["X_hellinger"] = np.sqrt(theta_NK / 2)
    _neighbors_and_umap(scratch, "X_hellinger", config.n_neighbors, seed)
    adata.obsm["X_umap_topics"] = scratch.obsm["X_umap"]


def _scratch(adata: AnnData, X: Any) -> AnnData:
    from anndata import AnnData

    if adata.n_obs < MIN_CELLS:
        raise ValueError(f"a map needs {MIN_CELLS} cells or more, found {adata.n_obs}")
    return AnnData(X, obs=adata.obs[[]].copy())


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
        sc.pp.neighbors(
            scratch,
            n_neighbors=min(n_neighbors, scratch.n_obs - 1),
            use_rep=use_rep,
            random_state=seed,
        )
        sc.tl.umap(scratch, random_state=seed)


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
