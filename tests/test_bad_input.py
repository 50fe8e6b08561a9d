"""Bad files and settings are refused in one line, with code 2, before anything is written."""

from __future__ import annotations

import itertools
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import write_elem

from topicell.data.reading import read
from topicell.errors import InputError

PANDAS = tuple(map(int, pd.__version__.split(".")[:2]))
SECONDS = 600
RECORDS = ("config.yaml", "metrics.jsonl", "model", "adata.h5ad", "scores.csv", "report.html")
SMALL = [
    *("model.n_topics=2", "model.n_hidden=4", "train.epochs=1", "train.n_replicates=1"),
    *("train.progress=false", "preprocess=all_genes", "preprocess.cache=false"),
    *("evaluate.n_samples=2", "evaluate.n_elbo_samples=1", "evaluate.n_gap_cells=0"),
    *("evaluate.differential_expression=false", "tracking=off", "report=off"),
]
SIMULATED = ["data=simulated", "data.simulation.n_cells=40", "data.simulation.n_genes=20"]


@pytest.fixture(autouse=True)
def _deadline():
    """Interrupt a test that hangs, for example while it opens a pipe."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the paths under a folder and the bytes of the files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def records() -> set[Path]:
    """Return the files under the current folder that only runs write."""
    return {path for path in Path().rglob("*") if path.name in RECORDS}


def refused(run_here, arguments: list[str], *words: str) -> str:
    """Check that a command refuses its input in one line and writes no part of a run."""
    before = records()
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # Warnings for the user are allowed here.
        code, out, err = run_here(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert (code, len(lines)) == (2, 1), err
    assert lines[0].startswith("topicell: ")
    assert "Traceback" not in err
    for word in words:
        assert word in lines[0], lines[0]
    assert not out
    assert records() == before
    return lines[0]


# Files


def x_of(n_cells: int = 12, n_genes: int = 7) -> np.ndarray:
    return np.random.default_rng(0).poisson(1.5, (n_cells, n_genes)).astype(np.float32)


def names(letter: str, number: int) -> list[str]:
    return [f"{letter}{i}" for i in range(number)]


def h5ad(
    folder: Path,
    x: Any = None,
    *,
    cells: list[str] | None = None,
    genes: list[str] | None = None,
    name: str = "cells.h5ad",
    **columns: Any,
) -> Path:
    """Write an h5ad with any X, valid or not."""
    x = x_of() if x is None else x
    n_cells, n_genes = x.shape[:2] if x.ndim > 1 else (len(x), 1)
    cells, genes = cells or names("c", n_cells), genes or names("g", n_genes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata warns of repeated names
        adata = AnnData(obs=pd.DataFrame(columns, index=cells), var=pd.DataFrame(index=genes))
        adata.write_h5ad(folder / name)
    with h5py.File(folder / name, "a") as file:
        file.pop("X", None)
        if x.dtype.kind in "V?" or x.ndim == 3:
            file["X"] = x
            file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        else:
            write_elem(file, "X", x)
    return folder / name


def compressed(
    folder: Path,
    data: Any,
    indices: Any,
    indptr: Any,
    shape: tuple[int, int] = (12, 7),
    form: str = "csr",
) -> Path:
    """Write an h5ad with the parts of a compressed matrix, valid or not."""
    path = h5ad(folder, sp.csr_matrix((12, 7), dtype=np.float32))
    with h5py.File(path, "a") as file:
        del file["X"]
        group = file.create_group("X")
        group.attrs["encoding-type"] = f"{form}_matrix"
        group.attrs["encoding-version"] = "0.1.0"
        group.attrs["shape"] = np.array(shape)
        for part, values in (("data", data), ("indices", indices), ("indptr", indptr)):
            group[part] = np.asarray(values)
    return path


def one_value(value: float, dtype: Any = np.float64) -> np.ndarray:
    x = x_of().astype(dtype)
    x[3, 4] = value
    return x


def some_bytes(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def noise(n: int = 5000) -> bytes:
    return np.random.default_rng(1).bytes(n)


def truncated(folder: Path) -> Path:
    path = h5ad(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def other_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "weights.h5", "w") as file:
        file["layer1/weights"] = np.ones((3, 4))
    return folder / "weights.h5"


def without(folder: Path, part: str) -> Path:
    path = h5ad(folder)
    with h5py.File(path, "a") as file:
        del file[part]
    return path


def unwritten(folder: Path, shape: tuple[int, ...], **options: Any) -> Path:
    path = h5ad(folder)
    with h5py.File(path, "a") as file:
        del file["X"]
        x = file.create_dataset("X", shape, np.float32, **options)
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return path


def pickled(folder: Path) -> Path:
    path = folder / "cells.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return path


def zarr_folder(folder: Path) -> Path:
    path = folder / "cells.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata and zarr warn of their formats
        adata = AnnData(sp.csr_matrix(x_of()))
        adata.write_zarr(path)
    return path


def noisy_zarr(folder: Path) -> Path:
    path = zarr_folder(folder)
    next(f for f in (path / "X" / "indices").rglob("*") if f.name == "0").write_bytes(noise(40))
    return path


def mtx(folder: Path, header: str | None = None) -> Path:
    path = folder / "mtx"
    path.mkdir()
    scipy.io.mmwrite(path / "matrix.mtx", sp.coo_matrix(x_of().T.astype(int)))
    (path / "features.tsv").write_text("".join(f"E{g}\t{g}\n" for g in names("g", 7)))
    (path / "barcodes.tsv").write_text("".join(f"{c}\n" for c in names("c", 12)))
    if header is not None:
        lines = (path / "matrix.mtx").read_text().splitlines()
        place = next(i for i, line in enumerate(lines) if not line.startswith("%"))
        lines[place] = header
        (path / "matrix.mtx").write_text("\n".join(lines) + "\n")
    return path


def mtx_entries(
    folder: Path, lines: str, sizes: str = "7 12 1", banner: str = "integer general"
) -> Path:
    path = mtx(folder)
    text = f"%%MatrixMarket matrix coordinate {banner}\n%\n{sizes}\n{lines}"
    (path / "matrix.mtx").write_text(text, encoding="latin-1")
    return path


def mtx_without(folder: Path, name: str) -> Path:
    path = mtx(folder)
    (path / name).unlink()
    return path


def mtx_with(folder: Path, **files: str) -> Path:
    path = mtx(folder)
    for name, text in files.items():
        (path / f"{name}.tsv").write_text(text)
    return path


def ten_x(folder: Path, **parts: Any) -> Path:
    """Write a 10x h5 file, with parts of its matrix replaced."""
    x = sp.csr_matrix(x_of().astype(np.int32))
    features = {
        f"features/{key}": np.array(names("g", 7), dtype="S")
        for key in ("id", "name", "genome", "feature_type")
    }
    matrix = {"data": x.data, "indices": x.indices, "indptr": x.indptr, "shape": [7, 12]}
    with h5py.File(folder / "cells.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(names("c", 12), dtype="S")
        for key, value in (matrix | features | parts).items():
            group[key] = np.asarray(value)
    return folder / "cells.h5"


def fifo(folder: Path, name: str = "cells.h5ad") -> Path:
    os.mkfifo(folder / name)
    return folder / name


def mtx_of_fifos(folder: Path) -> Path:
    path = mtx(folder)
    (path / "barcodes.tsv").unlink()
    fifo(path, "barcodes.tsv")
    return path


def link(folder: Path) -> Path:
    (folder / "cells.h5ad").symlink_to(folder / "gone.h5ad")
    return folder / "cells.h5ad"


def folder_named_h5ad(folder: Path) -> Path:
    (folder / "cells.h5ad").mkdir()
    return folder / "cells.h5ad"


def csv(folder: Path, text: str, name: str = "cells.csv") -> Path:
    return some_bytes(folder, name, text.encode())


def log_normalised(folder: Path) -> Path:
    path = h5ad(folder, np.log1p(1e4 * x_of() / 7))
    adata = anndata.read_h5ad(path)
    adata.layers["umi"] = x_of()
    adata.write_h5ad(path)
    return path


def damaged_layer(folder: Path) -> Path:
    path = h5ad(folder)
    adata = anndata.read_h5ad(path)
    adata.layers["spliced"] = sp.csr_matrix(x_of())
    adata.write_h5ad(path)
    with h5py.File(path, "a") as file:
        file["layers/spliced/indices"][5] = 2**30
    return path


RECORD = np.zeros((12, 7), dtype=[("a", "i4"), ("b", "f4")])
EVERY_2 = np.arange(0, 25, 2)  # 12 rows of two values

FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated h5ad": (truncated, "copy or download it again"),
    "empty h5ad": (lambda f: some_bytes(f, "a.h5ad", b""), "is an empty file"),
    "empty csv": (lambda f: some_bytes(f, "a.csv", b""), "a.csv: is an empty file"),
    "empty csv.gz": (lambda f: some_bytes(f, "a.csv.gz", b""), "a.csv.gz: "),
    "random bytes .h5ad": (lambda f: some_bytes(f, "a.h5ad", noise()), "name of an HDF5 file"),
    "random bytes .zarr": (lambda f: some_bytes(f, "a.zarr", noise()), ", h5ad, csv"),
    "random bytes .csv": (lambda f: some_bytes(f, "a.csv", noise()), "cannot be read as csv"),
    "random bytes .tsv.gz": (lambda f: some_bytes(f, "a.tsv.gz", noise()), "a.tsv.gz: "),
    "HDF5 signature alone": (
        lambda f: some_bytes(f, "a.h5ad", b"\x89HDF\r\n\x1a\n" + noise()),
        "cannot be read as",
    ),
    "h5 of another kind": (other_hdf5, "weights.h5: "),
    "h5ad without X": (lambda f: without(f, "X"), "X is empty"),
    "h5ad without obs": (lambda f: without(f, "obs"), "has no obs with the names of the cells"),
    "h5ad without var": (lambda f: without(f, "var"), "has no var with the names of the genes"),
    "pickled npy": (pickled, ", h5ad, csv"),
    "objects in h5ad": (
        lambda f: h5ad(f, np.full((12, 7), "many", dtype=object)),
        "X holds object values, not numbers",
    ),
    "text in csv": (lambda f: csv(f, "cell,A,B\nc1,1,two\n"), "'two' for cell c1, gene B"),
    "huge number in csv": (lambda f: csv(f, f"cell,A,B\nc1,1,{10**40}\n"), "gene B"),
    "overflowing number in csv": (
        lambda f: csv(f, "cell,A,B\nc1,1,1e999\n"),
        # pandas 3.1 reads it as infinity.
        "1 values are infinite" if PANDAS >= (3, 1) else "'1e999' for cell",
    ),
    "short row in csv": (lambda f: csv(f, "cell,A,B\nc1,1,2\nc2,1\n"), "cell c2, gene B"),
    "long row in csv": (lambda f: csv(f, "cell,A,B\nc1,1,2\nc2,1,2,3\n"), "line 3"),
    "NaN": (lambda f: h5ad(f, one_value(np.nan)), "NaN (first: nan in row 3, gene g4)"),
    "NaN, sparse": (lambda f: h5ad(f, sp.csr_matrix(one_value(np.nan))), "row 3, gene g4"),
    "inf": (lambda f: h5ad(f, one_value(np.inf)), "infinite (first: inf in row 3, gene g4)"),
    "negative": (lambda f: h5ad(f, one_value(-1)), "negative (first: -1 in row 3, gene g4)"),
    "log-normalised": (log_normalised, "layer 'umi'"),
    "not whole": (lambda f: h5ad(f, one_value(0.5)), "not whole (first: 0.5 in row 3"),
    "beyond single precision": (
        lambda f: h5ad(f, one_value(2**24 + 1, np.int64)),
        "above 16777216",
    ),
    "int64 maximum": (lambda f: h5ad(f, one_value(2**63 - 1, np.int64)), "above 16777216"),
    "uint64 maximum": (lambda f: h5ad(f, one_value(2**64 - 1, np.uint64)), "above 16777216"),
    "sum of duplicates beyond": (
        lambda f: compressed(
            f, np.full(4, 2**62, np.int64), [0, 0, 0, 0], [0, 4] + [4] * 11, (12, 7)
        ),
        "above 16777216",
    ),
    "complex": (lambda f: h5ad(f, x_of().astype(np.complex64)), "complex64 values, not numbers"),
    "structured": (lambda f: h5ad(f, RECORD), "not numbers"),
    "3-D array": (lambda f: h5ad(f, np.ones((12, 7, 2), np.float32)), "X has 3 dimensions"),
    "1-D array": (lambda f: h5ad(f, np.ones(12, np.float32)), "X has 1 dimensions"),
    "columns far out of bounds": (
        lambda f: compressed(f, np.ones(24), [0, 2**30] * 12, EVERY_2),
        "X is damaged",
    ),
    "negative columns": (lambda f: compressed(f, np.ones(24), [0, -1] * 12, EVERY_2), "damaged"),
    "rows out of bounds in csc": (
        lambda f: compressed(f, np.ones(14), [0, 99] * 7, range(0, 15, 2), form="csc"),
        "X is damaged",
    ),
    "indptr not monotone": (
        lambda f: compressed(f, np.ones(24), [0, 1] * 12, [0, 20, 2, *range(6, 25, 2)]),
        "X is damaged",
    ),
    "indptr that ends at 0": (
        lambda f: compressed(f, np.ones(24), [0, 1] * 12, [0, 2**24, *[2**25] * 10, 0]),
        "X is damaged",
    ),
    "indices of fractions": (
        lambda f: compressed(f, np.ones(24), [0.5, 1] * 12, EVERY_2),
        "X is damaged",
    ),
    "indptr beyond the data": (
        lambda f: compressed(f, np.ones(24), [0, 1] * 12, [*range(0, 24, 2), 2**40]),
        "X is damaged",
    ),
    "indptr too short": (lambda f: compressed(f, np.ones(4), [0, 1] * 2, [0, 2, 4]), "cells.h5ad"),
    "fewer indices than data": (lambda f: compressed(f, np.ones(24), [0, 1], EVERY_2), "damaged"),
    "damaged layer beside the counts": (damaged_layer, "layers['spliced'] is damaged"),
    "huge shape, sparse": (
        lambda f: compressed(f, np.ones(24), [0, 1] * 12, EVERY_2, (10**12, 10**12)),
        "cells.h5ad: ",
    ),
    "huge shape, dense, in chunks": (
        lambda f: unwritten(f, (10**6, 10**6), chunks=(100, 100)),
        "X is declared as 1000000 × 1000000",
    ),
    "huge shape, dense": (lambda f: unwritten(f, (10**6, 10**5)), "X is declared as"),
    "right shape, never written": (lambda f: unwritten(f, (12, 7)), "X is declared as 12 × 7"),
    "10x h5, out of bounds": (lambda f: ten_x(f, indices=[2**20] * 50), "cells.h5: "),
    "10x h5, indptr not monotone": (
        lambda f: ten_x(f, indptr=[0, 40, 2, *range(3, 12), 44]),
        "cells.h5: ",
    ),
    "10x h5, huge shape": (lambda f: ten_x(f, shape=[2**40, 2**40]), "cells.h5: "),
    "zarr, noise in a chunk": (noisy_zarr, "cells.zarr: "),
    "mtx without barcodes": (lambda f: mtx_without(f, "barcodes.tsv"), "no barcodes.tsv"),
    "mtx without features": (lambda f: mtx_without(f, "features.tsv"), "features.tsv or genes"),
    "mtx without matrix": (lambda f: mtx_without(f, "matrix.mtx"), "neither zarr nor 10x mtx"),
    "mtx with too few barcodes": (
        lambda f: mtx_with(f, barcodes="c1\nc2\n"),
        "names for 7 genes and 2 cells",
    ),
    "mtx with empty barcodes": (lambda f: mtx_with(f, barcodes=""), "cannot be read as a 10x mtx"),
    "mtx that declares a huge shape": (
        lambda f: mtx(f, f"{10**9} {10**9} 5"),
        "of the same sample",
    ),
    "mtx that declares huge contents": (
        lambda f: mtx(f, f"7 12 {10**12}"),
        "declares 1000000000000 entries of gene",
    ),
    "mtx with an entry out of bounds": (
        lambda f: mtx_entries(f, "8 1 3\n"),
        "has entries beyond its 7 genes × 12 cells",
    ),
    "mtx with a damaged line": (
        lambda f: mtx_entries(f, "1 1 3\n4 3\t\x01\xff\n0\n1 5 100\n", "7 12 3"),
        "mtx: ",
    ),
    "mtx with text for a count": (
        lambda f: mtx_entries(f, "1 1 three\n"),
        "or values that are not numbers",
    ),
    "mtx of complex numbers": (
        lambda f: mtx_entries(f, "1 1 1 1\n", banner="complex general"),
        "but holds 1 lines of 4",
    ),
    "mtx of another form": (
        lambda f: mtx_entries(f, "1\n", banner="integer symmetric"),
        "does not begin with",
    ),
    "mtx alone": (lambda f: (mtx(f) / "matrix.mtx").rename(f / "matrix.mtx"), "give the folder"),
    "everything zero": (lambda f: h5ad(f, x_of() * 0), "preprocess.min_counts_per_cell"),
    "one cell": (lambda f: h5ad(f, x_of(1) + 1), "only 1 training cells"),
    "one gene": (lambda f: h5ad(f, x_of(12, 1) + 1), "only 1 gene is left"),
    "zero cells": (lambda f: h5ad(f, x_of(0)), "X is empty: 0 cells × 7 genes"),
    "zero genes": (lambda f: h5ad(f, x_of(12, 0)), "X is empty: 12 cells × 0 genes"),
    "header alone": (lambda f: csv(f, "cell,A,B\n"), "has a header and no cells"),
    "a gene without name": (
        lambda f: h5ad(f, genes=["g0", "", *names("h", 5)]),
        "gene 2 of 7 has no name",
    ),
    "a gene without name in csv": (
        lambda f: csv(f, "cell,A,,C\nc1,1,2,3\n"),
        "gene 2 of 3 has no name",
    ),
    "a cell without name": (
        lambda f: csv(f, "cell,A,B\nc1,1,2\n,3,4\n"),
        "cell 2 of 2 has no name",
    ),
    "a name with NUL": (
        lambda f: ten_x(f, **{"features/name": np.array(["a", "b\0c", *"defgh"], dtype="S")}),
        "null character",
    ),
    "a folder": (lambda f: folder_named_h5ad(f), "is an empty folder"),
    "nothing there": (lambda f: f / "none.h5ad", "there is no such file"),
    "a broken link": (link, "there is no such file"),
    "a pipe": (fifo, "a pipe or a device"),
    "a pipe in an mtx folder": (mtx_of_fifos, "no barcodes.tsv"),
    "a device": (lambda f: Path("/dev/zero"), "a pipe or a device"),
}


TO_TRAIN = ("everything zero", "one cell", "one gene")
"""Cases that can be read but not fitted."""


@pytest.mark.parametrize("case", [case for case in FILES if case not in TO_TRAIN])
def test_a_bad_file_is_refused_and_not_changed(case, tmp_path, run_here):
    # `transform` reads its input first; `train` first composes its settings, which takes longer.
    make, words = FILES[case]
    path = make(tmp_path)
    before = contents(tmp_path)
    line = refused(run_here, ["transform", "run=x", f"input={path}", "output=out.h5ad"], words)
    assert path.name in line
    assert contents(tmp_path) == before
    assert not list(Path().iterdir())


@pytest.mark.parametrize("case", [*TO_TRAIN, "NaN", "a pipe"])
def test_train_refuses_a_bad_file_and_leaves_no_run(case, tmp_path, run_here):
    make, words = FILES[case]
    path = make(tmp_path)
    before = contents(tmp_path)
    refused(run_here, ["train", "data=file", f"data.path='{path}'", *SMALL], words)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["a" * 5000 + ".h5ad", "file/cells.h5ad", "cells\0.h5ad"])
def test_an_impossible_path_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="check the path"):
        read(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission_is_refused(tmp_path):
    h5ad(tmp_path).chmod(0)
    with pytest.raises(InputError, match="change its permissions"):
        read(tmp_path / "cells.h5ad")


# Unusual files that are valid


def test_unsorted_indices_are_read_as_sorted_ones(tmp_path):
    x = sp.csr_matrix(x_of())
    for start, end in itertools.pairwise(x.indptr):
        x.indices[start:end] = x.indices[start:end][::-1].copy()
        x.data[start:end] = x.data[start:end][::-1].copy()
    path = compressed(tmp_path, x.data, x.indices, x.indptr)
    assert (read(path).X.toarray() == x_of()).all()
    assert (read(path, backed=True).X.toarray() == x_of()).all()


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "u8"])
@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix])
def test_indices_may_be_of_any_integer_type(dtype, form, tmp_path):
    x = form(x_of())
    parts = (x.data, x.indices.astype(dtype), x.indptr.astype(dtype))
    path = compressed(tmp_path, *parts, form=x.format)
    assert (read(path).X.toarray() == x_of()).all()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i8", "f4", "f8"])
@pytest.mark.parametrize("backed", [False, True])
def test_repeated_entries_are_added_with_a_warning(dtype, backed, tmp_path):
    data = np.array([100, 100, 100, 1], dtype=dtype)
    path = compressed(tmp_path, data, [2, 2, 2, 3], [0, 4] + [4] * 11)
    with pytest.warns(UserWarning, match=r"X holds 2 values that repeat a cell and gene"):
        adata = read(path, backed=backed)
    assert adata.X.toarray()[0].tolist() == [0, 0, 300, 1, 0, 0, 0]


def test_repeated_lines_of_an_mtx_file_are_added_with_a_warning(tmp_path):
    path = mtx(tmp_path, "7 12 3")
    text = (path / "matrix.mtx").read_text()
    head = text[: text.index("7 12 3")]
    (path / "matrix.mtx").write_text(f"{head}7 12 3\n1 1 {2**62}\n1 1 {2**62}\n2 1 5\n")
    with (
        pytest.warns(UserWarning, match="matrix.mtx holds 1 values"),
        pytest.raises(InputError, match="above 16777216"),
    ):
        read(path)
    (path / "matrix.mtx").write_text(f"{head}7 12 3\n1 1 3\n1 1 4\n2 1 5\n")
    with pytest.warns(UserWarning, match="matrix.mtx holds 1 values"):
        assert read(path).X.toarray()[0].tolist() == [7, 5, 0, 0, 0, 0, 0]


def test_a_negative_zero_is_zero(tmp_path):
    x = x_of()
    for form in (np.asarray, sp.csr_matrix):
        matrix = form(np.where(x == 0, np.float32(-0.0), x))
        adata = read(h5ad(tmp_path, matrix))
        assert not np.signbit(adata.X.data).any()
        assert (adata.X.toarray() == x).all()


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "u8", "f2", "f8", ">i4", ">f4"])
def test_counts_may_be_of_any_number_type(dtype, tmp_path):
    x = np.minimum(x_of(), 1).astype(dtype)
    assert (read(h5ad(tmp_path, x)).X.toarray() == x).all()


NAMES = ["é", "日本", "🧬", "a b", "new\nline", "-1", "NA"]


def unusual(folder: Path) -> Path:
    x = x_of(12, 9)
    x[:, 2] = 0
    x[4] = 0
    kind = pd.Categorical(["a", "b", None, "b"] * 3)
    cells = ["é", "日本\n", *names("c", 10)]
    return h5ad(folder, x, cells=cells, genes=[*NAMES, "g", "g"], kind=kind)


def test_unusual_cells_are_fitted_and_stored(tmp_path, run_here):
    """Any script, repeated names, empty cells and genes, missing labels."""
    path = unusual(tmp_path)
    settings = ["hydra.run.dir=here", "data.label_key=kind", *SMALL]
    settings += ["preprocess.n_variable_genes=100"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run_here("train", "data=file", f"data.path='{path}'", *settings)
    assert code == 0, err
    assert "1 gene names are repeated" in err
    assert "1 of 12 cells have fewer counts" in err
    assert "only 8 genes passed the filters" in err
    kept = anndata.read_h5ad("here/adata.h5ad")
    assert set(kept.var_names) == {*NAMES, "g", "g-1"} - {NAMES[2]}
    table = pd.read_csv("here/topics/gene_topics.csv", index_col=0, keep_default_na=False)
    assert set(table.index.astype(str)) == set(kept.var_names)
    # A second run overwrites neither the cells nor the first run.
    before = contents(tmp_path) | contents(Path("here"))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, _, err = run_here("train", "data=file", f"data.path='{path}'", *settings)
    assert code == 2
    assert "already holds config.yaml" in err
    assert contents(tmp_path) | contents(Path("here")) == before


# Settings


def labelled(folder: Path) -> Path:
    batch = ["a"] * 11 + ["b"]
    return h5ad(folder, x_of() + 1, batch=batch, depth=np.arange(12) / 7, none=[np.nan] * 12)


SETTINGS: dict[str, tuple[list[str], str]] = {
    "an unknown setting": (["model.n_topix=3"], "did you mean 'model.n_topics'"),
    "an unknown group": (["optimizer=adam"], "optimizer"),
    "a misspelled group": (["preproces=no_ribosomal"], "did you mean 'preprocess'"),
    "an unknown choice of a group": (["preprocess=all_gnes"], "did you mean 'all_genes'"),
    "an unknown experiment": (["experiment=tutoral"], "did you mean 'tutorial'"),
    "an added unknown setting": (["+train.lerning_rate=3"], "did you mean 'train.learning_rate'"),
    "a deleted setting": (["~train.epochs"], "train.epochs"),
    "no equals sign": (["seed"], "NAME=VALUE"),
    "a file without a name": (["basic.h5ad"], "data=file data.path=FILE"),
    "no value": (["seed="], "seed"),
    "a group for a value": (["model.n_topics={a:1}"], "model.n_topics"),
    "a value for a group": (["train=fast"], "train = 'fast' does not exist"),
    "a list for a value": (["model.n_topics=[1]"], "model.n_topics"),
    "a value for a list": (["preprocess.drop_genes=[a],[b]"], "preprocess.drop_genes"),
    "unbalanced brackets": (["preprocess.drop_genes=[a"], "'[a'"),
    "an interpolation to nowhere": (["seed=${nowhere}"], "nowhere"),
    "more topics than cells": (
        [*SIMULATED, "model.n_topics=39"],
        "model.n_topics = 39: there are only 32 training cells",
    ),
    "an unknown device": (["train.device=gpu0"], "expected one of [auto, cpu, cuda]"),
    "topics in words": (
        ["model.n_topics=ten"],
        "model.n_topics = 'ten': model.n_topics takes a whole number",
    ),
    "a learning rate of nan": (["train.learning_rate=nan"], "train.learning_rate = nan"),
    "a device": (["train.device=tpu"], "train.device"),
    "a prior beyond single precision": (["model.cell_topic_prior=1e300"], "model.cell_topic_prior"),
    "a prior for no gene": (
        [*SIMULATED, "model.topic_gene_prior=[1,2]"],
        "model.topic_gene_prior has 2 numbers",
    ),
    "checkpoints in minutes": (["train.checkpoint_every=1min"], "train.checkpoint_every"),
    "no cell to train on": (
        [
            *(*SIMULATED, "data.simulation.n_cells=2", "preprocess.split.train=0.01"),
            *("preprocess.split.valid=0.5", "preprocess.split.test=0.49"),
        ],
        "preprocess.split.train = 0.01: none of the",
    ),
    "a pattern that is no regular expression": (
        [*SIMULATED, "preprocess.drop_genes=['(']"],
        "preprocess.drop_genes: '(' is not a regular expression",
    ),
    "a pattern of every gene": ([*SIMULATED, "preprocess.drop_genes=['']"], "drop_genes = ['']"),
    "counts that no cell has": (
        [*SIMULATED, "preprocess.min_counts_per_cell=2000000000"],
        "removes all 40 cells",
    ),
    "a simulation beyond counts": (
        ["data=simulated", "data.simulation.mean_counts=1e30"],
        "data.simulation.mean_counts = 1e+30",
    ),
    "a simulation of extreme library sizes": (
        ["data=simulated", "data.simulation.counts_sd=1e30"],
        "data.simulation.counts_sd = 1e+30",
    ),
    "a simulation of no topics": (
        [*SIMULATED, "data.simulation.cell_topic_prior=1e308"],
        "data.simulation.cell_topic_prior = 1e+308",
    ),
    "an empty path": (["data=file", "data.path=''"], "data=file needs data.path=FILE"),
    "an unknown data set": (["data.name=pbmc9k"], "data.name = 'pbmc9k'"),
    "a data set that is backed": ([*SIMULATED, "data.backed=true"], "data.backed = True"),
    "an unknown layer": ([*SIMULATED, "data.layer=spliced"], "layer 'spliced' does not exist"),
    "an unknown label": ([*SIMULATED, "data.label_key=kind"], "data.label_key = 'kind'"),
    "labels that are numbers": (["<file>", "data.label_key=depth"], "cannot be labels"),
    "an unknown batch": ([*SIMULATED, "preprocess.batch_key=lane"], "preprocess.batch_key = 'lan"),
    "a batch of one cell": (
        ["<file>", "preprocess.n_variable_genes=3", "preprocess.batch_key=batch"],
        "of batch = 'b'",
    ),
    "a batch that is missing": (
        ["<file>", "preprocess.n_variable_genes=3", "preprocess.batch_key=none"],
        "preprocess.batch_key = 'none': 12 of 12 cells have no value",
    ),
    "an unknown batch of the model": (
        [*SIMULATED, "model.batch_key=lane"],
        "topicell: model.batch_key = 'lane': obs has no such column",
    ),
    "a batch of the model of one cell": (
        ["<file>", "preprocess.n_variable_genes=3", "model.batch_key=batch"],
        "or no model.batch_key",
    ),
    "a batch of the model that is missing": (
        ["<file>", "preprocess.n_variable_genes=3", "model.batch_key=none"],
        "topicell: model.batch_key = 'none': 12 of 12 cells have no value",
    ),
    "a batch of the model that is missing, with all genes": (
        ["<file>", "preprocess=all_genes", "model.batch_key=none"],
        "topicell: model.batch_key = 'none': 12 of 12 cells have no value",
    ),
    "prior knowledge from nowhere": (
        [*SIMULATED, "model.topic_gene_prior=blod"],
        "or use a GMT file, 'blood', or run=RUN_ID",
    ),
    "prior knowledge of a run that does not exist": (
        [*SIMULATED, "model.topic_gene_prior=run=none"],
        "topicell: model.topic_gene_prior = 'run=none': ",
    ),
    "initial topics from nowhere": (
        [*SIMULATED, "model.init_topics=none.csv"],
        "none.csv': there is no such file",
    ),
    "an unknown stratum": (
        [*SIMULATED, "preprocess.split.stratify_by=lane"],
        "preprocess.split.stratify_by = 'lane'",
    ),
    "gene sets from nowhere": (
        [*SIMULATED, "report.enabled=true", "report.gene_sets=none.gmt"],
        "none.gmt",
    ),
    "an unsupported tracking address": (
        ["tracking.enabled=true", "tracking.uri=ftp://somewhere"],
        "tracking.uri",
    ),
    "a run folder that is a file": ([*SIMULATED, "hydra.run.dir=taken"], "hydra.run.dir=FOLDER"),
    "a run folder in a file": ([*SIMULATED, "hydra.run.dir=taken/run"], "hydra.run.dir=FOLDER"),
    "a run folder with a run": ([*SIMULATED, "hydra.run.dir=full"], "already holds scores.csv"),
    "a sweep's setting without a sweep": (["sweep.n_trials=3"], "this is not a sweep"),
    "a grid without -m": (["seed=1,2"], "seed"),
    "settings of a grid": (["-m", "--cfg", "job"], "--cfg, --info and -m cannot be combined"),
    "a setting that a library lacks": (["model=sklearn_nmf", "model.n_layers=2"], "has no such"),
    "half precision with pyro": (
        ["train.precision=bfloat16", "train.engine=pyro"],
        "train.precision",
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_bad_setting_is_refused_and_nothing_is_overwritten(case, tmp_path, run_here):
    arguments, words = SETTINGS[case]
    file = ["data=file", f"data.path='{labelled(tmp_path)}'"]
    arguments = [
        a for argument in arguments for a in (file if argument == "<file>" else [argument])
    ]
    Path("taken").write_text("mine")
    Path("full").mkdir()
    Path("full/scores.csv").write_text("mine")
    refused(run_here, ["train", *SMALL, *arguments], words)
    assert Path("taken").read_text() == "mine"
    assert Path("full/scores.csv").read_text() == "mine"


OTHER_COMMANDS: dict[str, tuple[list[str], str]] = {
    "transform to a file that exists": (
        ["transform", "run=x", "input=cells.h5ad", "output=taken.csv"],
        "output = 'taken.csv' exists",
    ),
    "transform to a folder that does not exist": (
        ["transform", "run=x", "input=cells.h5ad", "output=none/a.csv"],
        "there is no folder none",
    ),
    "transform of a truncated file": (
        ["transform", "run=x", "input=half.h5ad", "output=a.csv"],
        "half.h5ad: ",
    ),
    "transform of a pipe": (
        ["transform", "run=x", "input=pipe", "output=a.csv"],
        "pipe: is a pipe",
    ),
    "transform without a store": (
        ["transform", "run=x", "input=cells.h5ad", "output=a.csv"],
        "mlflow.db does not exist:",
    ),
    "transform with samples in words": (
        ["transform", "run=x", "input=cells.h5ad", "output=a.csv", "n_samples=many"],
        "n_samples",
    ),
    "evaluate of a truncated file": (
        ["evaluate", "theta=theta.csv", "beta=beta.csv", "data=half.h5ad"],
        "half.h5ad: ",
    ),
    "evaluate of a pipe": (
        ["evaluate", "theta=pipe.csv", "beta=beta.csv", "data=cells.h5ad"],
        "theta=pipe.csv: ",
    ),
    "evaluate of noise": (
        ["evaluate", "theta=noise.npz", "beta=beta.csv", "data=cells.h5ad"],
        "theta=noise.npz: cannot be read as npz",
    ),
    "evaluate of objects": (
        ["evaluate", "theta=theta.csv", "beta=cells.npy", "data=cells.h5ad"],
        "save values as numbers",
    ),
    "evaluate of nan": (
        ["evaluate", "theta=nan.csv", "beta=beta.csv", "data=cells.h5ad"],
        "theta=nan.csv: ",
    ),
}


@pytest.mark.parametrize("case", OTHER_COMMANDS)
def test_other_commands_refuse_bad_input(case, run_here):
    arguments, words = OTHER_COMMANDS[case]
    here = Path()
    h5ad(here, x_of() + 1)
    pickled(here)
    fifo(here, "pipe")
    fifo(here, "pipe.csv")
    some_bytes(here, "half.h5ad", Path("cells.h5ad").read_bytes()[:3000])
    some_bytes(here, "noise.npz", b"PK\x03\x04" + noise())
    theta = pd.DataFrame({"a": [0.5] * 12, "b": [0.5] * 12}, index=names("c", 12))
    theta.to_csv("theta.csv")
    theta.replace(0.5, np.nan).to_csv("nan.csv", na_rep="nan")
    pd.DataFrame({"a": [1 / 7] * 7, "b": [1 / 7] * 7}, index=names("g", 7)).to_csv("beta.csv")
    Path("taken.csv").write_text("mine")
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    off = [] if arguments[0] == "transform" else ["report=off"]
    refused(run_here, [*arguments, "tracking=off", *off], words)
    assert {path: path.read_bytes() for path in before} == before
    assert not Path("a.csv").exists()
