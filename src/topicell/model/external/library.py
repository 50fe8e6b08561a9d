"""Fit another library's topic model as a `PointFit`, with the same data, split and metrics.

A library supplies its topics and its own inference of the proportions of a cell; topicell computes
perplexity and ELBO itself. Each model is a function (counts, `Settings`) → `Fitted` in its own
file. gensim, tomotopy and scvi-tools are the extra ``baselines``.
"""

from __future__ import annotations

import contextlib
import logging
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.model.checkpoints import Checkpoints
from topicell.model.engines import cpu_threads
from topicell.model.fit import EpochMetrics
from topicell.model.points import Inference, PointFit
from topicell.model.sizes import check_sizes

FLOOR = 1e-9
"""Added to every gene proportion of topics that were fitted by maximum likelihood: an exact zero
makes the first unseen count of a gene impossible."""


class Fitted(NamedTuple):
    """Gene weights of the topics, (K, G), and the library's own inference."""

    weight_KG: np.ndarray
    infer: Inference


class Settings(NamedTuple):
    """Settings of one replicate; a prior that is None is the library's default."""

    n_topics: int
    passes: int
    threads: int
    seed: int
    cell_topic_prior: float | list[float] | None
    topic_gene_prior: float | list[float] | None

    def require_prior(self, name: str, taken: bool, what: str) -> None:
        """Reject a prior that the library does not accept."""
        prior = getattr(self, name)
        if not taken:
            found = f" has {len(prior)} numbers" if isinstance(prior, list) else f" = {prior:g}"
            raise InputError(f"model.{name}{found}: {what}")


Library = Callable[[sp.csr_matrix, Settings], Fitted]
"""Fit one replicate of a library's model to counts (N, G)."""


def fit_library(
    library: Library,
    passes: int,
    counts: Counts,
    valid: Counts | None,
    model: ModelConfig,
    config: TrainConfig,
    *,
    seed: int = 0,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> PointFit:
    """Fit R replicates of another library's model, one after the other.

    Parameters
    ----------
    library
        The model.
    passes
        Passes over the cells (updates, Gibbs iterations, epochs) unless ``train.epochs`` is set.
    counts
        Training cells.
    valid
        Validation cells with the same genes, by which the replicate is selected, or None.
    model
        Number of topics, and priors where the library has them.
    config
        Replicates, passes (``epochs``) and threads.
    seed
        Determines the seeds of the replicates.
    on_epoch, checkpoints
        Not used: a library does not report its epochs and cannot save its state.

    Raises
    ------
    InputError
        The library has no such prior, or there are fewer cells than topics.
    """
    check_sizes(counts, model)
    # Seeds of neighbouring runs must not share replicates.
    seeds = np.random.SeedSequence(seed).generate_state(config.n_replicates) % 2**31
    fitted = []
    with cpu_threads(config.threads), _isolated():
        for replicate_seed in seeds:
            settings = Settings(
                model.n_topics,
                config.epochs or passes,
                config.threads or 1,
                int(replicate_seed),
                _numbers(model.cell_topic_prior),
                _numbers(model.topic_gene_prior),
            )
            fitted.append(library(counts.x, settings))
    beta_RKG = np.stack([_normalized(weight_KG) for weight_KG, _ in fitted])
    infer = [_checked(of_cells) for _, of_cells in fitted]
    return PointFit.of(beta_RKG, infer, counts, valid, model, seed=seed)


def _normalized(weight: np.ndarray) -> np.ndarray:
    """Return rows that sum to 1; a row of zeros becomes uniform."""
    weight = np.asarray(weight, dtype=np.float64)
    total = weight.sum(1, keepdims=True)
    uniform = np.full_like(weight, 1 / weight.shape[1])
    rows: np.ndarray = np.divide(weight, total, out=uniform, where=total > 0)
    return rows


def _numbers(prior: Any) -> float | list[float] | None:
    """Return a prior as floats, because some libraries treat 1 and 1.0 differently."""
    if prior is None or isinstance(prior, (int, float)):
        return None if prior is None else float(prior)
    return [float(value) for value in prior]


def _checked(infer: Inference) -> Inference:
    """Return the inference of a library, isolated, with rows that sum to 1."""

    def proportions(x: sp.csr_matrix) -> np.ndarray:
        with _isolated():
            return _normalized(infer(x))

    return proportions


@contextlib.contextmanager
def _isolated() -> Iterator[None]:
    """Run another library without its warnings and log lines, and restore global state after it.

    Its deprecations and advice are not for users of topicell. Random states and Pyro's parameter
    store are restored.
    """
    silenced = logging.root.manager.disable
    # Libraries draw from numpy's global state.
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
