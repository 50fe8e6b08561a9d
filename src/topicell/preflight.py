"""Checks of a run before its work starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from topicell import report
from topicell.config import Device, ReportConfig, RunConfig
from topicell.data.cells import PreparedCells
from topicell.errors import InputError
from topicell.model.engines import check_precision, resolve_device
from topicell.model.registry import model_spec
from topicell.model.sizes import check_sizes
from topicell.model.starts import read_initial_topics, require_batches

if TYPE_CHECKING:
    import pandas as pd

TOPIC_COLUMN = re.compile(r"lda_topic_\d+", re.ASCII)
"""Columns of obs that a run writes: the proportion of each topic."""


def check_run(config: RunConfig, cells: PreparedCells) -> str:
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
        require_batches(cells.parts["train"], config.model)
    if config.model.init_topics is not None:
        path = Path(config.model.init_topics)
        read_initial_topics(path, cells.parts["train"], config.model.n_topics)
    device = resolve_device(config.train.device if spec.on_gpu else Device.cpu)
    if spec.on_gpu:
        check_precision(config.train.precision, device)
    check_report(cells, config.report)
    return device.type


def check_report(cells: PreparedCells, config: ReportConfig) -> None:
    """Reject cells or labels that cannot be scored or reported."""
    if config.enabled:
        report.require_enough_cells(cells.adata)
        report.require_gene_sets(cells.adata, config)
    for setting, column in (("data.label_key", cells.labels), ("data.sample_key", cells.samples)):
        if column is None:
            continue
        if TOPIC_COLUMN.fullmatch(str(column.name)):
            raise InputError(
                f"{setting} = {column.name!r}: the run stores its topics under this name; rename "
                "the column"
            )
        require_labels(column, setting)


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
