"""Training: seeds, starts, scores of epochs, failed replicates, early stopping."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from topicell.config import (
    AnnealingConfig,
    AnnealingShape,
    EarlyStoppingConfig,
    Engine,
    Init,
    ModelConfig,
    Schedule,
    TrainConfig,
)
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.evaluation.perplexity import elbo_perplexity
from topicell.evaluation.ranking import used_topics
from topicell.evaluation.stability import match_topics
from topicell.model import engines
from topicell.model.estimates import ELBOTerms
from topicell.model.minibatches import sparse_is_there, sparse_wins
from topicell.model.training import (
    NonFiniteError,
    default_epochs,
    train,
)

QUICK = {"epochs": 3, "n_replicates": 2, "progress": False}


def quick(counts, valid=None, *, n_topics=4, seed=0, start=None, model=None, **settings):
    return train(
        counts,
        valid,
        ModelConfig(n_topics=n_topics, n_hidden=16, **(model or {})),
        TrainConfig(**QUICK | settings),
        seed=seed,
        start=start,
    )


def weights(fit):
    return {name: value.numpy().tobytes() for name, value in fit.program.state_dict().items()}


@pytest.mark.parametrize(
    ("cells", "init"), [*(("planted", init) for init in Init), ("shallow", Init.background)]
)
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(cells, init, request):
    counts = request.getfixturevalue(cells)[0]
    if sparse_is_there(torch.device("cpu")):
        assert sparse_wins(counts.x, torch.device("cpu")) == (cells == "shallow")
    first, second = (quick(counts, model={"init": init}) for _ in range(2))
    assert weights(first) == weights(second)
    assert weights(first) != weights(quick(counts, seed=1, model={"init": init}))


def test_sparse_and_dense_arithmetic_give_the_same_fit(shallow, monkeypatch):
    counts = shallow[0]
    rows = np.arange(400)
    settings = {"epochs": 20, "n_replicates": 2}
    chosen = quick(counts[rows[:350]], counts[rows[350:]], **settings)
    monkeypatch.setattr(engines, "sparse_wins", lambda *_: False)
    dense = quick(counts[rows[:350]], counts[rows[350:]], **settings)
    for name in ("train/elbo", "valid/elbo", "valid/perplexity"):
        values = [fit.history[-1][name] for fit in (chosen, dense)]
        assert values[0] == pytest.approx(values[1], rel=1e-3), name
    np.testing.assert_allclose(chosen.beta(), dense.beta(), atol=1e-3)


def test_the_random_state_and_threads_of_the_caller_are_restored(planted):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    quick(planted[0], threads=2)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("init", [Init.background, Init.kmeans])
def test_planted_topics_are_recovered(planted, init):
    counts, theta_NK, beta_KG = planted
    config, model = TrainConfig(progress=False), ModelConfig(n_topics=4, init=init)
    fit = train(counts[np.arange(450)], counts[np.arange(450, 500)], model, config, seed=0)
    matching = match_topics(beta_KG, fit.beta()[fit.selected])
    assert matching.cosine.mean() >= 0.95
    error = np.abs(fit.theta(counts)[fit.selected][:, matching.permutation] - theta_NK)
    assert error.mean() < 0.06


def test_a_background_start_keeps_more_topics_than_a_random_start(planted):
    counts = planted[0]
    used = {
        init: [
            used_topics(theta)
            for theta in quick(
                counts,
                epochs=40,
                learning_rate=0.02,
                n_replicates=4,
                model={"init": init, "normalize_means": False},
            ).theta()
        ]
        for init in (Init.random, Init.background)
    }
    assert np.mean(used[Init.random]) <= np.mean(used[Init.background]) - 0.5, used


def test_the_reported_elbo_has_weight_one_and_the_loss_the_annealed_weight(planted):
    fit = quick(
        planted[0],
        epochs=6,
        n_replicates=1,
        kl_annealing=AnnealingConfig(warmup_epochs=1e9, min_weight=0.25, max_weight=0.25),
    )
    for row in fit.history:
        elbo = row["train/reconstruction"] - row["train/kl_cells"] - row["train/kl_topics"]
        assert row["train/elbo"] == pytest.approx(elbo, rel=1e-5)
        loss = 0.25 * (row["train/kl_cells"] + row["train/kl_topics"]) - row["train/reconstruction"]
        assert row["train/loss"] == pytest.approx(loss, rel=1e-5)
        assert row["train/elbo"] < 0


def test_training_raises_the_elbo_and_lowers_perplexity(planted):
    counts = planted[0]
    rows = np.arange(500)
    fit = quick(counts[rows[:400]], counts[rows[400:]], epochs=20)
    first, last = fit.history[0], fit.history[-1]
    assert last["train/elbo"] > first["train/elbo"]
    assert last["valid/elbo"] > first["valid/elbo"]
    assert 1 < last["valid/perplexity"] < first["valid/perplexity"] < counts.n_genes
    assert last["train/elbo_sd"] >= 0
    total = fit.elbo(fit.held_out) * fit.held_out.n_cells
    assert 1 < elbo_perplexity(total, fit.held_out.x.sum()) < counts.n_genes


def test_the_mean_of_an_epoch_weights_cells_and_not_batches(planted):
    counts = planted[0][np.arange(129)]
    # At a rate near 0 no weight moves: one batch and several of different sizes must agree.
    settings = {"epochs": 1, "learning_rate": 1e-12, "n_replicates": 1}
    model = {"normalize_means": False, "init": Init.background}
    whole = quick(counts, batch_size=129, model=model, **settings).history[0]
    parts = quick(counts, batch_size=40, model=model, **settings).history[0]
    # Noise and batch statistics differ; equal weights of unequal batches would be far off.
    assert parts["train/reconstruction"] == pytest.approx(whole["train/reconstruction"], rel=0.01)
    assert parts["train/kl_topics"] == pytest.approx(whole["train/kl_topics"], rel=1e-6)


def test_default_epochs_aim_for_a_number_of_steps_within_bounds():
    assert default_epochs(128 * 25, 128) == 10
    assert default_epochs(10**6, 128) == 3
    assert default_epochs(10, 128) == 200


def test_a_non_finite_term_stops_with_its_step_and_name(planted):
    with pytest.raises(NonFiniteError, match=r"step \d+ \(epoch \d+\).*not finite"):
        quick(planted[0], epochs=50, learning_rate=1e30)


def break_replicates(monkeypatch, replicates, *, after=5):
    """Make weights of the replicates NaN after some steps."""
    stepped, taken = engines.Optimizer.step, []

    def step(self, *arguments, **settings):
        stepped(self, *arguments, **settings)
        taken.append(None)
        if len(taken) == after:
            with torch.no_grad():
                self.program.topic_mean[replicates, 0, 0] = torch.nan

    monkeypatch.setattr(engines.Optimizer, "step", step)


@pytest.mark.parametrize("engine", list(Engine))
@pytest.mark.parametrize("with_valid", [True, False])
def test_a_replicate_that_fails_is_dropped_and_changes_no_other(
    planted, monkeypatch, engine, with_valid
):
    counts = planted[0][np.arange(300)]
    valid = planted[0][np.arange(300, 350)] if with_valid else None
    # The search would do the first steps.
    settings = {"n_replicates": 3, "engine": engine, "search": False}
    whole = quick(counts, valid, **settings)
    break_replicates(monkeypatch, [0])
    with pytest.warns(
        UserWarning, match=r"1 of 3 replicates were left out.*replicate 0: .* step 6"
    ):
        fit = quick(counts, valid, **settings)
    assert fit.n_replicates == 2
    for name, value in whole.program.by_replicate().items():
        assert torch.equal(fit.program.by_replicate()[name], value[1:]), name
    np.testing.assert_array_equal(fit.order_RK, whole.order_RK[1:])
    np.testing.assert_allclose(fit.selection_R, whole.selection_R[1:], rtol=1e-6)
    np.testing.assert_allclose(fit.theta(), whole.theta()[1:], atol=1e-6)
    assert [row.get("train/failed_replicates", 0) for row in fit.history] == [0, 1, 1]
    assert all(math.isfinite(value) for row in fit.history for value in row.values())


def test_a_fit_ends_if_every_replicate_fails(planted, monkeypatch):
    break_replicates(monkeypatch, [0, 1])
    message = r"stopped at step 8 .*replicate 0: .*; replicate 1: .*lower train\.learning_rate"
    with pytest.raises(NonFiniteError, match=message):
        quick(planted[0], search=False)


def test_a_replicate_without_a_finite_final_elbo_is_dropped(planted, monkeypatch):
    selection = {2: [-np.inf, -5.0], 1: [-5.0]}

    def per_cell(self, n_train):
        return np.array(selection[len(self.kl_topics)])

    monkeypatch.setattr(ELBOTerms, "per_cell", per_cell)
    with pytest.warns(UserWarning, match="replicate 0: the final ELBO"):
        fit = quick(planted[0], search=False)
    assert fit.selection_R.tolist() == [-5.0]
    selection[2] = [-np.inf, np.nan]
    with pytest.raises(NonFiniteError, match="the final ELBO"):
        quick(planted[0], search=False)


DEPTHS = [(mean, spread) for mean in (1e1, 1e3, 1e5, 1e7) for spread in (0.0, 2.0)]


@pytest.mark.parametrize(
    ("mean_counts", "spread", "engine"),
    [(*depth, Engine.fused) for depth in DEPTHS] + [(1e7, 2.0, Engine.pyro)],
)
def test_cells_of_any_depth_are_fitted(mean_counts, spread, engine):
    counts, beta_KG = of_depth(mean_counts, spread)
    rows = np.arange(counts.n_cells)
    fit = train(
        counts[rows[:160]],
        counts[rows[160:]],
        ModelConfig(n_topics=4, n_hidden=32),
        TrainConfig(n_replicates=2, epochs=40, batch_size=64, engine=engine, progress=False),
    )
    assert fit.n_replicates == 2
    held_out = fit.held_out
    scores = [
        fit.selection_R,
        fit.elbo_by_replicate(),
        fit.elbo_by_replicate(held_out),
        fit.elbo_given_topics(held_out),
        fit.perplexity_by_replicate(held_out),
        fit.perplexity_by_replicate(held_out, folded=False),
        fit.amortization_gap(held_out),
        [value for row in fit.history for value in row.values()],
    ]
    for score in scores:
        assert np.isfinite(score).all()
    assert (fit.perplexity_by_replicate(held_out) < counts.n_genes).all()
    if mean_counts >= 1e3:
        assert match_topics(beta_KG, fit.beta()[fit.selected]).cosine.mean() > 0.9


def of_depth(mean_counts, spread):
    """Return 200 cells × 100 genes of four topics, with log-normal library sizes."""
    generator = np.random.default_rng(0)
    beta_KG = generator.dirichlet(np.full(100, 0.1), 4)
    theta_NK = generator.dirichlet(np.full(4, 0.1), 200)
    library_N = generator.lognormal(np.log(mean_counts) - spread**2 / 2, spread, 200)
    p_NG = theta_NK @ beta_KG
    x_NG = generator.multinomial(np.maximum(library_N, 1).astype(int), p_NG / p_NG.sum(1)[:, None])
    names = [np.array([f"{i}" for i in range(n)], dtype=object) for n in x_NG.shape]
    return Counts(sp.csr_matrix(x_NG.astype(np.float32)), *names), beta_KG


@pytest.mark.parametrize("factor", [30, 300])
def test_much_deeper_wells_do_not_break_the_fit(factor):
    """Without its bound, one step of Adam moves the scale of their posterior to 0."""
    generator = np.random.default_rng(0)
    # Strong overdispersion: each well has its own genes.
    rate = generator.lognormal(0, 1, 200) * generator.gamma(0.3, 1 / 0.3, (150, 200))
    rate *= 1e4 / rate.sum(1, keepdims=True)
    rate[:5] *= factor
    names = [np.array([f"{i}" for i in range(n)], dtype=object) for n in rate.shape]
    counts = Counts(sp.csr_matrix(generator.poisson(rate).astype(np.float32)), *names)
    config = TrainConfig(n_replicates=2, epochs=80, progress=False)
    fit = train(counts, None, ModelConfig(), config)
    assert fit.n_replicates == 2
    assert np.isfinite(fit.selection_R).all()
    assert np.isfinite(fit.amortization_gap(counts[np.arange(20)])).all()


def test_early_stopping_returns_the_weights_of_the_best_epoch(planted):
    counts = planted[0]
    parts = counts[np.arange(60)], counts[np.arange(60, 200)]
    settings = {
        "epochs": 200,
        "learning_rate": 0.05,
        "n_replicates": 1,
        "schedule": Schedule.constant,
        "kl_annealing": AnnealingConfig(warmup_epochs=20),
    }
    stopped = quick(
        *parts, **settings, early_stopping=EarlyStoppingConfig(patience=5, min_delta=0.0)
    )
    curve = [row["valid/elbo"] for row in stopped.history]
    assert len(curve) < 200
    best = int(np.argmax(curve))
    assert best == len(curve) - 6
    assert weights(quick(*parts, **settings, max_steps=best + 1)) == weights(stopped)


def test_epochs_below_the_full_kl_weight_do_not_count_for_patience(planted):
    """Cyclical annealing lowers the weight repeatedly; the patience continues after a warm-up."""
    parts = planted[0][np.arange(400)], planted[0][np.arange(400, 500)]
    cycles = AnnealingConfig(shape=AnnealingShape.cyclical, n_cycles=2, warmup_share=0.5)
    n_epochs = []
    for patience in (19, 22):
        stopping = EarlyStoppingConfig(patience=patience, min_delta=1e9)
        fit = quick(*parts, epochs=80, kl_annealing=cycles, early_stopping=stopping)
        n_epochs.append(len(fit.history))
    # Only epoch 20, the first of full weight, gains 1e9 nats. Nineteen more end at epoch 39; the
    # warm-up of the second cycle (40 to 59) does not count.
    assert n_epochs[0] == 40
    assert 60 < n_epochs[1] < 66


def test_a_warm_up_longer_than_training_gives_a_warning(planted):
    """The KL weight then does not reach 1."""
    with pytest.warns(UserWarning, match="warm-up is longer than the 3 epochs"):
        quick(planted[0], kl_annealing=AnnealingConfig(warmup_epochs=400))


def test_max_steps_ends_training_and_its_schedules(planted):
    fit = quick(planted[0], epochs=100, max_steps=8, n_replicates=1)
    assert len(fit.history) == 2
    assert fit.history[-1]["train/kl_weight"] == 1.0
    assert fit.history[-1]["train/learning_rate"] < 0.02


def test_training_continues_from_a_fit_of_the_same_shape(planted):
    counts = planted[0]
    first = quick(counts)
    second = quick(counts, start=first)
    assert [row["epoch"] for row in second.history] == list(range(6))
    assert second.history[3]["train/elbo"] > first.history[0]["train/elbo"]
    with pytest.raises(InputError, match="with n_replicates = 2, because n_replicates = 1"):
        quick(counts, start=first, n_replicates=1)


def test_vector_and_scalar_priors_of_one_value_are_the_same_model(planted):
    counts = planted[0]
    scalar = quick(counts, model={"cell_topic_prior": 0.5, "topic_gene_prior": 0.2})
    vector = quick(
        counts,
        model={"cell_topic_prior": [0.5] * 4, "topic_gene_prior": [0.2] * counts.n_genes},
    )
    assert weights(scalar) == weights(vector)


def test_each_epoch_is_reported_when_it_ends(planted):
    reported = []
    model, config = ModelConfig(n_topics=3, n_hidden=8), TrainConfig(**QUICK)
    fit = train(planted[0], None, model, config, on_epoch=reported.append)
    assert reported == fit.history
    assert all(math.isfinite(value) for row in reported for value in row.values())
