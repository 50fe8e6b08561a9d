"""Decide whether rows are cells or genes, which features are kept, and how genes are named.

Files differ in these respects. If a file has one clear meaning, it is converted with a warning; if
not, it is rejected, and the message names the setting that decides.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from topicell import genes
from topicell.config import Orientation, ReadConfig
from topicell.errors import InputError, NotInPartsError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_TYPE_COLUMNS = ("feature_types", "feature_type", "modality")
_GENE_EXPRESSION = ("gene expression", "gene", "genes", "gex", "rna", "mrna")
_OTHER_TYPES = (
    "antibody capture, antigen capture, crispr guide capture, multiplexing capture, custom, peaks, "
    "adt, hto, atac, protein, proteins, prot, antibody, antibodies, hashtag, guide, guides, vdj"
).split(", ")
_SYMBOL_COLUMNS = (
    "feature_name gene_symbols gene_symbol genesymbol gene_names gene_name genename symbol symbols "
    "hgnc_symbol mgi_symbol external_gene_name gene_short_name gene_common_name features feature "
    "name names gene genes original_gene_symbols"
).split()
"""Columns of var that hold symbols, in lower case: the first existing one is used."""
_ID_COLUMNS = (
    "gene_ids gene_id ensembl_id ensembl_ids ensembl ensembl_gene_id feature_id ensemblid geneid"
).split()
POSITION = "topicell_position"
"""Column of var with the column of a gene in a file whose counts are not in memory."""
IDS_COLUMN = "gene_ids"
"""Column of var that keeps identifiers, by which genes of other files are matched."""
_BLANK = ("", "nan", "none", "<na>", "na")


def oriented(adata: AnnData, config: ReadConfig, prefix: str = "") -> AnnData:
    """Return the matrix with cells as rows, transposed if its rows are genes.

    Parameters
    ----------
    adata
        A matrix of either orientation; the name of its obs index is the header of its first column,
        if there is one.
    config
        ``orientation``; with ``auto``, the names of rows and columns decide.
    prefix
        Prefix of the names of settings in messages.

    Raises
    ------
    InputError
        Names suggest that rows are genes, but do not prove it.

    Warns
    -----
    UserWarning
        The matrix was transposed because of its names.
    """
    if config.orientation is Orientation.cells_rows:
        return adata
    if config.orientation is Orientation.genes_rows:
        return _transposed(adata)
    found, certain = _genes_in_rows(
        list(map(str, adata.obs_names)),
        list(map(str, adata.var_names)),
        str(adata.obs_names.name or ""),
    )
    if not found:
        return adata
    what = f"genes seem to be in rows and cells in columns ({found})"
    if not certain:
        raise InputError(
            f"{what}; {prefix}orientation=genes_rows transposes the table, "
            f"{prefix}orientation=cells_rows does not"
        )
    warnings.warn(
        f"{what}: the matrix is transposed; {prefix}orientation=cells_rows prevents this",
        stacklevel=3,
    )
    return _transposed(adata)


def _genes_in_rows(rows: Sequence[str], columns: Sequence[str], header: str) -> tuple[str, bool]:
    """Return the evidence for genes in rows (empty if there is none), and whether it is certain."""
    n_rows, n_columns = genes.n_gene_like(rows), genes.n_gene_like(columns)
    cells_in_rows = genes.n_cell_like(rows) >= 0.5 * len(rows)
    cells_in_columns = genes.n_cell_like(columns) >= 0.5 * len(columns)
    for_it, against = [], 0
    if n_rows >= 2 and n_rows > 3 * n_columns:
        first = next(name for name in rows if genes.n_gene_like([name]))
        for_it.append(f"{n_rows} rows are named like genes, such as {first!r}")
    elif n_columns and n_columns >= n_rows:
        against += 1
    if cells_in_columns and not cells_in_rows:
        for_it.append(f"columns are named like cells, such as {columns[0]!r}")
    elif cells_in_rows and not cells_in_columns:
        against += 1
    if genes.names_gene(header):
        for_it.append(f"the header of the first column is {header!r}")
    elif genes.names_cell(header):
        against += 1
    if len(for_it) <= against:
        return "", False
    certain = not against and (len(for_it) > 1 or genes.share_of_ids(rows) >= 0.5)
    return "; ".join(for_it), certain


def _transposed(adata: AnnData) -> AnnData:
    if POSITION in adata.var:
        raise NotInPartsError(
            "genes are in rows and cells in columns, which cannot be transposed in a file that is "
            "read in parts; write it again with cells in rows"
        )
    turned = adata.T.copy()
    turned.X = turned.layers["counts"] = turned.layers["counts"].tocsr()
    return turned


def with_features(adata: AnnData, config: ReadConfig, prefix: str = "") -> AnnData:
    """Return the cells with the features that are genes, named as the configuration says.

    Identifiers that are replaced by symbols are kept in ``var["gene_ids"]``.

    Parameters
    ----------
    adata
        Cells × features.
    config
        ``feature_type`` and ``gene_names``.
    prefix
        Prefix of the names of settings in messages.

    Raises
    ------
    InputError
        There is no such type of feature, or no such column.

    Warns
    -----
    UserWarning
        Features were left out, or names come from another column than the index.
    """
    return _without_others(_named(_of_type(adata, config, prefix), config, prefix))


def _of_type(adata: AnnData, config: ReadConfig, prefix: str) -> AnnData:
    setting = f"{prefix}feature_type"
    asked = None if config.feature_type is None else config.feature_type.strip().lower()
    if asked == "all":
        return adata
    column = next((c for c in _TYPE_COLUMNS if c in adata.var and _are_types(adata.var[c])), None)
    if column is None:
        if asked is None or asked in _GENE_EXPRESSION:
            return adata
        raise InputError(
            f"{setting} = {config.feature_type!r}: var has no column of feature types "
            f"({_TYPE_COLUMNS[0]}); leave this setting out"
        )
    types = adata.var[column].astype(str).str.strip()
    counted = Counter(types)
    here = ", ".join(f"{n} {name}" for name, n in counted.most_common())
    wanted = _GENE_EXPRESSION if asked is None or asked in _GENE_EXPRESSION else (asked,)
    kept = types.str.lower().isin(wanted).to_numpy()
    if not kept.any():
        if asked is None and len(counted) == 1:
            warnings.warn(
                f"all {adata.n_vars} features are of type {next(iter(counted))!r}, not gene "
                "expression; they are modelled like genes",
                stacklevel=4,
            )
            return adata
        raise InputError(
            f"{setting} = {config.feature_type or 'Gene Expression'!r}: no feature is of this "
            f"type; found: {here}; name one of them, or write {setting}=all"
        )
    if kept.all():
        return adata
    others = ", ".join(
        f"{n} {name}" for name, n in counted.most_common() if name.lower() not in wanted
    )
    warnings.warn(
        f"{int((~kept).sum())} of {adata.n_vars} features are left out: {others}; "
        f"{setting}=TYPE keeps another type, {setting}=all keeps all",
        stacklevel=4,
    )
    return adata[:, kept].copy()


def _are_types(column: pd.Series) -> bool:
    """Return whether a column holds types of features; some such columns hold biotypes."""
    values = {str(value).strip().lower() for value in column.unique()}
    return not values.isdisjoint((*_GENE_EXPRESSION, *_OTHER_TYPES))


def _named(adata: AnnData, config: ReadConfig, prefix: str) -> AnnData:
    setting, var = f"{prefix}gene_names", adata.var
    index = list(map(str, adata.var_names))
    have_ids = genes.share_of_ids(index) >= 0.5
    if config.gene_names == "index":
        return adata
    if config.gene_names is not None:
        if config.gene_names not in var:
            here = ", ".join(map(str, var.columns))
            raise InputError(
                f"{setting} = {config.gene_names!r}: var has no such column; "
                + (f"found: {here}" if here else "it has no columns at all")
            )
        return _renamed(adata, list(map(str, var[config.gene_names])), index, have_ids)
    if not have_ids:
        if IDS_COLUMN not in var:
            lower = {str(column).lower(): column for column in var.columns}
            for column in (lower[c] for c in _ID_COLUMNS if c in lower):
                if genes.share_of_ids(list(map(str, var[column]))) >= 0.5:
                    var[IDS_COLUMN] = list(map(str, var[column]))
                    break
        parts = genes.divided(index)
        if parts is None:
            return adata
        warnings.warn(
            f"gene names such as {index[0]!r} are split: the gene gets the symbol as its name, "
            f"and var[{IDS_COLUMN!r}] keeps the identifier; {setting}=index keeps the names as "
            "they are",
            stacklevel=4,
        )
        return _renamed(adata, parts[0], parts[1], have_ids=True)
    lower = {str(column).lower(): column for column in var.columns}
    for column in (lower[c] for c in _SYMBOL_COLUMNS if c in lower):
        symbols = list(map(str, var[column]))
        named = [s for s in symbols if s.strip().lower() not in _BLANK]
        if len(named) >= 0.5 * len(symbols) and genes.share_of_ids(named) < 0.5:
            warnings.warn(
                f"genes get their names from var[{column!r}], and var[{IDS_COLUMN!r}] keeps their "
                f"ids, such as {index[0]!r}; {setting}=index keeps the ids as names",
                stacklevel=4,
            )
            return _renamed(adata, symbols, index, have_ids)
    return adata


def _renamed(adata: AnnData, names: list[str], ids: list[str], have_ids: bool) -> AnnData:
    blank = [name.strip().lower() in _BLANK for name in names]
    adata.var_names = [
        index if is_blank else name for name, index, is_blank in zip(names, ids, blank, strict=True)
    ]
    if have_ids:
        adata.var[IDS_COLUMN] = ids
    return adata


def _without_others(adata: AnnData) -> AnnData:
    """Remove summary rows of counting programs, and columns of metadata among the genes."""
    names = list(map(str, adata.var_names))
    summary = np.array([bool(genes.SUMMARY.match(name)) for name in names])
    metadata = np.zeros(len(names), dtype=bool)
    metadata[genes.metadata_columns(names, rows_are_genes=False)] = True
    if not (summary | metadata).any():
        return adata
    totals = np.asarray(adata.layers["counts"].sum(0, dtype=np.float64)).ravel()
    for mask, what in (
        (summary, "sums from a counting program (reads without a gene)"),
        (metadata, "metadata of cells, judging by their names"),
    ):
        if mask.any():
            first = ", ".join(np.array(names)[mask][:4]) + (", …" if mask.sum() > 4 else "")
            share = 100 * totals[mask].sum() / max(totals.sum(), 1)
            # The counts of a large file are not known yet.
            share_text = f" ({share:.0f} % of all counts)" if totals.any() else ""
            warnings.warn(
                f"{int(mask.sum())} of {len(names)} genes are {what}, and are left out: {first}"
                f"{share_text}",
                stacklevel=4,
            )
    return adata[:, ~(summary | metadata)].copy()
