"""Measure time and quality of fits by topicell and other tools, in one run on one split.

    pip install -c constraints.txt -e ".[baselines]"
    TOPICELL_DATA=... python experiments/speed/benchmark.py            # about twelve minutes
    TOPICELL_DATA=... python experiments/speed/benchmark.py --quick # under five minutes

`pbmc_facs` is prepared as in the tutorial (1,000 variable genes, MT- genes dropped), with 90 % of
the cells for the fit, 10 % for the scores, and ten topics. Every method fits in a separate process
(`fits.py`) and is scored here in the same way: document completion with θ by EM. Writes
results.csv, ratios.csv and speed.png next to this file. With --quick, the names begin with quick-;
scvi-tools and scikit-learn's LDA run a tenth of their epochs, their seconds are multiplied by ten,
and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import scipy.sparse as sp

import topicell
from topicell.config import SplitConfig
from topicell.evaluation.perplexity import fold_in, perplexity, thin
from topicell.evaluation.ranking import used_topics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
SEEDS = [0, 1, 2, 3, 4]
NAMES = {
    "scvi": "scvi-tools",
    "sklearn_nmf": "scikit-learn NMF, KL",
    "sklearn_lda online": "scikit-learn LDA, online",
    "sklearn_lda batch": "scikit-learn LDA, batch",
    "gensim": "gensim LDA",
    "tomotopy": "tomotopy LDA",
}
SHORTENED = " (as reached in a tenth of its epochs; seconds extrapolated)"
DEFAULT_EPOCHS = 9
"""Default number of epochs of topicell for this number of cells."""


def runs(*, quick: bool) -> list[dict[str, Any]]:
    """All fits: method and settings; `share` is the part of its default length."""
    tenth = 10 if quick else 1
    few = 1 if quick else 3
    own = {"method": "topicell", "search": "off"}
    ours = [
        own | {"budget": epochs, "seeds": SEEDS[: 2 if quick else 5]}
        for epochs in (1, 2, 3, 5, DEFAULT_EPOCHS, 16, 30)
    ]
    together = [
        own | {"budget": epochs, "replicates": 8, "seeds": SEEDS[:few]}
        for epochs in (2, DEFAULT_EPOCHS, 16, 30)
    ]
    searched = [
        {"method": "topicell", "budget": epochs, "seeds": SEEDS[: 2 if quick else 5]}
        for epochs in (3, DEFAULT_EPOCHS, 30)
    ]
    searched += [
        {"method": "topicell", "budget": DEFAULT_EPOCHS, "replicates": 8, "seeds": SEEDS[:few]}
    ]
    all_genes = [own | {"budget": 2, "genes": "all", "seeds": SEEDS[:few]}]
    pyro = [own | {"budget": DEFAULT_EPOCHS, "engine": "pyro", "seeds": SEEDS[:few]}]
    peers = [
        {"method": "sklearn_nmf", "budget": 300},
        {"method": "tomotopy", "budget": 500, "seeds": SEEDS[: 1 if quick else 5]},
        {"method": "gensim", "budget": 20},
        {
            "method": "sklearn_lda",
            "learning-method": "online",
            "budget": 20 // tenth,
            "scale": tenth,
        },
        {
            "method": "sklearn_lda",
            "learning-method": "batch",
            "budget": 100 // tenth,
            "scale": tenth,
        },
        {"method": "scvi", "budget": 1000 // tenth, "scale": tenth},
    ]
    limit = [{"method": "limit", "budget": 2, "seeds": SEEDS}]
    return [*ours, *limit, *together, *searched, *all_genes, *pyro, *peers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    name = "quick-" if args.quick else ""
    with tempfile.TemporaryDirectory() as scratch:
        tests = {}
        for genes in ("1000", "all"):
            train, tests[genes] = prepare(None if genes == "all" else int(genes))
            sp.save_npz(Path(scratch) / f"{genes}.npz", train)
        rows = []
        for run in runs(quick=args.quick):
            rows.append(measure(run, Path(scratch), tests, args.threads))
            print(", ".join(f"{k} {v}" for k, v in rows[-1].items() if pd.notna(v)), flush=True)
    results = pd.DataFrame(rows)
    results.to_csv(HERE / f"{name}results.csv", index=False)
    table = ratios(results)
    table.to_csv(HERE / f"{name}ratios.csv", index=False)
    print(table.to_string(index=False))
    draw(results).savefig(HERE / f"{name}speed.png", dpi=150)


def prepare(n_genes: int | None) -> tuple[sp.csr_matrix, tuple[sp.csr_matrix, sp.csr_matrix]]:
    """Return the training cells, and the two halves of the counts of the test cells."""
    prepared = topicell.preprocess(
        topicell.load_dataset("pbmc_facs"),
        n_variable_genes=n_genes,
        split=SplitConfig(train=0.9, valid=0.0, test=0.1),
        seed=0,
    )
    counts = topicell.Counts.of(prepared)
    is_train = (prepared.obs["split"] == "train").to_numpy()
    return counts.x[is_train], thin(counts.x[~is_train], 0)


def measure(
    run: dict[str, Any],
    scratch: Path,
    tests: dict[str, tuple[sp.csr_matrix, sp.csr_matrix]],
    threads: int,
) -> dict[str, Any]:
    """Fit in another process and return the scores."""
    genes, seeds = run.get("genes", "1000"), run.get("seeds", [0])
    options = [
        f"--{key}={value}"
        for key, value in run.items()
        if key in ("budget", "replicates", "engine", "learning-method", "search")
    ]
    environment = os.environ | {
        f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")
    }
    command = [sys.executable, "-W", "ignore", str(HERE / "fits.py"), run["method"]]
    command += [str(scratch / f"{genes}.npz"), f"--out={scratch / 'topics.npy'}", *options]
    command += [f"--threads={threads}", "--seeds", *map(str, seeds)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    row = {
        "method": run["method"]
        + {"sklearn_lda": f" {run.get('learning-method')}"}.get(run["method"], "")
        + (f", search {run['search']}" if "search" in run else "")
        + (" (pyro engine)" if run.get("engine") == "pyro" else ""),
        "genes": genes,
        "budget": run["budget"],
        "replicates": run.get("replicates", 1),
        "fits": len(seeds),
        "threads": threads,
        "seconds": np.median(found["seconds"]) * run.get("scale", 1),
        "extrapolated": run.get("scale", 1) > 1,
        "seconds_min": min(found["seconds"]),
        "seconds_max": max(found["seconds"]),
        "mib_before": found["mib_before"],
        "peak_mib": found["peak_mib"],
    }
    if run["method"] == "limit":
        return {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()}
    observed, completed = tests[genes]
    scores, used = [], []
    for beta_KG in np.load(scratch / "topics.npy"):
        theta_NK = fold_in(observed, beta_KG)
        scores.append(perplexity(completed, theta_NK, beta_KG))
        used.append(used_topics(theta_NK))
    row |= {
        "elbo": np.mean(found["elbo"]) if found["elbo"] else np.nan,
        "perplexity": np.mean(scores),
        "perplexity_sd": np.std(scores, ddof=1) if len(scores) > 1 else np.nan,
        "topics_used": np.mean(used),
    }
    return {key: round(float(v), 4) if isinstance(v, float) else v for key, v in row.items()}


def ratios(results: pd.DataFrame) -> pd.DataFrame:
    """Return the comparisons of the benchmark, each with the seconds of both sides."""
    selected = results[results["genes"] == "1000"]
    ours = selected[selected["method"] == "topicell, search off"]
    searched = selected[(selected["method"] == "topicell") & (selected["replicates"] == 1)]
    searched = searched.set_index("budget")
    one, eight = (ours[ours["replicates"] == n].set_index("budget") for n in (1, 8))
    peers = selected.set_index("method")

    def first_to_reach(fits: pd.DataFrame, *, perplexity: float, elbo: float = -np.inf) -> Any:
        reached = fits[(fits["perplexity"] <= perplexity) & (fits["elbo"] >= elbo)]
        return None if reached.empty else reached.sort_values("seconds").iloc[0]

    rows = []

    def add(
        question: str, fit: Any, seconds: float, target: float, *, shortened: bool = False
    ) -> None:
        rows.append(
            {
                "question": question + (SHORTENED if shortened else ""),
                "ours_epochs": np.nan if fit is None else int(fit.name),
                "ours_seconds": np.nan if fit is None else fit["seconds"],
                "other_seconds": seconds,
                "ratio": np.nan if fit is None else float(f"{fit['seconds'] / seconds:.3g}"),
                "at_most": target,
            }
        )

    scvi = peers.loc["scvi"]
    goal = {"perplexity": scvi["perplexity"], "elbo": scvi["elbo"]}
    add(
        "ELBO and perplexity of scvi-tools",
        first_to_reach(one, **goal),
        scvi["seconds"],
        1 / 1000,
        shortened=scvi["extrapolated"],
    )
    add(
        "the same, with the search",
        first_to_reach(searched, **goal),
        scvi["seconds"],
        np.nan,
        shortened=scvi["extrapolated"],
    )
    for method, fits, label, target in (
        ("sklearn_nmf", one, "perplexity of KL-NMF", 1 / 5),
        ("tomotopy", eight, "perplexity of tomotopy, by the mean of 8 replicates", 1 / 5),
        ("tomotopy", searched, "perplexity of tomotopy, with the search", np.nan),
        ("sklearn_lda online", one, "perplexity of scikit-learn's online LDA", np.nan),
        ("sklearn_lda batch", one, "perplexity of scikit-learn's batch LDA", np.nan),
        ("gensim", one, "perplexity of gensim's LDA", np.nan),
    ):
        peer = peers.loc[method]
        found = first_to_reach(fits, perplexity=peer["perplexity"])
        add(label, found, peer["seconds"], target, shortened=peer["extrapolated"])
    epochs = DEFAULT_EPOCHS
    add("with the search, to without", searched.loc[epochs], one.loc[epochs, "seconds"], np.nan)
    add("8 replicates together, to one", eight.loc[epochs], one.loc[epochs, "seconds"], 5)
    everything = results[results["genes"] == "all"].set_index("budget").loc[2]
    add("all 16,778 genes, to 1,000", everything, one.loc[2, "seconds"], 10)
    pyro = selected[selected["method"].str.contains("pyro")].iloc[0]
    add("the fused engine, to Pyro's", one.loc[epochs], pyro["seconds"], np.nan)
    limit = peers.loc["limit"]
    add("a whole fit of 2 epochs, to its sparse products", one.loc[2], limit["seconds"], np.nan)
    return pd.DataFrame(rows)


def draw(results: pd.DataFrame) -> plt.Figure:
    """Draw perplexity by seconds."""
    shown = results[(results["genes"] == "1000") & results["perplexity"].notna()]
    ours = shown[shown["method"] == "topicell, search off"]
    searched = shown[(shown["method"] == "topicell") & (shown["replicates"] == 1)]
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for n, color in ((1, "C0"), (8, "C1")):
        part = ours[ours["replicates"] == n]
        axes.errorbar(
            part["seconds"],
            part["perplexity"],
            part["perplexity_sd"],
            fmt="o-",
            capsize=3,
            color=color,
            label="topicell, search off, 1 replicate (1 to 30 epochs)"
            if n == 1
            else f"topicell, search off, {n} replicates together, their mean",
        )
    axes.errorbar(
        searched["seconds"],
        searched["perplexity"],
        searched["perplexity_sd"],
        fmt="o-",
        capsize=3,
        color="C2",
        label="topicell with the search, 1 replicate (3 to 30 epochs)",
    )
    for _, row in shown[~shown["method"].str.startswith("topicell")].iterrows():
        axes.plot(row["seconds"], row["perplexity"], "s", color="0.35")
        axes.annotate(
            NAMES[row["method"]] + (" (extrapolated)" if row["extrapolated"] else ""),
            (row["seconds"], row["perplexity"]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel("seconds of the fit, with initialisation")
    axes.set_ylabel("held-out perplexity per count")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
