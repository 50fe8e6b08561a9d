"""Each form is read with the values written; a damaged file is refused with path and fix."""

from __future__ import annotations

import gzip
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.config import DataConfig, SimulationConfig
from topicell.counts import layer_names
from topicell.data import reading
from topicell.data.catalogue import CATALOGUE
from topicell.data.formats import text
from topicell.data.reading import data_digest, load, read, source_digest
from topicell.errors import InputError


def cells(seed: int = 0, n_cells: int = 12, n_genes: int = 7) -> AnnData:
    rng = np.random.default_rng(seed)
    x = sp.csr_matrix(rng.poisson(0.8, (n_cells, n_genes)).astype(np.float32))
    obs = pd.DataFrame(
        {"kind": pd.Categorical(["a", "b", "c"] * 4)[:n_cells], "depth": np.arange(n_cells)},
        index=[f"cell{i}" for i in range(n_cells)],
    )
    genes = pd.Index([f"G{i}" for i in range(n_genes)])
    return AnnData(x, obs=obs, var=pd.DataFrame({"id": [f"E{g}" for g in genes]}, index=genes))


def write_h5ad(adata: AnnData, folder: Path) -> Path:
    path = folder / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def write_zarr(adata: AnnData, folder: Path) -> Path:
    path = folder / "cells.zarr"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's and zarr's own, about their formats
        adata.write_zarr(path)
    return path


def write_mtx(adata: AnnData, folder: Path) -> Path:
    path = folder / "mtx"
    path.mkdir()
    scipy.io.mmwrite(path / "matrix.mtx", sp.coo_matrix(adata.X.T.astype(int)))
    rows = [f"E{gene}\t{gene}\tGene Expression\n" for gene in adata.var_names]
    (path / "features.tsv").write_text("".join(rows))
    (path / "barcodes.tsv").write_text("\n".join(adata.obs_names) + "\n")
    return path


def write_text(
    adata: AnnData, folder: Path, *, name: str = "cells.csv", corner: bool = True
) -> Path:
    path = folder / name
    separator = "," if ".csv" in name else "\t"
    frame = adata.to_df().astype(int)
    text = frame.to_csv(sep=separator, index_label="cell")
    if not corner:
        text = text.removeprefix("cell" + separator)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


WRITERS: dict[str, Callable[[AnnData, Path], Path]] = {
    "h5ad": write_h5ad,
    "zarr": write_zarr,
    "mtx": write_mtx,
    "csv": write_text,
    "csv without corner": lambda a, f: write_text(a, f, corner=False),
    "csv.gz": lambda a, f: write_text(a, f, name="cells.csv.gz"),
    "tsv": lambda a, f: write_text(a, f, name="cells.tsv"),
    "txt.gz": lambda a, f: write_text(a, f, name="cells.txt.gz"),
}


@pytest.mark.parametrize("form", WRITERS)
def test_each_form_is_read_with_the_values_written(form: str, tmp_path: Path) -> None:
    adata = cells()
    path = WRITERS[form](adata, tmp_path)
    again = read(path)
    x = again.layers["counts"]
    assert isinstance(x, sp.csr_matrix)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(again.X.toarray(), adata.X.toarray())
    assert list(again.obs_names) == list(adata.obs_names)
    assert list(again.var_names) == list(adata.var_names)
    source = again.uns["topicell_source"]
    assert source["name"] == path.name.split(".")[0]
    assert source["source"] == str(path.resolve())
    assert len(source["sha256"]) == 64
    assert source["label_key"] == ""
    if form in ("h5ad", "zarr"):
        assert list(again.obs["kind"]) == list(adata.obs["kind"])
    if form == "mtx":
        assert list(again.var["gene_ids"]) == list(adata.var["id"])
    # The digest is that of the content; the result can be written and read again.
    assert data_digest(again) == data_digest(adata)
    again.write_h5ad(tmp_path / "again.h5ad")
    assert data_digest(read(tmp_path / "again.h5ad")) == data_digest(adata)


