"""The Python interface: `fit`, `load`, `load_dataset` and `preprocess`.

`topicell.scvi_style` has the same with the names of scvi-tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell.config import DataConfig, ModelConfig, PreprocessConfig, ReadConfig, TrainConfig
from topicell.counts import Counts
from topicell.errors import InputError
from topicell.model.fit import TopicFit
from topicell.model.loading import load_fit
from topicell.model.registry import fit_model
from topicell.model.starts import require_batches

if TYPE_CHECKING:
    from anndata import AnnData


def load_dataset(name: str = "pbmc68k", **settings: Any) -> AnnData:
    """Return a data set of the catalogue, with integer counts in ``layers["counts"]``.

    Parameters
    ----------
    name
        ``pbmc68k`` (needs no network), ``pbmc3k``, ``pbmc5k``, ``pbmc10k``, ``pbmc_facs``,
        ``simulated``, or ``file`` with ``path=…`` (a file, or a list of files of several samples)
        or ``samples=…`` (a table of such files).
    settings
        Further fields of `topicell.config.DataConfig`.

    Examples
    --------
    >>> import topicell
    >>> adata = topicell.load_dataset("pbmc68k")
    >>> adata.shape, list(adata.layers)
    ((700, 765), ['counts'])
    """
    from topicell.data.reading import load

    return load(DataConfig(name=name, **settings))


def preprocess(
    adata: AnnData, *, layer: str | None = None, seed: int = 0, **settings: Any
) -> AnnData:
    """Return cells prepared as in the tutorial: filters, log-normalisation, variable genes, split.

    Parameters
    ----------
    adata
        Cells × genes; not changed.
    layer
        Where the counts are; None takes ``layers["counts"]`` if there is one, else X.
    seed
        Seed of the split.
    settings
        Fields of `topicell.config.PreprocessConfig`, and these of `topicell.config.ReadConfig`:
        ``gene_names``, ``feature_type``, ``round``.

    Returns
    -------
    A new AnnData, as from `topicell.data.preprocessing.preprocess`.

    Examples
    --------
    >>> import topicell
    >>> adata = topicell.load_dataset("pbmc68k")
    >>> prepared = topicell.preprocess(adata, n_variable_genes=None, cache=False)
    >>> prepared.shape  # without mitochondrial genes
    (700, 764)
    >>> prepared.obs["split"].value_counts().to_dict()
    {'train': 560, 'valid': 70, 'test': 70}
    """
    from topicell.data import preprocessing
    from topicell.data.features import with_features
    from topicell.data.reading import with_counts

    _known(settings, PreprocessConfig, ReadConfig)
    reading = {f.name for f in fields(ReadConfig)}
    options = ReadConfig(**{name: settings.pop(name) for name in reading & set(settings)})
    config = PreprocessConfig(**settings)
    own = adata.to_memory() if adata.isbacked else adata.copy()
    own = with_features(with_counts(own, layer, round_values=options.round), options)
    return preprocessing.preprocess(own, config, seed=seed)


def fit(
    adata: AnnData,
    *,
    n_topics: int = 10,
    n_replicates: int = 4,
    seed: int = 0,
    layer: str | None = None,
    valid_share: float = 0.1,
    **settings: Any,
) -> TopicFit:
    """Fit topics to all genes of an AnnData: amortized LDA, or another `kind` of model.

    Parameters
    ----------
    adata
        Cells × genes; the counts dense or sparse, in memory or backed.
    n_topics, n_replicates, seed
        As in the configuration.
    layer
        Where the counts are; None takes ``layers["counts"]`` if there is one, else X.
    valid_share
        Share of the cells that are held out for validation; the seed determines which.
    settings
        Further fields of `topicell.config.ModelConfig` and `topicell.config.TrainConfig`; ``kind``
        is a name of `topicell.model.registry.MODELS`.

    Raises
    ------
    InputError
        The matrix does not hold counts, or a setting is invalid.

    Examples
    --------
    >>> import topicell
    >>> adata = topicell.load_dataset("simulated")
    >>> fit = topicell.fit(adata, n_topics=10, n_replicates=1, epochs=2, progress=False)
    >>> fit.cell_topics().shape, fit.gene_topics().shape
    ((2000, 10), (500, 10))
    """
    model_settings, train_settings = _sort_settings(settings)
    if "align_to" in model_settings:
        raise InputError(
            "align_to: is a setting of runs; after the fit, call fit.align_to(earlier_fit)"
        )
    model = ModelConfig(n_topics=n_topics, **model_settings)
    counts = Counts.of(adata, layer)
    if model.batch_key is not None and counts.batch is None:
        counts = counts.with_batches(adata.obs, model.batch_key)
    if model.prevalence is not None and counts.design is None:
        from topicell.data.cells import with_covariates

        counts = with_covariates(counts, adata.obs, model.prevalence)
    if not 0 <= valid_share < 1:
        raise InputError(f"valid_share = {valid_share}: must be at least 0 and less than 1")
    shuffled = np.random.default_rng(seed).permutation(counts.n_cells)
    n_valid = round(valid_share * counts.n_cells)
    training = counts[np.sort(shuffled[n_valid:])]
    if model.batch_key is not None:
        require_batches(training, model, counts)
    fitted = fit_model(
        training,
        counts[np.sort(shuffled[:n_valid])],
        model,
        TrainConfig(n_replicates=n_replicates, **train_settings),
        seed=seed,
    )
    fitted.cells = counts
    return fitted


def load(path: str | Path) -> TopicFit:
    """Read a fit that was written by `TopicFit.save` or by a run (its ``model`` folder).

    Examples
    --------
    >>> import topicell
    >>> adata = topicell.load_dataset("pbmc68k")
    >>> fit = topicell.fit(adata, n_replicates=1, search=False, epochs=2, progress=False)
    >>> path = fit.save("model")
    >>> topicell.load(path).transform(adata[:5]).shape
    (5, 10)
    """
    return load_fit(path)


def _sort_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    model_fields = {f.name for f in fields(ModelConfig)} - {"n_topics"}
    train_fields = {f.name for f in fields(TrainConfig)} - {"n_replicates"}
    _known(settings, ModelConfig, TrainConfig)
    return (
        {name: value for name, value in settings.items() if name in model_fields},
        {name: value for name, value in settings.items() if name in train_fields},
    )


def _known(settings: Mapping[str, Any], *configs: type) -> Mapping[str, Any]:
    """Return the settings, if each is a field of one of the dataclasses."""
    names = [f.name for config in configs for f in fields(config)]
    for name in settings:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"there is no setting {name!r}{hint}")
    return settings
