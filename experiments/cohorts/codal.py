"""Fit CODAL of MIRA, in an environment of its own: it needs older libraries than topicell.

    python -m venv MIRA
    MIRA/bin/pip install mira-multiome ipywidgets "setuptools<80" "matplotlib<3.9" "pandas<2.3"
    MIRA/bin/python experiments/cohorts/codal.py CELLS.h5ad THETA.npy N_TOPICS SEED

`batches.py` calls it with the python of MIRA_PYTHON. CELLS has counts in X and `batch` in obs.
Everything is MIRA's default but the learning rates, which its own test of rates finds.
"""

from __future__ import annotations

import sys

import anndata
import mira
import numpy as np
import torch


def main() -> None:
    cells_path, out, n_topics, seed = sys.argv[1:]
    torch.set_num_threads(1)
    cells = anndata.read_h5ad(cells_path)
    cells.layers["counts"] = cells.X.astype(np.float32)
    cells.obs["batch"] = cells.obs["batch"].astype(str)
    model = mira.topics.make_model(
        cells.n_obs,
        cells.n_vars,
        feature_type="expression",
        counts_layer="counts",
        categorical_covariates=["batch"],
    )
    model.set_params(num_topics=int(n_topics), seed=int(seed))
    lower, upper = model.get_learning_rate_bounds(cells)
    model.set_learning_rates(lower, upper)
    model.fit(cells)
    model.predict(cells)
    np.save(out, cells.obsm["X_topic_compositions"])


if __name__ == "__main__":
    main()
