"""Other libraries' topic models, fitted to a `PointFit`: the same data, split and measures.

What is taken from a library is its topics and its own inference of a cell's proportions, nothing
that it says about itself: perplexity and ELBO are computed here. Each adapter is a function
(counts, settings) → `Fitted`. scvi-tools, gensim and tomotopy are the extra ``baselines``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import scipy.sparse as sp
import torch

from topicell.config import InputError, ModelConfig, ModelKind, TrainConfig, require_effect
from topicell.model.checkpoints import Checkpoints
from topicell.model.counts import Counts
from topicell.model.engines import cpu_threads
from topicell.model.fit import TopicFit
from topicell.model.points import Inference, PointFit
from topicell.model.training import EpochMetrics, check_sizes, train

PASSES = {
    ModelKind.sklearn_lda: 100,
    ModelKind.sklearn_nmf: 300,
    ModelKind.gensim_lda: 20,
    ModelKind.tomotopy_lda: 500,
    ModelKind.scvi_lda: 1000,
}
"""Passes over the cells (updates, Gibbs iterations, epochs) by default: those of
``experiments/speed``; scvi-tools' are of its tutorial."""
LIBRARIES = {
    ModelKind.gensim_lda: "gensim",
    ModelKind.tomotopy_lda: "tomotopy",
    ModelKind.scvi_lda: "scvi",
}
"""Modules of the extra."""
PRIORS = ("cell_topic_prior", "topic_gene_prior")
FLOOR = 1e-9
"""Added to every gene proportion of topics that were fitted by maximum likelihood: an exact zero
makes the first unseen count of a gene impossible."""


class Fitted(NamedTuple):
    """Gene weights of the topics, (K, G), and the library's own inference."""

    weight_KG: np.ndarray
    infer: Inference


class Settings(NamedTuple):
    """What every library is told; a prior that is None is the library's default."""

    n_topics: int
    passes: int
    threads: int
    seed: int
    cell_topic_prior: float | list[float] | None
    topic_gene_prior: float | list[float] | None

    def require_prior(self, knob: str, taken: bool, what: str) -> None:
        """Refuse a prior that the library does not take."""
        prior = getattr(self, knob)
        if not taken:
            found = f" has {len(prior)} numbers" if isinstance(prior, list) else f" = {prior:g}"
            raise InputError(f"model.{knob}{found}: {what}")


