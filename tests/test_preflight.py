"""Checks before a run starts."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from topicell.config import ModelConfig, RunConfig
from topicell.errors import InputError
from topicell.preflight import require_labels, warn_of_batches


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_labels_are_allowed_and_do_not_count(missing):
    require_labels(pd.Series(["a", "a", "b", missing, missing, "b"], dtype=object))
    require_labels(pd.Series(["a", "a", "b", missing, "b", "b"], dtype="string"))
    with pytest.raises(InputError, match="6 different values for 7 cells"):
        require_labels(pd.Series([*"abcdef", missing], dtype=object, name="cell"))


@pytest.mark.parametrize(
    ("condition", "warns"),
    [(["a", "a", "b", "b"], True), (["a", "b", "a", "b"], False), (["a", "a", "a", "b"], False)],
)
def test_conditions_that_are_those_of_batches_give_a_warning(condition, warns):
    obs = pd.DataFrame({"lab": ["x", "x", "y", "y"], "condition": condition})
    cells = SimpleNamespace(adata=SimpleNamespace(obs=obs), labels=None, samples=None)
    for name in ("evaluate.conditions", "model.prevalence"):
        config = RunConfig(model=ModelConfig(batch_key="lab"))
        group, field = name.split(".")
        setattr(getattr(config, group), field, "condition")
        message = f"has one value in each batch .* {name} = 'condition' cannot tell"
        with pytest.warns(UserWarning, match=message) if warns else nullcontext():
            warn_of_batches(cells, config)
