"""Measure how long all metrics take together, and how the time grows with the counts.

    python experiments/measures/benchmark.py [--quick]

Four replicates of ten topics on a simulated corpus of 4,000 cells × 1,000 genes; every metric is
computed for all 4,000 cells, as if all were held out. The same with a fifth of the counts per cell,
and with half and twice the cells. Writes seconds.csv next to this file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from topicell.config import EvaluateConfig, ModelConfig, SimulationConfig, TrainConfig
from topicell.counts import Counts
from topicell.data.simulation import simulate
from topicell.evaluation.metrics import METRICS, Replicate
from topicell.evaluation.stability import consensus, stability
from topicell.model.training import train

HERE = Path(__file__).parent
SIZES = [(4000, 1000), (4000, 200), (2000, 1000), (8000, 1000)]
"""Number of cells and counts per cell."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one size, one repeat; writes nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    rows = [
        measured(n_cells, depth, repeats=1 if quick else 3)
        for n_cells, depth in (SIZES[:1] if quick else SIZES)
    ]
    table = pd.DataFrame(rows).set_index(["cells", "counts a cell"])
    if not quick:
        table.to_csv(HERE / "seconds.csv", float_format="%.3g")
    print(table.T.to_string(float_format="%.3g"))


def measured(n_cells: int, depth: int, *, repeats: int) -> dict[str, float]:
    """Return the median seconds of each group of metrics."""
    adata = simulate(
        SimulationConfig(n_cells=n_cells, n_genes=1000, n_topics=10, mean_counts=depth)
    )
    cells = Counts.of(adata, "counts")
    labels = adata.obs["dominant_topic"].to_numpy()
    fit = train(cells, None, ModelConfig(), TrainConfig(epochs=3, progress=False))
    config = EvaluateConfig()
    theta_RNK, beta_RKG = fit.theta(), fit.beta()

    def scores(group: str) -> list[object]:
        """Compute the metrics of a group for each replicate."""
        rows = [row for name, row in METRICS.items() if row.compute and name.startswith(group)]
        replicates = [
            Replicate(
                x_NG=cells.x,
                theta_NK=theta_NK,
                beta_KG=beta_KG,
                labels=labels,
                n_neighbors=config.n_neighbors,
            )
            for theta_NK, beta_KG in zip(theta_RNK, beta_RKG, strict=True)
        ]
        return [row.compute(replicate) for replicate in replicates for row in rows]

    groups: dict[str, Callable[[], object]] = {
        "θ and β, 256 samples": lambda: (fit.theta(), fit.beta()),
        "ELBO, 10 samples": lambda: fit.elbo_by_replicate(n_samples=config.n_elbo_samples),
        "perplexity, folded": lambda: fit.perplexity_by_replicate(cells),
        "perplexity, amortized": lambda: fit.perplexity_by_replicate(cells, folded=False),
        "coherence, diversity, exclusivity, used": lambda: scores("topics/"),
        "stability, consensus": lambda: (stability(beta_RKG), consensus(beta_RKG, theta_RNK)),
        "labels": lambda: scores("labels/"),
    }
    row: dict[str, float] = {
        "cells": n_cells,
        "counts a cell": depth,
        "non-zeros, thousands": cells.x.nnz / 1000,
    }
    seconds = {name: [taken(group) for _ in range(repeats)] for name, group in groups.items()}
    row |= {name: float(np.median(values)) for name, values in seconds.items()}
    row["all measures"] = float(np.median(np.sum(list(seconds.values()), axis=0)))
    row["refinement, 1 replicate"] = taken(lambda: fit.amortization_gap(replicates=[0]))
    return row


def taken(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
