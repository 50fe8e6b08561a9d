"""The choice among initial topics by short fits, and fits that begin with a search."""

import numpy as np
import pytest
import torch

from topicell.config import AnnealingConfig, Init, ModelConfig, TrainConfig
from topicell.evaluation.stability import match_topics
from topicell.model import candidates
from topicell.model.candidates import best_candidate
from topicell.model.program import TopicProgram
from topicell.model.starts import centred, searched_topics
from topicell.model.training import train

CONFIG = TrainConfig(n_replicates=2, progress=False)


def program_for(counts, n_replicates=2):
    torch.manual_seed(0)
    return TopicProgram(counts.n_genes, n_replicates, ModelConfig(n_topics=4, n_hidden=16))


def starts(planted, program):
    """Return the planted topics, and topics of which two are the same, for two replicates."""
    beta_KG = np.maximum(planted[2], 1e-6)
    good = centred(torch.tensor(np.log(beta_KG), dtype=torch.float32), program)
    poor = good.clone()
    poor[:] = poor.mean(0)
    poor[0] = good[0]
    return good.expand(2, -1, -1), poor.expand(2, -1, -1)


def test_a_better_candidate_is_chosen_in_any_place(planted):
    counts = planted[0]
    program = program_for(counts)
    good, poor = starts(planted, program)
    for order, best in (((good, poor), 0), ((poor, good), 1), ((poor, poor, good), 2)):
        assert best_candidate(counts, program, torch.stack(order), CONFIG, seed=0) == best


def test_of_equal_candidates_the_first_is_chosen(planted, monkeypatch):
    """Equal initial topics have equal encoders; their noise alone must not decide."""
    counts = planted[0]
    program = program_for(counts)
    good, _ = starts(planted, program)
    found = []
    elbo = candidates.elbo
    monkeypatch.setattr(
        candidates, "elbo", lambda *arguments: found.append(elbo(*arguments)) or found[-1]
    )
    for seed in range(4):
        assert best_candidate(counts, program, torch.stack([good] * 3), CONFIG, seed) == 0
    assert np.ptp(np.stack(found).reshape(4, 3, 2).mean(2), axis=1).max() < candidates.MARGIN


def test_the_choice_changes_neither_the_program_nor_the_random_state(planted):
    counts = planted[0]
    program = program_for(counts)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    state = torch.get_rng_state()
    # A warm-up that is longer than the short fit.
    config = TrainConfig(kl_annealing=AnnealingConfig(warmup_epochs=500), progress=False)
    best_candidate(counts, program, torch.stack(starts(planted, program)), config, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in program.state_dict().items():
        assert torch.equal(value, before[name])


def test_each_replicate_has_its_own_search(planted, monkeypatch):
    counts = planted[0]
    program = program_for(counts, n_replicates=3)
    found = searched_topics(counts, program, seed=0)
    assert found.shape == (2, 3, 4, counts.n_genes)
    assert found.mean(-1).sub(program.topic_prior.mean.mean()).abs().max() < 1e-4
    assert torch.equal(found, searched_topics(counts, program, seed=0))
    for topics_KG in found.flatten(0, 1):
        assert match_topics(planted[2], topics_KG.softmax(-1).numpy()).cosine.mean() > 0.7
    # Of many cells, each search has other ones.
    monkeypatch.setattr("topicell.model.starts.SEARCHED_CELLS_PER_CLUSTER", 30)
    some = searched_topics(counts, program, seed=0)
    assert not torch.equal(some[:, 0], some[:, 1])


def fit(counts, seed=0, *, search=True, init=Init.kmeans):
    return train(
        counts,
        None,
        ModelConfig(n_topics=4, n_hidden=16, init=init),
        TrainConfig(n_replicates=2, epochs=5, progress=False, search=search),
        seed=seed,
    )


@pytest.mark.parametrize("cells", ["planted", "shallow"])
def test_a_fit_with_search_depends_on_the_seed_alone(cells, request):
    counts = request.getfixturevalue(cells)[0]
    first, second = fit(counts), fit(counts)
    for name, value in first.program.state_dict().items():
        assert torch.equal(value, second.program.state_dict()[name]), name
    other = fit(counts, search=False)
    assert not torch.equal(first.program.topic_mean, other.program.topic_mean)


def test_the_search_has_no_effect_with_another_init(planted):
    with_search, without = (
        fit(planted[0], search=search, init=Init.background) for search in (True, False)
    )
    for name, value in with_search.program.state_dict().items():
        assert torch.equal(value, without.program.state_dict()[name]), name


def test_fits_with_search_find_the_planted_topics(planted):
    for seed in range(3):
        for beta_KG in fit(planted[0], seed).beta():
            assert match_topics(planted[2], beta_KG).cosine.min() > 0.95
