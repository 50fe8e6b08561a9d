"""The prepared cells of a run: counts, parts and labels of one AnnData."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell.config import DataConfig, PreprocessConfig
from topicell.counts import Counts, LateRows, ids_of
from topicell.data.preprocessing import PARTS, column, prepared, settings_of_data
from topicell.data.reading import load_or_open, source_digest
from topicell.errors import InputError
from topicell.evaluation.conditions import cell_design

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def with_source_counts(adata: AnnData, data: DataConfig, config: PreprocessConfig) -> AnnData:
    """Return the stored cells of a run with their counts, which are prepared again.

    Raises
    ------
    InputError
        The source cannot be read, or its cells or genes are others.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the run gave them
            # The workers that the run had may be gone.
            read, alone = settings_of_data(data, config), replace(config, dask=None)
            found = prepared(lambda: load_or_open(read), source_digest(read), alone)
    except InputError as error:
        raise InputError(
            f"the run does not keep its counts (data.keep_counts), so its source is read: {error}"
        ) from error
    digests = [of.uns["topicell_source"]["sha256"] for of in (found, adata)]
    names = (found.obs_names, adata.obs_names), (found.var_names, adata.var_names)
    if digests[0] != digests[1] or not all(now.equals(then) for now, then in names):
        raise InputError(
            "the run does not keep its counts (data.keep_counts), and "
            f"{data.samples or data.path or data.name} has changed since the run; restore the "
            "source"
        )
    found.obs, found.var, found.uns = adata.obs, adata.var, adata.uns
    for name in ("obsm", "varm"):
        getattr(found, name).update(getattr(adata, name))
    return found


def with_covariates(counts: Counts, obs: pd.DataFrame, formula: str | None) -> Counts:
    """Return the same cells with the covariates of a formula; None leaves them as they are.

    Raises
    ------
    InputError
        The formula does not match `obs`.
    """
    if formula is None:
        return counts
    try:
        names, design_ND = cell_design(formula, obs)
    except InputError as error:
        raise InputError(f"model.prevalence: {error}") from error
    return replace(counts, design=design_ND, covariates=names)


@dataclass(frozen=True)
class PreparedCells:
    """The result of `topicell.data.preprocessing.preprocess`, in the form that a run uses."""

    adata: AnnData
    batch_key: str | None = None
    """Column of obs with the batches that the model knows, or None."""
    measured_key: str | None = None
    """Column of obs with the batches whose separation is measured, or None."""
    prevalence: str | None = None
    """Formula of the covariates that the model knows, or None."""

    @property
    def source(self) -> Mapping[str, Any]:
        """Name, source, digest and column of labels of the data."""
        source: Mapping[str, Any] = self.adata.uns["topicell_source"]
        return source

    @cached_property
    def counts(self) -> Counts:
        """All cells; they were checked when they were prepared."""
        names = (self.adata.obs_names, self.adata.var_names)
        cells, genes = (np.asarray(of, dtype=object) for of in names)
        ids = ids_of(self.adata.var)
        counts = Counts(LateRows(self.adata.layers["counts"]), cells, genes, ids)
        try:
            counts = counts.with_batches(self.adata.obs, self.batch_key and column(self.batch_key))
        except InputError as error:
            raise InputError(f"model.{error}") from error
        return with_covariates(counts, self.adata.obs, self.prevalence)

    @cached_property
    def parts(self) -> dict[str, Counts]:
        """The cells of each part: ``train``, ``valid`` and ``test``."""
        return self.divided(self.adata.obs["split"])

    def divided(self, part_N: Any) -> dict[str, Counts]:
        """Return the cells of each part, from the name of each cell's part, shape (N,)."""
        return {name: self.counts[np.flatnonzero(np.asarray(part_N) == name)] for name in PARTS}

    @property
    def batches(self) -> np.ndarray | None:
        """The batch of each cell whose separation is measured, shape (N,)."""
        if self.measured_key is None:
            return None
        return np.asarray(self.adata.obs[column(self.measured_key)], dtype=object)

    @property
    def labels(self) -> pd.Series | None:
        """The known cell types, if the data have any."""
        key = column(self.source["label_key"])
        return self.adata.obs[key] if key else None

    @property
    def samples(self) -> pd.Series | None:
        """The sample of each cell, if the data have samples."""
        key = column(self.source.get("sample_key", ""))
        return self.adata.obs[key] if key else None
