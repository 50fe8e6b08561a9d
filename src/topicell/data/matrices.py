"""Read topics of any model from two files and check that they match the data.

`read_topics` reads the topic proportions of cells (theta) and the gene proportions of topics
(beta), transposes and orders them like the cells and genes of the data, and accepts only
proportions.

Shapes: N cells, K topics, G genes.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from topicell.errors import InputError

_FORMS = (
    "csv or tsv (.txt and .gz too; names in the first column and the header), npy, npz (numpy's or "
    "scipy.sparse's), h5ad (FILE.h5ad:obsm/NAME, :varm/NAME or :uns/NAME)"
)
_FIELDS = {"theta": "obsm/X_lda", "beta": "varm/lda_topics"}
"""Fields of topicell's own h5ad files."""
_TOLERANCE = 1e-3
"""Allowed difference of a sum of proportions from 1, for rounded text and low precision."""
_ENSEMBL = re.compile(r"ENS[A-Z]*\d{6,}")


@dataclass(frozen=True, slots=True)
class Topics:
    """A pair of matrices over the cells and genes that they share with the data.

    Attributes
    ----------
    theta_NK
        Topic proportions of each cell; rows sum to 1.
    beta_KG
        Gene proportions of each topic; rows sum to 1.
    cells, genes
        Increasing indices of these cells and genes in the data, shapes (N,) and (G,).
    names
        Names of the topics, shape (K,).
    """

    theta_NK: np.ndarray
    beta_KG: np.ndarray
    cells: np.ndarray
    genes: np.ndarray
    names: list[str]


def read_topics(
    theta: str,
    beta: str,
    cell_names: Iterable[str],
    gene_names: Iterable[str],
    *,
    gene_ids: Iterable[str] | None = None,
    normalize: bool = False,
) -> Topics:
    r"""Read a pair of matrices, in either orientation, and put them in the order of the data.

    Names decide which side has the cells or genes; without names, the lengths decide. Cells and
    genes that the files do not have are left out; a matrix without names must have all of them, in
    the order of the data. Topics are matched by name if both files have the same names, else by
    order.

    Parameters
    ----------
    theta, beta
        Files: csv, tsv or txt (also .gz), with names in the first column and the header; npy; npz
        of one array or with arrays ``theta`` and ``beta``, and names in ``cells``, ``genes`` and
        ``topics``; npz of `scipy.sparse.save_npz`; h5ad with a field, as ``FILE.h5ad:obsm/NAME``,
        ``varm/NAME`` or ``uns/NAME``; without a field, ``obsm/X_lda`` or ``varm/lda_topics``.
    cell_names, gene_names
        Those of the data.
    gene_ids
        Identifiers of the same genes; beta may have these instead of the names.
    normalize
        Rescale each cell of theta and each topic of beta to sum to 1. If neither sums to 1, they
        are factors, as from NMF: the sum of a topic in beta is first multiplied into its column of
        theta, so that the product keeps its proportions.

    Raises
    ------
    InputError
        A file cannot be read, does not match the data or the other file, or holds other values than
        proportions.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     theta, beta = Path(folder, "theta.csv"), Path(folder, "beta.csv")
    ...     _ = theta.write_text("cell,s,t\nc2,0.5,0.5\nc1,0.25,0.75\n")
    ...     _ = beta.write_text("topic,B,A\nt,1,0\ns,0.5,0.5\n")
    ...     topics = read_topics(str(theta), str(beta), ["c0", "c1", "c2"], ["A", "B"])
    >>> topics.names, topics.cells.tolist(), topics.genes.tolist()
    (['s', 't'], [1, 2], [0, 1])
    >>> topics.theta_NK.tolist(), topics.beta_KG.tolist()
    ([[0.25, 0.75], [0.5, 0.5]], [[0.5, 0.5], [0.0, 1.0]])
    """
    all_cells, all_genes = list(map(str, cell_names)), list(map(str, gene_names))
    about_theta, about_beta = f"theta={theta}", f"beta={beta}"
    with _about(about_theta):
        theta_NK, cells, theta_topics = _aligned(_read(theta, "theta"), all_cells, "cell")
    with _about(about_beta):
        matrix = _read(beta, "beta")
        given = {name for side in matrix.names for name in side or ()}
        ids = list(map(str, gene_ids or ()))
        if len(given.intersection(ids)) > len(given.intersection(all_genes)):
            all_genes = ids
        beta_GK, genes, beta_topics = _aligned(matrix, all_genes, "gene")

    n_topics = theta_NK.shape[1]
    if n_topics != beta_GK.shape[1] or n_topics < 2:
        raise InputError(
            f"{about_theta} has {len(cells)} cells × {n_topics} topics and {about_beta} "
            f"{beta_GK.shape[1]} topics × {len(genes)} genes; both must have the same number of "
            "topics, at least 2: give two files of the same model"
        )
    names = theta_topics or beta_topics or [f"topic_{k}" for k in range(n_topics)]
    if beta_topics is not None and set(beta_topics) == set(names):
        beta_GK = beta_GK[:, [beta_topics.index(name) for name in names]]

    with _about(about_beta):
        used = [all_genes[i] for i in genes]
        beta_KG, mass_K = _proportions(beta_GK.T, "topic", names, used, normalize)
    with _about(about_theta):
        used = [all_cells[i] for i in cells]
        proportions, sums_N = _proportions(theta_NK, "cell", used, names, normalize)
        if (np.abs(sums_N - 1) > _TOLERANCE).any():
            # Factors, as from NMF: the scale of a topic is moved from its genes to its cells.
            proportions, _ = _proportions(proportions * mass_K, "cell", used, names, normalize)
    return Topics(proportions, beta_KG, cells, genes, names)


