"""The amortization gap of the encoder, and refinement, which removes it."""

import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.evaluation.stability import match_topics
from topicell.model.estimates import Chunks, Refinement, encoded
from topicell.model.loading import load_fit
from topicell.model.posterior import AmortizedFit
from topicell.model.refinement import cell_elbo, quasi_normal
from topicell.model.training import train


@pytest.fixture(scope="module")
def gap_RN(fitted):
    return fitted.amortization_gap()


@pytest.fixture(scope="module")
def untrained(planted):
    """Fit one step: topics from k-means, and an encoder without training."""
    config = TrainConfig(n_replicates=2, epochs=1, max_steps=1, progress=False)
    return train(planted[0], None, ModelConfig(n_topics=4, n_hidden=16), config)


def independent_elbo(fit, counts, *, refine, n_samples=512, seed=77):
    """Return the ELBO of each cell without the KL of topics, on new draws, shape (R, N)."""
    program = fit.program
    (batch,) = Chunks(program, counts)
    posterior = encoded(program, batch)
    if refine:
        posterior, _ = Refinement(program, range(fit.n_replicates), seed=0).posterior(batch)
    m_RKG, s_RKG = program.topic_posterior()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        topics = [
            (m_RKG + s_RKG * torch.randn(m_RKG.shape, generator=generator)).softmax(-1)
            for _ in range(n_samples)
        ]
        noise_SK = quasi_normal(n_samples, fit.n_topics, seed, m_RKG)
        prior = (program.cell_prior, program.likelihood)
        return cell_elbo(batch, *posterior, *prior, noise_SK, topics).numpy()


def test_each_cell_has_a_gap_that_is_not_negative(gap_RN, fitted):
    assert gap_RN.shape == (3, 400)
    assert (gap_RN >= 0).all()
    assert (gap_RN > 0).mean() > 0.95


def test_the_gap_is_the_gain_of_refinement_on_other_draws(fitted, planted):
    counts = planted[0][:100]
    gap_RN = fitted.amortization_gap(counts)
    gained_RN = independent_elbo(fitted, counts, refine=True) - independent_elbo(
        fitted, counts, refine=False
    )
    assert gap_RN.mean() == pytest.approx(gained_RN.mean(), rel=0.05)
    assert (gained_RN > -0.2).all()
    assert np.corrcoef(gap_RN.ravel(), gained_RN.ravel())[0, 1] > 0.95


def test_an_untrained_encoder_has_a_larger_gap(gap_RN, untrained):
    assert untrained.amortization_gap().mean() > 5 * gap_RN.mean()


def test_the_gap_is_that_of_the_selected_replicates(gap_RN, fitted):
    for r in range(3):
        assert np.array_equal(fitted.amortization_gap(replicates=[r]), gap_RN[r : r + 1])
    assert np.array_equal(fitted.amortization_gap(replicates=[2, 0]), gap_RN[[2, 0]])


def test_refining_adds_the_mean_gap_to_the_elbo(fitted, gap_RN):
    plain_R, refined_R = (fitted.elbo_by_replicate(refine=refine) for refine in (False, True))
    np.testing.assert_allclose(refined_R, plain_R + gap_RN.mean(1))
    assert (refined_R > plain_R).all()
    held_out = fitted.held_out
    gained = fitted.elbo(held_out, refine=True) - fitted.elbo(held_out)
    expected = fitted.amortization_gap(held_out, replicates=[fitted.selected]).mean()
    assert gained == pytest.approx(expected, rel=1e-5)
    for r in range(3):
        assert fitted.elbo(replicate=r, refine=True) == refined_R[r]


def test_refined_proportions_are_those_of_the_selected_replicates(fitted):
    theta_RNK = fitted.theta(refine=True)
    assert theta_RNK.shape == (3, 400, 4)
    assert (theta_RNK >= 0).all()
    np.testing.assert_allclose(theta_RNK.sum(-1), 1, rtol=1e-5)
    for r in range(3):
        assert np.array_equal(fitted.theta(replicates=[r], refine=True)[0], theta_RNK[r])
    table = fitted.cell_topics(refine=True)
    assert np.array_equal(table.to_numpy(), theta_RNK[fitted.selected])


