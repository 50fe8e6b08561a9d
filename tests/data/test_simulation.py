"""Simulated corpora: the stated model, its moments, and the same bytes from the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from topicell.config import SimulationConfig
from topicell.data import simulation
from topicell.data.simulation import settings_digest, simulate


def test_shapes_names_and_truth() -> None:
    adata = simulate(SimulationConfig(n_cells=60, n_genes=40, n_topics=3, mean_counts=200))
    assert adata.shape == (60, 40)
    theta, beta = adata.obsm["theta"], adata.varm["beta"]
    assert theta.shape == (60, 3)
    assert beta.shape == (40, 3)
    np.testing.assert_allclose(theta.sum(axis=1), 1)
    np.testing.assert_allclose(beta.sum(axis=0), 1)
    assert adata.obs_names[59] == "cell_59"
    assert adata.var_names[39] == "gene_39"
    assert list(adata.obs["dominant_topic"]) == [f"topic_{k}" for k in theta.argmax(axis=1)]
    x = adata.layers["counts"]
    assert x.dtype == np.float32
    assert (x.data == np.floor(x.data)).all()
    assert (x != adata.X).nnz == 0
    assert adata.uns["topicell_source"] == {
        "name": "simulated",
        "source": "simulation",
        "sha256": settings_digest(
            SimulationConfig(n_cells=60, n_genes=40, n_topics=3, mean_counts=200)
        ),
        "label_key": "dominant_topic",
    }


def test_every_cell_has_at_least_one_count() -> None:
    adata = simulate(SimulationConfig(n_cells=300, n_genes=5, n_topics=2, mean_counts=0.2))
    assert (adata.X.sum(axis=1) >= 1).all()


def test_library_sizes_have_the_stated_mean_and_spread() -> None:
    config = SimulationConfig(n_cells=4000, n_genes=3, n_topics=2, mean_counts=5000, counts_sd=0.5)
    sizes = simulate(config).X.sum(axis=1).A1
    assert np.log(sizes).std() == pytest.approx(0.5, rel=0.05)
    standard_error = 5000 * np.sqrt(np.expm1(0.25)) / np.sqrt(4000)
    assert abs(sizes.mean() - 5000) < 4 * standard_error
    fixed = simulate(SimulationConfig(n_cells=9, n_genes=3, n_topics=2, counts_sd=0))
    assert (fixed.X.sum(axis=1) == 1000).all()


def test_counts_follow_the_planted_proportions() -> None:
    config = SimulationConfig(
        n_cells=2000, n_genes=30, n_topics=3, topic_gene_prior=1.0, counts_sd=0.0
    )
    adata = simulate(config)
    x = adata.X.toarray()
    expected = 1000 * adata.obsm["theta"] @ adata.varm["beta"].T
    # Pearson's statistic of multinomials has mean G - 1 for a cell.
    pearson = ((x - expected) ** 2 / expected).sum(axis=1)
    assert pearson.mean() == pytest.approx(29, rel=0.05)


def test_smaller_priors_give_sparser_topics() -> None:
    def purity(prior: float) -> float:
        config = SimulationConfig(n_cells=300, n_genes=20, cell_topic_prior=prior)
        return float(simulate(config).obsm["theta"].max(axis=1).mean())

    assert purity(0.01) > purity(0.3) > purity(10)


def test_the_same_settings_give_the_same_bytes_in_chunks_of_any_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = SimulationConfig(n_cells=50, n_genes=20, n_topics=3, seed=7)
    first = simulate(config)
    monkeypatch.setattr(simulation, "_CHUNK_ENTRIES", 7 * 20)
    second = simulate(config)
    for one, other in ((first.X.data, second.X.data), (first.X.indices, second.X.indices)):
        assert one.tobytes() == other.tobytes()
    np.testing.assert_array_equal(first.obsm["theta"], second.obsm["theta"])
    third = simulate(SimulationConfig(n_cells=50, n_genes=20, n_topics=3, seed=8))
    assert (first.X != third.X).nnz > 0


def test_each_setting_changes_the_digest() -> None:
    digests = {
        settings_digest(config)
        for config in (
            SimulationConfig(),
            SimulationConfig(seed=1),
            SimulationConfig(n_cells=1999),
            SimulationConfig(counts_sd=0.31),
        )
    }
    assert len(digests) == 4
    assert settings_digest(SimulationConfig()) in digests
