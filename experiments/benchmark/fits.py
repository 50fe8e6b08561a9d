"""The fits of the benchmark: data sets, models, and how a fit is made and stored."""

from __future__ import annotations

import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import topicell
from topicell.config import ModelConfig, TrainConfig
from topicell.data.cells import PreparedCells
from topicell.model.external.library import FLOOR
from topicell.model.fit import TopicFit
from topicell.model.points import PointFit
from topicell.model.registry import MODELS as KINDS
from topicell.model.registry import fit_model

sys.path.insert(0, str(Path(__file__).parents[1]))
from reproducibility.study import consensus_programs

N_TOPICS = 10
DATA: dict[str, dict[str, Any]] = {
    # The genes of pbmc68k are already a selection.
    "pbmc68k": {"n_variable_genes": None},
    "pbmc_facs": {},
    "two_studies": {},
}
"""Settings of `topicell.preprocess` that are not its defaults."""


def cells_of(data: str, seed: int) -> PreparedCells:
    """Return the cells with their modelled genes; the seed determines the split (80/10/10)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if data == "two_studies":
            path = Path(os.environ["TOPICELL_DATA"]) / "two_studies.h5ad"
            cells = topicell.load_dataset("file", path=str(path), label_key="cell_class")
        else:
            cells = topicell.load_dataset(data)
        return PreparedCells(topicell.preprocess(cells, seed=seed, **DATA[data]))


def by_topicell(
    cells: PreparedCells, seed: int, epochs: int | None, *, kind: str, n_replicates: int = 1
) -> TopicFit:
    """Fit a model of topicell's table: its own, or that of another library."""
    return fit_model(
        cells.parts["train"],
        cells.parts["valid"],
        ModelConfig(kind=kind, n_topics=N_TOPICS),
        TrainConfig(n_replicates=n_replicates, epochs=epochs, threads=1, progress=False),
        seed=seed,
    )


def by_cnmf(cells: PreparedCells, seed: int, epochs: int | None) -> TopicFit:
    """Fit cNMF, whose programs, scaled to sum to 1, are the topics."""
    training = cells.adata[(cells.adata.obs["split"] == "train").to_numpy()]
    beta_KG = consensus_programs(training, N_TOPICS, seed) + FLOOR
    beta_KG /= beta_KG.sum(1, keepdims=True)
    return given(beta_KG, cells, seed)


def given(beta_KG: np.ndarray, cells: PreparedCells, seed: int) -> TopicFit:
    """Return a fit that has these topics."""
    from topicell.model.mixture import MIXTURE

    model = ModelConfig(n_topics=len(beta_KG))
    infer = [lambda x: MIXTURE.fold_in(x, beta_KG)]
    return PointFit.of(beta_KG[None], infer, cells.parts["train"], None, model, seed=seed)


MODELS = {
    "topicell": partial(by_topicell, kind="amortized_lda", n_replicates=4),
    "topicell, one replicate": partial(by_topicell, kind="amortized_lda"),
    "topicell, ProdLDA": partial(by_topicell, kind="prodlda", n_replicates=4),
    "sklearn NMF (KL)": partial(by_topicell, kind="sklearn_nmf"),
    "cNMF": by_cnmf,
    "tomotopy": partial(by_topicell, kind="tomotopy_lda"),
    "gensim": partial(by_topicell, kind="gensim_lda"),
    "sklearn LDA": partial(by_topicell, kind="sklearn_lda"),
    "scvi-tools": partial(by_topicell, kind="scvi_lda"),
}
"""In the order of the time they need, except that topicell's are first."""
SEEDS = 5
SLOW = {
    ("pbmc68k", "scvi-tools"): 3,
    ("pbmc_facs", "tomotopy"): 3,
    ("pbmc_facs", "gensim"): 3,
    ("pbmc_facs", "sklearn LDA"): 3,
    ("pbmc_facs", "scvi-tools"): 1,
    ("two_studies", "tomotopy"): 2,
    ("two_studies", "gensim"): 2,
    ("two_studies", "sklearn LDA"): 2,
    ("two_studies", "topicell, ProdLDA"): 3,
    ("two_studies", "scvi-tools"): 0,
}
"""Number of seeds of the fits that take long; 0: they are left out."""


def library_of(model: str) -> str:
    """Return the module of the extra `baselines` that a model needs; empty if none."""
    made = MODELS[model]
    return KINDS[made.keywords["kind"]].library if isinstance(made, partial) else "cnmf"


def folder_of(folder: Path, data: str, model: str, seed: int) -> Path:
    """Return where a fit is stored."""
    return folder / data / model / str(seed)


def run(
    folder: Path, data_sets: list[str], models: list[str], n_seeds: int, epochs: int | None = None
) -> None:
    """Make the fits that are not in the folder yet."""
    for data in data_sets:
        for model in models:
            for seed in range(min(n_seeds, SLOW.get((data, model), n_seeds))):
                path = folder_of(folder, data, model, seed)
                if path.exists():
                    continue
                cells = cells_of(data, seed)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fit = MODELS[model](cells, seed, epochs)
                path.parent.mkdir(parents=True, exist_ok=True)
                # Written completely or not at all.
                fit.save(path)
                print(f"{data}, {model}, seed {seed}", flush=True)
