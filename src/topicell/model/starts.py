"""Initial topics, which determine how many topics are in use at the end."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from scipy.cluster.vq import kmeans2

from topicell.config import Init, ModelConfig
from topicell.counts import Counts, Rows, late
from topicell.errors import InputError
from topicell.model.batches import batch_shifts
from topicell.model.program import Constants, TopicProgram
from topicell.model.search import search_topics
from topicell.model.seeds import EarlierTopics, matched_first, read_seeds, read_topics

BACKGROUND_NOISE = 0.3
"""Standard deviation of the noise by which the topics of the background initialisation differ."""

CELLS_PER_CLUSTER = 200
"""Largest number of cells per cluster for k-means: more cells do not improve the centres."""
SEARCHED_CELLS_PER_CLUSTER = 1000
"""Largest number of cells per cluster for a search, drawn by the seed."""
FEWEST_CELLS = 10
"""Smallest number of training cells of a batch."""
SMOOTHING = 0.05
"""Background counts added to a cluster, as a share of the counts of a cluster of mean size."""


def constants_of(
    counts: Counts, model: ModelConfig, seed: int, prior: EarlierTopics | None = None
) -> Constants:
    """Return the values of a program that the training cells determine.

    These are batches, covariates, background, and prior knowledge of topics.

    Raises
    ------
    InputError
        There is only one batch, or the prior knowledge does not match the genes.
    """
    known: dict[str, Any] = {}
    if model.background or isinstance(model.topic_gene_prior, str):
        frequency_G = background(counts.rows)
        known["seeds"] = read_seeds(counts, model, frequency_G, prior)
        if model.background:
            logit_G = np.log(frequency_G)
            known["background_G"] = (logit_G - logit_G.mean()).astype(np.float32)
    if model.prevalence is not None:
        if counts.design is None:
            raise InputError(
                f"model.prevalence = {model.prevalence!r}: these cells have no covariates; give an "
                "AnnData with these columns of obs"
            )
        known["covariates"] = counts.covariates
    if model.batch_key is None:
        return Constants(**known)
    require_batches(counts, model)
    batches, batch_N = np.unique(np.asarray(counts.batch, dtype=str), return_inverse=True)
    random = np.random.default_rng(seed)
    n_searched = SEARCHED_CELLS_PER_CLUSTER * model.n_topics
    rows = np.sort(random.permutation(counts.n_cells)[:n_searched])
    shift_SG = batch_shifts(
        counts.rows[rows], batch_N[rows], len(batches), model.n_topics, model.batch_scale, random
    )
    return Constants(tuple(map(str, batches)), shift_SG.astype(np.float32), **known)


def require_batches(counts: Counts, model: ModelConfig, whole: Counts | None = None) -> None:
    """Reject training cells of a single batch, and batches with few of them.

    Parameters
    ----------
    counts
        The training cells.
    model
        The settings.
    whole
        All cells; each of their batches needs training cells.

    Raises
    ------
    InputError
        There is only one batch, none is known, or a batch has too few cells.
    """
    if counts.batch is None:
        raise InputError(
            f"model.batch_key = {model.batch_key!r}: these cells have no batches; give an AnnData "
            "with this column of obs"
        )
    number_of = Counter(map(str, counts.batch))
    every = counts.batch if whole is None or whole.batch is None else whole.batch
    names = sorted(set(map(str, every)))
    sizes = np.array([number_of[name] for name in names])
    if len(names) < 2:
        raise InputError(
            f"model.batch_key = {model.batch_key!r}: all training cells have the same value, "
            f"{names[0]!r}; a batch effect needs two batches or more"
        )
    if sizes.min() < FEWEST_CELLS:
        raise InputError(
            f"model.batch_key = {model.batch_key!r}: batch {names[sizes.argmin()]!r} has only "
            f"{sizes.min()} training cell{'s' * int(sizes.min() > 1)}, and at least {FEWEST_CELLS} "
            "are needed; is this the column of batches? If it is, remove the cells or join batches"
        )


def initial_topics(
    counts: Counts, program: TopicProgram, init: Init, n_starts: int, seed: int
) -> torch.Tensor:
    """Return the initial means of q(b), shape (R, K, G).

    Fits that start at draws from the prior collapse to a few topics; fits that start at the log
    background frequency plus noise, or at the log profiles of clusters of cells, do not. Each
    replicate has its own initial topics.
    """
    R, K, G = program.n_replicates, program.n_topics, program.n_genes
    generator = torch.Generator().manual_seed(seed)
    noise_RKG = torch.randn(R, K, G, generator=generator)
    mean_G, scale_G = program.topic_prior.mean.cpu(), program.topic_prior.scale.cpu()
    if init is Init.random:
        return mean_G + scale_G * noise_RKG
    x_NG = counts.rows
    frequency_G = background(x_NG)
    if init is Init.background:
        b_RKG = torch.tensor(np.log(frequency_G), dtype=torch.float32) + (
            BACKGROUND_NOISE * noise_RKG
        )
    else:
        seeds = np.random.default_rng(seed)
        rows = np.sort(seeds.permutation(x_NG.shape[0])[: CELLS_PER_CLUSTER * K])
        x = program.given(counts).without_factors(x_NG[rows], rows)
        z = leading_axes(x, seeds)
        profiles_RKG = np.stack(
            [best_clusters(x, z, K, frequency_G, n_starts, seeds) for _ in range(R)]
        )
        b_RKG = torch.tensor(np.log(profiles_RKG), dtype=torch.float32)
    return centred(b_RKG, program)


def searched_topics(counts: Counts, program: TopicProgram, seed: int) -> torch.Tensor:
    """Return the candidates for the initial means of q(b) that searches find, (L, R, K, G).

    Each replicate has its own search, with its own cells if there are many.
    """
    K, x_NG, given = program.n_topics, counts.rows, program.given(counts)
    frequency_G = background(x_NG)
    found = []
    for seeds in np.random.default_rng(seed).spawn(program.n_replicates):
        rows = np.sort(seeds.permutation(x_NG.shape[0])[: SEARCHED_CELLS_PER_CLUSTER * K])
        x = given.without_factors(x_NG[rows], rows)
        found.append(search_topics(x, K, frequency_G, seeds))
    b_LRKG = torch.tensor(np.log(np.stack(found, axis=1)), dtype=torch.float32)
    return centred(b_LRKG, program)


def given_topics(path: Path, counts: Counts, program: TopicProgram) -> torch.Tensor:
    """Return the initial means of q(b) of topics from a table, equal in all replicates, (R, K, G).

    Genes that the table does not have start with their share of all counts.

    Raises
    ------
    InputError
        The table cannot be used (`read_initial_topics`).
    """
    frequency_G = background(counts.rows)
    beta_KG, known_G = read_initial_topics(path, counts, program.n_topics)
    # Known genes keep their share of all counts, so that the others do not dilute them.
    beta_KG[:, known_G] += 1e-4 * frequency_G[known_G]
    beta_KG[:, known_G] *= frequency_G[known_G].sum() / beta_KG[:, known_G].sum(1, keepdims=True)
    beta_KG[:, ~known_G] = frequency_G[~known_G]
    b_KG = torch.tensor(np.log(beta_KG), dtype=torch.float32)
    return centred(b_KG.expand(program.n_replicates, -1, -1), program)


def read_initial_topics(path: Path, counts: Counts, n_topics: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the topics of a table for the modelled genes, (K, G), and which genes it has, (G,).

    Raises
    ------
    InputError
        The table cannot be used (`topicell.model.seeds.read_topics`), or has not K topics.
    """
    name = f"model.init_topics = {str(path)!r}"
    names, beta_KG, known_G = read_topics(path, counts, name)
    if len(names) != n_topics:
        raise InputError(f"{name}: has {len(names)} topics; use model.n_topics={len(names)}")
    return beta_KG, known_G


