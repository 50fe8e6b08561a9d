"""Maps of cells: they add only their own keys, and separate planted groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from topicell.config import ReportConfig
from topicell.report.embedding import embed_counts, embed_topics


def planted(n_cells: int, n_topics: int, n_genes: int = 40, seed: int = 0) -> AnnData:
    """Return cells of `n_topics` kinds, each with its own genes and its own topic."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n_cells) % n_topics
    profile = np.full((n_topics, n_genes), 0.2)
    for topic in range(n_topics):
        profile[topic, topic::n_topics] = 5
    counts = rng.poisson(profile[kind]).astype(np.float32)
    theta = np.stack([rng.dirichlet(np.where(np.arange(n_topics) == k, 20, 0.5)) for k in kind])
    names = [f"cell {i}" for i in range(n_cells)]
    adata = AnnData(sp.csr_matrix(np.log1p(counts)), obs=pd.DataFrame(index=names))
    adata.obs["kind"] = pd.Categorical(kind.astype(str))
    adata.layers["counts"] = sp.csr_matrix(counts)
    adata.obsm["X_lda"] = pd.DataFrame(theta, index=names)
    return adata


@pytest.fixture(scope="module")
def mapped() -> AnnData:
    adata = planted(150, 3)
    embed_counts(adata, ReportConfig(n_components=10), seed=1)
    embed_topics(adata, ReportConfig(), seed=1)
    return adata


def neighbour_agreement(points: np.ndarray, kind: np.ndarray) -> float:
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return float((kind[distance.argmin(1)] == kind).mean())


def test_only_the_named_keys_are_added(mapped):
    plain = planted(150, 3)
    assert set(mapped.obsm) - set(plain.obsm) == {"X_pca", "X_umap_counts", "X_umap_topics"}
    assert set(mapped.obs) - set(plain.obs) == {"leiden"}
    for slot in ("obsp", "varm", "uns", "var", "layers"):
        assert set(getattr(mapped, slot)) == set(getattr(plain, slot))
    assert (mapped.X != plain.X).nnz == 0


def test_shapes_and_kinds(mapped):
    assert mapped.obsm["X_pca"].shape == (150, 10)
    for key in ("X_umap_counts", "X_umap_topics"):
        assert mapped.obsm[key].shape == (150, 2)
        assert np.isfinite(mapped.obsm[key]).all()
    assert isinstance(mapped.obs["leiden"].dtype, pd.CategoricalDtype)


def test_planted_groups_are_separate(mapped):
    kind = mapped.obs["kind"].to_numpy()
    assert neighbour_agreement(mapped.obsm["X_umap_counts"], kind) > 0.95
    assert neighbour_agreement(mapped.obsm["X_umap_topics"], kind) > 0.95
    clusters = pd.crosstab(mapped.obs["leiden"], mapped.obs["kind"]).to_numpy()
    assert clusters.max(axis=1).sum() > 0.95 * 150  # each cluster has one kind


def test_the_seed_determines_the_map(mapped):
    again, other = planted(150, 3), planted(150, 3)
    for adata, seed in ((again, 1), (other, 2)):
        embed_counts(adata, ReportConfig(n_components=10), seed)
        embed_topics(adata, ReportConfig(), seed)
    for key in ("X_pca", "X_umap_counts", "X_umap_topics"):
        np.testing.assert_array_equal(again.obsm[key], mapped.obsm[key])
    assert list(again.obs["leiden"]) == list(mapped.obs["leiden"])
    assert not np.array_equal(other.obsm["X_umap_topics"], mapped.obsm["X_umap_topics"])


def test_neighbours_on_the_topic_map_are_nearest_by_hellinger_distance(monkeypatch):
    import scanpy as sc

    adata = planted(60, 4)
    theta = adata.obsm["X_lda"].to_numpy()
    hellinger = np.sqrt(1 - np.sqrt(theta[:, None] * theta[None]).sum(2).clip(0, 1))
    seen = {}

    def umap(scratch: AnnData, **_: object) -> None:
        seen["distances"] = scratch.obsp["distances"].toarray()
        scratch.obsm["X_umap"] = np.zeros((60, 2))

    monkeypatch.setattr(sc.tl, "umap", umap)
    embed_topics(adata, ReportConfig(n_neighbors=8), seed=0)
    found = seen["distances"]
    assert ((found > 0).sum(1) == 7).all()
    np.testing.assert_allclose(found[found > 0], hellinger[found > 0], atol=1e-6)
    nearest = np.sort(hellinger, axis=1)[:, 7]
    np.testing.assert_allclose(found.max(1), nearest, atol=1e-6)


@pytest.mark.parametrize(("n_cells", "n_topics"), [(20, 2), (5, 2), (7, 3)])
def test_very_few_cells_are_mapped(n_cells, n_topics):
    adata = planted(n_cells, n_topics, n_genes=8)
    embed_counts(adata, ReportConfig(), seed=0)
    embed_topics(adata, ReportConfig(), seed=0)
    assert adata.obsm["X_pca"].shape == (n_cells, min(n_cells, 8) - 1)
    for key in ("X_umap_counts", "X_umap_topics"):
        assert np.isfinite(adata.obsm[key]).all()


def test_equal_cells_with_topics_as_an_array_are_mapped():
    adata = planted(30, 2)
    adata.obsm["X_lda"] = np.full((30, 2), 0.5)
    embed_topics(adata, ReportConfig(), seed=0)
    assert np.isfinite(adata.obsm["X_umap_topics"]).all()


def test_disconnected_groups_are_mapped_without_a_warning():
    adata = planted(60, 4)
    adata.obsm["X_lda"] = np.eye(4)[np.arange(60) % 4] * 0.999 + 0.00025
    embed_topics(adata, ReportConfig(n_neighbors=5), seed=0)
    kind = adata.obs["kind"].to_numpy()
    assert neighbour_agreement(adata.obsm["X_umap_topics"], kind) == 1


def test_too_few_cells_are_refused():
    with pytest.raises(ValueError, match="5 cells or more, found 4"):
        embed_topics(planted(4, 2), ReportConfig(), seed=0)
