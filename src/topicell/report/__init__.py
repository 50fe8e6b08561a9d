"""The report of a run: two maps of the cells, the figures, and one page that holds them all.

Everything it shows is in the run's AnnData and its training history, so a stored run can be
reported again later. The way: `embedding` → `figure_set` → `page`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from topicell.config import ReportConfig

__all__ = [
    "add_differential_expression",
    "catch_up",
    "require_enough_cells",
    "require_gene_sets",
    "write",
]

MAIN_FIGURE = "umap_counts_topics"
"""The figure that says most of a run."""
PICTURE = "figures/preview"
"""The same, small enough for a description in MLflow, which shows pictures as large as they are."""


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


def require_gene_sets(adata: AnnData, config: ReportConfig) -> None:
    """Refuse gene sets that cannot be read, or have nothing to do with the genes.

    Raises
    ------
    InputError
        It says what is wrong with ``report.gene_sets``.
    """
    if config.gene_sets is not None:
        from topicell.report.enrichment import read_gene_sets, restricted_sets

        restricted_sets(read_gene_sets(config.gene_sets), adata.var_names)


def add_differential_expression(adata: AnnData) -> None:
    """Measure how genes differ between the topics of a run.

    Sets ``varm["lda_rate"]``, ``["lda_lfc"]``, ``["lda_lfc_se"]``, ``["lda_nearest"]``,
    ``["lda_p"]`` and ``["lda_q"]``, genes × topics; nothing where fewer than two topics are used.
    See `topicell.evaluation.differential`.
    """
    import warnings

    import numpy as np

    from topicell.evaluation.differential import differential_expression

    theta_NK = np.asarray(adata.obsm["X_lda"])
    if theta_NK.shape[1] < 2:
        return
    try:
        found = differential_expression(adata.layers["counts"], theta_NK)
    except ValueError as error:
        warnings.warn(f"no differential expression of topics: {error}", stacklevel=2)
        return
    adata.varm["lda_rate"] = found.rate_KG.T.copy()
    adata.varm["lda_lfc"] = found.lfc_KG.T.copy()
    adata.varm["lda_lfc_se"] = found.se_KG.T.copy()
    adata.varm["lda_nearest"] = found.nearest_KG.T.copy()
    adata.varm["lda_p"] = found.p_KG.T.copy()
    adata.varm["lda_q"] = found.q_KG.T.copy()


def catch_up(adata: AnnData, directory: Path) -> None:
    """Add what a stored run lacks: trials of sweeps, and older runs, did not compare genes.

    Parameters
    ----------
    adata
        The run's cells, counts and topics.
    directory
        Where ``topics/differential_expression.csv`` is written, if it was lacking.
    """
    from topicell.report.tables import differential_table

    if "lda_lfc" in adata.varm or "counts" not in adata.layers:
        return
    add_differential_expression(adata)
    if "lda_lfc" in adata.varm:
        (directory / "topics").mkdir()
        differential_table(adata).to_csv(directory / "topics" / "differential_expression.csv")


def write(
    adata: AnnData,
    history: Sequence[Mapping[str, float]],
    directory: str | Path,
    config: ReportConfig,
    seed: int,
) -> list[Path]:
    """Write ``report.html`` and ``figures/``; map the cells first, if that is still to do.

    Parameters
    ----------
    adata
        The run's cells × modelled genes: ``X`` log-normalised, ``obsm["X_lda"]``,
        ``varm["lda_topics"]``, ``uns["topicell"]``; differential expression is shown if it was
        added. Maps and clusters are added, unless they are there.
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
    The files written: figures, ``topics/enrichment.csv`` if gene sets are given, and the page last.
    """
    from topicell.report.embedding import embed_counts, embed_topics
    from topicell.report.figure_set import drawn
    from topicell.report.figures import as_svg, save
    from topicell.report.page import FIGURES, render

    if "X_umap_counts" not in adata.obsm or "leiden" not in adata.obs:
        embed_counts(adata, config, seed)
    if "X_umap_topics" not in adata.obsm:
        embed_topics(adata, config, seed)

    directory = Path(directory)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    paths = []
    sets = _enrichment(adata, config)
    if sets is not None:
        (directory / "topics").mkdir(exist_ok=True)
        paths.append(directory / "topics" / "enrichment.csv")
        sets.to_csv(paths[-1], index=False)
    figures = dict(drawn(adata, history, config, seed, sets))
    for figure in figures.values():
        # Lay it out once: every file would do it again.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    images = {name: as_svg(figures[name], name) for name in figures if name in FIGURES}
    page = directory / "report.html"
    page.write_text(render(adata, history, images, config.n_top_genes, sets), encoding="utf-8")
    for name, figure in figures.items():
        paths += save(figure, directory / "figures" / name, config.dpi, pdf=config.pdf)
    first = figures[MAIN_FIGURE]
    paths += save(first, directory / PICTURE, int(600 / first.get_figwidth()), pdf=False)
    return [*paths, page]


def _enrichment(adata: AnnData, config: ReportConfig) -> pd.DataFrame | None:
    """Gene sets among the genes that are frequent in each topic and exclusive to it."""
    if config.gene_sets is None:
        return None
    import numpy as np

    from topicell.evaluation import ranking
    from topicell.report.enrichment import enrichment, read_gene_sets

    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    leading_KT = ranking.top_genes(ranking.frex(beta_KG), config.n_enrichment_genes)
    return enrichment(
        adata.var_names.to_numpy()[leading_KT].tolist(),
        read_gene_sets(config.gene_sets),
        adata.var_names,
        [f"topic_{topic}" for topic in range(len(beta_KG))],
    )
