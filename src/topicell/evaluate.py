"""Score topics of another tool with the same metrics: ``topicell evaluate``.

matrices → their cells → metrics → report; like `topicell.run` without a fit.
"""

from __future__ import annotations

import csv
import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from topicell.config import (
    DataConfig,
    ExternalConfig,
    ModelConfig,
    PreprocessConfig,
    ReadConfig,
    SplitConfig,
)
from topicell.data.catalogue import CATALOGUE
from topicell.data.cells import PreparedCells
from topicell.data.matrices import read_topics
from topicell.data.preprocessing import preprocess
from topicell.data.reading import load
from topicell.errors import InputError
from topicell.evaluation.perplexity import perplexity
from topicell.model.engines import cpu_threads
from topicell.model.points import PointFit
from topicell.outputs import Measurements, Result, conclude
from topicell.preflight import check_conditions, check_report
from topicell.progress import step
from topicell.run import measure_split, recorded
from topicell.scoring import Estimates
from topicell.tracking.runs import Tracker

if TYPE_CHECKING:
    import pandas as pd


HEADERS = ("cell", "cells", "cell_id", "barcode", "barcodes", "index", "name", "obs_names", "x")
"""Headers that the first line of a file of names may have."""


def evaluate(config: ExternalConfig, tracker: Tracker) -> Result:
    """Score and report external topics, and record the result like a run.

    Parameters
    ----------
    config
        The two matrices, the cells, and the settings of the metrics.
    tracker
        Where the result is recorded; its folder receives the artifacts.

    Raises
    ------
    InputError
        A matrix does not hold proportions, or does not match the data; nothing was recorded.
    """
    named = config.data in ("simulated", *CATALOGUE)
    data = DataConfig(
        name=config.data if named else "file",
        path=None if named else config.data,
        label_key=config.label_key,
        sample_key=config.sample_key,
        **{f.name: getattr(config, f.name) for f in fields(ReadConfig)},
    )
    whole = load(data)
    topics = read_topics(
        config.theta,
        config.beta,
        whole.obs_names,
        whole.var_names,
        gene_ids=whole.var.get("gene_ids"),
        normalize=config.normalize,
    )
    # Log-normalisation needs all genes; the metrics use those of the topics.
    kept = PreprocessConfig(
        min_counts_per_cell=0,
        min_cells_per_gene=0,
        drop_genes=[],
        n_variable_genes=None,
        split=SplitConfig(train=1.0, valid=0.0, test=0.0),
    )
    with warnings.catch_warnings():
        # A cell without counts changes no score, and this command has no settings of preprocess to
        # change.
        warnings.filterwarnings("ignore", message=r".*(zero counts|have no count|preprocess\.)")
        adata = preprocess(whole, kept, seed=config.seed)[topics.cells, topics.genes].copy()
    if config.held_out is not None:
        held = held_out_cells(whole.obs.iloc[topics.cells], config.held_out)
        adata.obs["split"] = np.where(held, "test", "train")
    cells = PreparedCells(adata)
    check_report(cells, config.report)
    check_conditions(cells, config.evaluate, "sample_key")
    beta_RKG = np.maximum(topics.beta_KG, config.floor)[None]
    beta_RKG = beta_RKG / beta_RKG.sum(-1, keepdims=True)
    fit = external_fit(beta_RKG, cells)
    estimates = Estimates(fit, topics.theta_NK[None], beta_RKG)
    tags = {"device": "cpu", "topicell.kind": "evaluation"}
    with recorded(config, tracker, cells, tags) as last_tags, cpu_threads(1):
        of_all = fit.elbo_given_topics(cells.counts, seed=config.seed)
        known = {
            "given/perplexity": perplexity(cells.counts.x, topics.theta_NK, beta_RKG[0]),
            "given/perplexity_folded": fit.perplexity(cells.counts, seed=config.seed),
            "given/elbo_given_topics": float(of_all[0]),
        }
        with step("measures"):
            measured = measure_split(estimates, cells, cells.parts, config, config.seed)
        measurements = Measurements({str(config.seed): measured}, known)
        result = conclude(estimates, measurements, cells, config, tracker)
        last_tags.update(result.tags)
        infinite = [name for name, value in result.scores.items() if np.isinf(value)]
        if infinite:
            warnings.warn(
                f"{', '.join(infinite)}: infinite, because a cell has counts of a gene whose "
                "proportion is 0 in all topics of the cell; floor=1e-9 gives each gene at least "
                "this proportion",
                stacklevel=2,
            )
    return result


def external_fit(beta_RKG: np.ndarray, cells: PreparedCells) -> PointFit:
    """Return external topics as a fit of the cells that are not held out."""
    train, test = cells.parts["train"], cells.parts["test"]
    return PointFit(
        beta_RKG,
        model=ModelConfig(n_topics=beta_RKG.shape[1]),
        genes=cells.counts.genes,
        gene_ids=cells.counts.ids,
        gene_frequency_G=train.gene_frequency(),
        selection_R=np.zeros(1),
        n_train=train.n_cells,
        history=[],
        cells=cells.counts,
        held_out=test if test.n_cells else None,
    )


def held_out_cells(obs: pd.DataFrame, held_out: str) -> np.ndarray:
    """Return which cells are held out: by names in a file, or by a column of obs."""
    path = Path(held_out)
    if path.is_file():
        with path.open(newline="") as file:
            names = [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
        if names and names[0].lower() in HEADERS and names[0] not in obs.index:
            del names[0]
        unknown = [name for name in names if name not in obs.index]
        if unknown:
            raise InputError(
                f"held_out = {held_out!r}: {len(unknown)} of its {len(names)} names are not among "
                f"the scored cells ({', '.join(unknown[:3])})"
            )
        held_N = obs.index.isin(names)
    elif held_out in obs:
        marks = obs[held_out]
        held_N = (marks if marks.dtype == bool else marks.astype(str) == "test").to_numpy()
    else:
        raise InputError(
            f"held_out = {held_out!r}: neither a file nor a column of obs (columns: "
            f"{', '.join(map(str, obs.columns)) or 'none'})"
        )
    if not held_N.any() or held_N.all():
        raise InputError(
            f"held_out = {held_out!r}: selects {int(held_N.sum())} of {len(held_N)} cells; it must "
            "select some cells (value true or test in a column) but not all"
        )
    return np.asarray(held_N)
