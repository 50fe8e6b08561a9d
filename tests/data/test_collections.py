"""An annbatch collection is read as the cells of its datasets, one after the other."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import warnings

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from topicell.config import DataConfig, Flavor, PreprocessConfig
from topicell.data import mapped, stored
from topicell.data.preprocessing import prepared
from topicell.data.reading import load, load_or_open, read, source_digest
from topicell.data.stored import StoredCounts
from topicell.errors import InputError

SIZES = (150, 40, 210)
N = sum(SIZES)


def cells(n_cells=N, n_genes=120, seed=0):
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.3, 2.0, (3, n_genes)) + 0.05
    kind = rng.integers(3, size=n_cells)
    obs = pd.DataFrame(
        {"kind": pd.Categorical([f"k{k}" for k in kind]), "batch": rng.integers(3, size=n_cells)},
        index=[f"c{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(
        {"length": np.arange(n_genes)},
        index=[f"MT-{i}" if i < 3 else f"G{i}" for i in range(n_genes)],
    )
    x = sp.csr_matrix(rng.poisson(rates[kind]).astype(np.float32))
    return anndata.AnnData(x, obs=obs, var=var)


def parts(adata):
    """Return the cells in pieces of `SIZES`, without categories that a piece does not use."""
    ends = np.cumsum(SIZES)
    return [adata[end - n : end].copy() for n, end in zip(SIZES, ends, strict=True)]


def sharded(write, store, name, value, dataset_kwargs, *, iospec):
    """Write sparse matrices in chunks of 500 values, and shards of two chunks, as annbatch does."""
    if iospec.encoding_type in ("csr_matrix", "csc_matrix") and value.nnz:
        dataset_kwargs = {**dataset_kwargs, "chunks": (500,), "shards": (1000,)}
    write(store, name, value, dataset_kwargs=dataset_kwargs)


def write(folder, pieces, *, name="cells.zarr", marked=True):
    """Write a collection in the layout of annbatch 0.3."""
    path = folder / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's and zarr's own, about their formats
        group = zarr.open_group(path, mode="w", zarr_format=3)
        for number, piece in enumerate(pieces):
            anndata.experimental.write_dispatched(group, f"dataset_{number}", piece, sharded)
        zarr.consolidate_metadata(group.store)
        if marked:
            group.update_attributes(
                {"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"}
            )
    return path


def config(path, **more):
    return DataConfig(name="file", path=str(path), **more)


def result(path, **settings):
    """Return the prepared cells of a file; they are not cached."""
    settings = PreprocessConfig(cache=False, **{"n_variable_genes": 50} | settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prepared(lambda: load_or_open(config(path)), "", settings, seed=1)


@pytest.fixture
def collection(tmp_path):
    return write(tmp_path, parts(cells()))


@pytest.mark.parametrize("n_rows", [37, 10_000])
@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_key": "kind"}, {"min_counts_per_cell": 60}, {"flavor": Flavor.seurat}],
    ids=str,
)
def test_the_cells_are_prepared_as_those_of_one_file(
    settings, n_rows, collection, tmp_path, monkeypatch
):
    monkeypatch.setattr(stored, "N_ROWS", n_rows)
    cells().write_h5ad(tmp_path / "cells.h5ad")
    found, expected = (result(p, **settings) for p in (collection, tmp_path / "cells.h5ad"))
    assert mapped.is_mapped(found) == ("flavor" not in settings)
    for matrix, other in (
        (found.X, expected.X),
        (found.layers["counts"], expected.layers["counts"]),
    ):
        np.testing.assert_array_equal(matrix.toarray(), other.toarray())
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("backed", [True, False])
def test_all_commands_read_it(marked, backed, tmp_path):
    path = write(tmp_path, parts(cells()), marked=marked)
    assert isinstance(load_or_open(config(path, backed=backed)), StoredCounts)
    for found in (read(path, backed=backed), load(config(path, backed=backed))):
        np.testing.assert_array_equal(found.layers["counts"].toarray(), cells().X.toarray())
        assert list(found.obs_names) == list(cells().obs_names)
        pd.testing.assert_frame_equal(found.var, cells().var)
        assert found.uns["topicell_source"]["name"] == "cells"


def test_datasets_are_in_the_order_of_their_numbers(tmp_path):
    adata = cells(120)
    path = write(tmp_path, [adata[10 * i : 10 * i + 10].copy() for i in range(12)])
    assert list(read(path).obs_names) == list(adata.obs_names)


def test_one_dataset_is_enough(tmp_path):
    found = read(write(tmp_path, [cells()]))
    np.testing.assert_array_equal(found.X.toarray(), cells().X.toarray())


def test_columns_of_obs_and_their_categories_may_differ(tmp_path):
    pieces = parts(cells())
    pieces[0].obs["kind"] = pd.Categorical(["a"] * SIZES[0])
    pieces[1].obs["kind"] = pd.Categorical(["b", "c"] * (SIZES[1] // 2))
    pieces[2].obs["kind"] = pd.Categorical(["c", "a", None] * (SIZES[2] // 3))
    pieces[1].obs["dose"] = np.arange(SIZES[1])
    pieces[1].obs["good"] = True
    del pieces[2].var["length"]
    found = read(write(tmp_path, pieces))
    kinds = [kind for piece in pieces for kind in piece.obs["kind"].astype(object)]
    np.testing.assert_array_equal(found.obs["kind"].astype(object).fillna(""),
                                  pd.Series(kinds).fillna(""))  # fmt: skip
    assert list(found.obs["kind"].cat.categories) == ["a", "b", "c"]
    present = np.repeat([False, True, False], SIZES)
    np.testing.assert_array_equal(found.obs["dose"].notna(), present)
    np.testing.assert_array_equal(found.obs["good"].notna(), present)
    assert "length" not in found.var
    found.write_h5ad(tmp_path / "again.h5ad")


@pytest.mark.parametrize("layer", [None, "counts", "raw", "X"])
def test_a_layer_is_selected(layer, tmp_path):
    pieces = parts(cells())
    for piece in pieces:
        piece.raw = piece
        piece.layers["counts"] = piece.X * 2
        piece.X = piece.X * 3
    found = read(write(tmp_path, pieces), layer=layer).X
    factor = {"raw": 1, "X": 3}.get(layer, 2)
    np.testing.assert_array_equal(found.toarray(), cells().X.toarray() * factor)


def test_matrices_may_be_dense_or_by_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "N_ROWS", 37)
    pieces = parts(cells())
    pieces[0].X = pieces[0].X.tocsc()
    pieces[1].X = pieces[1].X.toarray()
    path = write(tmp_path, pieces)
    np.testing.assert_array_equal(read(path).X.toarray(), cells().X.toarray())
    size = stored.size_of(path, None)
    assert (size.n_cells, size.n_genes, size.by_rows) == (N, 120, False)
    assert size.n_values == cells().X.nnz
    assert size.dense_bytes == SIZES[1] * 120 * 4


def other_genes(pieces):
    pieces[1] = pieces[1][:, ::-1].copy()


def fewer_genes(pieces):
    pieces[2] = pieces[2][:, :100].copy()


def no_counts(pieces):
    pieces[2].X = pieces[2].X / 2


def lacks_layer(pieces):
    for piece in pieces[:2]:
        piece.layers["counts"] = piece.X.copy()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (other_genes, {}, r"dataset_1 has other genes than dataset_0 \(gene 1 is 'G119' instead "),
        (fewer_genes, {}, r"dataset_2 has other genes than dataset_0 \(100 instead of 120\)"),
        (no_counts, {}, r"X: \d+ values are not whole \(first: 0.5 in row 190, gene "),
        (lacks_layer, {}, r"in layers\['counts'\] of dataset_0, but in X of dataset_2; set layer"),
        (lacks_layer, {"layer": "counts"}, r"dataset_2: layer 'counts' does not exist; layers her"),
        (lambda pieces: pieces.clear(), {}, "is an annbatch collection without datasets; create"),
        (lambda pieces: None, {"modality": "rna"}, "this is an annbatch collection"),
    ],
)
def test_what_cannot_be_read_is_named(change, options, message, tmp_path):
    pieces = parts(cells())
    change(pieces)
    path = write(tmp_path, pieces)
    with pytest.raises(InputError, match=message) as caught:
        read(path, **options)
    assert str(caught.value).startswith(f"{path}: ")


def remove(name, path):
    victim = path / name
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()


def spoil(name, path):
    data = bytearray((path / name).read_bytes())
    data[-60:] = bytes(60)  # the index of the shard and its checksum
    (path / name).write_bytes(data)


def shift_indices(name, path):
    indices = zarr.open_group(path, mode="r+")[f"{name}/indices"]
    indices[:] = indices[:] + 100


@pytest.mark.parametrize(
    ("damage", "name", "message"),
    [
        (remove, "dataset_1/X/data/c/1", r"dataset_1: X/data lacks 1 of \d+ chunks; the folder is"),
        (remove, "dataset_2/obs", "dataset_2: "),
        (shift_indices, "dataset_2/X", "dataset_2: X is damaged: its csr indices do not match"),
        (spoil, "dataset_2/X/indices/c/0", "dataset_2: cannot be read as an annbatch collection"),
    ],
)
def test_a_damaged_dataset_is_named(damage, name, message, collection):
    damage(name, collection)
    with pytest.raises(InputError, match=f"^{re.escape(str(collection))}: {message}"):
        read(collection)


def test_a_missing_dataset_is_named(tmp_path):
    path = write(tmp_path, parts(cells()))
    remove("dataset_1", path)
    group = zarr.open_group(path, mode="r+", use_consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)
    with pytest.raises(InputError, match="lacks dataset_1 of 3 datasets; the folder is incomplete"):
        read(path)


def test_an_archive_of_a_collection_is_refused(collection, tmp_path):
    packed = shutil.make_archive(str(tmp_path / "packed.zarr"), "zip", collection)
    with pytest.raises(InputError, match="is an annbatch collection in a zip archive; unpack it"):
        read(packed)


def test_its_digest_follows_every_dataset(collection):
    before = source_digest(config(collection))
    assert source_digest(config(collection)) == before
    spoil("dataset_2/X/data/c/0", collection)
    assert source_digest(config(collection)) != before


def test_without_zarrs_the_counts_are_the_same(collection, monkeypatch):
    found = read(collection)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    np.testing.assert_array_equal(read(collection).X.toarray(), found.X.toarray())


@pytest.mark.extras("zarrs")
def test_zarrs_reads_the_counts_if_it_is_installed(collection, monkeypatch):
    import zarrs

    used = []
    read_chunks = zarrs.ZarrsCodecPipeline.read

    def count(self, *arguments, **options):
        used.append(self)
        return read_chunks(self, *arguments, **options)

    monkeypatch.setattr(zarrs.ZarrsCodecPipeline, "read", count)
    np.testing.assert_array_equal(read(collection).X.toarray(), cells().X.toarray())
    assert used
    assert "zarrs" not in zarr.config.get("codec_pipeline.path")


@pytest.mark.skipif(
    sys.version_info < (3, 12) or importlib.util.find_spec("annbatch") is None,
    reason="annbatch is not installed; it needs Python 3.12",
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_collection_of_annbatch_is_read(shuffle, tmp_path):
    adata = cells()
    for number, piece in enumerate(parts(adata)):
        piece.write_h5ad(tmp_path / f"{number}.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its libraries
        import annbatch

        annbatch.DatasetCollection(tmp_path / "cells.zarr").add_adatas(
            [tmp_path / f"{number}.h5ad" for number in range(3)],
            shuffle=shuffle,
            dataset_size=160,
            shuffle_chunk_size=20,
            n_obs_per_chunk=8,
            shard_size=32,
            rng=np.random.default_rng(0),
        )
    path = tmp_path / "cells.zarr"
    assert sorted(p.name for p in path.glob("dataset_*"))[-1] != "dataset_0"
    assert list((path / "dataset_0" / "X" / "data" / "c").iterdir())
    found = read(path)
    assert (list(found.obs_names) == list(adata.obs_names)) == (not shuffle)
    assert set(found.obs_names) == set(adata.obs_names)
    expected = adata[found.obs_names, found.var_names]
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert list(found.obs["kind"]) == list(expected.obs["kind"])


def test_train_reads_a_collection(collection, run_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells().write_h5ad("cells.h5ad")
    for name in ("collection", "h5ad"):
        path = collection if name == "collection" else "cells.h5ad"
        code, _, err = run_here(
            "train", "data=file", f"data.path={path}", "data.label_key=kind",
            "preprocess.n_variable_genes=50", "model.n_topics=3", "model.n_hidden=8",
            "train.n_replicates=1", "train.epochs=2", "train.progress=false", "report=off",
            "tracking=off", f"hydra.run.dir={name}",
        )  # fmt: skip
        assert code == 0, err
    for file in ("scores.csv", "topics/gene_topics.csv", "cells/cell_topics.csv"):
        one, other = (tmp_path / name / file for name in ("collection", "h5ad"))
        assert one.read_bytes() == other.read_bytes(), file