def fit_model(
    counts: Counts,
    valid: Counts | None,
    model: ModelConfig,
    config: TrainConfig,
    *,
    seed: int = 0,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> TopicFit:
    """Fit whichever kind of model is asked for: topicell's own by `train`, which see."""
    if model.kind is ModelKind.amortized_lda:
        return train(
            counts, valid, model, config, seed=seed, on_epoch=on_epoch, checkpoints=checkpoints
        )
    return fit_baseline(counts, valid, model, config, seed=seed)


def fit_baseline(
    counts: Counts,
    valid: Counts | None,
    model: ModelConfig,
    config: TrainConfig,
    *,
    seed: int = 0,
) -> PointFit:
    """Fit R replicates of another library's model, one after the other.

    Parameters
    ----------
    counts
        Training cells.
    valid
        Validation cells with the same genes, by which the replicate shown is chosen, or None.
    model
        Kind, number of topics, and priors where the library has them.
    config
        Replicates, passes (``epochs``) and threads.
    seed
        Decides the seeds of the replicates.

    Raises
    ------
    InputError
        The library is not installed, or has no such setting.
    """
    require_effect(model, config)
    require_library(model.kind)
    check_sizes(counts, model)
    adapter = ADAPTERS[model.kind]
    # Seeds of neighbouring runs must not share replicates.
    seeds = np.random.SeedSequence(seed).generate_state(config.n_replicates) % 2**31
    fitted = []
    with cpu_threads(config.threads), _apart():
        for replicate_seed in seeds:
            settings = Settings(
                model.n_topics,
                config.epochs or PASSES[model.kind],
                config.threads or 1,
                int(replicate_seed),
                _numbers(model.cell_topic_prior),
                _numbers(model.topic_gene_prior),
            )
            fitted.append(adapter(counts.x, settings))
    beta_RKG = np.stack([_normalized(weight_KG) for weight_KG, _ in fitted])
    infer = [_checked(of_cells) for _, of_cells in fitted]
    return PointFit.of(beta_RKG, infer, counts, valid, model, seed=seed)


def require_library(kind: ModelKind) -> None:
    """Refuse a kind of model whose library is not installed.

    Raises
    ------
    InputError
        It says how to install the library.
    """
    library = LIBRARIES.get(kind)
    if library is not None and importlib.util.find_spec(library) is None:
        raise InputError(
            f"model.kind = {kind.value!r} needs {library}, which is not installed; "
            "pip install 'topicell[baselines]'"
        )


def sklearn_lda(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Batch variational Bayes (Hoffman, Blei & Bach 2010)."""
    from sklearn.decomposition import LatentDirichletAllocation

    for knob in PRIORS:
        prior = getattr(settings, knob)
        taken = prior is None or (isinstance(prior, float) and prior <= 1)
        settings.require_prior(knob, taken, "scikit-learn's LDA takes one number, at most 1")
    lda = LatentDirichletAllocation(
        settings.n_topics,
        doc_topic_prior=settings.cell_topic_prior,
        topic_word_prior=settings.topic_gene_prior,
        learning_method="batch",
        max_iter=settings.passes,
        random_state=settings.seed,
    ).fit(x_NG)
    return Fitted(lda.components_, lda.transform)


def sklearn_nmf(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Multiplicative updates of the KL loss: the likelihood of LDA without its priors.

    Gaussier & Goutte (2005), Relation between PLSA and NMF.
    """
    from sklearn.decomposition import NMF

    for knob in PRIORS:
        none = getattr(settings, knob) is None
        settings.require_prior(knob, none, "model.kind=sklearn_nmf has no priors; leave it out")
    if settings.n_topics > x_NG.shape[1]:
        raise InputError(
            f"model.n_topics = {settings.n_topics}: model.kind=sklearn_nmf finds no more topics "
            f"than the {x_NG.shape[1]} genes"
        )
    nmf = NMF(
        settings.n_topics,
        beta_loss="kullback-leibler",
        solver="mu",
        init="nndsvdar",
        max_iter=settings.passes,
        random_state=settings.seed,
    ).fit(x_NG)
    weight_KG = nmf.components_.astype(np.float64)
    total_K = weight_KG.sum(1)
    return Fitted(
        weight_KG / np.maximum(total_K[:, None], 1e-30) + FLOOR,
        lambda x: nmf.transform(x) * total_K,
    )


def gensim_lda(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Online variational Bayes (Hoffman, Blei & Bach 2010)."""
    from gensim.matutils import Sparse2Corpus
    from gensim.models import LdaModel
    from gensim.utils import get_random_state

    def corpus(x: sp.csr_matrix) -> Any:
        return Sparse2Corpus(x, documents_columns=False)

    given = {"alpha": settings.cell_topic_prior, "eta": settings.topic_gene_prior}
    lda = LdaModel(
        corpus(x_NG),
        num_topics=settings.n_topics,
        id2word={gene: str(gene) for gene in range(x_NG.shape[1])},
        passes=settings.passes,
        random_state=settings.seed,
        **{name: prior for name, prior in given.items() if prior is not None},
    )

    def infer(x: sp.csr_matrix) -> np.ndarray:
        theta_NK = np.empty((x.shape[0], settings.n_topics))
        for cell, words in enumerate(corpus(x)):
            # It starts at random: alike for every cell, whatever came before it.
            lda.random_state = get_random_state(settings.seed)
            theta_NK[cell] = lda.inference([words])[0]
        return theta_NK

    return Fitted(lda.get_topics(), infer)


def tomotopy_lda(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Collapsed Gibbs sampling (Griffiths & Steyvers 2004)."""
    import tomotopy

    one = not isinstance(settings.topic_gene_prior, list)
    settings.require_prior("topic_gene_prior", one, "tomotopy takes one number for all genes")
    genes = np.arange(x_NG.shape[1]).astype(str)

    def words(x: sp.csr_matrix, cell: int) -> list[str]:
        row = slice(x.indptr[cell], x.indptr[cell + 1])
        of_cell: list[str] = genes[x.indices[row]].repeat(x.data[row].astype(int)).tolist()
        return of_cell

    given = {"alpha": settings.cell_topic_prior, "eta": settings.topic_gene_prior}
    lda = tomotopy.LDAModel(
        k=settings.n_topics,
        seed=settings.seed,
        **{name: prior for name, prior in given.items() if prior is not None},
    )
    if settings.cell_topic_prior is not None:
        # It would fit the prior too, and forget the one given.
        lda.optim_interval = 0
    for cell in range(x_NG.shape[0]):
        # It holds no empty document.
        if x_NG.indptr[cell] < x_NG.indptr[cell + 1]:
            lda.add_doc(words(x_NG, cell))
    lda.train(settings.passes, workers=settings.threads)
    known = np.array([int(gene) for gene in lda.used_vocabs])
    weight_KG = np.full((settings.n_topics, len(genes)), FLOOR)
    for topic in range(settings.n_topics):
        weight_KG[topic, known] = lda.get_topic_word_dist(topic)

    def infer(x: sp.csr_matrix) -> np.ndarray:
        theta_NK = np.full((x.shape[0], settings.n_topics), 1 / settings.n_topics)
        kept = x.multiply(np.isin(np.arange(x.shape[1]), known)).tocsr()
        kept.eliminate_zeros()
        there = np.flatnonzero(np.diff(kept.indptr))
        documents = [lda.make_doc(words(kept, int(cell))) for cell in there]
        if documents:
            theta_NK[there] = lda.infer(documents, workers=settings.threads)[0]
        return theta_NK

    return Fitted(weight_KG, infer)


def scvi_lda(x_NG: sp.csr_matrix, settings: Settings) -> Fitted:
    """Amortized LDA of scvi-tools, on the CPU, all cells to train on."""
    import anndata
    import scvi

    def cells(x: sp.csr_matrix) -> Any:
        adata = anndata.AnnData(x.astype(np.float32))
        adata.obs_names = adata.obs_names.astype(str)
        scvi.model.AmortizedLDA.setup_anndata(adata)
        return adata

    with _scvi_process(settings.seed):
        lda = scvi.model.AmortizedLDA(
            cells(x_NG),
            n_topics=settings.n_topics,
            cell_topic_prior=settings.cell_topic_prior,
            topic_feature_prior=settings.topic_gene_prior,
        )
        lda.train(
            max_epochs=settings.passes,
            # Its own size, but for a last mini-batch of one cell, which batch norm refuses.
            batch_size=next(size for size in itertools.count(128) if x_NG.shape[0] % size != 1),
            train_size=1.0,
            accelerator="cpu",
            enable_progress_bar=False,
            logger=False,
            enable_checkpointing=False,
        )
        weight_KG = lda.get_feature_by_topic().to_numpy().T

    def infer(x: sp.csr_matrix) -> np.ndarray:
        # Its means are over draws.
        torch.manual_seed(settings.seed)
        theta_NK: np.ndarray = lda.get_latent_representation(cells(x)).to_numpy()
        return theta_NK

    return Fitted(weight_KG, infer)


@contextlib.contextmanager
def _scvi_process(seed: int) -> Iterator[None]:
    """Seed scvi-tools, take back what that changes in the process, and let interrupts through."""
    import scvi

    names = ("XLA_FLAGS", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    cudnn = torch.backends.cudnn
    before = {name: os.environ.get(name) for name in names}
    flags, seed_before = (cudnn.deterministic, cudnn.benchmark), scvi.settings.seed
    on_interrupt = signal.getsignal(signal.SIGINT)
    scvi.settings.seed = seed
    try:
        yield
    except SystemExit as error:
        # Lightning ends the process when it is interrupted, and ignores all interrupts from then.
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from error
    finally:
        scvi.settings.seed = seed_before
        cudnn.deterministic, cudnn.benchmark = flags
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


ADAPTERS = {
    ModelKind.sklearn_lda: sklearn_lda,
    ModelKind.sklearn_nmf: sklearn_nmf,
    ModelKind.gensim_lda: gensim_lda,
    ModelKind.tomotopy_lda: tomotopy_lda,
    ModelKind.scvi_lda: scvi_lda,
}


def _normalized(weight: np.ndarray) -> np.ndarray:
    """Rows that sum to 1; a row of nothing is uniform."""
    weight = np.asarray(weight, dtype=np.float64)
    total = weight.sum(1, keepdims=True)
    uniform = np.full_like(weight, 1 / weight.shape[1])
    rows: np.ndarray = np.divide(weight, total, out=uniform, where=total > 0)
    return rows


def _numbers(prior: Any) -> float | list[float] | None:
    """A prior as libraries expect it, who tell 1 from 1.0."""
    if prior is None or isinstance(prior, (int, float)):
        return None if prior is None else float(prior)
    return [float(value) for value in prior]


def _checked(infer: Inference) -> Inference:
    """The inference of a library kept apart, its rows summing to 1."""

    def proportions(x: sp.csr_matrix) -> np.ndarray:
        with _apart():
            return _normalized(infer(x))

    return proportions


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Let another library work, without its warnings and log lines, and without a trace.

    Deprecations and advice inside it are not for the user of ours; and random states and Pyro's
    parameters are found as they were left.
    """
    silenced = logging.root.manager.disable
    # Libraries draw from numpy's old, global state.
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with (
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=devices),
        pyro.get_param_store().scope(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(max(silenced, logging.WARNING))
        try:
            yield
        finally:
            logging.disable(silenced)
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002
