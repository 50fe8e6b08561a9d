"""Measure the milliseconds of a dense and a sparse training step by the share of non-zero counts.

    python experiments/speed/density.py

Random counts, 128 cells per step, ten topics, one thread; both forms alternate; medians of many
steps. Writes density.csv next to this file, from which `topicell.model.minibatches.SPARSE_BELOW`
was chosen. Takes a minute and a half.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig
from topicell.model.engines import Adam
from topicell.model.minibatches import Batch, DeviceCounts, shuffled, sparse_batches
from topicell.model.objective import negative_elbo
from topicell.model.program import TopicProgram

HERE = Path(__file__).parent
N_BATCHES, BATCH = 8, 128


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for n_genes, n_replicates in ((1000, 1), (1000, 4), (1000, 8), (4000, 1), (16000, 1)):
        for density in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5):
            seeds = np.random.default_rng(0)
            x = sp.random(N_BATCHES * BATCH, n_genes, density, format="csr", rng=seeds)
            x.data = seeds.integers(1, 5, x.nnz).astype(np.float32)
            x = x.astype(np.float32)
            parts = shuffled(x.shape[0], N_BATCHES, seeds)
            forms = {
                "dense": DeviceCounts(x, torch.device("cpu")).batches(parts),
                "sparse": sparse_batches(x, parts, 1e3),
            }
            row = {"genes": n_genes, "replicates": n_replicates, "density": density}
            for form, batches in forms.items():
                row[f"{form}_ms"] = round(1e3 * step_seconds(batches, n_genes, n_replicates), 3)
            row["sparse_to_dense"] = round(row["sparse_ms"] / row["dense_ms"], 2)
            rows.append(row)
            print(row, flush=True)
    pd.DataFrame(rows).to_csv(HERE / "density.csv", index=False)


def step_seconds(batches: Iterable[Batch], n_genes: int, n_replicates: int) -> float:
    """Return the median seconds of a step: loss, gradients, update."""
    program = TopicProgram(n_genes, n_replicates, ModelConfig(n_topics=10))
    adam, rate, held = Adam(program.parameters()), torch.tensor(0.01), list(batches)
    seconds = []
    for step in range(10 * N_BATCHES):
        started = time.perf_counter()
        loss, _ = negative_elbo(program, held[step % N_BATCHES], 1000)
        (loss / 1000).backward()
        adam.step(rate)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[N_BATCHES:])


if __name__ == "__main__":
    main()
