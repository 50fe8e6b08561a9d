"""Initial topics from the background, the prior and clusters of cells."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from topicell.config import Init
from topicell.evaluation.stability import match_topics
from topicell.model.priors import NormalPrior
from topicell.model.starts import best_clusters, initial_topics, leading_axes


def test_each_init_has_its_topics(planted):
    counts = planted[0]
    program = SimpleNamespace(
        n_replicates=2,
        n_topics=4,
        n_genes=counts.n_genes,
        topic_prior=NormalPrior(torch.zeros(counts.n_genes), torch.full((counts.n_genes,), 2.0)),
    )
    background = initial_topics(counts.x, program, Init.background, 1, 0)
    frequency = np.asarray(counts.x.sum(0)).ravel()
    expected = np.log(frequency + 0.5)
    expected -= expected.mean()
    assert np.abs(background.numpy().mean((0, 1)) - expected).mean() < 0.15
    assert background.mean(-1).abs().max() < 1e-4
    random = initial_topics(counts.x, program, Init.random, 1, 0)
    assert random.std().item() == pytest.approx(2.0, rel=0.1)
    kmeans = initial_topics(counts.x, program, Init.kmeans, 2, 0)
    assert kmeans.mean(-1).abs().max() < 1e-4
    for b_KG in kmeans:
        assert match_topics(planted[2], b_KG.softmax(-1).numpy()).cosine.mean() > 0.7
    assert not torch.equal(kmeans[0], kmeans[1])


def test_leading_axes_hold_the_distances_between_clusters():
    """Cells of two kinds are distant, cells of one kind are near, at any depth."""
    rng = np.random.default_rng(0)
    profile = rng.dirichlet(np.full(200, 0.1), 2)
    kind = np.arange(100) % 2
    depth = rng.integers(500, 4000, 100)
    x = sp.csr_matrix(rng.poisson(profile[kind] * depth[:, None]).astype(np.float32))
    z = leading_axes(x, np.random.default_rng(0))
    assert z.shape == (100, 32)
    centre = np.stack([z[kind == k].mean(0) for k in (0, 1)])
    spread = np.linalg.norm(z - centre[kind], axis=1).mean()
    assert np.linalg.norm(centre[0] - centre[1]) > 2 * spread


def test_more_clusterings_give_likelier_topics(planted):
    """The mean likelihood of the best of eight is higher than that of one."""
    x = planted[0].x
    frequency = np.asarray(x.sum(0)).ravel() + 0.5
    frequency /= frequency.sum()
    z = leading_axes(x, np.random.default_rng(0))

    def likelihoods(n_starts):
        seeds = np.random.default_rng(1)
        for _ in range(10):
            profiles_KG = best_clusters(x, z, 6, frequency, n_starts, seeds)
            assert np.allclose(profiles_KG.sum(1), 1, atol=1e-5)
            assert (profiles_KG > 0).all()
            yield (x @ np.log(profiles_KG).T).max(1).sum()

    assert np.mean(list(likelihoods(8))) > np.mean(list(likelihoods(1)))


def test_identical_cells_can_be_clustered():
    """Five clusters of two kinds of identical cells."""
    x = sp.csr_matrix(np.tile(np.float32([[9, 1, 0], [0, 1, 9]]), (20, 1)))
    frequency = np.array([0.45, 0.1, 0.45])
    z = leading_axes(x, np.random.default_rng(0))
    profiles_KG = best_clusters(x, z, 5, frequency, 2, np.random.default_rng(0))
    np.testing.assert_allclose(profiles_KG.sum(1), 1, rtol=1e-6)
    assert (profiles_KG > 0).all()
