"""Checks of a run before its work starts."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from topicell import report
from topicell.config import Device, EvaluateConfig, ReportConfig, RunConfig
from topicell.data.cells import PreparedCells
from topicell.data.preprocessing import column
from topicell.errors import InputError
from topicell.evaluation.conditions import (
    columns_of,
    design_of,
    samples_of,
    warn_of_small_samples,
)
from topicell.model.engines import check_precision, resolve_device
from topicell.model.registry import model_spec
from topicell.model.seeds import EarlierTopics, read_seeds
from topicell.model.sizes import check_sizes
from topicell.model.starts import background, read_initial_topics, require_batches

if TYPE_CHECKING:
    import pandas as pd

TOPIC_COLUMN = re.compile(r"lda_topic_\d+", re.ASCII)
"""Columns of obs that a run writes: the proportion of each topic."""


def check_run(config: RunConfig, cells: PreparedCells, prior: EarlierTopics | None = None) -> str:
    """Reject a run that cannot be fitted, scored or reported.

    Returns
    -------
    The device of the fit: ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        A setting does not match the data or the machine.
    """
    spec = model_spec(config.model.kind)
    check_sizes(cells.parts["train"], config.model)
    if config.model.batch_key is not None:
        require_batches(cells.parts["train"], config.model, cells.counts)
    if isinstance(config.model.topic_gene_prior, str):
        train = cells.parts["train"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the fit gives them
            read_seeds(train, config.model, background(train.rows), prior)
    if config.model.init_topics is not None:
        path = Path(config.model.init_topics)
        read_initial_topics(path, cells.parts["train"], config.model.n_topics)
    device = resolve_device(config.train.device if spec.on_gpu else Device.cpu)
    if spec.on_gpu:
        check_precision(config.train.precision, device)
    check_report(cells, config.report)
    check_conditions(cells, config.evaluate)
    warn_of_batches(cells, config)
    return device.type


def warn_of_batches(cells: PreparedCells, config: RunConfig) -> None:
    """Warn of batches of the model that are the labels, or that determine the conditions."""
    key, samples = config.model.batch_key, cells.samples
    if key is None:
        return
    obs = cells.adata.obs
    if cells.labels is not None and cells.labels.name == column(key):
        warnings.warn(
            f"model.batch_key = {key!r} is also the column of labels (data.label_key): "
            "differences in genes between the labels are removed from the topics",
            stacklevel=3,
        )
    by_batch = obs.groupby(obs[column(key)].astype(str).to_numpy())
    if samples is not None and by_batch.ngroups >= samples.nunique():
        return  # Each sample is a batch of its own, which is a usual design.
    for setting, formula in (
        ("evaluate.conditions", config.evaluate.conditions),
        ("model.prevalence", config.model.prevalence),
    ):
        names = [] if formula is None else columns_of(formula)
        fixed = [n for n in names if by_batch[n].nunique().max() == 1 and obs[n].nunique() > 1]
        if fixed:
            warnings.warn(
                f"obs[{fixed[0]!r}] has one value in each batch of model.batch_key = {key!r}, so "
                f"{setting} = {formula!r} cannot tell a change with {fixed[0]} from a difference "
                "between the batches",
                stacklevel=3,
            )


def check_report(cells: PreparedCells, config: ReportConfig) -> None:
    """Reject cells or labels that cannot be scored or reported."""
    if config.enabled:
        report.require_enough_cells(cells.adata)
        report.require_gene_sets(cells.adata, config)
    for setting, groups in (("data.label_key", cells.labels), ("data.sample_key", cells.samples)):
        if groups is None:
            continue
        if TOPIC_COLUMN.fullmatch(str(groups.name)):
            raise InputError(
                f"{setting} = {groups.name!r}: the run stores its topics under this name; rename "
                "the column"
            )
        require_labels(groups, setting)


def check_conditions(
    cells: PreparedCells,
    config: EvaluateConfig,
    name: str = "data.sample_key",
) -> None:
    """Reject a formula that cannot be tested with the samples; warn of samples with few cells.

    Parameters
    ----------
    cells
        The cells.
    config
        The formula, null if there is none.
    name
        Setting that names the column of samples.
    """
    if config.conditions is None:
        return
    if cells.samples is None:
        raise InputError(
            f"evaluate.conditions needs the sample of each cell; name its column with {name}=COLUMN"
        )
    try:
        samples = samples_of(
            cells.adata.obs,
            config.conditions,
            str(cells.samples.name),
            config.min_sample_cells,
        )
        warn_of_small_samples(samples.left_out, len(samples.table), config.min_sample_cells)
        design_of(config.conditions, samples.table)
    except InputError as error:
        raise InputError(f"evaluate.conditions: {error}") from error


def require_labels(labels: pd.Series, setting: str = "data.label_key") -> None:
    """Reject a column of cell names or measurements, because it would agree with any topics."""
    n_labels = labels.nunique()
    if n_labels > max(len(labels) / 2, 2):
        what = "labels" if setting == "data.label_key" else "samples"
        kind = "cell types" if setting == "data.label_key" else "samples"
        raise InputError(
            f"{setting} = {labels.name!r}: {n_labels} different values for {len(labels)} "
            f"cells cannot be {what}; name a column of {kind}, or leave this setting out"
        )
