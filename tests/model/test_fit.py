"""Everything that is read from a fit, and its file."""

import json

import numpy as np
import pytest
import scipy.sparse as sp

from topicell.config import ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.evaluation.ranking import gene_scores
from topicell.model.fit import write_folder
from topicell.model.loading import load_fit
from topicell.model.registry import fit_model
from topicell.model.training import train


def test_estimates_are_proportions_with_names(fitted, planted):
    counts = planted[0]
    theta = fitted.cell_topics(counts)
    assert theta.shape == (500, 4)
    assert theta.index.tolist() == counts.cells.tolist()
    assert np.allclose(theta.sum(axis=1), 1, atol=1e-5)
    beta = fitted.gene_topics()
    assert beta.index.tolist() == counts.genes.tolist()
    assert beta.columns.tolist() == ["topic_0", "topic_1", "topic_2", "topic_3"]
    assert np.allclose(beta.sum(axis=0), 1, atol=1e-5)


def test_topics_are_ordered_by_mean_proportion_in_every_replicate(fitted):
    for theta_NK in fitted.theta():
        mean = theta_NK.mean(0)
        assert (np.diff(mean) <= 1e-3).all()


def test_the_selected_replicate_is_the_best_on_validation_cells(fitted):
    assert fitted.selected == np.argmax(fitted.elbo_by_replicate(fitted.held_out))
    assert fitted.cell_topics().equals(fitted.cell_topics(replicate=fitted.selected))
    with pytest.raises(InputError, match="replicates 0 to 2"):
        fitted.cell_topics(replicate=3)


def test_repeating_the_cells_changes_no_score_per_cell(fitted, planted):
    counts = planted[0]
    twice = counts[np.tile(np.arange(500), 2)]
    assert fitted.elbo(twice) == pytest.approx(fitted.elbo(counts), rel=1e-3)


def test_perplexity_is_between_one_and_uniform_and_better_than_no_topics(fitted, planted):
    counts = planted[0]
    folded, amortized = (fitted.perplexity(folded=folded) for folded in (True, False))
    assert 1 < folded < counts.n_genes
    assert folded == pytest.approx(amortized, rel=0.1)
    frequencies = np.asarray(counts.x.sum(0)).ravel() / counts.x.sum()
    held_out = fitted.held_out.x
    unigram = np.exp(-(held_out @ np.log(frequencies + 1e-12)).sum() / held_out.sum())
    assert folded < 0.9 * unigram


def test_zero_samples_are_refused(fitted):
    for estimate in (fitted.theta, fitted.beta, fitted.elbo, fitted.amortization_gap):
        with pytest.raises(InputError, match="n_samples = 0"):
            estimate(n_samples=0)


def test_ranked_genes_are_the_table_of_the_tutorial(fitted):
    table, beta = fitted.top_genes(5), fitted.gene_topics()
    assert table.columns.tolist()[:2] == ["topic_0", "topic_0_prop"]
    assert len(table) == 5
    for topic in fitted.topic_names:
        expected = beta[topic].sort_values(ascending=False)
        assert table[topic].tolist() == expected.index[:5].tolist()
        assert np.allclose(table[f"{topic}_prop"], expected.to_numpy()[:5])


def test_new_cells_are_matched_by_gene_name(fitted, planted):
    counts = planted[0]
    expected = fitted.transform(counts)
    order = np.random.default_rng(0).permutation(counts.n_genes)
    shuffled = Counts(counts.x[:, order], counts.cells, counts.genes[order])
    assert np.allclose(fitted.transform(shuffled), expected, atol=1e-6)
    fewer = Counts(counts.x[:, 10:], counts.cells, counts.genes[10:])
    with pytest.raises(InputError, match="10 of the model's 120 genes"):
        fitted.transform(fewer)
    with pytest.warns(UserWarning, match="10 of the model's 120 genes"):
        filled = fitted.transform(fewer, fill_missing=True)
    zeroed = counts.x.toarray()
    zeroed[:, :10] = 0
    zeroed = Counts(sp.csr_matrix(zeroed), counts.cells, counts.genes)
    assert np.allclose(filled, fitted.transform(zeroed), atol=1e-6)


