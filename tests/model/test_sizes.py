"""Numbers of topics, cells and genes that do not match are refused."""

import numpy as np
import pytest

from topicell.config import ModelConfig
from topicell.errors import InputError
from topicell.model.sizes import check_sizes


def test_sizes_that_cannot_be_fitted_are_refused(planted):
    counts = planted[0][np.arange(3)]
    with pytest.raises(InputError, match="only 3 training cells"):
        check_sizes(counts, ModelConfig(n_topics=4))
    with pytest.raises(InputError, match="2 numbers for 120 genes"):
        check_sizes(planted[0], ModelConfig(n_topics=4, topic_gene_prior=[1.0, 1.0]))
