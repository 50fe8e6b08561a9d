"""Do cells of different batches mix in topic space, and what does that cost?

    python experiments/cohorts/batches.py run FITS [--part NAME ...] [--method NAME ...] [--seeds N]
    python experiments/cohorts/batches.py collect FITS     # batches.csv, batches.png
    python experiments/cohorts/batches.py --quick          # under a minute, with checks

Parts: `two_studies` is a set of blood cells of two studies in the folder TOPICELL_DATA;
`four_batches` are 30,000 cells drawn from `pbmc_facs`, with a factor of each gene in each of four
batches; `random` are the cells of `pbmc_facs` with a batch column that means nothing; `seconds`
times fits without and with batches in turns, so run it alone on a quiet machine. `run` stores each
fit in FITS with its measures and skips those that are there. Columns of scib-metrics, of the first
seed alone, need that package. All methods see the same genes, 1,000 that vary within batches.

Distances between cells are those of the square roots of topic proportions. `mixing` has the
measures; chance is where batches are independent of everything, or of everything but the label.
"""

from __future__ import annotations

import argparse
import os
import subprocess
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
from anndata import AnnData, read_h5ad
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

import topicell
from topicell.counts import Counts
from topicell.evaluation.batches import separation
from topicell.evaluation.perplexity import thin
from topicell.model.mixture import MIXTURE

HERE = Path(__file__).parent
NEIGHBORS = 15
IN_BOTH = ("B", "NK", "T", "monocyte")
"""Labels that both of `two_studies` have."""
OF_ONE_BATCH = ("CD34", "platelet", "DC")
"""Labels that only one has; further cells are not assigned."""


def prepared(cells: AnnData) -> AnnData:
    """Return cells with 1,000 genes that vary within batches; obs has `batch` and `label`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return topicell.preprocess(cells, n_variable_genes=1000, batch_key="batch")


def two_studies() -> AnnData:
    """Return the cells of the two studies; labels that not both have start with _."""
    path = Path(os.environ["TOPICELL_DATA"]) / "two_studies.h5ad"
    cells = topicell.load_dataset("file", path=str(path))
    cells.obs["batch"] = cells.obs["study"].astype(str)
    label = cells.obs["cell_class"].astype(str)
    cells.obs["label"] = label.where(label.isin(IN_BOTH), "_" + label)
    return prepared(cells)


def with_batches(cells: AnnData, labels: str, n_cells: int, n_batches: int) -> AnnData:
    """Draw cells with replacement and thin them by a factor of each gene in each batch.

    The factors are log-normal with standard deviation 0.3.
    """
    x_NG = sp.csr_matrix(cells.layers["counts"]).astype(np.float32)
    rng = np.random.default_rng(0)
    factor_SG = np.exp(rng.normal(0, 0.3, (n_batches, x_NG.shape[1]))).astype(np.float32)
    kept = 0.85 / max(1.0, float(np.quantile(factor_SG, 0.999)))
    rows = rng.integers(0, x_NG.shape[0], n_cells)
    batch_N = rng.integers(0, n_batches, n_cells)
    parts = []
    for first in range(0, n_cells, 20_000):
        some = slice(first, first + 20_000)
        y_NG = x_NG[rows[some]].tocsr()
        of_cell = np.repeat(batch_N[some], np.diff(y_NG.indptr))
        share = np.minimum(1, kept * factor_SG[of_cell, y_NG.indices])
        y_NG.data = rng.binomial(y_NG.data.astype(int), share).astype(np.float32)
        y_NG.eliminate_zeros()
        parts.append(y_NG)
    drawn = AnnData(sp.vstack(parts, format="csr"))
    drawn.obs_names = [f"cell{i}" for i in range(n_cells)]
    drawn.var_names = cells.var_names
    drawn.obs["batch"] = [f"b{b}" for b in batch_N]
    drawn.obs["label"] = cells.obs[labels].astype(str).to_numpy()[rows]
    return drawn


def four_batches() -> AnnData:
    """Return 30,000 cells of four batches."""
    return prepared(with_batches(topicell.load_dataset("pbmc_facs"), "celltype", 30_000, 4))


def random_batches() -> AnnData:
    """Return the cells of `pbmc_facs` with batches that mean nothing."""
    cells = topicell.load_dataset("pbmc_facs")
    cells.obs["batch"] = np.random.default_rng(0).choice(["a", "b"], cells.n_obs)
    cells.obs["label"] = cells.obs["celltype"].astype(str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return topicell.preprocess(cells, n_variable_genes=1000)


Fitted = dict[str, Any]
"""`theta` (N, K), or `points` (N, D) for methods without topics; what else is known."""


def by_topicell(cells: AnnData, n_topics: int, seed: int, **settings: Any) -> Fitted:
    """Fit topicell's default of four replicates; topics of the selected one."""
    began, began_cpu = time.perf_counter(), time.process_time()
    fit = topicell.fit(cells, n_topics=n_topics, seed=seed, progress=False, **settings)
    took, took_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    found = {
        "theta": fit.theta(cells, replicates=[fit.selected])[0],
        "perplexity": fit.perplexity(),
        "seconds": took,
        "cpu seconds": took_cpu,
    }
    if fit.batches:
        largest_G = np.log(fit.batch_factors()).abs().max().sort_values(ascending=False)
        found["strongest"] = " ".join(largest_G.index[:10])
    return found


