"""Samples in several files: which files they are, and their cells with the same genes.

`samples_of` reads the list or the table of a configuration; `joined` puts the files one below the
other. Counts that stay in their files are not read.

Shape suffixes: G genes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from topicell import genes
from topicell.config import DataConfig, Join
from topicell.counts import gene_places, ids_of
from topicell.data import stored
from topicell.data.features import IDS_COLUMN, POSITION
from topicell.data.formats.damage import named_errors
from topicell.data.preprocessing import OWN_COLUMNS
from topicell.data.stored import ROUNDED, JoinedMatrix, StoredCounts
from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

SAMPLE = "sample"
"""Column of the table with the names of the samples, and of obs if no other is set."""
PATH = "path"
"""Column of the table with the files."""
MISSING = ("", "NA", "NaN", "nan", "<NA>")
"""Texts in a table that stand for a missing value."""
NUMBER = r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?"
"""Regular expression of a number; ``01`` is a name."""
MANY = 10
"""Largest number of files or columns in a message."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The files of a study, in the order of their cells.

    Attributes
    ----------
    paths, names
        File and name of each sample.
    places
        Where the user named each file, for messages: ``"samples.csv, line 2: "`` or ``""``.
    columns
        Further columns of the table, one row for each sample: numbers, or categories.
    """

    paths: list[Path]
    names: list[str]
    places: list[str]
    columns: pd.DataFrame

    def key(self, sample_key: str | None) -> str:
        """Return the column of obs that receives `names`: `sample_key`, unless the table has it."""
        return SAMPLE if sample_key is None or sample_key in self.columns else sample_key


def samples_of(config: DataConfig) -> Samples:
    """Return the files that a configuration names, in a list or a table; they are not opened.

    In a list, the name of a sample is that of its file or folder. If several have the same name, as
    the files of Cell Ranger have, it is that of the nearest folder above them that differs.

    Raises
    ------
    InputError
        The table has no such columns, a row lacks a value, or names or files are repeated.
    """
    import pandas as pd

    if config.samples is not None:
        path = Path(config.samples).expanduser()
        with named_errors(path, "a table of samples"):
            found = _from_table(path)
    else:
        paths = [Path(path).expanduser() for path in config.path]
        names = _names_of(paths)
        found = Samples(paths, names, [""] * len(paths), pd.DataFrame(index=range(len(paths))))
    seen: dict[Path, str] = {}
    for path, place in zip(found.paths, found.places, strict=True):
        if (before := seen.get(path.resolve())) is not None:
            also = f", as in {before.removesuffix(': ')}" if before else ""
            raise InputError(
                f"{place}{path} is named twice{also}; its cells would be counted twice"
            )
        seen[path.resolve()] = place
    return found


def _names_of(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its own, or that of the nearest folder that differs."""
    own = [
        path.name
        if path.is_dir() and path.suffix != ".zarr"
        else Path(path.name.removesuffix(".gz")).stem
        for path in paths
    ]
    folders = zip(*(path.absolute().parts[-2::-1] for path in paths), strict=False)
    for names in (own, *map(list, folders)):
        if len(set(names)) == len(paths):
            return names
    name = next(name for name in own if own.count(name) > 1)
    raise InputError(
        f"data.path: {own.count(name)} files are called {name!r}, and the samples get their names "
        "from the files; name them in a table with the columns path and sample: data.samples=FILE"
    )


