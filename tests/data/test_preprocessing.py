"""Preprocessing is that of the tutorial; prepared cells are cached with a limit."""

import os
from contextlib import nullcontext
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from topicell.config import Flavor, PreprocessConfig, SplitConfig
from topicell.data import streaming
from topicell.data.preprocessing import (
    _bound,
    column,
    held_in_memory,
    prepared,
    preprocess,
    split,
)
from topicell.errors import InputError


def make(n_cells=300, n_genes=400, seed=0):
    generator = np.random.default_rng(seed)
    rates = generator.gamma(0.3, 2.0, size=(4, n_genes)) + 0.05
    kind = generator.integers(4, size=n_cells)
    x = sp.csr_matrix(generator.poisson(rates[kind]).astype(np.float32))
    names = [f"MT-{i}" if i < 5 else f"RPL{i}" if i < 10 else f"G{i}" for i in range(n_genes)]
    adata = anndata.AnnData(
        x,
        obs=pd.DataFrame(
            {"kind": pd.Categorical([f"k{k}" for k in kind]), "batch": kind % 2},
            index=[f"c{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(index=names),
    )
    adata.layers["counts"] = x.copy()
    return adata


def without(adata, cells, genes):
    """Remove counts in place."""
    x = adata.layers["counts"].toarray()
    x[np.ix_(cells, genes)] = 0
    adata.layers["counts"] = sp.csr_matrix(x)


def test_preprocessing_is_that_of_the_tutorial():
    adata = make()
    ours = preprocess(adata, PreprocessConfig(n_variable_genes=100))

    sc.pp.normalize_total(adata, target_sum=10e4)
    sc.pp.log1p(adata)
    adata.raw = adata
    theirs = adata[:, ~adata.var_names.str.startswith("MT-")].copy()
    sc.pp.highly_variable_genes(
        theirs, flavor="seurat_v3", layer="counts", n_top_genes=100, subset=True
    )
    assert ours.var_names.tolist() == theirs.var_names.tolist()
    assert (ours.X != theirs.X).nnz == 0
    assert (ours.layers["counts"] != theirs.layers["counts"]).nnz == 0
    assert (ours.raw.X != theirs.raw.X).nnz == 0
    assert ours.raw.var_names.tolist() == adata.var_names.tolist()


def test_the_input_is_left_as_it_is():
    adata = make()
    before = adata.copy()
    preprocess(adata, PreprocessConfig(n_variable_genes=50))
    assert (adata.X != before.X).nnz == 0
    assert adata.raw is None
    assert adata.obs.equals(before.obs)


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_every_step_has_a_setting():
    adata = make()
    without(adata, [7], range(400))
    none_dropped = preprocess(adata, PreprocessConfig(n_variable_genes=None, drop_genes=[]))
    assert none_dropped.shape == (299, 400)
    fewer = preprocess(
        adata, PreprocessConfig(n_variable_genes=None, drop_genes=["^MT-", "^RP[SL]"])
    )
    assert fewer.n_vars == 390
    frequent = preprocess(
        adata, PreprocessConfig(n_variable_genes=None, min_cells_per_gene=150, drop_genes=[])
    )
    expressed = np.asarray((adata.layers["counts"] > 0).sum(0)).ravel()
    assert frequent.n_vars == (expressed >= 150).sum()
    deep = preprocess(adata, PreprocessConfig(n_variable_genes=None, min_counts_per_cell=260))
    assert deep.n_obs == (np.asarray(adata.layers["counts"].sum(1)).ravel() >= 260).sum()
    scaled = preprocess(
        adata, PreprocessConfig(n_variable_genes=None, target_sum=50, drop_genes=[])
    )
    assert np.allclose(np.expm1(scaled.X.toarray()).sum(1), 50, rtol=1e-4)


@pytest.mark.parametrize("flavor", [Flavor.seurat, Flavor.cell_ranger, Flavor.seurat_v3_paper])
def test_other_flavours_and_batches_choose_their_genes(flavor):
    adata = make()
    chosen = preprocess(
        adata, PreprocessConfig(n_variable_genes=60, flavor=flavor, batch_key="batch")
    )
    assert chosen.n_vars == 60
    default = preprocess(adata, PreprocessConfig(n_variable_genes=60))
    assert set(chosen.var_names) != set(default.var_names)


@pytest.mark.parametrize("flavor", [Flavor.seurat_v3, Flavor.seurat_v3_paper])
def test_variable_genes_of_batches_are_ranked_in_each_batch_alone(flavor):
    adata = make()
    options = {"flavor": "seurat_v3", "layer": "counts", "n_top_genes": 60, "inplace": False}
    normalised_BG = np.array(
        [
            sc.pp.highly_variable_genes(adata[adata.obs["batch"] == batch].copy(), **options)[
                "variances_norm"
            ]
            for batch in (0, 1)
        ]
    )
    expected = adata.var_names[streaming.ranked(normalised_BG, 60, flavor)]
    config = PreprocessConfig(
        n_variable_genes=60, flavor=flavor, batch_key="batch", drop_genes=[], min_cells_per_gene=0
    )
    assert preprocess(adata, config).var_names.tolist() == expected.tolist()


def test_fewer_genes_than_asked_are_all_used_with_a_warning():
    with pytest.warns(UserWarning, match="only 395 genes"):
        assert preprocess(make(), PreprocessConfig(n_variable_genes=1000)).n_vars == 395


def test_cells_without_counts_give_a_warning():
    adata = make()
    without(adata, [3], range(10, 400))
    with pytest.warns(UserWarning, match="1 cells have no count"):
        preprocess(adata, PreprocessConfig(n_variable_genes=None, drop_genes=["^MT-", "^RPL"]))
    without(adata, [1, 2], range(400))
    with pytest.warns(UserWarning, match="2 of 300 cells have fewer counts"):
        preprocess(adata, PreprocessConfig(n_variable_genes=None))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_counts_per_cell": 10**6}, "preprocess.min_counts_per_cell.*removes all 300 cells"),
        ({"min_cells_per_gene": 10**6}, "preprocess.min_cells_per_gene.*removes all 400 genes"),
        ({"drop_genes": ["."]}, "preprocess.drop_genes.*removes all 400 genes"),
        ({"drop_genes": ["("]}, "preprocess.drop_genes.*not a regular expression"),
        ({"batch_key": "donor"}, "preprocess.batch_key = 'donor'.*kind, batch"),
        (
            {"n_variable_genes": 50, "split": SplitConfig(stratify_by="donor")},
            "stratify_by = 'donor'",
        ),
    ],
)
def test_bad_settings_are_refused_by_name(settings, words):
    with pytest.raises(InputError, match=words):
        preprocess(make(), PreprocessConfig(**settings))


