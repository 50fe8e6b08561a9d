"""Choose initialisation, learning rate, mini-batch size, length and warm-up: topicell's defaults.

    TOPICELL_DATA=... python experiments/defaults/study.py

It changes one setting at a time from the defaults (and learning rate with length together), on two
real data sets, on simulated corpora of 3,000 cells × 1,000 genes with few and many topics and
counts, and on one of 20,000 cells, with two seeds of four replicates each. Held-out cells are
scored by document completion (θ by EM), and simulated topics by their cosine with the truth. Writes
results.csv next to this file; takes about seventeen minutes on one thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import topicell
from topicell.config import (
    AnnealingConfig,
    DataConfig,
    EarlyStoppingConfig,
    Init,
    ModelConfig,
    SimulationConfig,
    SplitConfig,
    TrainConfig,
)
from topicell.data.reading import load
from topicell.evaluation.perplexity import fold_in, perplexity, thin
from topicell.evaluation.ranking import used_topics
from topicell.evaluation.stability import match_topics
from topicell.model.training import train

HERE = Path(__file__).parent
SEEDS = (0, 1)
BASE: dict[str, Any] = {
    "init": "kmeans",
    "n_starts": 8,
    "normalize_means": True,
    "learning_rate": 0.1,
    "batch_size": 128,
    "steps": 250,
    "warmup_share": 0.25,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"init": "background"},
    {"init": "background", "steps": 800},
    {"init": "random"},
    {"n_starts": 1},
    {"n_starts": 3},
    {"n_starts": 20},
    {"normalize_means": False},
    *({"learning_rate": rate} for rate in (0.02, 0.05, 0.2)),
    *({"steps": steps} for steps in (60, 120, 500, 800)),
    {"learning_rate": 0.05, "steps": 800},
    {"learning_rate": 0.2, "steps": 120},
    # The same number of cells, in smaller and in larger mini-batches.
    {"batch_size": 64, "steps": 500},
    {"batch_size": 256, "steps": 125},
    {"batch_size": 256, "steps": 250},
    *({"warmup_share": share} for share in (0.0, 0.5)),
]
LARGE: list[dict[str, Any]] = [{"steps": steps} for steps in (125, 250, 470, 780, 1560)]


def corpora() -> Iterator[tuple[str, Any, int, list[dict[str, Any]]]]:
    """Yield name, cells, number of topics and settings to try."""
    yield "pbmc_facs", topicell.load_dataset("pbmc_facs"), 10, VARIANTS
    yield "pbmc_facs", topicell.load_dataset("pbmc_facs"), 30, [{}, {"init": "background"}]
    yield "pbmc68k", topicell.load_dataset("pbmc68k"), 10, VARIANTS
    for n_topics in (5, 20):
        for depth in (200, 2000):
            name = f"{n_topics} topics, {depth} counts"
            yield name, drawn(3000, n_topics, depth), n_topics, VARIANTS
    yield "20 topics, 20,000 cells", drawn(20_000, 20, 1000), 20, LARGE


def drawn(n_cells: int, n_topics: int, depth: int) -> Any:
    """Return a corpus with known topics."""
    simulation = SimulationConfig(
        n_cells=n_cells, n_genes=1000, n_topics=n_topics, mean_counts=depth
    )
    return load(DataConfig(name="simulated", simulation=simulation))


def main() -> None:
    rows = []
    for name, adata, n_topics, variants in corpora():
        for seed in SEEDS:
            prepared = topicell.preprocess(
                adata, split=SplitConfig(train=0.9, valid=0.0, test=0.1), seed=seed
            )
            counts = topicell.Counts.of(prepared)
            is_train = (prepared.obs["split"] == "train").to_numpy()
            observed, completed = thin(counts[~is_train].x, seed)
            truth_KG = prepared.varm["beta"].T if "beta" in prepared.varm else None
            for variant in variants:
                setting = BASE | variant
                n_steps = setting["steps"]
                n_batches = math.ceil(is_train.sum() / setting["batch_size"])
                fit = train(
                    counts[is_train],
                    None,
                    ModelConfig(
                        n_topics=n_topics,
                        init=Init(setting["init"]),
                        n_starts=setting["n_starts"],
                        normalize_means=setting["normalize_means"],
                    ),
                    TrainConfig(
                        epochs=math.ceil(n_steps / n_batches),
                        max_steps=n_steps,
                        batch_size=setting["batch_size"],
                        learning_rate=setting["learning_rate"],
                        kl_annealing=AnnealingConfig(warmup_share=setting["warmup_share"]),
                        early_stopping=EarlyStoppingConfig(enabled=False),
                        search=False,
                        progress=False,
                    ),
                    seed=seed,
                )
                theta_RNK, beta_RKG = fit.theta(n_samples=64), fit.beta(n_samples=64)
                elbo_R = fit.elbo_by_replicate()
                for r, (theta_NK, beta_KG) in enumerate(zip(theta_RNK, beta_RKG, strict=True)):
                    row = {
                        "data": name,
                        "n_topics": n_topics,
                        "seed": seed,
                        "replicate": r,
                        "changed": ", ".join(f"{k}={v}" for k, v in variant.items()) or "defaults",
                        "perplexity": perplexity(completed, fold_in(observed, beta_KG), beta_KG),
                        "elbo": elbo_R[r],
                        "topics_used": used_topics(theta_NK),
                        "shown": r == fit.selected,
                    }
                    if truth_KG is not None:
                        row["cosine_with_truth"] = match_topics(truth_KG, beta_KG).cosine.mean()
                    rows.append(row)
                values = pd.DataFrame(rows[-len(beta_RKG) :])
                print(
                    f"{name}, K = {n_topics}, seed {seed}, {rows[-1]['changed']}: perplexity "
                    f"{values['perplexity'].mean():.2f}, ELBO {values['elbo'].mean():.2f}, used "
                    f"{np.round(values['topics_used'].mean(), 1)}",
                    flush=True,
                )
    pd.DataFrame(rows).round(4).to_csv(HERE / "results.csv", index=False)


if __name__ == "__main__":
    main()