def from_disk(cells: AnnData, n_topics: int, seed: int) -> Fitted:
    """Fit with batches to counts that stay on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        AnnData(sp.csr_matrix(cells.layers["counts"]), cells.obs, cells.var).write_h5ad(path)
        backed = read_h5ad(path, backed="r")
        return by_topicell(backed, n_topics, seed, batch_key="batch")


def by_scvi(cells: AnnData, n_topics: int, seed: int) -> Fitted:
    """Fit AmortizedLDA of scvi-tools, which has no covariate, to each batch alone: 100 epochs.

    Topics of a batch are matched one to one to those of the first batch by the correlation of their
    gene proportions, less the mean topic of the batch: all topics have the ribosomal genes.
    Training and held-out cells are those of the fits by topicell.
    """
    counts = Counts.of(cells)
    shuffled = np.random.default_rng(seed).permutation(cells.n_obs)
    n_valid = round(0.1 * cells.n_obs)
    valid = np.sort(shuffled[:n_valid])
    observed, completed = thin(counts[valid].x, 0)
    batch_N = cells.obs["batch"].to_numpy().astype(str)
    theta_NK = np.zeros((cells.n_obs, n_topics))
    likelihood = seconds = 0.0
    first_KG = None
    for name in np.unique(batch_N):
        own = np.isin(np.arange(cells.n_obs), shuffled[n_valid:]) & (batch_N == name)
        began = time.perf_counter()
        fit = topicell.fit(
            cells[own], kind="scvi_lda", n_topics=n_topics, n_replicates=1, seed=seed,
            epochs=100, valid_share=0.0, progress=False,
        )  # fmt: skip
        seconds += time.perf_counter() - began
        beta_KG = fit.beta()[0]
        rows = np.flatnonzero(batch_N[valid] == name)
        fold_NK = MIXTURE.fold_in(observed[rows], beta_KG)
        perplexity = MIXTURE.perplexity(completed[rows], fold_NK, beta_KG)
        likelihood += float(completed[rows].sum()) * np.log(perplexity)
        special_KG = beta_KG - beta_KG.mean(0)
        first_KG = special_KG if first_KG is None else first_KG
        r_KK = np.corrcoef(first_KG, special_KG)[:n_topics, n_topics:]
        order_K = linear_sum_assignment(r_KK, maximize=True)[1]
        theta_NK[batch_N == name] = fit.theta(cells[batch_N == name])[0][:, order_K]
    perplexity = float(np.exp(likelihood / completed.sum()))
    return {"theta": theta_NK, "perplexity": perplexity, "seconds": seconds}


def by_cnmf(cells: AnnData, n_topics: int, seed: int, *, harmony: bool) -> Fitted:
    """Fit cNMF (20 factorisations), if asked with the counts that its `Preprocess` corrects.

    Perplexity is not defined: spectra are those of corrected counts, which new cells do not have.
    """
    from cnmf import Preprocess, cNMF

    some = AnnData(sp.csr_matrix(cells.layers["counts"]).astype(np.float64), cells.obs[["batch"]])
    some.var_names = cells.var_names
    some.var["highly_variable"] = True
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        base = str(Path(folder) / "cells")
        Preprocess(random_seed=seed).preprocess_for_cnmf(
            some, harmony_vars="batch" if harmony else None, n_top_rna_genes=None,
            librarysize_targetsum=1e6, makeplots=False, save_output_base=base,
        )  # fmt: skip
        model = cNMF(output_dir=folder, name="cnmf")
        model.prepare(
            f"{base}.Corrected.HVG.Varnorm.h5ad", components=[n_topics], n_iter=20, seed=seed,
            tpm_fn=f"{base}.TP10K.h5ad", genes_file=f"{base}.Corrected.HVGs.txt",
        )  # fmt: skip
        model.factorize(worker_i=0, total_workers=1)
        model.combine()
        model.consensus(n_topics, density_threshold=0.5, show_clustering=False)
        usage, *_ = model.load_results(K=n_topics, density_threshold=0.5)
    seconds = time.perf_counter() - began
    return {"theta": usage.loc[cells.obs_names].to_numpy(), "seconds": seconds}


def by_harmony(cells: AnnData, n_topics: int, seed: int, *, harmony: bool) -> Fitted:
    """Return 30 principal components, if asked corrected by Harmony: a reference without topics."""
    import scanpy as sc

    some = AnnData(sp.csr_matrix(cells.layers["counts"]).astype(np.float32), cells.obs[["batch"]])
    began = time.perf_counter()
    sc.pp.normalize_total(some, target_sum=1e4)
    sc.pp.log1p(some)
    sc.pp.scale(some, max_value=10)
    sc.pp.pca(some, n_comps=30, random_state=seed)
    points_ND = some.obsm["X_pca"]
    if harmony:
        import harmonypy

        result = harmonypy.run_harmony(
            points_ND, some.obs, "batch", random_state=seed, verbose=False
        )
        z = np.asarray(result.Z_corr)
        points_ND = z if len(z) == len(points_ND) else z.T
    return {"points": points_ND, "seconds": time.perf_counter() - began}


def by_codal(cells: AnnData, n_topics: int, seed: int) -> Fitted:
    """Fit CODAL of MIRA, in the environment of MIRA_PYTHON; see codal.py."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "cells.h5ad", Path(folder) / "theta.npy"
        some = AnnData(sp.csr_matrix(cells.layers["counts"]), cells.obs[["batch"]].astype(str))
        some.var_names = cells.var_names
        some.write_h5ad(path)
        command = [os.environ["MIRA_PYTHON"], "-W", "ignore", HERE / "codal.py", path, out]
        own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        began = time.perf_counter()
        subprocess.run([*command, str(n_topics), str(seed)], check=True, env=own)
        return {"theta": np.load(out), "seconds": time.perf_counter() - began}