def test_a_new_process_gives_the_same_numbers(fitted, planted, tmp_path, topicell):
    counts = planted[0]
    fitted.save(tmp_path / "model")
    np.savez(tmp_path / "x.npz", x=counts.x.toarray(), genes=counts.genes.astype(str))
    program = """
import numpy as np, scipy.sparse as sp, torch
torch.set_num_threads(1)
from topicell.counts import Counts
from topicell.model.loading import load_fit
from topicell.model.registry import fit_model
data = np.load("x.npz")
genes = data["genes"].astype(object)
counts = Counts(sp.csr_matrix(data["x"]), np.arange(len(data["x"])).astype(object), genes)
fit = load_fit("model")
np.savez("out.npz", theta=fit.theta(counts, seed=4), beta=fit.beta(seed=4), elbo=fit.elbo(counts))
"""
    done = topicell(program=program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = np.load(tmp_path / "out.npz")
    assert (out["theta"] == fitted.theta(counts, seed=4)).all()
    assert (out["beta"] == fitted.beta(seed=4)).all()
    assert out["elbo"] == fitted.elbo(counts)


def test_a_saved_model_holds_no_pickle_and_its_history(fitted, tmp_path):
    folder = fitted.save(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "weights.safetensors"]
    loaded = load_fit(folder)
    assert loaded.history == json.loads(json.dumps(fitted.history))
    assert loaded.model == fitted.model
    assert loaded.selected == fitted.selected
    with pytest.raises(InputError, match="holds no cells"):
        loaded.cell_topics()


def test_nothing_is_overwritten_unless_asked(fitted, tmp_path):
    folder = fitted.save(tmp_path / "model")
    before = (folder / "weights.safetensors").stat().st_ino
    with pytest.raises(InputError, match="exists"):
        fitted.save(folder)
    assert (folder / "weights.safetensors").stat().st_ino == before
    fitted.save(folder, overwrite=True)
    assert (folder / "weights.safetensors").stat().st_ino != before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_write_keeps_the_old_folder(tmp_path):
    def broken(folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("kept")
    with pytest.raises(OSError, match="disk full"):
        write_folder(tmp_path / "model", broken, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "old").read_text() == "kept"


@pytest.mark.parametrize("damage", ["missing", "garbage", "incomplete"])
def test_a_damaged_model_is_refused(fitted, tmp_path, damage):
    folder = fitted.save(tmp_path / "model")
    if damage == "missing":
        (folder / "weights.safetensors").unlink()
    elif damage == "garbage":
        (folder / "weights.safetensors").write_bytes(b"not weights")
    else:
        document = json.loads((folder / "model.json").read_text())
        (folder / "model.json").write_text(json.dumps(document | {"model": {"n_topics": 4}}))
    with pytest.raises(InputError, match=str(folder)):
        load_fit(folder)


def test_the_consensus_groups_topics_of_all_replicates(fitted, planted):
    agreed = fitted.consensus()
    assert agreed.support_C.sum() == fitted.n_replicates * fitted.n_topics
    # Four planted topics, found by every replicate.
    assert (agreed.support_C[:4] == fitted.n_replicates).all()
    alone = train(
        planted[0], None, ModelConfig(n_topics=4), TrainConfig(n_replicates=1, max_steps=1)
    )
    with pytest.raises(InputError, match="n_replicates"):
        alone.consensus()


@pytest.fixture
def own_copy(fitted, tmp_path):
    """Return a fit whose topics a test may renumber."""
    fit = load_fit(fitted.save(tmp_path / "copy"))
    fit.cells, fit.held_out = fitted.cells, fitted.held_out
    return fit


def test_aligning_undoes_a_permutation_in_every_replicate(fitted, own_copy):
    theta_RNK, beta_RKG = own_copy.theta(), own_copy.beta()
    own_copy._reorder(np.array([[2, 0, 3, 1], [1, 3, 0, 2], [3, 2, 1, 0]]))
    assert not np.allclose(own_copy.beta(), beta_RKG)
    correlation_K = own_copy.align_to(fitted)
    np.testing.assert_allclose(correlation_K, 1, atol=1e-6)
    chosen = fitted.selected
    np.testing.assert_array_equal(own_copy.theta()[chosen], theta_RNK[chosen])
    np.testing.assert_array_equal(own_copy.beta()[chosen], beta_RKG[chosen])
    # Other replicates have the numbers of the selected one too.
    for theta_NK in own_copy.theta():
        r = np.corrcoef(theta_NK.T, theta_RNK[chosen].T)[:4, 4:]
        assert r.argmax(1).tolist() == [0, 1, 2, 3]


def test_aligned_numbers_are_saved(own_copy, fitted, tmp_path):
    own_copy._reorder(np.tile([2, 0, 3, 1], (3, 1)))
    again = load_fit(own_copy.save(tmp_path / "again"))
    np.testing.assert_array_equal(again.beta(), own_copy.beta())


def test_topics_of_another_library_are_aligned(planted, fitted):
    counts = planted[0]
    own = fit_model(counts, None, ModelConfig(kind="sklearn_nmf", n_topics=5), TrainConfig())
    correlation_K = own.align_to(fitted, counts)
    assert (correlation_K[:4] > 0.9).sum() >= 3
    assert np.isnan(correlation_K[4])
    r = np.corrcoef(own.theta(counts)[own.selected].T, fitted.theta(counts)[fitted.selected].T)
    np.testing.assert_allclose(np.diag(r[:4, 5:]), correlation_K[:4], atol=1e-6)


def test_alignment_is_refused_with_fewer_topics_or_other_genes(fitted, planted):
    fewer = train(
        planted[0], None, ModelConfig(n_topics=3), TrainConfig(n_replicates=1, max_steps=1)
    )
    with pytest.raises(InputError, match=r"earlier fit has 4 topics.*n_topics=4 or more"):
        fewer.align_to(fitted)
    other = Counts(planted[0].x, planted[0].cells, np.array([f"other{i}" for i in range(120)]))
    unlike = train(other, None, ModelConfig(n_topics=4), TrainConfig(n_replicates=1, max_steps=1))
    with pytest.raises(InputError, match="120 of the 120 genes of the earlier fit"):
        unlike.align_to(fitted)


@pytest.mark.parametrize("by", ["lift", "relevance", "frex"])
def test_genes_are_ranked_by_other_scores(fitted, by):
    table = fitted.top_genes(8, by=by)
    scores = gene_scores(fitted.beta()[fitted.selected], by, fitted.gene_frequency_G)
    for k, row in enumerate(scores):
        assert table[f"topic_{k}_score"].tolist() == sorted(row, reverse=True)[:8]
        genes = fitted.genes[np.argsort(-row, kind="stable")[:8]]
        assert table[f"topic_{k}"].tolist() == genes.tolist()
    with pytest.raises(InputError, match="must be one of probability, lift"):
        fitted.top_genes(by="best")


@pytest.mark.parametrize(
    ("selection", "selected"),
    [([np.nan, -3.0, -2.0], 2), ([np.inf, -3.0, -2.0], 2), ([-np.inf, np.nan, -2.0], 2)],
)
def test_a_replicate_whose_elbo_is_not_finite_is_not_selected(
    fitted, monkeypatch, selection, selected
):
    monkeypatch.setattr(fitted, "selection_R", np.array(selection))
    assert fitted.selected == selected
