"""An h5ad file for cellxgene: a matrix by columns, both maps, and types that it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

MAPS = ("X_umap_counts", "X_umap_topics")
INT32 = np.iinfo(np.int32)


def shown_cells(adata: AnnData) -> AnnData:
    """Return the cells of a run as cellxgene reads them best.

    ``X`` has the log-normalised values of all genes, of the modelled ones if the run has no others,
    as float32 in CSC format, by which cellxgene finds a gene faster. The maps are the only
    embeddings.
    """
    import scipy.sparse as sp
    from anndata import AnnData

    whole = adata.raw if adata.raw is not None else adata
    return AnnData(
        sp.csc_matrix(whole.X, dtype=np.float32),
        obs=readable(adata.obs),
        var=readable(whole.var),
        obsm={name: np.asarray(adata.obsm[name], dtype=np.float32) for name in MAPS},
    )


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the types that cellxgene reads, and the index as plain text.

    Whole numbers with missing values become floats. Truth values with missing values, and numbers
    that 32 bits do not hold, become text. Complex numbers are left out.
    """
    import pandas as pd

    columns = {str(name): _readable(values) for name, values in frame.items()}
    kept = {name: values for name, values in columns.items() if values is not None}
    index = pd.Index([str(name) for name in frame.index], dtype=object)
    return pd.DataFrame(kept, index=index)


def _readable(values: pd.Series) -> Any:
    """Return the values of a column, None if cellxgene has no such type."""
    import pandas as pd

    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.array
    kind = getattr(values.dtype, "kind", "O")
    if kind == "c":
        return None
    known = values.dropna()
    too_large = kind in "iu" and len(known) and (known.min() < INT32.min or known.max() > INT32.max)
    if kind not in "biuf" or too_large or (kind == "b" and len(known) < len(values)):
        text = values.astype(object).where(values.notna(), None).map(str, na_action="ignore")
        return pd.Categorical(text) if len(known) < len(values) else text.to_numpy(dtype=object)
    if isinstance(values.dtype, np.dtype):
        return values.to_numpy()
    if len(known) < len(values):
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    plain: Any = values.dtype
    return values.to_numpy(dtype=plain.numpy_dtype)