def with_seeds(b_RKG: torch.Tensor, program: TopicProgram, counts: Counts) -> torch.Tensor:
    """Return initial topics whose first ones are those of the prior knowledge, if there is any."""
    seeds = program.constants.seeds
    if seeds is None:
        return b_RKG
    frequency_G = background(counts.rows)
    profiles_RKG = b_RKG.double().softmax(-1).numpy()
    logits = [matched_first(profiles_KG, seeds, frequency_G) for profiles_KG in profiles_RKG]
    return centred(torch.tensor(np.stack(logits), dtype=torch.float32), program)


def background(x_NG: Rows) -> np.ndarray:
    """Return the share of each gene in all counts, shape (G,).

    Half a count is added to every gene, so that a gene without counts has a finite logit.
    """
    total_G = late(x_NG).sum(0)
    frequency_G: np.ndarray = (total_G + 0.5) / (total_G.sum() + 0.5 * len(total_G))
    return frequency_G


def centred(b: torch.Tensor, program: TopicProgram) -> torch.Tensor:
    """Shift topic logits to the mean of the prior.

    Softmax does not depend on a common shift, but the prior does, and it is centred.
    """
    centred_b: torch.Tensor = b - b.mean(-1, keepdim=True) + program.topic_prior.mean.cpu().mean()
    return centred_b


