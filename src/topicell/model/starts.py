"""Starts: where the topics stand before the first step decides how many of them survive."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from topicell.config import Init
from topicell.model.program import TopicProgram

BACKGROUND_NOISE = 0.3
"""Standard deviation of the noise that tells topics apart at the background start."""


def initial_topics(
    x_NG: sp.csr_matrix, program: TopicProgram, init: Init, seed: int
) -> torch.Tensor:
    """Where the means of q(b) start, shape (R, K, G).

    A start drawn from the prior collapses to a few topics; the log background frequency plus
    noise, or the log profiles of k-means clusters, do not.
    """
    R, K, G = program.n_replicates, program.n_topics, program.n_genes
    generator = torch.Generator().manual_seed(seed)
    noise_RKG = torch.randn(R, K, G, generator=generator)
    mean_G, scale_G = program.topic_prior_mean.cpu(), program.topic_prior_scale.cpu()
    if init is Init.random:
        return mean_G + scale_G * noise_RKG
    total_G = np.asarray(x_NG.sum(0), dtype=np.float64).ravel()
    # Half a count for every gene, so that an unseen gene has a finite logit.
    frequency_G = (total_G + 0.5) / (total_G.sum() + 0.5 * G)
    if init is Init.background:
        b_RKG = torch.tensor(np.log(frequency_G), dtype=torch.float32) + (
            BACKGROUND_NOISE * noise_RKG
        )
    else:
        profiles_RKG = np.stack(
            [_cluster_profiles(x_NG, K, frequency_G, (seed, replicate)) for replicate in range(R)]
        )
        b_RKG = torch.tensor(np.log(profiles_RKG), dtype=torch.float32)
    # Softmax does not see a common shift; the prior does, and is centred.
    return b_RKG - b_RKG.mean(-1, keepdim=True) + mean_G.mean()


def _cluster_profiles(
    x_NG: sp.csr_matrix, n_clusters: int, frequency_G: np.ndarray, seed: tuple[int, int]
) -> np.ndarray:
    """Gene proportions of k-means clusters of log-normalised cells, shape (K, G)."""
    from scipy.cluster.vq import kmeans2

    seeds = np.random.default_rng(seed)
    # A few thousand cells place the centres as well as all of them.
    rows = np.sort(seeds.permutation(x_NG.shape[0])[:5000])
    x = x_NG[rows].toarray().astype(np.float64)
    size = np.maximum(x.sum(1, keepdims=True), 1)
    h = np.log1p(x / size * np.median(size))
    # Leading components hold the clusters and make the distances cheap.
    h -= h.mean(0)
    _, _, axes = np.linalg.svd(h[seeds.permutation(len(h))[:1000]], full_matrices=False)
    h = h @ axes[: min(30, len(axes))].T
    _, label = kmeans2(h, n_clusters, minit="++", rng=seeds, missing="warn")
    total = np.zeros((n_clusters, x.shape[1]))
    np.add.at(total, label, x)
    # An empty cluster falls back to the background, a small one leans on it.
    pseudo = 0.05 * total.sum() / n_clusters
    total += pseudo * frequency_G
    profiles: np.ndarray = total / total.sum(1, keepdims=True)
    return profiles