@contextmanager
def _about(what: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix as it is in its file: any orientation, any type of numbers, dense or sparse.

    `names` are those of rows and of columns; `axis` is the side of the cells or genes, if the file
    says it.
    """

    values: Any
    names: tuple[list[str] | None, list[str] | None] = (None, None)
    axis: int | None = None

    def __post_init__(self) -> None:
        shape, dtype = self.values.shape, self.values.dtype
        if len(shape) != 2 or 0 in shape or dtype.kind not in "biuf":
            raise InputError(
                f"is an array of shape {shape} and type {dtype}, not a matrix of numbers"
            )
        for side, names, n_values in zip(("row", "column"), self.names, shape, strict=True):
            if names is not None and len(names) != n_values:
                raise InputError(f"has {n_values} {side}s and {len(names)} names for them")
            if repeated := _repeated(names or []):
                raise InputError(
                    f"more than one {side} is named {_first(repeated)}; give each its own name"
                )

    def __str__(self) -> str:
        return " × ".join(map(str, self.values.shape))


def _read(source: str, role: str) -> _Matrix:
    split = re.fullmatch(r"(?is)(.+\.h5ad):(.*)", source)
    name, field = split.groups() if split else (source, _FIELDS[role])
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"there is no such file (looked from {Path.cwd()}); check the path")
    ending = re.search(r"(?i)\.((csv|tsv|tab|txt)(\.gz)?|npy|npz|h5ad)$", path.name)
    if ending is None:
        raise InputError(f"is not in a supported format; supported: {_FORMS}")
    form = ending[1].lower()
    try:
        if form == "h5ad":
            return _from_h5ad(path, field)
        if form in ("npy", "npz"):
            return _from_numpy(path, role)
        return _from_text(path, _separator(path, form))
    except (InputError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # a damaged file can cause any error of h5py, pandas, numpy or zipfile
        what = str(error).strip().partition("\n")[0]
        fix = "the file may be damaged, or in another format than its name says: write it again"
        if "Object arrays" in what:
            fix = "save values as numbers, and names with dtype=str"
        raise InputError(
            f"cannot be read as {form} ({type(error).__name__}: {what}); {fix}"
        ) from error


def _separator(path: Path, form: str) -> str:
    """Return the separator of a text file; for .txt, the one in its first line."""
    if form.startswith("csv"):
        return ","
    if not form.startswith("txt"):
        return "\t"
    with (gzip.open if form.endswith("gz") else open)(path, "rb") as file:
        first = file.readline()
    return next((mark for mark in ("\t", ",", ";") if mark.encode() in first), r"\s+")


def _from_text(path: Path, separator: str) -> _Matrix:
    import pandas as pd

    # A gene called NA is not a missing value, and 0.1 is read exactly as written.
    options: dict[str, Any] = {"sep": separator, "header": None, "na_filter": False}
    options |= {"encoding": "utf-8-sig", "low_memory": False}
    if tuple(map(int, pd.__version__.split(".")[:2])) < (3, 1):  # later versions are always exact
        options["float_precision"] = "round_trip"
    first = pd.read_csv(path, nrows=1, dtype=str, **options).iloc[0].tolist()
    body = pd.read_csv(path, skiprows=1, dtype={0: str}, **options)
    if body.shape[1] < 2:
        raise InputError("has one column; separate by commas in .csv and by tabs in .tsv and .txt")
    if len(first) == body.shape[1] - 1:  # R writes no name above the column of row names.
        first = ["", *first]
    bare = _are_numbers([*first, *body[0]])
    n_header = int(not (bare or _are_values(first[1:])))
    n_index = int(not (bare or _are_values(body[0].tolist())))
    if not (n_header and n_index):
        types = {0: str} if n_index else None
        body = pd.read_csv(path, skiprows=n_header, dtype=types, **options)
    rows = body[0].tolist() if n_index else None
    columns = first[n_index:] if n_header else None
    values = body.iloc[:, n_index:]
    for j, (_, column) in enumerate(values.items()):
        if column.dtype.kind in "biuf":
            continue
        for i in np.flatnonzero(pd.to_numeric(column, errors="coerce").isna()):
            where = f"row {rows[i] if rows else i + 1}, column {columns[j] if columns else j + 1}"
            raise InputError(f"holds {column.iloc[i]!r} in {where}, which is not a number")
    return _Matrix(values.to_numpy(np.float64), (rows, columns))


def _are_numbers(fields: Iterable[str]) -> bool:
    try:
        return all(float(field) is not None for field in fields)
    except ValueError:
        return False


def _are_values(fields: list[str]) -> bool:
    """Return whether these are values; names can be whole numbers too if each occurs once."""
    return _are_numbers(fields) and (
        bool(_repeated(fields)) or not all(float(field).is_integer() for field in fields)
    )


def _from_numpy(path: Path, role: str) -> _Matrix:
    sides = ("cells" if role == "theta" else "genes", "topics")
    # numpy does not close a damaged file that it has opened itself.
    with path.open("rb") as stream:
        file = np.load(stream, allow_pickle=False)
        if isinstance(file, np.ndarray):
            return _Matrix(file)
        if {"format", "shape", "data"} <= set(file.files):
            return _Matrix(sp.csr_matrix(sp.load_npz(path)))
        arrays = [name for name in file.files if name not in ("cells", "genes", "topics")]
        if role not in arrays and len(arrays) != 1:
            here = ", ".join(file.files) or "nothing"
            raise InputError(
                f"has no array {role}, and does not hold exactly one array; found: {here}"
            )
        matrix = _Matrix(file[role if role in arrays else arrays[0]])
        names = [file[s].astype(str).ravel().tolist() if s in file.files else None for s in sides]
    if names == [None, None]:
        return matrix
    upright, turned = (
        all(given is None or len(given) == n for given, n in zip(names, shape, strict=True))
        for shape in (matrix.values.shape, matrix.values.shape[::-1])
    )
    if upright and turned:
        raise InputError(
            f"is {matrix}, and its names match both sides; write it as csv, with names in the "
            "first column and the header"
        )
    first, second = names[::-1] if turned else names
    return _Matrix(matrix.values, (first, second), int(turned))


def _from_h5ad(path: Path, field: str) -> _Matrix:
    import h5py
    import pandas as pd
    from anndata.io import read_elem

    rows = columns = axis = None
    with h5py.File(path, "r") as file:
        part, _, name = field.partition("/")
        parts = ("obsm", "varm", "uns")
        if part not in parts or not name or field not in file:
            here = ", ".join(f"{p}/{n}" for p in parts for n in file.get(p, ())) or "no such"
            raise InputError(
                f"has no {field}; found: {here}; name a matrix as {path.name}:obsm/NAME"
            )
        element = read_elem(file[field])
        if part != "uns":
            side = file[part.removesuffix("m")]
            rows, axis = [str(n) for n in read_elem(side[side.attrs["_index"]])], 0
    if isinstance(element, pd.DataFrame):
        rows = rows or [str(n) for n in element.index]
        columns, element = [str(n) for n in element.columns], element.to_numpy()
    elif sp.issparse(element):
        element = sp.csr_matrix(element)
    elif not isinstance(element, np.ndarray):
        raise InputError(f"holds {type(element).__name__} in {field}, not a matrix")
    return _Matrix(element, (rows, columns), axis)


def _aligned(
    matrix: _Matrix, data_names: list[str], item: str
) -> tuple[Any, np.ndarray, list[str] | None]:
    """Return cells or genes × topics in the data's order, their places in the data, topic names."""
    places = {name: place for place, name in enumerate(data_names)}
    axis = matrix.axis
    if axis is None:
        axis = _axis_of_items(matrix, places, len(data_names), item)
    values = matrix.values.T if axis else matrix.values
    names, topics = matrix.names[axis], matrix.names[1 - axis]
    if names is None:
        if values.shape[0] != len(data_names):
            raise InputError(
                f"is {matrix} without names of {item}s, and the data have {len(data_names)} "
                f"{item}s; give all {item}s in the order of the data, or add names of {item}s (a "
                "first line that holds only numbers is read as values)"
            )
        return values, np.arange(len(data_names)), topics
    _require_known(names, places, item)
    if several := sorted(set(_repeated(data_names)).intersection(names)):
        raise InputError(
            f"more than one {item} of the data is named {_first(several)}; make the data's names "
            "unique"
        )
    indices = np.array([places[name] for name in names], dtype=np.intp)
    order = np.argsort(indices)
    return values[order], indices[order], topics


def _axis_of_items(matrix: _Matrix, places: dict[str, int], n_items: int, item: str) -> int:
    """Return the side whose names are in the data; without names, the side of the same length."""
    shape, named = matrix.values.shape, [a for a in (0, 1) if matrix.names[a] is not None]
    n_known = [sum(name in places for name in names or ()) for names in matrix.names]
    rows, columns = (
        (n_known[a] > 0, 0 < n_known[a] == shape[a], shape[a] == n_items) for a in (0, 1)
    )
    if rows != columns:
        return int(columns > rows)
    either = f"is {matrix} and may be {item}s × topics or topics × {item}s"
    if rows[0]:
        raise InputError(f"{either}, because both sides have names of {item}s; rename the topics")
    if rows[2] and not named:
        raise InputError(
            f"{either}, because the data have {n_items} {item}s; add the names of the {item}s"
        )
    # Neither side matches; report the longer one, which is rarely that of the topics.
    return max(named or (0, 1), key=lambda axis: shape[axis])


def _require_known(names: list[str], places: dict[str, int], item: str) -> None:
    unknown = [name for name in names if name not in places]
    if not unknown:
        return
    if len(unknown) < len(names):
        raise InputError(
            f"{len(unknown)} of its {len(names)} {item}s are not in the data: {_first(unknown)}; "
            "remove them from the file, or give the data that the topics were fitted to"
        )
    hint = "rename one of them, or give the data that the topics were fitted to"
    if _are_numbers(names):
        hint = "the first column and the header are for names, not values"
    elif _are_ensembl(names) != _are_ensembl(places):
        hint = "one side has Ensembl ids and the other symbols: rename one of them"
    raise InputError(
        f"none of its {len(names)} {item}s is in the data: the file has {_first(names)}, the data "
        f"have {_first(places)}; {hint}"
    )


def _are_ensembl(names: Iterable[str]) -> bool:
    found = [bool(_ENSEMBL.match(name)) for name in names]
    return 2 * sum(found) > len(found)


def _proportions(
    values: Any, row: str, rows: list[str], columns: list[str], normalize: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows that sum to 1, and their previous sums."""
    # Use one memory layout, because it determines the order of summation and so the last digit.
    x = np.ascontiguousarray(values.toarray() if sp.issparse(values) else values, np.float64)
    bad = ~((x >= 0) & (x < np.finfo(np.float64).max / x.shape[1]))  # The sums are finite, too.
    if bad.any():
        i, j = np.argwhere(bad)[0]
        raise InputError(
            f"holds {x[i, j]:g} for {rows[i]!r} and {columns[j]!r} ({bad.sum()} such values of "
            f"{x.size}); proportions must be finite numbers, 0 or greater"
        )
    sums = x.sum(axis=1)
    if len(empty := np.flatnonzero(sums == 0)):
        raise InputError(
            f"all values of {row} {rows[empty[0]]!r} are zero ({len(empty)} of {len(x)} {row}s); "
            f"leave such {row}s out"
        )
    off = np.flatnonzero(np.abs(sums - 1) > _TOLERANCE)
    if len(off) and not normalize:
        hint = ""
        if np.abs(x.sum(axis=0) - 1).max() <= _TOLERANCE:
            hint = "; its columns do: it may be transposed, or normalised over the wrong axis"
        raise InputError(
            f"{row} {rows[off[0]]!r} sums to {sums[off[0]]:.6g}, not to 1 ({len(off)} of {len(x)} "
            f"{row}s do not){hint}; normalize=true rescales each row"
        )
    return x / sums[:, None], sums


def _repeated(names: list[str]) -> list[str]:
    return [] if len(set(names)) == len(names) else [n for n, k in Counter(names).items() if k > 1]


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