def leading_axes(x_NG: sp.csr_matrix, seeds: np.random.Generator) -> np.ndarray:
    """Return log-normalised cells along the axes of the clusters, (N, 32), or (N, G) if G < 32.

    Randomised range finder with one power iteration (Halko, Martinsson & Tropp 2011); it is not
    centred, because distances between cells do not depend on that.
    """
    total = np.maximum(np.asarray(x_NG.sum(1)).ravel(), 1)
    scale = (np.median(total) / total).astype(np.float32)
    h = x_NG.copy()
    h.data = np.log1p(h.data * scale.repeat(np.diff(h.indptr)))
    axes = h.T @ seeds.standard_normal((len(total), 32), dtype=np.float32)
    axes = h.T @ (h @ np.linalg.qr(axes).Q)
    projected: np.ndarray = h @ np.linalg.qr(axes).Q
    # If all cells are equal, k-means++ cannot choose centres.
    blur = 1e-5 * max(float(np.abs(projected).max()), 1.0)
    projected += blur * seeds.standard_normal(projected.shape, dtype=np.float32)
    return projected


def best_clusters(
    x_NG: sp.csr_matrix,
    z_NA: np.ndarray,
    n_clusters: int,
    frequency_G: np.ndarray,
    n_starts: int,
    seeds: np.random.Generator,
) -> np.ndarray:
    """Return gene proportions of clusters of cells, from the best of several k-means runs, (K, G).

    The best run has the highest likelihood of the counts, with each cell in its most likely
    cluster. It determines the local optimum of the fit: over single runs, this likelihood
    correlates with the ELBO of the finished fit (`experiments/defaults`).

    Parameters
    ----------
    x_NG, z_NA
        Counts of the cells, and their coordinates for k-means.
    n_clusters
        K.
    frequency_G
        Background frequencies, with which clusters are smoothed.
    n_starts
        Number of k-means runs.
    seeds
        Generator of their seeds.
    """
    candidates = [
        _profiles(x_NG, _k_means(z_NA, n_clusters, seeds), n_clusters, frequency_G)
        for _ in range(n_starts)
    ]
    if n_starts == 1:
        return candidates[0]
    likelihoods = [
        (x_NG @ np.log(profiles_KG).T).max(1).sum(dtype=np.float64) for profiles_KG in candidates
    ]
    return candidates[int(np.argmax(likelihoods))]


def _k_means(z_NA: np.ndarray, n_clusters: int, seeds: np.random.Generator) -> np.ndarray:
    with warnings.catch_warnings():
        # An empty cluster is allowed: its profile is the background.
        warnings.filterwarnings("ignore", message="One of the clusters is empty")
        label: np.ndarray = kmeans2(z_NA, n_clusters, minit="++", rng=seeds, missing="warn")[1]
    return label


def _profiles(
    x_NG: sp.csr_matrix, label_N: np.ndarray, n_clusters: int, frequency_G: np.ndarray
) -> np.ndarray:
    """Return gene proportions of each cluster, smoothed, shape (K, G)."""
    n_cells = len(label_N)
    members = sp.csr_matrix(
        (np.ones(n_cells, dtype=np.float32), (label_N, np.arange(n_cells))),
        shape=(n_clusters, n_cells),
    )
    total_KG = (members @ x_NG).toarray()
    # A small cluster is closer to the background.
    total_KG += (SMOOTHING * total_KG.sum() / n_clusters * frequency_G).astype(np.float32)
    profiles_KG: np.ndarray = total_KG / total_KG.sum(1, keepdims=True)
    return profiles_KG
