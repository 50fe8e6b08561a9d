"""Measure the influence of the split on held-out perplexity: five splits, two models.

    python experiments/tutorial/splits.py

Prepares pbmc_facs as the tutorial does with a 90/10 split for each seed, fits topicell's defaults
(four replicates, the best by ELBO on training cells) and scikit-learn's NMF with the KL loss (300
updates) to the same training cells, and scores both on the same test cells: document completion, θ
by EM. Writes splits.csv next to this file. Takes about two minutes on one thread.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import NMF

import topicell
from topicell.config import ModelConfig, SplitConfig, TrainConfig
from topicell.evaluation.perplexity import fold_in, perplexity, thin, unigram_perplexity
from topicell.evaluation.ranking import used_topics
from topicell.model.training import train

HERE = Path(__file__).parent


def main() -> None:
    adata = topicell.load_dataset("pbmc_facs")
    rows = []
    for seed in range(5):
        prepared = topicell.preprocess(
            adata, split=SplitConfig(train=0.9, valid=0.0, test=0.1), seed=seed
        )
        counts = topicell.Counts.of(prepared)
        is_train = (prepared.obs["split"] == "train").to_numpy()
        x_train, x_test = counts.x[is_train], counts.x[~is_train]
        observed, completed = thin(x_test, seed)
        frequency = np.asarray(x_train.sum(0)).ravel() + 0.5

        started = time.perf_counter()
        fit = train(
            counts[is_train], None, ModelConfig(n_topics=10), TrainConfig(progress=False), seed=seed
        )
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        nmf = NMF(10, beta_loss="kullback-leibler", solver="mu", max_iter=300, init="nndsvda")
        topics = nmf.fit(x_train).components_ + 1e-9
        nmf_seconds = time.perf_counter() - started
        topics /= topics.sum(1, keepdims=True)
        rows.append(
            {
                "seed": seed,
                "unigram": unigram_perplexity(completed, frequency / frequency.sum()),
                "topicell": fit.perplexity(counts[~is_train], seed=seed),
                "kl_nmf": perplexity(completed, fold_in(observed, topics), topics),
                "elbo": fit.elbo(),
                "topics_used": used_topics(fit.theta()[fit.selected]),
                "seconds_4_replicates": seconds,
                "kl_nmf_seconds": nmf_seconds,
            }
        )
        print(rows[-1], flush=True)
    table = pd.DataFrame(rows).set_index("seed")
    table.to_csv(HERE / "splits.csv", float_format="%.2f")
    print(table.describe().loc[["mean", "std"]].T.to_string(float_format="%.2f"))


if __name__ == "__main__":
    main()
