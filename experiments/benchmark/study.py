"""All peers under the same measures: prediction, reproducibility, agreement with labels, gene sets.

    python experiments/benchmark/study.py run FOLDER [--data NAME ...] [--models NAME ...]
    python experiments/benchmark/study.py collect FOLDER
    python experiments/benchmark/study.py page
    python experiments/benchmark/study.py quick FOLDER

`run` makes the fits that FOLDER does not have yet, then does `collect` and `page`. `collect`
measures the stored topics and writes results.csv and made.json. `page` writes docs/benchmark.md and
its figure from these two. `quick` does everything with the smallest data set, one or two seeds and
three passes, and writes to FOLDER. `two_studies` is read from the folder TOPICELL_DATA.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import warnings
from datetime import date
from importlib.metadata import version
from pathlib import Path

import fits
import numpy as np
import page
import pandas as pd

import topicell
from topicell.data.cells import PreparedCells
from topicell.evaluation import interpretability, ranking
from topicell.evaluation.gene_sets import read_gene_sets
from topicell.evaluation.metrics import Replicate, replicate_scores
from topicell.evaluation.perplexity import thin
from topicell.model.estimates import elbo_given
from topicell.model.fit import TopicFit
from topicell.report.enrichment import enrichment

sys.path.insert(0, str(Path(__file__).parents[1]))
from reproducibility.study import FOUND, correlation, matched, unit

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
N_ELBO_CELLS = 100
"""Test cells of which the ELBO is computed, the same for all models; it takes the longest."""
N_LEADING = 10
"""Leading genes of a topic for the measures of interpretability, as in scE2TM."""
MAX_Q = 0.01
"""A gene set is over-represented if its false discovery rate is at most this, as in scE2TM."""
LIBRARIES = ("scikit-learn", "cnmf", "tomotopy", "gensim", "scvi-tools", "torch")


@functools.cache
def gene_sets_of(name: str) -> dict[str, list[str]]:
    """Return gene sets: the included ones, or the default ones of the package scspectra."""
    if name == "blood":
        return read_gene_sets("blood")
    spec = importlib.util.find_spec("Spectra")
    if spec is None or spec.origin is None:
        raise SystemExit("the gene sets of Spectra: pip install --no-deps scspectra==0.2.1")
    groups = json.loads((Path(spec.origin).parent / "data" / "default_gene_sets.json").read_text())
    # Groups are cell types.
    return {name: genes for group in groups.values() for name, genes in group.items()}


def measured(
    fit: TopicFit, theta_NK: np.ndarray, cells: PreparedCells, seed: int, sets: list[str]
) -> dict[str, float]:
    """Return all measures of the selected replicate; proportions were inferred by EM."""
    assert cells.labels is not None
    beta_KG, labels = fit.beta()[fit.selected], np.asarray(cells.labels, dtype=object)
    topics_KG, test = fit.topics()[fit.selected], cells.parts["test"].x
    seen, unseen = thin(test, seed)
    theta_seen_NK = fit.likelihood.fold_in(seen, topics_KG)
    elbo_1N = elbo_given(
        *(topics_KG[None], fit.prior(), fit.likelihood, test[:N_ELBO_CELLS]),
        n_samples=64,
        seed=seed,
    )
    scores = {
        "test/perplexity_folded": fit.likelihood.perplexity(unseen, theta_seen_NK, topics_KG),
        "test/elbo_given_topics": float(elbo_1N.mean()),
    }
    replicate = Replicate(
        x_NG=cells.parts["train"].rows, theta_NK=theta_NK, beta_KG=beta_KG, labels=labels, seed=seed
    )
    scores |= dict(replicate_scores(replicate))
    topic_N = ranking.dominant_topics(theta_NK)
    scores["labels/purity"] = interpretability.purity(topic_N, labels)
    for by in ("probability", "frex"):
        genes_KT = ranking.top_genes(ranking.gene_scores(beta_KG, by), N_LEADING)
        leading_K = fit.genes[genes_KT].tolist()
        unshared = interpretability.unshared_genes(genes_KT)
        scores[f"{by}/unshared"] = unshared
        for name in sets:
            scores |= {
                f"{by}/{name}/{measure}": value
                for measure, value in against_sets(
                    gene_sets_of(name), leading_K, fit.genes.tolist(), unshared
                ).items()
            }
    return scores


def against_sets(
    gene_sets: dict[str, list[str]], leading_K: list[list[str]], genes: list[str], unshared: float
) -> dict[str, float]:
    """Return the measures that need gene sets."""
    coherence = float(interpretability.set_coherence(gene_sets, leading_K).mean())
    topics = [str(topic) for topic in range(len(leading_K))]
    table = enrichment(leading_K, gene_sets, genes, topics)
    table = table[table["q"] <= MAX_Q]
    found = interpretability.over_representation(
        [table.loc[table["topic"] == topic, "gene_set"] for topic in topics]
    )
    return {
        "coherence": coherence,
        "topic_quality": coherence * unshared,
        "number": found.number,
        "uniqueness": found.uniqueness,
        "quality": found.quality,
    }


def found_again(thetas: list[np.ndarray], betas: list[np.ndarray]) -> list[dict[str, float]]:
    """Return for each fit how well the fits with other seeds have its topics; none if it is alone.

    Topics are matched one to one by the correlation of their proportions over all cells, or by the
    cosine of their genes, as in the study of reproducibility.
    """
    again, cosine = (np.full((len(thetas), len(thetas)), np.nan) for _ in range(2))
    for a, b in itertools.combinations(range(len(thetas)), 2):
        r_K = matched(correlation(thetas[a], thetas[b]))
        again[a, b] = again[b, a] = np.mean(r_K > FOUND)
        cosine[a, b] = cosine[b, a] = matched(unit(betas[a]) @ unit(betas[b]).T).mean()
    return [
        {}
        if len(thetas) == 1
        else {"seeds/found_again": np.nanmean(row), "seeds/cosine": np.nanmean(of_genes)}
        for row, of_genes in zip(again, cosine, strict=True)
    ]


def collect(folder: Path, output: Path, sets: list[str]) -> None:
    """Measure the stored fits and write results.csv and made.json.

    Scores are kept beside a fit: SEED.json. Delete these files after a change of the measures.
    """
    rows = []
    for data, model in itertools.product(fits.DATA, fits.MODELS):
        of_model, thetas, betas = [], [], []
        for seed in range(fits.SEEDS):
            path = fits.folder_of(folder, data, model, seed)
            if not path.exists():
                continue
            cells, fit = cells_of(data, seed), topicell.load(path)
            thetas.append(fit.folded(cells.counts))
            betas.append(fit.beta()[fit.selected])
            kept = path.with_suffix(".json")
            if not kept.exists():
                scores = measured(fit, thetas[-1], cells, seed, sets)
                kept.write_text(json.dumps(scores, indent=1))
            scores = json.loads(kept.read_text())
            of_model.append({"data": data, "model": model, "seed": seed} | scores)
        for row, pairs in zip(of_model, found_again(thetas, betas), strict=True):
            rows.append(row | pairs)
        if of_model:
            print(f"measured: {data}, {model}, fits: {len(of_model)}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    columns = ["data", "model", "seed", *(name for name in page.MEASURES if name in table)]
    table[columns].to_csv(output / "results.csv", index=False, float_format="%.6g")
    (output / "made.json").write_text((folder / "made.json").read_text())


cells_of = functools.lru_cache(maxsize=fits.SEEDS)(fits.cells_of)
"""The cells of the seeds of one data set, which all models share."""


def note(folder: Path) -> None:
    """Record in the folder which commit, machine and libraries its fits are from."""
    path = folder / "made.json"
    made = json.loads(path.read_text()) if path.exists() else {"commits": [], "dates": []}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True
    ).stdout.strip()
    for name, value in (("commits", commit), ("dates", str(date.today()))):
        if value and value not in made[name]:
            made[name].append(value)
    made["processor"], made["cores"] = processor(), os.cpu_count()
    made["python"] = platform.python_version()
    made["libraries"] = {name: version(name) for name in LIBRARIES if is_installed(name)}
    path.write_text(json.dumps(made, indent=1) + "\n")


def is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except ImportError:
        return False


def processor() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write_page(source: Path, target: Path) -> None:
    """Write the page and its figure from the results in a folder."""
    results = pd.read_csv(source / "results.csv")
    made = json.loads((source / "made.json").read_text())
    (target / "benchmark.md").write_text(page.text(results, made), encoding="utf-8")
    (target / "benchmark.svg").write_text(page.figure(results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=["run", "collect", "page", "quick"])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("benchmark"))
    parser.add_argument("--data", nargs="+", choices=fits.DATA, default=list(fits.DATA))
    parser.add_argument("--models", nargs="+", choices=fits.MODELS, default=list(fits.MODELS))
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    if asked.action in ("run", "quick"):
        asked.folder.mkdir(parents=True, exist_ok=True)
        note(asked.folder)
    if asked.action == "quick":
        models = [
            model
            for model in fits.MODELS
            if not (module := fits.library_of(model)) or importlib.util.find_spec(module)
        ]
        fits.run(asked.folder, ["pbmc68k"], models, 1, epochs=3)
        fits.run(asked.folder, ["pbmc68k"], ["topicell", "sklearn NMF (KL)"], 2, epochs=3)
        collect(asked.folder, asked.folder, ["blood"])
        write_page(asked.folder, asked.folder)
        return
    if asked.action == "run":
        fits.run(asked.folder, asked.data, asked.models, fits.SEEDS)
    if asked.action != "page":
        collect(asked.folder, HERE, ["blood", "spectra"])
    write_page(HERE, DOCS)


if __name__ == "__main__":
    main()
