"""Posterior means and ELBO terms, against Pyro's guide and loss."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from pyro import poutine

from topicell.model.estimates import Chunks, elbo_terms, mean_theta
from topicell.model.program import TopicELBO


def test_theta_is_the_mean_of_the_guide_that_was_trained(fitted, planted):
    """Prediction averages samples of the guide of training."""
    x = torch.from_numpy(planted[0].x[:20].toarray())
    torch.manual_seed(0)
    total = 0
    for _ in range(2000):
        trace = poutine.trace(fitted.program.guide).get_trace(x, 400)
        total = total + trace.nodes["cell_logits"]["value"].softmax(-1).detach()
    program = mean_theta(
        fitted.program, Chunks(fitted.program, planted[0][:20]), n_samples=512, seed=0
    )
    assert np.abs(program - (total / 2000).numpy()).max() < 0.02


def test_theta_of_a_cell_does_not_depend_on_other_cells(fitted, planted):
    counts = planted[0]
    whole = fitted.theta(counts)
    shuffled = np.random.default_rng(0).permutation(500)
    assert np.abs(fitted.theta(counts[shuffled]) - whole[:, shuffled]).max() < 1e-5
    assert np.abs(fitted.theta(counts[np.array([7])])[:, 0] - whole[:, 7]).max() < 1e-5


def test_cells_without_counts_have_a_theta_and_no_likelihood(fitted, planted):
    """A chunk of only such cells has no non-zero entry."""
    empty = replace(planted[0][:3], rows=sp.csr_matrix((3, planted[0].n_genes), dtype=np.float32))
    program = fitted.program
    theta_RNK = mean_theta(program, Chunks(program, empty), n_samples=32, seed=0)
    np.testing.assert_allclose(theta_RNK.sum(-1), 1, rtol=1e-5)
    terms = elbo_terms(program, Chunks(program, empty), n_samples=2, seed=0)
    assert (terms.reconstruction == 0).all()
    assert (terms.kl_cells > 0).all()


def test_more_samples_change_little(fitted, planted):
    few, many = (fitted.theta(planted[0], n_samples=n) for n in (256, 4096))
    assert np.abs(few - many).max() < 0.02
    assert np.abs(few - many).mean() < 1e-3


def test_the_elbo_is_pyros_on_the_same_cells(fitted, planted):
    """The ELBO is in nats per cell."""
    counts = planted[0]
    x = torch.from_numpy(counts.x.toarray())
    torch.manual_seed(0)
    elbo = TopicELBO()
    with torch.no_grad():
        losses = [
            elbo.differentiable_loss(fitted.program.model, fitted.program.guide, x, 500).item()
            for _ in range(30)
        ]
    # Pyro sums over replicates; the KL of topics is shared by the number of cells that it gets.
    reported = elbo_terms(
        fitted.program, Chunks(fitted.program, counts), n_samples=30, seed=0
    ).per_cell(500)
    assert reported.sum() == pytest.approx(-np.mean(losses) / 500, rel=1e-3)
    assert (reported < 0).all()
