"""What a registered model runs: MLflow copies this file beside the weights, and runs the copy.

Nothing imports this module. The input is the counts as floats: MLflow enforces the signature
before `predict`, and casts every number to them but int64.
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
    """Cells × genes in, cells × topics out."""

    def load_context(self, context: Any) -> None:
        """Read the saved fit."""
        from topicell.model.fit import TopicFit

        self.fit = TopicFit.load(context.artifacts["fit"])

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        """`TopicFit.transform` of the rows, which keep their names."""
        from topicell.model.counts import Counts, as_counts

        cells, genes = (axis.to_numpy(object) for axis in model_input.axes)
        x = as_counts(model_input.to_numpy(), "the DataFrame", genes=genes)
        return self.fit.transform(Counts(x, cells, genes), **params)


set_model(TopicProportions())
