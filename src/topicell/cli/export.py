"""``topicell export``: files of a stored run for other programs, one format in each row of a table.

Each format is a command of its own: ``topicell export FORMAT SETTING=VALUE …``.
"""

from __future__ import annotations

import json
import shlex
import tempfile
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from topicell.cli.command import NO_DEFAULT, Command
from topicell.cli.options import read
from topicell.cli.output import make_folder, new_folder
from topicell.config import ReportConfig, RunConfig, TrackingConfig
from topicell.config.checks import POSITIVE, check_fields, setting
from topicell.errors import InputError
from topicell.export.genes import Order

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData

T = TypeVar("T")


@dataclass
class GmtCommand:
    """Write the leading genes of each topic of a run as gene sets, one line of a GMT file each.

    by=relevance, probability, lift, frex, deviation or differential ranks the genes (differential:
    log fold change against the nearest topic, divided by its standard error). Genes have their
    names in the run; ids=true writes their identifiers instead.
    """

    run: str = NO_DEFAULT
    """MLflow id or folder of the run."""
    output: str | None = None
    """New file; null uses topics-RUN.gmt."""
    by: Order = Order.relevance
    """How genes are ranked."""
    n_genes: int = setting(50, POSITIVE)
    """Number of genes of each topic."""
    ids: bool = False
    """Write identifiers of genes instead of names."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_fields("", self)


@dataclass
class RnkCommand:
    """Write all genes of each topic of a run with their scores, for preranked GSEA: TOPIC.rnk.

    by and ids are those of topicell export gmt.
    """

    run: str = NO_DEFAULT
    """MLflow id or folder of the run."""
    output: str | None = None
    """New folder; null uses ranks-RUN."""
    by: Order = Order.differential
    """How genes are ranked."""
    ids: bool = False
    """Write identifiers of genes instead of names."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_fields("", self)


