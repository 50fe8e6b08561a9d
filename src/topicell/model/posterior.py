"""AmortizedFit: a fit of topicell's own models, with their variational posterior and ELBO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from topicell.config import ModelConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.model.estimates import (
    Chunks,
    amortization_gap,
    elbo_terms,
    mean_beta,
    mean_theta,
    mean_topics,
    topics_by_batch,
)
from topicell.model.fit import TopicFit, require_samples
from topicell.model.mixture import MIXTURE
from topicell.model.priors import LearnedPrior
from topicell.model.program import Constants, Likelihood, TopicProgram
from topicell.model.ranks import Ranks
from topicell.model.refinement import quasi_normal
from topicell.model.seeds import Seeds

CREDIBLE = 1.96
"""Standard deviations from the mean to an end of a 95 % interval."""
LEADING = 20
"""Number of genes of an earlier topic whose lift says how far the topic has moved."""
CONSTANTS = "constants."
"""Prefix of the names of `Constants` among the saved weights."""


if TYPE_CHECKING:
    import pandas as pd


class AmortizedFit(TopicFit):
    """A `TopicFit` with a posterior of topics and an encoder of cells.

    Attributes
    ----------
    program
        The Pyro program with its trained weights.
    order_RK
        Topic k of the fit is topic ``order_RK[r, k]`` of the program.

    Examples
    --------
    >>> quick = dict(n_topics=3, n_replicates=1, search=False, epochs=20, progress=False)
    >>> type(topicell.fit(adata, **quick)).__name__
    'AmortizedFit'
    """

    def __init__(self, program: TopicProgram, order_RK: np.ndarray, **shared: Any) -> None:
        super().__init__(**shared)
        self.program = program.eval()
        self.order_RK = order_RK

    @classmethod
    def of(
        cls,
        program: TopicProgram,
        counts: Counts,
        valid: Counts | None,
        model: ModelConfig,
        *,
        seed: int,
        history: list[dict[str, float]],
        ranks: Ranks | None = None,
    ) -> Self:
        """Order the topics of a trained program and select a replicate.

        Of several processes, the first one computes what that needs.
        """
        program.eval()
        ranks = ranks or Ranks()
        order_RK = selection_R = None
        if ranks.rank == 0:
            order_RK, selection_R = cls._order(program, counts, valid, seed)
        order_RK, selection_R = ranks.first((order_RK, selection_R))
        return cls(
            program,
            order_RK,
            model=model,
            genes=counts.genes,
            gene_ids=counts.ids,
            gene_frequency_G=counts.gene_frequency(),
            selection_R=selection_R,
            n_train=counts.n_cells,
            history=history,
            cells=counts,
            held_out=valid if valid is not None and valid.n_cells else None,
        )

    @staticmethod
    def _order(
        program: TopicProgram, counts: Counts, valid: Counts | None, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return topics by mean proportion, (R, K), and the ELBO of each replicate, (R,)."""
        # These are means over all cells, so few samples of each are enough.
        theta_RNK = mean_theta(program, Chunks(program, counts), n_samples=16, seed=seed)
        judged = valid if valid is not None and valid.n_cells else counts
        terms = elbo_terms(program, Chunks(program, judged), n_samples=2, seed=seed)
        size_RK = theta_RNK.mean(1)
        # Seeded topics keep their places, which are the first.
        n_seeds = 0 if program.constants.seeds is None else len(program.constants.seeds.names)
        size_RK[:, :n_seeds] = np.arange(n_seeds, 0, -1) + 1
        order_RK = np.argsort(-size_RK, axis=1, kind="stable")
        return order_RK, terms.per_cell(counts.n_cells)

    @property
    def own_perplexity(self) -> str:
        """Metric name of the perplexity by the encoder."""
        return "test/perplexity_amortized"

    @property
    def has_encoder(self) -> bool:
        """True."""
        return True

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

        They come from the encoder; with `refine`, from the better of its posterior and the one
        optimised for each cell.
        """
        require_samples(n_samples)
        cells = Chunks(self.program, self._counts(data))
        chosen = self._replicates(replicates)
        theta_RNK = mean_theta(
            self.program, cells, n_samples=n_samples, seed=seed, replicates=chosen, refine=refine
        )
        return np.take_along_axis(theta_RNK, self.order_RK[chosen][:, None, :], axis=2)

    def beta(self, *, n_samples: int = 256, seed: int = 0) -> np.ndarray:
        """Return posterior mean gene proportions of topics, all replicates, shape (R, K, G)."""
        require_samples(n_samples)
        beta_RKG = mean_beta(self.program, n_samples=n_samples, seed=seed)
        return np.take_along_axis(beta_RKG, self.order_RK[:, :, None], axis=1)

    def topics(self, *, n_samples: int = 256, seed: int = 0) -> np.ndarray:
        """Return the topics that represent q(b) in the likelihood, shape (R, K, G)."""
        require_samples(n_samples)
        topics_RKG = mean_topics(self.program, n_samples=n_samples, seed=seed)
        return np.take_along_axis(topics_RKG, self.order_RK[:, :, None], axis=1)

    def topics_by_batch(
        self, counts: Counts, *, n_samples: int = 256, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the topics in each batch of cells, (S, R, K, G), and the batch of each cell."""
        topics_SRKG, batch_N = topics_by_batch(self.program, counts, n_samples=n_samples, seed=seed)
        return np.take_along_axis(topics_SRKG, self.order_RK[None, :, :, None], axis=2), batch_N

    @property
    def batches(self) -> tuple[str, ...]:
        """Names of the batches of the model; empty if it has none."""
        return self.program.constants.batches

    def batch_factors(
        self, *, topic: int | None = None, replicate: int | None = None
    ) -> pd.DataFrame:
        """Return the factor of each gene in each batch, batches × genes.

        A batch multiplies the proportions of genes in all topics by its factors. Their logarithms
        sum to 0 over batches. If the factors of topics differ (``batch_topic_scale``), these are
        their geometric means over topics, or those of a `topic`.

        Raises
        ------
        InputError
            The model has no batches.

        Examples
        --------
        >>> adata.obs["lab"] = ["Bonn", "Oslo"] * 100
        >>> labs = topicell.fit(adata, batch_key="lab", **quick)
        >>> factors = labs.batch_factors()
        >>> factors.shape
        (2, 100)
        >>> float(factors["gene_25"].prod().round(3))  # the logarithms sum to 0
        1.0
        """
        import pandas as pd

        r, shift = self._replicate(replicate), self.program.shifts()
        if shift is None:
            raise InputError("this model has no batches; fit it with batch_key=COLUMN")
        shift = shift[r, :-1].detach()
        if shift.dim() == 3:
            shift = shift.mean(1) if topic is None else shift[:, self.order_RK[r, topic]]
        factor_SG = shift.exp().cpu().numpy()
        return pd.DataFrame(factor_SG, index=list(self.batches), columns=self.genes)

    def deviations(self, *, replicate: int | None = None) -> np.ndarray:
        """Return how far the logits of genes are above the background at least, shape (K, G).

        It is the lower end of the 95 % interval of the posterior, so that genes whose deviation is
        not certain do not lead. The deviations of a topic have the median 0.

        Raises
        ------
        InputError
            The model has no background.
        """
        background_G = self.program.constants.background_G
        if background_G is None:
            raise InputError("this model has no background; fit it with background=True")
        r = self._replicate(replicate)
        mean_KG, scale_KG = (
            part[r].detach().cpu().numpy() for part in self.program.topic_posterior()
        )
        above_KG = mean_KG - background_G
        above_KG = above_KG - np.median(above_KG, axis=1, keepdims=True)
        lower_KG: np.ndarray = (above_KG - CREDIBLE * scale_KG)[self.order_RK[r]]
        return lower_KG

    def topic_correlations(self, *, replicate: int | None = None) -> np.ndarray:
        """Return the correlations of topics that the prior has learned, shape (K, K).

        They are those of the topic logits of a cell after subtracting their mean, on which
        proportions do not depend.

        Raises
        ------
        InputError
            The prior of the model has no correlations.

        Examples
        --------
        >>> learned = topicell.fit(adata, prior="correlated", **quick)
        >>> learned.topic_correlations().shape
        (3, 3)
        >>> learned.topic_correlations().diagonal().round(3)
        array([1., 1., 1.])
        """
        prior = self.program.cell_prior
        if not isinstance(prior, LearnedPrior) or prior.factor is None:
            raise InputError("the prior of this model is independent; fit it with prior=correlated")
        r, K = self._replicate(replicate), self.n_topics
        centring_KK = np.eye(K) - 1 / K
        covariance_KK = prior.covariance()[r].detach().cpu().numpy().astype(np.float64)
        covariance_KK = centring_KK @ covariance_KK @ centring_KK
        order, scale_K = self.order_RK[r], np.sqrt(np.diag(covariance_KK))
        correlation_KK: np.ndarray = covariance_KK / np.outer(scale_K, scale_K)
        return correlation_KK[np.ix_(order, order)]

    def prevalence(
        self, *, replicate: int | None = None, n_samples: int = 4096, seed: int = 0
    ) -> pd.DataFrame:
        """Return how covariates change the topics that the prior expects.

        One row for each topic and covariate: ``effect``, the change of the topic's logit by the
        covariate (by one level, or one standard deviation of a number), with sum 0 over topics;
        ``proportion`` and ``proportion_with``, the mean proportion that the prior expects in the
        mean cell, and after this change.

        Raises
        ------
        InputError
            The model has no covariates.

        Examples
        --------
        >>> adata.obs["age"] = range(200)
        >>> aged = topicell.fit(adata, prevalence="age", **quick)
        >>> table = aged.prevalence()
        >>> table[["topic", "covariate"]]
             topic covariate
        0  topic_0       age
        1  topic_1       age
        2  topic_2       age
        >>> bool(abs(table["effect"].sum()) < 1e-4)
        True
        """
        import pandas as pd

        prior = self.program.cell_prior
        effect_RDK = prior.effects() if isinstance(prior, LearnedPrior) else None
        if effect_RDK is None:
            raise InputError("this model has no covariates; fit it with prevalence=FORMULA")
        r = self._replicate(replicate)
        order = self.order_RK[r]
        effect_DK = effect_RDK[r].detach().cpu().numpy()[:, order]
        normal = prior.given(None).of(r)
        noise_SK = quasi_normal(n_samples, self.n_topics, seed, normal.mean)
        factor_KK = torch.linalg.inv(normal.inverse)
        logit_SK = (normal.mean + noise_SK @ factor_KK.mT).detach().cpu().numpy()[:, order]

        def expected(change_K: np.ndarray | float) -> np.ndarray:
            odds_SK = np.exp(logit_SK + change_K - (logit_SK + change_K).max(1, keepdims=True))
            mean_K: np.ndarray = (odds_SK / odds_SK.sum(1, keepdims=True)).mean(0)
            return mean_K

        before_K = expected(0.0)
        tables = [
            pd.DataFrame(
                {
                    "topic": self.topic_names,
                    "covariate": name,
                    "effect": effect_K,
                    "proportion": before_K,
                    "proportion_with": expected(effect_K),
                }
            )
            for name, effect_K in zip(self.program.constants.covariates, effect_DK, strict=True)
        ]
        return pd.concat(tables, ignore_index=True)

    def seeds(self, *, replicate: int | None = None) -> pd.DataFrame:
        """Return how far each seeded topic has moved from its prior knowledge.

        One row for each seeded topic: ``seed``; ``genes``, the number of its known genes;
        ``prior_log2_lift`` and ``log2_lift``, the mean log2 lift (`topicell.evaluation.ranking`) of
        its genes in the prior and in the topic, for an earlier topic of its `LEADING` genes;
        ``correlation`` of the log lifts of all known genes in the prior and in the topic (NaN for
        gene sets); ``highest_topic``, the topic in which the lift is highest.

        Raises
        ------
        InputError
            The model has no seeded topics.

        Examples
        --------
        >>> fit.gene_topics().to_csv("topics.csv")
        >>> seeded = topicell.fit(adata, topic_gene_prior="topics.csv", **quick)
        >>> seeded.seeds()[["seed", "highest_topic"]]
                    seed highest_topic
        topic
        topic_0  topic_0       topic_0
        topic_1  topic_1       topic_1
        topic_2  topic_2       topic_2
        """
        import pandas as pd

        seeds = self.program.constants.seeds
        if seeds is None:
            raise InputError("this model has no seeded topics; use topic_gene_prior=FILE")
        r = self._replicate(replicate)
        beta_KG = self.beta()[r]
        # Seeded topics are the first of the program; `align_to` can give them other numbers.
        topic_J = np.argsort(self.order_RK[r])[: len(seeds.names)]
        frequency_G = np.maximum(self.gene_frequency_G, 1e-12)
        lift_KG = np.log2(np.maximum(beta_KG, 1e-12) / frequency_G)
        rows = []
        for seed, (topic, name) in enumerate(zip(topic_J, seeds.names, strict=True)):
            known = np.flatnonzero(seeds.known_JG[seed])
            p_G = np.exp(seeds.logit_JG[seed] - seeds.logit_JG[seed].max())
            prior_G = np.log2(p_G / p_G.sum() / frequency_G)
            leading, correlation = known, np.nan
            if not seeds.of_sets:
                leading = known[np.argsort(-prior_G[known], kind="stable")[:LEADING]]
                correlation = np.corrcoef(prior_G[known], lift_KG[topic, known])[0, 1]
            mean_K = lift_KG[:, leading].mean(1)
            rows.append(
                {
                    "topic": f"topic_{topic}",
                    "seed": name,
                    "genes": len(known),
                    "prior_log2_lift": prior_G[leading].mean(),
                    "log2_lift": mean_K[topic],
                    "correlation": correlation,
                    "highest_topic": f"topic_{mean_K.argmax()}",
                }
            )
        return pd.DataFrame(rows).set_index("topic")

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood of the program."""
        return self.program.likelihood

    def elbo_by_replicate(
        self,
        data: Any = None,
        *,
        layer: str | None = None,
        refine: bool = False,
        n_samples: int = 10,
        seed: int = 0,
    ) -> np.ndarray:
        """Return the ELBO of cells in each replicate, nats per cell with KL weight 1, shape (R,).

        With `refine`, the mean amortization gap is added, which is never negative.
        """
        require_samples(n_samples)
        counts = self._counts(data, layer)
        cells = Chunks(self.program, counts)
        terms = elbo_terms(self.program, cells, n_samples=n_samples, seed=seed)
        elbo_R = terms.per_cell(self.n_train)
        return elbo_R + self.amortization_gap(counts, seed=seed).mean(1) if refine else elbo_R

    def elbo_by_cell(
        self, data: Any = None, *, layer: str | None = None, n_samples: int = 10, seed: int = 0
    ) -> np.ndarray:
        """Return the ELBO of each cell with KL weight 1, nats, shape (R, N)."""
        require_samples(n_samples)
        cells = Chunks(self.program, self._counts(data, layer))
        terms = elbo_terms(self.program, cells, n_samples=n_samples, seed=seed)
        return terms.by_cell(self.n_train)

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

        This is the gain of a posterior that is optimised for the cell with fixed topics, evaluated
        on the same draws. It is never negative, because the better of the two is selected.

        References
        ----------
        Cremer, Li & Duvenaud (2018), Inference suboptimality in variational autoencoders.
        """
        require_samples(n_samples)
        cells = Chunks(self.program, self._counts(data, layer))
        chosen = self._replicates(replicates)
        return amortization_gap(
            self.program, cells, n_samples=n_samples, seed=seed, replicates=chosen
        )

    def _reorder(self, order_RK: np.ndarray) -> None:
        self.order_RK = np.take_along_axis(self.order_RK, order_RK, axis=1)

    def _weights(self) -> dict[str, Tensor]:
        state = self.program.state_dict()
        weights = {name: value.cpu().contiguous() for name, value in state.items()}
        constants = self.program.constants
        stored = {"batch_shift": constants.batch_shift_SG, "background": constants.background_G}
        if constants.seeds is not None:
            seeds = constants.seeds
            stored |= {"seed_logit": seeds.logit_JG, "seed_known": seeds.known_JG}
        return weights | {
            CONSTANTS + name: torch.from_numpy(value)
            for name, value in stored.items()
            if value is not None
        }

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"order": self.order_RK.tolist()}
        constants = self.program.constants
        if constants.batches:
            document["batches"] = list(constants.batches)
        if constants.covariates:
            document["covariates"] = list(constants.covariates)
        if constants.seeds is not None:
            seeds = constants.seeds
            document["seeds"] = {"names": list(seeds.names), "of_sets": seeds.of_sets}
        return document

    @classmethod
    def restored(
        cls,
        weights: Mapping[str, Tensor],
        document: Mapping[str, Any],
        likelihood: Likelihood = MIXTURE,
        **shared: Any,
    ) -> Self:
        """Return the fit that was saved."""
        n_genes, n_replicates = len(shared["genes"]), len(shared["selection_R"])
        stored = {
            name.removeprefix(CONSTANTS): value.numpy()
            for name, value in weights.items()
            if name.startswith(CONSTANTS)
        }
        weights = {n: value for n, value in weights.items() if not n.startswith(CONSTANTS)}
        seeds = document.get("seeds")
        constants = Constants(
            batches=tuple(document.get("batches", ())),
            batch_shift_SG=stored.get("batch_shift"),
            covariates=tuple(document.get("covariates", ())),
            background_G=stored.get("background"),
            seeds=seeds
            and Seeds(
                tuple(seeds["names"]), stored["seed_logit"], stored["seed_known"], seeds["of_sets"]
            ),
        )
        program = TopicProgram(n_genes, n_replicates, shared["model"], likelihood, constants)
        program.load_state_dict(weights)
        return cls(program, np.array(document["order"]), **shared)
