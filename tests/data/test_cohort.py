"""Several files are read as samples of one study: the cells of all, with the same genes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

import topicell
from topicell.config import DataConfig, PreprocessConfig
from topicell.data import stored
from topicell.data.preprocessing import prepared
from topicell.data.reading import load, load_or_open, source_digest
from topicell.data.stored import StoredCounts
from topicell.errors import InputError

N, G = 360, 90


def cells(n_cells=N, n_genes=G, seed=0):
    """Return cells of three kinds."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.3, 2.0, (3, n_genes)) + 0.05
    kind = rng.integers(3, size=n_cells)
    obs = pd.DataFrame(
        {"kind": pd.Categorical([f"k{k}" for k in kind]), "depth": rng.integers(9, size=n_cells)},
        index=[f"c{i}" for i in range(n_cells)],
    )
    names = [f"MT-{i}" if i < 3 else f"Gene{i}" for i in range(n_genes)]
    var = pd.DataFrame(
        {"gene_ids": [f"ENSG{i:011d}" for i in range(n_genes)], "length": np.arange(n_genes)},
        index=names,
    )
    x = sp.csr_matrix(rng.poisson(rates[kind]).astype(np.float32))
    return anndata.AnnData(x, obs=obs, var=var)


def split(adata, sizes=(150, 40, 170)):
    """Return successive cells."""
    ends = np.cumsum(sizes)
    return [adata[end - n : end].copy() for n, end in zip(sizes, ends, strict=True)]


def write(parts, names="abcdefgh", folder="."):
    """Write h5ad files, and return their paths."""
    paths = [str(Path(folder, f"{name}.h5ad")) for name, _ in zip(names, parts, strict=False)]
    for path, part in zip(paths, parts, strict=True):
        part.write_h5ad(path)
    return paths


def table(text, name="samples.csv"):
    Path(name).write_text(text)
    return name


def config(**settings):
    return DataConfig(name="file", **settings)


