"""Gene names of files that have both ids and symbols."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_MISSING = ("NA", "NaN", "nan", "None", "null")
"""Text that other programs write for a missing symbol; a single gene may have such a name."""


def named(symbols: Any, ids: Any) -> pd.Index:
    """Return the symbols of genes, and the id of each gene that has none.

    Warns
    -----
    UserWarning
        Some genes get their ids as names.
    """
    import pandas as pd

    names = pd.Series(np.asarray(symbols, dtype=object).copy())
    blank = names.str.strip() == ""
    for text in _MISSING:
        same = names == text
        if same.sum() > 1:
            blank |= same
    n_blank = int(blank.sum())
    if n_blank and ids is not None:
        names[blank] = np.asarray(ids, dtype=object)[blank]
        warnings.warn(
            f"{n_blank} of {len(names)} genes have no symbol; their ids are used as names",
            UserWarning,
            stacklevel=3,
        )
    index: pd.Index = pd.Index(names.to_numpy())
    return index