def _from_table(path: Path) -> Samples:
    """Return the samples of a csv or tsv file."""
    import pandas as pd

    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    table = pd.read_csv(
        path,
        sep=max(",\t;", key=header.count),
        header=None,
        dtype=str,
        na_filter=False,
        skip_blank_lines=False,
        encoding="utf-8-sig",
    )
    table = table.fillna("").apply(lambda column: column.str.strip())
    columns, table = table.iloc[0].tolist(), table.iloc[1:]
    named = [bool(name) or (table[i] != "").any() for i, name in enumerate(columns)]
    table = table.loc[(table != "").any(axis=1), named]
    table.columns = pd.Index(
        [name for name, is_named in zip(columns, named, strict=True) if is_named]
    )
    _require_columns(table.columns)
    if not len(table):
        raise InputError("has no rows; write one row for each file")
    lines = [f"line {row + 1}" for row in table.index]
    for column in (PATH, SAMPLE):
        for line, value in zip(lines, table[column], strict=True):
            if not value or "\0" in value:
                raise InputError(f"{line} has no {column}" if not value else f"{line} is damaged")
    names = table[SAMPLE].tolist()
    for name, line in zip(names, lines, strict=True):
        first = lines[names.index(name)]
        if line != first:
            raise InputError(
                f"{first} and {line} have the same sample, {name!r}; give each file its own name "
                "(a further column can say what they have in common: data.sample_key=COLUMN)"
            )
    others = {name: _typed(table[name]) for name in table.columns if name not in (PATH, SAMPLE)}
    return Samples(
        paths=[path.parent / Path(file).expanduser() for file in table[PATH]],
        names=names,
        places=[f"{path}, {line}: " for line in lines],
        columns=pd.DataFrame(others, index=table.index).reset_index(drop=True),
    )


def _require_columns(names: pd.Index) -> None:
    """Reject a table without the two columns, or with names that obs cannot have."""
    here = ", ".join(list(filter(None, names))[:MANY]) + (", …" if len(names) > MANY else "")
    missing = [name for name in (PATH, SAMPLE) if name not in names]
    if missing:
        raise InputError(
            f"has no column {' and no column '.join(missing)}; columns: {here}. The first line "
            "needs the names path and sample"
        )
    if "" in names:
        raise InputError(f"has a column without a name; columns: {here}; name it")
    if names.has_duplicates:
        raise InputError(f"has several columns {names[names.duplicated()][0]!r}; rename them")
    for name in names:
        if name in OWN_COLUMNS or re.fullmatch(r"lda_topic_\d+", name):
            raise InputError(f"has a column {name!r}, which a run writes itself; rename it")


def _typed(column: pd.Series) -> pd.Series:
    """Return a column of text as numbers if all values are numbers, else as categories."""
    import pandas as pd

    text = column.where(~column.isin(MISSING))
    present = text.dropna()
    if len(present) and present.str.fullmatch(NUMBER).all():
        return pd.to_numeric(text)
    return text.astype("category")


def joined(
    samples: Samples, found: Sequence[AnnData | StoredCounts], config: DataConfig
) -> StoredCounts:
    """Return the cells of all files, one below the other, with the same genes.

    obs has the columns of all files, var those that are the same in all files; other contents of
    the files are left out.

    Parameters
    ----------
    samples
        Their names become part of the names of cells, and a column of obs.
    found
        The cells of each file, with their counts or without.
    config
        ``join``, ``sample_key``, and ``label_key`` for a warning.

    Raises
    ------
    InputError
        A file has no gene in common with the others, or no gene is left.

    Warns
    -----
    UserWarning
        Genes of a file are left out or filled with zeros, or a column of obs is renamed.
    """
    import anndata

    outlines = [part.outline if isinstance(part, StoredCounts) else part for part in found]
    for path, outline in zip(samples.paths, outlines, strict=True):
        if not outline.n_obs:
            raise InputError(f"{path}: has no cells; leave it out")
    obs = _obs_of(samples, outlines, config)
    var, places = _genes_of(samples.paths, outlines, config.join)
    var[POSITION] = np.arange(len(var))
    matrix = JoinedMatrix(
        path=config.title,
        parts=tuple(
            part.matrix if isinstance(part, StoredCounts) else part.layers["counts"]
            for part in found
        ),
        places=tuple(places),
        columns=var[POSITION].to_numpy(),
        rows=range(len(obs)),
        n_rows=stored.N_ROWS,
    )
    empty = sp.csr_matrix((len(obs), len(var)), dtype=np.float32)
    outline = anndata.AnnData(empty, obs=obs, var=var, layers={"counts": empty})
    n_rounded = sum(int(part.uns.get(ROUNDED, 0)) for part in outlines)
    if config.round and n_rounded:
        outline.uns[ROUNDED] = n_rounded
    return StoredCounts(outline, matrix)


