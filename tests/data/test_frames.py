"""`plain` makes every AnnData writable, with the same values; genes need names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topicell.data.frames import plain, require_gene_names, write_h5ad
from topicell.data.reading import read
from topicell.errors import InputError

N = 4
CELLS = [f"c{i}" for i in range(N)]


def cells(**obs: Any) -> AnnData:
    frame = pd.DataFrame(obs, index=CELLS)
    return AnnData(np.eye(N, dtype=np.float32), obs=frame, var=pd.DataFrame(index=list("ABCD")))


def write_and_read(adata: AnnData, folder: Path) -> AnnData:
    """Return the AnnData after `plain`, written and read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Tests of warnings call `plain` themselves.
        plain(adata)
    write_h5ad(adata, folder / "plain.h5ad")
    return anndata.read_h5ad(folder / "plain.h5ad")


def string(*values: str | None) -> Any:
    return pd.array(list(values), dtype="string")


NAN = float("nan")
COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "nullable text": (string("a", "b", "c", "d"), ["a", "b", "c", "d"]),
    "nullable text, one missing": (string("a", None, "b", "b"), ["a", None, "b", "b"]),
    "text of pandas 3": (
        pd.array(["a", None, "b", "c"], dtype=pd.StringDtype("python", na_value=np.nan)),
        ["a", None, "b", "c"],
    ),
    "categories of nullable text": (
        pd.Categorical(["a", None, "b", "b"], categories=pd.Index(["a", "b"], dtype="string")),
        ["a", None, "b", "b"],
    ),
    "nullable whole numbers": (pd.array([1, None, 3, 4], dtype="Int64"), [1, None, 3, 4]),
    "nullable booleans": (
        pd.array([True, None, False, True], dtype="boolean"),
        [True, None, False, True],
    ),
    "nullable numbers": (pd.array([0.5, None, 3, 4], dtype="Float64"), [0.5, None, 3, 4]),
    "objects with a missing one": (np.array(["a", None, NAN, "b"], object), ["a", None, None, "b"]),
    "objects that are numbers": (np.array([1, 2, 3, 4], object), [1, 2, 3, 4]),
    "objects that are truths": (np.array([True, None, False, True], object), [True, None, 0, 1]),
    "objects of several types": (np.array(["a", 1, 2.5, None], object), ["a", "1", "2.5", None]),
    "nothing": (np.array([None] * N, object), [None] * N),
    "categories of several types": (pd.Categorical(["a", 1, None, 1]), ["a", "1", None, "1"]),
    "categories that differ as objects": (pd.Categorical([1, "1", None, 2]), ["1", "1", None, "2"]),
    "intervals": (pd.cut([1, 2, 3, 4], [0, 2, 4]), ["(0, 2]", "(0, 2]", "(2, 4]", "(2, 4]"]),
    "dates": (pd.to_datetime(["2020-01-01"] * N), ["2020-01-01 00:00:00"] * N),
    "sparse numbers": (pd.arrays.SparseArray([0, 0, 1, 0]), [0, 0, 1, 0]),
    "Arrow text": (
        pd.array(["a", None, "b", "b"], dtype=pd.ArrowDtype(pa.string())),
        ["a", None, "b", "b"],
    ),
    "Arrow numbers": (pd.array([1, None, 2, 3], dtype=pd.ArrowDtype(pa.int64())), [1, None, 2, 3]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_any_type_are_written_with_their_values(kind: str, tmp_path: Path) -> None:
    column, expected = COLUMNS[kind]
    again = write_and_read(cells(column=column), tmp_path).obs["column"].tolist()
    assert [None if pd.isna(value) else value for value in again] == expected


TEXT = st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0")))
VALUE = st.one_of(TEXT, st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False))


@settings(derandomize=True, max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    columns=st.lists(st.lists(VALUE, min_size=N, max_size=N), max_size=4),
    names=st.lists(
        st.sampled_from(["_index", "a", "b", 5, "", "/", "5", "index"]), min_size=4, max_size=4
    ),
    index_name=st.sampled_from([None, "a", "_index", 5, ""]),
    nullable=st.booleans(),
)
def test_any_table_can_be_written(
    columns: list[list[Any]], names: list[Any], index_name: Any, nullable: bool, tmp_path: Path
) -> None:
    frame = pd.DataFrame({i: np.array(v, object) for i, v in enumerate(columns)}, index=CELLS)
    frame.columns = pd.Index(names[: len(columns)], dtype=object)
    if nullable:
        frame.index = frame.index.astype("string")
    frame.index.name = index_name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = AnnData(np.eye(N), obs=frame)
    again = write_and_read(adata, tmp_path).obs
    assert list(again.index) == CELLS
    assert len(set(again.columns)) == len(again.columns) >= len(columns) - 1
    assert not {"_index", ""} & set(again.columns)


def test_a_reserved_column_is_dropped_or_renamed_with_a_warning(tmp_path: Path) -> None:
    same, other = cells(_index=CELLS), cells(_index=list("wxyz"), index=list("stuv"))
    with pytest.warns(UserWarning, match="obs has a column '_index' that repeats the index"):
        plain(same)
    assert list(same.obs) == []
    with pytest.warns(UserWarning, match="'_index' as 'index-1'"):
        plain(other)
    assert {name: "".join(values) for name, values in other.obs.items()} == {
        "index-1": "wxyz",
        "index": "stuv",
    }


