"""What differs between a stored run and the run that was made again."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from topicell.reproduce import NOISE, compare, described

RNG = np.random.default_rng(0)
BETA = RNG.dirichlet(np.full(20, 0.1), 3)
SCORES = {
    "test/perplexity_folded": [30.0, 30.2, 30.4, 30.2],
    "topics/used": [3.0, 3.0, 3.0, 3.0],
    "topics/stability": [0.9],
}
ENVIRONMENT = "# Python 3.11.1, Linux\n# x\na==1\nb==2  # build cpu\n"


def write_scores(folder, scores):
    rows = [
        {"metric": name, "split": "0", "replicate": r, "value": value}
        for name, values in scores.items()
        for r, value in enumerate(values)
    ]
    pd.DataFrame(rows).to_csv(folder / "scores.csv", index=False)


@pytest.fixture
def folders(tmp_path):
    """Write two folders of equal runs, as far as they are compared."""
    stored, new = tmp_path / "stored", tmp_path / "new"
    for name in ("model", "topics", "cells"):
        (stored / name).mkdir(parents=True)
    history = [{"epoch": 0, "train/elbo": -9.0, "speed/cells_per_second": 10.0}]
    (stored / "model" / "model.json").write_text(json.dumps({"history": history}))
    (stored / "model" / "weights.safetensors").write_bytes(bytes(9))
    genes = [f"g{i}" for i in range(20)]
    pd.DataFrame(BETA.T, index=genes).to_csv(stored / "topics" / "gene_topics.csv")
    (stored / "cells" / "cell_topics.csv").write_text("cell\n")
    write_scores(stored, SCORES)
    (stored / "config.yaml").write_text("# topicell.version: 1\n# device: cpu\nseed: 0\n")
    (stored / "environment.txt").write_text(
        "# Python 3.11.1, Linux\n# x\na==1\nb==2  # build cpu\n"
    )
    shutil.copytree(stored, new)
    return stored, new


def test_equal_runs_have_the_same_bytes(folders):
    found = compare(*folders)
    assert found.same_bytes
    assert found.reproduced
    assert len(found.files) == 5
    assert list(found.code) == list(found.environment) == []
    assert all(score.size == 0 for score in found.scores)
    np.testing.assert_allclose(found.cosine_K, 1)
    assert list(described(found))[-1].startswith("results     same bytes in all 5 files")


def test_the_measured_speed_of_a_fit_is_no_difference(folders):
    _, new = folders
    path = new / "model" / "model.json"
    path.write_text(path.read_text().replace("10.0", "12.5"))
    assert compare(*folders).same_bytes
    path.write_text(path.read_text().replace("-9.0", "-9.5"))
    assert not compare(*folders).same_bytes


@pytest.mark.parametrize("change", ["more", "less", "other"])
def test_a_file_that_is_missing_new_or_other_is_a_difference(folders, change):
    _, new = folders
    path = new / "topics" / ("new.csv" if change == "more" else "gene_topics.csv")
    if change == "less":
        shutil.copy(new / "scores.csv", new / "cells" / "kept.csv")
        (new / "cells" / "cell_topics.csv").unlink()
    elif change == "more":
        path.write_text("x")
    else:
        path.write_text(path.read_text().replace("g0", "h0"))
    found = compare(*folders)
    assert not found.same_bytes
    assert (found.cosine_K is None) == (change == "other")


def test_scores_are_judged_by_the_noise_of_the_stored_run(folders):
    _, new = folders
    sd = np.std(SCORES["test/perplexity_folded"], ddof=1)
    for factor, reproduced in ((0.9, True), (1.1, False)):
        shift = factor * NOISE * sd
        moved = [value + shift for value in SCORES["test/perplexity_folded"]]
        write_scores(new, SCORES | {"test/perplexity_folded": moved})
        found = compare(*folders)
        score = found.scores[0]
        assert score.noise == pytest.approx(sd)
        assert score.size == pytest.approx(factor * NOISE)
        assert found.reproduced == reproduced
        assert [beyond.name for beyond in found.beyond_noise] == [score.name] * (not reproduced)


def test_a_score_without_deviation_must_be_equal_and_one_value_is_not_judged(folders):
    _, new = folders
    write_scores(new, SCORES | {"topics/used": [2.0] * 4, "topics/stability": [0.1]})
    found = compare(*folders)
    assert [score.name for score in found.beyond_noise] == ["topics/used"]
    assert "topics/stability" not in [score.name for score in found.judged]


def test_other_bytes_with_nothing_to_judge_are_not_reproduced(folders):
    stored, new = folders
    write_scores(stored, {"topics/stability": [0.9]})
    write_scores(new, {"topics/stability": [0.8]})
    found = compare(stored, new)
    assert not found.judged
    assert not found.reproduced


def test_without_noise_all_scores_must_be_equal(folders):
    stored, new = folders
    single = {"test/perplexity_folded": [30.0], "topics/used": [3.0]}
    write_scores(stored, single)
    write_scores(new, single | {"test/perplexity_folded": [60.0]})
    assert not compare(stored, new).reproduced
    write_scores(new, single | {"test/perplexity_folded": [30.0 * (1 + 1e-12)]})
    found = compare(stored, new)
    assert not found.same_bytes
    assert found.reproduced


def test_values_that_are_not_finite_do_not_hide_a_difference(folders):
    stored, new = folders
    write_scores(stored, SCORES | {"labels/nmi": [0.5, 0.52, "nan"]})
    write_scores(new, SCORES | {"labels/nmi": [0.9, 0.92, "nan"]})
    assert [score.name for score in compare(stored, new).beyond_noise] == ["labels/nmi"]
    write_scores(new, SCORES | {"labels/nmi": [0.5, "nan", "nan"]})
    assert [score.name for score in compare(stored, new).beyond_noise] == ["labels/nmi"]


def test_a_score_that_the_stored_run_does_not_have_is_no_difference(folders):
    _, new = folders
    write_scores(new, SCORES | {"topics/new": [1.0]})
    found = compare(*folders)
    assert not found.same_bytes
    assert found.reproduced


def test_a_stored_run_whose_changes_are_not_known_is_named(folders):
    stored, new = folders
    for folder, dirty in ((stored, "true"), (new, "false")):
        (folder / "config.yaml").write_text(f"# topicell.git_dirty: {dirty}\nseed: 0\n")
    assert compare(stored, new).code == ["uncommitted changes, which the stored run does not have"]


def test_a_lost_score_is_not_within_noise(folders):
    _, new = folders
    write_scores(new, {name: SCORES[name] for name in ("topics/used", "topics/stability")})
    assert [score.name for score in compare(*folders).beyond_noise] == ["test/perplexity_folded"]


def test_matched_topics_may_have_other_numbers(folders):
    _, new = folders
    path = new / "topics" / "gene_topics.csv"
    table = pd.read_csv(path, index_col=0)
    table[table.columns[::-1]].to_csv(path)
    found = compare(*folders)
    assert not found.same_bytes
    np.testing.assert_allclose(found.cosine_K, 1)


def test_code_and_environment_are_compared(folders):
    stored, new = folders
    (new / "config.yaml").write_text("# topicell.version: 2\n# device: cpu\nseed: 0\n")
    (new / "git.diff").write_text("+1")
    (new / "environment.txt").write_text("# Python 3.12.0, Linux\n# x\na==1\n# c==3 (installed)\n")
    found = compare(stored, new)
    assert found.code == ["version 1 → 2", "no uncommitted changes → uncommitted changes"]
    assert found.environment == [
        "Python 3.11.1, Linux → Python 3.12.0, Linux",
        "b 2  # build cpu → none",
        "c none → 3",
    ]
    (stored / "environment.txt").unlink()
    assert "no environment.txt" in compare(stored, new).environment[0]
