"""Reader of tables of counts in text files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scipy.sparse as sp

from topicell.config import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_GENES = re.compile(r"(?i)mt-|rp[sl]\d")
_CSV_ROWS = 1000
"""Rows of a text file that are dense at a time."""


def read_text(path: Path) -> AnnData:
    """Return the counts of a table with a header and a first column of names."""
    import pandas as pd
    from anndata import AnnData

    separator = SEPARATORS[Path(path.name.removesuffix(".gz")).suffix.lower()]
    # Names are read as they stand: a gene called NA or 1 is no missing value and no number.
    options: dict[str, Any] = {
        "sep": separator,
        "header": None,
        "na_filter": False,
        "encoding": "utf-8-sig",
    }
    header = pd.read_csv(path, nrows=1, dtype=str, **options).iloc[0].tolist()
    cells: list[str] = []
    parts: list[sp.csr_matrix] = []
    chunks = pd.read_csv(
        path, skiprows=1, index_col=0, dtype={0: str}, chunksize=_CSV_ROWS, **options
    )
    with chunks:
        for chunk in chunks:
            if not cells:
                genes = _names_of_columns(header, chunk.shape[1])
            _require_numbers(chunk, genes)
            parts.append(sp.csr_matrix(chunk.to_numpy()))
            cells.extend(chunk.index)
    if not parts:
        raise InputError("has a header and no cells")
    _require_cell_names(cells, header[0])
    return AnnData(
        sp.vstack(parts, format="csr"), obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=genes)
    )


def _require_cell_names(cells: list[str], first_column: str) -> None:
    """Refuse a first column of counts, and rows that are genes."""
    if len(set(cells)) < len(cells) and all(_is_number(name) for name in cells):
        raise InputError(
            f"its first column, {first_column!r}, holds numbers that repeat; the first column is "
            "for cell names: add one"
        )
    n_genes = sum(bool(_GENES.match(name)) for name in cells)
    if n_genes > 0.02 * len(cells):
        raise InputError(
            f"{n_genes} rows are named like genes (MT-…, RPS…, RPL…): cells are rows here; "
            "transpose the table"
        )


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def _names_of_columns(header: list[str], n_genes: int) -> list[str]:
    if not n_genes:
        raise InputError("has one column; separate by commas in .csv and by tabs in .tsv")
    # R writes no name above the column of row names, other programs do.
    if len(header) not in (n_genes, n_genes + 1):
        raise InputError(
            f"its header has {len(header)} names, and its rows one cell name and {n_genes} values"
        )
    return header[-n_genes:]


def _require_numbers(chunk: pd.DataFrame, genes: list[str]) -> None:
    for column in chunk.columns:
        if chunk[column].dtype.kind in "biuf":
            continue
        import pandas as pd

        numbers = pd.to_numeric(chunk[column], errors="coerce")
        # What pandas can read one by one, and not as a column, has too many digits for it.
        bad = (numbers.isna() if numbers.isna().any() else numbers == numbers.max()).to_numpy()
        raise InputError(
            f"holds {chunk[column][bad].iloc[0]!r} for cell {chunk.index[bad][0]}, gene "
            f"{genes[chunk.columns.get_loc(column)]}, which is not a number, or none that a count "
            "can be; one header line of gene names, one column of cell names and counts are "
            "expected"
        )
