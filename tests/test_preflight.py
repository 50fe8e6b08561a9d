"""Checks before a run starts."""

import numpy as np
import pandas as pd
import pytest

from topicell.errors import InputError
from topicell.preflight import require_labels


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_labels_are_allowed_and_do_not_count(missing):
    require_labels(pd.Series(["a", "a", "b", missing, missing, "b"], dtype=object))
    require_labels(pd.Series(["a", "a", "b", missing, "b", "b"], dtype="string"))
    with pytest.raises(InputError, match="6 different values for 7 cells"):
        require_labels(pd.Series([*"abcdef", missing], dtype=object, name="cell"))
