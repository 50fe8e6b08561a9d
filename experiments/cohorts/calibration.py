"""Is the test of conditions calibrated, and what do cells as the unit give? See README.md.

Shapes: N cells, S samples, K topics, P columns of a design, C cohorts.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import digamma, expit, ndtr, polygamma
from scipy.stats import chi2, rankdata
from scipy.stats import f as f_distribution

import topicell
from topicell.evaluation.conditions import (
    LEAST_PROPORTION,
    Design,
    arrangements,
    design_of,
    f_statistic,
    log_ratios,
    permutation_p,
    weights,
)

HERE = Path(__file__).parent
K = 10
MEAN_K = 0.7 ** np.arange(K) / (0.7 ** np.arange(K)).sum()
"""Mean composition of the samples: topics from 31 % to 1.2 %."""
CHANGED = 3
"""The topic with an effect, if there is one: 11 %."""
LEVEL = 0.05
METHODS = {
    "F": "samples: F test (topicell, p)",
    "permutation": "samples: permutation (topicell, p_permutation)",
    "plain": "samples: F test without weights",
    "moderated": "samples: the same with moderated variances (limma)",
    "linear": "cells: linear regression (t test)",
    "wilcoxon": "cells: Wilcoxon",
    "logistic": "cells: logistic regression of the dominant topic",
}
OF_SAMPLES = ("F", "permutation", "plain", "moderated")


@dataclass(frozen=True)
class Setting:
    """A kind of cohort: numbers of samples by group, and how samples and cells vary."""

    name: str
    groups: tuple[int, ...]
    formula: str = "condition"
    cells: str = "dirichlet"
    n_cells: tuple[tuple[int, int], ...] = ((50, 2000),)
    """Range of the number of cells of a sample, for all groups or for each."""
    sd: float | tuple[float, ...] = 0.5
    """Standard deviation of the logits between samples, for all topics or for each."""
    age: float = 0.0
    """Change of the logits of half of the topics with age, which differs between the groups."""
    effect: float = 0.0
    """Log2 fold change of topic `CHANGED` in the second group."""


SIZES = ((3, 3), (5, 5), (10, 10), (20, 20), (3, 9))
UNEQUAL = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 0.25)
SETTINGS = [
    *(
        Setting(f"{a} + {b}", (a, b), cells=cells)
        for cells in ("dirichlet", "logistic-normal")
        for a, b in SIZES
    ),
    Setting("4 + 4 + 4", (4, 4, 4)),
    Setting("5 + 5, age", (5, 5), "condition + age", age=0.5),
    Setting("10 + 10, age", (10, 10), "condition + age", age=0.5),
    Setting("3 + 9, age", (3, 9), "condition + age", age=0.5),
    Setting("3 + 3, similar samples", (3, 3), sd=0.15),
    Setting("10 + 10, similar samples", (10, 10), sd=0.15),
    Setting("5 + 5, equal samples", (5, 5), sd=0),
    Setting("3 + 3, unequal topics", (3, 3), sd=UNEQUAL),
    Setting("5 + 5, unequal topics", (5, 5), sd=UNEQUAL),
    Setting("3 + 9, 100 and 1000 cells", (3, 9), n_cells=((100, 100), (1000, 1000))),
    Setting("3 + 9, 50 and 2000 cells", (3, 9), n_cells=((50, 50), (2000, 2000))),
    Setting("3 + 9, 2000 and 50 cells", (3, 9), n_cells=((2000, 2000), (50, 50))),
    Setting("10 + 10, 50 and 2000 cells", (10, 10), n_cells=((50, 50), (2000, 2000))),
]
REAL = [
    Setting(f"{a} + {b}", (a, b), cells="real", n_cells=((100, 1000),))
    for a, b in ((3, 3), (6, 6), (3, 9))
]
EFFECTS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)


def cohort(setting: Setting, rng: np.random.Generator) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return the table of the samples, and the topic proportions of the cells of each."""
    group_S = np.repeat(np.arange(len(setting.groups)), setting.groups)
    table = pd.DataFrame(
        {
            "condition": pd.Categorical([f"g{group}" for group in group_S]),
            "age": rng.normal(0.5 * group_S),
        }
    )
    logit_SK = np.log(MEAN_K) + np.array(setting.sd) * rng.normal(size=(len(group_S), K))
    logit_SK[:, ::2] += setting.age * table["age"].to_numpy()[:, None]
    logit_SK[:, CHANGED] += setting.effect * np.log(2) * (group_S == 1)
    share_SK = np.exp(logit_SK) / np.exp(logit_SK).sum(axis=1, keepdims=True)
    ranges = setting.n_cells * (len(setting.groups) // len(setting.n_cells))
    cells = []
    for group, share_K in zip(group_S, share_SK, strict=True):
        low, high = ranges[group]
        n_cells = round(np.exp(rng.uniform(np.log(low), np.log(high))))
        if setting.cells == "dirichlet":
            x_NK = rng.standard_gamma(np.broadcast_to(2 * share_K, (n_cells, K))) + 1e-300
        else:
            x_NK = share_K * np.exp(1.5 * rng.normal(size=(n_cells, K)))
        cells.append(x_NK / x_NK.sum(axis=1, keepdims=True))
    return table, cells


def p_values(
    cells: list[np.ndarray], design: Design, methods: Sequence[str], seed: int = 0
) -> dict[str, np.ndarray]:
    """Return p of the first term by method, shape (K,)."""
    term = next(iter(design.terms))
    df = len(design.terms[term]), design.df_residual
    n_S = np.array([len(theta_NK) for theta_NK in cells])
    theta_NK = np.concatenate(cells)
    ratios = log_ratios(theta_NK, np.repeat(np.arange(len(cells)), n_S))
    plain_SK = np.log2(np.maximum(ratios.mean_SK, LEAST_PROPORTION))
    plain_SK -= plain_SK.mean(axis=1, keepdims=True)
    found = {}
    for method in methods:
        if method == "F":
            weight_SK = weights(ratios.y_SK, ratios.error_SK, design.x_SP)
            f_K = f_statistic(ratios.y_SK, weight_SK, design, term)
            found[method] = f_distribution.sf(f_K, *df)
        elif method == "permutation":
            rows_AS, is_complete = arrangements(design.x_SP, seed)
            if len(rows_AS) > 999:  # shorter than topicell's 9,999
                rows_AS = np.tile(np.arange(len(n_S)), (999, 1))
                rows_AS = np.random.default_rng(seed).permuted(rows_AS, axis=1)
                is_complete = False
            found[method], _ = permutation_p(
                ratios.y_SK, design, term, rows_AS, is_complete=is_complete
            )
        elif method in ("plain", "moderated"):
            found[method] = unweighted(plain_SK, design, term, moderated=method == "moderated")
        elif method == "linear":
            found[method] = linear(theta_NK, n_S, design)
        elif method == "wilcoxon":
            found[method] = wilcoxon(cells, design)
        else:
            found[method] = logistic(cells, design)
    return found


def unweighted(y_SK: np.ndarray, design: Design, term: str, *, moderated: bool) -> np.ndarray:
    """Return p of least squares, if asked with variances shrunk as limma does (Smyth 2004)."""
    df = len(design.terms[term]), design.df_residual
    residual_SK = y_SK - design.x_SP @ np.linalg.lstsq(design.x_SP, y_SK)[0]
    s2_K = np.square(residual_SK).sum(axis=0) / df[1]
    f_K = f_statistic(y_SK, np.ones_like(y_SK), design, term)
    if not moderated:
        return f_distribution.sf(f_K, *df)
    e_K = np.log(s2_K) - digamma(df[1] / 2) + np.log(df[1] / 2)
    excess = e_K.var(ddof=1) - float(polygamma(1, df[1] / 2))
    if excess > 0:
        grid = np.geomspace(1e-2, 1e6, 4000)
        half = grid[np.abs(np.log(polygamma(1, grid)) - np.log(excess)).argmin()]
        prior, s02 = 2 * half, np.exp(e_K.mean() + digamma(half) - np.log(half))
        posterior_K = (prior * s02 + df[1] * s2_K) / (prior + df[1])
        total = min(prior + df[1], K * df[1])
    else:
        posterior_K, total = np.full(K, np.exp(e_K.mean())), K * df[1]
    return f_distribution.sf(f_K * s2_K / posterior_K, df[0], total)


def linear(theta_NK: np.ndarray, n_S: np.ndarray, design: Design) -> np.ndarray:
    """Return p of a linear regression of the cells; without a covariate, that of a t test."""
    x_NP = np.repeat(design.x_SP, n_S, axis=0)
    inverse_PP = np.linalg.inv(x_NP.T @ x_NP)
    beta_PK = inverse_PP @ (x_NP.T @ theta_NK)
    own, df = list(next(iter(design.terms.values()))), len(x_NP) - x_NP.shape[1]
    s2_K = np.square(theta_NK - x_NP @ beta_PK).sum(axis=0) / df
    inverse_TT = np.linalg.inv(inverse_PP[np.ix_(own, own)])
    wald_K = np.einsum("tk,tu,uk->k", beta_PK[own], inverse_TT, beta_PK[own])
    return f_distribution.sf(wald_K / len(own) / s2_K, len(own), df)


def wilcoxon(cells: list[np.ndarray], design: Design) -> np.ndarray:
    """Return p of Wilcoxon's test of the cells of the first two groups."""
    second_S = design.x_SP[:, next(iter(design.terms.values()))[0]] == 1
    a, b = (
        np.concatenate([c for c, second in zip(cells, second_S, strict=True) if second == group])
        for group in (False, True)
    )
    rank_NK = rankdata(np.concatenate([a, b]), axis=0)
    n, m = len(a), len(b)
    z_K = (rank_NK[:n].sum(axis=0) - n * (n + m + 1) / 2) / np.sqrt(n * m * (n + m + 1) / 12)
    return 2 * ndtr(-np.abs(z_K))


def logistic(cells: list[np.ndarray], design: Design) -> np.ndarray:
    """Return p of a logistic regression of whether a topic is the largest of a cell."""
    x_SP, n_S = design.x_SP, np.array([len(theta_NK) for theta_NK in cells])
    count_SK = np.stack([np.bincount(c.argmax(axis=1), minlength=K) for c in cells])
    beta_KP = np.zeros((K, x_SP.shape[1]))
    for _ in range(25):  # Newton's method, with a ridge for topics that are never the largest
        mu_KS = expit(np.clip(beta_KP @ x_SP.T, -15, 15))
        weight_KS = n_S * mu_KS * (1 - mu_KS)
        a_KPP = np.einsum("sp,ks,sq->kpq", x_SP, weight_KS, x_SP) + 1e-4 * np.eye(x_SP.shape[1])
        step_KP = (count_SK.T - n_S * mu_KS) @ x_SP - 1e-4 * beta_KP
        beta_KP += np.clip(np.linalg.solve(a_KPP, step_KP[..., None])[..., 0], -2, 2)
    own = list(next(iter(design.terms.values())))
    cov_KTT = np.linalg.inv(a_KPP)[:, own][:, :, own]
    wald_K = np.einsum("kt,ktu,ku->k", beta_KP[:, own], np.linalg.inv(cov_KTT), beta_KP[:, own])
    return chi2.sf(wald_K, len(own))


def drawn(setting: Setting, rng: np.random.Generator) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """Return the table and the cells of a cohort whose cells come from a fit of real cells.

    The cell types of a sample differ from the mean by `setting.sd`; its cells are drawn with
    replacement from the cells of each type.
    """
    theta_NK, type_N = real_cells()
    group_S = rng.permutation(np.repeat(np.arange(len(setting.groups)), setting.groups))
    share_T = np.bincount(type_N) / len(type_N)
    cells = []
    for _ in group_S:
        (low, high) = setting.n_cells[0]
        n_cells = round(np.exp(rng.uniform(np.log(low), np.log(high))))
        odds_T = share_T * np.exp(np.array(setting.sd) * rng.normal(size=len(share_T)))
        n_T = rng.multinomial(n_cells, odds_T / odds_T.sum())
        rows = [rng.choice(np.flatnonzero(type_N == t), n) for t, n in enumerate(n_T) if n]
        cells.append(theta_NK[np.concatenate(rows)])
    return pd.DataFrame({"condition": pd.Categorical([f"g{g}" for g in group_S])}), cells


@functools.cache
def real_cells() -> tuple[np.ndarray, np.ndarray]:
    """Return the proportions of a fit of two studies of blood cells, and the type of each cell."""
    path = Path(os.environ["TOPICELL_DATA"]) / "two_studies.h5ad"
    adata = topicell.preprocess(topicell.load_dataset("file", path=str(path)))
    fit = topicell.fit(adata, n_topics=K, n_replicates=1, seed=0)
    return fit.cell_topics().to_numpy(), adata.obs["celltype"].astype(
        "category"
    ).cat.codes.to_numpy()


def simulate(setting: Setting, methods: Sequence[str], n_cohorts: int, seed: int = 0) -> np.ndarray:
    """Return p of all cohorts, methods and topics, shape (C, methods, K)."""
    p_CMK = np.empty((n_cohorts, len(methods), K))
    for c in range(n_cohorts):
        rng = np.random.default_rng([seed, c])
        table, cells = (drawn if setting.cells == "real" else cohort)(setting, rng)
        found = p_values(cells, design_of(setting.formula, table), methods, c)
        p_CMK[c] = [found[method] for method in methods]
    return p_CMK


def rates(setting: Setting, n_cohorts: int, n_of_cells: int) -> list[dict[str, object]]:
    """Return the share of p below 0.05 of each method.

    Without an effect, these are the false positives of all topics: the standard error is that over
    cohorts, because the topics of a cohort are dependent. With an effect, the share is that of the
    cohorts in which the changed topic is found.
    """
    of_cells = [m for m in METHODS if m not in OF_SAMPLES]
    if len(setting.groups) > 2:
        of_cells.remove("wilcoxon")
    rows = []
    for methods, n in ((OF_SAMPLES, n_cohorts), (of_cells, n_of_cells)):
        if not n:
            continue
        below_CMK = simulate(setting, methods, n) < LEVEL
        topics = {setting.name: [CHANGED] if setting.effect else list(range(K))}
        if isinstance(setting.sd, tuple):
            topics[f"{setting.name}: the least variable"] = [int(np.argmin(setting.sd))]
            topics[f"{setting.name}: the most variable"] = [int(np.argmax(setting.sd))]
        for name, of_topics in topics.items():
            below_CM = below_CMK[:, :, of_topics].mean(axis=2)
            error_M = below_CM.std(axis=0) / np.sqrt(n)
            rows += [
                {
                    "setting": name,
                    "cells": setting.cells,
                    "effect": setting.effect,
                    "method": method,
                    "share": share,
                    "error": error,
                    "cohorts": n,
                }
                for method, share, error in zip(
                    methods, below_CM.mean(axis=0), error_M, strict=True
                )
            ]
    return rows


def study(jobs: int, n_cohorts: int, only: str, *, quick: bool) -> pd.DataFrame:
    """Return the shares of all settings whose name contains `only`, and of all methods."""
    null, real = SETTINGS, REAL
    changed = [Setting(f"{a} + {b}", (a, b), effect=effect) for a, b in SIZES for effect in EFFECTS]
    if quick:
        null, real, changed = null[:1] + null[4:5], [], changed[3:4]
    null, real, changed = ([s for s in some if only in s.name] for some in (null, real, changed))
    if real:
        real_cells()  # the processes inherit it
    calls = [(setting, n_cohorts, n_cohorts // 4) for setting in null + real]
    calls += [(setting, n_cohorts // 2, 0) for setting in changed]
    rows: list[dict[str, object]] = []
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        for of_setting in pool.map(rates, *zip(*calls, strict=True)):
            rows += of_setting
            for row in of_setting:
                share = f"{100 * float(row['share']):5.1f} ± {100 * float(row['error']):.1f} %"
                effect = f"log2 FC {row['effect']:g}"
                print(
                    f"{row['setting']:<42}{row['cells']:<17}{effect:<14}{row['method']:<13}{share}",
                    flush=True,
                )
    return pd.DataFrame(rows)


def draw(results: pd.DataFrame, folder: Path) -> None:
    """Draw false positives of all methods, and the power of the test."""
    from matplotlib.figure import Figure

    from topicell.report.figures import topic_colors

    null = results[results["effect"] == 0]
    labels = list(dict.fromkeys(zip(null["setting"], null["cells"], strict=True)))
    figure = Figure((8.6, 0.27 * len(labels) + 1.5), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(3, 7, color="#e9ecef", label="3 to 7 %")
    axes.axvline(5, color="#6e7781", linewidth=0.8)
    markers = dict(zip(METHODS, "oxs^vDP", strict=True))
    for (method, title), color in zip(METHODS.items(), topic_colors(len(METHODS)), strict=True):
        of = null[null["method"] == method]
        y = [labels.index(pair) for pair in zip(of["setting"], of["cells"], strict=True)]
        axes.errorbar(
            100 * of["share"],
            y,
            xerr=200 * of["error"],
            fmt=markers[method],
            color=color,
            markersize=5,
            linewidth=1,
            label=title,
        )
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xticks([0, 2, 5, 10, 20, 50, 100], ["0", "2", "5", "10", "20", "50", "100"])
    axes.set_yticks(range(len(labels)), [f"{setting} · {cells}" for setting, cells in labels])
    axes.invert_yaxis()
    axes.set_xlabel("false positives at p < 0.05, % (± 2 standard errors)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(folder / "false_positives.png", dpi=130)

    power = results[results["effect"] > 0]
    figure = Figure((9.5, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, method in zip(panels, ("F", "permutation"), strict=True):
        of_method = power[power["method"] == method]
        sizes = list(dict.fromkeys(of_method["setting"]))
        for size, color in zip(sizes, topic_colors(len(sizes)), strict=True):
            of = of_method[of_method["setting"] == size]
            axes.errorbar(
                of["effect"],
                100 * of["share"],
                yerr=200 * of["error"],
                marker="o",
                color=color,
                markersize=4,
                label=f"{size} samples",
            )
        axes.set_title(METHODS[method].split(": ")[1], fontsize=9, loc="left")
        axes.set_xlabel("log2 fold change of one of ten topics")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("found at p < 0.05, %")
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(folder / "power.png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few settings and cohorts; checks")
    parser.add_argument("--cohorts", type=int, default=2000)
    parser.add_argument("--only", default="", help="part of the names of settings")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=HERE)
    asked = parser.parse_args()
    start = time.time()
    if asked.quick:
        results = study(1, 200, "", quick=True).set_index(["setting", "effect", "method"])["share"]
        for (name, effect, method), share in results.items():
            if not effect and method == "F":
                assert 0.02 < share < 0.08, (name, share)
            if not effect and method == "linear":
                assert share > 0.3, (name, share)
    else:
        results = study(asked.jobs, asked.cohorts, asked.only, quick=False)
        path = asked.folder / "calibration.csv"
        if asked.only and path.exists():
            before = pd.read_csv(path)
            others = before[~before["setting"].str.contains(asked.only, regex=False)]
            results = pd.concat([others, results])
        results.to_csv(path, index=False, float_format="%.5g")
        draw(results, asked.folder)
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
