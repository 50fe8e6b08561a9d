"""Models of other libraries: their topics are kept, and a fit leaves no side effects."""

import importlib
import logging
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pyro
import pytest
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.evaluation.stability import match_topics
from topicell.model.external.library import fit_library
from topicell.model.points import PointFit
from topicell.model.registry import MODELS, fit_model

LIBRARY = {
    "sklearn_lda": "sklearn",
    "sklearn_nmf": "sklearn",
    "gensim_lda": "gensim",
    "tomotopy_lda": "tomotopy",
    "scvi_lda": "scvi",
}
KINDS = list(LIBRARY)
QUICK_TO_CONVERGE = KINDS[:-1]
"""Models that converge in few passes; scvi-tools needs many epochs."""
FEW = {"sklearn_lda": 10, "sklearn_nmf": 60, "gensim_lda": 3, "tomotopy_lda": 50, "scvi_lda": 2}
"""Passes that are enough for a test."""
PASSES = {
    "sklearn_lda": 100,
    "sklearn_nmf": 300,
    "gensim_lda": 20,
    "tomotopy_lda": 500,
    "scvi_lda": 1000,
}
"""Default passes."""


def needs(kind):
    """Return the marker of a test that needs the library of a model, or no marker."""
    extras = ("gensim", "tomotopy", "scvi")
    return pytest.mark.extras(LIBRARY[kind]) if LIBRARY[kind] in extras else ()


def for_each(kinds):
    """Parametrize a test by kinds of models."""
    params = [pytest.param(kind, marks=needs(kind)) for kind in kinds]
    return pytest.mark.parametrize("kind", params)


