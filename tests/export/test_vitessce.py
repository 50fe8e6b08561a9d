"""The folder for Vitessce: what the store has, and that the views name only what it has."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from topicell.export.vitessce import HEIGHT, WIDTH, write

N, G, K = 40, 7, 3
RNG = np.random.default_rng(0)


@pytest.fixture
def adata():
    """Return cells of a run with labels, some missing, and with samples and batches."""
    label = pd.Categorical(np.where(RNG.random(N) < 0.5, "B cell", "T/NK"), ["T/NK", "B cell", "-"])
    label[:2] = np.nan
    return anndata.AnnData(
        sp.random(N, G, 0.5, format="csr", random_state=0, dtype=np.float32),
        obs=pd.DataFrame(
            {
                "cell/type": label,
                "leiden": pd.Categorical(["0", "1"] * (N // 2)),
                "donor": np.arange(N) % 4,
            },
            index=[f"c{i}" for i in range(N)],
        ),
        var=pd.DataFrame(index=[f"G/{i}" for i in range(G)]),
        obsm={
            "X_lda": RNG.dirichlet(np.ones(K), N).astype(np.float32),
            "X_umap_counts": RNG.normal(5, 2, (N, 2)).astype(np.float32),
            "X_umap_topics": RNG.normal(-3, 4, (N, 2)).astype(np.float32),
        },
        uns={"topicell": {"label_key": "cell/type", "sample_key": "donor", "batch_key": "donor"}},
    )


@pytest.fixture
def folder(adata, tmp_path):
    """Write the folder, with three genes."""
    write(adata, np.array([4, 0, 2]), "A run", tmp_path)
    return tmp_path


def test_the_store_has_the_cells(adata, folder):
    found = anndata.read_zarr(folder / "cells.zarr")
    assert found.obs_names.equals(adata.obs_names)
    assert found.var_names.tolist() == ["G/4", "G/0", "G/2"]
    np.testing.assert_array_equal(found.X, adata.X.toarray()[:, [4, 0, 2]])
    for k in range(K):
        np.testing.assert_array_equal(found.obs[f"topic_{k}"], adata.obsm["X_lda"][:, k])
    for name in ("X_umap_counts", "X_umap_topics"):
        np.testing.assert_array_equal(found.obsm[name], adata.obsm[name])


def test_cell_sets_are_those_of_obs(adata, folder):
    found = anndata.read_zarr(folder / "cells.zarr").obs
    files = json.loads((folder / "vitessce.json").read_text())["datasets"][0]["files"]
    sets = {one["name"]: one["path"] for one in files[0]["options"]["obsSets"]}
    # The first colors the maps. The samples are the batches, and named once.
    assert list(sets) == ["Label (cell/type)", "Dominant topic", "Leiden cluster", "Sample (donor)"]
    values = [found[path.removeprefix("obs/")] for path in sets.values()]
    assert values[0].equals(adata.obs["cell/type"].cat.remove_unused_categories().rename("set_0"))
    dominant = [f"topic_{k}" for k in adata.obsm["X_lda"].argmax(axis=1)]
    assert values[1].tolist() == dominant
    assert values[2].tolist() == adata.obs["leiden"].tolist()
    assert values[3].tolist() == adata.obs["donor"].astype(str).tolist()


def test_a_run_without_labels_has_its_topics_first(adata, tmp_path):
    adata.uns["topicell"] = {"label_key": "", "sample_key": ""}
    del adata.obs["leiden"]
    write(adata, np.arange(G), "A run", tmp_path)
    files = json.loads((tmp_path / "vitessce.json").read_text())["datasets"][0]["files"]
    assert [one["name"] for one in files[0]["options"]["obsSets"]] == ["Dominant topic"]


def test_views_name_only_what_there_is(folder):
    config = json.loads((folder / "vitessce.json").read_text())
    store = zarr.open_group(folder / "cells.zarr", mode="r")
    assert store.metadata.zarr_format == 3
    assert store.metadata.consolidated_metadata is not None
    for file in config["datasets"][0]["files"]:
        assert file["url"] == "cells.zarr"
        options = file["options"]
        named = [options.get("obsFeatureMatrix")]
        named += [one for value in options.values() if isinstance(value, list) for one in value]
        for path in (one["path"] for one in named if one):
            assert path in store, path
    scopes = config["coordinationSpace"]
    for view in config["layout"]:
        for kind, scope in view["coordinationScopes"].items():
            assert scope in scopes[kind], (view["component"], kind)
        assert view["x"] + view["w"] <= 12
        assert view["y"] + view["h"] <= 12
    assert scopes["featureSelection"]["gene"] == ["G/4"]


def test_maps_fit_in_their_views(adata, folder):
    scopes = json.loads((folder / "vitessce.json").read_text())["coordinationSpace"]
    for name in ("X_umap_counts", "X_umap_topics"):
        center = [scopes["embeddingTargetX"][name], -scopes["embeddingTargetY"][name]]
        pixels = np.abs(adata.obsm[name] - center) * 2 ** scopes["embeddingZoom"][name]
        assert pixels[:, 0].max() <= WIDTH / 2 + 1e-3
        assert pixels[:, 1].max() <= HEIGHT / 2 + 1e-3
        assert np.isclose(2 * pixels.max(axis=0), [WIDTH, HEIGHT]).any()