@dataclass
class VitessceCommand:
    """Write a folder that Vitessce shows: cells, topics and genes on both maps, in a browser.

    The folder has the expression of the n_genes leading genes of each topic by relevance, and the
    cells that are on the maps of the report.
    """

    run: str = NO_DEFAULT
    """MLflow id or folder of the run."""
    output: str | None = None
    """New folder; null uses vitessce-RUN."""
    n_genes: int = setting(30, POSITIVE)
    """Number of genes of each topic whose expression is written."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_fields("", self)


@dataclass
class CellxgeneCommand:
    """Write an h5ad file for cellxgene, also of a run that keeps no counts.

    It has log-normalised values in columns, both maps, and obs with types that cellxgene reads.
    """

    run: str = NO_DEFAULT
    """MLflow id or folder of the run."""
    output: str | None = None
    """New file; null uses cellxgene-RUN.h5ad."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def export(arguments: list[str]) -> None:
    """Call the format that the first argument names."""
    from topicell.cli.main import HELP_FLAGS

    if not arguments or "=" in arguments[0]:
        raise InputError(f"name the format first: topicell export {' | '.join(FORMATS)} run=RUN_ID")
    name, *rest = arguments
    if name in HELP_FLAGS:
        rows = (replace(row, name=format_).overview for format_, row in FORMATS.items())
        print(HEAD, *rows, "", FOOT, sep="\n", end="")
        return
    if name not in FORMATS:
        near = get_close_matches(name, FORMATS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it is one of {', '.join(FORMATS)}"
        raise InputError(f"{name!r} is not a format of topicell export; {hint}")
    if rest and rest[0] in HELP_FLAGS:
        print(FORMATS[name].help)
        return
    FORMATS[name].function(rest)


def gmt(arguments: list[str]) -> None:
    """Write the leading genes of the topics as a GMT file."""
    asked: GmtCommand = read(FORMATS["gmt"], arguments)
    from topicell.export.genes import write_gmt

    with tempfile.TemporaryDirectory() as scratch:
        ranks, run = _ranked(asked, Path(scratch))
    output = _new_file(asked.output, f"topics-{run}.gmt")
    write_gmt(ranks, asked.n_genes, f"topicell run {run}, by {asked.by.value}", output)
    print(f"{output}: {len(ranks)} topics")


def rnk(arguments: list[str]) -> None:
    """Write the ranked genes of each topic as an RNK file."""
    asked: RnkCommand = read(FORMATS["rnk"], arguments)
    from topicell.export.genes import write_rnk

    with tempfile.TemporaryDirectory() as scratch:
        ranks, run = _ranked(asked, Path(scratch))
    output = new_folder(asked.output, f"ranks-{run}")
    make_folder(output)
    write_rnk(ranks, output)
    print(f"{output}: {len(ranks)} topics")


def vitessce(arguments: list[str]) -> None:
    """Write a folder for Vitessce."""
    asked: VitessceCommand = read(FORMATS["vitessce"], arguments)
    from topicell.export.vitessce import write
    from topicell.model.fit import write_folder
    from topicell.progress import step
    from topicell.report.embedding import mapped

    with tempfile.TemporaryDirectory() as scratch:
        folder, run_id = _fetched(asked, Path(scratch), ("adata.h5ad",))
        run = run_id or folder.resolve().name
        output = new_folder(asked.output, f"vitessce-{run}")
        adata = _with_maps(folder / "adata.h5ad")
        rows = mapped(adata)
        shown = adata if len(rows) == adata.n_obs else adata[rows]
        genes = _leading_genes(adata, asked.n_genes)
        title = f"Topics of {adata.uns['topicell']['data']}, run {run}"
        with step("cells"):
            write_folder(
                output, lambda unfinished: write(shown, genes, title, unfinished), overwrite=False
            )
    print(f"{output}: {len(rows)} cells × {len(genes)} genes; to open it:")
    print(f"  python -m http.server --bind 127.0.0.1 --directory {shlex.quote(str(output))}")
    print("  http://127.0.0.1:8000 in a browser")


def cellxgene(arguments: list[str]) -> None:
    """Write an h5ad file for cellxgene."""
    asked: CellxgeneCommand = read(FORMATS["cellxgene"], arguments)
    from topicell.data.frames import write_h5ad
    from topicell.export.cellxgene import shown_cells
    from topicell.files import whole

    with tempfile.TemporaryDirectory() as scratch:
        folder, run_id = _fetched(asked, Path(scratch), ("adata.h5ad",))
        output = _new_file(asked.output, f"cellxgene-{run_id or folder.resolve().name}.h5ad")
        shown = shown_cells(_with_maps(folder / "adata.h5ad"))
        with whole(output) as unfinished:
            write_h5ad(shown, unfinished, compression="gzip")
    print(f"{output}: {shown.n_obs} cells × {shown.n_vars} genes; to open it:")
    print(f"  cellxgene launch {shlex.quote(str(output))} --open")


def _fetched(asked: Any, scratch: Path, artifacts: tuple[str, ...]) -> tuple[Path, str]:
    """Return the folder of the run and its id, as `topicell.tracking.stored.fetch_run` does."""
    from topicell.tracking.stored import PARENT_KINDS, fetch_run, kind_of

    if Path(asked.run).is_dir() and (kind := kind_of(asked.run, asked.tracking)) in PARENT_KINDS:
        raise InputError(f"run = {asked.run!r} is the parent of a {kind}: name one of its runs")
    return fetch_run(asked.run, asked.tracking, scratch, artifacts)


def _ranked(asked: GmtCommand | RnkCommand, scratch: Path) -> tuple[dict[str, pd.Series], str]:
    """Return the scores of the genes of each topic, and the id or the folder name of the run."""
    from topicell.export.genes import ranked

    wanted = ("topics", "model") if asked.ids else ("topics",)
    folder, run_id = _fetched(asked, scratch, wanted)
    ranks = ranked(folder / "topics", asked.by)
    if asked.ids:
        from topicell.model.loading import load_fit

        fit = load_fit(folder / "model")
        if fit.gene_ids is None:
            raise InputError(
                "ids = true: the data of the run have no identifiers of genes (var['gene_ids']); "
                "leave it out to write their names"
            )
        ids = dict(zip(fit.genes, fit.gene_ids, strict=True))
        ranks = {topic: score.rename(index=ids) for topic, score in ranks.items()}
    return ranks, run_id or folder.resolve().name


def _with_maps(path: Path) -> AnnData:
    """Return the cells of a run with log-normalised values and both maps.

    Values that the run does not keep are prepared from its source, and maps that it has not made,
    because its report was off, are made as the report would.
    """
    import anndata

    from topicell import report
    from topicell.data.cells import with_source_counts
    from topicell.progress import step

    adata = anndata.read_h5ad(path)
    if "topicell" not in adata.uns:
        raise InputError(f"{path} was not written by a run")
    stored = json.loads(adata.uns["topicell"]["config"])
    if adata.X is None:
        config = _settings(RunConfig, stored)
        with step("counts"):
            adata = with_source_counts(adata, config.data, config.preprocess)
    report.require_enough_cells(adata)
    report.add_maps(adata, _settings(ReportConfig, stored["report"]), stored["seed"])
    return adata


def _leading_genes(adata: AnnData, n_genes: int) -> np.ndarray:
    """Return the positions of the leading genes by relevance: those that lead any topic first."""
    import numpy as np

    from topicell.evaluation.ranking import gene_scores, top_genes
    from topicell.report.tables import gene_frequency

    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    score_KG = gene_scores(beta_KG, "relevance", gene_frequency(adata))
    return np.array(list(dict.fromkeys(top_genes(score_KG, n_genes).T.ravel().tolist())))


def _settings(kind: type[T], stored: Any) -> T:
    """Return stored settings; those that the run does not have yet have their defaults."""
    from omegaconf import OmegaConf

    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), stored))
    assert isinstance(settings, kind)
    return settings


