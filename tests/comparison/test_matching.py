"""Topics of two runs: pairs, cosines, correlations, and topics without a partner."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from stored_runs import BETA, THETA

from topicell.comparison.matching import pair_topics


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


def test_no_other_matching_has_a_higher_total_cosine(stored):
    other = np.random.default_rng(1).dirichlet(np.full(30, 0.3), 4)
    pairing = pair_topics(stored(), stored(beta=other))
    total = sum(match.cosine for match in pairing.matches)
    permutations = itertools.permutations(range(4))
    assert total == pytest.approx(
        max(pairing.cosine_KK[range(4), list(p)].sum() for p in permutations)
    )
    unit = [b / np.linalg.norm(b, axis=1, keepdims=True) for b in (BETA, other)]
    assert np.allclose(pairing.cosine_KK, unit[0] @ unit[1].T)
    for match in pairing.matches:
        assert match.next_best[0] != match.partner
        assert match.next_best[1] == max(np.delete(pairing.cosine_KK[match.topic], match.partner))


def test_an_additional_topic_has_no_partner_but_a_nearest_topic(stored):
    beta = np.vstack([BETA, 0.9 * BETA[1] + 0.1 / 30])
    theta = np.hstack([THETA, np.zeros((60, 1))])
    pairing = pair_topics(stored(), stored(theta=theta, beta=beta))
    (lone,) = pairing.unmatched[1]
    assert (lone.topic, lone.nearest) == (4, 1)
    assert lone.cosine > 0.99
    assert pairing.unmatched[0] == ()
    back = pair_topics(stored(theta=theta, beta=beta), stored())
    ((same,), none) = back.unmatched
    assert none == ()
    assert replace(same, cosine=lone.cosine) == lone
    assert same.cosine == pytest.approx(lone.cosine, rel=1e-12)


def test_a_pair_of_different_topics_is_not_found_again(stored):
    beta = BETA.copy()
    beta[2] = np.where(BETA[2] < np.median(BETA[2]), 1, 0)
    pairing = pair_topics(stored(), stored(beta=beta))
    *found, last = pairing.matches
    assert all(match.found for match in found)
    assert (last.topic, last.partner, last.found) == (2, 2, False)
    assert [lone.topic for side in pairing.unmatched for lone in side] == [2, 2]


def test_topics_are_matched_by_the_genes_that_both_runs_have(stored):
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


def test_cells_of_other_data_are_not_matched_by_their_names(stored):
    other = {"prepared": "456", "source": "def"}
    pairing = pair_topics(stored(), stored(**other))
    assert pairing.n_cells == 0
    assert all(math.isnan(match.correlation) for match in pairing.matches)
    fewer = {"theta": THETA[30:], "cells": [f"c{i}" for i in range(30, 60)], "prepared": "456"}
    pairing = pair_topics(stored(), stored(**fewer))
    assert pairing.n_cells == 30
    assert [match.correlation for match in pairing.matches] == pytest.approx([1] * 4)


def test_topics_with_little_support_are_read_from_the_runs(stored):
    support = {"topic_support": np.array([4, 2, 3, 1]), "topic_matches": np.ones((4, 4))}
    pairing = pair_topics(stored(about=support), stored())
    assert pairing.little == (frozenset({1, 3}), frozenset())
    refitted = {"topic_support": np.array([7, 8, 6, 4]), "n_searches": 8}
    assert pair_topics(stored(about=refitted), stored()).little[0] == frozenset({3})
