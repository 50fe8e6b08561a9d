"""Topics from elsewhere, under the same measures: ``topicell evaluate``.

matrices → the cells they belong to → measures → report; like `topicell.run` without a fit.
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
from topicell.counts import Counts
from topicell.data.catalogue import CATALOGUE
from topicell.data.matrices import read_topics
from topicell.data.preprocessing import preprocess
from topicell.data.reading import load
from topicell.errors import InputError
from topicell.evaluation.perplexity import perplexity
from topicell.model.engines import cpu_threads
from topicell.model.points import PointFit
from topicell.progress import step
from topicell.run import (
    Result,
    check_report,
    conclude,
    labels_of,
    measure,
    parts_of,
    recorded,
    tags_of,
)
from topicell.tracking.runs import Tracker

if TYPE_CHECKING:
    import pandas as pd


HEADERS = ("cell", "cells", "cell_id", "barcode", "barcodes", "index", "name", "obs_names", "x")
"""What a first line that names no cell may say."""


def evaluate(config: ExternalConfig, tracker: Tracker) -> Result:
    """Measure, report and record topics from elsewhere, like those of a run.

    Parameters
    ----------
    config
        The two matrices, the cells, and how to measure.
    tracker
        Where it is recorded; its folder receives the artifacts.

    Raises
    ------
    InputError
        A matrix is no set of proportions, or does not belong to the data; nothing was recorded.
    """
    named = config.data in ("simulated", *CATALOGUE)
    data = DataConfig(
        name=config.data if named else "file",
        path=None if named else config.data,
        label_key=config.label_key,
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
    # All genes are there to log-normalise by; those of the topics are then measured.
    kept = PreprocessConfig(
        min_counts_per_cell=0,
        min_cells_per_gene=0,
        drop_genes=[],
        n_variable_genes=None,
        split=SplitConfig(train=1.0, valid=0.0, test=0.0),
    )
    with warnings.catch_warnings():
        # A cell without counts adds nothing to any score, and no setting of preprocess exists here.
        warnings.filterwarnings("ignore", message=r".*(zero counts|have no count|preprocess\.)")
        adata = preprocess(whole, kept, seed=config.seed)[topics.cells, topics.genes].copy()
    if config.held_out is not None:
        held = held_out_cells(whole.obs.iloc[topics.cells], config.held_out)
        adata.obs["split"] = np.where(held, "test", "train")
    parts = parts_of(adata)
    check_report(adata, config.report)
    beta_RKG = np.maximum(topics.beta_KG, config.floor)[None]
    beta_RKG = beta_RKG / beta_RKG.sum(-1, keepdims=True)
    cells = Counts.of(adata, "counts")
    fit = PointFit(
        beta_RKG,
        model=ModelConfig(n_topics=len(topics.beta_KG)),
        genes=cells.genes,
        gene_ids=cells.ids,
        gene_frequency_G=parts["train"].gene_frequency(),
        selection_R=np.zeros(1),
        n_train=parts["train"].n_cells,
        history=[],
        cells=cells,
        held_out=parts["test"] if parts["test"].n_cells else None,
    )
    tags = {"device": "cpu", "topicell.kind": "evaluation"}
    with recorded(config, tracker, adata, tags) as last_tags, cpu_threads(1):
        theta_RNK = topics.theta_NK[None]
        given = {
            "given/perplexity": perplexity(cells.x, topics.theta_NK, beta_RKG[0]),
            "given/perplexity_folded": fit.perplexity(cells, seed=config.seed),
            "given/elbo_given_topics": float(fit.elbo_given_topics(cells, seed=config.seed)[0]),
        }
        with step("measures"):
            measured = measure(
                fit, parts, theta_RNK, beta_RKG, labels_of(adata), config.evaluate, config.seed
            )
        result = conclude(
            fit, theta_RNK, beta_RKG, adata, {str(config.seed): measured}, config, tracker, given
        )
        last_tags.update(tags_of(result))
        infinite = [name for name, value in result.scores.items() if np.isinf(value)]
        if infinite:
            warnings.warn(
                f"{', '.join(infinite)}: infinite, because a gene has proportion 0 in every topic "
                "of a cell that has counts of it; floor=1e-9 gives every gene at least that",
                stacklevel=2,
            )
    return result


def held_out_cells(obs: pd.DataFrame, held_out: str) -> np.ndarray:
    """Which cells are held out: those named in a file, or marked in a column of obs."""
    path = Path(held_out)
    if path.is_file():
        with path.open(newline="") as file:
            names = [row[0].strip() for row in csv.reader(file) if row and row[0].strip()]
        if names and names[0].lower() in HEADERS and names[0] not in obs.index:
            del names[0]
        unknown = [name for name in names if name not in obs.index]
        if unknown:
            raise InputError(
                f"held_out = {held_out!r}: {len(unknown)} of its {len(names)} names are none of "
                f"the scored cells ({', '.join(unknown[:3])})"
            )
        held_N = obs.index.isin(names)
    elif held_out in obs:
        marks = obs[held_out]
        held_N = (marks if marks.dtype == bool else marks.astype(str) == "test").to_numpy()
    else:
        raise InputError(
            f"held_out = {held_out!r}: neither a file nor a column of obs (there: "
            f"{', '.join(map(str, obs.columns)) or 'none'})"
        )
    if not held_N.any() or held_N.all():
        raise InputError(
            f"held_out = {held_out!r}: marks {int(held_N.sum())} of {len(held_N)} cells; it must "
            "name some (true or test, in a column) and leave others"
        )
    return np.asarray(held_N)
