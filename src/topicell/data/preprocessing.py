"""Prepare raw counts for the model: filters, variable genes, split.

The steps and their order are those of the scvi-tools tutorial "Topic Modeling with Amortized
LDA"; every step is a setting of `PreprocessConfig`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from topicell import genes
from topicell.config import (
    ON_COUNTS,
    DataConfig,
    PreprocessConfig,
    SplitConfig,
    as_dict,
)
from topicell.counts import LateRows
from topicell.data import mapped, streaming, workers
from topicell.data.stored import Over, StoredCounts
from topicell.errors import InputError, disk_is_full
from topicell.files import digest_of_code
from topicell.progress import step

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

PARTS = ("train", "valid", "test")
OWN_COLUMNS = ("split", "leiden", "amortization_gap")
"""Columns of obs that a run writes."""
MIN_CELLS_TO_RANK = 10
"""Smallest number of cells of a batch for which the seurat_v3 flavours can rank genes: with one
cell, their compiled loess ends the process."""
SPANS = (0.3, 0.5, 0.7, 1.0)
"""Shares of the genes that the LOESS of seurat_v3 sees at once: scanpy's default, and the values
that are tried if its matrix is singular (scanpy issue 1504)."""
FEWEST_BARCODES = 1000
EMPTY_COUNTS = 50
EMPTY_SHARE = 0.8
"""A matrix with at least this many barcodes is unfiltered if more than this share of them has
fewer counts than this, and the largest cells have far more counts."""
WARNINGS = "topicell_warnings"
"""Key of uns under which the cache stores warnings, so that they are given again."""
DEPTH = "topicell_depth"
"""Key of uns with the medians of counts and of genes per cell, over all genes, of each sample."""
_CACHED = re.compile(r"[0-9a-f]{32}\.h5ad")
_UNFINISHED = re.compile(r"tmp[a-z0-9_]{8}\.h5ad")
_STALE_SECONDS = 86_400
"""An unfinished file older than this was left by a process that has ended."""
_HELD: ContextVar[dict[Path, AnnData] | None] = ContextVar("held", default=None)


def preprocess(adata: AnnData, config: PreprocessConfig, *, seed: int = 0) -> AnnData:
    """Filter, log-normalise, choose genes and split the cells.

    Parameters
    ----------
    adata
        Cells × genes with integer counts in ``layers["counts"]``; not changed.
    config
        The settings.
    seed
        Seed of the split.

    Returns
    -------
    A new AnnData of the modelled genes: ``layers["counts"]`` the counts, ``X`` the
    log-normalised values, ``raw`` the log-normalised values of all genes that passed the
    filters, ``obs["split"]`` the part of each cell. Columns of obs with a reserved name
    (`OWN_COLUMNS`) are kept under the name that `column` returns.

    Raises
    ------
    InputError
        No gene or cell is left, or a named column does not exist.

    Warns
    -----
    UserWarning
        There are fewer genes than requested (all are used), or cells without counts in the modelled
        genes.
    """
    return _with_split(_choose(adata, config, None), config.split, seed)


def _choose(
    data: AnnData | StoredCounts, config: PreprocessConfig, path: str | Path | None
) -> AnnData:
    """Compute all that does not depend on the seed: filters, normalisation, variable genes.

    Counts that stay in their file are written to `path`, or to a temporary file, which is mapped.
    """
    if isinstance(data, StoredCounts):
        if config.n_variable_genes is None or config.flavor in ON_COUNTS:
            with workers.shared(data, config.dask) as over:
                if path is not None:
                    try:
                        return _choose_from_file(data, over, config, path)
                    except OSError as error:
                        if not disk_is_full(error):
                            raise
                        _warn_of_cache(Path(path).parent, error)
                with tempfile.NamedTemporaryFile(suffix=".h5ad") as unfinished:
                    return _choose_from_file(data, over, config, unfinished.name)
        warnings.warn(
            f"preprocess.flavor = {config.flavor.value!r} needs the log-normalised values of all "
            "genes: the whole file is read to memory; preprocess.flavor=seurat_v3 reads it in "
            "parts",
            stacklevel=3,
        )
        data = data.in_memory()
    elif config.dask is not None:
        raise InputError(
            f"preprocess.dask = {config.dask!r} needs cells in an h5ad file or a zarr folder, but "
            "these are in memory; leave it out"
        )
    import scanpy as sc

    adata = data
    _require_column(adata, config.batch_key, "preprocess.batch_key")
    counts = adata.layers["counts"]
    total_N = np.asarray(counts.sum(1)).ravel()
    cells = total_N >= config.min_counts_per_cell
    there_NG = counts[cells] > 0
    n_cells_G, n_genes_N = (np.asarray(there_NG.sum(axis)).ravel() for axis in (0, 1))
    expressed = _filtered(total_N, cells, n_cells_G, config)
    adata = adata[cells, expressed].copy()
    _add_depth(adata.uns, adata.obs, total_N[cells], n_genes_N)

    adata.X = adata.layers["counts"].copy()
    with step("normalisation"):
        sc.pp.normalize_total(adata, target_sum=config.target_sum)
        sc.pp.log1p(adata)
    adata.raw = adata

    kept = _not_dropped(adata.var_names, config)
    chosen = np.flatnonzero(kept)
    if _must_choose(len(chosen), config):
        chosen = chosen[_variable_genes(adata[:, kept].copy(), config)]
    adata = adata[:, chosen].copy()
    _warn_of_empty_cells(adata)
    return adata


def _choose_from_file(
    stored: StoredCounts, over: Over, config: PreprocessConfig, path: str | Path
) -> AnnData:
    """Do the same as `_choose` with counts that stay in their file; ``raw`` is left out."""
    outline = stored.outline
    _require_column(outline, config.batch_key, "preprocess.batch_key")
    batch_N = np.zeros(outline.n_obs, dtype=int)
    if config.batch_key is not None:
        # −1 for cells without a batch, which may be left out.
        batch_N = outline.obs[config.batch_key].astype("category").cat.codes.to_numpy(dtype=int)
    total_N, n_genes_N, moments = streaming.first_pass(
        stored, over, config.min_counts_per_cell, batch_N
    )
    cells = total_N >= config.min_counts_per_cell
    expressed = _filtered(total_N, cells, moments.n_cells_G, config)
    _add_depth(outline.uns, outline.obs[cells], total_N[cells], n_genes_N[cells])
    genes_left = np.flatnonzero(expressed)
    kept = _not_dropped(outline.var_names[genes_left], config)
    chosen = genes_left[kept]
    if _must_choose(len(chosen), config):
        batch_K, names = _batches(outline.obs[cells], config)
        sizes = {name: int((batch_K == number).sum()) for number, name in enumerate(names)}
        _require_enough_to_rank(sizes, config)
        # The batches of the kept cells are numbered anew.
        kept_batches = np.unique(batch_N[cells])
        passes = streaming.Selection(
            over,
            cells,
            np.searchsorted(kept_batches, batch_N),
            moments.of(kept_batches, chosen),
            chosen,
        )
        ranked = _with_spans(
            lambda span: passes.variable(config, span), config, int(cells.sum()), len(chosen)
        )
        chosen = chosen[ranked]
    target_sum = config.target_sum
    streaming.write_selected(path, stored, over, cells, genes_left, chosen, moments, target_sum)
    adata = mapped.read(path)
    _warn_of_empty_cells(adata)
    return adata


def _add_depth(
    uns: MutableMapping[str, object], obs: pd.DataFrame, total_N: np.ndarray, n_genes_N: np.ndarray
) -> None:
    """Store the depth of each sample in uns, from the counts of all genes, if there are samples."""
    import pandas as pd

    source = uns.get("topicell_source")
    key = source.get("sample_key") if isinstance(source, Mapping) else None
    if key:
        depth = pd.DataFrame({"median_counts": total_N, "median_genes": n_genes_N})
        sample_N = obs[key].astype(str).to_numpy()
        uns[DEPTH] = depth.groupby(sample_N).median().astype(float).rename_axis("sample")


def _filtered(
    total_N: np.ndarray, cells: np.ndarray, n_cells_G: np.ndarray, config: PreprocessConfig
) -> np.ndarray:
    """Return which genes are expressed in enough of the cells; warn of cells that are left out."""
    expressed: np.ndarray = n_cells_G >= config.min_cells_per_gene
    _require_left("cell", cells, "preprocess.min_counts_per_cell", config.min_counts_per_cell)
    _require_filtered(total_N[cells])
    _require_left("gene", expressed, "preprocess.min_cells_per_gene", config.min_cells_per_gene)
    if not cells.all():
        warnings.warn(
            f"{int((~cells).sum())} of {len(cells)} cells have fewer counts than "
            f"preprocess.min_counts_per_cell = {config.min_counts_per_cell} and are left out",
            stacklevel=4,
        )
    return expressed


def _not_dropped(names: pd.Index, config: PreprocessConfig) -> np.ndarray:
    """Return which genes are not in ``drop_genes``; warn of those that may be no genes."""
    kept: np.ndarray = ~_dropped(names.to_numpy(), config.drop_genes)
    _require_left("gene", kept, "preprocess.drop_genes", config.drop_genes)
    _warn_of_others(names[kept])
    return kept


def _must_choose(n_genes: int, config: PreprocessConfig) -> bool:
    """Return whether there are more genes than the configuration asks for."""
    if config.n_variable_genes is not None and config.n_variable_genes > n_genes:
        warnings.warn(
            f"preprocess.n_variable_genes = {config.n_variable_genes}, but only {n_genes} "
            "genes passed the filters: all of them are used",
            stacklevel=4,
        )
    return config.n_variable_genes is not None and config.n_variable_genes < n_genes


def _warn_of_empty_cells(adata: AnnData) -> None:
    n_empty = int((LateRows(adata.layers["counts"]).sum(1) == 0).sum())
    if n_empty:
        warnings.warn(
            f"{n_empty} cells have no counts in the {adata.n_vars} modelled genes, so their topic "
            "proportions have no meaning; raise preprocess.min_counts_per_cell or "
            "n_variable_genes",
            stacklevel=4,
        )


def _with_split(adata: AnnData, config: SplitConfig, seed: int) -> AnnData:
    _require_column(adata, config.stratify_by, "preprocess.split.stratify_by")
    parts = split(adata, config, seed=seed)
    for name, share in (("valid", config.valid), ("test", config.test)):
        if share > 0 and not (parts == name).any():
            warnings.warn(
                f"preprocess.split.{name} = {share}: this part of the {adata.n_obs} cells is empty"
                + (f", split by {config.stratify_by!r}" if config.stratify_by else "")
                + "; its scores are left out",
                stacklevel=3,
            )
    # Cells of an earlier run have its column and also the column of the user, which is kept.
    written = [name for name in OWN_COLUMNS if {name, column(name)} <= set(adata.obs)]
    adata.obs = adata.obs.drop(columns=written).rename(columns=column)
    adata.obs["split"] = parts
    return adata


def column(name: str) -> str:
    """Return the name under which a run keeps a column of obs; a run's own names are reserved."""
    return f"{name}_input" if name in OWN_COLUMNS else name


