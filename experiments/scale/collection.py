"""Seconds of one pass over an annbatch collection, by the way it is read.

    python experiments/scale/collection.py CELLS.h5ad COLLECTION.zarr

COLLECTION.zarr is created by annbatch from the h5ad file, unless it exists. Needs annbatch (Python
3.12) and the extra ``scale``. A pass reads 10,000 cells at a time and checks that they are counts.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import annbatch
import anndata
import h5py
import numpy as np
import scipy.sparse as sp
import zarr

from topicell.counts import as_counts

N_ROWS, N_REPEATS = 10_000, 3
ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}


def rows_of(groups: Any) -> Iterator[Any]:
    for group in groups:
        matrix = anndata.io.sparse_dataset(group["X"])
        for first in range(0, matrix.shape[0], N_ROWS):
            yield matrix[first : first + N_ROWS]


def h5ad(path: Path) -> Iterator[Any]:
    with h5py.File(path) as file:
        yield from rows_of([file])


def by_zarr(path: Path) -> Iterator[Any]:
    yield from rows_of(annbatch.DatasetCollection(path, mode="r"))


def by_loader(path: Path) -> Iterator[Any]:
    loader = annbatch.Loader(
        batch_size=N_ROWS, chunk_size=N_ROWS, preload_nchunks=1, shuffle=False, preload_to_gpu=False
    )
    loader.use_collection(annbatch.DatasetCollection(path, mode="r"))
    for batch in loader:
        yield sp.csr_matrix(batch["X"])


def main() -> None:
    cells, collection = map(Path, sys.argv[1:])
    if not collection.exists():
        annbatch.DatasetCollection(collection).add_adatas(
            [cells], dataset_size=25_000, shard_size="64MB", rng=np.random.default_rng(0)
        )
    ways: dict[str, tuple[Any, Path, dict[str, str]]] = {
        "h5ad": (h5ad, cells, {}),
        "zarr": (by_zarr, collection, {}),
        "zarr with zarrs": (by_zarr, collection, ZARRS),
        "annbatch.Loader": (by_loader, collection, {}),
        "annbatch.Loader with zarrs": (by_loader, collection, ZARRS),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(N_REPEATS):
        for name, (read, path, config) in ways.items():
            with zarr.config.set(config):
                began = time.perf_counter()
                n_values = sum(part.nnz for part in read(path))
                middle = time.perf_counter()
                assert sum(as_counts(part, "X").nnz for part in read(path)) == n_values
                seconds[name].append((middle - began, time.perf_counter() - middle))
    for name, values in seconds.items():
        reading, whole = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name}: reading {reading:.2f} s, with the check of the counts {whole:.2f} s")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
