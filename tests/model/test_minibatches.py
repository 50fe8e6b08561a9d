"""Mini-batches are rows of the counts, dense and sparse."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from topicell.config import ModelConfig
from topicell.model import minibatches
from topicell.model.minibatches import (
    DeviceCounts,
    in_order,
    shuffled,
    sparse_batches,
    sparse_is_there,
    sparse_wins,
)
from topicell.model.program import TopicProgram

CPU = torch.device("cpu")
needs_mkl = pytest.mark.skipif(not sparse_is_there(CPU), reason="this torch was built without MKL")


@pytest.fixture(params=[3, 8192], ids=["many blocks", "one block"])
def block(request, monkeypatch):
    monkeypatch.setattr(minibatches, "GATHERED_CELLS", request.param)


@pytest.fixture
def x_NG():
    x = np.random.default_rng(0).poisson(0.4, (23, 9)).astype(np.float32)
    x[5] = 0
    x[22] = 0
    x[:, 8] = 0
    return sp.csr_matrix(x)


def test_mini_batches_are_a_shuffled_partition_without_a_short_one():
    seeds = np.random.default_rng(0)
    parts = shuffled(1003, 8, seeds)
    assert sorted(np.concatenate(parts)) == list(range(1003))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    again = shuffled(1003, 8, seeds)
    assert not all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize(("n", "size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_cells_in_order_are_all_cells_in_order(n, size):
    parts = in_order(n, size)
    assert np.array_equal(np.concatenate(parts), np.arange(n))
    assert {len(part) for part in parts[:-1]} <= {size}
    assert 0 < len(parts[-1]) <= size


def test_dense_mini_batches_are_rows_of_the_counts(x_NG, block):
    parts = shuffled(23, 4, np.random.default_rng(1))
    batches = list(DeviceCounts(x_NG, CPU).batches(parts))
    assert len(batches) == 4
    for part, batch in zip(parts, batches, strict=True):
        assert batch.n_cells == len(part)
        assert np.array_equal(batch.counts.numpy(), x_NG[part].toarray())


def test_mini_batches_of_one_size_can_share_their_memory(x_NG):
    parts = shuffled(23, 4, np.random.default_rng(1))
    places = {}
    for part, batch in zip(parts, DeviceCounts(x_NG, CPU).batches(parts, reuse=True), strict=True):
        assert np.array_equal(batch.counts.numpy(), x_NG[part].toarray())
        places.setdefault(len(part), set()).add(batch.counts.data_ptr())
    assert [len(place) for place in places.values()] == [1, 1]


@needs_mkl
def test_sparse_mini_batches_are_rows_of_the_counts_both_ways(x_NG, block):
    parts = shuffled(23, 4, np.random.default_rng(1))
    encoder = TopicProgram(9, 1, ModelConfig(n_topics=2, n_hidden=2)).encoder
    encoder.library_size.fill_(50.0)
    batches = list(sparse_batches(x_NG, parts, 50.0))
    assert len(batches) == 4
    for part, batch in zip(parts, batches, strict=True):
        x = x_NG[part].toarray()
        inputs = encoder.inputs(torch.from_numpy(x)).numpy()
        assert batch.n_cells == len(part)
        assert np.array_equal(batch.by_cell.with_values(batch.counts).to_dense().numpy(), x)
        by_gene = batch.by_gene.with_values(batch.counts[batch.order])
        assert np.array_equal(by_gene.to_dense().numpy(), x.T)
        np.testing.assert_allclose(
            batch.by_cell.with_values(batch.inputs).to_dense().numpy(), inputs, rtol=1e-6
        )
        np.testing.assert_allclose(
            batch.by_gene.with_values(batch.inputs_by_gene).to_dense().numpy(), inputs.T, rtol=1e-6
        )


@needs_mkl
def test_the_form_is_chosen_by_density_and_device():
    few, many = (sp.random(50, 40, density, format="csr") for density in (0.05, 0.5))
    assert sparse_wins(few, CPU)
    assert not sparse_wins(many, CPU)
    assert not sparse_wins(few, torch.device("cuda"))