def _new_file(asked: str | None, name: str) -> Path:
    """Return the output file, which must not exist: the one asked for, else `name`."""
    output = Path(asked or name)
    if output.exists():
        raise InputError(f"output = {str(output)!r} exists; name another file")
    if not output.parent.is_dir():
        raise InputError(f"output = {str(output)!r}: there is no folder {output.parent}")
    return output


FORMATS = {
    "vitessce": Command(
        name="export vitessce",
        summary="a folder that Vitessce shows in a browser",
        examples=(("topicell export vitessce run=RUN_ID", "or run=FOLDER"),),
        settings=VitessceCommand,
        function=vitessce,
    ),
    "cellxgene": Command(
        name="export cellxgene",
        summary="an h5ad file for cellxgene",
        examples=(("topicell export cellxgene run=RUN_ID", ""),),
        settings=CellxgeneCommand,
        function=cellxgene,
    ),
    "gmt": Command(
        name="export gmt",
        summary="the leading genes of each topic as gene sets",
        examples=(("topicell export gmt run=RUN_ID by=frex n_genes=100", ""),),
        settings=GmtCommand,
        function=gmt,
    ),
    "rnk": Command(
        name="export rnk",
        summary="ranked genes of each topic for preranked GSEA",
        examples=(("topicell export rnk run=RUN_ID", ""),),
        settings=RnkCommand,
        function=rnk,
    ),
}
"""The formats, in the order of ``topicell export --help``; a row adds one."""

HEAD = """\
topicell export: Write files of a stored run for other programs.

usage: topicell export FORMAT [SETTING=VALUE ...]
"""
FOOT = """\
topicell export FORMAT --help lists the settings of a format
"""

COMMAND = Command(
    name="export",
    summary="write files of a stored run for other programs",
    examples=(
        ("topicell export vitessce run=RUN_ID", "cells and topics in a browser"),
        ("topicell export cellxgene run=RUN_ID", ""),
        ("topicell export gmt run=RUN_ID", "gene sets of the topics; rnk for ranked genes"),
    ),
    settings=None,
    function=export,
)
