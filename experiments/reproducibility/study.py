"""Does another seed find the same topics? Eight independent fits of each method, all pairs.

    python experiments/reproducibility/study.py run FOLDER [--data NAME ...] [--topics 5 10 20]
        [--methods NAME ...] [--seeds 8]
    python experiments/reproducibility/study.py collect FOLDER [--output HERE]
    python experiments/reproducibility/study.py quick FOLDER

Each fit has its own seed and its own training and validation cells (90 % and 10 %). `run` stores
each fit in FOLDER and skips those that are there. `collect` writes results.csv, with the methods of
which all fits are there. A topic of one fit is found again by another if the correlation of its
proportions over all cells with those of its partner is above 0.9; topics are matched one to one so
that the sum of the correlations is greatest. Proportions are inferred in the same way for every
method: by EM for fixed topics. `two_studies` is read from the folder TOPICELL_DATA.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.optimize import linear_sum_assignment

import topicell
from topicell.counts import Counts
from topicell.evaluation.perplexity import thin
from topicell.model.mixture import MIXTURE

HERE = Path(__file__).parent
FOUND = 0.9
"""A topic is found again if the correlation of its proportions is above this."""
FLOOR = 1e-9
"""Smallest gene proportion of a topic: NMF and Gibbs sampling give zeros."""


def cells_of(name: str) -> AnnData:
    """Return cells with counts of 1,000 variable genes, or of all genes if they are fewer."""
    if name in SIMULATED:
        return SIMULATED[name]()
    if name == "two_studies":
        path = Path(os.environ["TOPICELL_DATA"]) / "two_studies.h5ad"
        cells = topicell.load_dataset("file", path=str(path))
    else:
        cells = topicell.load_dataset(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return topicell.preprocess(cells, n_variable_genes=1000, drop_genes=["mitochondrial"])


def simulated(*, overlap: float = 0.0, smallest: float | None = None) -> AnnData:
    """Draw cells from ten topics.

    Parameters
    ----------
    overlap
        Share of a profile that all topics have in common.
    smallest
        Share of the counts that belong to the smallest topic; the others are larger by a constant
        factor each. None: all have the same size.
    """
    N, G, K = 3000, 1000, 10
    rng = np.random.default_rng(1)
    beta_KG = rng.dirichlet(np.full(G, 0.1), size=K)
    beta_KG = (1 - overlap) * beta_KG + overlap * rng.dirichlet(np.full(G, 0.3))
    size_K = np.full(K, 1 / K)
    if smallest is not None:
        # Find the factor by which sizes grow.
        factors = np.linspace(1, 3, 20_001)
        shares = 1 / (factors[:, None] ** np.arange(K)).sum(1)
        factor = factors[np.abs(shares - smallest).argmin()]
        size_K = factor ** np.arange(K)
        size_K /= size_K.sum()
    theta_NK = rng.dirichlet(K * 0.1 * size_K, size=N)
    size_N = rng.lognormal(np.log(1000), 0.3, N).astype(int)
    x = sp.csr_matrix(
        np.stack([rng.multinomial(n, p) for n, p in zip(size_N, theta_NK @ beta_KG, strict=True)])
    )
    cells = AnnData(x.astype(np.float32), layers={"counts": x.astype(np.float32)})
    cells.varm["beta"] = beta_KG.T
    return cells


SIMULATED: dict[str, Callable[[], AnnData]] = {
    "distinct": simulated,
    "overlapping": partial(simulated, overlap=0.6),
    "unequal": partial(simulated, smallest=0.02),
}
DATA = ["pbmc68k", "pbmc_facs", "two_studies", *SIMULATED]


def by_topicell(cells: AnnData, n_topics: int, seed: int, **settings: Any) -> np.ndarray:
    """Return the topics of the selected replicate of a fit by topicell, (K, G)."""
    fit = topicell.fit(cells, n_topics=n_topics, seed=seed, progress=False, **settings)
    beta_KG: np.ndarray = fit.beta()[fit.selected]
    return beta_KG


def by_cnmf(cells: AnnData, n_topics: int, seed: int) -> np.ndarray:
    """Return the consensus programs of 90 % of the cells."""
    kept = np.sort(np.random.default_rng(seed).permutation(cells.n_obs)[round(0.1 * cells.n_obs) :])
    return consensus_programs(cells[kept], n_topics, seed)


def consensus_programs(cells: AnnData, n_topics: int, seed: int) -> np.ndarray:
    """Return the consensus programs of the package cnmf with its defaults (20 factorisations).

    Spectra are in counts per million of all genes that are given, so each is scaled to sum to 1.
    """
    from cnmf import cNMF

    some = AnnData(cells.layers["counts"].astype(np.float64))
    some.obs_names, some.var_names = cells.obs_names, cells.var_names
    some = some[np.asarray(some.X.sum(1)).ravel() > 0].copy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        some.write_h5ad(path)
        model = cNMF(output_dir=folder, name="cnmf")
        model.prepare(
            str(path), components=[n_topics], n_iter=20, seed=seed, num_highvar_genes=some.n_vars
        )
        model.factorize(worker_i=0, total_workers=1)
        model.combine()
        model.consensus(n_topics, density_threshold=0.5, show_clustering=False)
        _, _, spectra, _ = model.load_results(K=n_topics, density_threshold=0.5)
    spectra = spectra.T if spectra.shape[1] == n_topics else spectra
    return spectra[cells.var_names].to_numpy()


METHODS: dict[str, Callable[[AnnData, int, int], np.ndarray]] = {
    "topicell": by_topicell,
    "topicell, search off": partial(by_topicell, search=False),
    "KL-NMF": partial(by_topicell, kind="sklearn_nmf", n_replicates=1),
    "KL-NMF, best of 20": partial(by_topicell, kind="sklearn_nmf", n_replicates=20),
    "sklearn LDA": partial(by_topicell, kind="sklearn_lda", n_replicates=1),
    "tomotopy": partial(by_topicell, kind="tomotopy_lda", n_replicates=1),
    "cNMF": by_cnmf,
}


def run(folder: Path, data: list[str], topics: list[int], methods: list[str], seeds: range) -> None:
    """Make the fits that are not in the folder yet."""
    for name in data:
        cells = cells_of(name)
        # The planted number of topics.
        for n_topics in [10] if name in SIMULATED else topics:
            for method, seed in itertools.product(methods, seeds):
                path = folder / f"{name}-{n_topics}-{method}-{seed}.npz"
                if not path.exists():
                    store(path, cells, method, n_topics, seed)


def store(path: Path, cells: AnnData, method: str, n_topics: int, seed: int) -> None:
    """Fit, and store topics, proportions of all cells, scores and seconds."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        beta_KG = METHODS[method](cells, n_topics, seed)
    seconds = time.perf_counter() - began
    beta_KG = np.maximum(beta_KG / beta_KG.sum(1, keepdims=True), FLOOR)
    beta_KG /= beta_KG.sum(1, keepdims=True)
    counts = Counts.of(cells)
    theta_NK = MIXTURE.fold_in(counts.x, beta_KG)
    # Not in the training cells of `topicell.fit`.
    held_out = np.random.default_rng(seed).permutation(counts.n_cells)[
        : round(0.1 * counts.n_cells)
    ]
    observed, completed = thin(counts[np.sort(held_out)].x, seed)
    perplexity = MIXTURE.perplexity(completed, MIXTURE.fold_in(observed, beta_KG), beta_KG)
    # Log-likelihood of all cells for their own proportions, nats per cell.
    x = counts.x.tocoo()
    p = np.einsum("nk,nk->n", theta_NK[x.row], beta_KG.T[x.col])
    likelihood = float((x.data * np.log(p)).sum() / counts.n_cells)
    truth = np.nan
    if "beta" in cells.varm:
        truth = matched(unit(beta_KG) @ unit(cells.varm["beta"].T).T).min()
    np.savez(
        path, beta=beta_KG, theta=theta_NK.astype(np.float32), perplexity=perplexity,
        likelihood=likelihood, seconds=seconds, truth=truth,
    )  # fmt: skip
    print(
        f"{path.stem}: {seconds:.1f} s, perplexity {perplexity:.2f}, likelihood {likelihood:.2f}, "
        f"least cosine with the truth {truth:.3f}",
        flush=True,
    )