def load(kind):
    """Import a library without its warnings."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module(LIBRARY[kind])


def fit_kind(kind, counts, *, valid=None, seed=0, n_topics=4, n_replicates=1, passes=None, **model):
    load(kind)
    return fit_model(
        counts,
        valid,
        ModelConfig(kind=kind, n_topics=n_topics, **model),
        TrainConfig(n_replicates=n_replicates, epochs=passes or FEW[kind], progress=False),
        seed=seed,
    )


@pytest.fixture(scope="module")
def fits(planted):
    """Return a function that fits two replicates of a kind once."""
    made = {}

    def fit(kind):
        if kind not in made:
            counts = planted[0]
            rows = np.arange(500)
            made[kind] = fit_kind(
                kind, counts[rows[:400]], valid=counts[rows[400:]], n_replicates=2
            )
        return made[kind]

    return fit


def global_state():
    return {
        "random": random.getstate(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state().numpy().tobytes(),
        "threads": torch.get_num_threads(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "type": torch.get_default_dtype(),
        "pyro": dict(pyro.get_param_store().items()),
        "environment": dict(os.environ),
        "interrupt": signal.getsignal(signal.SIGINT),
        "silenced": logging.root.manager.disable,
        "log": (logging.root.level, list(logging.root.handlers)),
        "errors": np.geterr(),
    }


@for_each(KINDS)
def test_topics_are_proportions_in_order_of_their_share(kind, fits):
    fit = fits(kind)
    assert isinstance(fit, PointFit)
    beta_RKG, theta_RNK = fit.beta(), fit.theta()
    assert beta_RKG.shape == (2, 4, 120)
    assert theta_RNK.shape == (2, 400, 4)
    for rows in (beta_RKG, theta_RNK):
        assert (rows >= 0).all()
        np.testing.assert_allclose(rows.sum(-1), 1)
    assert (np.diff(theta_RNK.mean(1), axis=1) <= 1e-12).all()
    # A count that training did not see has a probability.
    assert (beta_RKG > 0).all()
    assert np.array_equal(fit.selection_R, fit.elbo_given_topics(fit.held_out))
    assert ((fit.perplexity_by_replicate() > 1) & (fit.perplexity_by_replicate() < 120)).all()
    table = fit.cell_topics()
    assert np.array_equal(table.to_numpy(), theta_RNK[fit.selected])
    assert table.index.tolist() == fit.cells.cells.tolist()


@for_each(QUICK_TO_CONVERGE)
def test_the_planted_topics_and_proportions_are_found(kind, fits, planted):
    """Also on held-out cells, and in the order of the topics."""
    fit = fits(kind)
    theta_NK = fit.theta(fit.held_out, replicates=[fit.selected])[0]
    matching = match_topics(planted[2], fit.beta()[fit.selected])
    assert matching.cosine.min() > 0.9
    assert (
        np.corrcoef(theta_NK[:, matching.permutation].ravel(), planted[1][400:].ravel())[0, 1]
        > 0.97
    )


@for_each(KINDS)
def test_inference_is_deterministic(kind, fits, planted):
    """Libraries start or average it at random; replicates are computed one after another."""
    fit = fits(kind)
    cells = planted[0][400:430]
    theta_RNK = fit.theta(cells)
    fit.theta(planted[0][:7])
    torch.rand(3)
    assert np.array_equal(fit.theta(cells), theta_RNK)
    for r in (1, 0):
        assert np.array_equal(fit.theta(cells, replicates=[r])[0], theta_RNK[r])
    # scvi-tools averages draws that depend on the position in the batch.
    error = 0.02 if kind == "scvi_lda" else 1e-6
    shuffled = np.random.default_rng(0).permutation(30)
    assert np.abs(fit.theta(cells[shuffled]) - theta_RNK[:, shuffled]).max() <= error
    assert np.abs(fit.theta(cells[[4]])[:, 0] - theta_RNK[:, 4]).max() <= error


@for_each(KINDS)
def test_the_same_seed_gives_the_same_fit_and_replicates_have_their_own(kind, fits, planted):
    fit = fits(kind)
    counts = planted[0]
    again = fit_kind(kind, counts[:400], valid=counts[400:], n_replicates=2)
    assert np.array_equal(again.beta(), fit.beta())
    assert np.array_equal(again.selection_R, fit.selection_R)
    first, second = fit.beta()
    order = match_topics(first, second).permutation
    assert np.abs(first - second[order]).max() > 1e-6
    if kind in QUICK_TO_CONVERGE:
        other = fit_kind(kind, counts[:400], seed=1)
        for beta_KG in fit.beta():
            order = match_topics(beta_KG, other.beta()[0]).permutation
            assert np.abs(beta_KG - other.beta()[0, order]).max() > 1e-6


@for_each(KINDS)
def test_cells_and_genes_without_counts_are_fitted(kind, planted):
    x_NG = planted[0].x[:100].tolil()
    x_NG[[0, 57]] = 0
    x_NG[:, [3, 119]] = 0
    x_NG = x_NG.tocsr()
    x_NG.eliminate_zeros()
    counts = Counts(x_NG, planted[0].cells[:100], planted[0].genes)
    fit = fit_kind(kind, counts, n_replicates=1)
    assert np.isfinite(fit.beta()).all()
    assert (fit.beta()[..., [3, 119]] > 0).all()
    if kind in QUICK_TO_CONVERGE:
        assert (fit.beta()[..., [3, 119]] < 0.01).all()
        np.testing.assert_allclose(fit.theta()[:, [0, 57]], 0.25, atol=1e-6)
    # Cells with only such genes, and cells without counts, also alone.
    news = sp.csr_matrix((4, 120), dtype=np.float32).tolil()
    news[1, 3], news[2, 119] = 5, 1
    news = Counts(news.tocsr(), np.arange(4).astype(object), planted[0].genes)
    for cells in (news, news[[0]], news[[1]]):
        theta_RNK = fit.theta(cells)
        assert theta_RNK.shape == (1, cells.n_cells, 4)
        np.testing.assert_allclose(theta_RNK.sum(-1), 1)
    assert np.isfinite(fit.perplexity(planted[0][400:]))


@for_each(KINDS)
def test_a_fit_restores_the_state_of_the_process(kind, planted, capfd, monkeypatch):
    """Random states, environment, parameters of Pyro and log, at every level of the log."""
    load(kind)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    counts = planted[0][:60]
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    pyro.get_param_store()["mine"] = torch.ones(2)
    records, root = [], logging.getLogger()
    handler = logging.Handler()
    handler.emit = records.append
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        before = global_state()
        fit = fit_kind(kind, counts, n_replicates=2)
        fit.theta(counts)
        assert global_state() == before
        assert torch.equal(pyro.get_param_store()["mine"], torch.ones(2))
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        pyro.clear_param_store()
    assert not records
    assert capfd.readouterr() == ("", "")


def test_a_state_that_was_changed_in_a_failed_fit_is_restored_too(planted, monkeypatch):
    def broken(x_NG, settings):
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        raise RuntimeError("broken")

    fit = partial(fit_library, broken, 1)
    monkeypatch.setitem(MODELS, "sklearn_nmf", replace(MODELS["sklearn_nmf"], fit=fit))
    before = global_state()
    with pytest.raises(RuntimeError, match="broken"):
        fit_model(planted[0], None, ModelConfig(kind="sklearn_nmf"), TrainConfig(n_replicates=1))
    assert global_state() == before


@needs("scvi_lda")
def test_scvi_tools_prints_nothing_in_a_new_process(tmp_path):
    load("scvi_lda")
    program = """
