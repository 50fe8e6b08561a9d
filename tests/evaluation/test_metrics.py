"""The table of metrics: each row computes its own measure, and a new row appears everywhere."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from topicell.config import RunConfig, TrackingConfig, dotted
from topicell.evaluation.coherence import npmi, umass
from topicell.evaluation.labels import ari, labelled_cells, neighbor_accuracy, nmi
from topicell.evaluation.metrics import (
    CONDITIONS,
    METRICS,
    ROWS,
    SAMPLED,
    Metric,
    Replicate,
    metric,
    ordered,
    reference,
    replicate_scores,
)
from topicell.evaluation.ranking import (
    diversity,
    effective_topics,
    exclusivity,
    top_genes,
    used_topics,
)
from topicell.tracking.record import Record
from topicell.tracking.store import client

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    theta_NK, beta_KG = rng.dirichlet(np.full(4, 0.3), 50), rng.dirichlet(np.full(30, 0.3), 4)
    x_NG = sp.csr_matrix(rng.poisson(40 * theta_NK @ beta_KG))
    labels = np.array(["T", "B", "NK"])[rng.integers(3, size=50)]
    return {"x_NG": x_NG, "theta_NK": theta_NK, "beta_KG": beta_KG, "labels": labels}


def frex_by_loops(beta_KG):
    """Return the FREX score of every gene in every topic by its definition."""
    n_topics, n_genes = beta_KG.shape
    score = np.zeros(beta_KG.shape)
    for k in range(n_topics):
        share = [beta_KG[k, g] / sum(beta_KG[:, g]) for g in range(n_genes)]
        for g in range(n_genes):
            exclusive = sum(other <= share[g] for other in share) / n_genes
            frequent = sum(other <= beta_KG[k, g] for other in beta_KG[k]) / n_genes
            score[k, g] = 1 / (0.5 / exclusive + 0.5 / frequent)
    return score


def npmi_by_loops(x_NG, genes):
    seen = x_NG.toarray() > 0
    values = []
    for a, b in itertools.combinations(genes, 2):
        both = np.mean(seen[:, a] & seen[:, b])
        if both in (0, 1):
            values.append(1 if both else -1)
        else:
            expected = np.mean(seen[:, a]) * np.mean(seen[:, b])
            values.append(math.log(both / expected) / -math.log(both))
    return np.mean(values)


def test_each_row_computes_its_own_measure(arrays):
    replicate = Replicate(**arrays, n_coherence_genes=6, n_diversity_genes=5, n_neighbors=3)
    x_NG, theta_NK, beta_KG, labels = arrays.values()
    scores = dict(replicate_scores(replicate))
    genes_KT = top_genes(beta_KG, 6)
    cells = labelled_cells(theta_NK, labels, n_neighbors=3)
    assert scores == {
        "topics/coherence_npmi": npmi(x_NG, genes_KT).mean(),
        "topics/coherence_npmi_frex": scores["topics/coherence_npmi_frex"],
        "topics/coherence_umass": umass(x_NG, genes_KT).mean(),
        "topics/diversity": diversity(beta_KG, 5),
        "topics/exclusivity": exclusivity(beta_KG, 6).mean(),
        "topics/used": used_topics(theta_NK),
        "topics/effective": effective_topics(theta_NK),
        "labels/nmi": nmi(cells),
        "labels/ari": ari(cells),
        "labels/knn_accuracy": neighbor_accuracy(cells),
    }
    assert all(type(value) is float for value in scores.values())


def test_coherence_of_frex_genes_equals_loops(arrays):
    replicate = Replicate(**arrays, n_coherence_genes=6)
    score_KG = frex_by_loops(arrays["beta_KG"])
    leading = [sorted(range(30), key=lambda g, row=row: (-row[g], g))[:6] for row in score_KG]
    expected = np.mean([npmi_by_loops(arrays["x_NG"], genes) for genes in leading])
    scores = dict(replicate_scores(replicate))
    assert scores["topics/coherence_npmi_frex"] == pytest.approx(expected, rel=1e-12)
    assert scores["topics/coherence_npmi_frex"] != scores["topics/coherence_npmi"]


def test_order_of_topics_cells_and_genes_changes_nothing(arrays):
    x_NG, theta_NK, beta_KG, _ = arrays.values()
    rng = np.random.default_rng(1)
    topics, cells, genes = rng.permutation(4), rng.permutation(50), rng.permutation(30)
    shuffled = Replicate(
        x_NG=x_NG[cells][:, genes],
        theta_NK=theta_NK[cells][:, topics],
        beta_KG=beta_KG[topics][:, genes],
    )
    plain = Replicate(x_NG=x_NG, theta_NK=theta_NK, beta_KG=beta_KG)
    found, expected = (dict(replicate_scores(replicate)) for replicate in (shuffled, plain))
    assert found == pytest.approx(expected, rel=1e-12)
    assert not any(name.startswith("labels/") for name in found)


def test_labels_of_a_sample_of_cells_are_those_of_these_cells_alone(arrays):
    x_NG, theta_NK, beta_KG, labels = arrays.values()
    drawn = np.arange(0, 50, 2)
    # Cells without a label have no share in the error.
    labels = np.where(np.arange(50) % 6 == 0, None, np.asarray(labels, dtype=object))
    n_labelled = sum(label is not None for label in labels[drawn])

    def scores(theta_NK, labels, cells=None):
        replicate = Replicate(
            x_NG=x_NG, theta_NK=theta_NK, beta_KG=beta_KG, labels=labels, labelled_cells=cells
        )
        found = dict(replicate_scores(replicate))
        return {name: value for name, value in found.items() if name.startswith("labels/")}

    found = scores(theta_NK, labels, drawn)
    share = found["labels/knn_accuracy"]
    error = math.sqrt(share * (1 - share) / n_labelled * (1 - 25 / 50))
    assert found.pop("labels/knn_accuracy_sampling_error") == pytest.approx(error)
    assert found == scores(theta_NK[drawn], np.asarray(labels)[drawn])
    assert "labels/knn_accuracy_sampling_error" not in scores(theta_NK, labels)


# The table


def test_rows_are_complete_and_their_conditions_are_known():
    assert len(METRICS) == len(ROWS) + len(SAMPLED)
    assert set(SAMPLED) <= {row.name for row in ROWS}
    settings = dotted(RunConfig())
    for row in ROWS:
        assert row.meaning.endswith((".", ").")), row.name
        assert "better" not in row.meaning, row.name
        assert len(row.title) < 32, row.name
        assert set(row.same) <= CONDITIONS.keys() | settings.keys(), row.name


def test_a_name_without_a_row_is_its_own_title():
    unknown = metric("our/new")
    assert (unknown.title, unknown.explanation, unknown.better) == ("our/new", "", 0)
    names = ["our/new", "topics/used", "a/b", "test/elbo", "our/new"]
    assert ordered(names) == ["test/elbo", "topics/used", "our/new", "a/b"]


def test_direction_is_part_of_the_explanation():
    assert metric("test/elbo").explanation.endswith(" Higher is better.")
    assert metric("test/elbo").axis == "nats per cell, higher is better"
    assert metric("labels/nmi").axis == "higher is better"
    assert metric("topics/used").axis == "topics"
    assert "better" not in metric("topics/used").explanation


def test_the_reference_page_is_up_to_date():
    committed = (DOCS / "metrics.md").read_text(encoding="utf-8")
    assert committed == reference(), "python -m topicell.evaluation.metrics > docs/metrics.md"
    for row in ROWS:
        assert f"| `{row.name}` | {row.title} | {row.meaning} |" in committed


# To add a metric: one function and one row


def largest_entropy(replicate):
    return -(replicate.beta_KG * np.log(replicate.beta_KG)).sum(1).min()


TOY = Metric(
    name="topics/toy_entropy",
    title="Toy entropy of topics",
    meaning="The largest entropy of the gene proportions of a topic, in nats.",
    better=1,
    same=("counts",),
    headline=True,
    printed=True,
    compute=largest_entropy,
)


def test_a_metric_of_one_function_and_one_row_is_recorded_and_compared(run_here, monkeypatch):
    """Pages of runs are in tests/report/test_page.py."""
    monkeypatch.setitem(METRICS, TOY.name, TOY)
    for folder, tracking in (("a", "local"), ("b", "off")):
        code, out, err = run_here(
            *(
                "train",
                "data=simulated",
                "data.simulation.n_cells=60",
                "data.simulation.n_genes=40",
            ),
            *("data.simulation.n_topics=3", "model.n_topics=3", "model.n_hidden=8"),
            *("train.epochs=1", "train.n_replicates=2", "train.progress=false", "report=off"),
            *("evaluate.n_gap_cells=0", "evaluate.differential_expression=false"),
            *(f"tracking={tracking}", f"hydra.run.dir={folder}"),
        )
        assert code == 0, err
        assert f"\n{TOY.title:<32}" in f"\n{out}"
    # Every metric that a run records has a row.
    lines = [json.loads(line) for line in Path("a/metrics.jsonl").read_text().splitlines()]
    names = {name for line in lines if "step" not in line for name in line if "/" in name}
    names = {re.sub("_(mean|sd|se)$", "", name) for name in names}
    assert names <= METRICS.keys()
    assert {name for name in names if METRICS[name].by_epoch} == {
        row.name for row in ROWS if row.by_epoch
    } - {"train/failed_replicates"}

    table = pd.read_csv("a/scores.csv").query("metric == @TOY.name")
    topics = pd.read_csv("a/topics/gene_topics.csv", index_col=0).to_numpy()
    assert len(table) == 2
    assert np.isclose(table["value"], -(topics * np.log(topics)).sum(0).min()).any()
    run_id = Record.read(Path("a")).run_id
    stored = client(TrackingConfig()).get_run(run_id).data.metrics
    assert np.isclose(stored[TOY.name], table["value"]).any()
    assert stored[f"{TOY.name}_mean"] == pytest.approx(table["value"].mean())

    code, _, err = run_here("compare", "runs=[a,b]", "output=out")
    assert code == 0, err
    page = Path("out/compare.html").read_text(encoding="utf-8")
    assert TOY.title in page
    assert TOY.explanation in page
    compared = pd.read_csv("out/scores.csv").query("metric == @TOY.name")
    assert compared["run"].tolist() == ["A", "B"]