def test_refined_proportions_are_nearer_to_the_truth(fitted, planted):
    """On cells that were not used in training."""
    held_out, truth_NK = fitted.held_out, planted[1][400:]
    order = match_topics(planted[2], fitted.gene_topics().to_numpy().T).permutation
    errors = {}
    for refine in (False, True):
        table = fitted.transform(held_out, refine=refine)
        assert table.equals(fitted.cell_topics(held_out, refine=refine))
        errors[refine] = np.abs(table.to_numpy()[:, order] - truth_NK).sum(1)
    assert errors[True].mean() < 0.8 * errors[False].mean()
    assert errors[True].mean() < 0.1


def test_refining_changes_neither_the_fit_nor_the_random_state(fitted):
    weights = {name: value.clone() for name, value in fitted.program.state_dict().items()}
    states = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    before = fitted.theta()
    for refine in (False, True):
        fitted.theta(refine=refine)
        fitted.elbo(refine=refine)
    assert np.array_equal(fitted.theta(), before)
    assert torch.equal(states[0], torch.get_rng_state())
    assert repr(np.random.get_state()) == states[1]  # noqa: NPY002
    assert len(pyro.get_param_store()) == 0
    for name, value in fitted.program.state_dict().items():
        assert torch.equal(value, weights[name])
    assert not any(parameter.grad is not None for parameter in fitted.program.parameters())


def test_the_same_seed_refines_to_the_same_bytes_after_loading_too(fitted, tmp_path):
    loaded = load_fit(fitted.save(tmp_path / "model"))
    cells = fitted.held_out
    assert isinstance(loaded, AmortizedFit)
    for refined in (fitted, loaded):
        assert np.array_equal(
            refined.theta(cells, refine=True, seed=3), fitted.theta(cells, refine=True, seed=3)
        )
    assert np.array_equal(loaded.amortization_gap(cells), fitted.amortization_gap(cells))
    other = fitted.theta(cells, refine=True, seed=4)
    assert np.abs(other - fitted.theta(cells, refine=True, seed=3)).max() < 0.05


def test_a_cell_without_counts_is_refined_to_the_prior(fitted, planted):
    genes = planted[0].genes
    x_NG = sp.csr_matrix((2, len(genes)), dtype=np.float32)
    cells = Counts(x_NG, np.array(["a", "b"], dtype=object), genes)
    np.testing.assert_allclose(fitted.theta(cells, refine=True), 0.25, atol=1e-2)
    # Its best ELBO is 0, so the gap is the whole KL.
    lost_RN = -independent_elbo(fitted, cells, refine=False, n_samples=1)
    np.testing.assert_allclose(fitted.amortization_gap(cells), lost_RN, rtol=1e-3)


def test_seeded_topics_keep_their_seeds_when_topics_are_renumbered(tmp_path, planted):
    counts = planted[0]
    beta_KG = planted[2]
    genes = np.argsort(-beta_KG / beta_KG.mean(0), axis=1)[:, :8]
    lines = [f"set_{k}\tplanted\t" + "\t".join(counts.genes[genes[k]]) for k in (2, 0)]
    (tmp_path / "sets.gmt").write_text("\n".join(lines))
    model = ModelConfig(n_topics=4, n_hidden=16, topic_gene_prior=tmp_path / "sets.gmt")
    config = TrainConfig(n_replicates=2, epochs=20, progress=False)
    fit = train(counts, None, model, config)
    before = fit.seeds()
    assert before.index.tolist() == ["topic_0", "topic_1"]
    assert before["seed"].tolist() == ["set_2", "set_0"]
    assert (before["highest_topic"] == before.index).all()
    fit._reorder(np.tile([3, 1, 0, 2], (2, 1)))
    after = fit.seeds()
    assert after.index.tolist() == ["topic_2", "topic_1"]
    assert (after["highest_topic"] == after.index).all()
    np.testing.assert_allclose(after["log2_lift"], before["log2_lift"])
