"""Initial topics from the background, the prior and clusters of cells."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from topicell.config import Init, ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.evaluation.stability import match_topics
from topicell.model.minibatches import Given
from topicell.model.priors import NormalPrior
from topicell.model.starts import (
    background,
    best_clusters,
    given_topics,
    initial_topics,
    leading_axes,
    read_initial_topics,
)
from topicell.model.training import train


def test_each_init_has_its_topics(planted):
    counts = planted[0]
    program = SimpleNamespace(
        n_replicates=2,
        n_topics=4,
        n_genes=counts.n_genes,
        given=lambda counts: Given(),
        topic_prior=NormalPrior(torch.zeros(counts.n_genes), torch.full((counts.n_genes,), 2.0)),
    )
    of_background = initial_topics(counts, program, Init.background, 1, 0)
    frequency = np.asarray(counts.x.sum(0)).ravel()
    expected = np.log(frequency + 0.5)
    expected -= expected.mean()
    assert np.abs(of_background.numpy().mean((0, 1)) - expected).mean() < 0.15
    assert of_background.mean(-1).abs().max() < 1e-4
    random = initial_topics(counts, program, Init.random, 1, 0)
    assert random.std().item() == pytest.approx(2.0, rel=0.1)
    kmeans = initial_topics(counts, program, Init.kmeans, 2, 0)
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


def program_of(counts, n_topics):
    return SimpleNamespace(
        n_replicates=2,
        n_topics=n_topics,
        n_genes=counts.n_genes,
        given=lambda counts: Given(),
        topic_prior=NormalPrior(torch.zeros(counts.n_genes), torch.full((counts.n_genes,), 2.0)),
    )


def write_topics(path, beta_KG, genes):
    """Write a table of genes × topics."""
    pd.DataFrame(beta_KG.T, index=genes).to_csv(path)
    return path


def test_given_topics_are_the_start_of_every_replicate_in_any_order_of_genes(planted, tmp_path):
    counts, _, beta_KG = planted
    order = np.random.default_rng(0).permutation(counts.n_genes)
    # Counts instead of proportions are fine too.
    path = write_topics(tmp_path / "t.csv", 7 * beta_KG[:, order], counts.genes[order])
    b_RKG = given_topics(path, counts, program_of(counts, 4))
    assert b_RKG.mean(-1).abs().max() < 1e-4
    for b_KG in b_RKG:
        np.testing.assert_allclose(b_KG.softmax(-1).numpy(), beta_KG, atol=2e-4)


def test_genes_without_a_given_value_start_with_their_share_of_all_counts(planted, tmp_path):
    counts, _, beta_KG = planted
    path = write_topics(tmp_path / "t.csv", beta_KG[:, :90], counts.genes[:90])
    b_RKG = given_topics(path, counts, program_of(counts, 4))
    found_KG = b_RKG[0].softmax(-1).numpy()
    frequency_G = background(counts.x)
    np.testing.assert_allclose(found_KG[:, 90:], np.tile(frequency_G[90:], (4, 1)), rtol=1e-4)
    known = beta_KG[:, :90] / beta_KG[:, :90].sum(1, keepdims=True)
    np.testing.assert_allclose(
        found_KG[:, :90] / found_KG[:, :90].sum(1, keepdims=True), known, atol=3e-4
    )


def test_a_fit_starts_with_given_topics(planted, tmp_path):
    counts, _, beta_KG = planted
    path = write_topics(tmp_path / "t.csv", beta_KG, counts.genes)
    model = ModelConfig(n_topics=4, n_hidden=16, init_topics=str(path))
    config = TrainConfig(n_replicates=2, epochs=1, max_steps=1, learning_rate=1e-6, progress=False)
    fit = train(counts, None, model, config)
    # After one tiny step the topics are the given ones, up to the posterior's initial width.
    for found in fit.program.topic_mean.detach().softmax(-1).numpy():
        assert match_topics(beta_KG, found).cosine.min() > 0.999


def test_genes_with_names_like_numbers_keep_them(planted, tmp_path):
    counts, _, beta_KG = planted
    genes = np.array(["007", "7", "NA", "nan", "1e3", *counts.genes[5:]], dtype=object)
    renamed = Counts(counts.x, counts.cells, genes)
    path = write_topics(tmp_path / "t.csv", beta_KG, genes)
    found_KG, known_G = read_initial_topics(path, renamed, 4)
    assert known_G.all()
    np.testing.assert_allclose(found_KG, beta_KG)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.iloc[:, :3], "has 3 topics; use model.n_topics=3"),
        (lambda table: table.iloc[:50], "has 50 of the 120 modelled genes"),
        (lambda table: -table, "finite and not negative"),
        (lambda table: table * np.array([1, 1, 0, 1]), "a topic needs a gene"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "gene 'gene_0' is there twice"),
        (lambda table: table.astype(str) + "x", "cannot be read as a table of numbers"),
    ],
)
def test_tables_that_are_no_topics_are_refused(change, words, planted, tmp_path):
    counts, _, beta_KG = planted
    path = tmp_path / "t.csv"
    change(pd.DataFrame(beta_KG.T, index=counts.genes)).to_csv(path)
    with pytest.raises(InputError, match=rf"model.init_topics = .*{re.escape(words)}"):
        read_initial_topics(path, counts, 4)
    with pytest.raises(InputError, match="there is no such file"):
        read_initial_topics(tmp_path / "none.csv", counts, 4)
