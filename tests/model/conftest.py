"""Mini-batches in both forms, for tests of likelihoods and objectives."""

from __future__ import annotations

import pytest
import scipy.sparse as sp
import torch

from topicell.model.minibatches import (
    NOTHING_GIVEN,
    DenseBatch,
    in_order,
    sparse_batches,
    sparse_is_there,
)

LIBRARY_SIZE = 1e4


@pytest.fixture(params=["dense", "sparse"])
def make_batch(request):
    """Return a function from counts of cells × genes, and batches, to one mini-batch of a form."""
    if request.param == "sparse" and not sparse_is_there(torch.device("cpu")):
        pytest.skip("this torch was built without MKL")

    def make(x_BG, given=NOTHING_GIVEN):
        x_BG = sp.csr_matrix(x_BG)
        parts = in_order(x_BG.shape[0], x_BG.shape[0])
        if request.param == "dense":
            counts = torch.from_numpy(x_BG.toarray())
            of_cells = given.one_hot(parts[0], counts), given.design(parts[0], counts)
            return DenseBatch(counts, *of_cells)
        (batch,) = sparse_batches(x_BG, parts, LIBRARY_SIZE, given)
        return batch

    return make