def unit(value_KG: np.ndarray) -> np.ndarray:
    """Scale rows to length 1."""
    return value_KG / np.linalg.norm(value_KG, axis=1, keepdims=True)


def matched(similarity_KK: np.ndarray) -> np.ndarray:
    """Return the similarities of topics that are matched one to one, (K,)."""
    similarity_KK = np.nan_to_num(similarity_KK)
    rows, columns = linear_sum_assignment(similarity_KK, maximize=True)
    return similarity_KK[rows, columns]


def correlation(theta_a_NK: np.ndarray, theta_b_NK: np.ndarray) -> np.ndarray:
    """Return the correlations of the columns of two matrices, (K, K)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        a, b = (
            (theta - theta.mean(0)) / (theta.std(0) * np.sqrt(len(theta)))
            for theta in (theta_a_NK.astype(float), theta_b_NK.astype(float))
        )
    return np.nan_to_num(a.T @ b)


def collect(folder: Path, output: Path, n_seeds: int) -> pd.DataFrame:
    """Write the table of all data, numbers of topics and methods that have all fits."""
    fits: dict[tuple[str, int, str], list[Path]] = {}
    for path in sorted(folder.glob("*.npz")):
        name, n_topics, *method, _ = path.stem.split("-")
        fits.setdefault((name, int(n_topics), "-".join(method)), []).append(path)
    rows = []
    for (name, n_topics, method), paths in fits.items():
        if len(paths) < n_seeds:
            continue
        found = [dict(np.load(path)) for path in paths]
        pairs = list(itertools.combinations(found, 2))
        r = [matched(correlation(a["theta"], b["theta"])) for a, b in pairs]
        cosine = [matched(unit(a["beta"]) @ unit(b["beta"]).T) for a, b in pairs]
        rows.append(
            {
                "data": name, "topics": n_topics, "method": method, "fits": len(found),
                "found again": np.mean([np.mean(of > FOUND) for of in r]),
                "correlation": np.mean(r), "least correlation": np.mean([of.min() for of in r]),
                "cosine": np.mean(cosine), "least cosine": np.mean([of.min() for of in cosine]),
                "likelihood": np.mean([f["likelihood"] for f in found]),
                "spread": np.ptp([f["likelihood"] for f in found]),
                "perplexity": np.mean([f["perplexity"] for f in found]),
                "truth": np.min([f["truth"] for f in found]),
                "seconds": np.median([f["seconds"] for f in found]),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows).sort_values(["data", "topics", "method"])
    output.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(output / "results.csv", index=False)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["run", "collect", "quick"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--topics", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--output", type=Path, default=HERE)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    if asked.action == "run":
        run(asked.folder, asked.data, asked.topics, asked.methods, range(asked.seeds))
    elif asked.action == "quick":
        run(
            asked.folder, ["pbmc68k"], [5], ["topicell", "topicell, search off", "KL-NMF"], range(3)
        )
        print(collect(asked.folder, asked.folder, 3).to_string(index=False))
    else:
        print(collect(asked.folder, asked.output, asked.seeds).to_string(index=False))


if __name__ == "__main__":
    main()