def test_too_few_cells_for_the_flavor_are_refused():
    with pytest.raises(InputError, match=r"preprocess\.flavor"):
        preprocess(make(2, 30), PreprocessConfig(n_variable_genes=5))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_batch_too_small_to_rank_genes_is_refused(size):
    """The loess of seurat_v3 crashes on a batch of one cell."""
    adata = make()
    adata.obs["batch"] = ["small"] * size + ["large"] * (300 - size)
    config = PreprocessConfig(n_variable_genes=50, batch_key="batch")
    with pytest.raises(InputError, match=f"the {size} cells of batch = 'small'"):
        preprocess(adata, config)


def test_genes_of_few_cells_are_ranked_with_the_first_span_that_loess_can_fit():
    """With few sparse cells the LOESS of scanpy's default span is singular (scanpy issue 1504)."""
    generator = np.random.default_rng(0)
    x = generator.poisson(0.1 * generator.lognormal(0, 1, 1000), (60, 1000)).astype(np.float32)
    adata = anndata.AnnData(sp.csr_matrix(x[:, x.any(axis=0)]))
    adata.layers["counts"] = adata.X.copy()
    options = {"n_top_genes": 50, "flavor": "seurat_v3", "layer": "counts", "inplace": False}
    with pytest.raises(ValueError, match="near singularities"):
        sc.pp.highly_variable_genes(adata, **options)
    expected = sc.pp.highly_variable_genes(adata, span=0.5, **options)["highly_variable"]
    config = PreprocessConfig(n_variable_genes=50, drop_genes=[])
    with pytest.warns(UserWarning, match=r"with a span of 0\.3 .* chosen with a span of 0\.5"):
        ours = preprocess(adata, config)
    assert set(ours.var_names) == set(adata.var_names[expected])


def test_cells_without_a_batch_are_refused():
    adata = make()
    adata.obs["kind"] = adata.obs["kind"].where(np.arange(300) > 20)
    with pytest.raises(InputError, match="21 of 300 cells have no value"):
        preprocess(adata, PreprocessConfig(n_variable_genes=50, batch_key="kind"))


def test_a_part_without_cells_gives_a_warning():
    adata = make()
    adata.obs["cell"] = adata.obs_names
    config = PreprocessConfig(n_variable_genes=50, split=SplitConfig(stratify_by="cell"))
    with pytest.warns(UserWarning, match="is empty") as caught:
        preprocess(adata, config)
    assert [str(w.message).split(":")[0] for w in caught if w.category is UserWarning] == [
        "preprocess.split.valid = 0.1",
        "preprocess.split.test = 0.1",
    ]


