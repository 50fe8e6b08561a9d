"""Topics from elsewhere: the same numbers as in the run that made them, and clear refusals."""

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


@pytest.fixture
def brought(tmp_path):
    """Cells, their true θ and β as csv, and the arrays."""
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
    adata.write_h5ad(tmp_path / "cells.h5ad")
    pd.DataFrame(theta_NK, cells, names).to_csv(tmp_path / "theta.csv")
    pd.DataFrame(beta_KG.T, genes, names).to_csv(tmp_path / "beta.csv")
    return tmp_path, x_NG, theta_NK, beta_KG


def scored(folder, output="out", report=False, tracking=False, **settings):
    config = ExternalConfig(
        **{
            "theta": str(folder / "theta.csv"),
            "beta": str(folder / "beta.csv"),
            "data": str(folder / "cells.h5ad"),
            "report": ReportConfig(enabled=report, pdf=False, dpi=30),
            "tracking": TrackingConfig(enabled=tracking),
        }
        | settings
    )
    tracker = open_tracker(config.tracking, folder / output)
    return evaluate(config, tracker), tracker


def test_scores_are_those_of_the_matrices(brought):
    folder, x_NG, theta_NK, beta_KG = brought
    result, tracker = scored(folder)
    assert result.scores["given/perplexity"] == pytest.approx(perplexity(x_NG, theta_NK, beta_KG))
    seen, unseen = thin(x_NG.astype(np.float32), 0)
    folded = perplexity(unseen, fold_in(seen, beta_KG), beta_KG)
    assert result.scores["given/perplexity_folded"] == pytest.approx(folded)
    assert result.scores["given/elbo_given_topics"] < 0
    assert not any(name.startswith(("test/", "fit/", "labels/")) for name in result.scores)
    assert read_metrics(tracker.directory)[1] == result.scores


def test_order_in_the_files_and_of_topics_changes_no_score(brought):
    folder = brought[0]
    first, _ = scored(folder, label_key="kind")
    rng = np.random.default_rng(1)
    for name in ("theta", "beta"):
        table = pd.read_csv(folder / f"{name}.csv", index_col=0)
        table.iloc[rng.permutation(len(table))][["k2", "k0", "k1"]].to_csv(folder / f"{name}.csv")
    second, _ = scored(folder, "again", label_key="kind")
    for name, value in first.scores.items():
        # Refinement's draws are one to a topic.
        tolerance = 1e-3 if "elbo" in name else 1e-6
        if name != "memory/peak_mib":
            assert second.scores[name] == pytest.approx(value, rel=tolerance), name


def test_the_truth_scores_better_than_other_topics(brought):
    folder, _, _, beta_KG = brought
    true, _ = scored(folder)
    other_KG = 0.6 * beta_KG + 0.4 * beta_KG[[1, 2, 0]]
    genes = [f"g{i}" for i in range(G)]
    pd.DataFrame(other_KG.T, genes).to_csv(folder / "other.csv")
    other, _ = scored(folder, "other", beta=str(folder / "other.csv"))
    for name, sign in (("given/perplexity_folded", -1), ("given/elbo_given_topics", 1)):
        assert sign * true.scores[name] > sign * other.scores[name], name


@pytest.mark.parametrize("how", ["column", "file", "file with a header"])
def test_held_out_cells_are_what_test_scores_are_of(brought, how):
    folder, x_NG, _, beta_KG = brought
    held_out = "mine"
    if how != "column":
        held_out = str(folder / "held.csv")
        names = [f"c{i}" for i in range(0, N, 4)]
        header = ["cell,why"] if "header" in how else []
        (folder / "held.csv").write_text("\n".join([*header, *(f"{n},x" for n in names)]) + "\n")
    result, _ = scored(folder, held_out=held_out)
    seen, unseen = thin(x_NG[::4].astype(np.float32), 0)
    expected = perplexity(unseen, fold_in(seen, beta_KG), beta_KG)
    assert result.scores["test/perplexity_folded"] == pytest.approx(expected)
    assert (result.adata.obs["split"] == "test").sum() == len(range(0, N, 4))


def test_cells_that_theta_lacks_are_left_out(brought):
    folder, x_NG, theta_NK, beta_KG = brought
    table = pd.read_csv(folder / "theta.csv", index_col=0)
    table.head(50).to_csv(folder / "theta.csv")
    result, _ = scored(folder)
    assert result.adata.n_obs == 50
    expected = perplexity(x_NG[:50], theta_NK[:50], beta_KG)
    assert result.scores["given/perplexity"] == pytest.approx(expected)


