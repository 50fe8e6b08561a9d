"""Maps of cells: they add only their own keys, and separate planted groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

from topicell.config import ReportConfig
from topicell.report import embedding
from topicell.report.embedding import N_VOTES, cells_on_maps


def embed_counts(adata, config, seed):
    embedding.embed_counts(adata, np.arange(adata.n_obs), config, seed)


def embed_topics(adata, config, seed):
    embedding.embed_topics(adata, np.arange(adata.n_obs), config, seed)


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


@pytest.mark.parametrize("max_cells", [None, 150, 1000])
def test_few_cells_are_all_on_the_maps(max_cells):
    assert cells_on_maps(np.zeros(150, int), max_cells, 0).tolist() == list(range(150))


def test_every_stratum_is_kept_and_half_of_the_sample_is_proportional():
    sizes = [6000, 3000, 900, 90, 7, 3]
    strata = np.random.default_rng(0).permutation(np.repeat(np.arange(6), sizes))
    rows = cells_on_maps(strata, 1000, seed=3)
    assert len(rows) == len(set(rows.tolist())) == 1000
    assert (np.diff(rows) > 0).all()
    drawn = np.bincount(strata[rows], minlength=6)
    # Each has a sixth of 500 cells if it has so many.
    assert (drawn >= np.minimum(sizes, 83)).all()
    assert drawn[4:].tolist() == [7, 3]
    # The first five hundred give 83 cells to each of the three largest strata.
    left = np.array(sizes[:3]) - 83
    expected = 83 + (1000 - 3 * 83 - 83 - 10) * left / (left.sum() + 7)
    np.testing.assert_allclose(drawn[:3], expected, atol=60)
    assert np.array_equal(rows, cells_on_maps(strata, 1000, seed=3))
    assert not np.array_equal(rows, cells_on_maps(strata, 1000, seed=4))


def test_each_cell_of_a_stratum_is_as_likely_on_the_maps():
    strata = np.repeat([0, 1], [40, 10])
    drawn = np.zeros(50)
    for seed in range(2000):
        drawn[cells_on_maps(strata, 20, seed)] += 1 / 2000
    # 5 of each stratum, and 10 of the 40 cells that are left: 35 and 5.
    np.testing.assert_allclose(drawn[:40], 5 / 40 + 35 / 40 * 10 / 40, atol=0.05)
    np.testing.assert_allclose(drawn[40:], 5 / 10 + 5 / 10 * 10 / 40, atol=0.05)


def test_cells_beside_the_map_have_components_and_a_cluster_but_no_coordinates(monkeypatch):
    monkeypatch.setattr(embedding, "CHUNK", 40)
    whole, adata = planted(150, 3), planted(150, 3)
    rows = np.arange(0, 150, 2) + np.arange(75) % 2
    part = whole[rows].copy()
    config = ReportConfig(n_components=10)
    embed_counts(part, config, seed=1)
    embed_topics(part, config, seed=1)
    embedding.embed_counts(adata, rows, config, 1)
    embedding.embed_topics(adata, rows, config, 1)
    assert embedding.mapped(adata).tolist() == rows.tolist()
    others = np.setdiff1d(np.arange(150), rows)
    for key in ("X_umap_counts", "X_umap_topics"):
        np.testing.assert_array_equal(adata.obsm[key][rows], part.obsm[key])
        assert np.isnan(adata.obsm[key][others]).all()
    # The components are those of the cells on the map, up to the last digits.
    np.testing.assert_allclose(adata.obsm["X_pca"][rows], part.obsm["X_pca"], atol=1e-4)
    x = adata.X.toarray()
    axes = np.linalg.lstsq(x[rows] - x[rows].mean(0), part.obsm["X_pca"], rcond=None)[0]
    expected = (x[others] - x[rows].mean(0)) @ axes
    np.testing.assert_allclose(adata.obsm["X_pca"][others], expected, atol=1e-3)
    assert adata.obs["leiden"].iloc[rows].tolist() == part.obs["leiden"].tolist()
    for cell in others:
        distance = np.linalg.norm(adata.obsm["X_pca"][rows] - adata.obsm["X_pca"][cell], axis=1)
        votes = part.obs["leiden"].iloc[np.argsort(distance)[:N_VOTES]].value_counts()
        assert adata.obs["leiden"].iloc[cell] in votes.index[votes == votes.max()]


def test_too_few_cells_are_refused():
    with pytest.raises(ValueError, match="5 cells or more, found 4"):
        embed_topics(planted(4, 2), ReportConfig(), seed=0)
