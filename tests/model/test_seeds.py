"""Prior knowledge of topics, and topics as deviations from a background."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch.distributions import Laplace, Normal

import topicell
from topicell.config import ModelConfig, TrainConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.evaluation.ranking import top_genes
from topicell.evaluation.stability import match_topics
from topicell.model.posterior import AmortizedFit
from topicell.model.priors import LaplacePrior
from topicell.model.registry import fit_model
from topicell.model.seeds import EarlierTopics, matched_first, read_seeds
from topicell.model.training import train

K, G = 4, 120
CONFIG = TrainConfig(n_replicates=2, epochs=12, progress=False)


@pytest.fixture(scope="module")
def parts(planted):
    counts = planted[0]
    return counts[:400], counts[400:]


def leading(beta_KG, n=8):
    """Return the genes of each topic with the highest lift, among those that are not rare."""
    frequency_G = beta_KG.mean(0)
    lift_KG = np.where(beta_KG > 0.004, beta_KG / frequency_G, 0)
    return [[f"gene_{g}" for g in genes] for genes in top_genes(lift_KG, n)]


@pytest.fixture
def sets(tmp_path, planted):
    """Write gene sets of two planted topics, the third and the first."""
    genes = leading(planted[2])
    path = tmp_path / "sets.gmt"
    path.write_text(
        "".join(
            f"{name}\t\t" + "\t".join(genes[k]) + "\n" for name, k in (("third", 2), ("first", 0))
        )
    )
    return str(path)


def settings(knowledge, **more):
    return ModelConfig(n_topics=K, n_hidden=16, topic_gene_prior=knowledge, **more)


@pytest.mark.parametrize("search", [True, False])
def test_gene_sets_seed_the_first_topics_and_the_others_are_free(search, parts, planted, sets):
    fit = train(*parts, settings(sets), replace(CONFIG, search=search))
    for beta_KG in fit.beta():
        matches = match_topics(beta_KG, planted[2])
        assert matches.permutation[:2].tolist() == [2, 0]
        assert matches.cosine.min() > 0.95
    table = fit.seeds()
    assert table["seed"].tolist() == ["third", "first"]
    assert table["genes"].tolist() == [8, 8]
    assert (table["highest_topic"] == table.index).all()
    assert table["correlation"].isna().all()
    assert (table["log2_lift"] > 1).all()
    free = train(*parts, ModelConfig(n_topics=K, n_hidden=16), CONFIG)
    assert fit.perplexity() == pytest.approx(free.perplexity(), rel=0.01)
    # The free topics are in the order of their mean proportion.
    size_K = fit.theta(parts[0])[fit.selected].mean(0)
    assert size_K[2] >= size_K[3]


def test_a_strong_prior_holds_a_seed_that_the_cells_do_not_support(parts, planted, tmp_path):
    genes = leading(planted[2], 3)
    mixed = [gene for of_topic in genes for gene in of_topic]
    path = tmp_path / "mixed.gmt"
    path.write_text("mixed\t\t" + "\t".join(mixed) + "\n")
    lifts = [
        train(*parts, settings(str(path), prior_scale=scale), CONFIG).seeds()["log2_lift"].iloc[0]
        for scale in (0.02, 0.3, 5.0)
    ]
    assert lifts[0] > lifts[1] > lifts[2]


def test_topics_of_an_earlier_fit_are_continued(parts, planted, tmp_path):
    earlier = train(*parts, ModelConfig(n_topics=3, n_hidden=16), CONFIG)
    path = tmp_path / "topics.csv"
    earlier.gene_topics().to_csv(path)
    correlations = []
    for scale in (0.05, 2.0):
        fit = train(*parts, settings(str(path), prior_scale=scale), CONFIG, seed=1)
        table = fit.seeds()
        assert table["seed"].tolist() == ["topic_0", "topic_1", "topic_2"]
        assert table["genes"].tolist() == [G] * 3
        correlations.append(table["correlation"].min())
        theta_NK = fit.theta(parts[1])[fit.selected]
        before_NK = earlier.theta(parts[1])[earlier.selected]
        together = np.corrcoef(theta_NK[:, :3].T, before_NK.T)[:3, 3:]
        assert (together.argmax(1) == np.arange(3)).all()
    assert correlations[0] > 0.995
    assert correlations[0] > correlations[1]
    # The same from the fit itself, whose genes are in another order.
    shuffled = np.random.default_rng(0).permutation(G)
    beta_JG = earlier.beta()[earlier.selected]
    topics = EarlierTopics(beta_JG[:, shuffled], earlier.genes[shuffled], None)
    by_run = train(*parts, settings("run=x", prior_scale=0.05), CONFIG, seed=1, prior=topics)
    np.testing.assert_allclose(by_run.seeds()["correlation"], 1, atol=0.01)


def test_prior_means_are_those_of_the_definition(parts, planted, sets, tmp_path):
    counts = parts[0]
    frequency_G = np.full(G, 1 / G)
    found = read_seeds(counts, settings(sets), frequency_G)
    inside = np.isin(counts.genes, leading(planted[2])[2])
    expected_G = np.log(frequency_G) + np.where(inside, np.log(10), 0)
    np.testing.assert_allclose(found.logit_JG[0], expected_G, rtol=1e-5)
    np.testing.assert_array_equal(found.known_JG[0], inside)
    table = pd.DataFrame({"a": planted[2][0, :100]}, index=counts.genes[:100])
    table.to_csv(tmp_path / "some.tsv", sep="\t")
    found = read_seeds(counts, settings(str(tmp_path / "some.tsv")), frequency_G)
    assert not found.of_sets
    p_G = planted[2][0, :100] / planted[2][0, :100].sum() * 100 / G
    np.testing.assert_allclose(
        found.logit_JG[0, :100], np.log(np.maximum(p_G, 0.01 / G)), rtol=1e-4
    )
    np.testing.assert_allclose(found.logit_JG[0, 100:], np.log(1 / G), rtol=1e-5)
    assert read_seeds(counts, settings(0.3), frequency_G) is None


def test_each_seed_gets_the_cluster_with_its_genes(planted, parts, sets):
    frequency_G = planted[2].mean(0) + 1e-6
    seeds = read_seeds(parts[0], settings(sets), frequency_G)
    profiles_KG = planted[2] + 1e-6
    logit_KG = matched_first(profiles_KG[[3, 0, 2, 1]], seeds, frequency_G)
    np.testing.assert_allclose(logit_KG[2:], np.log(profiles_KG)[[3, 1]])
    np.testing.assert_allclose(
        logit_KG[0], (seeds.logit_JG[0] + np.log(profiles_KG[2])) / 2, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("".join(f"s{i}\t\tgene_{i}\tgene_{i + 1}\n" for i in range(5)), "x.gmt",
         "has 5 sets for 4 topics; use model.n_topics=5 or more"),
        ("a\t\tother\tgenes\n", "x.gmt",
         r"1 of 1 sets have fewer than 2 of the 120 modelled genes \(a \(0\)\)"),
        ("a\n", "x.gmt", "line 1 has no tab"),
        ("gene,a\ngene_0,0.5\n", "x.csv", "has 1 of the 120 modelled genes; it needs half"),
        ("gene,a\ngene_0,x\n", "x.csv", "cannot be read as a table of numbers"),
        ("gene\ngene_0\n", "x.csv", "has no columns of topics"),
        ("gene,a\ngene_0,1\ngene_0,1\n", "x.csv", "gene 'gene_0' is there twice"),
        ("gene,a\ngene_0,-1\n", "x.csv", "must be finite and not negative"),
        (None, "none.csv", "there is no such file"),
        (None, "none.gmt", "there is no such file"),
    ],
)  # fmt: skip
def test_bad_prior_knowledge_is_refused(text, name, message, parts, tmp_path):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"model.topic_gene_prior = .*{message}"):
        train(*parts, settings(str(path)), CONFIG)


def test_runs_are_only_read_by_the_command_and_libraries_have_no_prior_knowledge(parts):
    with pytest.raises(InputError, match="only topicell train reads runs"):
        train(*parts, settings("run=abc"), CONFIG)
    with pytest.raises(InputError, match="prior knowledge needs"):
        fit_model(*parts, ModelConfig(kind="sklearn_nmf", topic_gene_prior="x.gmt"), TrainConfig())
    with pytest.raises(InputError, match="topic_gene_prior = ' ': is empty"):
        settings(" ")


def test_sets_with_too_few_genes_are_left_out_with_a_warning(parts, planted, sets):
    with Path(sets).open("a") as file:
        file.write("strange\t\tA\tB\tgene_0\n")
    with pytest.warns(UserWarning, match=r"1 of 3 sets have fewer than 2 .*\(strange \(1\)\)"):
        seeds = read_seeds(parts[0], settings(sets), np.full(G, 1 / G))
    assert seeds.names == ("third", "first")


@pytest.mark.usefixtures("double_precision")
def test_the_divergence_from_a_laplace_prior_is_an_integral():
    prior = LaplacePrior(torch.randn(3), torch.rand(3) + 0.2)
    mean, scale = torch.randn(2, 3), torch.rand(2, 3) + 0.1
    grid = torch.linspace(-30, 30, 400_001).unsqueeze(-1).unsqueeze(-1)
    q, p = Normal(mean, scale), Laplace(prior.mean, prior.scale)
    integrand = q.log_prob(grid).exp() * (q.log_prob(grid) - p.log_prob(grid))
    expected = integrand.sum(0).sum(-1) * 60 / 400_000
    torch.testing.assert_close(prior.kl(mean, scale), expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def sparse_topics():
    """Draw topics that deviate from a background in ten genes each."""
    generator = np.random.default_rng(3)
    background_G = generator.dirichlet(np.full(200, 0.8))
    logit_KG = np.tile(np.log(background_G + 1e-5), (K, 1))
    own = np.sort(generator.permutation(np.argsort(-background_G)[:100])[: 10 * K].reshape(K, 10))
    for k in range(K):
        logit_KG[k, own[k]] += 1.5
    beta_KG = np.exp(logit_KG)
    beta_KG /= beta_KG.sum(1, keepdims=True)
    theta_NK = generator.dirichlet(np.full(K, 0.2), 700)
    x_NG = np.stack([generator.multinomial(500, p / p.sum()) for p in theta_NK @ beta_KG])
    cells, genes = (
        np.array([f"{name}_{i}" for i in range(n)], dtype=object)
        for name, n in (("cell", 700), ("gene", 200))
    )
    return Counts(sp.csr_matrix(x_NG.astype(np.float32)), cells, genes), beta_KG, own


def test_planted_deviations_lead_the_topics(sparse_topics, tmp_path):
    counts, beta_KG, own = sparse_topics
    model = ModelConfig(n_topics=K, n_hidden=16, background=True)
    fit = train(counts[:600], counts[600:], model, CONFIG)
    partner = match_topics(fit.beta()[fit.selected], beta_KG).permutation
    above_KG = fit.deviations()
    found = top_genes(above_KG, 10)
    shared = [len(set(found[k]) & set(own[partner[k]])) for k in range(K)]
    assert min(shared) >= 9
    # Few other genes are certainly above the background.
    others = np.ones_like(above_KG, dtype=bool)
    for k in range(K):
        others[k, own[partner[k]]] = False
    assert (above_KG[others] > 0).mean() < 0.05
    assert (above_KG[~others] > 0).mean() > 0.95
    table = fit.top_genes(5)
    assert table.equals(fit.top_genes(5, by="deviation"))
    assert table["topic_0"].tolist() == counts.genes[found[0, :5]].tolist()
    assert not table.equals(fit.top_genes(5, by="probability"))
    plain = train(counts[:600], counts[600:], ModelConfig(n_topics=K, n_hidden=16), CONFIG)
    assert fit.perplexity() < 1.005 * plain.perplexity()
    with pytest.raises(InputError, match="has no background"):
        plain.top_genes(by="deviation")
    fit.save(tmp_path / "model")
    loaded = topicell.load(tmp_path / "model")
    assert isinstance(loaded, AmortizedFit)
    np.testing.assert_array_equal(loaded.deviations(), above_KG)


def test_smaller_scales_leave_fewer_deviations(sparse_topics):
    counts = sparse_topics[0]
    sizes = []
    for scale in (0.1, 0.5, 2.0):
        model = ModelConfig(n_topics=K, n_hidden=16, background=True, background_scale=scale)
        fit = train(counts, None, model, replace(CONFIG, n_replicates=1))
        mean_KG = fit.program.topic_posterior()[0][0].detach().numpy()
        far_KG = mean_KG - fit.program.constants.background_G
        sizes.append(np.abs(far_KG - np.median(far_KG, axis=1, keepdims=True)).mean())
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("kind", ["amortized_lda", "prodlda"])
def test_all_parts_of_the_model_work_together(kind, parts, planted, sets, tmp_path):
    """Batches, covariates, correlations, seeds and background, in one fit, saved and loaded."""
    generator = np.random.default_rng(0)

    def known(counts):
        n = counts.n_cells
        return replace(
            counts,
            batch=generator.choice(["a", "b"], n).astype(object),
            design=generator.normal(0, 1, (n, 1)).astype(np.float32),
            covariates=("x",),
        )

    cells = tuple(map(known, parts))
    model = settings(
        sets, kind=kind, batch_key="lab", prevalence="x", prior="correlated", background=True
    )
    fit = fit_model(*cells, model, replace(CONFIG, epochs=3))
    fit.save(tmp_path / "model")
    loaded = topicell.load(tmp_path / "model")
    few = cells[1][:30]
    for refine in (False, True):
        theta_RNK = fit.theta(few, refine=refine)
        np.testing.assert_allclose(theta_RNK.sum(-1), 1, rtol=1e-4)
        np.testing.assert_array_equal(loaded.theta(few, refine=refine), theta_RNK)
    assert loaded.elbo(few) == fit.elbo(few)
    assert loaded.seeds().equals(fit.seeds())
    assert np.isfinite(fit.perplexity())
    assert np.isfinite(fit.elbo_given_topics(few)).all()
    start = train(*cells, model, replace(CONFIG, epochs=1), likelihood=fit.likelihood, start=fit)
    assert start.batches == fit.batches