TOPICELL: dict[str, Callable[[AnnData, int, int], Fitted]] = {
    "topicell": by_topicell,
    "topicell, batch_key": partial(by_topicell, batch_key="batch"),
}
BY_TOPIC = {
    "topicell, batch_topic_scale": partial(by_topicell, batch_key="batch", batch_topic_scale=0.1)
}
METHODS = {
    **TOPICELL,
    **BY_TOPIC,
    "topicell, batch_key, from disk": from_disk,
    "cNMF": partial(by_cnmf, harmony=False),
    "cNMF, Harmony": partial(by_cnmf, harmony=True),
    "scvi-tools LDA of each study": by_scvi,
    "MIRA, CODAL": by_codal,
    "30 PCs": partial(by_harmony, harmony=False),
    "30 PCs, Harmony": partial(by_harmony, harmony=True),
}
PARTS: dict[str, tuple[Callable[[], AnnData], dict[str, Any], int]] = {
    "two_studies": (two_studies, METHODS, 3),
    "four_batches": (four_batches, TOPICELL | BY_TOPIC, 3),
    "random": (random_batches, TOPICELL, 10),
}
"""Cells, methods and seeds of each part."""


def mixing(
    points_ND: np.ndarray, group_N: np.ndarray, cells: pd.DataFrame, *, scib: bool
) -> dict[str, float | None]:
    """Return how well batches are mixed and labels conserved, of cells with a label.

    Parameters
    ----------
    points_ND
        Where cells are.
    group_N
        The dominant topic of each cell, or its cluster.
    cells
        Batch and label of each cell; cells whose label starts with _ are left out.
    """
    kept = ~cells["label"].str.startswith("_").to_numpy()
    point_nD, group_n = points_ND[kept], group_N[kept]
    batch_n, label_n = (cells[c].to_numpy().astype(str)[kept] for c in ("batch", "label"))
    index = NearestNeighbors(n_neighbors=NEIGHBORS).fit(point_nD)
    near_nM = index.kneighbors(return_distance=False)
    table = pd.crosstab(label_n, batch_n).to_numpy()
    chance = float(np.square(table.sum(0) / table.sum()).sum())
    # Chance within a label, averaged over cells: the neighbours have the composition of the label.
    within = float((np.square(table).sum(1) / table.sum(1)).sum() / table.sum())
    entropy = information = 0.0
    for label in np.unique(label_n):
        of = label_n == label
        information += of.mean() * mutual_info_score(group_n[of], batch_n[of])
        entropy += of.mean() * mutual_info_score(batch_n[of], batch_n[of])
    # `separation` takes square roots. Distances of points that can be negative do not change if all
    # are moved.
    square_nD = np.square(point_nD - min(0.0, float(point_nD.min())))
    apart = partial(separation, n_neighbors=NEIGHBORS)
    in_label = {
        f"separation in {label}": apart(square_nD[label_n == label], batch_n[label_n == label])
        for label in IN_BOTH
        if label in label_n
    }
    return {
        "same batch": float((batch_n[near_nM] == batch_n[:, None]).mean()),
        "chance": chance,
        "chance within labels": within,
        "separation": apart(square_nD, batch_n),
        "separation within labels": apart(square_nD, batch_n, label_n),
        **in_label,
        "same label": float((label_n[near_nM] == label_n[:, None]).mean()),
        "NMI batch": float(normalized_mutual_info_score(group_n, batch_n)),
        "NMI label": float(normalized_mutual_info_score(group_n, label_n)),
        "NMI label and batch": float(normalized_mutual_info_score(label_n, batch_n)),
        "information on batch within labels": information / entropy,
        **(by_scib(point_nD, batch_n, label_n) if scib else {}),
    }


