"""The table of models: the name, the fit function and the settings of each.

To add a model, write one file that defines its fit function, and add one row to `MODELS`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from topicell.config import Engine, ModelConfig, TrainConfig, as_dict
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.model.checkpoints import Checkpoints
from topicell.model.external import gensim, scvi, sklearn, tomotopy
from topicell.model.external.library import Library, fit_library
from topicell.model.fit import EpochMetrics, TopicFit
from topicell.model.points import PointFit
from topicell.model.posterior import AmortizedFit
from topicell.model.prodlda import PRODUCT
from topicell.model.ranks import Ranks
from topicell.model.seeds import EarlierTopics
from topicell.model.training import train


class FitFunction(Protocol):
    """Fit a model; `topicell.model.training.train` documents the arguments."""

    def __call__(
        self,
        counts: Counts,
        valid: Counts | None,
        model: ModelConfig,
        config: TrainConfig,
        /,
        *,
        seed: int,
        on_epoch: Callable[[EpochMetrics], None] | None,
        checkpoints: Checkpoints | None,
    ) -> TopicFit:
        """Return the fit."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model: one row of the table.

    Attributes
    ----------
    name
        Value of ``model.kind``.
    title
        Name in reports, with ``{n_topics}`` in place of the number of topics.
    fit
        Fit the model.
    restore
        Restore a fit from its saved weights and document, and the arguments of `TopicFit`.
    settings
        Names of the settings in the groups ``model`` and ``train`` that have an effect; None if all
        have.
    library
        Module of the extra ``baselines`` that must be installed; empty if none.
    on_gpu
        Whether ``train.device`` and ``train.precision`` have an effect.
    together
        Whether several processes can fit it, each some of the replicates; then `fit` takes `ranks`.
    reference
        Publications to cite for the model, separated by semicolons.
    """

    name: str
    title: str
    fit: FitFunction
    restore: Callable[..., TopicFit]
    settings: frozenset[str] | None = None
    library: str = ""
    on_gpu: bool = False
    together: bool = False
    reference: str = ""

    def takes(self, setting: str) -> bool:
        """Return whether a setting has an effect."""
        return self.settings is None or setting in self.settings


LDA = "Blei, Ng & Jordan (2003), Latent Dirichlet allocation, JMLR 3:993-1022"
PRODLDA = "Srivastava & Sutton (2017), Autoencoding variational inference for topic models, ICLR"
SCIKIT_LEARN = (
    "Pedregosa et al. (2011), Scikit-learn: machine learning in Python, JMLR 12:2825-2830"
)
NMF = (
    "Lee & Seung (1999), Learning the parts of objects by non-negative matrix factorization, "
    "Nature 401:788-791"
)
GENSIM = (
    "Řehůřek & Sojka (2010), Software framework for topic modelling with large corpora, LREC "
    "workshop on new challenges for NLP frameworks"
)
SCVI = (
    "Gayoso et al. (2022), A Python library for probabilistic analysis of single-cell omics data, "
    "Nature Biotechnology 40:163-166"
)
LIBRARY_SETTINGS = frozenset(
    {
        *("model.kind", "model.n_topics", "model.cell_topic_prior", "model.topic_gene_prior"),
        "model.align_to",
        *("train.n_replicates", "train.epochs", "train.threads", "train.progress"),
    }
)
"""Settings of the models of other libraries."""


def _library(
    name: str, title: str, library: Library, passes: int, reference: str, module: str = ""
) -> ModelSpec:
    """Return the row of another library's model, with its default number of passes."""
    return ModelSpec(
        name,
        title,
        partial(fit_library, library, passes),
        PointFit.restored,
        LIBRARY_SETTINGS,
        module,
        reference=reference,
    )


def _restore_lda(
    weights: Mapping[str, Tensor], document: Mapping[str, Any], /, **shared: Any
) -> TopicFit:
    # External topics are saved under the default kind, without an encoder.
    kind = AmortizedFit if "order" in document else PointFit
    return kind.restored(weights, document, **shared)