def test_an_exact_zero_is_infinite_and_a_floor_mends_it(brought):
    folder, x_NG, _, beta_KG = brought
    gene = int(x_NG.sum(0).argmax())
    beta_KG = beta_KG.copy()
    beta_KG[:, gene] = 0
    genes = [f"g{i}" for i in range(G)]
    pd.DataFrame((beta_KG / beta_KG.sum(1, keepdims=True)).T, genes).to_csv(folder / "beta.csv")
    with pytest.warns(UserWarning, match="floor=1e-9"):
        result, _ = scored(folder)
    assert result.scores["given/perplexity"] == np.inf
    assert result.scores["given/elbo_given_topics"] == -np.inf
    assert np.isfinite(scored(folder, "floored", floor=1e-9)[0].scores["given/perplexity"])


def test_it_is_recorded_and_reported_like_a_run(brought):
    folder = brought[0]
    result, tracker = scored(
        folder,
        report=True,
        label_key="kind",
        tracking=True,
    )
    page = (tracker.directory / "report.html").read_text()
    assert "3 topics from" in page
    assert "No held-out cells are known" in page
    assert result.scores["labels/nmi"] > 0.5
    stored = client(TrackingConfig()).get_run(tracker.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["topicell.kind"] == "evaluation"
    assert stored.data.params["beta"] == str(folder / "beta.csv")
    assert stored.data.metrics["given/perplexity"] == result.scores["given/perplexity"]


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("nothing", "neither a file nor a column of obs"),
        ("kind", "marks 0 of 90 cells"),
        ("all", "marks 90 of 90 cells"),
    ],
)
def test_held_out_that_cannot_be_is_refused(brought, held_out, message):
    obs = anndata.read_h5ad(brought[0] / "cells.h5ad").obs
    obs["all"] = True
    with pytest.raises(InputError, match=message):
        held_out_cells(obs, held_out)


def test_unknown_names_of_held_out_cells_are_refused(brought, tmp_path):
    obs = anndata.read_h5ad(brought[0] / "cells.h5ad").obs
    (tmp_path / "held.txt").write_text("c1\nnobody\n")
    with pytest.raises(InputError, match=r"1 of its 2 names are not .* \(nobody\)"):
        held_out_cells(obs, str(tmp_path / "held.txt"))


def test_bad_matrices_leave_nothing_behind(brought):
    folder = brought[0]
    table = pd.read_csv(folder / "theta.csv", index_col=0)
    (2 * table).to_csv(folder / "theta.csv")
    with pytest.raises(InputError, match="normalize=true"):
        scored(folder)
    assert [p.name for p in (folder / "out").iterdir()] == []
    again, _ = scored(folder, normalize=True)
    assert again.scores["given/perplexity"] > 1


def test_an_unknown_first_name_is_no_header(brought, tmp_path):
    obs = anndata.read_h5ad(brought[0] / "cells.h5ad").obs
    (tmp_path / "held.csv").write_text('"nobody"\n"c2"\n')
    with pytest.raises(InputError, match=r"1 of its 2 names .* \(nobody\)"):
        held_out_cells(obs, str(tmp_path / "held.csv"))
    (tmp_path / "held.csv").write_text('"x"\n"c2"\n"c3"\n')
    held = held_out_cells(obs, str(tmp_path / "held.csv"))
    assert obs.index[held].tolist() == ["c2", "c3"]


def test_held_out_cells_without_counts_are_warned_of(brought):
    folder = brought[0]
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    x = adata.X.copy()
    x[5] = 0
    adata.X = x
    adata.obs["only"] = np.arange(N) == 5
    adata.write_h5ad(folder / "cells.h5ad")
    with pytest.warns(UserWarning, match="too few counts to be predicted"):
        result, _ = scored(folder, held_out="only")
    assert not any(name.startswith("test/") for name in result.scores)


def test_no_warning_names_a_setting_of_preprocess(brought):
    folder = brought[0]
    names = {"g0": "ERCC-00002", "g1": "CD3_TotalSeqB"}
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    adata.var_names = [names.get(name, name) for name in adata.var_names]
    adata.write_h5ad(folder / "cells.h5ad")
    pd.read_csv(folder / "beta.csv", index_col=0).rename(names).to_csv(folder / "beta.csv")
    result, _ = scored(folder)  # Warnings are errors.
    assert names["g0"] in result.adata.var_names
