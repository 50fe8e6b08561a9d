"""Topics of another program: every form gives the same topics; an error says how to fix it."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from topicell.data.matrices import Topics, read_topics
from topicell.errors import InputError

CELLS = [f"cell{i}" for i in range(8)]
GENES = [f"G{i}" for i in range(6)]
NAMES = ["a", "b", "c"]

Frames = tuple[pd.DataFrame, pd.DataFrame]


def frames(seed: int = 0) -> Frames:
    """Return cells × topics and genes × topics, as topicell writes them."""
    rng = np.random.default_rng(seed)
    theta = pd.DataFrame(rng.dirichlet(np.full(3, 0.5), 8), index=CELLS, columns=NAMES)
    beta = pd.DataFrame(rng.dirichlet(np.full(6, 0.5), 3).T, index=GENES, columns=NAMES)
    return theta, beta


def write_csv(frame: pd.DataFrame, folder: Path, role: str, name: str = "csv") -> str:
    path = folder / f"{role}.{name}"
    text = frame.to_csv(sep="," if "csv" in name else "\t", index_label="name")
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    return str(path)


def write_txt(frame: pd.DataFrame, folder: Path, role: str, separator: str) -> str:
    path = folder / f"{role}.txt"
    path.write_text(frame.to_csv(sep=separator, index_label="name"))
    return str(path)


def write_r(frame: pd.DataFrame, folder: Path, role: str) -> str:
    path = folder / f"{role}.tsv"
    path.write_text(frame.to_csv(sep="\t", index_label="name").removeprefix("name\t"))
    return str(path)


def write_bare_csv(frame: pd.DataFrame, folder: Path, role: str) -> str:
    frame.to_csv(folder / f"{role}.csv", header=False, index=False)
    return str(folder / f"{role}.csv")


def write_npy(frame: pd.DataFrame, folder: Path, role: str) -> str:
    np.save(folder / f"{role}.npy", frame.to_numpy())
    return str(folder / f"{role}.npy")


def write_npz(frame: pd.DataFrame, folder: Path, role: str) -> str:
    np.savez(folder / f"{role}.npz", frame.to_numpy())
    return str(folder / f"{role}.npz")


def write_named_npz(frame: pd.DataFrame, folder: Path, role: str) -> str:
    side = {"theta": "cells", "beta": "genes"}[role]
    items, topics = (frame.index, frame.columns)[:: 1 if frame.shape[1] == 3 else -1]
    names = {side: np.array(items, dtype=str), "topics": np.array(topics, dtype=str)}
    np.savez(folder / f"{role}.npz", **{role: frame.to_numpy(), "other": np.zeros(3)}, **names)
    return str(folder / f"{role}.npz")


def write_sparse(frame: pd.DataFrame, folder: Path, role: str) -> str:
    sp.save_npz(folder / f"{role}.npz", sp.csc_matrix(frame.to_numpy()))
    return str(folder / f"{role}.npz")


def write_uns(frame: pd.DataFrame, folder: Path, role: str) -> str:
    AnnData(np.ones((2, 2)), uns={"lda": {role: frame}}).write_h5ad(folder / f"{role}.h5ad")
    return str(folder / f"{role}.h5ad:uns/lda/{role}")


def write_bare_uns(frame: pd.DataFrame, folder: Path, role: str) -> str:
    AnnData(np.ones((2, 2)), uns={role: frame.to_numpy()}).write_h5ad(folder / f"{role}.h5ad")
    return str(folder / f"{role}.h5ad:uns/{role}")


def write_h5ad(frame: pd.DataFrame, folder: Path, role: str, stored: object = None) -> str:
    side, field = {"theta": ("obs", "X_lda"), "beta": ("var", "lda_topics")}[role]
    two = pd.DataFrame(index=["one", "two"])
    adata = AnnData(**{"obs": two, "var": two, side: pd.DataFrame(index=frame.index)})
    getattr(adata, f"{side}m")[field] = frame if stored is None else stored
    adata.write_h5ad(folder / f"{role}.h5ad")
    return str(folder / f"{role}.h5ad")


Writer = Callable[[pd.DataFrame, Path, str], str]
NAMED: dict[str, Writer] = {
    "csv": write_csv,
    "tsv": lambda f, p, r: write_csv(f, p, r, "tsv"),
    "csv.gz": lambda f, p, r: write_csv(f, p, r, "csv.gz"),
    "tsv.gz": lambda f, p, r: write_csv(f, p, r, "TSV.gz"),
    "txt": lambda f, p, r: write_csv(f, p, r, "txt"),
    "txt.gz": lambda f, p, r: write_csv(f, p, r, "txt.gz"),
    "txt of commas": lambda f, p, r: write_txt(f, p, r, ","),
    "txt of spaces": lambda f, p, r: write_txt(f, p, r, " "),
    "R's tsv": write_r,
    "named npz": write_named_npz,
    "h5ad:uns/frame": write_uns,
}
BARE: dict[str, Writer] = {
    "bare csv": write_bare_csv,
    "npy": write_npy,
    "npz": write_npz,
    "sparse npz": write_sparse,
    "h5ad:uns/array": write_bare_uns,
}
ROWS_ARE_ITEMS: dict[str, Writer] = {
    "h5ad array": lambda f, p, r: write_h5ad(f, p, r, f.to_numpy()),
    "h5ad sparse": lambda f, p, r: write_h5ad(f, p, r, sp.csc_matrix(f.to_numpy())),
    "h5ad frame": write_h5ad,
}
ALL = NAMED | BARE | ROWS_ARE_ITEMS


def write(
    form: str, pair: Frames, folder: Path, turn: tuple[bool, bool] = (False, False)
) -> tuple[str, str]:
    theta, beta = (f.T if turned else f for f, turned in zip(pair, turn, strict=True))
    return ALL[form](theta, folder, "theta"), ALL[form](beta, folder, "beta")


def require_equal(topics: Topics, pair: Frames, *, named: bool = True) -> None:
    theta, beta = pair
    np.testing.assert_allclose(topics.theta_NK, theta.to_numpy(), rtol=1e-14)
    np.testing.assert_allclose(topics.beta_KG, beta.to_numpy().T, rtol=1e-14)
    assert topics.names == (NAMES if named else ["topic_0", "topic_1", "topic_2"])
    assert [CELLS[i] for i in topics.cells] == list(theta.index)
    assert [GENES[i] for i in topics.genes] == list(beta.index)


ORIENTATIONS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.mark.parametrize(
    ("form", "turn"),
    [
        (form, turn)
        for form in ALL
        for turn in ORIENTATIONS[: 1 if form in ROWS_ARE_ITEMS else None]
    ],
)
def test_each_form_is_read_in_both_orientations(
    form: str, turn: tuple[bool, bool], tmp_path: Path
) -> None:
    pair = frames()
    topics = read_topics(*write(form, pair, tmp_path, turn), CELLS, GENES)
    require_equal(topics, pair, named=form in NAMED or form == "h5ad frame")
    # The order of summation is the same for every form, so the bytes are equal too.
    plain = read_topics(*write("csv", pair, tmp_path), CELLS, GENES)
    np.testing.assert_array_equal(topics.theta_NK, plain.theta_NK)
    np.testing.assert_array_equal(topics.beta_KG, plain.beta_KG)
    for values in (topics.theta_NK, topics.beta_KG):
        assert values.dtype == np.float64
        np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-15)


def test_the_files_of_cnmf_are_read(tmp_path: Path) -> None:
    theta, beta = frames()
    usages, spectra = tmp_path / "x.usages.k_3.dt_0_1.txt", tmp_path / "x.spectra.k_3.dt_0_1.txt"
    theta.set_axis([1, 2, 3], axis=1).mul(1000).to_csv(usages, sep="\t")
    beta.T.set_axis([1, 2, 3]).mul(0.1).to_csv(spectra, sep="\t")
    topics = read_topics(str(usages), str(spectra), CELLS, GENES, normalize=True)
    assert topics.names == ["1", "2", "3"]
    np.testing.assert_allclose(topics.theta_NK, theta, rtol=1e-12)
    np.testing.assert_allclose(topics.beta_KG, beta.T, rtol=1e-12)


def test_forms_and_orientations_can_be_mixed(tmp_path: Path) -> None:
    theta, beta = frames()
    topics = read_topics(
        write_npy(theta.T, tmp_path, "theta"), write_csv(beta, tmp_path, "beta"), CELLS, GENES
    )
    require_equal(topics, (theta, beta))  # The names of one file are enough.


def test_one_file_may_hold_both(tmp_path: Path) -> None:
    theta, beta = frames()
    np.savez(tmp_path / "both.npz", theta=theta.to_numpy(), beta=beta.to_numpy().T,
             cells=np.array(CELLS, dtype="S"), genes=GENES, topics=NAMES)  # fmt: skip
    both = str(tmp_path / "both.npz")
    require_equal(read_topics(both, both, CELLS, GENES), (theta, beta))
    adata = AnnData(np.ones((8, 6)), pd.DataFrame(index=CELLS), pd.DataFrame(index=GENES))
    adata.obsm["X_lda"], adata.varm["lda_topics"] = theta.to_numpy(), beta.to_numpy()
    (tmp_path / "of 12:30").mkdir()
    adata.write_h5ad(both := tmp_path / "of 12:30" / "adata.h5ad")
    with h5py.File(both, "a") as file:
        del file["X"]  # It is not needed.
    require_equal(read_topics(str(both), str(both), CELLS, GENES), (theta, beta), named=False)
    theta_field, beta_field = f"{both}:obsm/X_lda", f"{both}:varm/lda_topics"
    require_equal(read_topics(theta_field, beta_field, CELLS, GENES), (theta, beta), named=False)
    with pytest.raises(InputError, match=r"adata.h5ad:varm/lda_topics: none of its 6 cells is in"):
        read_topics(beta_field, beta_field, CELLS, GENES)


@settings(max_examples=30)
@given(data=st.data(), form=st.sampled_from(sorted(NAMED)), turn=st.tuples(*[st.booleans()] * 2))
def test_the_order_of_a_file_changes_nothing(
    data: st.DataObject, form: str, turn: tuple[bool, bool], tmp_path: Path
) -> None:
    theta, beta = frames()
    theta = theta[theta.index.isin(data.draw(st.sets(st.sampled_from(CELLS), min_size=4)))]
    expected = read_topics(*write("csv", (theta, beta), tmp_path), CELLS, GENES)
    require_equal(expected, (theta, beta))
    shuffled = (
        theta.loc[data.draw(st.permutations(list(theta.index)))],
        beta.loc[data.draw(st.permutations(GENES)), data.draw(st.permutations(NAMES))],
    )
    topics = read_topics(*write(form, shuffled, tmp_path, turn), CELLS, GENES)
    for field in ("theta_NK", "beta_KG", "cells", "genes", "names"):
        np.testing.assert_array_equal(getattr(topics, field), getattr(expected, field))


def test_a_part_of_the_genes_is_enough(tmp_path: Path) -> None:
    theta, beta = frames()
    beta = beta.loc[["G4", "G1", "G2"]] / beta.loc[["G4", "G1", "G2"]].sum()
    topics = read_topics(*write("csv", (theta, beta), tmp_path), CELLS, GENES)
    assert topics.genes.tolist() == [1, 2, 4]
    require_equal(topics, (theta, beta.sort_index()))


def test_topics_are_matched_by_name_or_in_order(tmp_path: Path) -> None:
    theta, beta = frames()
    turned = beta[["c", "a", "b"]]
    require_equal(
        read_topics(*write("csv", (theta, turned), tmp_path), CELLS, GENES), (theta, beta)
    )
    other = beta.set_axis(["1", "2", "3"], axis=1)
    require_equal(read_topics(*write("csv", (theta, other), tmp_path), CELLS, GENES), (theta, beta))
    files = write_npy(theta, tmp_path, "theta"), write_csv(turned, tmp_path, "beta")
    assert read_topics(*files, CELLS, GENES).names == ["c", "a", "b"]


@settings(max_examples=30)
@given(scale=st.lists(st.floats(1e-290, 1e290), min_size=8, max_size=8))
def test_normalize_undoes_any_scale_of_rows(scale: list[float], tmp_path: Path) -> None:
    theta, beta = frames()
    for pair in ((theta.mul(scale, axis=0), beta), (theta, beta * scale[:3])):
        topics = read_topics(*write("csv", pair, tmp_path), CELLS, GENES, normalize=True)
        np.testing.assert_allclose(topics.theta_NK, theta, rtol=1e-12)
        np.testing.assert_allclose(topics.beta_KG, beta.T, rtol=1e-12)


def test_sums_may_differ_from_one_by_a_thousandth(tmp_path: Path) -> None:
    theta, beta = frames()
    topics = read_topics(*write("csv", (theta * 1.0009, beta), tmp_path), CELLS, GENES)
    np.testing.assert_allclose(topics.theta_NK, theta, rtol=1e-14)
    with pytest.raises(InputError, match=r"cell 'cell0' sums to 0.9989, not to 1"):
        read_topics(*write("csv", (theta * 0.9989, beta), tmp_path), CELLS, GENES)


def test_names_may_be_numbers(tmp_path: Path) -> None:
    cells, genes = [str(i) for i in range(8)], ["NA", "nan", "1", "2", "inf", "True"]
    theta, beta = frames()
    theta.index, beta.index = pd.Index(cells), pd.Index(genes)
    theta.columns = beta.columns = pd.Index(["0", "1", "2"])
    for turn in ((False, False), (True, True)):
        # Topics are called 0, 1, 2, as some cells, but the other side has all cells.
        topics = read_topics(*write("csv", (theta, beta), tmp_path, turn), cells, genes)
        np.testing.assert_allclose(topics.theta_NK, theta, rtol=1e-14)
        np.testing.assert_allclose(topics.beta_KG, beta.T, rtol=1e-14)
        assert topics.names == ["0", "1", "2"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("side", ["index", "header"])
def test_a_table_may_name_only_one_side(side: str, turned: bool, tmp_path: Path) -> None:
    theta, beta = frames()
    path = tmp_path / "theta.csv"
    (theta.T if turned else theta).to_csv(path, **{side: False})
    topics = read_topics(str(path), write_csv(beta, tmp_path, "beta"), CELLS, GENES)
    require_equal(topics, (theta, beta))  # The first row is not lost as a header.


Change = Callable[[pd.DataFrame, pd.DataFrame], Frames]


def with_value(value: object) -> Change:
    def change(theta: pd.DataFrame, beta: pd.DataFrame) -> Frames:
        theta = theta.astype(object)
        theta.loc["cell2", "b"] = value
        return theta, beta

    return change


MISMATCHES: dict[str, tuple[Change, str]] = {
    "other cells": (
        lambda t, b: (t.rename(index={"cell0": "x", "cell5": "y"}), b),
        r"theta=.*theta.csv: 2 of its 8 cells are not in the data: 'x', 'y'; remove them",
    ),
    "other genes": (
        lambda t, b: (t, b.rename(index=str.lower)),
        r"beta=.*beta.csv: none of its 6 genes is in the data: the file has 'g0', 'g1', 'g2', …, "
        r"the data have 'G0', 'G1', 'G2', …; rename one",
    ),
    "Ensembl ids": (
        lambda t, b: (t, b.set_axis([f"ENSMUSG0000000{i}" for i in range(6)])),
        r"none of its 6 genes.*one side has Ensembl ids and the other symbols",
    ),
    "values for names": (
        lambda t, b: (t, b.reset_index(drop=True)),
        r"none of its 6 genes is in the data: the file has '0'.*are for names, not values",
    ),
    "a cell twice": (
        lambda t, b: (t.rename(index={"cell1": "cell0"}), b),
        r"theta=.*: more than one row is named 'cell0'; give each its own name",
    ),
    "a topic twice": (
        lambda t, b: (t, b.rename(columns={"b": "a"})),
        r"beta=.*: more than one column is named 'a'",
    ),
    "fewer topics": (
        lambda t, b: (t[["a", "b"]], b),
        r"theta=.*has 8 cells × 2 topics and beta=.* 3 topics × 6 genes; both must have the same",
    ),
    "one topic": (lambda t, b: (t[["a"]], b[["a"]]), r"8 cells × 1 topics.*at least 2"),
    "names of cells on both sides": (
        lambda t, b: (t[:3].set_axis(CELLS[:3], axis=1), b),
        r"is 3 × 3 and may be cells × topics or topics × cells, because both.*rename the topics",
    ),
    "text": (with_value("many"), r"holds 'many' in row cell2, column b, which is not a number"),
    "a gap": (with_value(None), r"holds '' in row cell2, column b"),
    "nan": (with_value("nan"), r"holds 'nan' in row cell2, column b"),
    "a negative value": (
        with_value(-0.5), r"holds -0.5 for 'cell2' and 'b' \(1 such values of 24\).*0 or greater"
    ),
    "infinity": (with_value(np.inf), r"holds inf for 'cell2' and 'b'"),
    "an overflow": (with_value(1e308), r"holds 1e\+308 for 'cell2' and 'b'"),
    "an empty cell": (
        lambda t, b: (t.mul([1, 0, 0, 1, 1, 1, 1, 1], axis=0), b),
        r"all values of cell 'cell1' are zero \(2 of 8 cells\); leave such cells out",
    ),
    "an empty topic": (lambda t, b: (t, b * [1, 1, 0]), r"of topic 'c' are zero \(1 of 3"),
}  # fmt: skip
UNNORMALISED: dict[str, tuple[Change, str]] = {
    "cells": (
        lambda t, b: (t.mul([1, 1, 1, 0.5, 2, 1, 1, 1], axis=0), b),
        r"theta=.*: cell 'cell3' sums to 0.5, not to 1 \(2 of 8 cells do not\); normalize=true",
    ),
    "topics": (
        lambda t, b: (t, b * 100),
        r"beta=.*: topic 'a' sums to 100, not to 1 \(3 of 3 topics do not\); normalize=true",
    ),
    "over the wrong axis": (
        lambda t, b: (t, b.div(b.sum(axis=1), axis=0)),
        r"beta=.*its columns do: it may be transposed, or normalised over the wrong axis; norm",
    ),
}


@pytest.mark.parametrize("case", [*MISMATCHES, *UNNORMALISED])
def test_topics_that_do_not_match_the_data_are_refused(case: str, tmp_path: Path) -> None:
    change, message = (MISMATCHES | UNNORMALISED)[case]
    files = write("csv", change(*frames()), tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_topics(*files, CELLS, GENES)
    assert "\n" not in str(caught.value)
    if case in MISMATCHES:
        with pytest.raises(InputError, match=message):
            read_topics(*files, CELLS, GENES, normalize=True)
    else:
        read_topics(*files, CELLS, GENES, normalize=True)


@pytest.mark.parametrize("form", ["npy", "sparse npz"])
def test_without_names_sizes_must_fit_exactly(form: str, tmp_path: Path) -> None:
    theta, beta = frames()
    with pytest.raises(InputError, match=r"theta=.*is 7 × 3 without names of cells.*have 8 cells"):
        read_topics(*write(form, (theta[1:], beta), tmp_path), CELLS, GENES)
    square = read_topics(*write("csv", (theta[:3], beta), tmp_path), CELLS[:3], GENES)
    require_equal(square, (theta[:3], beta))
    with pytest.raises(InputError, match=r"is 3 × 3 and may be cells × topics or topics × cells"):
        read_topics(*write(form, (theta[:3], beta), tmp_path), CELLS[:3], GENES)


def test_names_of_an_npz_belong_to_one_side(tmp_path: Path) -> None:
    theta, beta = frames()
    with pytest.raises(InputError, match=r"is 3 × 3, and its names match both sides; write it as"):
        read_topics(*write("named npz", (theta[:3], beta), tmp_path), CELLS, GENES)
    np.savez(tmp_path / "short.npz", theta.to_numpy(), cells=CELLS[1:])
    with pytest.raises(InputError, match="has 8 rows and 7 names for them"):
        read_topics(str(tmp_path / "short.npz"), "", CELLS, GENES)
    np.savez(tmp_path / "topics.npz", theta=theta.to_numpy(), topics=NAMES)
    topics = read_topics(
        str(tmp_path / "topics.npz"), write_npy(beta, tmp_path, "beta"), CELLS, GENES
    )
    require_equal(topics, (theta, beta))


def test_names_that_repeat_in_the_data_are_refused(tmp_path: Path) -> None:
    theta, beta = frames()
    files = write("csv", (theta[2:], beta), tmp_path)
    assert read_topics(*files, ["cell0", "cell0", *CELLS[2:]], GENES).cells[0] == 2
    with pytest.raises(InputError, match="more than one cell of the data is named 'cell7'"):
        read_topics(*files, ["cell7", "cell1", *CELLS[2:]], GENES)


def some(content: bytes, name: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


def npz(**arrays: object) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.savez(folder / "theta.npz", **arrays)
        return str(folder / "theta.npz")

    return make


def h5ad(field: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        adata = AnnData(np.ones((8, 2)), obs=pd.DataFrame({"n": 1}, index=CELLS))
        adata.obsm["X_pca"], adata.uns["seeds"] = np.ones((8, 2)), {"a": 1}
        adata.write_h5ad(folder / "theta.h5ad")
        return str(folder / f"theta.h5ad{field}")

    return make


def half(writer: Writer) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        path = Path(writer(frames()[0], folder, "theta"))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return str(path)

    return make


ONES = np.ones((8, 2))
BAD_FILES: dict[str, tuple[Callable[[Path], str], str]] = {
    "missing": (lambda f: str(f / "none.csv"), r"no such file \(looked from .*\); check the path"),
    "a folder": (str, "there is no such file"),
    "unknown form": (some(b"", "theta.xlsx"), "not in a supported format; supported: csv or tsv"),
    "gzipped npy": (some(b"", "theta.npy.gz"), "not in a supported format"),
    "nothing": (some(b"", "theta.csv"), r"cannot be read as csv \(EmptyDataError.*write it again"),
    "one line": (some(b"a,b\n", "theta.csv"), "cannot be read as csv"),
    "tabs in csv": (some(b"x\ta\tb\ncell0\t1\t0\n", "theta.csv"), "has one column; separate by"),
    "long header": (some(b"x,a,b,c\ncell0,1,0\n", "theta.csv"), "2 columns and 3 names for them"),
    "long row": (some(b"x,a,b\ncell0,1,0\ncell1,1,0,0\n", "theta.csv"), "cannot be read as csv"),
    "short row": (some(b"x,a,b\ncell0,1,0\ncell1,1\n", "theta.csv"), "holds '' in row cell1"),
    "not text": (some(b"\xff\x00" * 99, "theta.tsv"), "cannot be read as tsv"),
    "not gzip": (some(b"x,a,b\ncell0,1,0\n", "theta.csv.gz"), "cannot be read as csv.gz"),
    "not npy": (some(b"garbage" * 9, "theta.npy"), "cannot be read as npy"),
    "not npz": (some(b"PK\x03\x04" * 9, "theta.npz"), "cannot be read as npz"),
    "not h5ad": (some(b"garbage" * 9, "theta.h5ad"), "cannot be read as h5ad"),
    "half an npy": (half(write_npy), "cannot be read as npy"),
    "half an npz": (half(write_named_npz), "cannot be read as npz"),
    "a vector": (npz(theta=np.ones(8)), r"shape \(8,\) and type float64, not a matrix"),
    "no cells": (npz(theta=np.ones((0, 3))), r"shape \(0, 3\)"),
    "text": (npz(theta=ONES.astype(str)), "type <U32, not a matrix of numbers"),
    "complex": (npz(theta=ONES * 1j), "type complex128, not a matrix of numbers"),
    "which array": (npz(x=ONES, y=ONES), "no array theta, and does not hold exactly one array"),
    "no array": (npz(cells=CELLS), "does not hold exactly one array; found: cells"),
    "objects": (npz(theta=ONES, cells=np.array(CELLS, dtype=object)), "names with dtype=str"),
    "no default field": (h5ad(""), "no obsm/X_lda; found: obsm/X_pca, uns/seeds; name a matrix"),
    "unknown field": (h5ad(":obsm/X_nmf"), "has no obsm/X_nmf; found: obsm/X_pca, uns/seeds"),
    "no part": (h5ad(":X"), "has no X; found: obsm/X_pca"),
    "no name": (h5ad(":obsm"), "has no obsm; found: obsm/X_pca"),
    "another part": (h5ad(":obs/n"), "has no obs/n; found: obsm/X_pca"),
    "a dict": (h5ad(":uns/seeds"), "holds dict in uns/seeds, not a matrix"),
    "a number": (h5ad(":uns/seeds/a"), "in uns/seeds/a, not a matrix"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_with_their_name(case: str, tmp_path: Path) -> None:
    make, message = BAD_FILES[case]
    theta, beta = make(tmp_path), write_npy(frames()[1], tmp_path, "good")
    with pytest.raises(
        InputError, match=re.escape(f"theta={theta}: ") + f".*({message})"
    ) as caught:
        read_topics(theta, beta, CELLS, GENES)
    assert "\n" not in str(caught.value)


def test_factors_keep_the_proportions_of_their_product(tmp_path):
    """Normalising H of NMF multiplies W by the same factors."""
    rng = np.random.default_rng(0)
    w, h = rng.gamma(1.0, 1.0, (7, 3)), rng.gamma(1.0, [[1.0], [10.0], [100.0]], (3, 5))
    np.save(tmp_path / "w.npy", w)
    np.save(tmp_path / "h.npy", h)
    cells, genes = [f"c{i}" for i in range(7)], [f"g{i}" for i in range(5)]
    paths = str(tmp_path / "w.npy"), str(tmp_path / "h.npy")
    topics = read_topics(*paths, cells, genes, normalize=True)
    product = w @ h
    np.testing.assert_allclose(
        topics.theta_NK @ topics.beta_KG, product / product.sum(1, keepdims=True)
    )
    # Proportions are not changed by the weights of genes.
    theta = w / w.sum(1, keepdims=True)
    np.save(tmp_path / "w.npy", theta)
    again = read_topics(*paths, cells, genes, normalize=True)
    np.testing.assert_allclose(again.theta_NK, theta)