def test_the_split_has_its_shares_and_depends_on_the_seed():
    adata = make()
    parts = split(adata, SplitConfig(train=0.8, valid=0.1, test=0.1), seed=1)
    assert [(parts == name).sum() for name in ("train", "valid", "test")] == [240, 30, 30]
    assert (parts == split(adata, SplitConfig(), seed=1)).all()
    assert (parts != split(adata, SplitConfig(), seed=2)).any()
    with pytest.raises(InputError, match=r"preprocess.split.train = 0.01"):
        split(make(3), SplitConfig(train=0.01, valid=0.5, test=0.49))


def test_a_stratified_split_keeps_shares_in_every_group():
    adata = make()
    adata.obs["kind"] = adata.obs["kind"].where(np.arange(300) > 20)
    parts = split(adata, SplitConfig(train=0.6, valid=0.2, test=0.2, stratify_by="kind"), seed=0)
    for kind in ("k0", "k1", "k2", "k3"):
        inside = (adata.obs["kind"] == kind).to_numpy()
        assert (parts[inside] == "test").sum() == round(0.2 * inside.sum())
    missing = adata.obs["kind"].isna().to_numpy()
    assert (parts[missing] == "test").sum() == round(0.2 * missing.sum())


def test_prepared_data_are_read_once_for_the_same_data_and_settings(tmp_path):
    calls = []

    def load():
        calls.append(1)
        return make()

    def again(digest="a", seed=0, **settings):
        config = PreprocessConfig(n_variable_genes=50, **settings)
        return prepared(load, digest, config, seed=seed, folder=tmp_path)

    first, second = again(), again()
    assert len(calls) == 1
    assert (first.X != second.X).nnz == 0
    assert (first.raw.X != second.raw.X).nnz == 0
    assert first.obs.equals(second.obs)
    for changed in ({"digest": "b"}, {"target_sum": 1e4}):
        again(**changed)
    assert len(calls) == 3
    # The split is drawn after the cache: seeds share it.
    assert not again(seed=1).obs["split"].equals(first.obs["split"])
    assert len(calls) == 3
    again(cache=False)
    assert len(calls) == 4
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".h5ad"] * 3


@pytest.mark.parametrize("context", [nullcontext, held_in_memory])
def test_warnings_are_repeated_for_cached_data(context, tmp_path):
    config = PreprocessConfig(n_variable_genes=1000)
    with context():
        for _ in range(3):
            with pytest.warns(UserWarning, match="only 395 genes") as caught:
                adata = prepared(make, "a", config, folder=tmp_path)
            assert [w.category for w in caught].count(UserWarning) == 1
            assert not adata.uns.get("topicell_warnings")


def test_columns_of_the_user_with_names_of_the_run_are_renamed():
    adata = make()
    adata.obs["leiden"] = adata.obs["split"] = adata.obs["kind"]
    ours = preprocess(
        adata, PreprocessConfig(n_variable_genes=50, split=SplitConfig(stratify_by="leiden"))
    )
    assert ours.obs[column("leiden")].equals(adata.obs["leiden"])
    assert ours.obs[column("split")].equals(adata.obs["split"])
    assert set(ours.obs["split"]) == {"train", "valid", "test"}
    assert "leiden" not in ours.obs
    assert column("kind") == "kind"


def test_a_cache_that_cannot_be_written_gives_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not be cached"):
        adata = prepared(
            make, "a", PreprocessConfig(n_variable_genes=50), folder=tmp_path / "file" / "cache"
        )
    assert adata.n_vars == 50


