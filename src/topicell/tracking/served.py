"""Code of a registered model: MLflow copies this file beside the weights, and runs the copy.

Nothing imports this module. The copy must run with later versions of topicell, so it imports public
names only. The input is the counts as floats: MLflow enforces the signature before `predict`, and
casts every number to float, except int64.
"""

import warnings
from typing import Any

import pandas as pd

with warnings.catch_warnings():
    # MLflow warns of its own type hints.
    warnings.simplefilter("ignore")
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel


class TopicProportions(PythonModel):  # type: ignore[misc]  # mlflow is untyped
    """Map cells × genes to cells × topics."""

    def load_context(self, context: Any) -> None:
        """Read the saved fit."""
        from topicell import load

        self.fit = load(context.artifacts["fit"])

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        """Return `TopicFit.transform` of the rows, which keep their names."""
        from anndata import AnnData

        # The input has no batches.
        if self.fit.batches:
            params = params | {"unknown_batches": "mean"}
        return self.fit.transform(AnnData(model_input), **params)


set_model(TopicProportions())
