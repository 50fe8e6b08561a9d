"""Runs side by side: matching, differences and warnings hold what was planted."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from topicell.comparison import compare, folder_name
from topicell.comparison.incompatibilities import find_warnings
from topicell.comparison.matching import pair_topics
from topicell.comparison.page import write
from topicell.comparison.runs import parameters, read_run
from topicell.comparison.scoring import difference, scores, summarized
from topicell.config import RunConfig, TrackingConfig, as_dict
from topicell.errors import InputError
from topicell.tracking.record import Record

OFF = TrackingConfig(enabled=False)
RNG = np.random.default_rng(0)
THETA = RNG.dirichlet(np.full(4, 0.3), 60)
BETA = RNG.dirichlet(np.full(30, 0.05), 4)
VALUES = {
    "test/perplexity_folded": {"0": [30.0, 30.2], "7": [40.0, 40.4]},
    "topics/stability": {"0": [0.9], "7": [0.8]},
    "labels/nmi": {"0": [0.5, 0.6], "7": [0.55, 0.6]},
}


def store(folder, *, theta=THETA, beta=BETA, cells=None, genes=None, values=VALUES, **changed):
    """A run folder, as far as `topicell.comparison` reads it."""
    theta, beta = np.asarray(theta), np.asarray(beta)
    config = as_dict(RunConfig())
    for name, value in changed.get("config", {}).items():
        *groups, last = name.split(".")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    parts = np.repeat(["train", "valid", "test"], [len(theta) - 20, 10, 10])
    adata = AnnData(
        obs=pd.DataFrame(
            {
                "split": changed.get("split", parts),
                "kind": changed.get("labels", ["left", "right"] * (len(theta) // 2)),
            },
            index=[f"c{i}" for i in range(len(theta))] if cells is None else cells,
        ),
        var=pd.DataFrame(index=[f"g{i}" for i in range(beta.shape[1])] if genes is None else genes),
    )
    adata.obsm["X_lda"], adata.varm["lda_topics"] = theta, beta.T
    adata.uns["topicell"] = {
        "config": json.dumps(config),
        "run_id": changed.get("run_id", ""),
        "created": "2026-01-01T12:00:00+00:00",
        "version": "0.1.0",
        "label_key": "kind",
        "data": changed.get("data", "cells"),
    }
    adata.uns["topicell_source"] = {"sha256": changed.get("source", "abc")}
    folder.mkdir(parents=True)
    adata.write_h5ad(folder / "adata.h5ad")
    tags = {
        "topicell.version": "0.1.0",
        "device": changed.get("device", "cpu"),
        "topicell.prepared_digest": changed.get("prepared", "123"),
    }
    (folder / "config.yaml").write_text("".join(f"# {k}: {v}\n" for k, v in tags.items()))
    lines = [{"epoch": 0, "valid/elbo": -9.0}, {"epoch": 1, "valid/elbo": -8.0}]
    lines += [{"speed/fit_seconds": 2.0, "labels/nmi": 0.5, "labels/nmi_mean": 0.6}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        (name, split, replicate, value)
        for name, by_split in values.items()
        for split, of_split in by_split.items()
        for replicate, value in enumerate(of_split)
    ]
    columns = ["metric", "split", "replicate", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "scores.csv", index=False)
    (folder / "model").mkdir()
    versions = {"topicell": "0.1.0", "torch": changed.get("torch", "2.6")}
    (folder / "model" / "model.json").write_text(json.dumps({"versions": versions}))
    return folder


@pytest.fixture
def stored(tmp_path):
    """Makes a run with what is to be different in it."""
    letters = itertools.count()

    def make(**changed):
        number = next(letters)
        folder = store(tmp_path / f"run{number}", **changed)
        return read_run(folder, str(folder), "ABCDEF"[number])

    return make


def shifted(by, name="test/perplexity_folded"):
    """The values of one score moved, split by split."""
    moved = {
        split: [value + amount for value in of_split]
        for (split, of_split), amount in zip(VALUES[name].items(), by, strict=True)
    }
    return VALUES | {name: moved}


# Topics


def test_topics_in_another_order_match_with_cosine_1(stored):
    order = np.array([2, 0, 3, 1])
    pairing = pair_topics(stored(), stored(theta=THETA[:, order], beta=BETA[order]))
    assert [order[match.partner] for match in pairing.matches] == [0, 1, 2, 3]
    for match in pairing.matches:
        assert match.cosine == pytest.approx(1)
        assert match.correlation == pytest.approx(1)
        assert match.proportion == pytest.approx(THETA[:, match.topic].mean())
        assert match.partner_proportion == pytest.approx(match.proportion)
        assert len(match.genes) == 20
        assert match.genes[0] == f"g{BETA[match.topic].argmax()}"
    assert pairing.n_cells == 60
    assert pairing.n_genes == (30, 30, 30)
    assert pairing.unmatched == ((), ())


def test_the_matching_is_the_best_of_all(stored):
    other = np.random.default_rng(1).dirichlet(np.full(30, 0.3), 4)
    pairing = pair_topics(stored(), stored(beta=other))
    total = sum(match.cosine for match in pairing.matches)
    every = itertools.permutations(range(4))
    assert total == pytest.approx(max(pairing.cosine_KK[range(4), list(p)].sum() for p in every))
    unit = [b / np.linalg.norm(b, axis=1, keepdims=True) for b in (BETA, other)]
    assert np.allclose(pairing.cosine_KK, unit[0] @ unit[1].T)
    for match in pairing.matches:
        assert match.next_best[0] != match.partner
        assert match.next_best[1] == max(np.delete(pairing.cosine_KK[match.topic], match.partner))


def test_a_topic_more_has_no_partner_but_a_nearest_one(stored):
    beta = np.vstack([BETA, 0.9 * BETA[1] + 0.1 / 30])
    theta = np.hstack([THETA, np.zeros((60, 1))])
    pairing = pair_topics(stored(), stored(theta=theta, beta=beta))
    (lone,) = pairing.unmatched[1]
    assert (lone.topic, lone.nearest) == (4, 1)
    assert lone.cosine > 0.99
    assert pairing.unmatched[0] == ()
    back = pair_topics(stored(theta=theta, beta=beta), stored())
    assert back.unmatched == (pairing.unmatched[1], ())


def test_unlike_topics_are_paired_but_not_found(stored):
    beta = BETA.copy()
    beta[2] = np.where(BETA[2] < np.median(BETA[2]), 1, 0)
    pairing = pair_topics(stored(), stored(beta=beta))
    *found, last = pairing.matches
    assert all(match.found for match in found)
    assert (last.topic, last.partner, last.found) == (2, 2, False)
    assert [lone.topic for side in pairing.unmatched for lone in side] == [2, 2]


def test_topics_are_matched_over_the_genes_of_both(stored):
    kept = np.array([25, 3, 4, 11, 12, 19, 0, 8])
    names = [f"g{i}" for i in kept] + ["other"]
    beta = np.hstack([BETA[:, kept], np.full((4, 1), 0.5)])
    pairing = pair_topics(stored(), stored(beta=beta, genes=names, prepared="456"))
    assert pairing.n_genes == (30, 9, 8)
    assert pairing.share == pytest.approx((BETA[:, kept].sum(1).mean(),) * 2)
    assert [match.cosine for match in pairing.matches] == pytest.approx([1] * 4)
    nothing = pair_topics(stored(), stored(genes=[f"h{i}" for i in range(30)]))
    assert nothing.matches == ()
    assert nothing.n_genes[2] == 0


def test_cells_of_one_name_in_other_data_are_not_the_same(stored):
    other = {"prepared": "456", "source": "def"}
    pairing = pair_topics(stored(), stored(**other))
    assert pairing.n_cells == 0
    assert all(math.isnan(match.correlation) for match in pairing.matches)
    fewer = {"theta": THETA[30:], "cells": [f"c{i}" for i in range(30, 60)], "prepared": "456"}
    pairing = pair_topics(stored(), stored(**fewer))
    assert pairing.n_cells == 30
    assert [match.correlation for match in pairing.matches] == pytest.approx([1] * 4)


# Scores


def test_a_value_has_the_error_of_its_splits_else_the_sd_of_its_replicates():
    value = summarized({"0": [1.0, 3.0], "1": [4.0, 6.0]})
    assert (value.mean, value.kind) == (3.5, "standard error over 2 splits")
    assert value.error == pytest.approx(np.std([2, 5], ddof=1) / math.sqrt(2))
    value = summarized({"0": [1.0, 3.0]})
    assert (value.mean, value.kind) == (2.0, "sd of 2 replicates")
    assert value.error == pytest.approx(math.sqrt(2))
    value = summarized({"0": [1.0]})
    assert (value.mean, value.kind) == (1.0, "")
    assert math.isnan(value.error)
    assert math.isnan(summarized({"0": [1.0, math.inf]}).error)


def test_the_error_of_a_difference():
    a = {"0": [10.0, 12.0], "1": [20.0, 22.0], "2": [30.0, 32.0]}
    b = {"0": [11.0, 11.0], "1": [22.0, 22.0], "5": [0.0, 0.0]}
    paired = difference(a, b, paired=True)
    assert paired.mean == pytest.approx(np.mean([0, -1]))
    # of the replicates within a split, 1 each; over splits it is 0.5
    assert paired.se == pytest.approx(math.sqrt(1 + 1) / 2)
    assert paired.paired == 2
    apart = difference(a, b, paired=False)
    assert apart.mean == pytest.approx(21 - 11)
    errors = [np.std(means, ddof=1) / math.sqrt(3) for means in ([11, 21, 31], [11, 22, 0])]
    assert apart.se == pytest.approx(math.hypot(*errors))
    assert apart.paired == 0
    assert math.isnan(difference({"0": [1.0]}, {"0": [2.0]}, paired=True).se)
    assert not difference({"0": [1.0]}, {"0": [2.0]}, paired=True).clear
    back = difference(b, a, paired=True)
    assert (back.mean, back.se) == (-paired.mean, paired.se)


def test_a_planted_difference_is_found_where_it_is_more_than_the_error(stored):
    a = stored()
    of = {}
    for name, by in (("lower", (-1, -1.1)), ("noise", (-1, 1.1)), ("higher", (2, 2))):
        of[name] = {s.name: s for s in scores([a, stored(values=shifted(by))])}
    lower, noise, higher = (of[name]["test/perplexity_folded"] for name in of)
    assert (lower.best, noise.best, higher.best) == (1, None, 0)
    lead = lower.values[1].against_first
    assert (lead.mean, lead.paired) == (pytest.approx(-1.05), 2)
    # The splits differ by 10 among themselves, and it does not matter.
    assert lead.se < 0.2 < lower.values[0].error
    assert lower.values[0].against_first is None
    assert of["lower"]["labels/nmi"].best is None
    assert of["lower"]["speed/fit_seconds"].best is None


def test_more_is_better_of_some_scores_and_less_of_others(stored):
    runs = [stored(), stored(values=shifted((0.4, 0.4), "labels/nmi"))]
    assert {s.name: s.best for s in scores(runs)}["labels/nmi"] == 1


def test_of_three_runs_the_best_is_ahead_of_both(stored):
    runs = [stored(), stored(values=shifted((-1, -1.1))), stored(values=shifted((-1.1, -1)))]
    (perplexity,) = (s for s in scores(runs) if s.name == "test/perplexity_folded")
    assert perplexity.best is None
    runs[2] = stored(values=shifted((-9, -9)))
    (perplexity,) = (s for s in scores(runs) if s.name == "test/perplexity_folded")
    assert perplexity.best == 2


def test_a_score_that_a_run_lacks_stays_empty(stored):
    fewer = {name: values for name, values in VALUES.items() if name != "topics/stability"}
    found = {s.name: s for s in scores([stored(values=fewer), stored()])}
    stability = found["topics/stability"]
    assert (stability.values[0], stability.best) == (None, None)
    assert stability.values[1].mean == pytest.approx(0.85)
    assert stability.values[1].against_first is None
    assert next(iter(found)) == "test/perplexity_folded"


def test_tags_are_those_of_run_json_if_the_folder_has_it(tmp_path):
    """Artifacts from MLflow, and older folders, have them at the head of config.yaml alone."""
    folder = store(tmp_path / "a", device="cpu", prepared="123")
    read = read_run(folder, str(folder), "A")
    assert (read.device, read.prepared) == ("cpu", "123")
    tags = {"device": "cuda", "topicell.prepared_digest": "4: 5", "topicell.git_dirty": "true"}
    Record(name="a", tags=tags).write(folder)
    read = read_run(folder, str(folder), "A")
    assert (read.device, read.prepared) == ("cuda", "4: 5")
    assert read.side.versions["commit"] == " with uncommitted changes"


# Settings


def test_the_settings_that_differ_are_exactly_those(tmp_path):
    a = store(tmp_path / "a", config={"model.n_topics": 6, "data.path": "x.h5ad"})
    b = store(tmp_path / "b", config={"train.learning_rate": 0.5})
    found = compare([str(a), str(b)], ["one", "two"], OFF)
    assert found.differing == ["data.path", "model.n_topics", "train.learning_rate"]
    assert found.parameters["model.n_topics"] == ("6", "10")
    assert found.parameters["data.path"] == ("x.h5ad", "null")
    assert found.parameters["seed"] == ("0", "0")
    assert [side.name for side in found.sides] == ["one", "two"]


def test_a_setting_that_a_run_does_not_have_is_no_difference():
    both = [{"seed": 0, "theta": "t.csv"}, {"seed": 0, "model.n_topics": 3}]
    assert parameters(both) == {
        "seed": ("0", "0"),
        "theta": ("t.csv", None),
        "model.n_topics": (None, "3"),
    }


# Warnings

CELLS = [f"c{i}" for i in range(60)]
OTHER_SPLIT = np.roll(np.repeat(["train", "valid", "test"], [40, 10, 10]), 5)
ONE = {name: {"0": by_split["0"]} for name, by_split in VALUES.items()}
ALONE = {name: {"0": by_split["0"][:1]} for name, by_split in VALUES.items()}


@pytest.mark.parametrize(
    ("a", "b", "heading", "lost"),
    [
        ({}, {"prepared": "4", "source": "d", "data": "mice"}, "Different data", "Perplexity"),
        ({}, {"prepared": "4", "genes": [f"h{i}" for i in range(30)]}, "Different genes", "Perp"),
        ({}, {"prepared": "4", "cells": [f"d{i}" for i in range(60)]}, "Different cells", "NMI"),
        ({}, {"prepared": "4"}, "Different counts", "Stability"),
        ({}, {"source": "d"}, "Different sources, the same cells", ""),
        ({"values": ONE}, {"split": OTHER_SPLIT}, "Different held-out cells", "Perplexity"),
        ({}, {"labels": ["up", "down"] * 30}, "Different labels", "NMI"),
        ({}, {"device": "cuda"}, "Different devices", "Time of the fit"),
        ({}, {"torch": "2.7"}, "Different versions", ""),
        ({"values": ALONE}, {}, "No error bars for A", ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_warnings_appear_and_say_what_cannot_be_compared(stored, a, b, heading, lost):
    runs = [stored(**a), stored(**b)]
    found = dict(find_warnings(runs))
    assert heading in found
    if lost:
        assert "Not comparable: " in found[heading]
        assert lost in found[heading].partition("Not comparable: ")[2]
    for score in scores(runs):
        if score.incompatibility:
            assert score.best is None
            assert score.values[1].against_first is None
    assert any(score.incompatibility for score in scores(runs)) == bool(lost)


def test_runs_alike_have_no_warnings(stored):
    assert list(find_warnings([stored(), stored(values=shifted((1, 1)))])) == []


def test_other_genes_leave_the_agreement_with_labels_to_compare(stored):
    runs = [stored(), stored(prepared="4", beta=BETA[:, :20], genes=[f"g{i}" for i in range(20)])]
    incompatibilities = {score.name: score.incompatibility for score in scores(runs)}
    assert incompatibilities["test/perplexity_folded"] == "different data"
    assert incompatibilities["labels/nmi"] == ""
    assert "20 are in all" in dict(find_warnings(runs))["Different genes"]


def test_cells_are_known_to_be_the_same_through_a_third_run(stored):
    moved, fewer = {"source": "d"}, {"prepared": "4", "beta": BETA[:, :20]}
    genes = [f"g{i}" for i in range(20)]
    runs = [stored(**moved), stored(), stored(genes=genes, **fewer)]
    assert {s.name: s.incompatibility for s in scores(runs)}["labels/nmi"] == ""
    assert list(dict(find_warnings(runs))) == [
        "Different genes",
        "Different sources, the same cells",
    ]


def test_several_splits_each_may_be_other_ones(stored):
    """Their errors hold what the choice of the held-out cells does."""
    runs = [stored(), stored(split=OTHER_SPLIT)]
    (perplexity,) = (s for s in scores(runs) if s.name == "test/perplexity_folded")
    assert perplexity.incompatibility == ""
    assert perplexity.values[1].against_first.paired == 0


def test_a_setting_of_a_measure_that_differs_is_named(stored):
    values = VALUES | {"topics/coherence_npmi": {"0": [0.1, 0.2]}}
    runs = [stored(values=values, config={"evaluate.n_coherence_genes": 5}), stored(values=values)]
    found = dict(find_warnings(runs))
    assert found == {
        "Different evaluate.n_coherence_genes": "A: 5; B: 20. Not comparable: Coherence (NPMI)."
    }


# What is refused


def test_bad_input_ends_with_code_2_and_one_line(run_here):
    store(Path("a"), run_id="f00")
    store(Path("b"))
    store(Path("c"), run_id="f00")
    store(Path("grid/0"))
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text("{}")
    Path("broken").mkdir()
    for name in ("adata.h5ad", "config.yaml", "metrics.jsonl", "model", "scores.csv"):
        Path("broken", name).write_text("?")
    Path("taken").mkdir()
    for arguments, words in (
        ([], "found 0, but a comparison needs two or more: topicell compare runs=["),
        (["runs="], "0 given"),
        (["runs=[a]"], "1 given"),
        (["runs=[a,b/../a]"], "'a' and 'b/../a' are the same run"),
        (["runs=[a,c]"], "'a' and 'c' are the same run"),
        (["runs=[a,nowhere]"], "does not exist:"),
        (["runs=[a,grid]"], "'grid' holds several runs; name the runs"),
        (["runs=[a,sweep]"], "or `topicell report run=sweep`"),
        (["runs=[a,taken]"], "'taken' has no adata.h5ad"),
        (["runs=[a,broken]"], "'broken' cannot be read"),
        (["runs=[a,b"], "has no closing bracket"),
        (["runs=[a,", "b]"], "without spaces"),
        (["runs=[a,b]", "labels=one"], "labels: found 1 for 2 runs"),
        (["runs=[a,b]", "output=taken"], "output = 'taken' exists"),
        (["run=[a,b]"], "did you mean 'runs'"),
        ([f"runs=[{','.join(['a'] * 27)}]"], "26 at most"),
    ):
        before = sorted(Path().rglob("*"))
        code, out, err = run_here("compare", *arguments)
        assert code == 2, arguments
        assert words in err
        assert len(err.splitlines()) == 1
        assert not out
        assert sorted(Path().rglob("*")) == before


def test_a_parent_in_mlflow_is_refused(run_here):
    from topicell.tracking.parents import PARENT_RUN, Parent

    store(Path("a"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(PARENT_RUN, "")
        parent = Parent.start(TrackingConfig(), "grid", {"topicell.kind": "multirun"}, Path("grid"))
        parent.finish("FINISHED")
    code, _, err = run_here("compare", f"runs=a,{parent.run_id}")
    assert code == 2
    assert (
        "is the parent of a multirun; name its runs, or make one page of all with `topicell "
        "report run=" in err
    )
    code, _, err = run_here("compare", "runs=a,0123456789abcdef0123456789abcdef")
    assert code == 2
    assert "neither a folder nor a run" in err


def test_folders_are_named_after_the_runs():
    Path("first run").mkdir()
    ids = [letter * 32 for letter in "abcde"]
    assert folder_name(["first run", ids[0]]) == "compare-first run-aaaaaaaa"
    assert folder_name(ids).endswith("-dddddddd-and-1-more")


def test_too_few_runs_are_refused_in_python_too():
    with pytest.raises(InputError, match="found 1"):
        compare(["a"], [], OFF)


# From end to end


def test_tables_hold_what_the_comparison_found(tmp_path):
    order = np.array([2, 0, 3, 1])
    a = store(tmp_path / "a")
    b = store(tmp_path / "b", theta=THETA[:, order], beta=BETA[order], values=shifted((-1, -1.1)))
    found = compare([str(a), str(b)], [], OFF)
    (tmp_path / "out").mkdir()
    page = write(found, tmp_path / "out")
    assert page == tmp_path / "out" / "compare.html"
    table = pd.read_csv(tmp_path / "out" / "scores.csv").set_index(["metric", "run"])
    row = table.loc["test/perplexity_folded", "B"]
    assert row["minus_A"] == pytest.approx(-1.05)
    assert (row["best"], row["paired_splits"]) == (True, 2)
    assert row["error_is"] == "standard error over 2 splits"
    topics = pd.read_csv(tmp_path / "out" / "matched_topics.csv")
    assert order[topics["other_topic"]].tolist() == topics["topic"].tolist()
    assert topics["match"].all()
    settings = pd.read_csv(tmp_path / "out" / "parameters.csv")
    assert not settings["differs"].any()
    assert pd.read_csv(tmp_path / "out" / "runs.csv")["run"].tolist() == ["A", "B"]
    drawn = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    names = ("scores", "topics_A_B", "training")
    assert drawn == {f"{name}.{end}" for name in names for end in ("png", "pdf")}


@pytest.mark.slow
def test_folders_need_no_mlflow():
    for name in "ab":
        store(Path(name))
    program = (
        "import sys\n"
        "from topicell.cli import main\n"
        "try:\n"
        "    main(['compare', 'runs=[a,b]'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0, end.code\n"
        "heavy = {'mlflow', 'torch', 'scanpy', 'optuna'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert Path("compare-a-b/compare.html").exists()
    assert not Path("mlflow.db").exists()


@pytest.mark.filterwarnings("ignore:obs already has")
@pytest.mark.slow
def test_real_runs_by_id_and_by_folder(topicell, run_here):
    small = [
        *("data=simulated", "data.simulation.n_cells=120", "data.simulation.n_genes=60"),
        *("data.simulation.n_topics=3", "model.n_hidden=8", "train.epochs=3"),
        *("train.n_replicates=2", "train.progress=false", "evaluate.n_coherence_genes=5"),
        "report=off",
    ]
    for folder, settings in (
        ("three", ["model.n_topics=3", "evaluate.n_splits=2"]),
        ("four", ["model.n_topics=4", "evaluate.n_splits=2"]),
    ):
        answer = topicell("train", *small, *settings, f"hydra.run.dir={folder}")
        assert answer.returncode == 0, answer.stderr
    code, _, err = run_here(
        *("evaluate", "theta=three/cells/cell_topics.csv", "beta=three/topics/gene_topics.csv"),
        *("data=three/adata.h5ad", "held_out=split", "report=off", "tracking=off", "output=given"),
    )
    assert code == 0, err
    run_id = read_run(Path("three"), "three", "A").side.run_id
    code, out, err = run_here("compare", f"runs=[{run_id},four,given]", "output=out")
    assert code == 0, err
    assert out == "out/compare.html\n"
    html = Path("out/compare.html").read_text()
    assert run_id in html
    settings = pd.read_csv("out/parameters.csv").set_index("parameter")
    differing = set(settings.index[settings["differs"]])
    assert differing >= {"model.n_topics"}
    assert not {name for name in differing if name.startswith(("data.", "train."))}
    table = pd.read_csv("out/scores.csv").set_index(["metric", "run"])
    by_hand = pd.read_csv("four/scores.csv").query("metric == 'test/perplexity_folded'")
    means = by_hand.groupby("split")["value"].mean()
    row = table.loc["test/perplexity_folded", "B"]
    assert row["mean"] == pytest.approx(means.mean())
    assert row["error"] == pytest.approx(means.std() / math.sqrt(2))
    assert row["paired_splits"] == 2
    # The topics of the run, brought as matrices, are those of the run.
    topics = pd.read_csv("out/matched_topics.csv").query("other_run == 'C'")
    assert topics["cosine"].tolist() == pytest.approx([1] * 3)
    assert topics["theta_correlation"].tolist() == pytest.approx([1] * 3)
    assert topics["other_topic"].tolist() == topics["topic"].tolist()
    assert table.loc["test/perplexity_folded", "C"]["paired_splits"] == 1
    code, _, err = run_here("compare", f"runs=[{run_id},three]")
    assert code == 2
    assert "are the same run" in err
