"""Runs from the data to the report, on real and simulated cells."""

import json
import re
import statistics
import sys
from fnmatch import fnmatch
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment

import topicell
from topicell.config import (
    DataConfig,
    ModelConfig,
    PreprocessConfig,
    ReportConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)
from topicell.counts import Counts
from topicell.data.cells import PreparedCells
from topicell.errors import InputError
from topicell.evaluation.perplexity import fold_in, perplexity, thin
from topicell.evaluation.stability import match_topics
from topicell.model.checkpoints import Checkpoints
from topicell.run import measure_split, run
from topicell.scoring import split_seeds
from topicell.tracking.runs import ARTIFACTS as ARTIFACT_NAMES
from topicell.tracking.runs import RECORDS, open_tracker
from topicell.tracking.store import client
from topicell.tracking.stored import fetch_run, read_metrics

CHECKOUT = Path(__file__).parents[1]
FINAL = set(
    """
    valid/perplexity_folded test/perplexity_folded test/perplexity_amortized test/elbo
    test/elbo_given_topics topics/coherence_npmi topics/coherence_umass topics/diversity
    topics/exclusivity topics/used topics/effective topics/stability topics/consensus
    inference/amortization_gap labels/nmi labels/ari labels/knn_accuracy speed/fit_seconds
    memory/peak_mib
    """.split()
)
BY_EPOCH = set(
    """
    train/loss train/elbo train/reconstruction train/kl_cells train/kl_topics train/kl_weight
    train/learning_rate valid/elbo valid/perplexity speed/cells_per_second
    """.split()
)
FIGURES = set(
    """
    amortization_gap stability structure top_genes top_genes_dots top_genes_heatmap
    topic_by_label topic_correlation topic_similarity training_curves umap_counts_labels
    umap_counts_leiden umap_counts_topics umap_topics_labels umap_topics_leiden
    umap_topics_topics volcanoes
    """.split()
)
ARTIFACTS = {
    "MODEL_CARD.md",
    "adata.h5ad",
    "cells/cell_topics.csv",
    "config.yaml",
    "environment.txt",
    *(f"figures/{name}.png" for name in FIGURES),
    "figures/preview.png",
    "metrics.jsonl",
    "model/model.json",
    "model/weights.safetensors",
    "report.html",
    "scores.csv",
    "summary.md",
    "topics/consensus.csv",
    "topics/consensus_topics.csv",
    "topics/differential_expression.csv",
    "topics/gene_topics.csv",
    "topics/top_genes.csv",
    "topics/top_genes_frex.csv",
    "topics/top_genes_lift.csv",
    "topics/top_genes_relevance.csv",
}


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """Run with the default settings on the cells that scanpy ships."""
    folder = tmp_path_factory.mktemp("default")
    config = RunConfig(
        preprocess=PreprocessConfig(n_variable_genes=None),
        train=TrainConfig(progress=False),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db"),
    )
    tracker = open_tracker(config.tracking, folder / "run")
    return config, tracker, run(config, tracker)


def files(folder: Path) -> set[str]:
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return found - {"git.diff"}  # of a checkout with changes that are not committed


def test_every_file_of_a_run_is_in_the_documentation():
    rows = (CHECKOUT / "docs" / "outputs.md").read_text("utf-8").splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    named = [name for cell in cells for name in re.findall("`([^`]+)`", cell)]
    for file in [*ARTIFACTS, "run.json", "topicell.log", "checkpoint/state"]:
        assert any(
            fnmatch(file, name) or (name.endswith("/") and file.startswith(name)) for name in named
        ), f"docs/outputs.md has no row for {file}"


