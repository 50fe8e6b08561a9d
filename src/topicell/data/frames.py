"""Convert tables of cells and genes from any program to a form that anndata can write to h5ad.

Files of other programs, and of other versions of anndata and pandas, have columns, names and types
that anndata reads but cannot write. `plain` converts them once, after reading.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

RESERVED = "_index"
"""Name under which anndata stores the index; no column may have this name."""
_MAX_POSITION = 100_000
"""Increasing whole numbers below this are taken for positions of genes, not for ids."""


def plain(adata: AnnData) -> None:
    """Convert the tables and ``uns`` of an AnnData, in place, so that `write_h5ad` accepts them.

    Columns named ``_index`` are dropped if they repeat the index and renamed otherwise; column
    names become unique text; an index with the name of a column loses its name. Nullable and Arrow
    strings become text or categories, other extension types their numpy equivalents, and columns
    with values of several types become text.

    Warns
    -----
    UserWarning
        A column is dropped, renamed or converted to text.
    """
    import pandas as pd

    frames: list[tuple[str, pd.DataFrame]] = [("obs", adata.obs), ("var", adata.var)]
    if adata.raw is not None:
        frames.append(("raw.var", adata.raw.var))
    for part in ("obsm", "varm"):
        frames += [
            (f"{part}[{name!r}]", value)
            for name, value in getattr(adata, part).items()
            if isinstance(value, pd.DataFrame)
        ]
    for where, frame in frames:
        _plain_frame(frame, where)
    for key, value in list(adata.uns.items()):
        adata.uns[key] = _plain_value(value, f"uns[{key!r}]")


def write_h5ad(adata: AnnData, path: Path, compression: Literal["gzip"] | None = None) -> None:
    """Write an AnnData whose tables are `plain`, with text in the form that all programs read.

    With pandas 3, anndata would store each text with a mask of missing values, which anndata before
    0.11 and programs in other languages cannot read.
    """
    import anndata

    with anndata.settings.override(allow_write_nullable_strings=False):
        adata.write_h5ad(path, compression=compression)


def require_gene_names(var: pd.DataFrame, gene_names: str | None, prefix: str = "") -> None:
    """Reject genes whose names are their positions if a column can name them.

    Parameters
    ----------
    var
        One row per gene.
    gene_names
        The setting ``gene_names``; if it is set, the genes are accepted.
    prefix
        Put before names of settings in messages.

    Raises
    ------
    InputError
        The index holds positions, and `var` has a column of text without repetitions.

    Warns
    -----
    UserWarning
        The index holds positions, and no column can replace it.
    """
    if gene_names is not None or len(var) < 2:
        return
    names = [str(name) for name in var.index]
    if not all(name.isascii() and name.isdigit() for name in names):
        return
    numbers = np.array([int(name) for name in names], dtype=object)
    if numbers[-1] >= _MAX_POSITION or not (numbers[1:] > numbers[:-1]).all():
        return
    # Symbols of genes repeat rarely; classes of genes repeat often.
    columns = [
        str(name)
        for i, name in enumerate(var.columns)
        if _is_text(var.iloc[:, i]) and var.iloc[:, i].nunique() > 0.9 * len(var)
    ]
    if columns:
        example = ", ".join(map(str, var[columns[0]].iloc[:3]))
        raise InputError(
            f"the genes have numbers instead of names ({', '.join(names[:3])}, …); columns of var "
            f"that may hold names: {', '.join(columns)}; set {prefix}gene_names={columns[0]} "
            f"(values: {example}, …), or {prefix}gene_names=index to keep the numbers"
        )
    if names in ([str(i) for i in range(len(names))], [str(i + 1) for i in range(len(names))]):
        warnings.warn(
            f"the genes have numbers instead of names ({names[0]} to {names[-1]}), and var has no "
            "column of names: tables and figures show the numbers",
            UserWarning,
            stacklevel=3,
        )


def _is_text(column: pd.Series) -> bool:
    from pandas.api.types import infer_dtype

    values = column.dropna()
    return len(values) > 0.9 * len(column) and infer_dtype(values.astype(object)) == "string"


def _plain_frame(frame: pd.DataFrame, where: str) -> None:
    """Convert one table in place."""
    _plain_names(frame, where)
    frame.index = _plain_index(frame.index, list(frame.columns))
    for i, name in enumerate(frame.columns):
        column = frame.iloc[:, i]
        is_text = column.dtype == object and _is_plain_text(column.to_numpy())
        if not (is_text or _is_plain(column.dtype)):
            frame[name] = _plain_array(column.array, f"{where}[{name!r}]")


def _plain_names(frame: pd.DataFrame, where: str) -> None:
    """Make the names of columns text that is unique and not reserved."""
    old = list(frame.columns)
    if old.count(RESERVED) == 1 and list(map(str, frame[RESERVED])) == list(map(str, frame.index)):
        warnings.warn(
            f"{where} has a column {RESERVED!r} that repeats the index; it is left out",
            UserWarning,
            stacklevel=4,
        )
        del frame[RESERVED]
        old.remove(RESERVED)
    # anndata stores a column under its name in a group; "" and "." would be the group itself.
    fine = [str(name) if str(name).strip("./ ") and name != RESERVED else None for name in old]
    new: list[str] = []
    for place, name in enumerate(fine):
        first = name or ("index" if old[place] == RESERVED else "unnamed")
        unique, n = first, 0
        # Columns that can keep their names get them first.
        while unique in new or (unique in fine and unique != name):
            n += 1
            unique = f"{first}-{n}"
        new.append(unique)
    if new == old:
        return
    pairs = zip(old, new, strict=True)
    # A name that was a number or a tuple is the same name as text.
    changed = [f"{a!r} as {b!r}" for a, b in pairs if str(a) != b]
    frame.columns = new
    if changed:
        warnings.warn(
            f"{where} has column names that are reserved, empty or repeated; they get other "
            f"names: {', '.join(changed)}",
            UserWarning,
            stacklevel=4,
        )


def _plain_index(index: pd.Index, columns: list[str]) -> pd.Index:
    """Return an index of plain text, with a name only if no column has this name."""
    import pandas as pd

    name = index.name
    if not isinstance(name, str) or name in columns or not name.strip("./ "):
        name = None
    text = pd.Index(["a"]).dtype  # object, and str since pandas 3
    if type(index) is pd.Index and index.dtype == text and not index.hasnans:
        return index.rename(name)
    # A name that is missing is left empty; `read` refuses it.
    values = ["" if missing else str(v) for v, missing in zip(index, index.isna(), strict=True)]
    return pd.Index(values, dtype=text, name=name)


def _is_plain(dtype: Any) -> bool:
    """Return whether anndata can write columns of this type with any values."""
    import pandas as pd

    if isinstance(dtype, np.dtype):
        return dtype.kind in "biufc"
    if isinstance(dtype, pd.CategoricalDtype):
        return (
            isinstance(dtype.categories.dtype, np.dtype) and dtype.categories.dtype.kind in "biuf"
        )
    # anndata can write these nullable types: whole numbers and booleans.
    return (
        getattr(dtype, "kind", "") in ("b", "i", "u")
        and hasattr(dtype, "numpy_dtype")
        and not isinstance(dtype, pd.ArrowDtype)
    )


def _is_plain_text(values: np.ndarray) -> bool:
    return all(type(value) is str for value in values)


def _plain_array(array: Any, where: str) -> Any:
    """Return values of any pandas type as numbers, text or categories."""
    import pandas as pd

    if isinstance(array, pd.Categorical):
        return _plain_categories(array, where)
    dtype = array.dtype
    if isinstance(dtype, pd.SparseDtype):
        return _plain_array(pd.array(array.to_dense()), where)
    kind = getattr(getattr(dtype, "numpy_dtype", None), "kind", None)
    if kind == "f":
        return array.to_numpy(dtype=np.float64, na_value=np.nan)
    if kind in ("b", "i", "u") and not pd.isna(array).any():
        return array.to_numpy(dtype=dtype.numpy_dtype)
    values = np.asarray(array.astype(object), dtype=object)
    return _plain_objects(values, where)


def _plain_objects(values: np.ndarray, where: str) -> Any:
    """Return Python objects as numbers if all are numbers, else as text or categories."""
    import pandas as pd
    from pandas.api.types import infer_dtype

    missing = pd.isna(values)
    present = values[~missing]
    kind = infer_dtype(present, skipna=False)
    if kind in ("empty", "integer", "floating", "mixed-integer-float", "decimal"):
        numbers = np.full(len(values), np.nan)
        numbers[~missing] = present.astype(np.float64)
        exact = kind == "integer" and not missing.any() and abs(numbers).max(initial=0) < 2**53
        return numbers.astype(np.int64) if exact else numbers
    if kind == "boolean":
        truths = np.zeros(len(values), dtype=bool)
        truths[~missing] = present.astype(bool)
        return pd.arrays.BooleanArray(truths, missing) if missing.any() else truths
    if kind in ("mixed", "mixed-integer"):
        warnings.warn(
            f"{where} holds values of several types; they are stored as text",
            UserWarning,
            stacklevel=5,
        )
    text = np.array([v.decode() if isinstance(v, bytes) else str(v) for v in present], dtype=object)
    if not missing.any():
        return text
    # anndata cannot write missing text, but a category that is missing.
    full = np.full(len(values), None, dtype=object)
    full[~missing] = text
    return pd.Categorical(full)


def _plain_categories(array: pd.Categorical, where: str) -> pd.Categorical:
    """Return the same categories as numbers or text."""
    import pandas as pd

    new = _plain_array(array.categories.array, f"categories of {where}")
    if len(set(new)) == len(new):
        return array.rename_categories(pd.Index(new))
    # Categories that differ only as objects, such as 1 and "1".
    return pd.Categorical(pd.Index(new)[array.codes].where(array.codes >= 0), ordered=array.ordered)


def _plain_value(value: Any, where: str) -> Any:
    """Return an entry of ``uns`` that anndata can write."""
    import pandas as pd

    if isinstance(value, dict):
        return {k: _plain_value(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, pd.DataFrame):
        value = value.copy()
        _plain_frame(value, where)
    elif isinstance(value, pd.api.extensions.ExtensionArray):
        if not _is_plain(value.dtype):
            return _plain_array(value, where)
    elif isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1:
        return value if _is_plain_text(value) else _plain_objects(value, where)
    return value
