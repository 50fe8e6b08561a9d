"""The report of a run: two maps of the cells, the figures, and one page that holds them all.

Everything it shows is in the run's AnnData and its training history, so a stored run can be
reported again later. The way: `embedding` → `figures` → `page`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

    from topicell.config import ReportConfig

__all__ = ["require_enough_cells", "write"]


def require_enough_cells(adata: AnnData) -> None:
    """Refuse what cannot be mapped, before anything is computed.

    Raises
    ------
    InputError
        There are fewer cells than a map needs.
    """
    from topicell.config import InputError
    from topicell.report.embedding import MIN_CELLS

    if adata.n_obs < MIN_CELLS:
        raise InputError(
            f"{adata.n_obs} cells are too few for the maps of the report, which need {MIN_CELLS}; "
            "report.enabled=false does without"
        )


def write(
    adata: AnnData,
    history: Sequence[Mapping[str, float]],
    directory: str | Path,
    config: ReportConfig,
    seed: int,
) -> list[Path]:
    """Write ``report.html`` and ``figures/*.png``; map the cells first, if that is still to do.

    Parameters
    ----------
    adata
        The run's cells × modelled genes: ``X`` log-normalised, ``obsm["X_lda"]``,
        ``varm["lda_topics"]``, ``uns["topicell"]``. Maps and clusters are added to it, unless they
        are there.
    history
        Metrics of each epoch; figures that need it are left out if it is empty.
    directory
        Where to write; made if need be.
    config
        Settings of maps and figures.
    seed
        Of the maps, and of the draw of cells for the structure plot.

    Returns
    -------
    The files written: the figures, and the page last.
    """
    from topicell.report.embedding import embed_counts, embed_topics
    from topicell.report.page import render

    if "X_umap_counts" not in adata.obsm or "leiden" not in adata.obs:
        embed_counts(adata, config, seed)
    if "X_umap_topics" not in adata.obsm:
        embed_topics(adata, config, seed)

    directory = Path(directory)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    paths, images = [], {}
    for name, figure in _figures(adata, history, config, seed).items():
        path = directory / "figures" / f"{name}.png"
        figure.savefig(path, dpi=config.dpi)
        images[name] = path.read_bytes()
        paths.append(path)
    page = directory / "report.html"
    page.write_text(render(adata, history, images, config.n_top_genes), encoding="utf-8")
    return [*paths, page]


def _figures(
    adata: AnnData, history: Sequence[Mapping[str, float]], config: ReportConfig, seed: int
) -> dict[str, Any]:
    """The matplotlib figures, by the name of their file."""
    import numpy as np

    from topicell.evaluation import ranking
    from topicell.report import figures

    theta_NK = np.asarray(adata.obsm["X_lda"])
    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    genes_KT = ranking.top_genes(beta_KG, config.n_top_genes)
    label_key = adata.uns["topicell"]["label_key"]
    labels = adata.obs[label_key] if label_key else None

    drawn = {}
    for space in ("counts", "topics"):
        umap_N2 = np.asarray(adata.obsm[f"X_umap_{space}"])
        title = f"UMAP of the {space}"
        drawn[f"umap_{space}_topics"] = figures.umap_by_topic(
            umap_N2, theta_NK, f"{title}, by topic"
        )
        drawn[f"umap_{space}_leiden"] = figures.umap_by_category(
            umap_N2, adata.obs["leiden"], f"{title}, by Leiden cluster of the counts"
        )
        if labels is not None:
            drawn[f"umap_{space}_labels"] = figures.umap_by_category(
                umap_N2, labels, f"{title}, by label"
            )
    drawn["structure"] = figures.structure_plot(
        theta_NK, adata.obs["leiden"] if labels is None else labels, seed
    )
    drawn["top_genes"] = figures.top_genes(
        adata.var_names.to_numpy()[genes_KT],
        np.take_along_axis(beta_KG, genes_KT, axis=1),
        "Most probable genes of each topic",
    )
    if "amortization_gap" in adata.obs:
        drawn["amortization_gap"] = figures.gap_histogram(adata.obs["amortization_gap"].to_numpy())
    if history:
        drawn["training_curves"] = figures.training_curves(history)
    return drawn
