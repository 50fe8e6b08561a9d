"""Fits of points: measures that need only topics, and their file."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.evaluation.perplexity import fold_in, perplexity, thin
from topicell.model.estimates import elbo_given, theta_given
from topicell.model.loading import load_fit
from topicell.model.mixture import MIXTURE
from topicell.model.points import PointFit


def point_fit(counts, beta_RKG, *, infer=(), held_out=None, prior=0.1):
    beta_RKG = np.asarray(beta_RKG)
    return PointFit(
        beta_RKG,
        infer,
        model=ModelConfig(n_topics=beta_RKG.shape[1], cell_topic_prior=prior),
        genes=counts.genes,
        gene_frequency_G=counts.gene_frequency(),
        selection_R=np.zeros(len(beta_RKG)),
        n_train=counts.n_cells,
        history=[],
        cells=counts,
        held_out=held_out,
    )


def perturbed(beta_KG, share, seed=1):
    """Return topics that give a share of each to other genes."""
    other_KG = np.random.default_rng(seed).dirichlet(np.full(beta_KG.shape[1], 0.1), len(beta_KG))
    return (1 - share) * beta_KG + share * other_KG


@pytest.fixture(scope="module")
def planted_fit(planted):
    """Return a fit whose replicates are the planted topics, perturbed more and more."""
    counts, _, beta_KG = planted
    topics = [perturbed(beta_KG, share) for share in (0, 0.02, 0.1, 0.5)]
    return point_fit(counts[:100], topics, held_out=counts[400:])


def test_the_true_topics_have_the_highest_elbo_and_the_lowest_perplexity(planted_fit):
    elbo_R = planted_fit.elbo_given_topics()
    assert (np.diff(elbo_R) < -1).all()
    assert (np.diff(planted_fit.perplexity_by_replicate()) > 0).all()


def test_the_true_topics_find_the_true_proportions(planted_fit, planted):
    theta_NK = planted_fit.theta(replicates=[0])[0]
    np.testing.assert_allclose(theta_NK.sum(1), 1, rtol=1e-5)
    error_N = np.abs(theta_NK - planted[1][:100]).sum(1)
    assert error_N.mean() < 0.06
    by_em_NK = fold_in(planted[0].x[:100], planted[2])
    assert np.abs(theta_NK - by_em_NK).mean() < 0.01


def test_a_cell_with_a_gene_of_no_topic_has_probability_zero(planted):
    counts, _, beta_KG = planted
    few = counts[:60]
    n_cells_G = thin(few.x, 0)[1].getnnz(0)
    gene = int(np.argmin(np.where(n_cells_G > 0, n_cells_G, 99)))
    has_it = few.x[:, gene].toarray().ravel() > 0
    without = beta_KG.copy()
    without[:, gene] = 0
    fit = point_fit(few, [beta_KG, without])
    elbo_R = fit.elbo_given_topics()
    assert np.isfinite(elbo_R[0])
    assert elbo_R[1] == -math.inf
    by_cell_RN = elbo_given(fit.beta_RKG, fit.prior(), fit.likelihood, few.x, n_samples=8, seed=0)
    assert np.array_equal(np.isinf(by_cell_RN), np.stack([np.zeros(60, bool), has_it]))
    assert 0 < has_it.sum() < 60
    assert np.isfinite(fit.elbo_given_topics(few[~has_it])).all()
    # The proportions are those of the other counts of the cell.
    x_NG = few.x.tolil()
    x_NG[:, gene] = 0
    expected = theta_given(
        without[None], fit.prior(), fit.likelihood, x_NG.tocsr(), n_samples=256, seed=0
    )
    np.testing.assert_allclose(fit.theta(replicates=[1]), expected, atol=1e-4)
    assert fit.perplexity_by_replicate(few)[1] == math.inf


def test_the_elbo_is_a_mean_over_cells(planted_fit):
    cells = planted_fit.cells
    halves = [planted_fit.elbo_given_topics(cells[rows]) for rows in (slice(50), slice(50, 100))]
    np.testing.assert_allclose(np.mean(halves, axis=0), planted_fit.elbo_given_topics(), rtol=1e-6)
    once = planted_fit.elbo_given_topics(seed=5)
    assert np.array_equal(once, planted_fit.elbo_given_topics(seed=5))
    np.testing.assert_allclose(once, planted_fit.elbo_given_topics(), atol=0.5)


def test_an_amortized_fit_has_the_same_elbo_given_its_mean_topics(fitted):
    """It is above the ELBO with the KL of topics, for the same refined posterior."""
    cells = fitted.held_out
    points = point_fit(cells, fitted.beta(), prior=None)
    elbo_R = fitted.elbo_given_topics(cells)
    np.testing.assert_allclose(elbo_R, points.elbo_given_topics(), rtol=1e-6)
    assert (elbo_R > fitted.elbo_by_replicate(cells, refine=True)).all()


def test_perplexity_is_computed_from_thinned_counts(planted_fit):
    observed, completed = thin(planted_fit.held_out.x, 3)
    half = Counts(observed, planted_fit.held_out.cells, planted_fit.genes)
    folded_R, own_R = (
        planted_fit.perplexity_by_replicate(folded=folded, seed=3) for folded in (True, False)
    )
    theta_RNK = planted_fit.theta(half, seed=3)
    for r, beta_KG in enumerate(planted_fit.beta()):
        assert folded_R[r] == perplexity(completed, fold_in(observed, beta_KG), beta_KG)
        assert own_R[r] == perplexity(completed, theta_RNK[r], beta_KG)
        assert planted_fit.perplexity(replicate=r, seed=3) == folded_R[r]


def test_uniform_topics_have_a_perplexity_of_the_number_of_genes(planted):
    counts = planted[0][:20]
    fit = point_fit(counts, np.full((1, 3, 120), 1 / 120))
    for folded in (True, False):
        assert fit.perplexity(folded=folded) == pytest.approx(120, rel=1e-5)
    # All topics are equal, so the best posterior is the prior.
    np.testing.assert_allclose(fit.elbo_given_topics(), -300 * math.log(120), rtol=1e-6)
    np.testing.assert_allclose(fit.theta(), 1 / 3, atol=0.01)


def test_order_of_topics_changes_no_measure(planted_fit):
    order = np.array([3, 1, 0, 2])
    relabelled = point_fit(
        planted_fit.cells, planted_fit.beta_RKG[:, order], held_out=planted_fit.held_out
    )
    np.testing.assert_allclose(
        relabelled.perplexity_by_replicate(), planted_fit.perplexity_by_replicate(), rtol=1e-9
    )
    # The draws of a topic depend on its position.
    np.testing.assert_allclose(
        relabelled.elbo_given_topics(), planted_fit.elbo_given_topics(), atol=0.3
    )
    difference = relabelled.theta() - planted_fit.theta()[..., order]
    assert np.abs(difference).max() < 0.02
    expected, other = planted_fit.top_genes(5), relabelled.top_genes(5)
    for place, topic in enumerate(order):
        assert other[f"topic_{place}"].tolist() == expected[f"topic_{topic}"].tolist()


def test_topics_are_ordered_by_mean_proportion_and_the_likeliest_replicate_is_selected(planted):
    counts, theta_NK, beta_KG = planted
    orders = [np.array([2, 0, 3, 1]), np.array([1, 3, 2, 0])]
    topics = np.stack([perturbed(beta_KG, 0.3)[orders[0]], beta_KG[orders[1]]])
    infer = [lambda x, order=order: fold_in(x, beta_KG)[:, order] for order in orders]
    model = ModelConfig(n_topics=4)
    fit = PointFit.of(topics, infer, counts[:400], counts[400:], model, seed=0)
    theta_RNK = fit.theta()
    assert (np.diff(theta_RNK.mean(1), axis=1) <= 0).all()
    by_size = np.argsort(-theta_NK[:400].mean(0))
    np.testing.assert_array_equal(fit.beta()[1], beta_KG[by_size])
    np.testing.assert_array_equal(theta_RNK[1], fold_in(counts.x[:400], beta_KG)[:, by_size])
    np.testing.assert_array_equal(theta_RNK[0], theta_RNK[1])
    assert fit.selected == 1
    np.testing.assert_array_equal(fit.selection_R, fit.elbo_given_topics(counts[400:]))
    np.testing.assert_array_equal(fit.theta(replicates=[1]), theta_RNK[1:])
    assert np.abs(fit.theta(refine=True)[1] - theta_RNK[1]).mean() < 0.02
    # Without validation cells, training cells are used.
    alone = PointFit.of(topics, infer, counts[:400], None, model, seed=0)
    np.testing.assert_array_equal(alone.selection_R, alone.elbo_given_topics(counts[:400]))


def test_a_saved_fit_has_its_topics_and_not_the_inference_of_the_library(planted, tmp_path):
    counts, _, beta_KG = planted
    model = ModelConfig(n_topics=4, cell_topic_prior=[0.1, 0.2, 0.3, 0.4])
    topics = np.stack([beta_KG, perturbed(beta_KG, 0.1)])
    infer = [lambda x, beta_KG=beta_KG: fold_in(x, beta_KG) for beta_KG in topics]
    fit = PointFit.of(topics, infer, counts[:100], None, model, seed=0)
    loaded = load_fit(fit.save(tmp_path / "model"))
    assert isinstance(loaded, PointFit)
    assert loaded.model == model
    assert loaded.genes.tolist() == counts.genes.tolist()
    assert loaded.selected == fit.selected
    assert loaded.beta().dtype == np.float64
    np.testing.assert_array_equal(loaded.beta(), fit.beta())
    cells = counts[400:]
    refined = fit.theta(cells, refine=True)
    np.testing.assert_array_equal(loaded.theta(cells, refine=True), refined)
    # A loaded fit has only the inference of topicell.
    np.testing.assert_array_equal(loaded.theta(cells), refined)
    assert not np.array_equal(fit.theta(cells), refined)
    np.testing.assert_array_equal(loaded.elbo_given_topics(cells), fit.elbo_given_topics(cells))
    assert loaded.top_genes(by="frex").equals(fit.top_genes(by="frex"))
    with pytest.raises(InputError, match="holds no cells"):
        loaded.theta()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("earlier", "saved by an earlier topicell, in format 1"),
        ("later", "saved by a later topicell, in format 3"),
        ("no format", "KeyError: 'format'"),
        ("no topics", "KeyError: 'beta'"),
        ("other genes", r"topics have shape \(4, 4, 120\).*\(4, 4, 119\)"),
        ("other number of topics", r"topics have shape \(4, 4, 120\).*\(4, 5, 120\)"),
    ],
)
def test_a_damaged_model_is_refused_with_the_reason(planted_fit, tmp_path, damage, message):
    folder = planted_fit.save(tmp_path / "model")
    document = json.loads((folder / "model.json").read_text())
    if damage == "earlier":
        # Format 1 had no kind.
        document["format"] = 1
        del document["model"]["kind"]
    elif damage == "later":
        document["format"] = 3
    elif damage == "no format":
        del document["format"]
    elif damage == "no topics":
        safetensors.torch.save_file({"other": torch.zeros(2)}, folder / "weights.safetensors")
    elif damage == "other genes":
        document["genes"].pop()
    else:
        document["model"]["n_topics"] = 5
    (folder / "model.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message) as error:
        load_fit(folder)
    assert str(folder) in str(error.value)


def test_cells_without_counts_get_the_prior_with_a_warning(planted_fit, planted):
    counts = planted[0]
    x_NG = sp.vstack([counts.x[:2], sp.csr_matrix((1, 120), dtype=np.float32)]).tocsr()
    cells = Counts(x_NG, np.array(["a", "b", "empty"], dtype=object), counts.genes)
    with pytest.warns(UserWarning, match="1 cells have no count"):
        theta = planted_fit.transform(cells)
    np.testing.assert_allclose(theta.loc["empty"], 0.25, atol=0.02)
    by_cell_RN = elbo_given(
        planted_fit.beta(), planted_fit.prior(), MIXTURE, x_NG, n_samples=64, seed=0
    )
    np.testing.assert_allclose(by_cell_RN[:, 2], 0, atol=1e-4)


def test_chunks_of_cells_change_nothing(planted, monkeypatch):
    counts, _, beta_KG = planted
    fit = point_fit(counts[:50], beta_KG[None])
    whole = fit.theta(), fit.elbo_given_topics()
    monkeypatch.setattr("topicell.model.estimates.CHUNK", 7)
    np.testing.assert_allclose(fit.theta(), whole[0], atol=1e-5)
    np.testing.assert_allclose(fit.elbo_given_topics(), whole[1], rtol=1e-6)


def test_points_refuse_measures_that_need_an_encoder(planted):
    counts, _, beta_KG = planted
    fit = PointFit(
        beta_KG[None],
        model=ModelConfig(n_topics=4, cell_topic_prior=[0.1, 0.2, 3.0, 1.0]),
        genes=counts.genes,
        selection_R=np.zeros(1),
        gene_frequency_G=counts.gene_frequency(),
        n_train=500,
        history=[],
    )
    with pytest.raises(InputError, match="use elbo_given_topics"):
        fit.elbo(counts)
    with pytest.raises(InputError, match="amortization gap needs an encoder"):
        fit.amortization_gap(counts)
    # The prior of measures is the same for every topic, whatever the prior of the library.
    prior = fit.prior()
    mean_K, scale_K = prior.mean, prior.scale
    assert len(set(mean_K.tolist())) == len(set(scale_K.tolist())) == 1
