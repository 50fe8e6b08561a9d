"""PointFit: topics as point estimates, without a posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from topicell.config import ModelConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.model.estimates import theta_given
from topicell.model.fit import TopicFit, require_samples
from topicell.model.mixture import MIXTURE
from topicell.model.program import Likelihood

Inference = Callable[[sp.csr_matrix], np.ndarray]
"""A library's own way from counts (N, G) to topic proportions (N, K)."""


class PointFit(TopicFit):
    """Topics of another library or of a user, with the metrics of topicell.

    Attributes
    ----------
    beta_RKG
        The topics, in their final order.
    infer
        The library's own inference of each replicate; empty after loading, when every θ comes from
        a posterior optimised for the cell.
    """

    def __init__(
        self, beta_RKG: np.ndarray, infer: Sequence[Inference] = (), **shared: Any
    ) -> None:
        super().__init__(**shared)
        self.beta_RKG = beta_RKG
        self.infer = infer

    @classmethod
    def of(
        cls,
        beta_RKG: np.ndarray,
        infer: Sequence[Inference],
        counts: Counts,
        valid: Counts | None,
        model: ModelConfig,
        *,
        seed: int,
    ) -> Self:
        """Order the topics by mean proportion and select a replicate.

        It is the one with the highest ELBO given its topics, on validation cells (on training cells
        if there are none).
        """
        order_RK = np.stack(
            [np.argsort(-of_cells(counts.x).mean(0), kind="stable") for of_cells in infer]
        )
        fit = cls(
            np.take_along_axis(beta_RKG, order_RK[:, :, None], axis=1),
            [_reordered(of_cells, order) for of_cells, order in zip(infer, order_RK, strict=True)],
            model=model,
            genes=counts.genes,
            gene_ids=counts.ids,
            gene_frequency_G=counts.gene_frequency(),
            selection_R=np.zeros(len(beta_RKG)),
            n_train=counts.n_cells,
            history=[],
            cells=counts,
            held_out=valid if valid is not None and valid.n_cells else None,
        )
        judged = valid if valid is not None and valid.n_cells else counts
        if len(beta_RKG) > 1:
            fit.selection_R = fit.elbo_given_topics(judged, seed=seed)
        return fit

    @property
    def own_perplexity(self) -> str:
        """Metric name of the perplexity by the library's inference; empty after loading."""
        return "test/perplexity_own" if self.infer else ""

    @property
    def has_encoder(self) -> bool:
        """False."""
        return False

    def theta(
        self,
        data: Any = None,
        *,
        replicates: Sequence[int] | None = None,
        refine: bool = False,
        n_samples: int = 256,
        seed: int = 0,
    ) -> np.ndarray:
        """Return topic proportions of cells, all or some replicates, shape (R, N, K).

        They come from the library's own inference if it is available. With `refine`, and always
        after loading, they are means of a posterior optimised for each cell with the prior
        Dirichlet(1/K).
        """
        require_samples(n_samples)
        x = self._counts(data).x
        chosen = self._replicates(replicates)
        if self.infer and not refine:
            return np.stack([self.infer[r](x) for r in chosen])
        return theta_given(
            self.beta_RKG[chosen],
            self.prior(),
            self.likelihood,
            x,
            n_samples=n_samples,
            seed=seed,
        )

    def beta(self, *, n_samples: int = 256, seed: int = 0) -> np.ndarray:
        """Return gene proportions of topics, all replicates, (R, K, G); no samples are needed."""
        return self.beta_RKG

    def topics(self, *, n_samples: int = 256, seed: int = 0) -> np.ndarray:
        """Return the gene proportions, shape (R, K, G)."""
        return self.beta_RKG

    def topics_by_batch(
        self, counts: Counts, *, n_samples: int = 256, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the gene proportions for one batch of all cells."""
        return self.beta_RKG[None], np.zeros(counts.n_cells, dtype=int)

    def deviations(self, *, replicate: int | None = None) -> np.ndarray:
        """Raise an error: these models have no background."""
        raise InputError("this model has no background")

    @property
    def batches(self) -> tuple[str, ...]:
        """Nothing: these models have no batches."""
        return ()

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of a mixture."""
        return MIXTURE

    def elbo_by_replicate(self, data: Any = None, **options: Any) -> np.ndarray:
        """Raise an error: point estimates have no posterior of topics, so they have no own ELBO."""
        raise InputError(
            "the ELBO needs a posterior of the topics, which this model does not have; use "
            "elbo_given_topics"
        )

    def amortization_gap(self, data: Any = None, **options: Any) -> np.ndarray:
        """Raise an error: point estimates have no encoder."""
        raise InputError("the amortization gap needs an encoder, which this model does not have")

    def _reorder(self, order_RK: np.ndarray) -> None:
        self.beta_RKG = np.take_along_axis(self.beta_RKG, order_RK[:, :, None], axis=1)
        self.infer = [
            _reordered(of, order) for of, order in zip(self.infer, order_RK, strict=False)
        ]

    def _weights(self) -> dict[str, Tensor]:
        return {"beta": torch.from_numpy(np.ascontiguousarray(self.beta_RKG))}

    def _document(self) -> dict[str, Any]:
        return {}

    @classmethod
    def restored(
        cls, weights: Mapping[str, Tensor], document: Mapping[str, Any], **shared: Any
    ) -> Self:
        """Return the fit that was saved."""
        beta_RKG = weights["beta"].numpy()
        expected = (len(shared["selection_R"]), shared["model"].n_topics, len(shared["genes"]))
        if beta_RKG.shape != expected:
            raise InputError(f"topics have shape {beta_RKG.shape}, but the settings say {expected}")
        return cls(beta_RKG, **shared)


def _reordered(infer: Inference, order_K: np.ndarray) -> Inference:
    return lambda x: infer(x)[:, order_K]