@pytest.mark.parametrize("backed", [False, True])
def test_raw_counts_of_a_file_of_seurat_are_read(backed: bool, tmp_path: Path) -> None:
    adata = cells()
    adata.raw = adata.copy()
    adata.X = np.log1p(adata.X)
    path = tmp_path / "seurat.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "a") as file:  # as SeuratDisk writes it
        var = file["raw/var"]
        names = var["_index"]
        file["raw/var"].copy(names, var, "features")
        var.attrs["_index"] = "features"
        var.attrs["column-order"] = np.array(["_index"], dtype=object)
    with pytest.warns(UserWarning, match="column '_index'"):
        again = read(path, layer="raw", backed=backed)
    assert list(again.var_names) == list("ABCD")
    again.write_h5ad(tmp_path / "again.h5ad")


def test_an_index_named_like_a_column_has_no_name(tmp_path: Path) -> None:
    adata = cells()
    adata.var["symbol"] = ["A", "T", "T", "D"]
    path = tmp_path / "named.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "a") as file:
        var = file["var"]
        del var["_index"]
        var.attrs["_index"] = "symbol"
    with pytest.warns(UserWarning, match="1 gene names are repeated"):
        again = read(path)
    assert list(again.var_names) == ["A", "T", "T-1", "D"]
    assert list(again.var["symbol"]) == ["A", "T", "T", "D"]
    again.write_h5ad(tmp_path / "again.h5ad")


def test_nullable_strings_of_a_file_are_written_again(tmp_path: Path) -> None:
    adata = cells(donor=string("a", None, "b", "b"), age=pd.array([1, None, 2, 3], dtype="Int64"))
    adata.obs_names = pd.Index(string(*CELLS))
    adata.obsm["other"] = pd.DataFrame({"q": string(*"wxyz")}, index=adata.obs_names)
    adata.uns |= {"names": string("a", None), "deep": {"er": string("b")}, "none": None}
    path = tmp_path / "nullable.h5ad"
    with anndata.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(path)
    again = read(path)
    again.write_h5ad(tmp_path / "again.h5ad")
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    assert list(again.obs_names) == CELLS
    assert again.obs["donor"].isna().tolist() == [False, True, False, False]
    assert again.obs["age"].tolist() == [1, pd.NA, 2, 3]
    assert list(again.obsm["other"]["q"]) == list("wxyz")
    assert again.uns["names"][0] == "a"
    assert list(again.uns["deep"]["er"]) == ["b"]
    assert again.uns["none"] is None


def without_index(folder: Path, **var: Any) -> Path:
    adata = cells()
    for name, values in var.items():
        adata.var[name] = values
    path = folder / "numbered.h5ad"
    adata.write_h5ad(path)
    with h5py.File(path, "a") as file:
        del file["var/_index"], file["var"].attrs["_index"]
        for name in ("encoding-type", "encoding-version"):
            del file["var"].attrs[name]
    return path


@pytest.mark.filterwarnings("ignore:Element '/var' was written without encoding")
@pytest.mark.parametrize("backed", [False, True])
def test_genes_without_an_index_are_refused_with_the_columns_that_name_them(
    backed: bool, tmp_path: Path
) -> None:
    path = without_index(tmp_path, features=list("ABCD"), kind=["a"] * 4, n=range(4))
    message = (
        r"numbers instead of names \(0, 1, 2, …\).*: features; set gene_names=features .*A, B, C"
    )
    with pytest.raises(InputError, match=message):
        read(path, backed=backed)


@pytest.mark.filterwarnings("ignore:Element '/var' was written without encoding")
def test_genes_without_any_name_are_read_with_a_warning(tmp_path: Path) -> None:
    path = without_index(tmp_path, kind=["a"] * 4)
    with pytest.warns(UserWarning, match=r"numbers instead of names \(0 to 3\)"):
        assert list(read(path).var_names) == list("0123")


def test_numbers_are_refused_only_if_they_are_positions() -> None:
    def require(index: list[Any], gene_names: str | None = None) -> None:
        names = [f"G{i}" for i in range(len(index))]
        var = pd.DataFrame({"symbol": names}, index=map(str, index))
        require_gene_names(var, gene_names, "data.")

    for positions in ([0, 1, 2], [1, 2, 3], [6, 270, 3000]):
        with pytest.raises(InputError, match=r"data\.gene_names=symbol .*=index to keep"):
            require(positions)
        require(positions, "symbol")
    for ids in ([7157, 672, 675], [1, 2, 100_506_658], ["1", "A", "B"], ["1.5", "2.5", "3.5"]):
        require(ids)


def test_text_is_stored_in_the_form_that_all_programs_read(tmp_path: Path) -> None:
    """Not as a group of values and a mask of missing values, as anndata does with pandas 3."""
    write_and_read(cells(text=["b", "a", "a", "c"], gaps=["a", None, "a", "b"]), tmp_path)
    with h5py.File(tmp_path / "plain.h5ad", "r") as file:
        texts = [file[f"{place}/_index"] for place in ("obs", "var")]
        texts += [file[f"obs/{name}/categories"] for name in ("text", "gaps")]
        for text in texts:
            assert isinstance(text, h5py.Dataset)
            assert text.attrs["encoding-type"] == "string-array"
