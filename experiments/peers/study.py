"""Compare all kinds of models with the same metrics: three data sets, five seeds each.

    python experiments/peers/study.py run FOLDER [DATA ...] [--seeds 5] [--models NAME ...]
    python experiments/peers/study.py published FOLDER
    python experiments/peers/study.py collect FOLDER [DATA ...] [--seeds 5] [--output HERE]
    python experiments/peers/study.py quick FOLDER

`run` makes the fits with `topicell train`, a grid over seeds for each data set and model, in FOLDER
(a separate run for each, and an MLflow store); models that already have runs are skipped.
`published` scores the six topics that are included in `pbmc_facs`, and six topics of topicell.
`collect` reads the run folders and writes results.csv, table.md and peers.png next to this file, or
to `--output`. `quick` does everything on the smallest data set, with two seeds and three passes,
and writes to FOLDER.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

HERE = Path(__file__).parent
SEEDS = range(5)
SIMULATED = {
    "n_cells": 5000,
    "n_genes": 1000,
    "n_topics": 10,
    "mean_counts": 1000,
    "counts_sd": 0,
    "cell_topic_prior": 0.1,
    # Each seed has another corpus.
    "seed": "${seed}",
}
DATA = {
    "pbmc68k": ["data=pbmc68k"],
    "pbmc_facs": ["data=pbmc_facs"],
    "simulated": [
        "data=simulated",
        *(f"data.simulation.{name}={value}" for name, value in SIMULATED.items()),
    ],
}
ONE = "train.n_replicates=1"
MODELS = {
    "topicell": ["model=amortized_lda"],
    "topicell, one replicate": ["model=amortized_lda", ONE],
    "sklearn NMF (KL)": ["model=sklearn_nmf", ONE],
    "tomotopy": ["model=tomotopy_lda", ONE],
    "gensim": ["model=gensim_lda", ONE],
    "sklearn LDA": ["model=sklearn_lda", ONE],
    "scvi-tools": ["model=scvi_lda", ONE],
}
"""In the order of the time they need."""
FAR = 5.0
"""A larger difference of perplexity is written as text, so that small ones are visible."""
SCORES = {
    "test/perplexity_folded": ("perplexity", "{:.2f}"),
    "truth/perplexity_above": ("above the truth", "{:.2f}"),
    "test/elbo_given_topics": ("ELBO given topics", "{:.1f}"),
    "truth/beta_cosine": ("cosine of β", "{:.4f}"),
    "truth/theta_error": ("error of θ", "{:.4f}"),
    "topics/coherence_npmi": ("NPMI", "{:.3f}"),
    "topics/coherence_npmi_frex": ("NPMI, FREX", "{:.3f}"),
    "topics/diversity": ("diversity", "{:.3f}"),
    "topics/exclusivity": ("exclusivity", "{:.3f}"),
    "topics/used": ("used", "{:.1f}"),
    "topics/effective": ("effective", "{:.1f}"),
    "labels/nmi": ("NMI", "{:.3f}"),
    "labels/knn_accuracy": ("kNN", "{:.3f}"),
    "across_seeds": ("stability", "{:.3f}"),
    "speed/fit_seconds": ("seconds", "{:.1f}"),
}
"""Metric: heading and format."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["run", "published", "collect", "quick"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("data", nargs="*", default=list(DATA))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--output", type=Path, default=HERE)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.action == "run":
        for data in args.data:
            run(args.folder, data, range(args.seeds), models=args.models)
    elif args.action == "quick":
        run(args.folder, "pbmc68k", range(2), "train.epochs=3")
        collect(args.folder, args.folder, ["pbmc68k"], range(2))
    elif args.action == "published":
        published(args.folder)
    else:
        args.output.mkdir(parents=True, exist_ok=True)
        collect(args.folder, args.output, args.data, range(args.seeds))


