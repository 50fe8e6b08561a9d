"""Find and read stored runs, and write their settings as text.

Shape suffixes: N cells, K topics, G genes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from topicell.comparison.values import Side
from topicell.config import TrackingConfig, dotted
from topicell.errors import InputError
from topicell.evaluation.estimates import BySplit
from topicell.report.figure_set import topics_with_little_support
from topicell.tracking.stored import (
    PARENT_KINDS,
    fetch_run,
    kind_of,
    read_metrics,
    read_scores,
    read_tags,
)

ARTIFACTS = ("adata.h5ad", "config.yaml", "metrics.jsonl", "model", "scores.csv")
"""The files of a run that are read."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredRun:
    """The parts of a run folder that are compared."""

    side: Side
    config: Mapping[str, Any]
    """Every setting by its dotted name."""
    source: tuple[str, str]
    """Name of the data, and the sha256 of their source."""
    prepared: str
    """The sha256 of the modelled counts, cells and genes."""
    device: str
    values: Mapping[str, BySplit]
    cells: pd.Index
    genes: pd.Index
    part_N: np.ndarray
    """Part of each cell in the first split of the run."""
    labels_N: np.ndarray | None
    theta_NK: np.ndarray
    beta_KG: np.ndarray
    little: frozenset[int] = frozenset()
    """Topics with little support."""

    @property
    def letter(self) -> str:
        """Return the letter of the run."""
        return self.side.letter


def folder_of(run: str, tracking: TrackingConfig, scratch: Path) -> Path:
    """Return the folder of a run: the named one, or a copy of the artifacts in MLflow.

    Parameters
    ----------
    run
        An MLflow run id, or the path of a run folder.
    tracking
        The store of the run ids; folders are read without it.
    scratch
        Folder for the artifacts of an MLflow run.

    Raises
    ------
    InputError
        The run does not exist, holds several runs, or lacks an artifact.
    """
    folder, kind = Path(run), kind_of(run, tracking)
    page = f"make one page of all with `topicell report run={run}`"
    if folder.is_dir():
        if kind == "sweep":
            raise InputError(
                f"runs: {run!r} holds several runs; name the runs to compare, or {page}"
            )
        if any(folder.glob("*/adata.h5ad")) and not (folder / "adata.h5ad").exists():
            raise InputError(f"runs: {run!r} holds several runs; name the runs to compare")
    elif kind in PARENT_KINDS:
        raise InputError(f"runs: {run!r} is the parent of a {kind}; name its runs, or {page}")
    return fetch_run(run, tracking, scratch, ARTIFACTS)[0]


def read_run(folder: Path, named: str, letter: str, label: str = "") -> StoredRun:
    """Read a run folder.

    Parameters
    ----------
    folder
        Folder of its artifacts.
    named
        Its MLflow id or its folder, as given by the user.
    letter
        Letter of the run on the page.
    label
        Name that replaces its own name.
    """
    import h5py
    from anndata.io import read_elem

    with h5py.File(folder / "adata.h5ad") as file:
        obs, genes = read_elem(file["obs"]), read_elem(file["var"]).index
        theta_NK = np.asarray(read_elem(file["obsm/X_lda"]), dtype=float)
        beta_KG = np.asarray(read_elem(file["varm/lda_topics"]), dtype=float).T
        about, source = read_elem(file["uns/topicell"]), read_elem(file["uns/topicell_source"])
    config = json.loads(about["config"])
    tags = read_tags(folder)
    history, final = read_metrics(folder)
    values: dict[str, BySplit] = dict(read_scores(folder / "scores.csv"))
    for name, value in final.items():
        # A metric with a mean or an error is in scores.csv already.
        if name not in values and name.rpartition("_")[0] not in values:
            values[name] = {str(config["seed"]): [value]}
    part_N = obs["split"].to_numpy(dtype=str) if "split" in obs else np.full(len(obs), "")
    n_topics = len(beta_KG)
    dirty = " with uncommitted changes" * (tags.get("topicell.git_dirty") == "true")
    versions = json.loads((folder / "model" / "model.json").read_text())["versions"]
    side = Side(
        letter=letter,
        name=label or config["tracking"]["run_name"] or _title(config, about["data"], n_topics),
        data=_data(about["data"], obs.index, genes, part_N),
        model=_model(config, n_topics, len(history)),
        made=about["created"],
        run_id=about["run_id"],
        folder=named if Path(named).is_dir() else "",
        tags={
            "data source": source["sha256"],
            "data as modelled": tags["topicell.prepared_digest"],
            "device": tags.get("device", ""),
        },
        versions={
            "topicell": about["version"],
            "commit": tags.get("topicell.git_commit", "")[:12] + dirty,
            **{name: found for name, found in versions.items() if name != "topicell"},
        },
        history=history,
    )
    return StoredRun(
        side=side,
        config=dotted(config),
        source=(about["data"], source["sha256"]),
        prepared=side.tags["data as modelled"],
        device=side.tags["device"],
        values=values,
        cells=obs.index,
        genes=genes,
        part_N=part_N,
        labels_N=obs[about["label_key"]].to_numpy(dtype=str) if about["label_key"] else None,
        theta_NK=theta_NK,
        beta_KG=beta_KG,
        little=frozenset(topics_with_little_support(about)),
    )


def _title(config: Mapping[str, Any], data: str, n_topics: int) -> str:
    """Return a name for a run without one."""
    if "theta" in config:
        return f"{data}, topics of {Path(config['beta']).stem}"
    kind = config["model"]["kind"]
    own = "" if kind == "amortized_lda" else f"{kind}, "
    return f"{data}, {own}{n_topics} topics, seed {config['seed']}"


def _data(name: str, cells: pd.Index, genes: pd.Index, part_N: np.ndarray) -> str:
    """Describe the data in one line."""
    sizes = [(part, int((part_N == part).sum())) for part in ("train", "valid", "test")]
    parts = ", ".join(f"{size:,} {part}" for part, size in sizes if size)
    line = f"{name}: {len(cells):,} cells × {len(genes):,} genes"
    return f"{line} ({parts})" if parts else line


def _model(config: Mapping[str, Any], n_topics: int, n_epochs: int) -> str:
    """Describe the model in one line."""
    if "theta" in config:
        return f"{n_topics} topics of {config['beta']}"
    line = f"{config['model']['kind']}, {n_topics} topics"
    for number, noun in (
        (n_epochs, "epoch"),
        (config["train"]["n_replicates"], "replicate"),
        (config["evaluate"]["n_splits"], "split"),
    ):
        if number:
            line += f", {number} {noun}{'s' * (number > 1)}"
    return line


def parameters(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str | None, ...]]:
    """Return every setting as text, one for each run; None for a run without the setting.

    Parameters
    ----------
    configs
        The settings of each run by their dotted names.
    """
    return {
        name: tuple(as_text(config[name]) if name in config else None for config in configs)
        for name in dict.fromkeys(name for config in configs for name in config)
    }


def as_text(value: Any) -> str:
    """Return the value of a setting as the page shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