def split(adata: AnnData, config: SplitConfig, *, seed: int = 0) -> pd.Categorical[str]:
    """Return the part of each cell: train, valid or test, shape (N,).

    Shares are exact to one cell, in each group of ``config.stratify_by`` if it is set; the training
    part gets the remainder.
    """
    import pandas as pd

    generator = np.random.default_rng(seed)
    if config.stratify_by is None:
        groups = [np.arange(adata.n_obs)]
    else:
        # Cells without a label are a separate group.
        code, _ = pd.factorize(adata.obs[config.stratify_by])
        groups = [np.flatnonzero(code == value) for value in np.unique(code)]
    part = np.zeros(adata.n_obs, dtype=int)
    for rows in groups:
        n_valid, n_test = round(config.valid * len(rows)), round(config.test * len(rows))
        shuffled = generator.permutation(rows)
        part[shuffled[:n_valid]] = 1
        part[shuffled[n_valid : n_valid + n_test]] = 2
    if not (part == 0).any():
        raise InputError(
            f"preprocess.split.train = {config.train}: none of the {adata.n_obs} cells is left for "
            "training"
        )
    return pd.Categorical.from_codes(part, categories=pd.Index(PARTS))


def settings_of_data(data: DataConfig, config: PreprocessConfig) -> DataConfig:
    """Return the settings by which data are read: in parts if the workers of Dask share them."""
    return data if config.dask is None else replace(data, backed=True)


