"""Write run folders as far as a comparison reads them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
from anndata import AnnData

from topicell.config import RunConfig, TrackingConfig, as_dict

OFF = TrackingConfig(enabled=False)
RNG = np.random.default_rng(0)
THETA = RNG.dirichlet(np.full(4, 0.3), 60)
BETA = RNG.dirichlet(np.full(30, 0.05), 4)
VALUES = {
    "test/perplexity_folded": {"0": [30.0, 30.2], "7": [40.0, 40.4]},
    "topics/stability": {"0": [0.9], "7": [0.8]},
    "labels/nmi": {"0": [0.5, 0.6], "7": [0.55, 0.6]},
}


def store(folder, *, theta=THETA, beta=BETA, cells=None, genes=None, values=VALUES, **changed):
    """Write a run folder with all that `topicell.comparison` reads, and return it."""
    theta, beta = np.asarray(theta), np.asarray(beta)
    config = as_dict(RunConfig())
    for name, value in changed.get("config", {}).items():
        *groups, last = name.split(".")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    parts = np.repeat(["train", "valid", "test"], [len(theta) - 20, 10, 10])
    adata = AnnData(
        obs=pd.DataFrame(
            {
                "split": changed.get("split", parts),
                "kind": changed.get("labels", ["left", "right"] * (len(theta) // 2)),
            },
            index=[f"c{i}" for i in range(len(theta))] if cells is None else cells,
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(beta.shape[1])] if genes is None else genes),
    )
    adata.obsm["X_lda"], adata.varm["lda_topics"] = theta, beta.T
    adata.uns["topicell"] = {
        "config": json.dumps(config),
        "run_id": changed.get("run_id", ""),
        "created": "2026-01-01T12:00:00+00:00",
        "version": "0.1.0",
        "label_key": "kind",
        "data": changed.get("data", "cells"),
        **changed.get("about", {}),
    }
    adata.uns["topicell_source"] = {"sha256": changed.get("source", "abc")}
    folder.mkdir(parents=True)
    adata.write_h5ad(folder / "adata.h5ad")
    tags = {
        "topicell.version": "0.1.0",
        "device": changed.get("device", "cpu"),
        "topicell.prepared_digest": changed.get("prepared", "123"),
    }
    (folder / "config.yaml").write_text("".join(f"# {k}: {v}\n" for k, v in tags.items()))
    lines = [{"epoch": 0, "valid/elbo": -9.0}, {"epoch": 1, "valid/elbo": -8.0}]
    lines += [{"speed/fit_seconds": 2.0, "labels/nmi": 0.5, "labels/nmi_mean": 0.6}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        (name, split, replicate, value)
        for name, by_split in values.items()
        for split, of_split in by_split.items()
        for replicate, value in enumerate(of_split)
    ]
    columns = ["metric", "split", "replicate", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "scores.csv", index=False)
    (folder / "model").mkdir()
    versions = {"topicell": "0.1.0", "torch": changed.get("torch", "2.6")}
    (folder / "model" / "model.json").write_text(json.dumps({"versions": versions}))
    return folder


def shifted(by, name="test/perplexity_folded"):
    """Return VALUES with one score changed by these amounts, split by split."""
    moved = {
        split: [value + amount for value in of_split]
        for (split, of_split), amount in zip(VALUES[name].items(), by, strict=True)
    }
    return VALUES | {name: moved}
