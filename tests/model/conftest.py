"""Mini-batches in both forms, for tests of likelihoods and objectives."""

from __future__ import annotations

import pytest
import scipy.sparse as sp
import torch

from topicell.model.minibatches import DenseBatch, in_order, sparse_batches, sparse_is_there

LIBRARY_SIZE = 1e4


@pytest.fixture(params=["dense", "sparse"])
def make_batch(request):
    """Return a function from counts of cells × genes to one mini-batch of a form."""
    if request.param == "sparse" and not sparse_is_there(torch.device("cpu")):
        pytest.skip("this torch was built without MKL")

    def make(x_BG):
        x_BG = sp.csr_matrix(x_BG)
        if request.param == "dense":
            return DenseBatch(torch.from_numpy(x_BG.toarray()))
        (batch,) = sparse_batches(x_BG, in_order(x_BG.shape[0], x_BG.shape[0]), LIBRARY_SIZE)
        return batch

    return make
