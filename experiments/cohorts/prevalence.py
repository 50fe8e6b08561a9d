"""Is the test calibrated if the model's prior knows the conditions? See README.md.

Samples are drawn from the FACS-sorted cells of pbmc_facs, with their own composition of cell types
and without any effect of the condition. A model with the condition as covariate of its prior is
fitted, and three kinds of proportions are tested: those by EM with fixed topics, which
`topicell train` tests; those of the encoder, which does not see the condition; and those of a
posterior optimised for each cell with this prior, which knows it.

    TOPICELL_DATA=FOLDER python experiments/cohorts/prevalence.py
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import topicell
from topicell.data.cells import with_covariates
from topicell.evaluation.conditions import compare_conditions

HERE = Path(__file__).parent
LEVEL = 0.05
SAMPLES = 12
"""Samples of a cohort, half of each condition."""


def cohort(adata, labels, n_cells, seed):
    """Draw the cells of the samples, and a condition without any effect."""
    random = np.random.default_rng(seed)
    kinds, kind_N = np.unique(labels, return_inverse=True)
    rows, sample = [], []
    for s in range(SAMPLES):
        share = random.dirichlet(8 * np.bincount(kind_N) / len(kind_N) * len(kinds) / 4)
        for kind, n in enumerate(random.multinomial(n_cells, share)):
            rows.append(random.choice(np.flatnonzero(kind_N == kind), n))
        sample += [f"s{s:02d}"] * n_cells
    chosen = adata[np.concatenate(rows)].copy()
    chosen.obs_names_make_unique()
    treated = set(random.permutation(sorted(set(sample)))[: SAMPLES // 2])
    chosen.obs["sample"] = pd.Categorical(sample)
    chosen.obs["condition"] = pd.Categorical(["b" if s in treated else "a" for s in sample])
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two cohorts of simulated cells")
    parser.add_argument("--cohorts", type=int, default=100)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    name, label, n_cells = ("simulated", "dominant_topic", 40) if asked.quick else (
        "pbmc_facs", "celltype", 200
    )  # fmt: skip
    adata = topicell.preprocess(topicell.load_dataset(name))
    labels = adata.obs[label].astype(str).to_numpy()
    began, rows = time.perf_counter(), []
    for seed in range(2 if asked.quick else asked.cohorts):
        cells = cohort(adata, labels, n_cells, seed)
        fit = topicell.fit(
            cells, n_topics=10, n_replicates=1, seed=seed, prevalence="condition", progress=False
        )
        counts = with_covariates(fit.cells, cells.obs, "condition")
        for kind, theta_NK in (
            ("EM with fixed topics", fit.folded(counts)),
            ("encoder", fit.theta(counts)[0]),
            ("refined with the prior", fit.theta(counts, refine=True)[0]),
        ):
            found = compare_conditions(theta_NK, cells.obs, "condition", "sample").table
            rows.append({"cohort": seed, "proportions": kind, "share": (found["p"] < LEVEL).mean()})
    table = pd.DataFrame(rows).groupby("proportions", sort=False)["share"].agg(["mean", "sem"])
    print(f"{time.perf_counter() - began:.0f} s")
    print((100 * table).round(1))
    if not asked.quick:
        pd.DataFrame(rows).to_csv(HERE / "prevalence.csv", index=False)


if __name__ == "__main__":
    main()