@pytest.fixture
def again(tmp_path, monkeypatch):
    """Return a function that prepares the data again; its `loads` counts reads of the raw data.

    It empties the cache folder after each call, and no h5ad file can be read.
    """

    def unreadable(path, *_, **__):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(anndata, "read_h5ad", unreadable)

    def load():
        again.loads += 1
        return make()

    def again(digest="a", seed=0, **settings):
        config = PreprocessConfig(n_variable_genes=None, **settings)
        adata = prepared(load, digest, config, seed=seed, folder=tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()
        return adata

    again.loads = 0
    return again


def assert_same_cells(a, b):
    for x, y in ((a.X, b.X), (a.layers["counts"], b.layers["counts"]), (a.raw.X, b.raw.X)):
        assert x.shape == y.shape
        assert x.dtype == y.dtype
        assert (x != y).nnz == 0
    assert a.raw.var_names.equals(b.raw.var_names)
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    assert a.uns.keys() == b.uns.keys()


def test_held_data_equal_the_cached_data(tmp_path):
    config = PreprocessConfig(n_variable_genes=50)

    def unwanted():
        raise AssertionError("the raw data were read")

    on_disk = [prepared(load, "a", config, folder=tmp_path) for load in (make, unwanted)]
    with held_in_memory():
        held = [prepared(unwanted, "a", config, folder=tmp_path) for _ in range(2)]
    for adata in held:
        assert_same_cells(adata, on_disk[0])
        assert_same_cells(adata, on_disk[1])


def test_each_run_has_its_own_copy_of_held_data(again):
    """Changes of one run to its cells have no effect on the next run."""
    with held_in_memory():
        untouched = again().copy()
        for _ in range(3):
            adata = again()
            assert_same_cells(adata, untouched)
            for matrix in (adata.X, adata.layers["counts"], adata.raw.X):
                matrix.data[:] = 7
            adata.obs["leiden"] = "0"
            adata.obs["kind"] = "k0"
            adata.var["variances"] = 0.0
            adata.uns["topicell"] = {}
            adata.obsm["X_lda"] = np.zeros((adata.n_obs, 2))
            assert "X_lda" not in again().obsm
        assert not again(seed=1).obs["split"].equals(untouched.obs["split"])
    assert again.loads == 1


def test_only_the_data_prepared_last_are_held(again):
    with held_in_memory():
        again()
        assert_same_cells(again(target_sum=1e4), again(target_sum=1e4))
        assert again.loads == 2
        again(digest="b")
        again(digest="b", seed=3)
        assert again.loads == 3
        again()
        assert again.loads == 4
        # cache=False does not use the held data, and keeps them.
        again(cache=False)
        assert again.loads == 5
        again()
        assert again.loads == 5


def test_nothing_is_held_outside_of_the_context(again):
    again()
    again()
    assert again.loads == 2
    with held_in_memory():
        again()
        assert again.loads == 3
    again()
    assert again.loads == 4
    with held_in_memory():
        again()
    assert again.loads == 5
    with pytest.raises(InputError), held_in_memory():
        again(drop_genes=["("])
    again()
    assert again.loads == 7


@pytest.fixture
def cache(tmp_path):
    """Return a cache folder of three files of 400 kB, oldest first, and other files."""
    for age, letter in enumerate("cba"):
        path = tmp_path / f"{letter * 32}.h5ad"
        path.write_bytes(bytes(400_000))
        os.utime(path, (1e9 - age, 1e9 - age))
    for name in ("mine.h5ad", "notes.txt", "tmpabcdefgh.h5ad", "tmp0000_new.h5ad"):
        (tmp_path / name).write_bytes(bytes(400_000))
    os.utime(tmp_path / "mine.h5ad", (1e9, 1e9))
    os.utime(tmp_path / "tmpabcdefgh.h5ad", (1e9, 1e9))
    return tmp_path


OTHERS = {"mine.h5ad", "notes.txt", "tmp0000_new.h5ad"}


@pytest.mark.parametrize(("limit", "left"), [(1, "c"), (None, "abc"), (5, "abc")])
def test_the_oldest_files_of_the_cache_are_removed_first(cache, limit, left):
    """The last file and files of other programs stay; unfinished old files are removed."""
    config = PreprocessConfig(n_variable_genes=50, cache_limit_mb=limit)
    prepared(make, "x", config, folder=cache)
    names = {path.name for path in cache.iterdir()}
    (new,) = names - OTHERS - {f"{letter * 32}.h5ad" for letter in "abc"}
    assert (cache / new).stat().st_size < 600_000
    assert names - {new} == OTHERS | {f"{letter * 32}.h5ad" for letter in left}


def test_the_last_file_stays_even_above_the_limit(cache):
    newest = cache / f"{'d' * 32}.h5ad"
    newest.write_bytes(bytes(2_000_000))
    os.utime(newest, (0, 0))
    _bound(newest, 1)
    assert {path.name for path in cache.iterdir()} == OTHERS | {newest.name}


def test_a_use_makes_a_cached_file_new(tmp_path):
    config = PreprocessConfig(n_variable_genes=50)
    prepared(make, "a", config, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    os.utime(path, (0, 0))
    prepared(make, "a", config, folder=tmp_path)
    assert path.stat().st_mtime > 1e9


def test_the_limit_of_the_cache_is_no_part_of_its_key(tmp_path):
    for limit in (1, 2000, None):
        config = PreprocessConfig(n_variable_genes=50, cache_limit_mb=limit)
        prepared(make, "a", config, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1


def test_data_are_prepared_again_if_another_process_removes_them(tmp_path, monkeypatch):
    config = PreprocessConfig(n_variable_genes=50)
    first = prepared(make, "a", config, folder=tmp_path)
    read = anndata.read_h5ad

    def removed(path):
        path.unlink()
        return read(path)

    monkeypatch.setattr(anndata, "read_h5ad", removed)
    again = prepared(make, "a", config, folder=tmp_path)
    assert_same_cells(again, first)
    stat, there = Path.stat, list(tmp_path.iterdir())

    def gone(path, **kwargs):
        if path in there:
            raise FileNotFoundError(path)
        return stat(path, **kwargs)

    monkeypatch.setattr(Path, "stat", gone)
    _bound(tmp_path / "other.h5ad", 1)
