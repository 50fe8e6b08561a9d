"""``topicell report``: make the report of a stored run again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicell.cli.command import NO_DEFAULT, Command
from topicell.cli.options import read, stored_run_config
from topicell.cli.output import make_folder, new_folder
from topicell.config import EvaluateConfig, ReportConfig, TrackingConfig, as_dict
from topicell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

MAP_SETTINGS = ("max_cells", "n_components", "n_neighbors", "leiden_resolution")
"""Settings of the report that change the maps of the cells; the others change figures only."""


@dataclass
class ReportCommand:
    """Make the report of a stored run again: run=RUN_ID or run=FOLDER, output=FOLDER is new."""

    run: str = NO_DEFAULT
    """MLflow id or folder of the run, or the parent run of a sweep or grid."""
    output: str | None = None
    """New folder; null uses ``report-RUN_ID``."""
    report: ReportConfig = field(default_factory=lambda: ReportConfig(pdf=True))
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def report(arguments: list[str]) -> None:
    """Make the report of a stored run, or of a sweep or grid if `run` is its parent."""
    asked: ReportCommand = read(COMMAND, arguments)
    import tempfile

    from topicell.tracking.stored import PARENT_KINDS, kind_of, replace_report, store_artifacts

    kind = kind_of(asked.run, asked.tracking)
    with tempfile.TemporaryDirectory() as scratch:
        if kind in PARENT_KINDS:
            run_id, output = _report_sweep(asked, kind, Path(scratch))
            if run_id:
                store_artifacts(run_id, asked.tracking, output)
        else:
            run_id, output = _report_run(asked, arguments, Path(scratch))
            replace_report(asked.run, run_id, asked.tracking, output)
    print(output / "report.html")


def _report_run(asked: ReportCommand, arguments: list[str], scratch: Path) -> tuple[str, Path]:
    """Draw the figures and write the page of a run, from its cells and its metrics."""
    import json

    import anndata

    from topicell import report
    from topicell.tracking.stored import fetch_run, read_metrics

    folder, run_id = fetch_run(asked.run, asked.tracking, scratch, ("adata.h5ad", "metrics.jsonl"))
    output = new_folder(asked.output, f"report-{run_id or folder.resolve().name}")
    adata = anndata.read_h5ad(folder / "adata.h5ad")
    if "topicell" not in adata.uns:
        raise InputError(f"{folder / 'adata.h5ad'} was not written by a run")
    stored = json.loads(adata.uns["topicell"]["config"])
    config = read(COMMAND, arguments, {"report": stored["report"] | {"pdf": True}}).report
    asked_now = any(argument.startswith("report.gene_sets=") for argument in arguments)
    stored_sets = config.gene_sets not in (None, "blood") and not asked_now
    if stored_sets and not Path(config.gene_sets or "").is_file():
        warnings.warn(
            f"the gene sets of the run, {config.gene_sets}, were not found and are left out; give "
            "the file with report.gene_sets=FILE",
            stacklevel=2,
        )
        config.gene_sets = None
    report.require_gene_sets(adata, config)
    if adata.X is None:
        adata = _with_counts(adata, stored)
    # Earlier versions have stored no max_cells.
    before = as_dict(ReportConfig()) | stored["report"]
    if any(getattr(config, name) != before[name] for name in MAP_SETTINGS):
        for name in ("X_umap_counts", "X_umap_topics"):
            adata.obsm.pop(name, None)
    make_folder(output)
    n_cells = (as_dict(EvaluateConfig()) | stored["evaluate"])["n_differential_cells"]
    report.catch_up(adata, output, n_cells, stored["seed"])
    report.write(adata, read_metrics(folder)[0], output, config, stored["seed"])
    return run_id, output


def _with_counts(adata: AnnData, stored: Mapping[str, Any]) -> AnnData:
    """Return the cells of a run with the counts of their source."""
    from topicell.data.cells import with_source_counts

    config = stored_run_config(stored)
    return with_source_counts(adata, config.data, config.preprocess)


def _report_sweep(asked: ReportCommand, kind: str, scratch: Path) -> tuple[str, Path]:
    """Draw the figures and write the page of a sweep from its record, of a grid from its runs."""
    from topicell.sweep import page
    from topicell.sweep.grid import as_sweep
    from topicell.sweep.selection import verdict_of
    from topicell.sweep.trials import Sweep
    from topicell.tracking.parents import Parent
    from topicell.tracking.stored import fetch_run

    if kind == "multirun":
        sweep, run_id = as_sweep(Parent(asked.tracking, asked.run)), asked.run
        if not any(trial.n_topics for trial in sweep.trials):
            raise InputError(f"run = {asked.run!r}: this parent has no stored runs")
    else:
        folder, run_id = fetch_run(asked.run, asked.tracking, scratch, ("sweep.json",))
        sweep = Sweep.read(folder / "sweep.json")
    output = new_folder(asked.output, f"report-{run_id or sweep.name}")
    verdict = verdict_of(sweep)
    make_folder(output)
    page.write(sweep, verdict, output, asked.report.dpi, pdf=asked.report.pdf)
    return run_id, output


COMMAND = Command(
    name="report",
    summary="make the report of a stored run again",
    examples=(("topicell report run=RUN_ID", "or run=FOLDER, or the parent of a sweep"),),
    settings=ReportCommand,
    function=report,
)
