"""The prepared cells of a run: counts, parts and labels of one AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell.counts import Counts
from topicell.data.preprocessing import PARTS, column

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True)
class PreparedCells:
    """The result of `topicell.data.preprocessing.preprocess`, in the form that a run uses."""

    adata: AnnData

    @property
    def source(self) -> Mapping[str, Any]:
        """Name, source, digest and column of labels of the data."""
        source: Mapping[str, Any] = self.adata.uns["topicell_source"]
        return source

    @cached_property
    def counts(self) -> Counts:
        """All cells."""
        return Counts.of(self.adata, "counts")

    @cached_property
    def parts(self) -> dict[str, Counts]:
        """The cells of each part: ``train``, ``valid`` and ``test``."""
        return self.divided(self.adata.obs["split"])

    def divided(self, part_N: Any) -> dict[str, Counts]:
        """Return the cells of each part, from the name of each cell's part, shape (N,)."""
        return {name: self.counts[np.flatnonzero(np.asarray(part_N) == name)] for name in PARTS}

    @property
    def labels(self) -> pd.Series | None:
        """The known cell types, if the data have any."""
        key = column(self.source["label_key"])
        return self.adata.obs[key] if key else None
