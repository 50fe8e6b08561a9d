"""Rates and errors against an optimiser, loops and closed forms; tests on simulated truth."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import minimize
from scipy.stats import norm

from topicell.evaluation import differential
from topicell.evaluation.differential import differential_expression

FIELDS = ("rate_KG", "lfc_KG", "se_KG", "nearest_KG", "p_KG", "q_KG")


def simulate(
    seed,
    n_cells=400,
    n_genes=200,
    n_topics=3,
    concentration=0.3,
    depth=500,
    share_null=0.5,
    spread=1.0,
    dispersion=0.0,
):
    """Return counts of genes, some without a difference; the last gene fills the libraries."""
    rng = np.random.default_rng(seed)
    theta_NK = rng.dirichlet(np.full(n_topics, concentration), n_cells)
    is_null_G = rng.random(n_genes) < share_null
    log_KG = spread * rng.standard_normal((n_topics, n_genes)) * ~is_null_G
    rate_KG = np.exp(log_KG + rng.uniform(-4, 0, n_genes))
    rate_KG /= 1.2 * rate_KG.sum(1).max()
    rate_KG = np.hstack([rate_KG, 1 - rate_KG.sum(1, keepdims=True)])
    mean_NG = rng.lognormal(np.log(depth), 0.4, (n_cells, 1)) * (theta_NK @ rate_KG)
    if dispersion:
        # The last gene stays: its variance would be that of the libraries.
        mean_NG[:, :-1] *= rng.gamma(1 / dispersion, dispersion, (n_cells, n_genes))
    return SimpleNamespace(
        x_NG=sp.csr_matrix(rng.poisson(mean_NG)),
        theta_NK=theta_NK,
        rate_KG=rate_KG,
        is_null_G=np.append(is_null_G, False),
    )


def pure(seed=0, n_cells=60, n_genes=20, n_topics=3):
    """Return counts of cells of one topic each, and the topic of each cell."""
    rng = np.random.default_rng(seed)
    topic_N = np.arange(n_cells) % n_topics
    rate_KG = rng.gamma(1, 1, (n_topics, n_genes))
    return rng.poisson(rate_KG[topic_N] * rng.uniform(0.2, 4, (n_cells, 1))), topic_N


def assert_equal(a, b, **tolerance):
    for name in FIELDS:
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), err_msg=name, **tolerance)


def truth_of(data, found):
    """Return the true log2 fold change between the topics that an estimate compares."""
    log_KG = np.log2(data.rate_KG)
    return log_KG - np.take_along_axis(log_KG, found.nearest_KG, 0)


class TestRates:
    @pytest.mark.parametrize("pseudo_count", [0.5, 0.01])
    @pytest.mark.parametrize("concentration", [0.1, 3.0])
    def test_maximise_the_likelihood_with_pseudo_cells(self, concentration, pseudo_count):
        data = simulate(1, n_cells=150, n_genes=12, n_topics=4, concentration=concentration)
        found = differential_expression(data.x_NG, data.theta_NK, pseudo_count=pseudo_count)
        x_NG = data.x_NG.toarray()
        library_N = x_NG.sum(1)
        for g in range(12):
            # Pseudo-cells are ordinary cells here.
            overall = x_NG[:, g].sum() / library_N.sum()
            x = np.append(x_NG[:, g], np.full(4, pseudo_count))
            loading = np.vstack(
                [library_N[:, None] * data.theta_NK, np.eye(4) * pseudo_count / overall]
            )

            def loss(log_rate, x=x, loading=loading):
                mean = loading @ np.exp(log_rate)
                slope = (loading * np.exp(log_rate)).T @ (1 - x / mean)
                return (mean - x * np.log(mean)).sum(), slope

            start = np.full(4, np.log(overall))
            best = minimize(
                loss, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000}
            )
            slope = loss(np.log(found.rate_KG[:, g]))[1]
            # BFGS may stop at the rounding of the loss: its slope is checked too.
            assert np.abs(best.jac).max() < 1e-3
            assert np.abs(slope).max() < 1e-6
            np.testing.assert_allclose(np.log(found.rate_KG[:, g]), best.x, atol=1e-5)

    def test_of_cells_of_one_topic_are_counts_per_library(self):
        x_NG, topic_N = pure()
        pseudo_count = 0.5
        found = differential_expression(x_NG, np.eye(3)[topic_N], pseudo_count=pseudo_count)
        library_N = x_NG.sum(1)
        overall_G = x_NG.sum(0) / library_N.sum()
        for k in range(3):
            counts_G = x_NG[topic_N == k].sum(0) + pseudo_count
            library_G = library_N[topic_N == k].sum() + pseudo_count / overall_G
            np.testing.assert_allclose(found.rate_KG[k], counts_G / library_G, rtol=1e-10)

    def test_of_equally_common_genes_are_equal(self):
        x_NG = np.outer([1, 2, 4, 3], [10, 30, 60])
        theta_NK = np.array([[1, 0], [0.5, 0.5], [0, 1], [0.2, 0.8]])
        found = differential_expression(x_NG, theta_NK, pseudo_count=5)
        np.testing.assert_allclose(found.rate_KG, [[0.1, 0.3, 0.6]] * 2, rtol=1e-10)
        np.testing.assert_allclose(found.lfc_KG, 0, atol=1e-9)
        np.testing.assert_allclose(found.p_KG, 1, atol=1e-9)

    def test_are_found_for_topics_that_hardly_differ(self):
        """Rates are not identified and there is an outlier: full Newton steps fail."""
        rng = np.random.default_rng(0)
        theta_NK = rng.dirichlet(np.full(8, 1e5), 300)
        theta_NK[0] = np.eye(8)[0]
        x_NG = rng.poisson(rng.lognormal(3, 2, (300, 30)))
        x_NG[1, :5] = 10**6
        found = differential_expression(x_NG, theta_NK, min_cells=0, pseudo_count=1e-3)
        library_N = x_NG.sum(1)
        ratio_NG = x_NG / (library_N[:, None] * (theta_NK @ found.rate_KG))
        exposure_KG = (library_N @ theta_NK)[:, None] + 1e-3 * library_N.sum() / x_NG.sum(0)
        slope_KG = (library_N[:, None] * theta_NK).T @ ratio_NG - exposure_KG
        np.testing.assert_allclose(slope_KG * found.rate_KG + 1e-3, 0, atol=1e-4)


class TestStandardErrors:
    @pytest.mark.parametrize("robust", [True, False])
    def test_equal_loops_over_cells(self, robust):
        data = simulate(2, n_cells=80, n_genes=5, n_topics=3, dispersion=1)
        found = differential_expression(data.x_NG, data.theta_NK, robust=robust)
        x_NG = data.x_NG.toarray()
        library_N = x_NG.sum(1)
        for g in range(6):
            f = found.rate_KG[:, g]
            information, scores = 0.5 * np.eye(3), 0.5 * np.eye(3)
            for c in range(80):
                loading = library_N[c] * data.theta_NK[c] * f
                mean = loading.sum()
                information += x_NG[c, g] / mean**2 * np.outer(loading, loading)
                score = (x_NG[c, g] / mean - 1) * loading
                scores += np.outer(score, score)
            covariances = [np.linalg.inv(information)]
            if robust:
                covariances.append(covariances[0] @ scores @ covariances[0])
            for k in range(3):
                others = [j for j in range(3) if j != k]
                lfc = {j: np.log2(f[k] / f[j]) for j in others}
                nearest = min(others, key=lambda j: abs(lfc[j]))
                contrast = np.eye(3)[k] - np.eye(3)[nearest]
                se = np.sqrt(max(contrast @ c @ contrast for c in covariances)) / np.log(2)
                z = []
                for j in others:
                    slope = (np.eye(3)[k] - np.eye(3)[j]) * np.cbrt(f) / 3
                    error = np.sqrt(max(slope @ c @ slope for c in covariances))
                    z.append((np.cbrt(f[k]) - np.cbrt(f[j])) / error)
                higher, lower = max(norm.sf(z)), max(norm.cdf(z))
                assert found.nearest_KG[k, g] == nearest
                assert found.lfc_KG[k, g] == pytest.approx(lfc[nearest], rel=1e-9)
                assert found.se_KG[k, g] == pytest.approx(se, rel=1e-9)
                p = min(1, 2 * min(higher, lower))
                assert found.p_KG[k, g] == pytest.approx(p, rel=1e-7)

    def test_robust_errors_of_a_single_cell_are_not_zero(self):
        x_NG = np.array([[50, 50], [20, 80], [22, 78], [18, 82]])
        theta_NK = np.eye(2)[[0, 1, 1, 1]]
        robust = differential_expression(x_NG, theta_NK)
        model = differential_expression(x_NG, theta_NK, robust=False)
        assert (robust.se_KG >= model.se_KG).all()

    @pytest.mark.parametrize(
        ("dispersion", "robust"), [(0, True), (0, False), (1, True), (1, False)]
    )
    def test_intervals_cover_the_truth(self, dispersion, robust):
        data = simulate(3, n_cells=1000, n_genes=1000, n_topics=2, dispersion=dispersion)
        found = differential_expression(data.x_NG, data.theta_NK, robust=robust)
        seen_G = np.asarray(data.x_NG.sum(0)).ravel() >= 100
        error_G = (found.lfc_KG - truth_of(data, found))[0, seen_G]
        covered = (np.abs(error_G) < 1.96 * found.se_KG[0, seen_G]).mean()
        assert seen_G.sum() > 500
        if dispersion and not robust:
            assert covered < 0.9
        else:
            assert 0.93 < covered < 0.97

    def test_intervals_cover_the_truth_of_mixed_cells_of_many_topics(self):
        data = simulate(4, n_cells=1500, n_genes=400, n_topics=6, concentration=0.2, dispersion=0.5)
        found = differential_expression(data.x_NG, data.theta_NK)
        covered = np.abs(found.lfc_KG - truth_of(data, found)) < 1.96 * found.se_KG
        # The smallest of five fold changes is biased towards 0, and so is its interval.
        assert 0.9 < covered.mean() < 0.99


class TestPValues:
    @pytest.mark.parametrize("dispersion", [0, 1])
    @pytest.mark.parametrize("n_topics", [2, 5])
    def test_of_null_genes_are_not_too_small(self, n_topics, dispersion):
        data = simulate(5, n_cells=800, n_genes=800, n_topics=n_topics, dispersion=dispersion)
        found = differential_expression(data.x_NG, data.theta_NK)
        p = found.p_KG[:, data.is_null_G]
        for level in (0.2, 0.05, 0.01):
            n = p.shape[1]
            assert (p < level).mean() < level + 2.5 * np.sqrt(level * (1 - level) / n)

    def test_of_null_genes_in_a_rare_topic_are_not_too_small(self):
        """Few counts, all in the common topic, are no evidence about the rare topic."""
        rng = np.random.default_rng(6)
        theta_NK = np.eye(2)[(np.arange(2000) < 10).astype(int)]
        rate_G = np.append(np.geomspace(1e-6, 1e-3, 1000), 0.8)
        x_NG = rng.poisson(500 * rate_G / rate_G.sum(), (2000, 1001))
        found = differential_expression(x_NG, theta_NK)
        p = found.p_KG[:, ~np.isnan(found.p_KG[0])]
        assert (p < 0.05).mean() < 0.05
        assert found.q_KG[found.q_KG < 0.05].size == 0

    def test_find_the_planted_markers(self):
        rng = np.random.default_rng(7)
        planted_KG = np.zeros((5, 301), dtype=int)
        for k in range(5):
            planted_KG[k, 10 * k : 10 * k + 5] = 1
            planted_KG[k, 10 * k + 5 : 10 * k + 10] = -1
        rate_KG = 1e-3 * 8.0**planted_KG
        rate_KG[:, -1] = 1 - rate_KG[:, :-1].sum(1)
        theta_NK = rng.dirichlet(np.full(5, 0.3), 1000)
        mean_NG = 2000 * theta_NK @ rate_KG
        mean_NG[:, :-1] *= rng.gamma(2, 0.5, (1000, 300))
        found = differential_expression(rng.poisson(mean_NG), theta_NK)
        significant_KG = np.where(found.q_KG < 0.05, np.sign(found.lfc_KG), 0)
        assert (significant_KG == planted_KG)[planted_KG != 0].all()
        assert (significant_KG != 0)[planted_KG == 0].sum() <= 0.1 * (planted_KG != 0).sum()
        error_KG = found.lfc_KG - 3 * planted_KG
        assert np.abs(error_KG[planted_KG != 0]).max() < 1.5

    def test_a_gene_unseen_in_all_other_topics_differs_from_them(self):
        x_NG = np.full((60, 3), 20)
        x_NG[:, 0] = 0
        x_NG[:20, 0] = 3
        found = differential_expression(x_NG, np.eye(3)[np.arange(60) // 20])
        # The probability that all 60 counts are in one of three equal topics is 2e-29.
        assert 1e-32 < found.p_KG[0, 0] < 1e-12
        assert np.isfinite(found.lfc_KG).all()
        # The two topics without it do not differ.
        assert found.nearest_KG[1:, 0].tolist() == [2, 1]
        np.testing.assert_allclose(found.p_KG[1:, 0], 1)

    def test_a_gene_high_in_two_topics_is_a_marker_of_neither(self):
        rng = np.random.default_rng(8)
        x_NG = rng.poisson([[30, 100], [30, 100], [2, 100]], (100, 3, 2)).reshape(-1, 2)
        found = differential_expression(x_NG, np.eye(3)[np.arange(300) % 3])
        assert (found.p_KG[:2, 0] > 0.01).all()
        assert found.p_KG[2, 0] < 1e-10
        assert found.nearest_KG[:2, 0].tolist() == [1, 0]


class TestInvariances:
    def test_order_of_topics_cells_and_genes_orders_the_results(self):
        data = simulate(10, n_topics=5)
        rng = np.random.default_rng(0)
        topics, cells, genes = rng.permutation(5), rng.permutation(400), rng.permutation(201)
        a = differential_expression(data.x_NG, data.theta_NK)
        b = differential_expression(data.x_NG[cells][:, genes], data.theta_NK[cells][:, topics])
        for name in set(FIELDS) - {"nearest_KG"}:
            expected = getattr(a, name)[topics][:, genes]
            np.testing.assert_allclose(getattr(b, name), expected, rtol=1e-6, atol=1e-9)
        assert (topics[b.nearest_KG] == a.nearest_KG[topics][:, genes]).all()

    def test_four_copies_of_cells_halve_the_errors(self):
        data = simulate(12)
        for robust in (True, False):
            a = differential_expression(data.x_NG, data.theta_NK, robust=robust)
            b = differential_expression(
                sp.vstack([data.x_NG] * 4).tocsr(),
                np.vstack([data.theta_NK] * 4),
                pseudo_count=4 * 0.5,
                robust=robust,
            )
            np.testing.assert_allclose(b.rate_KG, a.rate_KG, rtol=1e-6)
            np.testing.assert_allclose(b.se_KG, a.se_KG / 2, rtol=1e-5)

    def test_robust_errors_do_not_shrink_with_multiplied_counts(self):
        data = simulate(13, dispersion=1, depth=5000)

        def fitted(times, robust):
            return differential_expression(
                times * data.x_NG, data.theta_NK, pseudo_count=times * 1e-3, robust=robust
            )

        for robust, narrower in ((True, 1), (False, 2)):
            a, b = fitted(4, robust), fitted(16, robust)
            np.testing.assert_allclose(b.rate_KG, a.rate_KG, rtol=1e-6)
            ratio = a.se_KG / b.se_KG
            assert np.median(ratio) == pytest.approx(narrower, rel=1e-3)

    @pytest.mark.parametrize("kind", [sp.csc_matrix, sp.coo_matrix, sp.csr_array, np.asarray])
    def test_sparse_equals_dense(self, kind):
        data = simulate(14)
        given = kind(data.x_NG.toarray())
        assert_equal(
            differential_expression(given, data.theta_NK),
            differential_expression(data.x_NG.astype(np.float32), data.theta_NK),
            rtol=1e-9,
        )

    def test_chunks_and_blocks_change_nothing(self, monkeypatch):
        data = simulate(15)
        whole = differential_expression(data.x_NG, data.theta_NK)
        monkeypatch.setattr(differential, "CHUNK", 7 * 400)
        monkeypatch.setattr(differential, "BLOCK", 64)
        assert_equal(differential_expression(data.x_NG, data.theta_NK), whole, rtol=1e-7, atol=1e-9)

    def test_the_input_is_not_changed(self):
        x_NG = simulate(16).x_NG.astype(np.float64).tocsc()
        x_NG.data[:3] = 0
        before = x_NG.copy()
        theta_NK = simulate(16).theta_NK
        differential_expression(x_NG, theta_NK)
        assert (x_NG.data == before.data).all()
        assert (x_NG.indices == before.indices).all()


class TestCornerCases:
    def test_genes_without_counts_have_no_results_and_change_no_other(self):
        data = simulate(20, n_genes=30)
        gap = sp.csr_matrix((400, 1))
        found = differential_expression(sp.hstack([gap, data.x_NG, gap]), data.theta_NK)
        assert_equal(
            SimpleNamespace(**{name: getattr(found, name)[:, 1:-1] for name in FIELDS}),
            differential_expression(data.x_NG, data.theta_NK),
            rtol=1e-9,
        )
        for g in (0, -1):
            assert (found.rate_KG[:, g] == 0).all()
            assert (found.nearest_KG[:, g] == -1).all()
            for name in ("lfc_KG", "se_KG", "p_KG", "q_KG"):
                assert np.isnan(getattr(found, name)[:, g]).all()

    def test_cells_without_counts_change_nothing(self):
        data = simulate(21)
        x_NG = sp.vstack([sp.csr_matrix((50, 201)), data.x_NG])
        theta_NK = np.vstack([np.eye(3)[[0] * 50], data.theta_NK])
        assert_equal(
            differential_expression(x_NG, theta_NK),
            differential_expression(data.x_NG, data.theta_NK),
            rtol=1e-7,
            atol=1e-9,
        )

    def test_topics_that_no_cell_uses_are_left_out(self):
        data = simulate(22, n_genes=40)
        alone = differential_expression(data.x_NG, data.theta_NK)
        theta_NK = np.insert(data.theta_NK, 1, 0.0, axis=1)
        for unused in (0.0, 1e-6):
            mixed_NK = (1 - unused) * theta_NK
            mixed_NK[:, 1] = unused
            found = differential_expression(data.x_NG, mixed_NK)
            assert np.isnan(found.rate_KG[1]).all()
            assert np.isnan(found.q_KG[1]).all()
            assert (found.nearest_KG[1] == -1).all()
            assert set(np.unique(found.nearest_KG[[0, 2, 3]])) == {0, 2, 3}
            np.testing.assert_allclose(found.p_KG[[0, 2, 3]], alone.p_KG, rtol=1e-2, atol=1e-5)
        # If it is compared, its rate can be any number.
        found = differential_expression(data.x_NG, mixed_NK, min_cells=0)
        assert np.isfinite(found.q_KG).all()
        assert (found.q_KG < 0.05).sum() < (alone.q_KG < 0.05).sum() / 2

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"theta_NK": np.ones((10, 1))}, "use 1 of 1"),
            ({"theta_NK": np.eye(2)[[0] * 10]}, "use 1 of 2"),
            ({"x_NG": np.zeros((10, 4))}, "use 0 of 2"),
            ({"theta_NK": np.full((9, 2), 0.5)}, r"\(N, G\)"),
            ({"theta_NK": np.full(10, 0.5)}, r"\(N, G\)"),
            ({"theta_NK": np.full((10, 2), 0.7)}, "proportions"),
            ({"theta_NK": np.tile([1.5, -0.5], (10, 1))}, "proportions"),
            ({"theta_NK": np.full((10, 2), np.nan)}, "proportions"),
            ({"x_NG": np.full((10, 4), -1)}, "at least 0"),
            ({"x_NG": np.full((10, 4), np.nan)}, "at least 0"),
            ({"x_NG": np.full((10, 4), np.inf)}, "at least 0"),
            ({"pseudo_count": 0}, "pseudo_count"),
            ({"min_cells": -1}, "min_cells"),
        ],
    )
    def test_bad_arguments_are_refused(self, change, match):
        given = {"x_NG": np.ones((10, 4)), "theta_NK": np.eye(2)[np.arange(10) % 2]}
        with pytest.raises(ValueError, match=match):
            differential_expression(**{**given, **change})
