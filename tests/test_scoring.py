"""Seeds of splits, scores of a sample of cells, and scores that are not finite."""

import numpy as np
import pytest
import scipy.sparse as sp

from topicell import fit
from topicell.config import EvaluateConfig
from topicell.counts import Counts
from topicell.scoring import Estimates, elbo_given_topics, measure, split_seeds, warn_of_infinite


def test_seeds_of_splits_are_distinct_and_do_not_depend_on_their_number():
    for seed in (0, 1, 2**32 - 1):
        assert split_seeds(seed, 1) == [seed]
        assert split_seeds(seed, 5)[0] == seed
        assert split_seeds(seed, 5)[:3] == split_seeds(seed, 3)
    drawn = [value for seed in range(200) for value in split_seeds(seed, 5)]
    assert len(set(drawn)) == 1000
    assert all(type(value) is int and 0 <= value < 2**32 for value in drawn)


def test_scores_that_are_not_finite_are_named():
    warn_of_infinite({"a": 1.0, "b": 0.0})
    with pytest.warns(UserWarning, match="not finite: a, c, d;"):
        warn_of_infinite({"a": np.nan, "b": 1.0, "c": np.inf, "d": -np.inf})


class _Fit:
    """A fit whose ELBO of a cell is known: the number of its counts, and twice that."""

    def elbo_given_topics_by_cell(self, cells, *, seed):
        n = np.asarray(cells.x.sum(1), dtype=np.float32).ravel()
        return np.stack([n, 2 * n])

    def elbo_given_topics(self, cells, *, seed):
        return self.elbo_given_topics_by_cell(cells, seed=seed).mean(1)


def test_the_elbo_of_a_sample_of_the_test_cells_has_the_error_of_its_draw():
    x = np.random.default_rng(0).poisson(30, (60, 5)).astype(np.float32)
    cells = Counts(
        sp.csr_matrix(x), np.arange(60).astype(str).astype(object), np.array([*"abcde"], object)
    )
    mean = x.sum(1).mean()
    name = "test/elbo_given_topics"
    whole = elbo_given_topics(_Fit(), cells, 60, 0)
    assert whole == {name: pytest.approx([mean, 2 * mean])}
    drawn = [elbo_given_topics(_Fit(), cells, 20, seed) for seed in range(3000)]
    assert drawn[0] == elbo_given_topics(_Fit(), cells, 20, 0)
    means = np.array([of_draw[name] for of_draw in drawn])
    errors = np.array([of_draw[f"{name}_sampling_error"] for of_draw in drawn])
    np.testing.assert_allclose(means[:, 1], 2 * means[:, 0])
    np.testing.assert_allclose(means.mean(0), [mean, 2 * mean], rtol=0.005)
    # The mean of the squared errors is the variance of the means.
    np.testing.assert_allclose((errors**2).mean(0), means.var(0), rtol=0.1)


def test_large_parts_are_measured_on_a_sample_with_its_error():
    rng = np.random.default_rng(0)
    x = sp.csr_matrix(rng.poisson(3.0, (900, 12)).astype(np.float32))
    names = (np.arange(900).astype(str).astype(object), np.array([*"abcdefghijkl"], object))
    cells = Counts(x, *names)
    parts = {"train": cells[:500], "valid": cells[500:800], "test": cells[800:]}
    found = fit(parts["train"], n_topics=2, n_replicates=2, epochs=2, progress=False)
    estimates = Estimates.of(found, cells, n_samples=8, seed=0)
    labels = np.array(["a", "b"] * 450)

    def measured(max_cells, seed=0):
        config = EvaluateConfig(n_samples=8, max_cells=max_cells, n_elbo_cells=50)
        return measure(estimates, parts, labels, config, seed)

    whole, sample = measured(900), measured(100)
    errors = {name for name in sample if name.endswith("_sampling_error")}
    assert errors == {
        f"{name}_sampling_error"
        for name in (
            "valid/perplexity_folded", "fit/valid_elbo", "fit/train_elbo", "labels/knn_accuracy",
            "test/elbo_given_topics",
        )
    }  # fmt: skip
    assert {name for name in whole if name.endswith("_sampling_error")} == {
        "test/elbo_given_topics_sampling_error"
    }
    assert sample == measured(100)
    for name in sample.keys() - errors:
        value, error = np.array(sample[name]), np.array(sample.get(f"{name}_sampling_error", 0.0))
        if name.startswith("labels/"):
            assert sample[name] != whole[name]
            continue
        # A metric without an error is of all cells.
        assert (np.abs(value - whole[name]) <= 4 * error).all(), name