def prepared(
    load: Callable[[], AnnData | StoredCounts],
    source_digest: str,
    config: PreprocessConfig,
    *,
    seed: int = 0,
    folder: Path | None = None,
) -> AnnData:
    """Return the preprocessed data, from the cache if it has the same data and settings.

    Parameters
    ----------
    load
        Reads the raw data; called only if the cache does not have the data.
    source_digest
        Identity of the raw data.
    config, seed
        As in `preprocess`.
    folder
        Cache folder; the user's own by default.
    """
    if not config.cache:
        return _with_split(_choose(load(), config, None), config.split, seed)
    import anndata

    if folder is None:
        import pooch

        folder = Path(pooch.os_cache("topicell")) / "prepared"
    path = folder / f"{_identity(source_digest, config)}.h5ad"
    held = _HELD.get()
    adata = None
    if held is not None and path in held:
        adata = held[path].copy()
    elif path.is_file():
        # Another process may remove the file at this moment; then the data are prepared again.
        with contextlib.suppress(FileNotFoundError), step("prepared cells from the cache"):
            adata = (mapped.read if mapped.is_own(path) else anndata.read_h5ad)(path)
    if adata is not None:
        messages = [str(message) for message in adata.uns[WARNINGS]]
        with contextlib.suppress(
            OSError
        ):  # Set the time of the last use, if the file still exists.
            os.utime(path)
    else:
        unfinished = _unfinished(path.parent)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                adata = _choose(load(), config, unfinished)
            messages = [str(w.message) for w in caught if w.category is UserWarning]
            adata.uns[WARNINGS] = np.array(messages, dtype=object)
            if unfinished is not None:
                with step("prepared cells to the cache"):
                    _keep(adata, unfinished, path, config.cache_limit_mb)
        finally:
            if unfinished is not None:
                unfinished.unlink(missing_ok=True)
    # Mapped matrices are opened again at once.
    if held is not None and path not in held and not mapped.is_mapped(adata):
        held.clear()
        held[path] = adata.copy()
    del adata.uns[WARNINGS]
    for message in messages:
        warnings.warn(message, stacklevel=2)
    return _with_split(adata, config.split, seed)