def _obs_of(samples: Samples, outlines: Sequence[AnnData], config: DataConfig) -> pd.DataFrame:
    """Return the tables of the cells, one below the other, after the columns of the samples."""
    import anndata
    import pandas as pd

    code_N = np.repeat(np.arange(len(outlines)), [outline.n_obs for outline in outlines])
    own = samples.columns.iloc[code_N]
    key = samples.key(config.sample_key)
    names = pd.Categorical.from_codes(code_N, categories=pd.Index(samples.names))
    own.insert(0, key, pd.Series(names, index=own.index))
    tables = []
    renamed: dict[tuple[str, str], list[str]] = {}
    for name, path, outline in zip(samples.names, samples.paths, outlines, strict=True):
        table = outline.obs.set_axis(outline.obs_names.astype(str) + f"-{name}")
        for column in own.columns.intersection(table.columns):
            new = f"{column}_input"
            while new in table or new in own:
                new += "_"
            table = table.rename(columns={column: new})
            renamed.setdefault((column, new), []).append(str(path))
        tables.append(anndata.AnnData(obs=table))
    for (column, new), paths in renamed.items():
        _warn(
            f"obs[{column!r}] describes samples; the column of this name in "
            f"{_listed(paths)} is kept as {new!r}"
        )
    lacking = [
        str(path)
        for path, outline in zip(samples.paths, outlines, strict=True)
        if config.label_key is not None and config.label_key not in outline.obs
    ]
    if config.label_key not in own and 0 < len(lacking) < len(outlines):
        _warn(
            f"data.label_key = {config.label_key!r}: {_listed(lacking)} have no such column, so "
            "their cells have no label"
        )
    obs = anndata.concat(tables, join="outer").obs
    return pd.concat([own.set_axis(obs.index), pd.DataFrame(obs)], axis=1)