import numpy as np, scipy.sparse as sp
from topicell.config import ModelConfig, TrainConfig
from topicell.model.registry import MODELS, fit_model
from topicell.counts import Counts
x_NG = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (40, 12)).astype(np.float32))
counts = Counts(x_NG, np.arange(40).astype(object), np.arange(12).astype(object))
fit = fit_model(
    counts, None, ModelConfig(kind="scvi_lda", n_topics=2), TrainConfig(n_replicates=1, epochs=1)
)
fit.theta(counts)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(tmp_path.iterdir())


@needs("scvi_lda")
def test_an_interrupt_of_scvi_tools_is_an_interrupt(planted, monkeypatch):
    """Lightning alone ends the process with exit code 1 and ignores the next interrupt."""
    load("scvi_lda")
    import scvi

    def interrupted(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(scvi.train.PyroTrainingPlan, "training_step", interrupted)
    before = global_state()
    with pytest.raises(KeyboardInterrupt):
        fit_kind("scvi_lda", planted[0][:60])
    assert global_state() == before


def by_hand(kind, x_NG, *, seed, passes, n_topics=4, cell_topic_prior=None, topic_gene_prior=None):
    """Return gene weights and inference of the library, called as its documentation says."""
    priors = [cell_topic_prior, topic_gene_prior]
    if kind == "sklearn_lda":
        from sklearn.decomposition import LatentDirichletAllocation

        names = ("doc_topic_prior", "topic_word_prior")
        lda = LatentDirichletAllocation(
            n_topics, max_iter=passes, random_state=seed, **dict(zip(names, priors, strict=True))
        )
        lda.fit(x_NG)
        return lda.components_, lda.transform
    if kind == "gensim_lda":
        from gensim.matutils import Sparse2Corpus
        from gensim.models import LdaModel

        settings = dict(zip(("alpha", "eta"), priors, strict=True))
        corpus = Sparse2Corpus(x_NG, documents_columns=False)
        lda = LdaModel(
            corpus,
            num_topics=n_topics,
            id2word={g: str(g) for g in range(x_NG.shape[1])},
            passes=passes,
            random_state=seed,
            **{name: prior for name, prior in settings.items() if prior is not None},
        )

        def infer(x_NG):
            corpus = Sparse2Corpus(x_NG, documents_columns=False)
            found_NK = np.zeros((x_NG.shape[0], n_topics))
            for cell, topics in enumerate(lda.get_document_topics(corpus, minimum_probability=0)):
                for topic, share in topics:
                    found_NK[cell, topic] = share
            return found_NK

        return lda.get_topics(), infer
    import tomotopy

    settings = dict(zip(("alpha", "eta"), priors, strict=True))
    lda = tomotopy.LDAModel(
        k=n_topics,
        seed=seed,
        **{name: prior for name, prior in settings.items() if prior is not None},
    )
    if cell_topic_prior is not None:
        lda.optim_interval = 0
    words = [
        [str(g) for g, n in zip(row.indices, row.data, strict=True) for _ in range(int(n))]
        for row in x_NG
    ]
    for cell in words:
        lda.add_doc(cell)
    lda.train(passes, workers=1)
    weight_KG = np.zeros((n_topics, x_NG.shape[1]))
    known = [int(gene) for gene in lda.used_vocabs]
    for k in range(n_topics):
        weight_KG[k, known] = lda.get_topic_word_dist(k)
    documents = [lda.make_doc(cell) for cell in words]
    return weight_KG, lambda _: np.array(lda.infer(documents, workers=1)[0])


PRIORS = {
    "default": {},
    "numbers": {"cell_topic_prior": 0.7, "topic_gene_prior": 0.2},
    "whole": {"cell_topic_prior": 1, "topic_gene_prior": 1},
    "lists": {
        "cell_topic_prior": [0.1, 0.2, 0.4, 0.8],
        "topic_gene_prior": [0.01 * (g + 1) for g in range(120)],
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "priors"),
    [
        pytest.param(kind, priors, marks=needs(kind))
        for kind in ("sklearn_lda", "gensim_lda", "tomotopy_lda")
        for priors in PRIORS
        # scikit-learn takes only numbers.
        if (kind, priors) != ("sklearn_lda", "lists")
    ],
)
def test_topics_are_those_of_the_library_with_the_same_priors(kind, priors, planted):
    """The library is called directly with the seed of the replicate."""
    load(kind)
    x_NG, settings = planted[0].x[:80], dict(PRIORS[priors])
    # After 20 passes, tomotopy has fitted the prior of cells, if it may.
    passes = 20 if kind == "tomotopy_lda" else 4
    if (kind, priors) == ("tomotopy_lda", "lists"):
        del settings["topic_gene_prior"]
    (seed,) = np.random.SeedSequence(5).generate_state(1) % 2**31
    weight_KG, infer = by_hand(kind, x_NG, seed=int(seed), passes=passes, **settings)
    fit = fit_kind(kind, planted[0][:80], passes=passes, seed=5, **settings)
    expected_KG = weight_KG / weight_KG.sum(1, keepdims=True)
    order = [int(np.abs(expected_KG - beta_G).sum(1).argmin()) for beta_G in fit.beta()[0]]
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_allclose(fit.beta()[0], expected_KG[order], atol=1e-6)
    # The inference of gensim starts at random.
    error = 0.2 if kind == "gensim_lda" else 1e-5
    np.testing.assert_allclose(fit.theta()[0], infer(x_NG)[:, order], atol=error)
    if priors != "default":
        default = fit_kind(kind, planted[0][:80], passes=passes, seed=5)
        assert np.abs(default.beta() - fit.beta()).max() > 1e-4


@needs("scvi_lda")
def test_topics_and_inference_of_scvi_tools_have_the_same_order(planted, monkeypatch):
    load("scvi_lda")
    import scvi

    lda, kept = scvi.model.AmortizedLDA, {}

    def keep(name):
        own = getattr(lda, name)

        def kept_too(self, *args):
            kept[name] = own(self, *args)
            return kept[name]

        monkeypatch.setattr(lda, name, kept_too)

    keep("get_feature_by_topic")
    keep("get_latent_representation")
    settings = {"cell_topic_prior": 1, "topic_gene_prior": [0.1] * 120}
    fit = fit_kind("scvi_lda", planted[0][:100], passes=3, **settings)
    theta_NK = fit.theta()[0]
    beta_KG = kept["get_feature_by_topic"].to_numpy().T
    order = np.abs(beta_KG - fit.beta()[0][:, None]).sum(-1).argmin(1)
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_allclose(fit.beta()[0], beta_KG[order], rtol=1e-5)
    own_NK = kept["get_latent_representation"].to_numpy()
    np.testing.assert_allclose(theta_NK, own_NK[:, order], rtol=1e-5)


@needs("scvi_lda")
def test_priors_reach_scvi_tools(planted, monkeypatch):
    load("scvi_lda")
    import scvi

    class SeenError(Exception):
        pass

    seen = []

    def construct(self, adata, **settings):
        seen.append((settings["cell_topic_prior"], settings["topic_feature_prior"]))
        raise SeenError

    monkeypatch.setattr(scvi.model.AmortizedLDA, "__init__", construct)
    for priors in PRIORS.values():
        with pytest.raises(SeenError):
            fit_kind("scvi_lda", planted[0][:20], **priors)
    lists = PRIORS["lists"]
    assert seen == [(None, None), (0.7, 0.2), (1.0, 1.0), tuple(lists.values())]
    assert all(isinstance(prior, float) for prior in seen[2])


def test_nmf_is_the_maximum_likelihood_of_the_cells(planted):
    """W H over its sum is θ β, and EM with fixed topics finds the same θ."""
    from sklearn.decomposition import NMF

    x_NG = planted[0].x[:80]
    (seed,) = np.random.SeedSequence(0).generate_state(1) % 2**31
    nmf = NMF(
        4,
        beta_loss="kullback-leibler",
        solver="mu",
        init="nndsvdar",
        max_iter=300,
        random_state=int(seed),
    )
    nmf.fit(x_NG)
    fit = fit_kind("sklearn_nmf", planted[0][:80], passes=300)
    (theta_NK,), (beta_KG,) = fit.theta(), fit.beta()
    product_NG = nmf.transform(x_NG) @ nmf.components_
    np.testing.assert_allclose(
        theta_NK @ beta_KG, product_NG / product_NG.sum(1, keepdims=True), atol=1e-6
    )
    by_em_NK, x_NG = theta_NK, x_NG.toarray()
    for _ in range(1000):
        by_em_NK = by_em_NK * ((x_NG / (by_em_NK @ beta_KG)) @ beta_KG.T)
        by_em_NK = by_em_NK / by_em_NK.sum(1, keepdims=True)
    likelihood = {
        name: float((x_NG * np.log(theta @ beta_KG)).sum())
        for name, theta in {"nmf": theta_NK, "em": by_em_NK}.items()
    }
    # The transformation stops at a tolerance.
    assert likelihood["em"] - 8 < likelihood["nmf"] <= likelihood["em"]
    assert np.abs(theta_NK - by_em_NK).mean() < 0.02
    # A count that training did not see has a probability.
    assert beta_KG.min() == pytest.approx(1e-9, rel=0.1)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("sklearn_nmf", {"cell_topic_prior": 0.5}, "model.cell_topic_prior = 0.5: .* no priors"),
        ("sklearn_nmf", {"topic_gene_prior": [1.0] * 120}, "topic_gene_prior has 120 numbers"),
        ("sklearn_lda", {"cell_topic_prior": 5}, "model.cell_topic_prior = 5: .* at most 1"),
        ("sklearn_lda", {"topic_gene_prior": [0.1] * 120}, "model.topic_gene_prior has 120 num"),
        pytest.param(
            "tomotopy_lda",
            {"topic_gene_prior": [0.1] * 120},
            "model.topic_gene_prior has 120 num",
            marks=needs("tomotopy_lda"),
        ),
        pytest.param(
            "gensim_lda",
            {"topic_gene_prior": [0.1] * 7},
            "model.topic_gene_prior has 7 numbers",
            marks=needs("gensim_lda"),
        ),
        ("sklearn_nmf", {"n_topics": 121}, "model.n_topics = 121: .* genes .120"),
        ("sklearn_lda", {"n_topics": 501}, "model.n_topics = 501: there are only 500"),
    ],
)
def test_settings_that_a_library_cannot_use_are_refused(kind, settings, message, planted):
    with pytest.raises(InputError, match=message):
        fit_kind(kind, planted[0], **settings)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_a_missing_library_is_named_with_its_extra(kind, planted, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == LIBRARY[kind]]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, LIBRARY[kind], None)
    model = ModelConfig(kind=kind, n_topics=4)
    before = global_state()
    with pytest.raises(InputError, match=rf"{kind}.*{LIBRARY[kind]}.*topicell\[baselines\]"):
        fit_model(planted[0], None, model, TrainConfig(n_replicates=1))
    assert global_state() == before


