"""Read a file or a named data set as an AnnData with integer counts.

`load` follows a `DataConfig`; `read` opens a path. For every source, the result has whole counts as
compressed sparse rows in ``layers["counts"]`` and in X, unique names of cells and genes, and
``uns["topicell_source"]``. `data_digest` identifies the contents of such an AnnData;
`source_digest` identifies the source in a configuration, without parsing it.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell.config import DataConfig, ReadConfig, as_dict
from topicell.counts import Counts, locate, require_sound
from topicell.data import stored
from topicell.data.catalogue import CATALOGUE, fetch, load_pbmc68k, load_pbmc_facs
from topicell.data.cohort import Samples, joined, samples_of
from topicell.data.features import oriented, with_features
from topicell.data.formats import BY_ROWS, files_of, recognise
from topicell.data.formats.damage import named_errors
from topicell.data.formats.mudata import require_no_modality
from topicell.data.formats.repeats import n_repeated, warn_of_repeats
from topicell.data.formats.text import read_text
from topicell.data.formats.zarr_folder import COLLECTION
from topicell.data.frames import plain, require_gene_names
from topicell.data.mapped import is_mapped
from topicell.data.simulation import settings_digest, simulate
from topicell.data.stored import StoredCounts, n_not_whole, size_of, warn_of_rounded
from topicell.errors import InputError, NotInPartsError
from topicell.memory import Size, shortage
from topicell.progress import step, tracked

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


SHARED = "preprocess.dask"
"""The setting that needs a file in parts whatever its size."""
N_DIGESTED = 10_000_000
"""Number of values that are digested at a time."""
BLOCK = 2**20
"""Number of bytes of a file that are digested at a time."""
N_FIRST = 100
"""Number of cells of a file that are read to see whether it holds counts."""


def load(config: DataConfig) -> AnnData:
    """Return the cells that a configuration names, in memory; see `load_or_open`."""
    return _in_memory(_load(config, opens=False))


def _in_memory(found: AnnData | StoredCounts) -> AnnData:
    return found.in_memory() if isinstance(found, StoredCounts) else found


def load_or_open(config: DataConfig, *, shared: bool = False) -> AnnData | StoredCounts:
    """Return the cells that a configuration names; those of a large file without their counts.

    If the counts are `shared` by several processes (``preprocess.dask``), they stay in their file.

    ``uns["topicell_source"]["label_key"]`` is the label column of the configuration, else that of
    the catalogue, else empty; ``["sample_key"]`` is the column with the samples, if there is one.

    Returns
    -------
    The cells in memory; or, if `shared`, with ``backed``, for `LARGE` matrices of h5ad files or
    zarr folders, or for an annbatch collection, what is known without reading the counts.

    Raises
    ------
    InputError
        The name is unknown, the file cannot be read, the matrix does not hold counts, or the label
        column does not exist.
    """
    return _load(config, opens=True, shared=shared)


def _load(config: DataConfig, *, opens: bool, shared: bool = False) -> AnnData | StoredCounts:
    """Return the cells that a configuration names; with `opens`, large ones without counts."""
    sample_key = config.sample_key
    if _are_several(config):
        found = _read_samples(config, opens=opens, shared=shared)
        sample_key = sample_key or "sample"
    elif config.name == "file":
        assert config.path is not None, "DataConfig with name='file' needs a path"
        options = ReadConfig(**_options(config))
        found = _read(config.path, config.backed, "data.", options, opens=opens, shared=shared)
    elif config.name in ("simulated", "pbmc68k", "pbmc_facs"):
        if config.backed:
            raise InputError(f"data.backed = True: needs an h5ad file, not {config.name}")
        if shared:
            raise InputError(f"{SHARED} needs an h5ad file or a zarr folder, not {config.name}")
        if config.name == "simulated":
            found = simulate(config.simulation)
        else:
            found = load_pbmc68k() if config.name == "pbmc68k" else load_pbmc_facs()
        locate(found, config.layer)
    else:
        _require_known(config.name)
        dataset = CATALOGUE[config.name]
        options = ReadConfig(**_options(config))
        found = _read(fetch(dataset), config.backed, "data.", options, opens=opens, shared=shared)
        _outline(found).uns["topicell_source"] |= {
            "name": dataset.name,
            "source": dataset.url,
            "label_key": dataset.label_key or "",
        }
    adata = _outline(found)
    for setting, key in (("label_key", config.label_key), ("sample_key", sample_key)):
        if key is None:
            continue
        if key not in adata.obs:
            here = ", ".join(map(str, adata.obs.columns))
            raise InputError(
                f"data.{setting} = {key!r}: obs has no such column; "
                + (f"found: {here}" if here else "it has no columns at all")
            )
        if setting == "sample_key" and (n_missing := int(adata.obs[key].isna().sum())):
            raise InputError(
                f"data.sample_key = {key!r}: {n_missing} of {adata.n_obs} cells have no value "
                "there; fill the column"
            )
        adata.uns["topicell_source"][setting] = key
    return found


def _are_several(config: DataConfig) -> bool:
    return config.samples is not None or isinstance(config.path, list)


def _samples(config: DataConfig) -> Samples:
    """Return the files of a configuration, which exist."""
    if config.samples is not None:
        _require_readable(Path(config.samples).expanduser())
    samples = samples_of(config)
    for path, place in zip(samples.paths, samples.places, strict=True):
        try:
            _require_readable(path)
        except InputError as error:
            raise InputError(f"{place}{error}") from error
    return samples


def _read_samples(config: DataConfig, *, opens: bool, shared: bool) -> AnnData | StoredCounts:
    """Return the cells of several files, one below the other.

    With `opens`, if they are large together, counts stay in the files from which some of the cells
    can be read alone; those of the others are in memory.
    """
    samples, options = _samples(config), ReadConfig(**_options(config))
    known = [size for path in samples.paths if (size := size_of(path, config.layer)) is not None]
    size = Size(
        sum(of.n_cells for of in known),
        max((of.n_genes for of in known), default=0),
        sum(of.n_values for of in known),
        dense_bytes=sum(of.dense_bytes for of in known),
    )
    in_parts = config.backed or shared or (opens and size.n_values > stored.LARGE)
    fix = stored.how_to_fit(size, in_parts=in_parts, can_stay=True)
    if lack := shortage(size, in_parts=in_parts, fix=fix):
        warnings.warn(f"{config.title}: {lack}", stacklevel=4)
    found = [
        _read(path, False, "data.", options, opens=opens, shared=shared, stays=in_parts)
        for path in tracked(samples.paths, "reading", unit="files")
    ]
    for part in found:
        if isinstance(part, StoredCounts):
            # Values that are not counts are found before the first pass, not in its last file.
            first = range(min(N_FIRST, part.outline.n_obs))
            next(replace(part.matrix, rows=first).chunks(), None)
    held = {
        str(path): int(part.layers["counts"].nnz)
        for path, part in zip(samples.paths, found, strict=True)
        if in_parts and not isinstance(part, StoredCounts)
    }
    if sum(held.values()) > stored.LARGE:
        warnings.warn(
            f"the counts of {len(held)} of {len(found)} files, such as {next(iter(held))}, stay in "
            f"memory ({8 * sum(held.values()) / 2**30:.1f} GiB), because only h5ad and zarr with "
            "cells in rows (CSR) can be read in parts; topicell.load_dataset('file', "
            "path=FILE).write_h5ad('FILE.h5ad') writes a file as h5ad",
            stacklevel=4,
        )
    cells = joined(samples, found, config)
    outline = cells.outline
    plain(outline)
    outline.obs_names = _unique(outline.obs_names, "cell", config.title)
    outline.var_names = _unique(outline.var_names, "gene", config.title)
    outline.uns["topicell_source"] = {
        "name": config.title,
        "source": ", ".join(str(path.resolve()) for path in samples.paths),
        "sha256": _digest_of_samples(samples),
        "label_key": "",
    }
    if not in_parts:
        return cells.in_memory()
    cells.size = size
    return cells


def _digest_of_samples(samples: Samples) -> str:
    """Return a sha256 of the contents of the files, the names of the samples and their columns.

    Warns
    -----
    UserWarning
        Files have the same contents.
    """
    digests = [_digest_of_path(path) for path in samples.paths]
    for path, digest in zip(samples.paths, digests, strict=True):
        first = samples.paths[digests.index(digest)]
        if path != first:
            warnings.warn(f"{first} and {path} have the same contents", stacklevel=5)
    table = samples.columns.astype(object).where(samples.columns.notna(), None)
    what = [digests, samples.names, list(table.columns), table.to_numpy().tolist()]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _outline(found: AnnData | StoredCounts) -> AnnData:
    return found.outline if isinstance(found, StoredCounts) else found


def read(path: str | Path, *, backed: bool = False, prefix: str = "", **options: Any) -> AnnData:
    """Read cells from a file or folder; its format is recognised from its content.

    Parameters
    ----------
    path
        h5ad, 10x h5, 10x mtx folder, zarr folder, annbatch collection, csv or tsv.
    backed
        Read only the counts, obs and var of an h5ad file or a zarr folder, in parts.
    prefix
        Prefix of the names of settings in messages: ``"data."`` if they are those of `DataConfig`.
    options
        Fields of `ReadConfig`: ``layer``, ``orientation``, ``feature_type``, ``gene_names``, …

    Returns
    -------
    adata
        Counts in X and ``layers["counts"]``; unless it is `backed` or an annbatch collection, also
        everything else in the file about these cells, except ``raw`` and the former X. Features
        are genes, named by `topicell.data.features`.

    Raises
    ------
    InputError
        The path does not exist, is not in a supported format, is damaged, or does not hold counts.

    Warns
    -----
    UserWarning
        Names of cells or genes are repeated and get suffixes, or a sparse matrix holds several
        values for one cell and gene, which are added.
    """
    return _in_memory(_read(path, backed, prefix, ReadConfig(**options), opens=False))


def _read(
    path: str | Path,
    backed: bool,
    prefix: str,
    config: ReadConfig,
    *,
    opens: bool,
    shared: bool = False,
    stays: bool | None = None,
) -> AnnData | StoredCounts:
    """Read cells as `read` does; with `opens`, only open a large file; with `shared`, any.

    `stays` is set for one of several files: whether it is only opened, if that is possible.
    """
    setting = SHARED if shared else "backed=true"
    path = Path(path).expanduser()
    _require_readable(path)
    with named_errors(path, "data"):
        form, reader = recognise(path, config.modality, prefix)
        can_stay = form in BY_ROWS
        if (backed or shared) and not can_stay:
            raise InputError(f"{setting} needs an h5ad file or a zarr folder, but this is {form}")
    size = size_of(path, config.layer)
    always = backed or shared or form == COLLECTION
    in_parts = always
    if size is not None:
        can_stay &= size.by_rows
        if shared and not can_stay:
            raise InputError(
                f"{path}: {SHARED} needs cells in rows, but the matrix is stored by columns (CSC); "
                "write it again with rows (CSR)"
            )
        large = opens and size.n_values > stored.LARGE
        in_parts |= can_stay and (large if stays is None else stays)
    if stays is not None:
        size = None  # the caller has all sizes
    if in_parts:
        try:
            return _named(
                path,
                form,
                reader,
                config,
                prefix,
                in_parts=True,
                alone=backed or form == COLLECTION or stays is not None,
                size=size,
                setting=setting,
            )
        except NotInPartsError:
            if always:
                raise
            can_stay = False
    return _named(path, form, reader, config, prefix, size=size, can_stay=can_stay)


def _named(
    path: Path,
    form: str,
    reader: Callable[[Path], AnnData],
    config: ReadConfig,
    prefix: str,
    *,
    size: Size | None,
    in_parts: bool = False,
    alone: bool = False,
    can_stay: bool = True,
    setting: str = "",
) -> AnnData | StoredCounts:
    """Return cells and genes with their names; with `in_parts`, without reading counts."""
    opened = None
    if size is not None:
        fix = stored.how_to_fit(size, in_parts=in_parts, can_stay=can_stay)
        if lack := shortage(size, in_parts=in_parts, fix=fix):
            warnings.warn(f"{path}: {lack}", stacklevel=4)
    with named_errors(path, form), warnings.catch_warnings():
        # anndata's warning about repeated names; our own warning below says how many and what was
        # done.
        warnings.filterwarnings("ignore", message=r".* names are not unique")
        if in_parts:
            require_no_modality(form, config.modality, prefix)
            opened = StoredCounts.of(
                path,
                config.layer,
                alone=alone,
                round_values=config.round,
                form=form,
                setting=setting,
            )
            opened.size = size
            adata = opened.outline
            plain(adata)
        else:
            with step(f"reading {path.name}"):
                adata = reader(path)
                plain(adata)
                adata = with_counts(adata, config.layer, round_values=config.round)
        adata = oriented(adata, config, prefix)
        require_gene_names(adata.var, config.gene_names, prefix)
        adata = with_features(adata, config, prefix)
        _require_names(adata.obs_names, "cell")
        _require_names(adata.var_names, "gene")
    adata.obs_names = _unique(adata.obs_names, "cell", path)
    adata.var_names = _unique(adata.var_names, "gene", path)
    if reader is read_text:
        # The header of the first column, which was used to find the orientation of the table.
        adata.obs_names.name = adata.var_names.name = None
    adata.uns["topicell_source"] = {
        "name": Path(path.name.removesuffix(".gz")).stem,
        "source": str(path.resolve()),
        "sha256": _digest_of_path(path),
        "label_key": "",
    }
    if opened is None:
        return adata
    opened.outline = adata
    return opened


def data_digest(adata: AnnData) -> str:
    """Return the sha256 of counts, cell names and gene names, in whatever form they are stored.

    The same counts with the same names give the same digest: dense or sparse, with any number type,
    in any memory order.
    """
    x = adata.layers["counts"] if is_mapped(adata) else Counts.of(adata).x
    digest = hashlib.sha256()
    for array, dtype in ((x.indptr, "<i8"), (x.indices, "<i8"), (x.data, "<f4")):
        for first in range(0, len(array), N_DIGESTED):
            part = np.ascontiguousarray(array[first : first + N_DIGESTED], dtype=dtype)
            digest.update(part.tobytes())
    names = [[str(name) for name in side] for side in (adata.obs_names, adata.var_names)]
    digest.update(json.dumps(names).encode())
    return digest.hexdigest()


def source_digest(config: DataConfig) -> str:
    """Return a sha256 that identifies the result of `load`, without parsing the data.

    It covers the bytes of the file (or of every file of a folder, with their names), or the fixed
    checksum of a named data set, or scanpy's version, or the settings of a simulation; also the
    settings for reading, the label column, and the path of a file. Of several files it covers all,
    their names and columns, and the join.

    Raises
    ------
    InputError
        The name is unknown, or the path does not exist.
    """
    if config.name in CATALOGUE and CATALOGUE[config.name].sha256 is None:
        identity = f"{config.name} {_version_of_scanpy()}"
    else:
        identity = digest_of_files(config)
    options = as_dict(ReadConfig(**_options(config)))
    files = [config.path, config.samples, config.sample_key, config.join.value]
    what = json.dumps([identity, options, config.backed, config.label_key, *files])
    return hashlib.sha256(what.encode()).hexdigest()


def digest_of_files(config: DataConfig) -> str:
    """Return the sha256 of the source that a run of these data records, without parsing the data.

    For a data set that is included in scanpy, the digest of its cells, which are loaded.

    Raises
    ------
    InputError
        The name is unknown, or the path does not exist.
    """
    if _are_several(config):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `load` gives them
            return _digest_of_samples(_samples(config))
    if config.name == "file":
        assert config.path is not None, "DataConfig with name='file' needs a path"
        path = Path(config.path).expanduser()
        _require_readable(path)
        return _digest_of_path(path)
    if config.name == "simulated":
        return settings_digest(config.simulation)
    _require_known(config.name)
    pinned = CATALOGUE[config.name].sha256
    return pinned or str(load(config).uns["topicell_source"]["sha256"])


def _options(config: ReadConfig) -> dict[str, Any]:
    """Return the settings for reading from those of a command."""
    return {f.name: getattr(config, f.name) for f in fields(ReadConfig)}


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
            f"{path}: there is no such file (looked from {Path.cwd()}); "
            f"check the path{_beside(path)}"
        ) from error
    except (
        OSError,
        ValueError,
    ) as error:  # for example too long, below a file, no permission, with a NUL character
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be reached ({why}); check the path") from error
    if not (path.is_file() or path.is_dir()):
        raise InputError(
            f"{path}: is a pipe or a device, which can be read only once; save it as a file first"
        )
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it; change its permissions")


def _beside(path: Path) -> str:
    """Return the name of a file in the same folder that the user may have meant, as a hint."""
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _version_of_scanpy() -> str:
    from importlib.metadata import version

    return f"scanpy {version('scanpy')}"


def _digest_of_path(path: Path) -> str:
    """Return the sha256 of a file, or of the names and contents of files that are read as one."""
    files = files_of(path)
    if files == [path]:
        state = path.stat()
        return _digest_of_file(path.resolve(), state.st_size, state.st_mtime_ns)
    digest = hashlib.sha256()
    folder = path if path.is_dir() else path.parent
    for member in tracked(files, "checksum", unit="files"):
        content = _sha256(member)
        digest.update(json.dumps([member.relative_to(folder).as_posix(), content]).encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=1000)
def _digest_of_file(path: Path, size: int, changed: int) -> str:
    """Return the sha256 of a file, which a run needs twice; large files take a while."""
    return _sha256(path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, step("checksum", path.stat().st_size, "B") as shown:
        while block := file.read(BLOCK):
            digest.update(block)
            shown.advance(len(block))
    return digest.hexdigest()


def _require_names(names: pd.Index, kind: str) -> None:
    """Reject empty names, and names that an h5ad file cannot hold."""
    for place, name in enumerate(names):
        if not str(name).strip():
            raise InputError(f"{kind} {place + 1} of {len(names)} has no name; name it")
        if "\0" in str(name):
            raise InputError(
                f"the name of {kind} {place + 1}, {name!r}, has a null character; rename it"
            )


def _unique(names: pd.Index, kind: str, path: Path | str) -> pd.Index:
    n_repeated = int(names.duplicated().sum())
    if not n_repeated:
        return names
    from anndata.utils import make_index_unique

    warnings.warn(
        f"{path}: {n_repeated} {kind} names are repeated; suffixes (-1, -2, …) make them unique",
        UserWarning,
        stacklevel=3,
    )
    unique: pd.Index = make_index_unique(names)
    return unique


def with_counts(adata: AnnData, layer: str | None, *, round_values: bool = False) -> AnnData:
    """Return the same cells with the counts of a layer as X and ``layers["counts"]``, and no raw.

    The AnnData is changed in place, except with ``layer="raw"``.

    Parameters
    ----------
    adata
        Cells × features.
    layer
        As in `topicell.counts.locate`.
    round_values
        Round values that are not whole instead of refusing.
    """
    from anndata import AnnData

    where, matrix, _ = locate(adata, layer)
    x = Counts.of(adata, layer, round_values=round_values).x
    warn_of_repeats(n_repeated(matrix), where)
    # The other contents are restricted to the selected cells and genes.
    for part in ("layers", "obsm", "varm", "obsp", "varp"):
        for name, other in getattr(adata, part).items():
            if name is not None:  # X, since anndata 0.13
                require_sound(other, f"{part}[{name!r}]")
    if where == "raw":
        adata = AnnData(
            x, obs=adata.obs, var=adata.raw.var, obsm=dict(adata.obsm), uns=dict(adata.uns)
        )
    else:
        adata.X = x
        del adata.raw
    adata.layers["counts"] = x
    if round_values:
        warn_of_rounded(n_not_whole(matrix), where, adata)
    # It says that X holds logarithms, which is no longer true; scanpy would use it.
    adata.uns.pop("log1p", None)
    return adata