@pytest.mark.slow
def test_results_are_complete_as_value_in_the_folder_and_in_mlflow(shipped, tmp_path):
    config, tracker, result = shipped
    assert files(tracker.directory) == ARTIFACTS | {"run.json"}
    history, final = read_metrics(tracker.directory)
    assert final.keys() >= FINAL
    assert final == result.scores
    assert all(row.keys() >= BY_EPOCH for row in history)

    stored = client(config.tracking).get_run(tracker.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.metrics.keys() >= FINAL | BY_EPOCH
    # Folder and store have the same numbers, and no metric of an epoch is a score too.
    assert not final.keys() & history[-1].keys()
    metrics = {k: v for k, v in stored.data.metrics.items() if not k.startswith("system/")}
    assert metrics == {k: v for k, v in (history[-1] | final).items() if k != "epoch"}
    assert "system/cpu_utilization_percentage" in stored.data.metrics
    assert stored.data.tags["topicell.data_digest"] == result.adata.uns["topicell_source"]["sha256"]
    assert stored.data.tags["device"] == "cpu"
    folder, _ = fetch_run(tracker.run_id, config.tracking, tmp_path, (*ARTIFACT_NAMES, *RECORDS))
    assert files(folder) == ARTIFACTS
    assert (folder / "report.html").read_bytes() == (tracker.directory / "report.html").read_bytes()


@pytest.mark.slow
def test_the_fit_is_good(shipped):
    """Measured: 225.2 held out, −3776 nats per training cell, 10 topics used (unigram: 297)."""
    scores = shipped[2].scores
    assert 200 < scores["test/perplexity_folded"] < 232
    assert scores["fit/train_elbo"] > -3790
    assert scores["topics/used"] >= 9
    assert scores["topics/stability"] > 0.8
    assert scores["labels/nmi"] > 0.5


@pytest.mark.slow
def test_the_mean_gap_of_the_cells_is_the_score(shipped):
    gap_N = shipped[2].adata.obs["amortization_gap"].to_numpy()
    assert (gap_N >= 0).all()
    assert gap_N.mean() == pytest.approx(shipped[2].scores["inference/amortization_gap"])
    assert 0 < gap_N.mean() < 20


@pytest.mark.slow
def test_the_consensus_counts_the_replicates_with_each_topic(shipped):
    _, tracker, result = shipped
    topics = tracker.directory / "topics"
    table = pd.read_csv(topics / "consensus.csv", index_col="consensus")
    assert (table["unstable"] == (table["found_in"] == 1)).all()
    assert table["found_in"].sum() == 4 * 10
    assert (~table["unstable"]).sum() == result.scores["topics/consensus"]
    beta = pd.read_csv(topics / "consensus_topics.csv", index_col="gene")
    assert np.allclose(beta.sum(), 1)
    assert beta.columns.tolist() == table.index.tolist()
    # Each selected topic belongs to one, and the page has its count.
    support = dict(zip(table["topic_shown"], table["found_in"], strict=True))
    about = result.adata.uns["topicell"]
    assert [support[f"topic_{k}"] for k in range(10)] == about["topic_support"].tolist()


@pytest.mark.slow
def test_relevance_ranks_more_distinct_genes_first_than_probability(shipped):
    """Ribosomal genes have the highest probability in many topics."""
    topics = shipped[1].directory / "topics"
    tops = {
        by: pd.read_csv(topics / f"{name}.csv", index_col="rank")
        for by, name in (("probability", "top_genes"), ("relevance", "top_genes_relevance"))
    }
    distinct = {
        by: len(set(table[[f"topic_{k}" for k in range(10)]].head(10).to_numpy().ravel()))
        for by, table in tops.items()
    }
    assert distinct["relevance"] > distinct["probability"]
    fit = topicell.load(shipped[1].directory / "model")
    pd.testing.assert_frame_equal(
        fit.top_genes(5, by="relevance"),
        tops["relevance"].head(5),
        check_dtype=False,
        rtol=1e-4,
    )


@pytest.mark.slow
def test_the_stored_cells_follow_the_conventions_of_scverse(shipped):
    _, tracker, result = shipped
    adata = anndata.read_h5ad(tracker.directory / "adata.h5ad")
    assert adata.shape == (700, 764)
    counts = adata.layers["counts"]
    assert (counts.data == np.round(counts.data)).all()
    assert adata.raw.shape == (700, 765)
    assert adata.obsm["X_lda"].shape == (700, 10)
    assert np.allclose(adata.obsm["X_lda"].sum(1), 1, atol=1e-5)
    for topic in range(10):
        assert np.allclose(adata.obs[f"lda_topic_{topic}"], adata.obsm["X_lda"][:, topic])
    assert adata.varm["lda_topics"].shape == (764, 10)
    assert np.allclose(adata.varm["lda_topics"].sum(0), 1, atol=1e-5)
    assert adata.obsm["X_umap_counts"].shape == adata.obsm["X_umap_topics"].shape == (700, 2)
    assert adata.obs["leiden"].nunique() > 3
    about = adata.uns["topicell"]
    assert json.loads(about["scores"]) == pytest.approx(result.scores)
    assert json.loads(about["config"])["model"]["n_topics"] == 10
    assert about["run_id"] == tracker.run_id


@pytest.mark.slow
def test_scores_can_be_computed_again_from_the_artifacts(shipped):
    """The stored β and test cells give the perplexity in the table."""
    config, tracker, result = shipped
    adata = anndata.read_h5ad(tracker.directory / "adata.h5ad")
    genes = pd.read_csv(tracker.directory / "topics" / "gene_topics.csv", index_col="gene")
    cells = pd.read_csv(tracker.directory / "cells" / "cell_topics.csv", index_col="cell")
    ranked = pd.read_csv(tracker.directory / "topics" / "top_genes.csv", index_col="rank")
    assert genes.index.tolist() == adata.var_names.tolist()
    assert cells.index.tolist() == adata.obs_names.tolist()
    for topic in genes:
        best = genes[topic].sort_values(ascending=False)
        assert ranked[topic].iloc[0] == best.index[0]
        assert ranked[f"{topic}_prop"].iloc[0] == pytest.approx(best.iloc[0])
    test = adata.layers["counts"][(adata.obs["split"] == "test").to_numpy()]
    observed, completed = thin(test, config.seed)
    beta_KG = genes.to_numpy().T
    again = perplexity(completed, fold_in(observed, beta_KG), beta_KG)
    assert again == pytest.approx(result.scores["test/perplexity_folded"], rel=1e-5)
    fit = topicell.load(tracker.directory / "model")
    assert np.allclose(fit.transform(adata), cells, atol=1e-5)


@pytest.mark.slow
def test_a_run_without_held_out_cells_or_labels_or_replicates(tmp_path):
    config = RunConfig(
        data=DataConfig(name="simulated"),
        preprocess=PreprocessConfig(n_variable_genes=None, drop_genes=[]),
        model=ModelConfig(n_topics=3),
        train=TrainConfig(epochs=2, n_replicates=1, progress=False),
        tracking=TrackingConfig(enabled=False),
    )
    config.data.simulation.n_cells = 60
    config.report = ReportConfig(dpi=30)
    config.preprocess.split.train = 1.0
    config.preprocess.split.valid = config.preprocess.split.test = 0.0
    scores = run(config, open_tracker(config.tracking, tmp_path / "run")).scores
    assert not any(name.startswith(("test/", "valid/")) for name in scores)
    assert not any(name.endswith(("_sd", "_mean")) for name in scores)
    assert "topics/stability" not in scores
    assert (tmp_path / "run" / "report.html").exists()


def small_config(**data):
    config = RunConfig(
        data=DataConfig(**{"name": "simulated"} | data),
        preprocess=PreprocessConfig(n_variable_genes=None, drop_genes=[]),
        model=ModelConfig(n_topics=3, n_hidden=8),
        train=TrainConfig(epochs=2, n_replicates=2, progress=False),
        tracking=TrackingConfig(enabled=False),
    )
    config.data.simulation.n_cells = 100
    config.report.enabled = False
    return config


def user_columns(n_cells):
    """Return columns of obs with names like those of a run; only the last is such a name."""
    words = np.array(["a", "b"])[np.arange(n_cells) % 2]
    return {
        "lda_topic_label": words,
        "lda_topic": words,
        "lda_topic_0_score": np.arange(n_cells),
        "lda_topic_": np.arange(n_cells),
        "lda_topic_٣": np.arange(n_cells),
        "lda_topic_17": np.arange(n_cells) / n_cells,
    }


def test_only_columns_of_topics_are_replaced_with_a_warning(tmp_path):
    cells = topicell.load_dataset("simulated", simulation=small_config().data.simulation)
    mine = user_columns(100)
    cells.obs = cells.obs.assign(**mine)
    cells.varm["lda_mine"] = np.ones((cells.n_vars, 1))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    config = small_config(
        name="file", path=str(tmp_path / "cells.h5ad"), label_key="lda_topic_label"
    )
    config.preprocess.cache = False
    with pytest.warns(
        UserWarning, match=r"already has 1 columns of topics \(lda_topic_17\); the new"
    ):
        result = run(config, open_tracker(config.tracking, tmp_path / "run"))
    assert "labels/nmi" in result.scores
    stored = anndata.read_h5ad(tmp_path / "run" / "adata.h5ad")
    assert "lda_mine" in stored.varm
    assert "lda_topic_17" not in stored.obs
    for name, values in list(mine.items())[:-1]:
        assert stored.obs[name].astype(str).tolist() == [str(value) for value in values]
    config.data.label_key = "lda_topic_17"
    with pytest.raises(InputError, match="under this name"):
        run(config, open_tracker(config.tracking, tmp_path / "again"))


def test_transform_keeps_the_columns_of_the_user(tmp_path, run_here):
    config = small_config()
    run(config, open_tracker(config.tracking, tmp_path / "run"))
    cells = topicell.load_dataset("simulated", simulation=config.data.simulation)
    mine = list(user_columns(100))[:-1]
    cells.obs = cells.obs.assign(**dict.fromkeys(mine, "mine"))
    cells.write_h5ad(tmp_path / "new.h5ad")
    settings = (f"run={tmp_path}/run", f"input={tmp_path}/new.h5ad", f"output={tmp_path}/out.h5ad")
    code, _, err = run_here("transform", *settings)
    assert code == 0, err
    obs = anndata.read_h5ad(tmp_path / "out.h5ad").obs
    assert (obs[mine] == "mine").all(axis=None)
    assert [f"lda_topic_{k}" in obs for k in range(4)] == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:obs already has 3 columns of topics")
def test_labels_in_a_column_that_a_run_writes_are_kept_under_another_name(tmp_path):
    simulated = topicell.load_dataset("simulated", simulation=small_config().data.simulation)
    simulated.obs["leiden"] = simulated.obs["dominant_topic"]
    simulated.write_h5ad(tmp_path / "cells.h5ad")
    config = small_config(name="file", path=str(tmp_path / "cells.h5ad"), label_key="leiden")
    config.report = ReportConfig(dpi=30)
    result = run(config, open_tracker(config.tracking, tmp_path / "run"))
    about = result.adata.uns["topicell"]
    assert about["label_key"] == "leiden_input"
    assert result.adata.obs["leiden_input"].tolist() == simulated.obs["leiden"].tolist()
    assert result.adata.obs["leiden"].tolist() != simulated.obs["leiden"].tolist()
    again = small_config(name="file", path=str(tmp_path / "run" / "adata.h5ad"))
    again.report, again.seed = ReportConfig(dpi=30), 1
    again.evaluate.differential_expression = again.report.enabled = False
    # A run on the cells of another run computes maps and topics again and keeps none.
    third = run(again, open_tracker(again.tracking, tmp_path / "third")).adata
    assert [name for name in third.varm if name.startswith("lda_")] == ["lda_topics"]
    again.evaluate.differential_expression = again.report.enabled = True
    second = run(again, open_tracker(again.tracking, tmp_path / "again")).adata
    assert not np.array_equal(second.varm["lda_lfc"], result.adata.varm["lda_lfc"])
    assert not np.array_equal(second.obsm["X_umap_topics"], result.adata.obsm["X_umap_topics"])


@pytest.mark.filterwarnings("ignore:.*cells is empty")
def test_too_few_cells_for_a_map_are_refused_before_anything_runs(tmp_path):
    config = small_config()
    config.data.simulation.n_cells = 4
    config.report.enabled = True
    with pytest.raises(InputError, match=r"report\.enabled=false"):
        run(config, open_tracker(config.tracking, tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_planted_topics_of_a_simulated_corpus_are_recovered(tmp_path):
    config = small_config()
    config.data, config.model = DataConfig(name="simulated"), ModelConfig()
    config.train = TrainConfig(progress=False)
    result = run(config, open_tracker(config.tracking, tmp_path / "run"))
    truth = result.adata.varm["beta"].T
    assert match_topics(truth, result.adata.varm["lda_topics"].T).cosine.mean() >= 0.95


@pytest.mark.slow
def test_sorted_blood_cells(facs_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("TOPICELL_DATA", str(facs_folder))
    config = RunConfig(
        data=DataConfig(name="pbmc_facs"),
        train=TrainConfig(progress=False),
        tracking=TrackingConfig(enabled=False),
    )
    config.report.enabled = False
    scores = run(config, open_tracker(config.tracking, tmp_path / "run")).scores
    assert scores["fit/train_elbo"] >= -1866
    assert scores["test/perplexity_folded"] <= 83.68 * 1.01
    assert scores["topics/used"] >= 9
    assert scores["labels/knn_accuracy"] > 0.6


CLOCKS = {"speed/fit_seconds", "memory/peak_mib"}


def on_splits(n_splits):
    config = small_config()
    config.evaluate.n_splits = n_splits
    config.preprocess.cache = False
    return config


@pytest.fixture(scope="module")
def on_one_split(tmp_path_factory):
    config = on_splits(1)
    return run(config, open_tracker(config.tracking, tmp_path_factory.mktemp("one")))


@pytest.fixture(scope="module")
def on_three_splits(tmp_path_factory):
    """Return the run, its folder, and the measured parts by the seed of their split."""
    folder, config, measured = tmp_path_factory.mktemp("three"), on_splits(3), {}
    module = sys.modules[run.__module__]

    def measure(fit, parts, *rest):
        measured[rest[2]] = parts
        return original(fit, parts, *rest)

    original = module.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "measure", measure)
        result = run(config, open_tracker(config.tracking, folder))
    return result, folder, measured


def test_further_splits_do_not_change_the_first(on_one_split, on_three_splits):
    one, three = on_one_split.scores, on_three_splits[0].scores
    plain = {name for name in one if not name.endswith(("_mean", "_sd"))} - CLOCKS
    assert {name: three[name] for name in plain} == {name: one[name] for name in plain}
    assert not any(name.endswith("_se") for name in one)
    for name, by_split in on_one_split.values.items():
        assert by_split == {"0": on_three_splits[0].values[name]["0"]}
    for a, b in zip(topics_of(on_one_split), topics_of(on_three_splits[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def topics_of(result):
    return result.adata.obsm["X_lda"], result.adata.varm["lda_topics"], result.fit.beta()


def test_scores_summarise_their_table(on_one_split, on_three_splits):
    result, folder, _ = on_three_splits
    table = pd.read_csv(folder / "scores.csv", dtype={"split": str, "value": str})
    table["value"] = table["value"].map(float)  # exactly
    assert table.columns.tolist() == ["metric", "split", "replicate", "value"]
    assert set(table["metric"]) == set(result.values)
    summaries = set()
    for metric, rows in table.groupby("metric", sort=False):
        of_splits = [group["value"].tolist() for _, group in rows.groupby("split", sort=False)]
        assert of_splits == list(result.values[metric].values())
        assert rows["split"].unique().tolist() == list(result.values[metric])
        everything = rows["value"].tolist()
        means = [statistics.fmean(values) for values in of_splits]
        selected = of_splits[0][result.fit.selected if len(of_splits[0]) > 1 else 0]
        expected = {
            metric: selected,
            f"{metric}_mean": statistics.fmean(everything),
            f"{metric}_sd": statistics.stdev(everything),
            f"{metric}_se": statistics.stdev(means) / len(means) ** 0.5,
        }
        summaries |= expected.keys()
        for name, value in expected.items():
            assert result.scores[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name
    # There are no other scores, and a single value has no standard deviation.
    others = result.scores.keys() - summaries
    assert others == {"inference/amortization_gap"} | CLOCKS
    assert "topics/stability_sd" in result.scores
    assert "topics/stability_sd" not in on_one_split.scores
    assert read_metrics(folder)[1] == result.scores
    assert "scores.csv" in ARTIFACT_NAMES


def test_each_replicate_of_each_split_has_one_value(on_three_splits):
    result = on_three_splits[0]
    seeds = [str(seed) for seed in split_seeds(0, 3)]
    together = {"topics/stability", "topics/found_again", "topics/consensus", "fit/epochs"}
    for name, by_split in result.values.items():
        assert list(by_split) == seeds
        assert {len(values) for values in by_split.values()} == {1 if name in together else 2}
    folded = result.values["valid/perplexity_folded"]
    assert len({value for values in folded.values() for value in values}) == 6


def test_each_split_divides_the_cells_differently(on_three_splits):
    result, _, measured = on_three_splits
    assert set(measured) == set(split_seeds(0, 3))
    for parts in measured.values():
        names = [name for part in parts.values() for name in part.cells]
        assert len(names) == len(set(names))
        assert set(names) == set(result.adata.obs_names)
        assert [parts[name].n_cells for name in ("train", "valid", "test")] == [80, 10, 10]
    for part in ("train", "valid", "test"):
        assert len({frozenset(parts[part].cells) for parts in measured.values()}) == 3
    of_run = PreparedCells(result.adata).parts
    assert all((of_run[part].cells == measured[0][part].cells).all() for part in of_run)


def test_the_validation_score_is_that_of_the_validation_cells(on_three_splits):
    result = on_three_splits[0]
    is_valid = (result.adata.obs["split"] == "valid").to_numpy()
    cells = Counts.of(result.adata, "counts")[np.flatnonzero(is_valid)]
    n_samples = small_config().evaluate.n_samples
    by_replicate = result.fit.perplexity_by_replicate(
        cells, folded=True, n_samples=n_samples, seed=0
    )
    assert result.values["valid/perplexity_folded"]["0"] == by_replicate.tolist()
    assert result.scores["valid/perplexity_folded"] == by_replicate[result.fit.selected]
    assert result.scores["valid/perplexity_folded"] != result.scores["test/perplexity_folded"]


def test_the_time_of_the_fit_does_not_contain_the_measures(tmp_path, monkeypatch):
    clock = {"seconds": 1.0}

    def measure_slowly(*arguments):
        clock["seconds"] = 100.0
        return measure_split(*arguments)

    monkeypatch.setattr(Checkpoints, "seconds", property(lambda _: clock["seconds"]))
    monkeypatch.setattr("topicell.run.measure_split", measure_slowly)
    config = small_config()
    result = run(config, open_tracker(config.tracking, tmp_path / "run"))
    assert result.scores["speed/fit_seconds"] == 1
    assert clock["seconds"] == 100


def test_a_run_keeps_the_topic_numbers_of_an_earlier_run(tmp_path):
    config = small_config()
    earlier = run(config, open_tracker(config.tracking, tmp_path / "earlier"))
    config.seed, config.model.n_topics = 1, 4
    config.model.align_to = str(tmp_path / "earlier")
    result = run(config, open_tracker(config.tracking, tmp_path / "later"))
    about = result.adata.uns["topicell"]
    assert about["aligned_to"] == str(tmp_path / "earlier")
    # Each topic has a partner in the earlier run or is new, and they are matched one to one.
    r = np.corrcoef(earlier.adata.obsm["X_lda"].T, result.adata.obsm["X_lda"].T)[:3, 3:]
    assert linear_sum_assignment(r, maximize=True)[1].tolist() == [0, 1, 2]
    np.testing.assert_allclose(about["topic_alignment"][:3], np.diag(r), atol=0.02)
    table = pd.read_csv(tmp_path / "later/topics/alignment.csv", index_col="topic")
    assert table["earlier_topic"].fillna("").tolist() == ["topic_0", "topic_1", "topic_2", ""]


@pytest.mark.parametrize(
    ("n_topics", "name", "message"),
    [
        (3, "none", "model.align_to: .*tracking.uri"),
        (2, "earlier", "model.align_to: the earlier fit has 3 topics"),
    ],
)
def test_a_run_that_cannot_be_aligned_is_refused_before_the_fit(n_topics, name, message, tmp_path):
    config = small_config()
    config.report.enabled = False
    run(config, open_tracker(config.tracking, tmp_path / "earlier"))
    config.model.n_topics, config.model.align_to = n_topics, str(tmp_path / name)
    config.tracking.uri = f"sqlite:///{tmp_path}/none.db"
    tracker = open_tracker(config.tracking, tmp_path / "later")
    with pytest.raises(InputError, match=message):
        run(config, tracker)
    assert not (tmp_path / "later" / "run.json").exists()
