"""Reader of tables of counts in text files."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scipy.sparse as sp

from topicell import genes
from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
"""Separator by the ending of a file's name; others are tried if the header does not contain it."""
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zip")
_OTHER_SEPARATORS = ("\t", ",", ";", r"\s+")
_CSV_ROWS = 1000
"""Largest number of rows of a text file that are dense in memory at a time."""
_FEWEST_WORDS = 5
"""A column of text with an unknown name counts as metadata only in a table with at least this
many rows."""
_CSV_VALUES = 20_000_000
"""Largest number of values of a text file that are dense in memory at a time."""


def ending(path: Path) -> str:
    """Return the ending that gives the format of a text file, without that of its compression."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def read_text(path: Path) -> AnnData:
    """Return the counts of a table with a header and a first column of names.

    Columns without counts (text, or known names of metadata) become columns of obs. The name of the
    obs index is the header of the first column.

    Raises
    ------
    InputError
        The table has no header, no rows, no names, or values that are not numbers.

    Warns
    -----
    UserWarning
        Columns are treated as metadata.
    """
    import pandas as pd
    from anndata import AnnData

    # Names are read as text: a gene called NA or 1 is neither a missing value nor a number.
    options: dict[str, Any] = {"header": None, "na_filter": False, "encoding": "utf-8-sig"}
    options["sep"] = _separator(path, options)
    header = pd.read_csv(path, nrows=1, dtype=str, **options).iloc[0].tolist()
    try:
        first = pd.read_csv(path, skiprows=1, nrows=_CSV_ROWS, dtype={0: str}, **options)
    except pd.errors.EmptyDataError as error:
        raise InputError("has a header and no cells") from error
    columns = _names_of_columns(header, first.shape[1] - 1)
    corner = header[0] if len(header) > len(columns) else ""
    # Columns of text, and columns with known names, in either orientation of the table.
    notes = sorted(
        {
            *genes.metadata_columns(columns, rows_are_genes=False),
            *genes.metadata_columns(columns, rows_are_genes=True),
            *(i for i in range(len(columns)) if _is_text(first[i + 1])),
        }
    )
    counted = [i for i in range(len(columns)) if i not in set(notes)]
    if not counted:
        i = notes[0]
        value = first[i + 1].iloc[0]
        raise InputError(
            f"holds {value!r} in column {columns[i]}, and no column of counts; {_expected(value)}"
        )
    names: list[str] = []
    parts: list[sp.csr_matrix] = []
    metadata: list[pd.DataFrame] = []
    chunks = pd.read_csv(
        path,
        skiprows=1,
        index_col=0,
        dtype={0: str},
        chunksize=max(min(_CSV_ROWS, _CSV_VALUES // len(columns)), 1),
        **options,
    )
    with chunks:
        for chunk in chunks:
            # Columns are numbered by their position in the file; the first column has the names.
            numbers = chunk[[i + 1 for i in counted]]
            _require_numbers(numbers, [columns[i] for i in counted])
            parts.append(sp.csr_matrix(numbers.to_numpy()))
            metadata.append(chunk[[i + 1 for i in notes]])
            names.extend(chunk.index)
    obs = pd.concat(metadata) if notes else pd.DataFrame(index=pd.Index(names))
    obs.columns = pd.Index([columns[i] for i in notes])
    obs.index = pd.Index(_row_names(names, corner, obs), name=corner or None)
    if notes:
        warnings.warn(
            f"{path.name}: columns without counts are treated as metadata: "
            f"{', '.join(obs.columns[:5])}{', …' if len(obs.columns) > 5 else ''}",
            stacklevel=3,
        )
    var = pd.DataFrame(index=pd.Index([columns[i] for i in counted]))
    return AnnData(sp.vstack(parts, format="csr"), obs=obs, var=var)


def _separator(path: Path, options: dict[str, Any]) -> str:
    """Return the separator for the ending of the file, or another one that its header contains."""
    import pandas as pd

    usual = SEPARATORS[ending(path)]
    found = {}
    for separator in (usual, *_OTHER_SEPARATORS):
        found[separator] = pd.read_csv(path, nrows=1, dtype=str, sep=separator, **options).shape[1]
        if found[separator] > 1:
            return separator
    return usual


def _is_text(column: pd.Series) -> bool:
    """Return whether every value of a column is a word; a few rows are not enough evidence."""
    import pandas as pd

    if column.dtype.kind in "biuf" or len(column) < _FEWEST_WORDS:
        return False
    no_numbers = pd.to_numeric(column, errors="coerce").isna()
    return bool((no_numbers & (column.astype(str).str.strip() != "")).all())


def _row_names(names: list[str], header: str, metadata: pd.DataFrame) -> list[str]:
    """Return the names of the rows; reject a first column that does not hold names."""
    repeat = len(set(names)) < len(names)
    if repeat and genes.metadata_columns([header], rows_are_genes=False):
        # CosMx has the field of view, and the number of the cell in it.
        for column in metadata:
            joined = [f"{a}_{b}" for a, b in zip(names, metadata[column], strict=True)]
            if genes.names_cell(str(column)) and len(set(joined)) == len(joined):
                metadata.insert(0, header, names)
                return joined
    if all(_is_number(name) for name in names) and (repeat or genes.n_gene_like([header])):
        raise InputError(
            f"its first column, {header!r}, holds numbers{' that repeat' if repeat else ''}; the "
            "first column must hold cell names: add such a column"
        )
    return names


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _names_of_columns(header: list[str], n_columns: int) -> list[str]:
    if not n_columns:
        raise InputError("has one column; separate by commas in .csv and by tabs in .tsv")
    # R writes no name above the column of row names, other programs do.
    if len(header) not in (n_columns, n_columns + 1):
        raise InputError(
            f"its header has {len(header)} names, but each row has one cell name and {n_columns} "
            "values; make them match"
        )
    return header[-n_columns:]


def _require_numbers(chunk: pd.DataFrame, names: list[str]) -> None:
    import pandas as pd

    for place, (column, dtype) in enumerate(chunk.dtypes.items()):
        if dtype.kind in "biuf":
            continue
        numbers = pd.to_numeric(chunk[column], errors="coerce")
        # Values that pandas can read one by one, but not as a column, have too many digits for it.
        bad = (numbers.isna() if numbers.isna().any() else numbers == numbers.max()).to_numpy()
        value = chunk[column][bad].iloc[0]
        raise InputError(
            f"holds {value!r} for cell {chunk.index[bad][0]}, gene {names[place]}, which is not a "
            f"number that can be a count; {_expected(value)}"
        )


def _expected(value: object) -> str:
    """Return how to write a table that holds this value instead of a count."""
    if re.fullmatch(r"-?\d+,\d+", str(value)):
        return "this is a decimal comma, but counts are whole numbers: give the raw counts"
    return "expected are one header line of gene names, one column of cell names, and counts"