def quiet(load_it, settings):
    """Return the cells, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_it(settings)
    return found, [str(w.message) for w in caught if w.category is UserWarning]


def counts_by_name(adata):
    frame = pd.DataFrame(
        adata.layers["counts"].toarray(), index=adata.obs_names, columns=adata.var_names
    )
    return frame.sort_index().sort_index(axis=1)


def test_the_parts_of_a_file_give_the_counts_of_the_file():
    whole = cells()
    found = load(config(path=write(split(whole))))
    np.testing.assert_array_equal(found.X.toarray(), whole.X.toarray())
    assert found.obs_names[[0, 150, 359]].tolist() == ["c0-a", "c150-b", "c359-c"]
    assert found.var_names.tolist() == whole.var_names.tolist()
    assert found.obs["sample"].cat.categories.tolist() == ["a", "b", "c"]
    assert found.obs["sample"].value_counts()[["a", "b", "c"]].tolist() == [150, 40, 170]
    for name in ("kind", "depth"):
        assert found.obs[name].tolist() == whole.obs[name].tolist()
    pd.testing.assert_frame_equal(found.var, whole.var)
    assert found.layers["counts"] is not None
    assert found.uns["topicell_source"]["sample_key"] == "sample"
    assert found.uns["topicell_source"]["source"].count(", ") == 2
    assert topicell.load_dataset("file", path=["a.h5ad", "b.h5ad"]).shape == (190, G)


def test_the_order_of_files_only_permutes_cells_and_genes():
    one, two, three = split(cells())
    one, three = one[:, 5:].copy(), three[:, ::-1][:, 2:].copy()
    paths = write([one, two, three])
    for join in ("inner", "outer"):
        found = [
            quiet(load, config(path=order, join=join))[0]
            for order in (paths, paths[::-1], [paths[1], paths[0], paths[2]])
        ]
        for other in found[1:]:
            pd.testing.assert_frame_equal(counts_by_name(found[0]), counts_by_name(other))


def test_inner_leaves_genes_out_and_outer_fills_them_with_zeros():
    one, two = split(cells(), (200, 160))
    paths = write([one[:, :80].copy(), two[:, 20:].copy()])
    inner, said = quiet(load, config(path=paths))
    assert inner.shape == (N, 60)
    assert said == [
        "data.join = 'inner': 60 genes are in all files; the others are left out of a.h5ad (20), "
        "b.h5ad (10); data.join=outer keeps them"
    ]
    outer, said = quiet(load, config(path=paths, join="outer"))
    assert outer.shape == (N, G)
    assert len(said) == 1
    assert "no counts in its cells: b.h5ad (20), a.h5ad (10)" in said[0]
    whole = cells().to_df()
    whole.iloc[:200, 80:] = whole.iloc[200:, :20] = 0
    np.testing.assert_array_equal(outer[:, whole.columns].X.toarray(), whole.to_numpy())
    np.testing.assert_array_equal(inner.X.toarray(), cells()[:, 20:80].X.toarray())
    assert outer.var["length"].tolist() == list(range(G))

    few, said = quiet(load, config(path=write([one, two[:, :30].copy()])))
    assert few.n_vars == 30
    assert "fewer than half of the genes are left in a.h5ad (30 of 90): b.h5ad has" in said[1]


def test_genes_match_by_name_or_by_identifier():
    both, names, ids = split(cells())
    del names.var["gene_ids"], both.var["length"]
    ids.var_names, ids.var = ids.var["gene_ids"].tolist(), ids.var[[]].set_axis(ids.var["gene_ids"])
    ids.var_names = [f"{name}.7" for name in ids.var_names]  # versions of identifiers
    paths = write([both, names, ids])
    expected = cells()
    for order in (paths, paths[::-1]):
        found = load(config(path=order))
        assert found.var_names.tolist() == expected.var_names.tolist()
        assert found.var["gene_ids"].tolist() == expected.var["gene_ids"].tolist()
        assert found.to_df().sum().tolist() == expected.to_df().sum().tolist()
    with pytest.raises(InputError, match=r"c\.h5ad: none of its 90 genes \(ENSG.*those of b\.h5ad"):
        load(config(path=paths[1:]))


def mtx_folder(adata, path):
    """Write a folder of Cell Ranger."""
    Path(path).mkdir()
    scipy.io.mmwrite(f"{path}/matrix.mtx", sp.coo_matrix(adata.X.T.astype(int)))
    ids = adata.var["gene_ids"]
    rows = [f"{id_}\t{name}\tGene Expression\n" for name, id_ in zip(ids.index, ids, strict=True)]
    Path(path, "features.tsv").write_text("".join(rows))
    Path(path, "barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
    return str(path)


def zarr_folder(adata, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's and zarr's own, about their formats
        adata.write_zarr(path)
    return str(path)


@pytest.mark.parametrize("n_rows", [37, 10_000])
@pytest.mark.parametrize("join", ["inner", "outer"])
def test_files_in_parts_have_the_bytes_of_files_in_memory(join, n_rows, monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", n_rows)
    one, two, three, four = split(cells(), (100, 60, 120, 80))
    write([one[:, ::-1].copy()])
    zarr_folder(two[:, 4:].copy(), "b.zarr")
    mtx_folder(three, "c")
    four[:, :85].to_df().astype(int).to_csv("d.csv")
    path = table(
        "path,sample,condition,age\na.h5ad,s1,x,30\nb.zarr,s2,y,31.5\nc,s3,x,\nd.csv,s4,,50\n"
    )
    settings = PreprocessConfig(
        cache=False, n_variable_genes=50, batch_key="sample", min_counts_per_cell=20
    )
    results = []
    for backed in (False, True):
        data = config(samples=path, join=join, backed=backed, label_key="kind")
        opened, said = quiet(load_or_open, data)
        assert isinstance(opened, StoredCounts) == backed
        assert "c, d.csv have no such column" in "".join(said)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results.append(prepared(lambda found=opened: found, "", settings))
    memory, parts = results
    for of in (lambda a: a.X, lambda a: a.layers["counts"]):
        a, b = of(memory), of(parts)
        for name in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    pd.testing.assert_frame_equal(memory.obs, parts.obs)
    pd.testing.assert_frame_equal(memory.var, parts.var)
    pd.testing.assert_frame_equal(memory.uns["topicell_depth"], parts.uns["topicell_depth"])
    assert memory.uns["topicell_source"] == parts.uns["topicell_source"]


def test_depth_is_that_of_all_genes():
    whole = cells()
    paths = write(split(whole))
    adata = prepared(
        lambda: load(config(path=paths)), "", PreprocessConfig(cache=False, n_variable_genes=50)
    )
    depth = pd.DataFrame(
        {
            "median_counts": whole.to_df().sum(axis=1),
            "median_genes": (whole.to_df() > 0).sum(axis=1),
        }
    )
    expected = depth.groupby(np.repeat(["a", "b", "c"], (150, 40, 170))).median()
    found = adata.uns["topicell_depth"]
    np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy())
    assert found.index.tolist() == ["a", "b", "c"]


def test_large_files_together_stay_in_their_files(monkeypatch):
    paths = write(split(cells()))
    n_values = cells().X.nnz
    monkeypatch.setattr(stored, "LARGE", n_values - 1)
    assert isinstance(load_or_open(config(path=paths)), StoredCounts)
    assert not isinstance(load(config(path=paths)), StoredCounts)
    monkeypatch.setattr(stored, "LARGE", n_values)
    assert not isinstance(load_or_open(config(path=paths)), StoredCounts)
    # Counts that cannot stay in their files do not need more memory than they have.
    one, two = split(cells(), (200, 160))
    write([one])
    mtx_folder(two, "b")
    monkeypatch.setattr(stored, "LARGE", two.X.nnz - 1)
    found, said = quiet(load_or_open, config(path=["a.h5ad", "b"]))
    assert isinstance(found, StoredCounts)
    assert "the counts of 1 of 2 files, such as b, stay in memory" in said[0]
    assert "write_h5ad" in said[0]


def test_a_table_gives_columns_of_numbers_and_categories(tmp_path):
    one, two = split(cells(), (200, 160))
    one.obs["donor"], two.obs["sample"] = "theirs", "theirs"
    (tmp_path / "files").mkdir()
    write([one, two], folder=tmp_path / "files")
    path = table(
        "sample\tpath\tdonor\tage\tweight\tcode\tgroup\n"
        "S 1\tfiles/a.h5ad\tNA\t30\t61.5\t01\tnone\n\n"
        "NA\tfiles/b.h5ad\td2\t40\t\t02\tdrug\n",
        tmp_path / "table.tsv",
    )
    found, said = quiet(load, config(samples=str(path)))
    assert found.obs_names[[0, 200]].tolist() == ["c0-S 1", "c200-NA"]
    assert list(found.obs.columns[:6]) == ["sample", "donor", "age", "weight", "code", "group"]
    assert found.obs["age"].dtype == np.int64
    assert found.obs["weight"].tolist()[0] == 61.5
    assert found.obs["weight"].isna().sum() == 160
    assert found.obs["donor"].isna().sum() == 200
    assert found.obs["code"].cat.categories.tolist() == ["01", "02"]
    assert found.obs["group"].cat.categories.tolist() == ["drug", "none"]
    assert sorted(said) == [
        f"obs['donor'] describes samples; the column of this name in {tmp_path}/files/a.h5ad is "
        "kept as 'donor_input'",
        f"obs['sample'] describes samples; the column of this name in {tmp_path}/files/b.h5ad is "
        "kept as 'sample_input'",
    ]
    found.write_h5ad(tmp_path / "all.h5ad")
    assert found.uns["topicell_source"]["name"] == "table"


def test_the_key_of_samples_is_a_setting():
    paths = write(split(cells()))
    found = load(config(path=paths, sample_key="library"))
    assert "sample" not in found.obs
    assert found.obs["library"].cat.categories.tolist() == ["a", "b", "c"]
    lanes = table("path,sample,donor\na.h5ad,l1,d1\nb.h5ad,l2,d1\nc.h5ad,l3,d2\n")
    found = load(config(samples=lanes, sample_key="donor"))
    assert found.uns["topicell_source"]["sample_key"] == "donor"
    assert found.obs.groupby("donor", observed=True).size().tolist() == [190, 170]
    assert load(config(path="a.h5ad", sample_key="kind")).uns["topicell_source"]["sample_key"]
    assert "sample_key" not in load(config(path="a.h5ad")).uns["topicell_source"]
    with pytest.raises(InputError, match=r"data\.sample_key = 'x': obs has no such column"):
        load(config(path="a.h5ad", sample_key="x"))


def test_files_of_the_same_name_are_named_by_their_folders():
    paths = []
    for name, part in zip(("s1", "s2", "s3"), split(cells()), strict=True):
        Path(name, "outs").mkdir(parents=True)
        paths += write([part], ["counts"], f"{name}/outs")
    assert load(config(path=paths)).obs["sample"].cat.categories.tolist() == ["s1", "s2", "s3"]
    Path("s1/other").mkdir()
    Path(paths[1]).rename("s1/other/counts.h5ad")
    paths[1] = "s1/other/counts.h5ad"
    with pytest.raises(InputError, match=r"3 files are called 'counts'.*data\.samples=FILE"):
        load(config(path=paths))


def test_labels_that_some_files_lack_are_missing():
    one, two = split(cells(), (200, 160))
    del two.obs["kind"]
    found, said = quiet(load, config(path=write([one, two]), label_key="kind"))
    assert said == [
        "data.label_key = 'kind': b.h5ad have no such column, so their cells have no label"
    ]
    assert found.obs["kind"].isna().sum() == 160


HEAD = "path,sample\n"
WRONG = {
    "a missing file": (HEAD + "a.h5ad,a\nx.h5ad,x\n", r"samples.csv, line 3: x.h5ad: there is no"),
    "no column path": ("file,sample\na.h5ad,a\n", "has no column path; columns: file, sample"),
    "no columns": ("a.h5ad\n", "has no column path and no column sample"),
    "no path": (HEAD + "a.h5ad,a\n,b\n", "line 3 has no path"),
    "no sample": (HEAD + "\na.h5ad,\n", "line 3 has no sample"),
    "a repeated sample": (HEAD + "a.h5ad,a\nb.h5ad,a\n", "line 2 and line 3 have the same sample"),
    "a repeated file": (HEAD + "a.h5ad,a\n./a.h5ad,b\n", "named twice, as in samples.csv, line 2"),
    "no rows": (HEAD, "has no rows"),
    "an empty file": ("", "samples.csv: is an empty|cannot be read as a table"),
    "a ragged row": (HEAD + "a.h5ad,a,b\n", "cannot be read as a table of samples"),
    "a column twice": ("path,sample,x,x\na.h5ad,a,1,2\n", "several columns 'x'"),
    "a column without a name": ("path,sample,\na.h5ad,a,1\n", "a column without a name"),
    "a column of a run": ("path,sample,leiden\na.h5ad,a,1\n", "'leiden', which a run writes"),
    "a topic": ("path,sample,lda_topic_0\na.h5ad,a,1\n", "'lda_topic_0', which a run writes"),
    "no counts": (HEAD + "a.h5ad,a\nlog.h5ad,b\n", r"log\.h5ad: X: \d+ values are not whole"),
    "no cells": (HEAD + "a.h5ad,a\nnone.h5ad,b\n", r"none\.h5ad: .*(has no cells|is empty)"),
    "other genes": (HEAD + "a.h5ad,a\nmouse.h5ad,b\n", r"mouse\.h5ad: none of its 90 genes"),
}


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_tables_are_rejected(name, backed):
    text, message = WRONG[name]
    one, two = split(cells(), (200, 160))
    log, mouse = two.copy(), two.copy()
    log.X = log.X.log1p()
    mouse.var_names = [f"Other{i}" for i in range(G)]
    del mouse.var["gene_ids"]
    write([one, two, log, mouse, two[:0].copy()], ["a", "b", "log", "mouse", "none"])
    with pytest.raises(InputError, match=message) as caught:
        load_or_open(config(samples=table(text), backed=backed))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": []}, r"data\.path = \[\]: give a file"),
        ({"path": ["a.h5ad", ""]}, r"data\.path = .*give a file"),
        ({"path": 3}, r"data\.path = 3: give a file"),
        ({"path": "a.h5ad", "samples": "s.csv"}, r"data\.samples = 's\.csv': .*leave data\.path"),
        ({}, r"data=file needs data\.path=FILE, data\.path=\[FILE,FILE\] or data\.samples"),
        ({"name": "pbmc3k", "samples": "s.csv"}, "only data=file reads files"),
        ({"path": ["a.h5ad"], "join": "left"}, r"data\.join = 'left': must be one of"),
    ],
    ids=str,
)
def test_wrong_settings_are_rejected(settings, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**{"name": "file"} | settings)


def test_titles_name_the_files():
    assert config(path=["x/a.h5ad"]).title == "a"
    assert config(path=["x/a.h5ad", "b.h5ad"]).title == "a and 1 other file"
    assert config(path=("a.h5ad", Path("b.h5ad"), "c")).title == "a and 2 other files"
    assert config(samples="study/cohort.csv").title == "cohort"


def test_the_digest_covers_files_names_columns_and_join():
    write(split(cells()))
    rows = HEAD.replace("\n", ",age\n") + "a.h5ad,a,3\nb.h5ad,b,4\n"
    first = source_digest(config(samples=table(rows)))
    assert source_digest(config(samples=table(rows.replace(",", "\t")))) == first
    for changed in (rows.replace(",b,", ",x,"), rows.replace("4", "5"), rows.replace("age", "h")):
        assert source_digest(config(samples=table(changed))) != first
    table(rows)
    assert source_digest(config(samples="samples.csv", join="outer")) != first
    other = cells(seed=1)[:40].copy()
    write([other], "b")
    assert source_digest(config(samples="samples.csv")) != first


def test_files_with_the_same_contents_are_warned_of():
    one = cells()
    with pytest.warns(UserWarning, match="a.h5ad and b.h5ad have the same contents"):
        load(config(path=write([one, one])))


def test_a_run_of_samples_has_their_table_figure_and_report(run_here, small):
    one, two, three = split(cells())
    write([one, two, three])
    samples = table("path,sample,condition\na.h5ad,a,x\nb.h5ad,b,y\nc.h5ad,c,y\n")
    settings = [
        *(setting for setting in small if not setting.startswith("data")),
        *(
            "data=file",
            "preprocess=all_genes",
            "tracking=off",
            "train.epochs=1",
            "train.n_replicates=1",
            "report.dpi=30",
        ),
        *("evaluate.differential_expression=false", "report.n_neighbors=5"),
    ]
    where = [f"data.samples={samples}", "data.keep_counts=false", "hydra.run.dir=run"]
    code, _, err = run_here("train", *settings, *where)
    assert code == 0, err
    found = pd.read_csv("run/cells/samples.csv", index_col=0)
    assert found.index.tolist() == ["a", "b", "c"]
    assert found["condition"].tolist() == ["x", "y", "y"]
    assert found["n_cells"].tolist() == [150, 40, 170]
    assert found["median_counts"].iloc[0] == np.median(one.to_df().sum(axis=1))
    theta = pd.read_csv("run/cells/cell_topics.csv", index_col=0)
    topics = [name for name in found if name.startswith("topic_")]
    assert list(theta) == topics
    expected = theta.groupby(theta.index.str[-1]).mean()
    np.testing.assert_allclose(found[topics], expected, rtol=1e-5)
    page = Path("run/report.html").read_text()
    assert 'id="samples"' in page
    assert Path("run/figures/samples.png").is_file()
    stored_run = anndata.read_h5ad("run/adata.h5ad")
    assert stored_run.X is None
    assert stored_run.uns["topicell"]["sample_key"] == "sample"
    record = json.loads(Path("run/run.json").read_text())
    assert record["params"]["data.samples"] == samples

    # The counts are prepared again from all files.
    code, _, err = run_here("report", "run=run", "output=again", "report.pdf=false")
    assert code == 0, err
    assert Path("again/figures/samples.png").is_file()
    code, out, err = run_here("train", *settings, *where, "resume=run")
    assert code == 0, err
    assert "the run had already ended" in out

    listed = ["data.path=[a.h5ad,b.h5ad]", "hydra.run.dir=listed", "report=off"]
    code, _, err = run_here("train", *settings, *listed)
    assert code == 0, err
    assert len(pd.read_csv("listed/cells/samples.csv")) == 2
    code, out, err = run_here("train", *settings, *listed, "resume=listed")
    assert code == 0, err
    code, _, err = run_here("compare", "runs=[run,listed]", "output=compared", "tracking=off")
    assert code == 0, err
    code, _, err = run_here(
        "transform", "run=listed", "input=c.h5ad", "output=c.csv", "tracking.enabled=false"
    )
    assert code == 0, err


def test_rounded_values_are_counted_in_all_files():
    one, two, three = split(cells())
    for part in (one, two, three):
        part.X.data[:5] += 0.4
    write([one, two])
    three.to_df().to_csv("c.csv")
    paths = ["a.h5ad", "b.h5ad", "c.csv"]
    for backed in (False, True):
        data = config(path=paths, round=True, backed=backed)
        found, _ = quiet(
            lambda data: prepared(
                lambda: load_or_open(data), "", PreprocessConfig(cache=False, n_variable_genes=20)
            ),
            data,
        )
        assert found.uns["topicell_rounded"] == 15
