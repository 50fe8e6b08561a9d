"""The search for clusters: optima of small problems, planted clusters, limits."""

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment

from topicell.model import search
from topicell.model.search import LEVELS, Level, search_topics


def drawn_cells(profiles_KG, sizes_K, depth, seed):
    """Return counts of cells of clusters, and their labels."""
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(len(sizes_K)), sizes_K))
    x = np.stack([rng.multinomial(depth, profiles_KG[k]) for k in label])
    return sp.csr_matrix(x.astype(np.float32)), label


def background(x):
    """Return background frequencies."""
    total = np.asarray(x.sum(0)).ravel() + 0.5
    return total / total.sum()


def labels_of(x, profiles_KG):
    """Return the most likely cluster of each cell."""
    return (x @ np.log(profiles_KG).T).argmax(1)


def share_misplaced(a, b):
    """Return the share of cells outside the best one-to-one matching of two labellings."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    return 1 - table[linear_sum_assignment(table, maximize=True)].sum() / len(a)


def same_groups(a, b):
    """Return whether two labellings are equal up to the names of the groups."""
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


@pytest.mark.parametrize("seed", range(8))
def test_planted_clusters_are_found_by_every_seed(seed):
    """Ten clusters, the smallest with 2 % of the cells; a single run of EM misses some."""
    rng = np.random.default_rng(0)
    profiles = rng.dirichlet(np.full(60, 0.3), 10)
    sizes = np.array([12, 18, 25, 35, 50, 60, 70, 90, 110, 130])
    x, label = drawn_cells(profiles, sizes, 150, 1)
    found = search_topics(x, 10, background(x), np.random.default_rng(seed))
    assert found.shape == (len(LEVELS), 10, 60)
    for profiles_KG in found:
        np.testing.assert_allclose(profiles_KG.sum(1), 1, rtol=1e-5)
        assert (profiles_KG > 0).all()
    misplaced = share_misplaced(label, labels_of(x, found[-1]))
    assert misplaced < 0.02


def test_moves_are_needed(monkeypatch):
    """Without moves, EM from most random cells ends in a worse optimum."""
    rng = np.random.default_rng(0)
    profiles = rng.dirichlet(np.full(60, 0.3), 10)
    x, label = drawn_cells(profiles, np.full(10, 40), 150, 1)
    monkeypatch.setattr(search, "TESTED_MOVES", 0)
    errors = [
        share_misplaced(
            label, labels_of(x, search_topics(x, 10, background(x), np.random.default_rng(s))[-1])
        )
        for s in range(8)
    ]
    assert max(errors) > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_the_best_of_all_assignments_is_found(seed, monkeypatch):
    """Brute force over all assignments of nine cells to two clusters."""
    level = Level(0.05, (10.0,), patience=4)
    monkeypatch.setattr(search, "LEVELS", (level,))
    profiles = np.random.default_rng(seed).dirichlet(np.full(6, 1.0), 2)
    x, _ = drawn_cells(profiles, np.array([4, 5]), 30, seed)
    frequency = background(x)
    added = level.smoothing * x.sum() / 2 * frequency

    def score(label):
        counts = np.stack([np.asarray(x[label == k].sum(0)).ravel() for k in (0, 1)]) + added
        logs = np.log(counts / counts.sum(1, keepdims=True))
        return (x @ logs.T).max(1).sum() + (logs @ added).sum()

    everything = itertools.product((0, 1), repeat=8)
    best = max(score(np.array([0, *label])) for label in everything)
    found = max(
        score(labels_of(x, search_topics(x, 2, frequency, np.random.default_rng(s))[0]))
        for s in range(3)
    )
    assert found == pytest.approx(best, rel=1e-5)


def test_moves_never_lower_the_likelihood(monkeypatch):
    rng = np.random.default_rng(0)
    x, _ = drawn_cells(rng.dirichlet(np.full(60, 0.5), 10), np.full(10, 40), 80, 1)
    frequency = background(x)
    added = LEVELS[0].smoothing * x.sum() / 10 * frequency

    def scores():
        for seed in range(6):
            profiles_KG = search_topics(x, 10, frequency, np.random.default_rng(seed))[0]
            logs = np.log(profiles_KG)
            yield (x @ logs.T).max(1).sum() + (logs @ added).sum()

    with_moves = np.array(list(scores()))
    monkeypatch.setattr(search, "TESTED_MOVES", 0)
    without = np.array(list(scores()))
    assert (with_moves >= without * (1 + 1e-6)).all()
    assert with_moves.max() > without.min() + 10
    # The seeds agree.
    assert np.ptp(with_moves) < np.ptp(without) / 2


def test_the_gain_of_a_split_is_the_difference_of_two_likelihoods():
    rng = np.random.default_rng(0)
    x, label = drawn_cells(rng.dirichlet(np.full(30, 0.3), 3), np.array([30, 30, 40]), 100, 1)
    cells = search._Cells(x, 2, background(x))
    cells.smooth(0.1)
    rows = np.flatnonzero(label < 2)
    total = np.asarray(x[rows].sum(0)).ravel() + cells.added_G
    together = (total / total.sum()).astype(np.float32)
    gain, part = cells.split(rows, together, np.random.default_rng(0))
    assert same_groups(label[rows], np.isin(rows, part))
    expected = -float(total @ np.log(together))
    for half in (part, np.setdiff1d(rows, part)):
        counts = np.asarray(x[half].sum(0)).ravel() + cells.added_G
        expected += float(counts @ np.log(counts / counts.sum()))
    assert gain == pytest.approx(expected, rel=1e-3)


def test_products_by_mkl_and_by_scipy_agree(monkeypatch):
    rng = np.random.default_rng(0)
    x, _ = drawn_cells(rng.dirichlet(np.full(30, 0.3), 4), np.full(4, 30), 100, 1)
    one = search_topics(x, 4, background(x), np.random.default_rng(0))
    monkeypatch.setattr(search, "sparse_is_there", lambda device: False)
    other = search_topics(x, 4, background(x), np.random.default_rng(0))
    np.testing.assert_allclose(one, other, rtol=1e-4)


@pytest.mark.parametrize(
    ("cells", "n_topics"),
    [
        (np.float32([[9, 1, 0], [0, 1, 9]]).repeat(20, axis=0), 5),
        (np.float32([[9, 1, 0], [0, 1, 9], [0, 0, 0], [3, 3, 3]]), 4),
        (np.zeros((6, 3), np.float32), 2),
        (np.float32([[9, 1, 0], [0, 1, 9]] + [[0, 0, 0]] * 8), 2),
    ],
    ids=["identical cells", "as many clusters as cells", "no counts", "mostly empty cells"],
)
def test_limits(cells, n_topics):
    x = sp.csr_matrix(cells)
    found = search_topics(x, n_topics, background(x), np.random.default_rng(0))
    assert found.shape == (len(LEVELS), n_topics, 3)
    np.testing.assert_allclose(found.sum(2), 1, rtol=1e-5)
    assert (found > 0).all()
