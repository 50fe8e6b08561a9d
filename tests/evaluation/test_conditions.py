"""The test of conditions: as statsmodels and all permutations have it, and a planted effect."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols, wls
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests

from topicell.errors import InputError
from topicell.evaluation import conditions
from topicell.evaluation.conditions import (
    Conditions,
    arrangements,
    compare_conditions,
    design_of,
    log_ratios,
    permutation_p,
    weights,
)

N_TOPICS = 5


def study(levels, n_cells=200, effect=0.0, seed=0, sd=0.4):
    """Return proportions and obs of one sample for each level; topic 1 differs in the last level.

    Cells of the samples are mixed, and ages differ.
    """
    rng = np.random.default_rng(seed)
    logit_SK = sd * rng.normal(size=(len(levels), N_TOPICS))
    logit_SK[:, 1] += effect * np.log(2) * (np.array(levels) == max(levels))
    size_S = np.broadcast_to(n_cells, len(levels))
    share_SK = np.exp(logit_SK) / np.exp(logit_SK).sum(axis=1, keepdims=True)
    theta_NK = np.concatenate(
        [rng.dirichlet(10 * share_K, n) for share_K, n in zip(share_SK, size_S, strict=True)]
    )
    sample_N = np.repeat(np.arange(len(levels)), size_S)
    obs = pd.DataFrame(
        {
            "sample": [f"s{sample}" for sample in sample_N],
            "condition": np.array(levels)[sample_N],
            "age": rng.uniform(20, 80, len(levels))[sample_N],
        }
    )
    order = rng.permutation(len(obs))
    return theta_NK[order], obs.iloc[order].reset_index(drop=True)


@pytest.fixture
def three_levels():
    return study(list("aabbccabc"), n_cells=np.arange(30, 300, 30))


@pytest.mark.parametrize("formula", ["condition", "condition + age", "condition * age"])
def test_effects_intervals_and_tests_are_those_of_statsmodels(three_levels, formula):
    theta_NK, obs = three_levels
    found = compare_conditions(theta_NK, obs, formula, "sample")
    design = design_of(formula, found.samples)
    weight_SK = weights(found.ratios.y_SK, found.ratios.error_SK, design.x_SP)
    assert (weight_SK.max(axis=0) > 1.01 * weight_SK.min(axis=0)).any()
    for topic in range(N_TOPICS):
        data = found.samples.assign(y=found.ratios.y_SK[:, topic])
        fit = wls(f"y ~ {formula}", data, weights=weight_SK[:, topic]).fit()
        of_topic = found.table[found.table["topic"] == f"topic_{topic}"]
        np.testing.assert_allclose(of_topic["effect"], fit.params.iloc[1:])
        np.testing.assert_allclose(of_topic[["low", "high"]], fit.conf_int().iloc[1:], rtol=1e-6)
        expected = anova_lm(fit, typ=2).iloc[:-1]
        terms = of_topic.drop_duplicates("term").set_index("term")
        np.testing.assert_allclose(terms["statistic"], expected.loc[terms.index, "F"], rtol=1e-6)
        np.testing.assert_allclose(terms["p"], expected.loc[terms.index, "PR(>F)"], rtol=1e-6)
        assert (terms["df"] == expected.loc[terms.index, "df"]).all()
        assert (terms["df_residual"] == fit.df_resid).all()
    for term, of_term in found.table.groupby("term"):
        once = of_term.drop_duplicates("topic")
        expected_K = multipletests(once["p"], method="fdr_bh")[1]
        np.testing.assert_allclose(once["q"], expected_K, err_msg=term)


def test_samples_without_errors_have_equal_weights(three_levels):
    """Then the test is that of ordinary least squares."""
    theta_NK, obs = three_levels
    found = compare_conditions(theta_NK, obs, "condition", "sample")
    y_SK = found.ratios.y_SK
    table, _ = conditions.regress(y_SK, np.zeros_like(y_SK), design_of("condition", found.samples))
    for topic in range(N_TOPICS):
        fit = ols("y ~ condition", found.samples.assign(y=y_SK[:, topic])).fit()
        of_topic = table[table["topic"] == f"topic_{topic}"]
        np.testing.assert_allclose(of_topic["p"], fit.f_pvalue)


def test_samples_with_fewer_cells_have_less_weight():
    theta_NK, obs = study(list("aaabbb"), n_cells=[20, 200, 2000, 20, 200, 2000], sd=0.05)
    found = compare_conditions(theta_NK, obs, "condition", "sample")
    x_SP = design_of("condition", found.samples).x_SP
    weight_SK = weights(found.ratios.y_SK, found.ratios.error_SK, x_SP)
    for few, middle, many in ((0, 1, 2), (3, 4, 5)):
        assert (weight_SK[few] < weight_SK[middle]).all()
        assert (weight_SK[middle] < weight_SK[many]).all()


@pytest.mark.parametrize(("levels", "n_distinct"), [("aaabbb", 20), ("aabbb", 10), ("abcabc", 90)])
def test_permutation_p_is_that_of_all_permutations(levels, n_distinct):
    theta_NK, obs = study(list(levels))
    found = compare_conditions(theta_NK, obs, "condition", "sample")
    y_SK, level_S = found.ratios.y_SK, found.samples["condition"].to_numpy()

    def f_of(order):
        level = level_S[list(order)]
        data = [pd.DataFrame({"y": y_S, "level": level}) for y_S in y_SK.T]
        return np.array([ols("y ~ level", of_topic).fit().fvalue for of_topic in data])

    observed = f_of(range(len(levels)))
    distinct = {tuple(level_S[list(o)]): o for o in itertools.permutations(range(len(levels)))}
    assert len(distinct) == n_distinct
    larger = [f_of(order) >= observed * (1 - 1e-9) for order in distinct.values()]
    expected = np.mean(larger, axis=0)
    once = found.table.drop_duplicates("topic")
    np.testing.assert_allclose(once["p_permutation"], expected)
    # Groups of the same size can be exchanged, which changes no F.
    sizes = np.unique(list(levels), return_counts=True)[1].tolist()
    equal = sum(list(order) == sizes for order in itertools.permutations(sizes))
    assert found.smallest_p["condition"] == pytest.approx(equal / n_distinct)


def test_a_covariate_is_removed_before_permutation():
    """Freedman & Lane: the residuals of the model without the term are permuted."""
    theta_NK, obs = study(list("aaabbb"))
    found = compare_conditions(theta_NK, obs, "condition + age", "sample")
    design = design_of("condition + age", found.samples)
    table = found.samples
    topic = 3
    data = table.assign(y=found.ratios.y_SK[:, topic])
    reduced = ols("y ~ age", data).fit()

    def t_of(y_S):
        return abs(ols("y ~ condition + age", table.assign(y=y_S)).fit().tvalues.iloc[1])

    orders = list(itertools.permutations(range(6)))[::9]
    residual_S, fitted_S = reduced.resid.to_numpy(), reduced.fittedvalues.to_numpy()
    t = t_of(data["y"])
    expected = np.mean([t_of(fitted_S + residual_S[list(o)]) >= t - 1e-9 for o in orders])
    # A row of the design moves to where its residual comes from.
    inverse = np.argsort(orders, axis=1)
    p_K, _ = permutation_p(found.ratios.y_SK, design, "condition", inverse, is_complete=True)
    assert p_K[topic] == pytest.approx(expected)


def test_many_arrangements_are_drawn_by_the_seed():
    x_SP = np.column_stack([np.ones(20), np.arange(20) % 2])
    few, is_complete = arrangements(x_SP[:8], 0)
    assert is_complete
    assert len(few) == 70
    many, is_complete = arrangements(x_SP, 0)
    assert not is_complete
    assert many.shape == (9999, 20)
    assert (np.sort(many, axis=1) == np.arange(20)).all()
    assert (many == arrangements(x_SP, 0)[0]).all()
    assert (many != arrangements(x_SP, 1)[0]).any()


def test_a_planted_effect_is_found_with_sign_and_size():
    theta_NK, obs = study(list("ab" * 10), n_cells=300, effect=-2.0)
    table = compare_conditions(theta_NK, obs, "condition + age", "sample").table
    of_condition = table[table["term"] == "condition"].set_index("topic")
    # The average topic falls by a fifth of the effect.
    expected = np.where(np.arange(N_TOPICS) == 1, -2.0 * 4 / 5, 2.0 / 5)
    assert of_condition["effect"].to_numpy() == pytest.approx(expected, abs=0.5)
    planted = of_condition.loc["topic_1"]
    assert planted["low"] < -1.6 < planted["high"] < 0
    assert planted["q"] < 1e-4
    assert planted["p_permutation"] == 1e-4
    assert (of_condition["level"] == "b").all()


def test_the_effect_of_a_number_is_for_one_unit():
    theta_NK, obs = study(list("ab" * 8), n_cells=300)
    obs["dose"] = obs["sample"].str.removeprefix("s").astype(int)
    theta_NK = theta_NK.copy()
    theta_NK[:, 2] *= 2.0 ** (0.5 * obs["dose"].to_numpy())
    theta_NK /= theta_NK.sum(axis=1, keepdims=True)
    table = compare_conditions(theta_NK, obs, "dose", "sample").table.set_index("topic")
    difference = table.loc["topic_2", "effect"] - table.drop("topic_2")["effect"].mean()
    assert difference == pytest.approx(0.5, abs=0.1)
    assert (table["level"] == "").all()


def test_the_order_of_cells_and_the_names_of_samples_and_levels_change_nothing(three_levels):
    theta_NK, obs = three_levels
    before = compare_conditions(theta_NK, obs, "condition + age", "sample").table
    order = np.random.default_rng(1).permutation(len(obs))
    after = compare_conditions(theta_NK[order], obs.iloc[order], "condition + age", "sample").table
    pd.testing.assert_frame_equal(before, after)
    other = obs.assign(
        sample=obs["sample"].map(lambda name: f"{9 - int(name[1:])}"),
        condition=pd.Categorical(obs["condition"].map({"a": "z", "b": "x", "c": "y"})),
    )
    renamed = compare_conditions(theta_NK, other, "condition + age", "sample").table
    keys = ["statistic", "p", "q"]
    a, b = (t.drop_duplicates(["topic", "term"])[keys].to_numpy() for t in (before, renamed))
    np.testing.assert_allclose(a, b)
    # The random permutations are others.
    a, b = (t["p_permutation"].to_numpy() for t in (before, renamed))
    np.testing.assert_allclose(np.sort(a), np.sort(b), atol=0.03)


def test_the_order_of_categories_sets_the_reference(three_levels):
    theta_NK, obs = three_levels
    obs["condition"] = pd.Categorical(obs["condition"], ["c", "b", "a", "unused"])
    found = compare_conditions(theta_NK, obs, "condition", "sample")
    assert found.table["level"].unique().tolist() == ["b", "a"]
    assert list(found.of_term("condition").levels) == ["c", "b", "a"]


def test_log_ratios_of_means():
    theta_NK = np.array([[0.5, 0.5], [0.5, 0.5], [0.8, 0.2], [0.8, 0.2], [0.1, 0.9]])
    found = log_ratios(theta_NK, np.array([0, 0, 1, 1, -1]))
    np.testing.assert_allclose(found.mean_SK, [[0.5, 0.5], [0.8, 0.2]])
    np.testing.assert_allclose(found.y_SK, [[0, 0], [1, -1]])
    np.testing.assert_allclose(found.error_SK, 0, atol=1e-12)


def test_error_and_bias_are_those_of_draws():
    """The mean of 40 cells: the standard deviation of its log-ratio, and no bias."""
    rng = np.random.default_rng(0)
    alpha_K = np.array([2.0, 1.0, 0.3])
    draws = [log_ratios(rng.dirichlet(alpha_K, 40), np.zeros(40, int)) for _ in range(2000)]
    y_DK = np.concatenate([draw.y_SK for draw in draws])
    error_DK = np.concatenate([draw.error_SK for draw in draws])
    np.testing.assert_allclose(error_DK.mean(axis=0), y_DK.var(axis=0), rtol=0.15)
    log_K = np.log2(alpha_K / alpha_K.sum())
    np.testing.assert_allclose(y_DK.mean(axis=0), log_K - log_K.mean(), atol=0.02)


def test_a_topic_that_is_absent_from_samples_is_finite():
    theta_NK, obs = study(list("aaabbb"))
    theta_NK = np.column_stack([theta_NK, np.zeros(len(theta_NK))])
    table = compare_conditions(theta_NK, obs, "condition", "sample").table
    assert np.isfinite(table.select_dtypes("number").to_numpy()).all()


def test_topics_without_any_variation_have_p_1():
    obs = study(list("aaabbb"))[1]
    table = compare_conditions(np.full((len(obs), 4), 0.25), obs, "condition", "sample").table
    assert (table["p"] == 1).all()
    assert (table["p_permutation"] == 1).all()
    assert table["effect"].to_numpy() == pytest.approx(0)


def test_samples_with_few_cells_are_left_out():
    theta_NK, obs = study(list("aaabbbb"), n_cells=[30, 30, 30, 30, 30, 30, 19])
    found = compare_conditions(theta_NK, obs, "condition", "sample")
    assert found.left_out == {"s6": 19}
    assert found.samples.index.tolist() == [f"s{i}" for i in range(6)]
    kept = (obs["sample"] != "s6").to_numpy()
    alone = compare_conditions(theta_NK[kept], obs[kept], "condition", "sample")
    pd.testing.assert_frame_equal(found.table, alone.table)
    with pytest.warns(UserWarning, match=r"1 of 7 samples have fewer than 20 cells .*s6 \(19\)"):
        conditions.warn_of_small_samples(found.left_out, 6, 20)


def test_what_is_stored_is_restored(three_levels, tmp_path):
    from anndata import AnnData, read_h5ad

    theta_NK, obs = three_levels
    found = compare_conditions(theta_NK, obs, "condition + age", "sample")
    path = tmp_path / "adata.h5ad"
    cells = AnnData(np.zeros((2, 1)), obs=pd.DataFrame(index=["a", "b"]))
    cells.var_names, cells.uns["it"] = ["gene"], found.stored()
    cells.write_h5ad(path)
    again = Conditions.restored(read_h5ad(path).uns["it"])
    assert again.table.to_csv() == found.table.to_csv()
    assert again.smallest_p == found.smallest_p
    for term in ("condition", "age"):
        assert list(again.of_term(term).levels) == list(found.of_term(term).levels)
        np.testing.assert_array_equal(again.of_term(term).value_SK, found.of_term(term).value_SK)


def test_figures_show_values_without_the_other_terms(three_levels):
    theta_NK, obs = three_levels
    found = compare_conditions(theta_NK, obs, "condition * age", "sample")
    assert found.drawable() == ["condition", "age"]
    found = compare_conditions(theta_NK, obs, "condition", "sample")
    of_term = found.of_term("condition")
    np.testing.assert_allclose(of_term.value_SK, found.ratios.y_SK)
    assert of_term.position_S.tolist() == ["abc".index(c) for c in found.samples["condition"]]
    found = compare_conditions(theta_NK, obs, "age + condition", "sample")
    of_term = found.of_term("age")
    assert of_term.levels == []
    np.testing.assert_allclose(of_term.position_S, found.samples["age"])


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("condition +", "is not a formula"),
        ("y ~ condition", "is not a formula"),
        ("(1 | condition)", "is not a formula"),
        ("1", "has no term"),
        ("0 + condition", "has no intercept"),
        ("nothing", "obs has no column 'nothing'"),
        ("__import__('os').getcwd()", "is not a formula"),
        ("eval('1')", "no function of one"),
        ("{age + 1}", "no function of one"),
        ("exp(age)", "functions: C, center"),
        ("cell", r"several values in sample 's0' \("),
        ("missing", "cells have no value in obs\\['missing'\\]"),
        ("same", "has the same value"),
        ("condition + twin", "determine each other"),
        ("C(age)", "9 samples with enough cells are too few for the 9 coefficients"),
        ("condition + log(zero)", "not finite"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_refused_formulas(three_levels, formula, message):
    theta_NK, obs = three_levels
    obs["cell"] = range(len(obs))
    obs["missing"] = obs["age"].where(obs["sample"] != "s3")
    obs["same"] = "one"
    obs["twin"] = obs["condition"].str.upper()
    obs["zero"] = (obs["condition"] == "a").astype(float)
    with pytest.raises(InputError, match=message):
        compare_conditions(theta_NK, obs, formula, "sample")


def test_refused_samples(three_levels):
    theta_NK, obs = three_levels
    with pytest.raises(InputError, match="obs has no column 'donor'"):
        compare_conditions(theta_NK, obs, "condition", "donor")
    obs["donor"] = obs["sample"].where(obs["sample"] != "s3")
    with pytest.raises(InputError, match="cells have no sample"):
        compare_conditions(theta_NK, obs, "condition", "donor")
    with pytest.raises(InputError, match="no value in all 0 samples"):
        compare_conditions(theta_NK, obs, "condition", "sample", min_cells=10_000)


@pytest.mark.parametrize(
    "formula", ["`the age`", "log(`the age`)", "scale(age)", "ill", "C(code)", "condition + ill"]
)
def test_accepted_formulas(three_levels, formula):
    theta_NK, obs = three_levels
    obs["the age"] = obs["age"]
    obs["ill"] = obs["sample"].isin(["s0", "s3", "s4"])
    obs["code"] = obs["condition"].map({"a": 1, "b": 2, "c": 3}).astype("Int64")
    table = compare_conditions(theta_NK, obs, formula, "sample").table
    assert np.isfinite(table["p"]).all()
    if formula == "ill":
        assert (table["level"] == "True").all()
