"""Scores of external topics, and refusals."""

import anndata
import numpy as np
import pandas as pd
import pytest

from topicell.config import ExternalConfig, ReportConfig, TrackingConfig
from topicell.errors import InputError
from topicell.evaluate import evaluate, held_out_cells
from topicell.evaluation.perplexity import fold_in, perplexity, thin
from topicell.tracking.runs import open_tracker
from topicell.tracking.store import client
from topicell.tracking.stored import read_metrics

N, G, K = 90, 40, 3


def write_external(folder):
    """Write cells and their true θ and β; return the folder and the arrays."""
    rng = np.random.default_rng(0)
    theta_NK = rng.dirichlet(np.full(K, 0.2), N)
    beta_KG = rng.dirichlet(np.full(G, 0.3), K)
    x_NG = np.stack([rng.multinomial(150, p / p.sum()) for p in theta_NK @ beta_KG])
    cells, genes = [f"c{i}" for i in range(N)], [f"g{i}" for i in range(G)]
    names = [f"k{k}" for k in range(K)]
    adata = anndata.AnnData(
        x_NG.astype(np.float32),
        obs=pd.DataFrame({"kind": np.array(list("abc"))[theta_NK.argmax(1)]}, index=cells),
        var=pd.DataFrame(index=genes),
    )
    adata.obs["mine"] = np.arange(N) % 4 == 0
    adata.write_h5ad(folder / "cells.h5ad")
    pd.DataFrame(theta_NK, cells, names).to_csv(folder / "theta.csv")
    pd.DataFrame(beta_KG.T, genes, names).to_csv(folder / "beta.csv")
    return folder, x_NG, theta_NK, beta_KG


@pytest.fixture
def external(tmp_path):
    return write_external(tmp_path)


