"""TopicFit: fitted topics, their estimates (θ, β, perplexity, rankings), and how they are saved.

There are two kinds: `topicell.model.posterior.AmortizedFit` for topicell's own models, and
`topicell.model.points.PointFit` for the topics of another library or of a user.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from topicell.config import ModelConfig, as_dict
from topicell.counts import NO_BATCH, Counts, drawn
from topicell.errors import InputError
from topicell.evaluation.perplexity import thin
from topicell.evaluation.ranking import gene_scores, top_genes
from topicell.evaluation.stability import Consensus, consensus, correlations
from topicell.model.estimates import elbo_given, side_by_side
from topicell.model.priors import NormalPrior
from topicell.model.program import Likelihood
from topicell.progress import step

if TYPE_CHECKING:
    import pandas as pd
    import scipy.sparse as sp

FORMAT = 2
"""Version of the format of saved fits."""

FOLDED = 20_000
"""Number of cells whose proportions are computed by EM at a time."""
UNKNOWN_BATCHES = ("refuse", "mean")
"""Values of ``unknown_batches`` in `TopicFit.transform`."""
ALIGNED_CELLS = 5000
"""Largest number of cells by which topics are aligned to those of another fit."""

EpochMetrics = dict[str, float]
"""Metrics of one epoch, by name."""


class TopicFit(ABC):
    """R sets of topics, and everything that is computed from them.

    Fitted topics are in the order of their mean proportion; topics from a user keep their order.

    Methods take cells as an AnnData or as `Counts`, match genes by name, and describe the selected
    replicate by default; ``replicate`` counts from 0. Estimates have a seed.

    Attributes
    ----------
    model
        The settings.
    genes
        Names of the modelled genes, shape (G,).
    gene_ids
        Their identifiers, if the data have them in addition to names, shape (G,); genes of other
        files are matched by either.
    selection_R
        ELBO by which the selected replicate was chosen: nats per validation cell (per training cell
        if there is no validation set); 0 if there was nothing to choose.
    gene_frequency_G
        Share of each gene in all training counts.
    n_train
        Number of training cells.
    history
        Metrics of each epoch, named as in the tracker.
    cells, held_out
        The default cells of methods: those of the fit, and those that were held out of it (None
        after loading).

    Examples
    --------
    >>> import topicell
    >>> from topicell.config import SimulationConfig
    >>> corpus = SimulationConfig(n_cells=200, n_genes=100, n_topics=3)
    >>> adata = topicell.load_dataset("simulated", simulation=corpus)
    >>> fit = topicell.fit(adata, n_topics=3, n_replicates=2, progress=False)
    >>> fit.n_topics, fit.n_replicates, fit.n_genes
    (3, 2, 100)
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        genes: np.ndarray,
        selection_R: np.ndarray,
        gene_frequency_G: np.ndarray,
        n_train: int,
        history: list[dict[str, float]],
        cells: Counts | None = None,
        held_out: Counts | None = None,
        gene_ids: np.ndarray | None = None,
    ) -> None:
        self.model = model
        self.genes = np.asarray(genes, dtype=object)
        self.gene_ids = None if gene_ids is None else np.asarray(gene_ids, dtype=object)
        self.selection_R = np.asarray(selection_R, dtype=float)
        self.gene_frequency_G = np.asarray(gene_frequency_G, dtype=float)
        self.n_train = n_train
        self.history = history
        self.cells = cells
        self.held_out = held_out

    @abstractmethod
    def theta(
        self,
        data: Any = None,
        *,
        replicates: Sequence[int] | None = None,
        refine: bool = False,
        n_samples: int = 256,
        seed: int = 0,
    ) -> np.ndarray:
        """Return posterior mean topic proportions of cells, all or some replicates, (R, N, K).

        With `refine`, use a posterior optimised for each cell instead of the model's own inference.

        Examples
        --------
        >>> fit.theta(adata).shape  # two replicates, 200 cells, three topics
        (2, 200, 3)
        >>> fit.theta(adata[:1], replicates=[0]).round(1)
        array([[[0., 1., 0.]]], dtype=float32)
        """

    @abstractmethod
    def beta(self, *, n_samples: int = 256, seed: int = 0) -> np.ndarray:
        """Return posterior mean gene proportions of topics, all replicates, shape (R, K, G).

        Examples
        --------
        >>> beta = fit.beta()
        >>> beta.shape  # two replicates, three topics, 100 genes
        (2, 3, 100)
        >>> beta.sum(axis=2).round(3)
        array([[1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
        """

    @abstractmethod
    def topics(self, *, n_samples: int = 256, seed: int = 0) -> np.ndarray:
        """Return the topics as the likelihood uses them, all replicates, shape (R, K, G).

        They equal `beta` for models in which cells mix topics.

        Examples
        --------
        >>> import numpy as np
        >>> np.allclose(fit.topics(), fit.beta())  # cells mix topics in this model
        True
        """

    @abstractmethod
    def topics_by_batch(
        self, counts: Counts, *, n_samples: int = 256, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return `topics` in each batch of cells, (S, R, K, G), and the batch of each cell, (N,).

        A model without batches has one batch, S = 1.

        Examples
        --------
        >>> topics, batch = fit.topics_by_batch(topicell.Counts.of(adata))
        >>> topics.shape, set(batch.tolist())  # one batch
        ((1, 2, 3, 100), {0})
        """

    @abstractmethod
    def deviations(self, *, replicate: int | None = None) -> np.ndarray:
        """Return how far logits are above the background at least, shape (K, G).

        Examples
        --------
        >>> sparse = topicell.fit(
        ...     adata, n_topics=3, n_replicates=1, search=False, background=True, progress=False
        ... )
        >>> sparse.deviations().shape  # topics × genes
        (3, 100)
        """

    @property
    @abstractmethod
    def batches(self) -> tuple[str, ...]:
        """Names of the batches of the model; empty if it has none."""

    @property
    @abstractmethod
    def likelihood(self) -> Likelihood:
        """The distribution of counts for given topics and proportions."""

    @abstractmethod
    def _weights(self) -> dict[str, Any]:
        """Return the tensors that are saved, by name."""

    @abstractmethod
    def _document(self) -> dict[str, Any]:
        """Return the remaining saved values, as JSON."""

    @property
    @abstractmethod
    def own_perplexity(self) -> str:
        """Metric name of the perplexity by the model's own inference; empty if it has none."""

    @property
    @abstractmethod
    def has_encoder(self) -> bool:
        """Whether the model has an encoder and a posterior of its topics.

        Only then it has its own ELBO and an amortization gap.
        """

    @property
    def n_replicates(self) -> int:
        """Number of replicates, R."""
        return len(self.selection_R)

    @property
    def n_topics(self) -> int:
        """Number of topics, K."""
        return self.model.n_topics

    @property
    def n_genes(self) -> int:
        """Number of genes, G."""
        return len(self.genes)

    @property
    def selected(self) -> int:
        """The replicate with the highest finite ELBO on validation cells."""
        finite = np.isfinite(self.selection_R)
        return int(np.argmax(np.where(finite, self.selection_R, -np.inf)))

    @property
    def topic_names(self) -> list[str]:
        """``topic_0`` …"""
        return [f"topic_{k}" for k in range(self.n_topics)]

    def cell_topics(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        replicate: int | None = None,
        refine: bool = False,
        n_samples: int = 256,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return topic proportions, cells × topics; rows sum to 1.

        Examples
        --------
        >>> fit.cell_topics(adata).head(3).round(1)
                topic_0  topic_1  topic_2
        cell_0      0.0      0.0      1.0
        cell_1      0.0      0.0      1.0
        cell_2      0.0      0.9      0.1
        """
        import pandas as pd

        counts = self._counts(data, layer)
        (theta_NK,) = self.theta(
            counts,
            replicates=[self._replicate(replicate)],
            refine=refine,
            n_samples=n_samples,
            seed=seed,
        )
        return pd.DataFrame(theta_NK, index=counts.cells, columns=self.topic_names)

    def gene_topics(
        self, *, replicate: int | None = None, n_samples: int = 256, seed: int = 0
    ) -> pd.DataFrame:
        """Return gene proportions, genes × topics; columns sum to 1.

        Examples
        --------
        >>> genes = fit.gene_topics()
        >>> genes.shape
        (100, 3)
        >>> genes["topic_0"].nlargest(2).round(2)
        gene_25    0.23
        gene_74    0.09
        Name: topic_0, dtype: float32
        """
        import pandas as pd

        beta_KG = self.beta(n_samples=n_samples, seed=seed)[self._replicate(replicate)]
        return pd.DataFrame(beta_KG.T, index=self.genes, columns=self.topic_names)

    def top_genes(
        self,
        n: int = 20,
        *,
        by: str | None = None,
        weight: float | None = None,
        replicate: int | None = None,
        n_samples: int = 256,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the tutorial's ranked table: by rank, for each topic its gene and the proportion.

        Columns are ``topic_0``, ``topic_0_prop``, …, and also ``topic_0_score``, … if genes are not
        ranked by the proportion; the index is the rank, from 0.

        Parameters
        ----------
        n
            Number of genes of each topic.
        by
            ``probability``, ``lift``, ``relevance`` or ``frex``
            (`topicell.evaluation.ranking.gene_scores`), or ``deviation`` for models with a
            background (`AmortizedFit.deviations`). None takes ``deviation`` for these, else
            ``probability``.
        weight
            λ of relevance, 0.6 by default; that of exclusivity in FREX, 0.5.
        replicate, n_samples, seed
            As in the other methods.

        Raises
        ------
        InputError
            There is no such ranking, or the weight is out of range.

        Examples
        --------
        >>> fit.top_genes(2)[["topic_0", "topic_0_prop", "topic_1"]].round(1)
              topic_0  topic_0_prop  topic_1
        rank
        0     gene_25           0.2  gene_31
        1     gene_74           0.1  gene_35
        >>> fit.top_genes(2, by="frex")["topic_0"].tolist()
        ['gene_49', 'gene_59']
        """
        beta_KG = self.beta(n_samples=n_samples, seed=seed)[self._replicate(replicate)]
        by = by or ("deviation" if self.model.background else "probability")
        if by == "deviation":
            return ranked_table(self.genes, beta_KG, self.deviations(replicate=replicate), n)
        try:
            score_KG = gene_scores(beta_KG, by, self.gene_frequency_G, weight)
        except ValueError as error:
            raise InputError(str(error)) from error
        return ranked_table(self.genes, beta_KG, score_KG, n)

    def consensus(
        self, data: Any = None, *, layer: str | None = None, n_samples: int = 256, seed: int = 0
    ) -> Consensus:
        """Return the topics on which replicates agree, and how many replicates found each.

        Replicates have the same topic if its proportions in the cells, by default the fit's, are
        correlated (`topicell.evaluation.stability.consensus`).

        Raises
        ------
        InputError
            There is only one replicate.

        Examples
        --------
        >>> agreed = fit.consensus(adata)
        >>> agreed.support_C  # number of replicates with each topic
        array([2, 2, 2])
        """
        if self.n_replicates < 2:
            raise InputError(
                "consensus compares replicates, but this fit has only one; fit with "
                "n_replicates=4, for example"
            )
        theta_RNK = self.theta(self._counts(data, layer), n_samples=n_samples, seed=seed)
        return consensus(self.beta(n_samples=n_samples, seed=seed), theta_RNK)

    def align_to(self, earlier: TopicFit, data: Any = None, *, seed: int = 0) -> np.ndarray:
        """Renumber the topics as those of an earlier fit.

        In each replicate, topics are matched one to one with those of the earlier fit's selected
        replicate so that the sum of the correlations of their proportions over cells is greatest.
        Further topics come last, in the order that they had.

        Parameters
        ----------
        earlier
            A fit with at most as many topics.
        data
            Cells for the comparison, by default those of the fit; at most `ALIGNED_CELLS` are
            drawn. They need at least half of the genes of the earlier fit.
        seed
            Seed of the draw and of the estimates.

        Returns
        -------
        The correlation of each topic of the selected replicate with its partner, NaN for further
        topics, shape (K,).

        Raises
        ------
        InputError
            The earlier fit has more topics, or the cells lack most of its genes.

        Examples
        --------
        >>> other = topicell.fit(adata, n_topics=3, n_replicates=1, seed=1, progress=False)
        >>> other.align_to(fit).round(1)  # correlation of each topic with that of the same number
        array([1., 1., 1.])
        """
        cells = self._counts(data)
        cells_drawn = drawn(cells.n_cells, ALIGNED_CELLS, seed)
        cells = cells if cells_drawn is None else cells[cells_drawn]
        earlier.require_alignable(self.n_topics, cells)
        with warnings.catch_warnings():
            # Missing genes count as zero, and empty cells have the same proportions in both.
            warnings.simplefilter("ignore")
            before_NJ = earlier.transform(
                cells, fill_missing=True, unknown_batches="mean", seed=seed
            ).to_numpy()
        return self.order_as(before_NJ, cells, seed=seed)

    def order_as(self, before_NJ: np.ndarray, data: Any, *, seed: int = 0) -> np.ndarray:
        """Renumber the topics as those with known proportions in cells.

        Parameters
        ----------
        before_NJ
            Proportions of J topics, at most as many as the fit has.
        data
            The cells.
        seed
            Seed of the estimates.

        Returns
        -------
        As `align_to`.

        Examples
        --------
        >>> import copy
        >>> other = copy.deepcopy(fit)
        >>> other.order_as(adata.obsm["theta"], adata).round(1)  # the true proportions
        array([1., 1., 1.])
        """
        cells = self._counts(data)
        K, n_earlier = self.n_topics, before_NJ.shape[1]
        order_RK = np.empty((self.n_replicates, K), dtype=int)
        correlation_RK = np.full((self.n_replicates, K), np.nan)
        for r, theta_NK in enumerate(self.theta(cells, seed=seed)):
            correlation_JK = correlations([before_NJ, theta_NK])[:n_earlier, n_earlier:]
            rows, matched = linear_sum_assignment(correlation_JK, maximize=True)
            order_RK[r] = [*matched, *np.setdiff1d(np.arange(K), matched)]
            correlation_RK[r, :n_earlier] = correlation_JK[rows, matched]
        self._reorder(order_RK)
        aligned_K: np.ndarray = correlation_RK[self.selected]
        return aligned_K

    def require_alignable(self, n_topics: int, cells: Counts) -> None:
        """Raise an error if a fit with so many topics of these cells cannot be aligned to this one.

        Raises
        ------
        InputError
            This fit has more topics, or the cells lack most of its genes.

        Examples
        --------
        >>> fit.require_alignable(4, topicell.Counts.of(adata))
        >>> fit.require_alignable(2, topicell.Counts.of(adata))
        Traceback (most recent call last):
          ...
        topicell.errors.InputError: the earlier fit has 3 topics, which 2 topics cannot keep ...
        """
        if n_topics < self.n_topics:
            raise InputError(
                f"the earlier fit has {self.n_topics} topics, which {n_topics} topics cannot keep "
                f"the numbers of; use n_topics={self.n_topics} or more"
            )
        self.require_most_genes(cells, "the earlier fit")

    def require_most_genes(self, cells: Counts, name: str) -> None:
        """Raise an error, with the name of this fit, if cells lack more than half of its genes.

        Examples
        --------
        >>> fit.require_most_genes(topicell.Counts.of(adata[:, :80]), "the fit")
        >>> fit.require_most_genes(topicell.Counts.of(adata[:, :20]), "the fit")
        Traceback (most recent call last):
          ...
        topicell.errors.InputError: 80 of the 100 genes of the fit are not among the modelled ...
        """
        n_missing = cells.n_missing(self.genes, self.gene_ids)
        if 2 * n_missing > self.n_genes:
            raise InputError(
                f"{n_missing} of the {self.n_genes} genes of {name} are not among the modelled "
                "genes, so its topics cannot be found; use a run of the same data"
            )

    def folded(self, cells: Counts) -> np.ndarray:
        """Return topic proportions of cells by EM with fixed topics, (N, K), selected replicate.

        They depend on no prior, and therefore on no covariate.

        Examples
        --------
        >>> import numpy as np
        >>> theta = fit.folded(topicell.Counts.of(adata))
        >>> bool(np.corrcoef(theta[:, 0], fit.cell_topics(adata)["topic_0"])[0, 1] > 0.99)
        True
        """
        topics_SRKG, batch_N = self.topics_by_batch(cells)
        theta_NK = np.zeros((cells.n_cells, self.n_topics))
        with step("topic proportions by EM", cells.n_cells, "cells") as shown:
            for s, topics_RKG in enumerate(topics_SRKG):
                of_batch = np.flatnonzero(batch_N == s)
                for rows in np.array_split(of_batch, -(-cells.n_cells // FOLDED)):
                    x = cells[rows].x
                    theta_NK[rows] = self.likelihood.fold_in(x, topics_RKG[self.selected])
                    shown.advance(len(rows))
        return theta_NK

    @abstractmethod
    def _reorder(self, order_RK: np.ndarray) -> None:
        """Make topic ``order_RK[r, k]`` of each replicate its topic k."""

    def transform(
        self,
        data: Any,
        *,
        layer: str | None = None,
        fill_missing: bool = False,
        unknown_batches: str = "refuse",
        replicate: int | None = None,
        refine: bool = False,
        n_samples: int = 256,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return topic proportions of new cells, cells × topics.

        Parameters
        ----------
        data
            AnnData or `Counts`; genes are matched by name, and genes that are not modelled are
            ignored.
        layer
            Where the counts of an AnnData are.
        fill_missing
            Use zero counts for modelled genes that `data` does not have, instead of raising an
            error.
        unknown_batches
            With batches that the model does not know: ``refuse`` raises an error; ``mean`` takes
            the mean of the known batches for these cells, with a warning.
        refine
            Optimise the posterior of each cell instead of using the encoder: slower (a third of a
            millisecond for a cell with 90 non-zero genes and ten topics), and never with a lower
            ELBO. Loaded topics without an encoder always use this posterior.
        replicate, n_samples, seed
            As in the other methods.

        Raises
        ------
        InputError
            Modelled genes are missing, the matrix does not hold counts, or batches are not known.

        Warns
        -----
        UserWarning
            Missing genes were counted as zero, or cells have no counts in the model's genes.

        Examples
        --------
        >>> new = adata[:3, ::-1].copy()  # genes in another order
        >>> fit.transform(new).round(1)
                topic_0  topic_1  topic_2
        cell_0      0.0      0.0      1.0
        cell_1      0.0      0.0      1.0
        cell_2      0.0      0.9      0.1
        """
        if unknown_batches not in UNKNOWN_BATCHES:
            raise InputError(
                f"unknown_batches = {unknown_batches!r}: must be one of "
                f"{', '.join(UNKNOWN_BATCHES)}"
            )
        given = Counts.of(data, layer)
        counts = given.with_genes(self.genes, ids=self.gene_ids, fill_missing=fill_missing)
        counts = self._with_batches(counts, data, unknown=unknown_batches)
        n_missing = given.n_missing(self.genes, self.gene_ids)
        if n_missing:
            warnings.warn(
                f"{n_missing} of the model's {len(self.genes)} genes are not in the data and count "
                "as zero",
                stacklevel=2,
            )
        n_empty = int((np.diff(counts.x.indptr) == 0).sum())
        if n_empty:
            warnings.warn(
                f"{n_empty} cells have no counts in the model's genes, so their topic proportions "
                "have no meaning",
                stacklevel=2,
            )
        return self.cell_topics(
            counts, replicate=replicate, refine=refine, n_samples=n_samples, seed=seed
        )

    @abstractmethod
    def elbo_by_replicate(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        refine: bool = False,
        n_samples: int = 10,
        seed: int = 0,
    ) -> np.ndarray:
        """Return the ELBO of cells by replicate, nats per cell with KL weight 1, shape (R,).

        Examples
        --------
        >>> fit.elbo_by_replicate(adata).round(-2)
        array([-2900., -2900.], dtype=float32)
        """

    @abstractmethod
    def amortization_gap(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        replicates: Sequence[int] | None = None,
        n_samples: int = 64,
        seed: int = 0,
    ) -> np.ndarray:
        """Return the ELBO that each cell loses because of the encoder, nats, shape (R, N).

        Examples
        --------
        >>> gap = fit.amortization_gap(adata[:5], n_samples=4)
        >>> gap.shape, bool((gap >= 0).all())
        ((2, 5), True)
        """

    def elbo(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        replicate: int | None = None,
        refine: bool = False,
        n_samples: int = 10,
        seed: int = 0,
    ) -> float:
        """Return the ELBO of cells, by default the fit's, in nats per cell with KL weight 1.

        Examples
        --------
        >>> round(fit.elbo(adata), -2)
        -2900.0
        """
        by_replicate = self.elbo_by_replicate(
            data, layer=layer, refine=refine, n_samples=n_samples, seed=seed
        )
        return float(by_replicate[self._replicate(replicate)])

    def elbo_given_topics(
        self, data: Any = None, *, layer: str | None = None, n_samples: int = 64, seed: int = 0
    ) -> np.ndarray:
        """Return the ELBO of cells with fixed mean topics, nats per cell, shape (R,).

        The posterior of each cell is optimised (`topicell.model.refinement`), the KL of topics is
        not included, and the prior is Dirichlet(1/K) for all models. This ELBO exists for all
        topics, so use it to compare kinds of models with the same number of topics; with more
        topics, refinement stops farther from its optimum (``experiments/measures``). It is minus
        infinity if there is a count of a gene that no topic has.

        Examples
        --------
        >>> fit.elbo_given_topics(adata[:20], n_samples=8).round(-2)
        array([-2800., -2800.])
        """
        elbo_RN = self.elbo_given_topics_by_cell(data, layer=layer, n_samples=n_samples, seed=seed)
        elbo_R: np.ndarray = elbo_RN.mean(1, dtype=np.float64)
        return elbo_R

    def elbo_given_topics_by_cell(
        self, data: Any = None, *, layer: str | None = None, n_samples: int = 64, seed: int = 0
    ) -> np.ndarray:
        """Return `elbo_given_topics` of each cell, nats, shape (R, N).

        Examples
        --------
        >>> fit.elbo_given_topics_by_cell(adata[:5], n_samples=8).shape
        (2, 5)
        """
        require_samples(n_samples)
        cells = self._counts(data, layer)
        topics_SRKG, batch_N = self.topics_by_batch(cells, seed=seed)
        elbo_RN = np.empty((self.n_replicates, cells.n_cells))
        for s, topics_RKG in enumerate(topics_SRKG):
            rows = np.flatnonzero(batch_N == s)
            elbo_RN[:, rows] = elbo_given(
                *(topics_RKG, self.prior(), self.likelihood, cells.x[rows]),
                n_samples=n_samples,
                seed=seed,
            )
        return elbo_RN

    def elbo_by_cell(
        self, data: Any = None, *, layer: str | None = None, n_samples: int = 10, seed: int = 0
    ) -> np.ndarray:
        """Return the ELBO of each cell, nats, shape (R, N); only models with an encoder have it.

        Its mean over cells is `elbo_by_replicate`.

        Examples
        --------
        >>> import numpy as np
        >>> elbo = fit.elbo_by_cell(adata)
        >>> np.allclose(elbo.mean(axis=1), fit.elbo_by_replicate(adata))
        True
        """
        raise NotImplementedError(f"{type(self).__name__} has no ELBO of single cells")

    def prior(self) -> NormalPrior:
        """Return the prior of θ for fixed topics: Dirichlet(1/K) for every model.

        Examples
        --------
        >>> tuple(fit.prior().mean.shape)  # one logit for each topic
        (3,)
        """
        return NormalPrior.dirichlet(None, self.n_topics, self.n_topics)

    def perplexity_by_replicate(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        folded: bool = True,
        n_samples: int = 256,
        seed: int = 0,
    ) -> np.ndarray:
        """Return document-completion perplexity in each replicate, per count, shape (R,).

        The counts of each cell are split into halves. θ is inferred from one half, by EM with fixed
        β (`folded`, the same for every kind of model) or by the model's own inference, and the
        other half is predicted (Wallach et al. 2009).

        Examples
        --------
        >>> fit.perplexity_by_replicate(adata).round()
        array([19., 19.])
        """
        completed, theta_RNK, topics_RKG = self.completion(
            data, layer=layer, folded=folded, n_samples=n_samples, seed=seed
        )
        return np.array(
            [
                self.likelihood.perplexity(completed, theta_NK, topics_KG)
                for theta_NK, topics_KG in zip(theta_RNK, topics_RKG, strict=True)
            ]
        )

    def completion(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        folded: bool = True,
        n_samples: int = 256,
        seed: int = 0,
    ) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
        """Return what `perplexity_by_replicate` compares.

        Returns
        -------
        The half of the counts that is predicted, the topic proportions from the other half,
        (R, N, K), and the topics, (R, K, G); with batches, as `side_by_side` returns them.

        Examples
        --------
        >>> half, theta, topics = fit.completion(adata)
        >>> half.shape, theta.shape, topics.shape
        ((200, 100), (2, 200, 3), (2, 3, 100))
        """
        if data is None and self.held_out is not None:
            data = self.held_out
        cells = self._counts(data, layer)
        observed, completed = thin(cells.x, seed)
        topics_SRKG, batch_N = self.topics_by_batch(cells, n_samples=n_samples, seed=seed)
        if folded:
            theta_RNK = np.zeros((self.n_replicates, cells.n_cells, self.n_topics))
            n_folded = self.n_replicates * cells.n_cells
            with step("topic proportions by EM", n_folded, "cells") as shown:
                for s, topics_RKG in enumerate(topics_SRKG):
                    rows = np.flatnonzero(batch_N == s)
                    for theta_NK, topics_KG in zip(theta_RNK, topics_RKG, strict=True):
                        theta_NK[rows] = self.likelihood.fold_in(observed[rows], topics_KG)
                        shown.advance(len(rows))
        else:
            half = replace(cells, rows=observed)
            theta_RNK = self.theta(half, n_samples=n_samples, seed=seed)
        return completed, *side_by_side(theta_RNK, topics_SRKG, batch_N)

    def perplexity(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        replicate: int | None = None,
        folded: bool = True,
        n_samples: int = 256,
        seed: int = 0,
    ) -> float:
        """Return document-completion perplexity per count, of the held-out cells by default.

        Lower is better; it is never below 1, and uniform topics give the number of genes.

        Examples
        --------
        >>> round(fit.perplexity())  # of the held-out cells; uniform topics would have 100
        16
        """
        by_replicate = self.perplexity_by_replicate(
            data, layer=layer, folded=folded, n_samples=n_samples, seed=seed
        )
        return float(by_replicate[self._replicate(replicate)])

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model to a folder: weights as safetensors, the rest as JSON, no pickle.

        The folder is written completely or not at all.

        Raises
        ------
        InputError
            The folder exists and `overwrite` is not set.

        Examples
        --------
        >>> path = fit.save("model")
        >>> sorted(file.name for file in path.iterdir())
        ['model.json', 'weights.safetensors']
        """
        import safetensors.torch

        weights = self._weights()
        document = {
            "format": FORMAT,
            "model": as_dict(self.model),
            "genes": [str(gene) for gene in self.genes],
            "gene_ids": None if self.gene_ids is None else [str(i) for i in self.gene_ids],
            "gene_frequency": self.gene_frequency_G.tolist(),
            "selection": self.selection_R.tolist(),
            "n_train": self.n_train,
            "history": self.history,
            "versions": {
                name: version(name) for name in ("topicell", "torch", "pyro-ppl", "numpy")
            },
        } | self._document()

        def write(folder: Path) -> None:
            safetensors.torch.save_file(weights, folder / "weights.safetensors")
            (folder / "model.json").write_text(json.dumps(document, indent=1))

        return write_folder(path, write, overwrite=overwrite)

    @staticmethod
    def load(path: str | Path) -> TopicFit:
        """Read a saved fit; registered models call `topicell.load` by this former name.

        Examples
        --------
        >>> topicell.TopicFit.load(fit.save("model")).n_topics
        3
        """
        fit: TopicFit = import_module("topicell").load(path)
        return fit

    def _replicate(self, replicate: int | None) -> int:
        if replicate is None:
            return self.selected
        if not 0 <= replicate < self.n_replicates:
            raise InputError(
                f"replicate = {replicate}: this fit has replicates 0 to {self.n_replicates - 1}"
            )
        return replicate

    def _replicates(self, replicates: Sequence[int] | None) -> list[int]:
        return list(range(self.n_replicates)) if replicates is None else list(replicates)

    def _counts(self, data: Any, layer: str | None = None) -> Counts:
        if data is None:
            if self.cells is None:
                raise InputError(
                    "a loaded fit holds no cells; pass the cells as the first argument"
                )
            return self.cells
        counts = Counts.of(data, layer).with_genes(self.genes, ids=self.gene_ids)
        return self._with_batches(counts, data)

    def _with_batches(self, counts: Counts, data: Any, *, unknown: str = "refuse") -> Counts:
        """Return cells with their batches, if the model has batches.

        Parameters
        ----------
        counts
            The cells.
        data
            AnnData of the cells, whose obs has the batches, or Counts, which have their own.
        unknown
            ``mean`` accepts batches that the model does not know, with a warning.

        Raises
        ------
        InputError
            The batches are not there, or one is not known.
        """
        if not self.batches:
            return counts
        known = f"known are {', '.join(self.batches)}"
        if hasattr(data, "obs") and self.model.batch_key in data.obs:
            counts = counts.with_batches(data.obs, self.model.batch_key)
        if counts.batch is None:
            if unknown != "mean":
                raise InputError(
                    f"the model needs the batch of each cell (obs[{self.model.batch_key!r}]; "
                    f"{known}), which is not in the data; use unknown_batches=mean for cells of "
                    "another batch"
                )
            warnings.warn(
                f"the data do not have the batches of the cells (obs[{self.model.batch_key!r}]): "
                "the mean of the known batches is taken for all cells, so effects of their batch "
                "remain in their topic proportions",
                stacklevel=3,
            )
            counts = replace(counts, batch=np.full(counts.n_cells, NO_BATCH, dtype=object))
        batch_N = np.asarray(counts.batch, dtype=object)
        strange = ~np.isin(batch_N.astype(str), [*self.batches, NO_BATCH])
        if strange.any():
            names = ", ".join(sorted({str(name) for name in batch_N[strange]})[:5])
            if unknown != "mean":
                raise InputError(
                    f"{int(strange.sum())} of {counts.n_cells} cells are of batches that the model "
                    f"does not know ({names}; {known}); use unknown_batches=mean to take the mean "
                    "of the known batches for them"
                )
            warnings.warn(
                f"{int(strange.sum())} of {counts.n_cells} cells are of batches that the model "
                f"does not know ({names}): the mean of the known batches is taken for them, so "
                "effects of their batch remain in their topic proportions",
                stacklevel=3,
            )
            counts = replace(counts, batch=np.where(strange, NO_BATCH, batch_N))
        return counts


def ranked_table(
    genes: np.ndarray, beta_KG: np.ndarray, score_KG: np.ndarray, n: int
) -> pd.DataFrame:
    """Return by rank, for each topic, its gene, the gene's proportion, and another score."""
    import pandas as pd

    table = {}
    for k, order in enumerate(top_genes(score_KG, n)):
        table[f"topic_{k}"] = genes[order]
        table[f"topic_{k}_prop"] = beta_KG[k, order]
        if not np.array_equal(score_KG, beta_KG):
            table[f"topic_{k}_score"] = score_KG[k, order]
    return pd.DataFrame(table).rename_axis("rank")


def require_samples(n_samples: int) -> None:
    """Raise an error if an estimate would have no samples."""
    if n_samples < 1:
        raise InputError(f"n_samples = {n_samples}: an estimate needs at least 1")


def write_folder(path: str | Path, write: Callable[[Path], None], *, overwrite: bool) -> Path:
    """Fill a new folder by `write`, and rename it to its final name when it is complete."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; pass overwrite=True or another path")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        # mkdtemp makes the folder private; a saved model gets the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        unfinished.chmod(0o777 & ~umask)
        write(unfinished)
        if path.exists():
            replaced = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            path.replace(replaced / path.name)
            unfinished.replace(path)
            shutil.rmtree(replaced)
        else:
            unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path
