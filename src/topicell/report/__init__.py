"""The report of a run: two maps of the cells, the figures, and one page with all of them.

A report only needs the run's AnnData and its training history, so it can be made again for a stored
run. The order is `embedding` → `figure_set` → `page`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicell.redaction import without_password
from topicell.signals import interrupted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

    from topicell.config import ReportConfig
    from topicell.report.figure_set import Drawing

__all__ = [
    "ReportError",
    "add_differential_expression",
    "add_maps",
    "catch_up",
    "described",
    "require_enough_cells",
    "require_gene_sets",
    "write",
]

MAIN_FIGURE = "umap_counts_topics"
"""The most informative figure of a run."""
PICTURE = "figures/preview"
"""The main figure, small enough for a description in MLflow, which shows pictures in full size."""
DIFFERENTIAL = ("lda_rate", "lda_lfc", "lda_lfc_se", "lda_nearest", "lda_p", "lda_q")
"""Entries of ``varm`` that hold the differential expression of topics."""


class ReportError(Exception):
    """Parts of a report are missing; the others were written."""


def require_enough_cells(adata: AnnData) -> None:
    """Reject data that cannot be mapped, before anything is computed.

    Raises
    ------
    InputError
        There are too few cells for a map.
    """
    from topicell.errors import InputError
    from topicell.report.embedding import MIN_CELLS

    if adata.n_obs < MIN_CELLS:
        raise InputError(
            f"{adata.n_obs} cells are too few for the maps of the report, which need {MIN_CELLS}; "
            "report.enabled=false makes no report"
        )


def require_gene_sets(adata: AnnData, config: ReportConfig) -> None:
    """Reject gene sets that cannot be read, or that do not match the genes.

    Raises
    ------
    InputError
        ``report.gene_sets`` is invalid.
    """
    if config.gene_sets is not None:
        from topicell.evaluation.gene_sets import read_gene_sets
        from topicell.report.enrichment import restricted_sets

        restricted_sets(read_gene_sets(config.gene_sets), adata.var_names)


def add_differential_expression(adata: AnnData, max_cells: int, seed: int) -> None:
    """Compute how genes differ between the topics of a run.

    Sets ``varm["lda_rate"]``, ``["lda_lfc"]``, ``["lda_lfc_se"]``, ``["lda_nearest"]``,
    ``["lda_p"]`` and ``["lda_q"]``, genes × topics; nothing if fewer than two topics are used. See
    `topicell.evaluation.differential`. Of more than `max_cells` cells, that many are drawn by the
    seed, and ``uns["topicell"]["differential_cells"]`` is their number.
    """
    import warnings

    import numpy as np

    from topicell.counts import LateRows, drawn
    from topicell.evaluation.differential import differential_expression

    theta_NK = np.asarray(adata.obsm["X_lda"])
    if theta_NK.shape[1] < 2:
        return
    counts = adata.layers["counts"]
    rows = drawn(adata.n_obs, max_cells, seed)
    if rows is not None:
        counts, theta_NK = LateRows(counts)[rows], theta_NK[rows]
        adata.uns["topicell"]["differential_cells"] = max_cells
    counts = without_batches(counts, adata, rows)
    try:
        found = differential_expression(counts, theta_NK)
    except ValueError as error:
        warnings.warn(f"differential expression of topics is left out: {error}", stacklevel=2)
        return
    values = found.rate_KG, found.lfc_KG, found.se_KG, found.nearest_KG, found.p_KG, found.q_KG
    for name, value_KG in zip(DIFFERENTIAL, values, strict=True):
        adata.varm[name] = value_KG.T.copy()


def without_batches(counts: Any, adata: AnnData, rows: np.ndarray | None) -> Any:
    """Return counts of cells, divided by the factors of their batches if the run has batches.

    Parameters
    ----------
    counts
        Counts of the cells.
    adata
        All cells, with the batches and their factors.
    rows
        Positions of the cells; None for all.
    """
    if "batch_factors" not in adata.varm:
        return counts
    import numpy as np

    from topicell.counts import LateRows, corrected

    run = adata.uns["topicell"]
    number = {str(name): s for s, name in enumerate(run["batches"])}
    names = adata.obs[run["batch_key"]].astype(str)
    batch_N = names.map(number).to_numpy(dtype=int)[slice(None) if rows is None else rows]
    return corrected(LateRows(counts).read(), batch_N, np.asarray(adata.varm["batch_factors"]).T)


def catch_up(adata: AnnData, directory: Path, max_cells: int, seed: int) -> None:
    """Add differential expression to a stored run without it: a trial of a sweep, or an old run.

    Parameters
    ----------
    adata
        The run's cells, counts and topics.
    max_cells, seed
        As in `add_differential_expression`.
    directory
        Folder in which ``topics/differential_expression.csv`` is written, if it is missing.
    """
    from topicell.files import whole
    from topicell.report.tables import differential_table

    if "lda_lfc" in adata.varm or "counts" not in adata.layers:
        return
    add_differential_expression(adata, max_cells, seed)
    if "lda_lfc" in adata.varm:
        (directory / "topics").mkdir()
        with whole(directory / "topics" / "differential_expression.csv") as unfinished:
            differential_table(adata).to_csv(unfinished)


def write(
    adata: AnnData,
    history: Sequence[Mapping[str, float]],
    directory: str | Path,
    config: ReportConfig,
    seed: int,
) -> list[Path]:
    """Write ``report.html`` and ``figures/``; first compute the maps if they are missing.

    Parameters
    ----------
    adata
        The run's cells × modelled genes: ``X`` log-normalised, ``obsm["X_lda"]``,
        ``varm["lda_topics"]``, ``uns["topicell"]``; differential expression is shown if it exists.
        Maps and clusters are added if they are missing.
    history
        Metrics of each epoch; figures that need it are left out if it is empty.
    directory
        Output folder; created if it does not exist.
    config
        Settings of maps and figures.
    seed
        Seed of the maps, and of the random cells in the structure plot.

    Returns
    -------
    The written files: figures, ``topics/enrichment.csv`` if gene sets are set, and the page last.

    Raises
    ------
    ReportError
        Figures could not be drawn or written; the other figures and the page are written.
    """
    from topicell.files import whole
    from topicell.progress import step, tracked
    from topicell.report.figure_set import ReportedRun, drawings
    from topicell.report.page import render

    add_maps(adata, config, seed)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    sets = _enrichment(adata, config)
    if sets is not None:
        (directory / "topics").mkdir(exist_ok=True)
        paths.append(directory / "topics" / "enrichment.csv")
        with whole(paths[-1]) as unfinished:
            sets.to_csv(unfinished, index=False)
    drawn = list(drawings(ReportedRun(adata, history, config, seed, sets)))
    with step("figures"):
        counted = tracked(drawn, "")
        files, images, not_drawn, problems = _figures(counted, directory / "figures", config)
    page = directory / "report.html"
    with step("page"), whole(page) as unfinished:
        text = render(adata, history, images, config.n_top_genes, sets, not_drawn)
        unfinished.write_text(text, encoding="utf-8")
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        first, error = problems[0]
        raise ReportError(f"{first} ({described(error)}){more}") from error
    return [*paths, *files, page]


def add_maps(adata: AnnData, config: ReportConfig, seed: int) -> None:
    """Compute the maps that are missing; the parameters are those of `write`."""
    import numpy as np
    import pandas as pd

    from topicell.evaluation.ranking import dominant_topics
    from topicell.progress import step
    from topicell.report.embedding import cells_on_maps, embed_counts, embed_topics

    wanted = "X_umap_counts" not in adata.obsm or "leiden" not in adata.obs
    if not wanted and "X_umap_topics" in adata.obsm:
        return
    strata_N = dominant_topics(np.asarray(adata.obsm["X_lda"]))
    label_key = adata.uns["topicell"]["label_key"]
    if label_key:
        label_N, names = pd.factorize(adata.obs[label_key])
        _, strata_N = np.unique(strata_N * (len(names) + 1) + label_N + 1, return_inverse=True)
    rows_M = cells_on_maps(strata_N, config.max_cells, seed)
    if wanted:
        with step("map of the cells by counts"):
            embed_counts(adata, rows_M, config, seed)
    if "X_umap_topics" not in adata.obsm:
        with step("map of the cells by topics"):
            embed_topics(adata, rows_M, config, seed)


def _figures(
    drawings: Iterator[Drawing], folder: Path, config: ReportConfig
) -> tuple[list[Path], dict[str, str], dict[str, str], list[tuple[str, Exception]]]:
    """Draw and write the figures; if one fails, the others are still made.

    Returns
    -------
    The files; the SVG of the figures of the page; the errors of figures that could not be drawn;
    and a list of all problems with their errors.
    """
    from topicell.report.figure_set import FIGURES
    from topicell.report.figures import as_svg, save

    files: list[Path] = []
    images: dict[str, str] = {}
    not_drawn: dict[str, str] = {}
    problems: list[tuple[str, Exception]] = []
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        problems.append(("the figures could not be written", error))
    writable = not problems
    for name, draw in drawings:
        try:
            figure = draw()
            if FIGURES[name].caption:
                images[name] = as_svg(figure, name)
        except Exception as error:
            if interrupted():
                raise
            not_drawn[name] = described(error)
            problems.append((f"figure {name} could not be drawn", error))
            continue
        if not writable:
            continue
        try:
            files += save(figure, folder / name, config.dpi, pdf=config.pdf)
            if name == MAIN_FIGURE:
                small = int(600 / figure.get_figwidth())
                files += save(figure, folder / Path(PICTURE).name, small, pdf=False)
        except Exception as error:
            if interrupted():
                raise
            problems.append((f"figure {name} could not be written", error))
    return files, images, not_drawn, problems


def described(error: BaseException) -> str:
    """Return the message of an error in one line, without passwords."""
    message = without_password(" ".join(str(error).split())) or "no message"
    return f"{type(error).__name__}: {message}"


def _enrichment(adata: AnnData, config: ReportConfig) -> pd.DataFrame | None:
    """Test gene sets among the leading genes of each topic by FREX."""
    if config.gene_sets is None:
        return None
    import numpy as np

    from topicell.evaluation import ranking
    from topicell.evaluation.gene_sets import read_gene_sets
    from topicell.report.enrichment import enrichment

    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    leading_KT = ranking.top_genes(ranking.frex(beta_KG), config.n_enrichment_genes)
    return enrichment(
        adata.var_names.to_numpy()[leading_KT].tolist(),
        read_gene_sets(config.gene_sets),
        adata.var_names,
        [f"topic_{topic}" for topic in range(len(beta_KG))],
    )