def by_scib(point_nD: np.ndarray, batch_n: np.ndarray, label_n: np.ndarray) -> dict[str, float]:
    """Return measures of scib-metrics for at most 6,000 cells; none without that package."""
    try:
        import scib_metrics
        from scib_metrics.nearest_neighbors import pynndescent
    except ImportError:
        return {}
    rows = np.random.default_rng(0).permutation(len(point_nD))[:6000]
    x, batch, label = point_nD[rows].astype(np.float32), batch_n[rows], label_n[rows]
    near = pynndescent(x, n_neighbors=90, random_state=0, n_jobs=1)
    near_15 = near.subset_neighbors(n=15)
    clusters = scib_metrics.nmi_ari_cluster_labels_kmeans(x, label)
    return {
        "scib iLISI": float(scib_metrics.ilisi_knn(near, batch)),
        "scib kBET": float(scib_metrics.kbet_per_label(near.subset_neighbors(n=50), batch, label)),
        "scib BRAS": float(scib_metrics.bras(x, label, batch)),
        "scib graph connectivity": float(scib_metrics.graph_connectivity(near_15, label)),
        "scib cLISI": float(scib_metrics.clisi_knn(near, label)),
        "scib NMI k-means": clusters["nmi"],
        "scib ARI k-means": clusters["ari"],
        "scib silhouette of labels": float(scib_metrics.silhouette_label(x, label)),
    }


