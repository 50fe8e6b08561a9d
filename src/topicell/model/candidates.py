"""Choose among initial topics by the ELBO of short fits.

The search (`topicell.model.search`) returns topics at two strengths of smoothing. Those with more
smoothing are found again more often by other seeds; those with less can have a higher ELBO. Short
fits of all, side by side on the replicate axis, decide.

Shapes: L candidates, R replicates, K topics, G genes.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from topicell.config import TrainConfig
from topicell.counts import Counts, drawn
from topicell.model.engines import Optimizer
from topicell.model.estimates import Chunks, elbo_terms
from topicell.model.minibatches import shuffled
from topicell.model.program import TopicProgram
from topicell.model.schedules import annealing_weight, learning_rate

STEPS = 80
"""Steps of a short fit, with a whole cycle of the learning rate."""
JUDGED_CELLS = 5000
"""Largest number of training cells, drawn by the seed, for the ELBO of the short fits."""
MARGIN = 1.5
"""Nats per cell by which a later candidate must be better than the one before: less is within the
noise of short fits (``experiments/LOG.md``)."""


def best_candidate(
    counts: Counts, program: TopicProgram, topics_LRKG: Tensor, config: TrainConfig, seed: int
) -> int:
    """Return the index of the initial topics whose short fits have the highest ELBO.

    The ELBO is the mean over replicates. A later candidate is only chosen if it is better by
    `MARGIN`. The candidates of a replicate have the same mini-batches and the same initial encoder,
    because ELBOs vary more with these than with the topics.

    Parameters
    ----------
    counts
        The training cells.
    program
        The program that will be fitted; it does not change.
    topics_LRKG
        Initial means of q(b) of each candidate and replicate.
    config
        Settings of the training.
    seed
        Seed of encoders, mini-batches and noise; torch's random state does not change.
    """
    L, R = topics_LRKG.shape[:2]
    device = program.topic_mean.device
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        trial = program.like(L * R)
        with torch.no_grad():
            for weight in trial.encoder.parameters():
                by_candidate = weight.view(L, len(weight) // L, *weight.shape[1:])
                by_candidate.copy_(by_candidate[:1].clone().expand_as(by_candidate))
            trial.topic_mean.copy_(topics_LRKG.flatten(0, 1))
        trial.to(device).train()
        trial.encoder.library_size.copy_(program.encoder.library_size)
        fit_shortly(trial, counts, config, seed)
        elbo_LR = elbo(trial, counts, seed).reshape(L, R)
    mean_L = elbo_LR.mean(1)
    best = 0
    for candidate in range(1, L):
        if mean_L[candidate] > mean_L[best] + MARGIN:
            best = candidate
    return best


def fit_shortly(program: TopicProgram, counts: Counts, config: TrainConfig, seed: int) -> None:
    """Do `STEPS` steps, with a whole cycle of the learning rate and of the warm-up."""
    n_cells = counts.n_cells
    n_batches = math.ceil(n_cells / config.batch_size)
    # A warm-up in epochs could be longer than the short fit.
    annealing = replace(config.kl_annealing, warmup_epochs=None)
    optimizer = Optimizer(program, config, counts)
    seeds = np.random.default_rng(seed)
    length = STEPS / n_batches
    step = 0
    while step < STEPS:
        for batch in optimizer.batches(shuffled(n_cells, n_batches, seeds)[: STEPS - step]):
            kl_weight = annealing_weight(step / n_batches, length, annealing)
            rate = learning_rate(step / STEPS, config)
            optimizer.step(batch, kl_weight=kl_weight, learning_rate=rate)
            step += 1


def elbo(program: TopicProgram, counts: Counts, seed: int) -> np.ndarray:
    """Return the ELBO of training cells by replicate, nats per cell, shape (R,)."""
    program.eval()
    rows = drawn(counts.n_cells, JUDGED_CELLS, seed)
    cells = Chunks(program, counts if rows is None else counts[rows])
    return elbo_terms(program, cells, n_samples=2, seed=seed).per_cell(counts.n_cells)
