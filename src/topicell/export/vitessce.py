"""A folder that Vitessce shows: cells in a zarr store, the configuration of the views, and a page.

The page (``vitessce.html``) loads Vitessce from a public copy of the npm registry, in the version
that the tests open. Shape suffixes: N cells, T genes, K topics.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

STORE, CONFIG, PAGE = "cells.zarr", "vitessce.json", "index.html"
"""The files of the folder."""
MAPS = {"X_umap_counts": "UMAP of counts", "X_umap_topics": "UMAP of topics"}
SCHEMA = "1.0.16"
"""Version of the view configuration; newer versions of Vitessce translate it."""
GENES_PER_CHUNK = 10
"""Vitessce reads one chunk for each gene that is selected."""
PRESENT = 0.1
"""The dot plot counts a topic as present in a cell with at least this proportion."""
WIDTH, HEIGHT = 300, 330
"""Pixels that a map fills at first: of a window of 1,300 × 800 pixels or larger."""


def write(adata: AnnData, genes_T: np.ndarray, title: str, folder: Path) -> None:
    """Write the store, the view configuration and the page.

    Parameters
    ----------
    adata
        The cells to show, which have coordinates on both maps: ``X`` log-normalised.
    genes_T
        Positions of the genes whose expression is written, the most interesting one first.
    title
        Name of the configuration.
    folder
        An empty folder.
    """
    import anndata

    cells, sets = shown_cells(adata, genes_T)
    settings = {"zarr_write_format": 3, "allow_write_nullable_strings": False}
    if hasattr(anndata.settings, "auto_shard_zarr_v3"):
        settings["auto_shard_zarr_v3"] = False
    with anndata.settings.override(**settings), warnings.catch_warnings():
        # zarr says that consolidated metadata are not in the specification of version 3. Vitessce
        # reads the store with and without them.
        warnings.simplefilter("ignore")
        cells.write_zarr(folder / STORE, chunks=(cells.n_obs, GENES_PER_CHUNK))
    config = view_config(cells, sets, title)
    (folder / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    page = Path(__file__).with_name("vitessce.html").read_text("utf-8")
    (folder / PAGE).write_text(page, encoding="utf-8")


def shown_cells(adata: AnnData, genes_T: np.ndarray) -> tuple[AnnData, dict[str, str]]:
    """Return the contents of the store, and the titles of the cell sets by column of obs.

    Topic proportions and cell sets are columns of obs, with names that are valid in a path; ``X``
    has the expression of the genes.
    """
    import pandas as pd
    import scipy.sparse as sp
    from anndata import AnnData

    from topicell.evaluation.ranking import dominant_topics

    theta_NK = np.asarray(adata.obsm["X_lda"], dtype=np.float32)
    topics = [f"topic_{k}" for k in range(theta_NK.shape[1])]
    by_topic = pd.Categorical.from_codes(dominant_topics(theta_NK), pd.Index(topics))
    found: list[tuple[str, Any]] = [*_sets_of(adata), ("Dominant topic", by_topic)]
    # The first sets color the maps at first: labels, if the run has any.
    found.sort(key=lambda one: not one[0].startswith(("Label", "Dominant")))
    columns: dict[str, Any] = {
        # An empty set has no cells to show.
        f"set_{i}": values.remove_unused_categories()
        for i, (_, values) in enumerate(found)
    }
    sets = dict(zip(columns, (title for title, _ in found), strict=True))
    columns |= {name: theta_NK[:, k] for k, name in enumerate(topics)}
    x_NT = adata.X[:, genes_T]
    x_NT = np.asarray(x_NT.toarray() if sp.issparse(x_NT) else x_NT, dtype=np.float32)
    cells = AnnData(
        x_NT,
        obs=pd.DataFrame(columns, index=adata.obs_names.astype(str).rename(None)),
        var=pd.DataFrame(index=adata.var_names[genes_T].astype(str).rename(None)),
        obsm={name: np.asarray(adata.obsm[name], dtype=np.float32) for name in MAPS},
        uns={"topics": topics},
    )
    return cells, sets


def _sets_of(adata: AnnData) -> Iterator[tuple[str, Any]]:
    """Yield title and values of the columns of obs whose values are cell sets."""
    run = adata.uns["topicell"]
    # Of a column with several roles, the last one counts.
    wanted = {
        "leiden": "Leiden cluster",
        run.get("batch_key"): "Batch",
        run.get("sample_key"): "Sample",
        run.get("label_key"): "Label",
    }
    for column, title in wanted.items():
        if column and column in adata.obs:
            yield (title if column == "leiden" else f"{title} ({column})"), _text(adata.obs[column])


def _text(values: pd.Series) -> Any:
    """Return values as categories of text, in the order of the categories; NA stays NA."""
    import pandas as pd

    known = values.astype("category").cat
    names = pd.Index([str(name) for name in known.categories], dtype=object)
    return pd.Categorical.from_codes(known.codes.to_numpy(), names)


def view_config(cells: AnnData, sets: Mapping[str, str], title: str) -> dict[str, Any]:
    """Return the view configuration, as the schema of Vitessce defines it.

    Parameters
    ----------
    cells, sets
        The contents of the store, and the titles of its cell sets (`shown_cells`).
    title
        Name of the configuration.
    """
    topics, genes = list(cells.uns["topics"]), cells.var_names
    maps = [
        {"path": f"obsm/{name}", "embeddingType": of, "dims": [0, 1]} for name, of in MAPS.items()
    ]
    of_genes = {
        "obsEmbedding": maps,
        "obsSets": [{"name": of, "path": f"obs/{column}"} for column, of in sets.items()],
        "obsFeatureMatrix": {"path": "X"},
    }
    of_topics = {"obsFeatureColumns": [{"path": f"obs/{topic}"} for topic in topics]}
    values = {"gene": "log-normalised expression", "topic": "proportion"}
    files = [
        {
            "fileType": "anndata.zarr",
            "url": STORE,
            "options": options,
            "coordinationValues": {
                "obsType": "cell",
                "featureType": kind,
                "featureValueType": values[kind],
            },
        }
        for kind, options in (("gene", of_genes), ("topic", of_topics))
    ]
    # Views with the same scope of a coordination type share its value.
    scopes: dict[str, dict[str, Any]] = {
        "dataset": {"all": "all"},
        "obsType": {"all": "cell"},
        "featureType": {kind: kind for kind in values},
        "featureValueType": values,
        "featureSelection": {"gene": [genes[0]], "topic": [topics[0]], "topics": topics},
        "featureValueColormap": {"all": "viridis"},
        "featureValuePositivityThreshold": {"all": PRESENT},
        "obsColorEncoding": {"sets": "cellSetSelection", "feature": "geneSelection"},
        "embeddingType": MAPS,
        **_first_views(cells),
    }
    counts, in_topics = MAPS
    topic = {"featureType": "topic", "featureValueType": "topic"}
    shared = {"obsColorEncoding": "feature", "featureValueColormap": "all"}
    by_topic = topic | shared | {"featureSelection": "topic"}
    by_gene = shared | dict.fromkeys(
        ("featureType", "featureValueType", "featureSelection"), "gene"
    )
    all_topics = topic | {
        "featureSelection": "topics",
        "featureValuePositivityThreshold": "all",
    }
    by_set = {"obsColorEncoding": "sets"}
    bare = {"transpose": True, "hideObservationLabels": True}
    return {
        "version": SCHEMA,
        "name": title,
        "description": "",
        "initStrategy": "auto",
        "datasets": [{"uid": "all", "name": title, "files": files}],
        "coordinationSpace": scopes,
        "layout": [
            _map(counts, (0, 0, 3, 6), by_set),
            _map(in_topics, (3, 0, 3, 6), by_set),
            _map(counts, (6, 0, 3, 6), by_topic),
            _view("obsSets", (9, 0, 3, 4), {}),
            _view("featureList", (9, 4, 3, 4), by_topic, title="Topics"),
            _view("featureList", (9, 8, 3, 4), by_gene, title="Genes"),
            _view("dotPlot", (0, 6, 3, 6), all_topics, title="Topics in cell sets"),
            _view("heatmap", (3, 6, 3, 6), topic, title="Topics in cells", **bare),
            _map(counts, (6, 6, 3, 6), by_gene),
        ],
    }


def _first_views(cells: AnnData) -> dict[str, dict[str, float]]:
    """Return zoom and center of each map at first, by coordination type; y points down."""
    found: dict[str, dict[str, float]] = {
        "embeddingZoom": {},
        "embeddingTargetX": {},
        "embeddingTargetY": {},
    }
    for name in MAPS:
        low, high = cells.obsm[name].min(axis=0), cells.obsm[name].max(axis=0)
        width, height = np.maximum(high - low, 1e-6)
        x, y = (low + high) / 2
        found["embeddingZoom"][name] = float(np.log2(min(WIDTH / width, HEIGHT / height)))
        found["embeddingTargetX"][name], found["embeddingTargetY"][name] = float(x), float(-y)
    return found


def _map(name: str, place: Sequence[int], scopes: Mapping[str, str]) -> dict[str, Any]:
    """Return the view of a map; views of the same map move together."""
    kinds = ("embeddingType", "embeddingZoom", "embeddingTargetX", "embeddingTargetY")
    return _view("scatterplot", place, dict.fromkeys(kinds, name) | dict(scopes))


def _view(
    component: str, place: Sequence[int], scopes: Mapping[str, str], **props: Any
) -> dict[str, Any]:
    """Return a view at x, y, width and height in twelfths."""
    same = {"dataset": "all", "obsType": "all"}
    view = {"component": component, "coordinationScopes": same | dict(scopes)}
    return view | dict(zip("xywh", place, strict=True)) | ({"props": props} if props else {})
