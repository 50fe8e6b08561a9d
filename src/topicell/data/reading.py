"""From a file, or a name, to an AnnData with integer counts, or a refusal that says why.

`load` follows a `DataConfig`; `read` opens a path. Whatever the source, the result has whole
counts as compressed sparse rows in ``layers["counts"]`` and in X, unique names of cells and
genes, and ``uns["topicell_source"]``. `data_digest` names the contents of such an AnnData,
`source_digest` the source that a configuration points at, without parsing it.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
import os
import re
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from topicell.config import DataConfig, InputError
from topicell.data.catalogue import CATALOGUE, fetch, load_pbmc68k, load_pbmc_facs
from topicell.data.simulation import settings_digest, simulate
from topicell.model.counts import COMPRESSED, Counts, as_counts, locate, require_sound

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_FORMS = (
    "h5ad, 10x h5, a 10x folder (matrix.mtx, features.tsv or genes.tsv, barcodes.tsv; each may "
    "be .gz), a zarr folder, or csv/tsv (.gz too; cells in rows, a header of gene names)"
)
_HDF5_SECONDS = 3
"""Seconds of the processor in which the strings of a small HDF5 file are read many times over."""
_HDF5_BYTES_PER_SECOND = 20_000_000
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_GENES = re.compile(r"(?i)mt-|rp[sl]\d")
_CSV_ROWS = 1000
"""Rows of a text file that are dense at a time."""


def load(config: DataConfig) -> AnnData:
    """The cells that a configuration names.

    ``uns["topicell_source"]["label_key"]`` is the configuration's label column, else the
    catalogue's, else empty.

    Raises
    ------
    InputError
        An unknown name, a file that cannot be read, a matrix that is not counts, or a label
        column that does not exist.
    """
    if config.name == "file":
        assert config.path is not None, "DataConfig requires a path with name: file"
        adata = read(config.path, layer=config.layer, backed=config.backed)
    elif config.name in ("simulated", "pbmc68k", "pbmc_facs"):
        if config.backed:
            raise InputError(f"data.backed = True: needs an h5ad file, which {config.name} is not")
        if config.name == "simulated":
            adata = simulate(config.simulation)
        else:
            adata = load_pbmc68k() if config.name == "pbmc68k" else load_pbmc_facs()
        locate(adata, config.layer)
    else:
        _require_known(config.name)
        dataset = CATALOGUE[config.name]
        adata = read(fetch(dataset), layer=config.layer, backed=config.backed)
        adata.uns["topicell_source"] |= {
            "name": dataset.name,
            "source": dataset.url,
            "label_key": dataset.label_key or "",
        }
    if config.label_key is not None:
        if config.label_key not in adata.obs:
            here = ", ".join(map(str, adata.obs.columns)) or "none"
            raise InputError(
                f"data.label_key = {config.label_key!r}: obs has no such column; here: {here}"
            )
        adata.uns["topicell_source"]["label_key"] = config.label_key
    return adata


def read(path: str | Path, *, layer: str | None = None, backed: bool = False) -> AnnData:
    """Read cells from a file or folder; its form is recognised by what it is.

    Parameters
    ----------
    path
        h5ad, 10x h5, 10x mtx folder, zarr folder, csv or tsv.
    layer
        Where the counts are: a layer's name, ``"raw"``, or None for ``layers["counts"]`` if
        there is one, else X.
    backed
        Read only the counts, obs and var of an h5ad file, and nothing else of it.

    Returns
    -------
    adata
        Counts in X and ``layers["counts"]``; without `backed`, whatever else the file holds of
        these cells comes along, but for ``raw`` and what X was.

    Raises
    ------
    InputError
        The path does not exist, is of no supported form or damaged, or does not hold counts.

    Warns
    -----
    UserWarning
        Names of cells or genes occur more than once; they get suffixes. Or a sparse matrix holds
        several values for one cell and gene; they are added.
    """
    path = Path(path).expanduser()
    _require_readable(path)
    form = "data"
    try:
        form, reader = _recognise(path)
        if backed and reader is not _read_h5ad:
            raise InputError(f"backed=true needs an h5ad file, and this is {form}")
        with warnings.catch_warnings():
            # anndata's remark on repeated names; ours, below, says how many and what was done.
            warnings.filterwarnings("ignore", message=r".* names are not unique")
            adata = _read_counts_alone(path, layer) if backed else with_counts(reader(path), layer)
        _require_names(adata.obs_names, "cell")
        _require_names(adata.var_names, "gene")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except MemoryError as error:
        raise InputError(
            f"{path}: asks for more memory than there is ({error}); if it is not that large, it "
            "is damaged: copy or download it again; of an h5ad file, data.backed=true reads the "
            "counts alone"
        ) from error
    except Exception as error:  # damage shows as any error of h5py, zarr, pandas, scipy or gzip
        what = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path}: cannot be read as {form} ({type(error).__name__}: {what}); the file may be "
            "cut off, damaged or not of that form: copy or download it again, or write it anew"
        ) from error
    adata.obs_names = _unique(adata.obs_names, "cell", path)
    adata.var_names = _unique(adata.var_names, "gene", path)
    adata.uns["topicell_source"] = {
        "name": Path(path.name.removesuffix(".gz")).stem,
        "source": str(path.resolve()),
        "sha256": _digest_of_path(path),
        "label_key": "",
    }
    return adata


def data_digest(adata: AnnData) -> str:
    """The sha256 of counts, cell names and gene names, however they are stored.

    Dense or sparse, whatever number type, row or column order in memory: the same counts under
    the same names give the same digest.
    """
    counts = Counts.of(adata)
    x = counts.x
    digest = hashlib.sha256()
    for array, dtype in ((x.indptr, "<i8"), (x.indices, "<i8"), (x.data, "<f4")):
        digest.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
    names = [[str(name) for name in side] for side in (counts.cells, counts.genes)]
    digest.update(json.dumps(names).encode())
    return digest.hexdigest()


def source_digest(config: DataConfig) -> str:
    """A sha256 that names what `load` would return, without parsing it.

    It covers the bytes of the file (or of every file of a folder, with their names), or the
    pinned checksum of a named set, or scanpy's version, or the settings of a simulation; and
    the counts layer, `backed`, the label column, and where a file lies.

    Raises
    ------
    InputError
        An unknown name, or a path that does not exist.
    """
    if config.name == "file":
        assert config.path is not None, "DataConfig requires a path with name: file"
        path = Path(config.path).expanduser()
        _require_readable(path)
        identity = _digest_of_path(path)
    elif config.name == "simulated":
        identity = settings_digest(config.simulation)
    else:
        _require_known(config.name)
        pinned = CATALOGUE[config.name].sha256
        identity = pinned if pinned is not None else f"{config.name} {_version_of_scanpy()}"
    what = json.dumps([identity, config.layer, config.backed, config.label_key, config.path])
    return hashlib.sha256(what.encode()).hexdigest()


def _require_known(name: str) -> None:
    known = [*CATALOGUE, "simulated", "file"]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise InputError(f"data.name = {name!r}: {hint}known are {', '.join(known)}")


def _require_readable(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InputError(
            f"{path}: there is no such file (looked from {Path.cwd()}); check the path"
        ) from error
    except (OSError, ValueError) as error:  # too long, through a file, not to be entered, with NUL
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be reached ({why}); check the path") from error
    if not (path.is_file() or path.is_dir()):
        raise InputError(
            f"{path}: is neither a file nor a folder but a pipe or a device, which is read but "
            "once; save it as a file first"
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: may not be read; change its permissions")


def _version_of_scanpy() -> str:
    from importlib.metadata import version

    return f"scanpy {version('scanpy')}"


def _digest_of_path(path: Path) -> str:
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for member in sorted(path.rglob("*")):
        if member.is_file():
            name = member.relative_to(path).as_posix()
            digest.update(json.dumps([name, _digest_of_path(member)]).encode())
    return digest.hexdigest()


def _require_names(names: pd.Index, kind: str) -> None:
    """Refuse names that say nothing, and such as an h5ad file cannot hold."""
    for place, name in enumerate(names):
        if not str(name).strip():
            raise InputError(f"{kind} {place + 1} of {len(names)} has no name; name it")
        if "\0" in str(name):
            raise InputError(
                f"the name of {kind} {place + 1}, {name!r}, has a null character; rename it"
            )


def _unique(names: pd.Index, kind: str, path: Path) -> pd.Index:
    n_repeated = int(names.duplicated().sum())
    if not n_repeated:
        return names
    from anndata.utils import make_index_unique

    warnings.warn(
        f"{path}: {n_repeated} {kind} names repeat an earlier one; they got suffixes (-1, -2, …)",
        UserWarning,
        stacklevel=3,
    )
    unique: pd.Index = make_index_unique(names)
    return unique


def with_counts(adata: AnnData, layer: str | None) -> AnnData:
    """The same cells with the counts of a layer as X and as ``layers["counts"]``, and no raw.

    The AnnData that is given is changed, but for ``layer="raw"``.
    """
    from anndata import AnnData

    where, matrix, _ = locate(adata, layer)
    x = Counts.of(adata, layer).x
    _warn_of_repeats(_n_repeated(matrix), where)
    # What else there is will be cut to the chosen cells and genes.
    for part in ("layers", "obsm", "varm", "obsp", "varp"):
        for name, other in getattr(adata, part).items():
            require_sound(other, f"{part}[{name!r}]")
    if where == "raw":
        adata = AnnData(
            x, obs=adata.obs, var=adata.raw.var, obsm=dict(adata.obsm), uns=dict(adata.uns)
        )
    else:
        adata.X = x
        del adata.raw
    adata.layers["counts"] = x
    # It says that X holds logarithms, which is true no more; scanpy would act on it.
    adata.uns.pop("log1p", None)
    return adata


def _n_repeated(matrix: Any) -> int:
    """How many values of a sparse matrix are for an entry that has one already."""
    if not isinstance(matrix, COMPRESSED):
        return 0
    # A matrix of the same arrays: to be asked whether it is in order changes a matrix.
    merged = type(matrix)((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)
    if merged.has_canonical_format:
        return 0
    merged = merged.copy()
    merged.sum_duplicates()
    return int(matrix.nnz - merged.nnz)


def _warn_of_repeats(n_repeated: int, where: str) -> None:
    if n_repeated:
        warnings.warn(
            f"{where} holds {n_repeated} values for a cell and gene that have one already; such "
            "values are added",
            UserWarning,
            stacklevel=3,
        )


def _recognise(path: Path) -> tuple[str, Callable[[Path], AnnData]]:
    import h5py

    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if path.is_dir():
        if any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zattrs")):
            return "a zarr folder", _read_zarr
        if any((path / name).is_file() for name in ("matrix.mtx", "matrix.mtx.gz")):
            return "a 10x mtx folder", _read_mtx
        raise InputError(
            f"is a folder, and neither zarr nor 10x mtx; name a file in it? Supported: {_FORMS}"
        )
    if h5py.is_hdf5(path):
        _require_survivable(path)
        _require_written(path)
        return ("10x h5", _read_10x_h5) if _is_10x_h5(path) else ("h5ad", _read_h5ad)
    if suffix in (".h5ad", ".h5", ".hdf5"):
        raise InputError(
            "is not an HDF5 file in spite of its name; it may be empty, cut off or damaged: copy "
            "or download it again"
        )
    if suffix in _SEPARATORS:
        return suffix[1:], _read_text
    if suffix == ".mtx":
        raise InputError("is one part of a 10x mtx folder; give the folder")
    raise InputError(f"is of no form that can be read; supported: {_FORMS}")


def _is_10x_h5(path: Path) -> bool:
    import h5py

    with h5py.File(path, "r") as file:
        if "obs" in file:
            return False
        # From Cell Ranger 3 on one group "matrix", before that one group a genome.
        return any(isinstance(part, h5py.Group) and "barcodes" in part for part in file.values())


def _require_survivable(path: Path) -> None:
    """Refuse an HDF5 file whose strings libhdf5 crashes on, or never returns from.

    It follows a damaged heap of strings wherever that leads. So they are read once in a process of
    their own (a fork: it has nothing to import), of which nothing is asked but to end.
    """
    limit = _HDF5_SECONDS + path.stat().st_size // _HDF5_BYTES_PER_SECOND
    with warnings.catch_warnings():
        # Of threads at a fork: this child takes no lock that they may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            _read_strings(path, limit)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    # Of other signals that it ends by (Ctrl-C, full memory) the file knows nothing.
    dead = (signal.SIGXCPU, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in dead:
        raise InputError(
            "is damaged: libhdf5 cannot read its names (it crashes, or does not end); copy or "
            "download it again"
        )


def _read_strings(path: Path, cpu_seconds: int) -> None:
    """Read every attribute and every string of an HDF5 file, in so many seconds or not at all."""
    import faulthandler
    import resource

    import h5py

    faulthandler.disable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Of the processor, not of the clock: a machine that is busy does not damage a file.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))

    def visit(_: str, item: Any) -> None:
        with contextlib.suppress(Exception):
            dict(item.attrs)
        with contextlib.suppress(Exception):
            if isinstance(item, h5py.Dataset) and item.dtype.hasobject:
                # Twice: where a heap leads depends on what the memory held before.
                item[()]
                item.asstr()[()]

    with h5py.File(path, "r") as file:
        visit("", file)
        file.visititems(visit)


def _require_written(path: Path) -> None:
    """Refuse an HDF5 file with arrays that were declared and not, or not all, written.

    They would be read as zeros without a word, in as much memory as was declared.
    """
    import h5py

    def check(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
            return
        if not item.size or item.shape == ():
            return
        n_parts, n_written = 1, int(item.id.get_storage_size() > 0)
        if item.chunks is not None:
            n_parts = math.prod(-(-n // c) for n, c in zip(item.shape, item.chunks, strict=True))
            n_written = item.id.get_num_chunks()
        if n_written < n_parts:
            raise InputError(
                f"{name} is declared as {' × '.join(map(str, item.shape))} values, and "
                f"{n_written} of its {n_parts} parts are in the file; it was not written whole: "
                "copy or make it again"
            )

    with h5py.File(path, "r") as file:
        file.visititems(check)


def _read_h5ad(path: Path) -> AnnData:
    import anndata
    import h5py

    # anndata makes up names where the file has none; of genes they would fit any other file's.
    with h5py.File(path, "r") as file:
        for side, what in (("obs", "cells"), ("var", "genes")):
            if side not in file:
                raise InputError(
                    f"cannot be read as h5ad: it has no {side}, which names the {what}; supported: "
                    f"{_FORMS}"
                )
    return anndata.read_h5ad(path)


def _read_counts_alone(path: Path, layer: str | None) -> AnnData:
    """Counts, obs and var of an h5ad file; nothing else of the file is read."""
    import h5py
    from anndata import AnnData
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        if not all(isinstance(file.get(name), h5py.Group) for name in ("obs", "var")):
            raise InputError(
                "has no obs and var that can be read alone (written by anndata before 0.7?); "
                "leave out backed=true"
            )
        # An AnnData in outline: `locate` finds in it the element of the file, still unread.
        raw = SimpleNamespace(X=file["raw/X"], var_names=None) if "raw" in file else None
        outline = SimpleNamespace(
            X=file.get("X"), layers=file.get("layers", {}), raw=raw, var_names=None
        )
        where, element, _ = locate(outline, layer)
        var = read_elem(file["raw/var" if where == "raw" else "var"])
        matrix = read_elem(element)
        x = as_counts(matrix, where, genes=var.index)
        _warn_of_repeats(_n_repeated(matrix), where)
        return AnnData(x, obs=read_elem(file["obs"]), var=var, layers={"counts": x})


def _read_zarr(path: Path) -> AnnData:
    import anndata
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    # zarr takes a missing chunk for zeros, without a word; in these no chunk is all zeros (but
    # that of the indices if the first gene alone was counted, which is no data to model).
    arrays = [f"{side}/{group[side].attrs['_index']}" for side in ("obs", "var")]
    for name in ("X", "raw/X", *(f"layers/{layer}" for layer in group.get("layers", {}))):
        matrix = group.get(name)
        if isinstance(matrix, zarr.Group) and "data" in matrix and group[f"{name}/data"].size:
            arrays += [f"{name}/{part}" for part in ("data", "indices", "indptr")]
    for name in arrays:
        n_missing = group[name].nchunks - group[name].nchunks_initialized
        if n_missing:
            raise InputError(
                f"{name} lacks {n_missing} of {group[name].nchunks} chunks; the folder was not "
                "copied whole: copy or make it again"
            )
    return anndata.read_zarr(path)


def _read_10x_h5(path: Path) -> AnnData:
    # scanpy's reader takes names for ASCII, and rounds counts beyond single precision.
    import h5py
    import pandas as pd
    from anndata import AnnData

    def values(part: Any) -> np.ndarray:
        found: np.ndarray = (part.asstr("utf-8") if h5py.check_string_dtype(part.dtype) else part)[
            ()
        ]
        return found

    with h5py.File(path, "r") as file:
        groups = {
            name: group
            for name, group in file.items()
            if isinstance(group, h5py.Group) and "barcodes" in group
        }
        if len(groups) > 1:
            raise InputError(f"holds several genomes: {', '.join(groups)}; give each a file")
        (group,) = groups.values()
        if "features" in group:
            features = {
                name: values(part)
                for name, part in group["features"].items()
                if isinstance(part, h5py.Dataset) and name != "_all_tag_keys"
            }
        else:  # before Cell Ranger 3
            features = {"name": values(group["gene_names"]), "id": values(group["genes"])}
        genes = pd.Index(features.pop("name"))
        columns = {"id": "gene_ids", "feature_type": "feature_types"}
        if "gene_id" in features:  # a matrix of probes
            columns |= {"id": "probe_ids", "gene_id": "gene_ids"}
        n_genes, n_cells = map(int, group["shape"][()])
        parts = tuple(group[name][()] for name in ("data", "indices", "indptr"))
        return _genes_alone(
            AnnData(
                sp.csr_matrix(parts, shape=(n_cells, n_genes)),
                obs=pd.DataFrame(index=values(group["barcodes"])),
                var=pd.DataFrame(features, index=genes).rename(columns=columns),
            )
        )


def _read_mtx(path: Path) -> AnnData:
    # scanpy's reader knows only Cell Ranger's own names: no features.tsv without .gz.
    import pandas as pd
    from anndata import AnnData

    def table(*names: str) -> pd.DataFrame:
        for name in names:
            for file in (path / f"{name}.gz", path / name):
                if file.is_file():
                    return pd.read_csv(
                        file, sep="\t", header=None, dtype=str, na_filter=False, quoting=3
                    )
        raise InputError(f"the folder has no {' or '.join(names)} (.gz or not)")

    matrix = next(f for n in ("matrix.mtx.gz", "matrix.mtx") if (f := path / n).is_file())
    genes, cells = table("features.tsv", "genes.tsv"), table("barcodes.tsv")
    x = _entries(matrix, (len(genes), len(cells)))
    columns = dict(zip(("gene_ids", "symbols", "feature_types"), genes, strict=False))
    names = genes[columns.get("symbols", 0)]
    var = pd.DataFrame(
        {key: genes[columns[key]].to_numpy() for key in columns if key != "symbols"},
        index=pd.Index(names.to_numpy()),
    )
    return _genes_alone(AnnData(x, obs=pd.DataFrame(index=cells[0].to_numpy()), var=var))


def _entries(path: Path, shape: tuple[int, int]) -> sp.csr_matrix:
    """The transposed matrix of a MatrixMarket file that must have this shape.

    Not by scipy's reader: a file with a damaged line can end its process.
    """
    import gzip

    import pandas as pd

    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        banner = file.readline().decode().lower().split()
        if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[4:] != ["general"]:
            raise InputError(
                f"{path.name} does not begin with '%%MatrixMarket matrix coordinate … general'; "
                "the file may be damaged, or of another form: write it anew"
            )
        sizes = next((line for line in file if line.strip() and not line.startswith(b"%")), b"")
        n_genes, n_cells, n_entries = map(int, sizes.split())
        if (n_genes, n_cells) != shape:
            raise InputError(
                f"{path.name} has {n_genes} genes × {n_cells} cells, but there are names for "
                f"{shape[0]} genes and {shape[1]} cells; the files do not belong together"
            )
        if not n_entries:
            return sp.csr_matrix(shape[::-1])
        table = pd.read_csv(file, sep=r"\s+", header=None, na_filter=False, comment="%")
    if table.shape != (n_entries, 3) or any(kind.kind not in "iuf" for kind in table.dtypes):
        raise InputError(
            f"{path.name} declares {n_entries} entries of gene, cell and count, and holds "
            f"{len(table)} lines of {table.shape[1]}, or what is no number; it may be cut off or "
            "damaged: copy or download it again"
        )
    at = table[[0, 1]].to_numpy()
    if not ((at >= 1) & (at <= shape) & (at == np.floor(at))).all():
        raise InputError(
            f"{path.name} has entries beyond its {n_genes} genes × {n_cells} cells; it is damaged: "
            "copy or download it again"
        )
    gene, cell = at.astype(np.int64).T - 1
    # Integers wrap around when values of one cell and gene are added.
    x = sp.csr_matrix((table[2].to_numpy(np.float64), (cell, gene)), shape=shape[::-1])
    _warn_of_repeats(n_entries - x.nnz, path.name)
    return x


def _genes_alone(adata: AnnData) -> AnnData:
    """Without the antibodies and guides that 10x files may hold beside the genes."""
    require_sound(adata.X, "matrix")
    if "feature_types" not in adata.var:
        return adata
    is_gene = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    return adata if is_gene.all() or not is_gene.any() else adata[:, is_gene].copy()


def _read_text(path: Path) -> AnnData:
    import pandas as pd
    from anndata import AnnData

    separator = _SEPARATORS[Path(path.name.removesuffix(".gz")).suffix.lower()]
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