def test_libraries_receive_passes_threads_and_seeds(planted, monkeypatch):
    received = []

    def adapter(x_NG, settings):
        received.append(settings)
        return np.ones((4, 120)), lambda x: np.ones((x.shape[0], 4))

    for kind, passes in PASSES.items():
        spec = MODELS[kind]
        assert spec.fit.args[1] == passes
        fit = partial(fit_library, adapter, passes)
        monkeypatch.setitem(MODELS, kind, replace(spec, fit=fit, library=""))
        model = ModelConfig(kind=kind, n_topics=4)
        fit = fit_model(planted[0][:9], None, model, TrainConfig(n_replicates=3, threads=None))
        np.testing.assert_allclose(fit.beta(), 1 / 120)
        np.testing.assert_allclose(fit.theta(), 1 / 4)
        few = TrainConfig(n_replicates=1, epochs=7, threads=2)
        fit_model(planted[0][:9], None, model, few, seed=1)
        *three, one = received[-4:]
        assert {settings.passes for settings in three} == {passes}
        assert {settings.threads for settings in three} == {1}
        assert (one.passes, one.threads, one.n_topics) == (7, 2, 4)
        assert len({settings.seed for settings in received[-4:]}) == 4
        assert all(0 <= settings.seed < 2**31 for settings in received)


@needs("scvi_lda")
def test_a_last_batch_of_one_cell_does_not_stop_scvi_tools(planted):
    """Its mini-batches have 128 cells, and its batch norm needs two cells."""
    for n_cells in (129, 257):
        fit = fit_kind("scvi_lda", planted[0][:n_cells], passes=1)
        assert np.isfinite(fit.elbo_given_topics()).all()
