from types import SimpleNamespace

import numpy as np
import pytest
import torch

from topicell.config import Init
from topicell.evaluation.stability import match_topics
from topicell.model.starts import initial_topics


def test_starts(planted):
    counts = planted[0]
    program = SimpleNamespace(
        n_replicates=2,
        n_topics=4,
        n_genes=counts.n_genes,
        topic_prior_mean=torch.zeros(counts.n_genes),
        topic_prior_scale=torch.full((counts.n_genes,), 2.0),
    )
    background = initial_topics(counts.x, program, Init.background, 0)
    frequency = np.asarray(counts.x.sum(0)).ravel()
    expected = np.log(frequency + 0.5)
    expected -= expected.mean()
    assert np.abs(background.numpy().mean((0, 1)) - expected).mean() < 0.15
    assert background.mean(-1).abs().max() < 1e-4
    random = initial_topics(counts.x, program, Init.random, 0)
    assert random.std().item() == pytest.approx(2.0, rel=0.1)
    kmeans = initial_topics(counts.x, program, Init.kmeans, 0)
    assert match_topics(planted[2], kmeans[0].softmax(-1).numpy()).cosine.mean() > 0.7