MODELS = {
    spec.name: spec
    for spec in (
        ModelSpec(
            "amortized_lda",
            "latent Dirichlet allocation with {n_topics} topics and amortized inference",
            train,
            _restore_lda,
            on_gpu=True,
            together=True,
            reference=f"{LDA}; {PRODLDA}",
        ),
        ModelSpec(
            "prodlda",
            "ProdLDA, a product of {n_topics} topics, with amortized inference",
            partial(train, likelihood=PRODUCT),
            partial(AmortizedFit.restored, likelihood=PRODUCT),
            on_gpu=True,
            together=True,
            reference=PRODLDA,
        ),
        # The passes are those of experiments/speed; for scvi-tools, those of its tutorial.
        _library(
            "sklearn_lda",
            "scikit-learn's LatentDirichletAllocation with {n_topics} topics",
            sklearn.lda,
            100,
            f"{LDA}; {SCIKIT_LEARN}",
        ),
        _library(
            "sklearn_nmf",
            "scikit-learn's NMF with {n_topics} components, Kullback-Leibler loss",
            sklearn.nmf,
            300,
            f"{NMF}; {SCIKIT_LEARN}",
        ),
        _library(
            "gensim_lda",
            "gensim's LdaModel with {n_topics} topics",
            gensim.lda,
            20,
            f"{LDA}; {GENSIM}",
            "gensim",
        ),
        _library(
            "tomotopy_lda",
            "tomotopy's LDAModel with {n_topics} topics, Gibbs sampling",
            tomotopy.lda,
            500,
            f"{LDA}; Minchul Lee, tomotopy (software)",
            "tomotopy",
        ),
        _library(
            "scvi_lda",
            "scvi-tools' AmortizedLDA with {n_topics} topics",
            scvi.lda,
            1000,
            SCVI,
            "scvi",
        ),
    )
}
"""All models by name."""


def model_spec(name: str) -> ModelSpec:
    """Return a model of the table.

    Raises
    ------
    InputError
        There is no model with this name.
    """
    if name not in MODELS:
        near = get_close_matches(str(name), MODELS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"model.kind = {name!r}: must be one of {', '.join(MODELS)}{hint}")
    return MODELS[name]


def require_model(model: ModelConfig, train: TrainConfig) -> ModelSpec:
    """Return the model that the settings name, if it can be fitted with them.

    Raises
    ------
    InputError
        There is no such model, a setting has no effect on it, or its library is not installed.
    """
    spec = model_spec(model.kind)
    groups: dict[str, Any] = {"model": model, "train": train}
    for group, config in groups.items():
        default = type(config)()
        for f in fields(config):
            name, value = f"{group}.{f.name}", getattr(config, f.name)
            if spec.takes(name) or value == getattr(default, f.name):
                continue
            raise InputError(
                f"{name} = {as_dict(value)!r}: model.kind={spec.name} has no such setting; leave "
                "it out"
            )
    if isinstance(model.topic_gene_prior, str) and spec.settings is not None:
        raise InputError(
            f"model.topic_gene_prior = {model.topic_gene_prior!r}: model.kind={spec.name} takes a "
            "number; prior knowledge needs model.kind=amortized_lda or prodlda"
        )
    if spec.library and importlib.util.find_spec(spec.library) is None:
        raise InputError(
            f"model.kind = {spec.name!r} needs {spec.library}, which is not installed; "
            "pip install 'topicell[baselines]'"
        )
    return spec


def fit_model(
    counts: Counts,
    valid: Counts | None,
    model: ModelConfig,
    config: TrainConfig,
    *,
    seed: int = 0,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    checkpoints: Checkpoints | None = None,
    ranks: Ranks | None = None,
    prior: EarlierTopics | None = None,
) -> TopicFit:
    """Fit the model that ``model.kind`` names.

    The arguments are those of `topicell.model.training.train`.

    Raises
    ------
    InputError
        The model is not available, does not accept its settings, or the data are too small for it.
    """
    spec = require_model(model, config)
    more: dict[str, Any] = {"ranks": ranks} if ranks is not None and ranks.size > 1 else {}
    if prior is not None:
        more["prior"] = prior
    return spec.fit(
        counts, valid, model, config, seed=seed, on_epoch=on_epoch, checkpoints=checkpoints, **more
    )


def require_together(model: ModelConfig, config: TrainConfig, ranks: Ranks) -> None:
    """Check that these processes can fit a model together.

    Raises
    ------
    InputError
        They cannot; a single process can.
    """
    if ranks.size == 1:
        return
    if not model_spec(model.kind).together:
        raise InputError(f"model.kind = {model.kind!r}: several processes cannot fit it; start one")
    if config.engine is Engine.pyro:
        raise InputError("train.engine = 'pyro': several processes need train.engine=fused")
    if model.dropout > 0:
        raise InputError(f"model.dropout = {model.dropout}: several processes need model.dropout=0")
    share = ranks.share(config.n_replicates, config.replicates_per_device)
    # Mini-batches have more than half as many cells as train.batch_size.
    if share.n_shards > 1 and config.batch_size < 2 * share.n_shards:
        raise InputError(
            f"train.batch_size = {config.batch_size}: {share.n_shards} processes divide the cells "
            f"of each mini-batch; use train.batch_size={2 * share.n_shards} or more"
        )