def _genes_of(
    paths: Sequence[Path], outlines: Sequence[AnnData], join: Join
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return var of the joined genes, and for each file the joined gene of each of its genes.

    Genes are compared with those of one file, to which the others add theirs: the first that has
    both names and identifiers, so that the result has the names whatever the order of the files.
    """
    import pandas as pd

    every = [np.asarray(outline.var_names, dtype=object) for outline in outlines]
    every_id = [ids_of(outline.var) for outline in outlines]
    are_ids = [genes.share_of_ids(names) >= 0.5 for names in every]
    # Names with identifiers, then names, then identifiers.
    order = sorted(range(len(every)), key=lambda i: (are_ids[i], every_id[i] is None))
    names, ids = every[order[0]], np.full(len(every[order[0]]), "", dtype=object)
    places: dict[int, np.ndarray] = {}
    for i in order:
        here, ids_here = every[i], every_id[i]
        if np.array_equal(here, names[: len(here)]):
            place_G = np.arange(len(here))
        else:
            known = ids if (ids != "").any() else None
            found = gene_places(names, known, here, ids_here)
            if not (found >= 0).any():
                raise InputError(_why_disjoint(paths[i], here, paths[order[0]], names))
            place_G = np.full(len(here), -1)
            place_G[found[found >= 0]] = np.flatnonzero(found >= 0)
            new = np.flatnonzero(place_G < 0)
            place_G[new] = len(names) + np.arange(len(new))
            names = np.concatenate([names, here[new]])
            ids = np.concatenate([ids, np.full(len(new), "", dtype=object)])
        if ids_here is not None:
            ids[place_G] = np.where(ids[place_G] == "", ids_here, ids[place_G])
        places[i] = place_G
    n_files_G = np.zeros(len(names), dtype=int)
    for place_G in places.values():
        n_files_G[place_G] += 1
    kept = np.flatnonzero(n_files_G == len(paths)) if join is Join.inner else np.arange(len(names))
    if not len(kept):
        raise InputError(
            f"data.join = 'inner': no gene is in all {len(paths)} files "
            f"({_smallest(paths, every)}); leave out the file that differs, or use data.join=outer"
        )
    _warn_of_genes(paths, every, len(kept), join)
    to_kept = np.full(len(names), -1)
    to_kept[kept] = np.arange(len(kept))
    places = {i: to_kept[place_G] for i, place_G in places.items()}
    var = pd.DataFrame(index=pd.Index(names[kept]))
    if any(of_file is not None for of_file in every_id):
        var[IDS_COLUMN] = ids[kept]
    for column in outlines[order[0]].var.columns:
        if column not in (IDS_COLUMN, POSITION):
            agreed = _agreed(column, outlines, places, len(kept))
            if agreed is not None:
                var[column] = agreed.array
    return var, [places[i] for i in range(len(paths))]


def _agreed(
    column: str, outlines: Sequence[AnnData], places: dict[int, np.ndarray], n_genes: int
) -> pd.Series | None:
    """Return a column of var that all files have, with the same values for the same genes."""
    import pandas as pd

    values_G = np.empty(n_genes, dtype=object)
    known_G = np.zeros(n_genes, dtype=bool)
    kinds = []
    for i, place_G in places.items():
        var = outlines[i].var
        if column not in var:
            return None
        kinds.append(var[column].dtype)
        kept = place_G >= 0
        there = place_G[kept]
        here_G = np.asarray(var[column], dtype=object)[kept]
        before = known_G[there]
        if not pd.Series(here_G[before]).equals(pd.Series(values_G[there[before]])):
            return None
        values_G[there], known_G[there] = here_G, True
    same = pd.Series(values_G).infer_objects()
    if all(kind == kinds[0] for kind in kinds):
        same = same.astype(kinds[0])
    return same


def _why_disjoint(path: Path, here: np.ndarray, other: Path, there: np.ndarray) -> str:
    shown = [", ".join(map(str, names[:3])) for names in (here, there)]
    return (
        f"{path}: none of its {len(here)} genes ({shown[0]}, …) is among those of {other} "
        f"({shown[1]}, …); all files need names or ids of the same genes: data.gene_names=COLUMN "
        "names a column of var that has them"
    )


def _smallest(paths: Sequence[Path], every: Sequence[np.ndarray]) -> str:
    """Say which file has the fewest genes."""
    i = int(np.argmin([len(names) for names in every]))
    return f"{paths[i]} has the fewest, {len(every[i]):,}"


def _warn_of_genes(
    paths: Sequence[Path], every: Sequence[np.ndarray], n_genes: int, join: Join
) -> None:
    """Say how many genes the files lose, or get without counts."""
    changed = {str(path): abs(len(of) - n_genes) for path, of in zip(paths, every, strict=True)}
    largest = sorted((path for path in changed if changed[path]), key=lambda path: -changed[path])
    if not largest:
        return
    listed = _listed([f"{path} ({changed[path]:,})" for path in largest])
    if join is Join.outer:
        _warn(
            f"data.join = 'outer': the {n_genes:,} genes of any file are kept; genes that a file "
            f"does not have have no counts in its cells: {listed}"
        )
        return
    _warn(
        f"data.join = 'inner': {n_genes:,} genes are in all files; the others are left out of "
        f"{listed}; data.join=outer keeps them"
    )
    few = [
        f"{path} ({n_genes:,} of {len(of):,})"
        for path, of in zip(paths, every, strict=True)
        if n_genes < len(of) / 2
    ]
    if few:
        _warn(
            f"fewer than half of the genes are left in {_listed(few)}: {_smallest(paths, every)}; "
            "check that the files have the same kind of gene names, or use data.join=outer"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MANY} other files" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more


def _warn(message: str) -> None:
    import warnings

    warnings.warn(message, stacklevel=4)