@contextlib.contextmanager
def held_in_memory() -> Iterator[None]:
    """Keep the most recently prepared data in memory, for a process that makes several runs."""
    token = _HELD.set({})
    try:
        yield
    finally:
        _HELD.reset(token)


def _identity(source_digest: str, config: PreprocessConfig) -> str:
    """Return a digest of the inputs of the prepared cells: data, settings, libraries, and code."""
    settings = as_dict(config)
    for name in ("split", "cache", "cache_limit_mb", "dask"):
        del settings[name]
    identity = {
        "source": source_digest,
        "settings": settings,
        "libraries": {name: version(name) for name in ("scanpy", "anndata", "scikit-misc")},
        "code": digest_of_code(Path(__file__).parent),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def _unfinished(folder: Path) -> Path | None:
    """Create a temporary file in the cache; None, with a warning, if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(suffix=".h5ad", dir=folder)
    except OSError as error:
        _warn_of_cache(folder, error)
        return None
    os.close(handle)
    return Path(name)


def _keep(adata: AnnData, unfinished: Path, path: Path, limit_mb: int | None) -> None:
    """Write to the cache under a temporary name, then rename: readers never see a partial file."""
    try:
        if mapped.is_mapped(adata):
            mapped.add_uns(unfinished, adata)
        else:
            adata.write_h5ad(unfinished)
        unfinished.replace(path)
        _bound(path, limit_mb)
    except OSError as error:
        _warn_of_cache(path.parent, error)


def _warn_of_cache(folder: Path, error: OSError) -> None:
    warnings.warn(
        f"prepared data could not be cached in {folder}: {error}; set XDG_CACHE_HOME to a folder "
        "with write permission, or use preprocess.cache=false",
        stacklevel=4,
    )


def _bound(newest: Path, limit_mb: int | None) -> None:
    """Remove the least recently used files from the cache of `newest` until it is within the limit.

    Only files with the cache's own names are removed, and never `newest`, even if it alone is
    larger than the limit. Other processes may do the same at the same time.
    """
    now = time.time()
    cached: list[tuple[float, int, Path]] = []
    for file in newest.parent.iterdir():
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        if _CACHED.fullmatch(file.name):
            cached.append((stat.st_mtime, stat.st_size, file))
        elif _UNFINISHED.fullmatch(file.name) and now - stat.st_mtime > _STALE_SECONDS:
            file.unlink(missing_ok=True)
    if limit_mb is None:
        return
    total = sum(size for _, size, _ in cached)
    for _, size, file in sorted(cached):
        if total <= limit_mb * 1_000_000:
            break
        if file != newest:
            file.unlink(missing_ok=True)
            total -= size


def _variable_genes(adata: AnnData, config: PreprocessConfig) -> np.ndarray:
    batch_N, names = _batches(adata.obs, config)
    rank: Callable[[float], np.ndarray]
    if config.flavor in ON_COUNTS:
        sizes = {name: int((batch_N == number).sum()) for number, name in enumerate(names)}
        _require_enough_to_rank(sizes, config)
        selection = streaming.Selection.in_memory(adata.layers["counts"], batch_N)
        rank = functools.partial(selection.variable, config)
    else:
        rank = functools.partial(_by_dispersion, adata, config)
    return _with_spans(rank, config, adata.n_obs, adata.n_vars)


def _by_dispersion(adata: AnnData, config: PreprocessConfig, _: float) -> np.ndarray:
    """Return the genes that scanpy chooses by the dispersion of their log-normalised values."""
    import scanpy as sc

    if config.batch_key is not None:
        # scanpy accepts a column of strings or numbers for one flavour and rejects it for another.
        adata.obs[config.batch_key] = adata.obs[config.batch_key].astype("category")
    with step("variable genes"):
        sc.pp.highly_variable_genes(
            adata,
            n_top_genes=config.n_variable_genes,
            flavor=config.flavor.value,
            batch_key=config.batch_key,
        )
    chosen: np.ndarray = adata.var["highly_variable"].to_numpy()
    return chosen


def _batches(obs: pd.DataFrame, config: PreprocessConfig) -> tuple[np.ndarray, list[object]]:
    """Return the number of the batch of each cell, and the names of the batches.

    Without a column of batches, all cells are one batch without a name.
    """
    if config.batch_key is None:
        return np.zeros(len(obs), dtype=int), [""]
    batch = obs[config.batch_key].astype("category").cat.remove_unused_categories()
    if batch.isna().any():
        raise InputError(
            f"preprocess.batch_key = {config.batch_key!r}: {int(batch.isna().sum())} of "
            f"{len(batch)} cells have no value there; fill the column, or leave "
            "preprocess.batch_key out"
        )
    return batch.cat.codes.to_numpy(dtype=int), batch.cat.categories.tolist()


def _with_spans(
    rank: Callable[[float], np.ndarray], config: PreprocessConfig, n_cells: int, n_genes: int
) -> np.ndarray:
    """Return the chosen genes, with the first span of LOESS that works."""
    problem = ""
    for span in SPANS if config.flavor in ON_COUNTS else SPANS[:1]:
        try:
            chosen = rank(span)
        except ValueError as error:
            # The LOESS of seurat_v3 fails if too many genes have the same mean.
            problem = problem or _words(error)
            continue
        if problem:
            warnings.warn(
                f"the LOESS of preprocess.flavor = {config.flavor.value!r} failed with a span of "
                f"{SPANS[0]} ({problem}), as it can for few cells; the variable genes were chosen "
                f"with a span of {span}",
                stacklevel=3,
            )
        return chosen
    batches = "" if config.batch_key is None else ", or no preprocess.batch_key"
    raise InputError(
        f"preprocess.flavor = {config.flavor.value!r} cannot rank the genes of "
        f"{n_cells} cells × {n_genes} genes ({problem}); use "
        f"preprocess.flavor=seurat or preprocess.n_variable_genes=null{batches}"
    )


def _require_enough_to_rank(sizes: Mapping[object, int], config: PreprocessConfig) -> None:
    """Reject batches with too few cells; `sizes` has the number of cells of each."""
    for batch, size in sizes.items():
        if size < MIN_CELLS_TO_RANK:
            of = batches = ""
            if config.batch_key is not None:
                of, batches = f" of {config.batch_key} = {batch!r}", ", or no preprocess.batch_key"
            raise InputError(
                f"preprocess.flavor = {config.flavor.value!r} cannot rank the genes of the {size} "
                f"cells{of}: it needs at least {MIN_CELLS_TO_RANK} cells; use "
                f"preprocess.flavor=seurat or preprocess.n_variable_genes=null{batches}"
            )


def _words(error: Exception) -> str:
    """Return the message of an error, which compiled code can give as bytes."""
    first = error.args[0] if error.args else error
    return first.decode() if isinstance(first, bytes) else str(first).strip()


def _dropped(names: np.ndarray, patterns: list[str]) -> np.ndarray:
    """Return which genes belong to a named class or match a regular expression, shape (G,)."""
    dropped = np.zeros(len(names), dtype=bool)
    for pattern in patterns:
        if pattern in genes.CLASSES:
            matched = genes.is_of(pattern, names)
        else:
            try:
                compiled = re.compile(pattern)
            except re.error as error:
                raise InputError(
                    f"preprocess.drop_genes: {pattern!r} is not a regular expression ({error})"
                ) from error
            matched = np.fromiter((bool(compiled.search(name)) for name in names), bool, len(names))
        if not matched.any():
            _warn_of_no_match(pattern, names)
        dropped |= matched
    return dropped


def _warn_of_no_match(pattern: str, names: np.ndarray) -> None:
    some = ", ".join(map(str, names[:3]))
    message = f"preprocess.drop_genes: {pattern!r} matches none of {len(names)} genes ({some}, …)"
    if genes.share_of_ids(names) >= 0.5:
        message += "; these names are ids: data.gene_names=COLUMN selects a column of symbols"
    elif pattern not in genes.CLASSES:
        # Find the class that was meant: most patterns are the human spelling of a class.
        for kind in genes.CLASSES:
            found = names[genes.is_of(kind, names)]
            if len(found) and genes.is_like(kind, pattern):
                message += (
                    f"; {len(found)} genes are {kind}, such as {found[0]}: "
                    f"preprocess.drop_genes=[{kind}] recognises all of their spellings"
                )
    warnings.warn(message, stacklevel=5)


def _warn_of_others(names: pd.Index) -> None:
    """Warn about modelled features that may not be genes."""
    spiked = names[genes.is_of("spike_in", names)]
    if len(spiked):
        warnings.warn(
            f"{len(spiked)} spike-ins, such as {spiked[0]}, are modelled like genes; "
            "preprocess.drop_genes=[mitochondrial,spike_in] leaves them out",
            stacklevel=4,
        )
    antibodies = [name for name in names if genes.ANTIBODY.search(str(name))]
    if antibodies:
        warnings.warn(
            f"{len(antibodies)} genes are named like antibodies or hashtags, such as "
            f"{antibodies[0]}; if they are, remove them from the file, or add a pattern to "
            "preprocess.drop_genes",
            stacklevel=4,
        )


def _require_filtered(counts_N: np.ndarray) -> None:
    """Reject the matrix of all barcodes, most of which are empty droplets.

    In such a matrix most barcodes have a few counts, and cells have at least twenty times as many.
    """
    n_barcodes = len(counts_N)
    if n_barcodes < FEWEST_BARCODES:
        return
    deep = np.sort(counts_N)[-min(100, n_barcodes // 10)]
    empty = counts_N < min(EMPTY_COUNTS, deep / 20)
    if empty.mean() > EMPTY_SHARE:
        raise InputError(
            f"{int(empty.sum())} of {n_barcodes} barcodes have fewer than {EMPTY_COUNTS} counts, "
            f"whereas cells have {deep:.0f} and more: this looks like the unfiltered matrix with "
            "empty droplets (raw_feature_bc_matrix); give the filtered matrix "
            "(filtered_feature_bc_matrix), or remove barcodes with few counts (topicell train: "
            "preprocess.min_counts_per_cell=500)"
        )


def _require_column(adata: AnnData, key: str | None, name: str) -> None:
    if key is not None and key not in adata.obs:
        raise InputError(
            f"{name} = {key!r}: obs has no such column; found: {', '.join(map(str, adata.obs))}"
        )


def _require_left(what: str, kept: np.ndarray, name: str, value: object) -> None:
    if not kept.any():
        raise InputError(
            f"{name} = {value!r} removes all {len(kept)} {what}s; use a less strict value"
        )
