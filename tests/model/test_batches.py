"""Batches: planted factors are found, and a column without effect changes nothing."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import linear_sum_assignment, minimize

import topicell
from topicell.config import Engine, Init, ModelConfig, TrainConfig
from topicell.counts import NO_BATCH, Counts
from topicell.errors import InputError
from topicell.evaluation.batches import separation
from topicell.evaluation.perplexity import fold_in, perplexity, thin
from topicell.model.batches import batch_shifts, shifts_of_clusters
from topicell.model.minibatches import Given, sparse_batches, sparse_is_there
from topicell.model.prodlda import PRODUCT
from topicell.model.registry import fit_model
from topicell.model.training import train

MODEL = ModelConfig(n_topics=4, n_hidden=16, batch_key="batch")
CONFIG = TrainConfig(n_replicates=2, epochs=15, progress=False)
NAMES = np.array(["a", "b", "c"], dtype=object)


def with_factors(n_cells=600, *, seed=0, scale=0.6):
    """Draw cells of four topics in three batches: return counts, θ, and the shifts of batches."""
    generator = np.random.default_rng(seed)
    beta_KG = generator.dirichlet(np.full(120, 0.1), 4)
    theta_NK = generator.dirichlet(np.full(4, 0.1), n_cells)
    shift_SG = generator.normal(0, scale, (3, 120))
    shift_SG -= shift_SG.mean(0)
    # Topics have other frequencies in each batch, as cell types have in real cohorts.
    favoured_N = theta_NK.argmax(1) % 3
    batch_N = np.where(
        generator.random(n_cells) < 0.4, favoured_N, generator.integers(0, 3, n_cells)
    )
    x_NG = np.empty((n_cells, 120), np.float32)
    for cell, (theta_K, batch) in enumerate(zip(theta_NK, batch_N, strict=True)):
        topics_KG = beta_KG * np.exp(shift_SG[batch])
        p_G = theta_K @ (topics_KG / topics_KG.sum(1, keepdims=True))
        x_NG[cell] = generator.multinomial(400, p_G / p_G.sum())
    cells, genes = (
        np.array([f"{name}{i}" for i in range(n)], dtype=object)
        for name, n in (("cell", n_cells), ("gene", 120))
    )
    counts = Counts(sp.csr_matrix(x_NG), cells, genes, batch=NAMES[batch_N])
    return counts, theta_NK, shift_SG


@pytest.fixture(scope="module")
def shifted():
    return with_factors()


@pytest.fixture(scope="module")
def fit(shifted):
    counts = shifted[0]
    return train(counts[:500], counts[500:], MODEL, CONFIG)


def matched(theta_NK, true_NK):
    """Return proportions with the topics in the order of the true ones."""
    K = true_NK.shape[1]
    correlation_KK = np.corrcoef(theta_NK.T, true_NK.T)[:K, K:]
    rows, columns = linear_sum_assignment(-correlation_KK)
    return theta_NK[:, rows[np.argsort(columns)]]


def test_planted_factors_and_topics_are_found(shifted, fit):
    counts, true_NK, shift_SG = shifted
    factors = fit.batch_factors()
    assert list(factors.index) == ["a", "b", "c"]
    found_SG = np.log(factors.to_numpy())
    np.testing.assert_allclose(found_SG.sum(0), 0, atol=1e-5)
    expressed_G = np.asarray(counts.x.sum(0)).ravel() > 300
    together = found_SG[:, expressed_G].ravel(), shift_SG[:, expressed_G].ravel()
    assert np.corrcoef(*together)[0, 1] > 0.95
    theta_NK = fit.theta()[fit.selected]
    plain = train(counts[:500], counts[500:], ModelConfig(n_topics=4, n_hidden=16), CONFIG)
    without_NK = plain.theta()[plain.selected]
    errors = [
        np.abs(matched(t, true_NK[:500]) - true_NK[:500]).mean() for t in (theta_NK, without_NK)
    ]
    assert max(errors) < 0.04
    assert fit.perplexity() < 0.97 * plain.perplexity()


@pytest.mark.parametrize("engine", [Engine.fused, Engine.pyro])
def test_factors_of_a_product_of_experts_are_found(engine, shifted):
    counts, _, shift_SG = shifted
    config = replace(CONFIG, engine=engine, n_replicates=1, epochs=6)
    model = replace(MODEL, kind="prodlda")
    fit = train(counts[:500], counts[500:], model, config, likelihood=PRODUCT)
    found_SG = np.log(fit.batch_factors().to_numpy())
    expressed_G = np.asarray(counts.x.sum(0)).ravel() > 300
    assert (
        np.corrcoef(found_SG[:, expressed_G].ravel(), shift_SG[:, expressed_G].ravel())[0, 1] > 0.9
    )


def test_batches_without_effect_change_perplexity_by_less_than_its_error(planted):
    counts = planted[0]
    random = NAMES[np.random.default_rng(1).integers(0, 3, counts.n_cells)]
    folds = np.arange(counts.n_cells) % 5
    ratios = []
    for fold in range(5):
        parts = counts[folds != fold], counts[folds == fold]
        plain = train(*parts, ModelConfig(n_topics=4, n_hidden=16), CONFIG)
        named = [
            replace(part, batch=random[rows])
            for part, rows in zip(parts, (folds != fold, folds == fold), strict=True)
        ]
        batched = train(*named, MODEL, CONFIG)
        ratios.append(
            np.log(batched.perplexity_by_replicate()).mean()
            - np.log(plain.perplexity_by_replicate()).mean()
        )
        by_cell = 1 / np.sqrt(float(named[1].x.sum()))
    # The standard error of the log of one perplexity by the number of counts that are predicted.
    assert abs(np.mean(ratios)) < by_cell
    assert np.abs(np.log(batched.batch_factors().to_numpy())).mean() < 0.1


def test_names_of_batches_do_not_matter(shifted, fit):
    counts = shifted[0]
    renamed = replace(counts, batch=np.array([f"x{name}" for name in counts.batch], dtype=object))
    same = train(renamed[:500], renamed[500:], MODEL, CONFIG)
    np.testing.assert_array_equal(same.theta(), fit.theta())
    np.testing.assert_array_equal(same.batch_factors(), fit.batch_factors())
    # In another order, sums are rounded differently.
    reverse = dict(zip("abc", "cba", strict=True))
    turned = replace(counts, batch=np.array([reverse[name] for name in counts.batch], dtype=object))
    other = train(turned[:500], turned[500:], MODEL, CONFIG)
    assert (
        np.abs(
            np.log(other.batch_factors().to_numpy()[::-1] / fit.batch_factors().to_numpy())
        ).max()
        < 0.05
    )
    assert np.abs(other.theta() - fit.theta()).mean() < 0.01


def test_cells_keep_their_values_in_any_order_and_company(shifted, fit):
    counts = shifted[0]
    whole = fit.theta(counts), fit.elbo_given_topics_by_cell(counts[:60])
    order = np.random.default_rng(0).permutation(counts.n_cells)
    assert np.abs(fit.theta(counts[order]) - whole[0][:, order]).max() < 1e-5
    order = order[order < 60]
    found = fit.elbo_given_topics_by_cell(counts[order])
    np.testing.assert_allclose(found, whole[1][:, order], rtol=1e-5)
    refined = fit.theta(counts[:60], refine=True)
    assert np.abs(fit.theta(counts[order], refine=True) - refined[:, order]).max() < 1e-3
    assert (fit.amortization_gap(counts[:60]) >= 0).all()


def test_perplexity_is_that_of_each_batch_by_its_topics(fit):
    cells = fit.held_out
    observed, completed = thin(cells.x, 0)
    beta_KG = fit.topics()[1].astype(float)
    nats = 0.0
    for name, factor_G in fit.batch_factors(replicate=1).iterrows():
        rows = cells.batch == name
        topics_KG = beta_KG * factor_G.to_numpy()
        topics_KG /= topics_KG.sum(1, keepdims=True)
        theta_NK = fold_in(observed[rows], topics_KG)
        nats -= np.log(perplexity(completed[rows], theta_NK, topics_KG)) * completed[rows].sum()
    expected = np.exp(-nats / completed.sum())
    assert fit.perplexity_by_replicate()[1] == pytest.approx(expected, rel=1e-6)


def test_saved_and_loaded_fits_are_equal(tmp_path, shifted, fit):
    counts = shifted[0]
    fit.save(tmp_path / "model")
    loaded = topicell.load(tmp_path / "model")
    assert loaded.batches == ("a", "b", "c")
    np.testing.assert_array_equal(loaded.theta(counts), fit.theta(counts))
    np.testing.assert_array_equal(loaded.batch_factors(), fit.batch_factors())
    assert loaded.perplexity(counts[500:]) == fit.perplexity()
    assert loaded.elbo(counts) == fit.elbo(counts)


def test_cells_of_unknown_batches_are_refused_or_get_the_mean(fit, shifted):
    counts = shifted[0]
    strange = replace(counts, batch=np.where(counts.batch == "c", "new", counts.batch))
    with pytest.raises(
        InputError, match=r"of batches that the model does not know \(new; known are a, b, c"
    ):
        fit.transform(strange)
    with pytest.warns(UserWarning, match="the mean of the known batches"):
        found = fit.transform(strange, unknown_batches="mean").to_numpy()
    usual = fit.transform(counts).to_numpy()
    known = counts.batch != "c"
    np.testing.assert_allclose(found[known], usual[known], atol=1e-6)
    mean = fit.transform(replace(counts, batch=np.full(counts.n_cells, NO_BATCH, dtype=object)))
    np.testing.assert_allclose(found[~known], mean.to_numpy()[~known], atol=1e-6)
    assert np.abs(found[~known] - usual[~known]).max() > 0.05
    bare = replace(counts, batch=None)
    with pytest.raises(InputError, match=r"needs the batch of each cell \(obs\['batch'\]"):
        fit.transform(bare)
    with pytest.warns(UserWarning, match=r"do not have the batches of the cells \(obs\['batch'\]"):
        fit.transform(bare, unknown_batches="mean")
    with pytest.raises(InputError, match="unknown_batches = 'any': must be one of refuse, mean"):
        fit.transform(counts, unknown_batches="any")


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (["a"] * 200, "all training cells have the same value, 'a'"),
        (["a"] * 195 + ["b"] * 5, "batch 'b' has only 5 training cells"),
        (None, "these cells have no batches"),
    ],
)
def test_cells_without_several_batches_are_refused(batch, message, planted):
    counts = planted[0][:200]
    counts = replace(counts, batch=None if batch is None else np.array(batch, dtype=object))
    with pytest.raises(InputError, match=message):
        train(counts, None, MODEL, CONFIG)


@pytest.mark.parametrize("init", [Init.background, Init.kmeans, Init.random])
def test_each_init_can_start_with_batches(init, shifted):
    config = replace(CONFIG, search=False, epochs=1, n_replicates=1)
    fit = train(shifted[0], None, replace(MODEL, init=init), config)
    assert np.isfinite(fit.theta()).all()


def test_python_takes_batches_from_obs(shifted):
    import anndata
    import pandas as pd

    counts = shifted[0]
    obs = pd.DataFrame({"lab": pd.Categorical(counts.batch)}, index=counts.cells)
    adata = anndata.AnnData(counts.x, obs=obs, var=pd.DataFrame(index=counts.genes))
    settings = {"n_topics": 4, "n_replicates": 1, "epochs": 3, "progress": False}
    fit = topicell.fit(adata, batch_key="lab", **settings)
    assert fit.batches == ("a", "b", "c")
    assert fit.cell_topics(adata[:20]).shape == (20, 4)
    with pytest.raises(InputError, match="batch_key = 'labs': obs has no such column; found: lab"):
        topicell.fit(adata, batch_key="labs", **settings)
    with pytest.raises(InputError, match=r"batch_key = \['lab'\]: obs has no such column"):
        topicell.fit(adata, batch_key=["lab"], **settings)
    adata.obs.loc[adata.obs_names[:3], "lab"] = None
    with pytest.raises(InputError, match="3 of 600 cells have no value"):
        topicell.fit(adata, batch_key="lab", **settings)
    del adata.obs["lab"]
    with pytest.raises(
        InputError, match=r"\(obs\['lab'\]; known are a, b, c\).*unknown_batches=mean"
    ):
        fit.transform(adata)
    with pytest.warns(UserWarning, match=r"do not have the batches of the cells \(obs\['lab'\]"):
        fit.transform(adata, unknown_batches="mean")


def test_shifts_of_clusters_maximise_the_penalised_likelihood():
    generator = np.random.default_rng(0)
    x_NG = generator.poisson(generator.gamma(0.5, 8, (60, 6))).astype(np.float32)
    batch_N, label_N = generator.integers(0, 2, 60), generator.integers(0, 3, 60)
    found_SG = shifts_of_clusters(sp.csr_matrix(x_NG), batch_N, 2, label_N, scale=1e3)

    def loss(values):
        profiles_KG, shift_G = values[:18].reshape(3, 6), values[18:] / 2
        logits_NG = profiles_KG[label_N] + np.where(batch_N[:, None] == 0, shift_G, -shift_G)
        log_p_NG = logits_NG - np.log(np.exp(logits_NG).sum(1, keepdims=True))
        return -(x_NG * log_p_NG).sum()

    best = minimize(loss, np.zeros(24), method="BFGS").x[18:]
    # A common shift of all genes of a batch changes nothing.
    found = found_SG[0] - found_SG[1]
    np.testing.assert_allclose(found - found.mean(), best - best.mean(), atol=0.03)


def test_the_first_estimate_is_near_the_planted_shifts(shifted):
    counts, _, shift_SG = shifted
    batch_N = np.searchsorted(NAMES.astype(str), counts.batch.astype(str))
    found_SG = batch_shifts(counts.x, batch_N, 3, 4, 0.6, np.random.default_rng(0))
    expressed_G = np.asarray(counts.x.sum(0)).ravel() > 300
    assert (
        np.corrcoef(found_SG[:, expressed_G].ravel(), shift_SG[:, expressed_G].ravel())[0, 1] > 0.88
    )
    # The difference between cell types is not taken for one between batches.
    one_cluster_SG = shifts_of_clusters(counts.x, batch_N, 3, np.zeros(600, dtype=int), 0.6)
    errors = [np.abs(of - shift_SG)[:, expressed_G].mean() for of in (found_SG, one_cluster_SG)]
    assert errors[0] < 0.65 * errors[1]


def test_the_encoder_reads_counts_without_factors():
    if not sparse_is_there(torch.device("cpu")):
        pytest.skip("this torch was built without MKL")
    x_NG = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (20, 7)).astype(np.float32))
    factor_SG = np.exp(np.random.default_rng(1).normal(0, 1, (3, 7))).astype(np.float32)
    given = Given(np.arange(20) % 3, factor_SG)
    (batch,) = sparse_batches(x_NG, [np.arange(20)], 50.0, given)
    y_NG = x_NG.toarray() / factor_SG[given.batch_N]
    expected_NG = np.log1p(50 * y_NG / np.maximum(y_NG.sum(1, keepdims=True), 1))
    found_NG = batch.by_cell.with_values(batch.inputs).to_dense().numpy()
    np.testing.assert_allclose(found_NG, expected_NG, rtol=1e-5)
    np.testing.assert_array_equal(batch.one_hot.argmax(1).numpy(), given.batch_N)


def test_separation_is_the_share_above_chance_by_loops():
    generator = np.random.default_rng(0)
    theta_NK = generator.dirichlet(np.ones(3), 60)
    batch_N, labels = generator.integers(0, 3, 60), NAMES[generator.integers(0, 2, 60)].copy()
    labels[:4] = None
    excess, possible = [], []
    for cell in range(4, 60):
        others = [c for c in range(4, 60) if labels[c] == labels[cell] and c != cell]
        distance = np.linalg.norm(np.sqrt(theta_NK[others]) - np.sqrt(theta_NK[cell]), axis=1)
        near = np.array(others)[np.argsort(distance)[:5]]
        chance = (batch_N[others] == batch_N[cell]).mean()
        excess.append((batch_N[near] == batch_N[cell]).mean() - chance)
        possible.append(1 - chance)
    expected = np.sum(excess) / np.sum(possible)
    assert separation(theta_NK, batch_N, labels, n_neighbors=5) == pytest.approx(expected)
    assert separation(theta_NK, np.zeros(60), labels) is None
    apart_NK = np.repeat(np.eye(3), 20, axis=0)
    assert separation(apart_NK, np.repeat([0, 1, 2], 20)) == pytest.approx(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed = [
            separation(generator.dirichlet(np.ones(3), 300), generator.integers(0, 2, 300))
            for _ in range(20)
        ]
    assert abs(np.mean(mixed)) < 0.02


@pytest.fixture(scope="module")
def shifted_topics():
    """Draw cells of four topics in two batches that shift each topic differently."""
    generator = np.random.default_rng(7)
    beta_KG = generator.dirichlet(np.full(100, 0.3), 4)
    shift_SKG = generator.normal(0, 0.5, (1, 4, 100)) * np.array([1, -1])[:, None, None]
    theta_NK = generator.dirichlet(np.full(4, 0.1), 1200)
    batch_N = generator.integers(0, 2, 1200)
    topics_SKG = beta_KG * np.exp(shift_SKG)
    topics_SKG /= topics_SKG.sum(-1, keepdims=True)
    p_NG = np.einsum("nk,nkg->ng", theta_NK, topics_SKG[batch_N])
    x_NG = np.stack([generator.multinomial(500, p / p.sum()) for p in p_NG])
    cells, genes = (
        np.array([f"{name}{i}" for i in range(n)], dtype=object)
        for name, n in (("cell", 1200), ("gene", 100))
    )
    counts = Counts(sp.csr_matrix(x_NG.astype(np.float32)), cells, genes, batch=NAMES[batch_N])
    return counts, theta_NK, shift_SKG


@pytest.mark.parametrize("kind", ["amortized_lda", "prodlda"])
def test_factors_of_single_topics_are_found(kind, shifted_topics, tmp_path):
    counts, true_NK, shift_SKG = shifted_topics
    shared = replace(MODEL, kind=kind)
    models = shared, replace(shared, batch_topic_scale=0.3)
    plain, fit = (fit_model(counts[:1000], counts[1000:], model, CONFIG) for model in models)
    assert fit.perplexity() < 0.99 * plain.perplexity()
    correlation = np.corrcoef(fit.theta(counts)[fit.selected].T, true_NK.T)[:4, 4:]
    for k, true_k in enumerate(linear_sum_assignment(-correlation)[1]):
        frequent_G = fit.beta()[fit.selected, k] > 0.005
        found_G = np.log(fit.batch_factors(topic=k).loc["a"].to_numpy())[frequent_G]
        true_G = shift_SKG[0, true_k, frequent_G]
        assert np.corrcoef(found_G, true_G)[0, 1] > (0.9 if kind == "amortized_lda" else 0.8)
    # The factors of all topics are the geometric mean of those of the topics.
    of_topics = [np.log(fit.batch_factors(topic=k).to_numpy()) for k in range(4)]
    np.testing.assert_allclose(
        np.mean(of_topics, axis=0), np.log(fit.batch_factors().to_numpy()), atol=1e-5
    )
    np.testing.assert_allclose(np.sum(of_topics, axis=1), 0, atol=1e-5)
    for k in range(4):
        assert plain.batch_factors(topic=k).equals(plain.batch_factors())
    fit.save(tmp_path / "model")
    loaded = topicell.load(tmp_path / "model")
    few = counts[1000:1040]
    np.testing.assert_array_equal(loaded.theta(few, refine=True), fit.theta(few, refine=True))
    assert loaded.perplexity(few) == fit.perplexity(few)
    assert loaded.elbo(few) == fit.elbo(few)
    assert (fit.amortization_gap(few) >= 0).all()