@settings(max_examples=25)
@given(
    matrix=st.lists(
        st.lists(st.integers(0, 2**24), min_size=3, max_size=3), min_size=1, max_size=5
    ),
    chunk=st.integers(1, 6),
)
def test_any_table_of_counts_is_read_from_text(
    matrix: list[list[int]], chunk: int, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "_CSV_ROWS", chunk)
        path = tmp_path / "any.csv"
        # Names that look like missing values or numbers.
        rows = [f"{i},{','.join(map(str, row))}" for i, row in enumerate(matrix)]
        path.write_text("\n".join(["cell,NA,nan,1", *rows]))
        adata = read(path)
    np.testing.assert_array_equal(adata.X.toarray(), matrix)
    assert list(adata.var_names) == ["NA", "nan", "1"]
    assert list(adata.obs_names) == [str(i) for i in range(len(matrix))]


@pytest.mark.parametrize("form", ["h5ad", "zarr", "csv"])
def test_repeated_names_become_unique_with_a_warning(form: str, tmp_path: Path) -> None:
    adata = cells()
    adata.var_names = ["A", "B", "A", "C", "A", "D", "B"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's, on writing
        path = WRITERS[form](adata, tmp_path)
    with pytest.warns(UserWarning, match="3 gene names are repeated") as caught:
        again = read(path)
    assert [w.category for w in caught].count(UserWarning) == 1
    assert list(again.var_names) == ["A", "B", "A-1", "C", "A-2", "D", "B-1"]
    np.testing.assert_array_equal(again.X.toarray(), adata.X.toarray())


def test_repeated_cell_names_become_unique_with_a_warning(tmp_path: Path) -> None:
    adata = cells()
    adata.obs_names = ["x"] * 2 + [f"c{i}" for i in range(10)]
    with pytest.warns(UserWarning, match="1 cell names are repeated"):
        assert read(write_text(adata, tmp_path)).obs_names.is_unique


def layered() -> AnnData:
    """Return counts in a layer, logarithms in X, and more genes in raw."""
    whole = cells()
    adata = whole[:, :4].copy()
    adata.raw = whole
    adata.layers["counts"] = adata.X.copy()
    adata.layers["doubled"] = adata.X * 2
    adata.X = np.log1p(adata.X)
    adata.obsm["X_pca"] = np.zeros((12, 2))
    adata.uns["log1p"] = {"base": 2.0}
    adata.uns["kind_colors"] = np.array(["red", "green", "blue"])
    return adata


@pytest.mark.parametrize(
    ("writer", "backed"), [(write_h5ad, False), (write_h5ad, True), (write_zarr, False)]
)
@pytest.mark.parametrize(
    ("layer", "n_genes", "factor"),
    [(None, 4, 1), ("counts", 4, 1), ("doubled", 4, 2), ("raw", 7, 1)],
)
def test_the_setting_selects_the_layer_of_counts(
    writer: Callable[[AnnData, Path], Path],
    backed: bool,
    layer: str | None,
    n_genes: int,
    factor: int,
    tmp_path: Path,
) -> None:
    adata = layered()
    again = read(writer(adata, tmp_path), layer=layer, backed=backed)
    expected = cells().X.toarray()[:, :n_genes] * factor
    np.testing.assert_array_equal(again.layers["counts"].toarray(), expected)
    np.testing.assert_array_equal(again.X.toarray(), expected)
    assert again.raw is None
    assert list(again.obs["kind"]) == list(adata.obs["kind"])
    assert list(again.var["id"]) == [f"EG{i}" for i in range(n_genes)]
    assert "log1p" not in again.uns
    # Other parts of the file are read too, but not if it is backed.
    assert ("X_pca" in again.obsm) == (not backed)
    assert ("kind_colors" in again.uns) == (not backed)


def test_backed_reads_only_counts_obs_and_var(tmp_path: Path) -> None:
    path = write_h5ad(layered(), tmp_path)
    with h5py.File(path, "a") as file:
        # Make them unreadable: sparse matrices without their arrays.
        for name in ("X", "layers/doubled", "raw/X"):
            for part in ("data", "indices", "indptr"):
                del file[name][part]
        for name in ("obsm/X_pca", "uns/kind_colors"):
            del file[name]
            file[name] = 0
            file[name].attrs["encoding-type"] = "unheard-of"
            file[name].attrs["encoding-version"] = "9"
    with pytest.raises(InputError, match="cannot be read as h5ad"):
        read(path)
    adata = read(path, backed=True)
    np.testing.assert_array_equal(adata.X.toarray(), cells().X.toarray()[:, :4])
    assert layer_names(adata) == ["counts"]
    assert not adata.obsm
    assert list(adata.uns) == ["topicell_source"]
    assert not adata.isbacked


BAD_TEXT = {
    "text in the matrix": ("cell,A,B\nc1,1,2\nc2,many,3\n", "'many' for cell c2, gene A"),
    "an empty field": ("cell,A,B\nc1,1,\n", "holds '' for cell c1, gene B"),
    "a short row": ("cell,A,B\nc1,1,2\nc2,1\n", "which is not a number|NaN"),
    "a long row": ("cell,A,B\nc1,1,2\nc2,1,2,3\n", "cannot be read as csv"),
    "a second header": ("cell,A,B\nunits,n,n\nc1,1,2\n", "holds 'n' for cell units"),
    "too many names": ("cell,A,B,C,D\nc1,1,2\n", "5 names"),
    "one column": ("cell\nc1\n", "separate by commas"),
    "no cells": ("cell,A,B\n", "has a header and no cells"),
    "nothing": ("", "is an empty file"),
    "a negative value": ("cell,A,B\nc1,1,-2\n", "negative"),
    "a fraction": ("cell,A,B\nc1,1,0.5\n", "not whole.*gene B"),
    "a missing value": ("cell,A,B\nc1,1,nan\n", "holds 'nan' for cell c1"),
    "a huge value": ("cell,A,B\nc1,1,99999999\n", "above 16777216"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_bad_text_is_refused(case: str, tmp_path: Path) -> None:
    text, message = BAD_TEXT[case]
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def truncated(form: str, folder: Path) -> Path:
    path = WRITERS[form](cells(), folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def h5ad_without(name: str, folder: Path) -> Path:
    path = write_h5ad(cells(), folder)
    with h5py.File(path, "a") as file:
        del file[name]
    return path


def some_bytes(name: str, folder: Path, content: bytes = b"\x00garbage" * 50) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def zarr_without(part: str, folder: Path) -> Path:
    path = write_zarr(cells(), folder)
    for chunk in (path / part).rglob("*"):
        if chunk.is_file() and not chunk.name.startswith((".z", "zarr")):
            chunk.unlink()
    return path


def other_hdf5(folder: Path) -> Path:
    with h5py.File(folder / "weights.h5", "w") as file:
        file["weights"] = np.zeros(3)
    return folder / "weights.h5"


def text_matrix(folder: Path) -> Path:
    path = write_h5ad(cells(), folder)
    with h5py.File(path, "a") as file:
        del file["X"]
        anndata.io.write_elem(file, "X", np.full((12, 7), "many", dtype=object))
    return path


BAD_PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda f: f / "none.h5ad", "there is no such file.*check the path"),
    "plain folder": (
        lambda f: some_bytes("a.doc", f).parent,
        "is a folder.*give a file in it.*Supported: .*h5ad",
    ),
    "unknown form": (lambda f: some_bytes("cells.abc", f), "format; supported: .*10x h5, h5ad"),
    "no suffix": (lambda f: some_bytes("cells", f), "supported: .*h5ad"),
    "empty h5ad": (lambda f: some_bytes("cells.h5ad", f, b""), "copy or download it again"),
    "garbage h5ad": (lambda f: some_bytes("cells.h5ad", f), "name of an HDF5 file"),
    "garbage csv": (lambda f: some_bytes("cells.csv", f, b"\xff\xfe\x00" * 99), "as csv"),
    "garbage gz": (lambda f: some_bytes("cells.csv.gz", f), "copy or download it again"),
    "half an h5ad": (lambda f: truncated("h5ad", f), "copy or download it again"),
    "half a csv.gz": (lambda f: truncated("csv.gz", f), "copy or download it again"),
    "h5ad without obs": (lambda f: h5ad_without("obs", f), "cannot be read as h5ad"),
    "h5ad without X": (lambda f: h5ad_without("X", f), "X is empty"),
    "h5ad without indptr": (lambda f: h5ad_without("X/indptr", f), "cannot be read as h5ad"),
    "another HDF5": (other_hdf5, "weights.h5: "),
    "text in h5ad": (text_matrix, "not numbers|cannot be read as h5ad"),
    "zarr without indptr": (lambda f: zarr_without("X/indptr", f), "X/indptr lacks 1 of 1"),
    "zarr without data": (lambda f: zarr_without("X/data", f), "X/data lacks 1 of 1"),
    "zarr without names": (lambda f: zarr_without("var/_index", f), "var/_index lacks 1 of 1"),
}


@pytest.mark.parametrize("case", BAD_PATHS)
def test_bad_files_are_refused_with_path_and_fix(case: str, tmp_path: Path) -> None:
    make, message = BAD_PATHS[case]
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("spliced", "layer 'spliced' does not exist; layers here: counts, doubled"),
        ("X", "cells.h5ad: X: .* not whole.*log-normalised"),
    ],
)
def test_a_layer_without_counts_is_refused(
    layer: str, message: str, backed: bool, tmp_path: Path
) -> None:
    path = write_h5ad(layered(), tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read(path, layer=layer, backed=backed)
    if layer == "X" and not backed:
        assert "counts may be in layer 'counts' or layer 'doubled'" in str(caught.value)


def test_backed_is_only_for_h5ad(tmp_path: Path) -> None:
    path = write_text(cells(), tmp_path)
    with pytest.raises(
        InputError, match="backed=true needs an h5ad file or a zarr folder, but this is csv"
    ):
        read(path, backed=True)
    with pytest.raises(InputError, match=r"data\.backed"):
        load(DataConfig(name="simulated", backed=True))
    old = tmp_path / "old.h5ad"
    with h5py.File(old, "w") as file:
        file["obs"], file["var"] = np.zeros(3), np.zeros(3)
    with pytest.raises(InputError, match="leave out backed=true"):
        read(old, backed=True)


def test_load_follows_the_configuration(tmp_path: Path) -> None:
    small = SimulationConfig(n_cells=30, n_genes=20, n_topics=3)
    simulated = load(DataConfig(name="simulated", simulation=small))
    assert simulated.shape == (30, 20)
    assert simulated.uns["topicell_source"]["label_key"] == "dominant_topic"

    shipped = load(DataConfig())
    assert shipped.uns["topicell_source"]["name"] == "pbmc68k"
    assert shipped.uns["topicell_source"]["label_key"] == "bulk_labels"
    chosen = load(DataConfig(label_key="louvain"))
    assert chosen.uns["topicell_source"]["label_key"] == "louvain"

    path = str(write_h5ad(cells(), tmp_path))
    assert load(DataConfig(name="file", path=path)).uns["topicell_source"]["label_key"] == ""
    mine = load(DataConfig(name="file", path=path, label_key="kind"))
    assert mine.uns["topicell_source"]["label_key"] == "kind"
    with pytest.raises(InputError, match=r"data.label_key = 'type'.*found: kind, depth"):
        load(DataConfig(name="file", path=path, label_key="type"))
    with pytest.raises(InputError, match="layer 'spliced' does not exist"):
        load(DataConfig(layer="spliced"))


def test_a_catalogue_file_is_read_from_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_h5ad(cells(), tmp_path)
    monkeypatch.setattr(reading, "fetch", lambda dataset: path)
    source = load(DataConfig(name="pbmc3k")).uns["topicell_source"]
    assert source["name"] == "pbmc3k"
    assert source["source"] == CATALOGUE["pbmc3k"].url


@pytest.mark.parametrize("call", [load, source_digest])
def test_an_unknown_name_is_refused_with_a_suggestion(
    call: Callable[[DataConfig], object],
) -> None:
    with pytest.raises(InputError, match=r"did you mean pbmc68k.*simulated, file"):
        call(DataConfig(name="pbmc86k"))
    with pytest.raises(InputError, match=r"data.name = 'zebrafish': known are pbmc68k"):
        call(DataConfig(name="zebrafish"))


def test_the_data_digest_depends_on_content_and_not_on_storage() -> None:
    adata = cells()
    digest = data_digest(adata)

    same = adata.copy()
    same.X = adata.X.toarray().astype(np.int64)
    assert data_digest(same) == digest
    same.X = sp.csc_matrix(adata.X)
    assert data_digest(same) == digest
    shuffled = adata.X.copy()
    for start, stop in zip(shuffled.indptr[:-1], shuffled.indptr[1:], strict=True):
        shuffled.indices[start:stop] = shuffled.indices[start:stop][::-1].copy()
        shuffled.data[start:stop] = shuffled.data[start:stop][::-1].copy()
    shuffled.has_sorted_indices = False
    shuffled.has_canonical_format = False
    same.X = shuffled
    assert data_digest(same) == digest
    same.X = sp.csr_matrix(adata.X, dtype=np.float64)
    same.X.indices, same.X.indptr = same.X.indices.astype("i8"), same.X.indptr.astype("i8")
    assert data_digest(same) == digest
    same.obs["kind"] = "z"
    assert data_digest(same) == digest

    one_more = adata.copy()
    one_more.X = adata.X + sp.csr_matrix(([1.0], ([0], [0])), shape=adata.shape)
    renamed_gene, renamed_cell = adata.copy(), adata.copy()
    renamed_gene.var_names = ["other", *adata.var_names[1:]]
    renamed_cell.obs_names = ["other", *adata.obs_names[1:]]
    others = (one_more, renamed_gene, renamed_cell, adata[::-1], adata[:, ::-1], adata[:5])
    assert len({digest, *(data_digest(other) for other in others)}) == 7


def test_the_source_digest_differs_for_other_content_and_settings(tmp_path: Path) -> None:
    def digest_of(**settings: object) -> str:
        return source_digest(DataConfig(**settings))  # type: ignore[arg-type]

    path = write_h5ad(cells(), tmp_path)
    digest = digest_of(name="file", path=str(path))
    assert digest_of(name="file", path=str(path), label_key="kind") != digest
    assert digest_of(name="file", path=str(path), layer="X") != digest
    copy = shutil.copy(path, tmp_path / "copy.h5ad")
    assert digest_of(name="file", path=str(copy)) != digest
    write_h5ad(cells(seed=1), tmp_path)
    assert digest_of(name="file", path=str(path)) != digest

    folder = write_mtx(cells(), tmp_path)
    before = digest_of(name="file", path=str(folder))
    (folder / "barcodes.tsv").rename(folder / "barcodes2.tsv")
    assert digest_of(name="file", path=str(folder)) != before

    # No network: the pinned checksum is enough.
    names = ("pbmc68k", "pbmc_facs", "pbmc3k", "pbmc10k", "pbmc5k", "simulated")
    assert len({digest_of(name=name) for name in names}) == len(names)
    assert digest_of(name="simulated", simulation=SimulationConfig(seed=1)) != digest_of(
        name="simulated"
    )
    with pytest.raises(InputError, match="there is no such file"):
        digest_of(name="file", path=str(tmp_path / "none"))


def test_a_misspelled_path_and_a_decimal_comma_are_named(tmp_path):
    text = "name;CD3D;LYZ\nc1;0,5;1,5\nc2;2,5;0,5\n"
    (tmp_path / "small.csv").write_text(text)
    with pytest.raises(InputError, match=r"no such file.*did you mean .*/small\.csv\?"):
        read(tmp_path / "smal.csv")
    with pytest.raises(InputError, match=r"holds '0,5' for cell c1.*this is a decimal comma"):
        read(tmp_path / "small.csv")