def topicell(folder: Path, *arguments: str) -> None:
    """Run one command in FOLDER, with one thread."""
    command = [sys.executable, "-m", "topicell", *arguments]
    print(" ".join(command[2:]), flush=True)
    subprocess.run(command, cwd=folder, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def run(
    folder: Path, data: str, seeds: range, *settings: str, models: Sequence[str] = tuple(MODELS)
) -> None:
    for name in models:
        model, place = MODELS[name], f"{data}/{name}"
        if (folder / place).exists():
            continue
        topicell(
            *(folder, "train", "-m", *DATA[data], *model, f"seed={','.join(map(str, seeds))}"),
            *settings,
            *("report=off", "tracking.experiment=peers", "train.progress=false"),
            f"hydra.sweep.dir='{place}'",
        )


def published(folder: Path) -> None:
    """Score the published fit of `pbmc_facs` by ``topicell evaluate``, and a fit of topicell."""
    from topicell.data.catalogue import published_facs_fit

    F, L = published_facs_fit()
    F.to_csv(folder / "published_beta.csv")
    L.to_csv(folder / "published_theta.csv")
    topicell(
        *(folder, "evaluate", "theta=published_theta.csv", "beta=published_beta.csv"),
        # Maximum likelihood gives exact zeros.
        *("data=pbmc_facs", "normalize=true", "floor=1e-9", "report.enabled=false"),
        *("output=published", "tracking.experiment=peers"),
    )
    topicell(
        *(folder, "train", "experiment=facs_structure", "train.progress=false"),
        *("report=off", "hydra.run.dir=facs_structure", "tracking.experiment=peers"),
    )
    topicell(
        *(folder, "evaluate", "theta=facs_structure/cells/cell_topics.csv"),
        *("beta=facs_structure/topics/gene_topics.csv", "data=pbmc_facs", "normalize=true"),
        *("report.enabled=false", "output=ours", "tracking.experiment=peers"),
    )
    rows = {
        name: scores_of(folder / place)
        for name, place in (("published (fastTopics)", "published"), ("topicell", "ours"))
    }
    table = pd.DataFrame(rows).T.rename_axis("fit").drop(columns="memory/peak_mib")
    table.to_csv(HERE / "published.csv", float_format="%.5g")
    print(table.T.to_string())


def scores_of(folder: Path) -> dict[str, float]:
    """Return the final scores of a run folder."""
    from topicell.tracking.record import Record
    from topicell.tracking.stored import read_metrics

    assert Record.read(folder).status == "FINISHED", folder
    return read_metrics(folder)[1]


def against_truth(folder: Path) -> dict[str, float]:
    """Return how close topics and proportions are to the truth of a simulated corpus."""
    from topicell.evaluation.perplexity import fold_in, perplexity, thin
    from topicell.evaluation.stability import match_topics

    adata = anndata.read_h5ad(folder / "adata.h5ad")
    if "theta" not in adata.obsm:
        return {}
    true_beta, beta = adata.varm["beta"].T, adata.varm["lda_topics"].T
    seed = json.loads(adata.uns["topicell"]["config"])["seed"]
    seen, unseen = thin(adata.layers["counts"][(adata.obs["split"] == "test").to_numpy()], seed)
    ours, best = (perplexity(unseen, fold_in(seen, b), b) for b in (beta, true_beta))
    matching = match_topics(true_beta, beta)
    theta = adata.obsm["X_lda"][:, matching.permutation]
    return {
        "truth/perplexity_above": ours - best,
        "truth/beta_cosine": float(matching.cosine.mean()),
        "truth/theta_error": float(np.abs(theta - adata.obsm["theta"]).mean()),
    }


def across_seeds(folders: list[Path]) -> float:
    """Return the stability of the topics over seeds, which have different splits."""
    from topicell.evaluation.stability import stability

    tables = [pd.read_csv(f / "topics" / "gene_topics.csv", index_col=0) for f in folders]
    genes = sorted(set.intersection(*(set(table.index) for table in tables)))
    return stability(np.stack([table.loc[genes].to_numpy().T for table in tables])).mean


def collect(folder: Path, output: Path, data_sets: list[str], seeds: range) -> None:
    rows = []
    for data in data_sets:
        for model in MODELS:
            folders = [folder / data / model / str(place) for place in range(len(seeds))]
            if not all((place / "metrics.jsonl").exists() for place in folders):
                print(f"not there: {data}, {model}")
                continue
            for seed, place in zip(seeds, folders, strict=True):
                scores = scores_of(place) | against_truth(place)
                if data != "simulated":
                    # Every seed of `simulated` has other topics.
                    scores["across_seeds"] = across_seeds(folders)
                kept = {name: value for name, value in scores.items() if name in SCORES}
                rows.append({"data": data, "model": model, "seed": seed} | kept)
    results = pd.DataFrame(rows)
    results.to_csv(output / "results.csv", index=False, float_format="%.6g")
    (output / "table.md").write_text(tables(results))
    print((output / "table.md").read_text())
    draw(results).savefig(output / "peers.png", dpi=130)


def tables(results: pd.DataFrame) -> str:
    """Return a table for each data set: mean ± standard deviation over seeds, the best in bold."""
    lower = (
        *("test/perplexity_folded", "truth/perplexity_above"),
        *("truth/theta_error", "speed/fit_seconds"),
    )
    text = ""
    for data, of_data in results.groupby("data", sort=False):
        names = [name for name in SCORES if name in of_data and of_data[name].notna().any()]
        text += f"### {data}\n\n| | {' | '.join(SCORES[name][0] for name in names)} |\n"
        text += "|---" * (len(names) + 1) + "|\n"
        means = of_data.groupby("model", sort=False)[names].mean()
        deviations = of_data.groupby("model", sort=False)[names].std()
        for model in means.index:
            cells = []
            for name in names:
                form = SCORES[name][1]
                best = means[name].min() if name in lower else means[name].max()
                cell = form.format(means.loc[model, name])
                if form.format(best) == cell:
                    cell = f"**{cell}**"
                if name != "across_seeds":
                    cell += f" ± {form.format(deviations.loc[model, name])}"
                cells.append(cell.replace("-", "−"))
            text += f"| {model} | {' | '.join(cells)} |\n"
        text += "\n" + paired(of_data) + "\n\n"
    return text.rstrip() + "\n"


def above_ours(of_data: pd.DataFrame) -> pd.DataFrame:
    """Return the perplexity minus that of topicell on the same split, seeds × models."""
    wide = of_data.pivot_table(index="seed", columns="model", values="test/perplexity_folded")
    here = [model for model in MODELS if model in wide]
    return wide[here].sub(wide["topicell"], axis=0)


def paired(of_data: pd.DataFrame) -> str:
    words = []
    for model, difference in above_ours(of_data).items():
        if model != "topicell":
            error = difference.std() / len(difference) ** 0.5
            number = f"{difference.mean():+.2f}".replace("-", "−")
            words.append(f"{model} {number} ± {error:.2f}")
    return (
        "Perplexity above topicell's on the same split (mean ± standard error over the seeds): "
        + "; ".join(words)
        + "."
    )


def draw(results: pd.DataFrame) -> Figure:
    shown = {
        "above": "perplexity above topicell's,\nsame split (lower is better)",
        "topics/coherence_npmi": "coherence, NPMI\n(higher is better)",
        "labels/nmi": "NMI with labels\n(higher is better)",
        "topics/used": "topics used\nof 10",
        "speed/fit_seconds": "seconds to fit, one thread\n(lower is better)",
    }
    data_sets = list(dict.fromkeys(results["data"]))
    figure = Figure(figsize=(12.5, 2.2 * len(data_sets) + 0.6), layout="constrained")
    panels = figure.subplots(len(data_sets), len(shown), squeeze=False, sharey=True)
    models = list(MODELS)
    for place, title in enumerate(shown.values()):
        panels[0, place].set_title(title, fontsize=9)
    for row, data in zip(panels, data_sets, strict=True):
        of_data = results[results["data"] == data]
        above = above_ours(of_data)
        row[0].set_ylabel(data, fontsize=9.5, fontweight="bold")
        for axes, metric in zip(row, shown, strict=True):
            for height, model in enumerate(models):
                mine = of_data.loc[of_data["model"] == model]
                values = (above.get(model) if metric == "above" else mine[metric]).dropna()
                color = "#0072b2" if model.startswith("topicell") else "#6e7781"
                if metric == "above" and values.mean() > FAR:
                    words = f"+{values.mean():.1f} ± {values.std():.1f} →"
                    axes.annotate(
                        words,
                        (1, height),
                        xycoords=("axes fraction", "data"),
                        ha="right",
                        va="center",
                        fontsize=7.5,
                        color=color,
                    )
                    continue
                axes.plot(values, [height] * len(values), "o", ms=4, color=color, alpha=0.4, mew=0)
                axes.errorbar(
                    values.mean(),
                    height,
                    xerr=values.std(),
                    fmt="|",
                    ms=13,
                    color=color,
                    capsize=3,
                    lw=1.2,
                )
            axes.set_yticks(range(len(models)), models, fontsize=8)
            axes.set_ylim(len(models) - 0.5, -0.5)
            axes.tick_params(axis="x", labelsize=7.5)
            axes.grid(axis="x", color="#e7e7ea", lw=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
            if metric == "above":
                axes.axvline(0, color="#24292f", lw=0.8)
            if metric == "topics/used":
                axes.set_xlim(0, 10.7)
            if metric == "speed/fit_seconds":
                axes.set_xscale("log")
                axes.set_xlim(0.3, 1000)
                axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return figure


if __name__ == "__main__":
    main()