def score(folder, output="out", report=False, tracking=False, **settings):
    config = ExternalConfig(
        **{
            "theta": str(folder / "theta.csv"),
            "beta": str(folder / "beta.csv"),
            "data": str(folder / "cells.h5ad"),
            "report": ReportConfig(enabled=report, dpi=30),
            "tracking": TrackingConfig(enabled=tracking),
        }
        | settings
    )
    tracker = open_tracker(config.tracking, folder / output)
    return evaluate(config, tracker), tracker


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Return the result and tracker of the true topics, and their arrays."""
    folder, *arrays = write_external(tmp_path_factory.mktemp("reference"))
    return *score(folder, label_key="kind"), arrays


def test_scores_are_those_of_the_matrices(reference):
    result, tracker, (x_NG, theta_NK, beta_KG) = reference
    assert result.scores["given/perplexity"] == pytest.approx(perplexity(x_NG, theta_NK, beta_KG))
    seen, unseen = thin(x_NG.astype(np.float32), 0)
    folded = perplexity(unseen, fold_in(seen, beta_KG), beta_KG)
    assert result.scores["given/perplexity_folded"] == pytest.approx(folded)
    assert result.scores["given/elbo_given_topics"] < 0
    assert not any(name.startswith(("test/", "fit/")) for name in result.scores)
    assert read_metrics(tracker.directory)[1] == result.scores


def test_order_in_the_files_and_of_topics_changes_no_score(external, reference):
    folder = external[0]
    rng = np.random.default_rng(1)
    for name in ("theta", "beta"):
        table = pd.read_csv(folder / f"{name}.csv", index_col=0)
        table.iloc[rng.permutation(len(table))][["k2", "k0", "k1"]].to_csv(folder / f"{name}.csv")
    second, _ = score(folder, label_key="kind")
    for name, value in reference[0].scores.items():
        # The random numbers of refinement belong to topics in their order.
        tolerance = 1e-3 if "elbo" in name else 1e-6
        if name != "memory/peak_mib":
            assert second.scores[name] == pytest.approx(value, rel=tolerance), name


def test_true_topics_score_better_than_others(external, reference):
    folder, _, _, beta_KG = external
    other_KG = 0.6 * beta_KG + 0.4 * beta_KG[[1, 2, 0]]
    genes = [f"g{i}" for i in range(G)]
    pd.DataFrame(other_KG.T, genes).to_csv(folder / "other.csv")
    other, _ = score(folder, beta=str(folder / "other.csv"))
    for name, sign in (("given/perplexity_folded", -1), ("given/elbo_given_topics", 1)):
        assert sign * reference[0].scores[name] > sign * other.scores[name], name


def test_test_scores_are_those_of_held_out_cells(external):
    folder, x_NG, _, beta_KG = external
    result, _ = score(folder, held_out="mine")
    seen, unseen = thin(x_NG[::4].astype(np.float32), 0)
    expected = perplexity(unseen, fold_in(seen, beta_KG), beta_KG)
    assert result.scores["test/perplexity_folded"] == pytest.approx(expected)
    assert (result.adata.obs["split"] == "test").sum() == len(range(0, N, 4))


def test_cells_that_are_not_in_theta_are_left_out(external):
    folder, x_NG, theta_NK, beta_KG = external
    table = pd.read_csv(folder / "theta.csv", index_col=0)
    table.head(50).to_csv(folder / "theta.csv")
    result, _ = score(folder)
    assert result.adata.n_obs == 50
    expected = perplexity(x_NG[:50], theta_NK[:50], beta_KG)
    assert result.scores["given/perplexity"] == pytest.approx(expected)


def test_an_exact_zero_gives_infinity_and_a_floor_prevents_it(external):
    folder, x_NG, _, beta_KG = external
    gene = int(x_NG.sum(0).argmax())
    beta_KG = beta_KG.copy()
    beta_KG[:, gene] = 0
    genes = [f"g{i}" for i in range(G)]
    pd.DataFrame((beta_KG / beta_KG.sum(1, keepdims=True)).T, genes).to_csv(folder / "beta.csv")
    with pytest.warns(UserWarning, match="floor=1e-9"):
        result, _ = score(folder)
    assert result.scores["given/perplexity"] == np.inf
    assert result.scores["given/elbo_given_topics"] == -np.inf
    assert np.isfinite(score(folder, "floored", floor=1e-9)[0].scores["given/perplexity"])


def test_an_evaluation_is_recorded_and_reported_like_a_run(external):
    folder = external[0]
    result, tracker = score(folder, report=True, label_key="kind", tracking=True)
    page = (tracker.directory / "report.html").read_text()
    assert "3 topics from" in page
    assert "No held-out cells are known" in page
    assert result.scores["labels/nmi"] > 0.5
    stored = client(TrackingConfig()).get_run(tracker.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["topicell.kind"] == "evaluation"
    assert stored.data.params["beta"] == str(folder / "beta.csv")
    assert stored.data.metrics["given/perplexity"] == result.scores["given/perplexity"]


@pytest.mark.parametrize("header", ["", "cell,why\n"])
def test_held_out_cells_may_be_named_in_a_file(external, header):
    folder = external[0]
    obs = anndata.read_h5ad(folder / "cells.h5ad").obs
    lines = "".join(f"{name},x\n" for name in obs.index[obs["mine"]])
    (folder / "held.csv").write_text(header + lines)
    assert (held_out_cells(obs, str(folder / "held.csv")) == obs["mine"]).all()


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("nothing", "neither a file nor a column of obs"),
        ("kind", "selects 0 of 90 cells"),
        ("all", "selects 90 of 90 cells"),
    ],
)
def test_a_bad_held_out_is_refused(external, held_out, message):
    obs = anndata.read_h5ad(external[0] / "cells.h5ad").obs
    obs["all"] = True
    with pytest.raises(InputError, match=message):
        held_out_cells(obs, held_out)


def test_bad_matrices_are_refused_and_nothing_is_written(external):
    folder = external[0]
    table = pd.read_csv(folder / "theta.csv", index_col=0)
    (2 * table).to_csv(folder / "theta.csv")
    with pytest.raises(InputError, match="normalize=true"):
        score(folder)
    assert [p.name for p in (folder / "out").iterdir()] == []
    again, _ = score(folder, normalize=True)
    assert again.scores["given/perplexity"] > 1


def test_a_first_line_with_an_unknown_name_may_be_a_header(external, tmp_path):
    obs = anndata.read_h5ad(external[0] / "cells.h5ad").obs
    for names in ('"nobody"\n"c2"\n', "c1\nnobody\n"):
        (tmp_path / "held.csv").write_text(names)
        with pytest.raises(InputError, match=r"1 of its 2 names are not .* \(nobody\)"):
            held_out_cells(obs, str(tmp_path / "held.csv"))
    (tmp_path / "held.csv").write_text('"x"\n"c2"\n"c3"\n')
    held = held_out_cells(obs, str(tmp_path / "held.csv"))
    assert obs.index[held].tolist() == ["c2", "c3"]


def test_held_out_cells_without_counts_are_warned_of(external):
    folder = external[0]
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    x = adata.X.copy()
    x[5] = 0
    adata.X = x
    adata.obs["only"] = np.arange(N) == 5
    adata.write_h5ad(folder / "cells.h5ad")
    with pytest.warns(UserWarning, match="too few counts to be predicted"):
        result, _ = score(folder, held_out="only")
    assert not any(name.startswith("test/") for name in result.scores)


def test_no_warning_names_a_setting_of_preprocess(external):
    folder = external[0]
    names = {"g0": "ERCC-00002", "g1": "CD3_TotalSeqB"}
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    adata.var_names = [names.get(name, name) for name in adata.var_names]
    adata.write_h5ad(folder / "cells.h5ad")
    pd.read_csv(folder / "beta.csv", index_col=0).rename(names).to_csv(folder / "beta.csv")
    result, _ = score(folder)  # Warnings are errors.
    assert names["g0"] in result.adata.var_names
