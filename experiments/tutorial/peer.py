"""Run the tutorial with scvi-tools itself, and score it with topicell's metrics.

    pip install -c constraints.txt -e ".[baselines]"
    python experiments/tutorial/peer.py

The cells, genes and split are those of the other fits of this study (seed 0). Takes seven minutes
or more on one thread. Writes scvi.json next to this file.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import scvi
import torch

import topicell
from topicell.config import SplitConfig
from topicell.evaluation.metrics import Replicate, replicate_scores
from topicell.evaluation.perplexity import fold_in, perplexity, thin

HERE = Path(__file__).parent
SEED = 0


def main() -> None:
    torch.set_num_threads(1)
    scvi.settings.seed = SEED
    prepared = topicell.preprocess(
        topicell.load_dataset("pbmc_facs"),
        split=SplitConfig(train=0.9, valid=0.0, test=0.1),
        seed=SEED,
    )
    is_train = (prepared.obs["split"] == "train").to_numpy()
    train = prepared[is_train].copy()
    scvi.model.AmortizedLDA.setup_anndata(train, layer="counts")
    model = scvi.model.AmortizedLDA(train, n_topics=10)
    started = time.perf_counter()
    model.train(train_size=1.0, enable_progress_bar=False, accelerator="cpu")
    seconds = time.perf_counter() - started

    beta = model.get_feature_by_topic().to_numpy().T
    theta = model.get_latent_representation(prepared.copy()).to_numpy()
    observed, completed = thin(prepared[~is_train].layers["counts"], SEED)
    replicate = Replicate(
        x_NG=train.layers["counts"],
        theta_NK=theta,
        beta_KG=beta,
        labels=prepared.obs["celltype"].to_numpy(),
        seed=SEED,
    )
    # Its get_elbo returns the loss of the whole training set, which is minus the ELBO.
    scores = {
        "seconds": seconds,
        "elbo_per_cell": -abs(float(model.get_elbo())) / train.n_obs,
        "its_own_perplexity": float(model.get_perplexity()),
        "test/perplexity_folded": perplexity(completed, fold_in(observed, beta), beta),
        **dict(replicate_scores(replicate)),
    }
    scores = {name: float(np.round(value, 4)) for name, value in scores.items()}
    (HERE / "scvi.json").write_text(json.dumps(scores, indent=1) + "\n")
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