def rare(group_N: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
    """Return the topics of each label of one batch, and how well they find its cells.

    A topic is one of the label if more than half of the cells that it dominates have the label.
    """
    found: dict[str, float] = {}
    size_K = np.maximum(np.bincount(group_N), 1)
    for name in OF_ONE_BATCH:
        of = label_N == f"_{name}"
        if of.any():
            with_K = np.bincount(group_N[of], minlength=len(size_K))
            own_K = with_K > size_K / 2
            found[f"topics of {name}"] = float(own_K.sum())
            found[f"recall of {name}"] = float(with_K[own_K].sum() / of.sum())
    return found


def measured(fitted: Fitted, cells: AnnData, n_topics: int, *, scib: bool = True) -> dict[str, Any]:
    """Return all measures of a fit."""
    obs = cells.obs[["batch", "label"]].astype(str)
    if "theta" in fitted:
        theta_NK = np.maximum(fitted["theta"], 0)
        theta_NK = theta_NK / np.maximum(theta_NK.sum(1, keepdims=True), 1e-12)
        points_ND, group_N = np.sqrt(theta_NK), theta_NK.argmax(1)
    else:
        from sklearn.cluster import KMeans

        points_ND = fitted["points"]
        group_N = KMeans(n_topics, n_init=10, random_state=0).fit_predict(points_ND)
    known = {
        name: fitted[name] for name in ("seconds", "cpu seconds", "perplexity") if name in fitted
    }
    known |= mixing(points_ND, group_N, obs, scib=scib) | rare(group_N, obs["label"].to_numpy())
    return {**known, "strongest": fitted.get("strongest", "")}


def run(folder: Path, parts: list[str], methods: list[str] | None, n_seeds: int | None) -> None:
    """Make the fits that are not in the folder yet."""
    for part in parts:
        if part == "seconds":
            seconds(folder)
            continue
        make, of_part, wanted = PARTS[part]
        cells = None
        for method in methods or of_part:
            for seed in range(n_seeds or wanted):
                path = folder / f"{part}-{method}-{seed}.npz"
                if path.exists() or method not in of_part:
                    continue
                cells = make() if cells is None else cells
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    fitted = of_part[method](cells, 10, seed)
                    row = measured(fitted, cells, 10, scib=seed == 0)
                row = {"part": part, "method": method, "seed": seed, "load": load(), **row}
                np.savez(path, row=np.array(row, dtype=object), **arrays(fitted))
                print(" · ".join(f"{k} {show(v)}" for k, v in row.items()), flush=True)


def arrays(fitted: Fitted) -> dict[str, np.ndarray]:
    """Return the arrays of a fit."""
    return {k: v.astype(np.float32) for k, v in fitted.items() if isinstance(v, np.ndarray)}


def show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def load() -> float:
    """Return the number of processes that ran or waited in the last minute."""
    return os.getloadavg()[0]


def seconds(folder: Path, repeats: int = 5) -> None:
    """Time fits without and with batches in turns, in one process with one thread.

    On a machine with other work, processor seconds are the better measure.
    """
    kinds = ("seconds", "cpu seconds")
    for part, (make, *_) in PARTS.items():
        path = folder / f"seconds-{part}.npz"
        if path.exists():
            continue
        cells = make()
        took: dict[str, list[list[float]]] = {method: [] for method in TOPICELL}
        loads = []
        for repeat in range(repeats + 1):
            for method, fit in TOPICELL.items():
                fitted = fit(cells, 10, repeat)
                if repeat:  # the first is the warm-up
                    took[method].append([fitted[kind] for kind in kinds])
            loads.append(load())
        row: dict[str, Any] = {"part": "seconds", "method": part, "load": float(np.median(loads))}
        for i, kind in enumerate(kinds):
            without, given = (float(np.median([t[i] for t in of])) for of in took.values())
            row |= {kind: without, f"{kind} with": given, f"ratio of {kind}": given / without}
        np.savez(path, row=np.array(row, dtype=object))
        print(" · ".join(f"{k} {show(v)}" for k, v in row.items()), took, flush=True)


def collect(folder: Path, output: Path) -> pd.DataFrame:
    """Write the table of all fits in the folder, and draw it."""
    rows = [np.load(path, allow_pickle=True)["row"].item() for path in sorted(folder.glob("*.npz"))]
    table = pd.DataFrame(rows)
    place = {name: i for i, name in enumerate([*PARTS, "seconds"])}
    order = {name: i for i, name in enumerate(METHODS)}
    table = table.sort_values(
        ["part", "method", "seed"],
        key=lambda column: (
            column.map(place | order).fillna(99) if column.name != "seed" else column
        ),
    )
    output.mkdir(parents=True, exist_ok=True)
    table.to_csv(output / "batches.csv", index=False, float_format="%.5g")
    draw(table[table["part"] == "two_studies"], output / "batches.png")
    return table


def markdown(table: pd.DataFrame) -> str:
    """Return the tables of the README: means of the fits of each method, ± their deviation."""
    columns = {
        "same batch": 3, "separation": 3, "separation within labels": 3, "same label": 3,
        "NMI batch": 3, "NMI label": 3, "information on batch within labels": 3,
        "perplexity": 2, "seconds": 1,
    }  # fmt: skip
    by_part = []
    for part in PARTS:
        of = table[table["part"] == part]
        by_scib = [name for name in of if name.startswith("scib") and of[name].notna().any()]
        rare_ones = [name for name in of if name.startswith(("topics of", "recall of"))]
        rare_ones = [name for name in rare_ones if of[name].notna().any()]
        in_label = [name for name in of if name.startswith("separation in")]
        in_label = [name for name in in_label if of[name].notna().any()]
        for some in (columns, dict.fromkeys(by_scib, 2), dict.fromkeys(rare_ones + in_label, 2)):
            if not some or of.empty:
                continue
            lines = [f"| {part} | " + " | ".join(some) + " |", "|---" * (len(some) + 1) + "|"]
            for method, fits in of.groupby("method", sort=False):
                cells = []
                for name, digits in some.items():
                    value = fits[name].dropna()
                    mean = f"{value.mean():.{digits}f}" if len(value) else ""
                    spread = f" ± {value.std():.{digits}f}" if len(value) > 1 else ""
                    cells.append(mean + spread * (name != "seconds"))
                lines.append(f"| {method} | " + " | ".join(cells) + " |")
            by_part.append("\n".join(lines))
    without, given = (
        table[(table["part"] == "random") & (table["method"] == m)].set_index("seed")["perplexity"]
        for m in TOPICELL
    )
    change = (given - without).dropna()
    by_part.append(
        f"batches without effect: perplexity {change.mean():+.3f} ± {change.sem():.3f} "
        f"(standard error, {len(change)} splits)"
    )
    return "\n\n".join(by_part)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw neighbours of the same study, and of the same class, of each method."""
    from matplotlib.figure import Figure

    if table.empty:
        return
    names = [name for name in dict.fromkeys(table["method"]) if "disk" not in name][::-1]
    figure = Figure((8.6, 0.36 * len(names) + 1.3), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    columns = {
        "same batch": "nearest cells of the same study",
        "information on batch within labels": "information of topics on the\nstudy, within classes",
        "same label": "nearest cells of the same class",
    }
    for axes, (column, title) in zip(panels, columns.items(), strict=True):
        for y, name in enumerate(names):
            value = table.loc[table["method"] == name, column]
            color = "#0b6e99" if name.startswith("topicell") else "#8a8f98"
            axes.plot(value, np.full(len(value), y), "o", color=color, markersize=5, alpha=0.7)
        axes.set_title(title, fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e9ecef")
        axes.set_axisbelow(True)
    first = table.iloc[0]
    for name in ("chance", "chance within labels"):
        panels[0].axvline(first[name], color="#b3422e", linewidth=0.8, linestyle=":")
        panels[0].annotate(
            name.replace("labels", "classes"), (first[name], 0.02), xytext=(-2, 0), rotation=90,
            xycoords=("data", "axes fraction"), textcoords="offset points", ha="right",
            va="bottom", fontsize=7, color="#b3422e",
        )  # fmt: skip
    panels[0].set_xlim(left=float(first["chance"]) - 0.04)
    panels[0].set_yticks(range(len(names)), names)
    figure.savefig(path, dpi=130)


def quick() -> None:
    """Check a few fits: two batches of drawn cells, and batches without effect."""
    cells = with_batches(topicell.load_dataset("pbmc68k"), "bulk_labels", 2000, 2)
    cells.layers["counts"] = cells.X
    found = {}
    for method, fit in TOPICELL.items():
        fitted = fit(cells, 5, 0)
        found[method] = row = measured(fitted, cells, 5, scib=False)
        print(f"{method}: " + " · ".join(f"{k} {show(v)}" for k, v in row.items()))
    without, given = found.values()
    assert given["separation"] < 0.05 < without["separation"]
    assert given["separation within labels"] < without["separation within labels"]
    assert given["perplexity"] < without["perplexity"]
    assert given["NMI label"] > without["NMI label"] - 0.05
    cells.obs["batch"] = np.random.default_rng(0).permutation(cells.obs["batch"])
    ratio = by_topicell(cells, 5, 0, batch_key="batch")["perplexity"] / without["perplexity"]
    print(f"batches without effect: perplexity × {ratio:.4f}")
    assert abs(ratio - 1) < 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", nargs="?", choices=["run", "collect"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--part", nargs="+", choices=[*PARTS, "seconds"], default=list(PARTS))
    parser.add_argument("--method", nargs="+", choices=METHODS)
    parser.add_argument("--seeds", type=int, help="default: 3, and 10 with random batches")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    start = time.time()
    import torch

    torch.set_num_threads(1)
    if asked.quick:
        quick()
    elif asked.folder is None:
        parser.error("give an action and a folder, or --quick")
    elif asked.action == "run":
        asked.folder.mkdir(parents=True, exist_ok=True)
        run(asked.folder, asked.part, asked.method, asked.seeds)
    else:
        print(markdown(collect(asked.folder, asked.output)))
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
