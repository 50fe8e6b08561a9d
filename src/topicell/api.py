"""The Python face: `fit`, `load`, `load_dataset`, `preprocess`, and `AmortizedLDA` in the
scvi-tools tutorial's own spelling. Thin: the logic is in the rooms below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from topicell.config import (
    DataConfig,
    Device,
    EarlyStoppingConfig,
    InputError,
    ModelConfig,
    PreprocessConfig,
    ReadConfig,
    TrainConfig,
)
from topicell.model.baselines import fit_model
from topicell.model.counts import Counts
from topicell.model.fit import TopicFit, write_folder
from topicell.model.posterior import AmortizedFit
from topicell.model.training import train

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

SETUP = "_topicell_setup"
"""Key of uns under which `AmortizedLDA.setup_anndata` notes the layer."""


def load_dataset(name: str = "pbmc68k", **settings: Any) -> AnnData:
    """A data set of the catalogue, with integer counts in ``layers["counts"]``.

    Parameters
    ----------
    name
        ``pbmc68k`` (needs no network), ``pbmc3k``, ``pbmc5k``, ``pbmc10k``, ``pbmc_facs``,
        ``simulated``, or ``file`` with ``path=…``.
    settings
        Further fields of `topicell.config.DataConfig`.
    """
    from topicell.data.reading import load

    return load(DataConfig(name=name, **settings))


def preprocess(
    adata: AnnData, *, layer: str | None = None, seed: int = 0, **settings: Any
) -> AnnData:
    """The tutorial's preprocessing: filters, log-normalisation, variable genes, split.

    Parameters
    ----------
    adata
        Cells × genes; left as it is.
    layer
        Where the counts are; None takes ``layers["counts"]`` if there is one, else X.
    seed
        Decides the split.
    settings
        Fields of `topicell.config.PreprocessConfig`, and of `topicell.config.ReadConfig` but for
        its orientation and modality: ``gene_names``, ``feature_type``, ``round``.

    Returns
    -------
    A new AnnData, as of `topicell.data.preprocessing.preprocess`.
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
    """Fit topics to all genes of an AnnData, as they stand: amortized LDA, or another `kind`.

    Parameters
    ----------
    adata
        Cells × genes; the counts dense or sparse, in memory or backed.
    n_topics, n_replicates, seed
        As in the configuration.
    layer
        Where the counts are; None takes ``layers["counts"]`` if there is one, else X.
    valid_share
        Share of the cells that are held out for validation, drawn by the seed.
    settings
        Further fields of `topicell.config.ModelConfig` and `topicell.config.TrainConfig`; as
        ``kind``, `topicell.config.ModelKind` or its name.

    Raises
    ------
    InputError
        The matrix does not hold counts, or a setting is bad.

    Examples
    --------
    >>> import topicell
    >>> adata = topicell.load_dataset("simulated")
    >>> fit = topicell.fit(adata, n_topics=10, n_replicates=1, epochs=2, progress=False)
    >>> fit.cell_topics().shape, fit.gene_topics().shape
    ((2000, 10), (500, 10))
    """
    model_settings, train_settings = _sort_settings(settings)
    counts = Counts.of(adata, layer)
    if not 0 <= valid_share < 1:
        raise InputError(f"valid_share = {valid_share}: must be at least 0 and less than 1")
    shuffled = np.random.default_rng(seed).permutation(counts.n_cells)
    n_valid = round(valid_share * counts.n_cells)
    fitted = fit_model(
        counts[np.sort(shuffled[n_valid:])],
        counts[np.sort(shuffled[:n_valid])],
        ModelConfig(n_topics=n_topics, **model_settings),
        TrainConfig(n_replicates=n_replicates, **train_settings),
        seed=seed,
    )
    fitted.cells = counts
    return fitted


def load(path: str | Path) -> TopicFit:
    """Read a fit that was written by `TopicFit.save` or by a run (its ``model`` folder)."""
    return TopicFit.load(path)


def _sort_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    model_fields = {f.name for f in fields(ModelConfig)} - {"n_topics"}
    train_fields = {f.name for f in fields(TrainConfig)} - {"n_replicates"}
    _known(settings, ModelConfig, TrainConfig)
    return (
        {name: value for name, value in settings.items() if name in model_fields},
        {name: value for name, value in settings.items() if name in train_fields},
    )


def _known(settings: Mapping[str, Any], *configs: type) -> Mapping[str, Any]:
    """The settings, if each is a field of one of the dataclasses."""
    names = [f.name for config in configs for f in fields(config)]
    for name in settings:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"there is no setting {name!r}{hint}")
    return settings


class AmortizedLDA:
    """Amortized LDA in the spelling of scvi-tools, for code written after its tutorial.

    Names and shapes are those of `scvi.model.AmortizedLDA`; None means the tuned default of
    topicell. Unlike there, `get_elbo` is in nats per cell, `get_perplexity` is exp(−ELBO / counts),
    and a subset keeps the names of its own cells.

    Parameters
    ----------
    adata
        AnnData that went through `setup_anndata`.
    n_topics
        K.
    n_hidden
        Units of the encoder's hidden layer.
    cell_topic_prior
        Dirichlet concentration of θ: a number, K numbers, or None for 1/K.
    topic_feature_prior
        Dirichlet concentration of β: a number, G numbers, or None for 1/K.
    seed
        Decides starts, mini-batches, noise, and the held-out cells.
    """

    def __init__(
        self,
        adata: AnnData,
        n_topics: int = 20,
        n_hidden: int = 128,
        cell_topic_prior: float | Sequence[float] | None = None,
        topic_feature_prior: float | Sequence[float] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        if SETUP not in adata.uns:
            raise InputError("call AmortizedLDA.setup_anndata(adata, layer=…) first")
        self.adata = adata
        self.seed = seed
        self.layer = str(adata.uns[SETUP]["layer"])
        self.model = ModelConfig(
            n_topics=n_topics,
            n_hidden=n_hidden,
            cell_topic_prior=_as_list(cell_topic_prior),
            topic_gene_prior=_as_list(topic_feature_prior),
        )
        self.fit_: AmortizedFit | None = None

    @staticmethod
    def setup_anndata(adata: AnnData, layer: str | None = None) -> None:
        """Note which layer holds the counts (None: X), and check that it does."""
        layer = layer or "X"
        Counts.of(adata, layer)
        adata.uns[SETUP] = {"layer": layer}

    def train(
        self,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        lr: float | None = None,
        batch_size: int | None = None,
        train_size: float | None = None,
        validation_size: float | None = None,
        accelerator: str = "auto",
        early_stopping: bool = False,
        n_replicates: int = 1,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Fit the model; a second call goes on from where the first ended.

        Parameters
        ----------
        max_epochs, max_steps, lr, batch_size
            Length, peak learning rate and cells a step; None takes the tuned default.
        train_size, validation_size
            Shares of the cells; 0.9 and the rest by default.
        accelerator
            ``auto``, ``cpu``, ``gpu`` or ``cuda``.
        early_stopping
            Stop when the validation ELBO no longer rises.
        n_replicates
            Independent fits side by side; the best by ELBO is shown.
        datasplitter_kwargs
            ``{"external_indexing": [train, valid, test]}``: indices of the cells of each part.
        """
        settings: dict[str, Any] = {
            "epochs": max_epochs,
            "max_steps": max_steps,
            "n_replicates": n_replicates,
            "early_stopping": EarlyStoppingConfig(enabled=early_stopping),
            "device": Device.cuda if accelerator == "gpu" else Device(accelerator),
        }
        settings |= {"learning_rate": lr} if lr is not None else {}
        settings |= {"batch_size": batch_size} if batch_size is not None else {}
        counts = Counts.of(self.adata, self.layer)
        train_rows, valid_rows = self._split(
            counts.n_cells, train_size, validation_size, datasplitter_kwargs or {}
        )
        self.fit_ = train(
            counts[train_rows],
            counts[valid_rows],
            self.model,
            TrainConfig(**settings),
            seed=self.seed,
            start=self.fit_,
        )
        self.fit_.cells = counts

    def _split(
        self,
        n_cells: int,
        train_size: float | None,
        validation_size: float | None,
        datasplitter: Mapping[str, Any],
    ) -> tuple[np.ndarray, np.ndarray]:
        unknown = set(datasplitter) - {"external_indexing"}
        if unknown:
            raise InputError(
                f"datasplitter_kwargs: {sorted(unknown)} not known; give external_indexing"
            )
        if "external_indexing" in datasplitter:
            parts = [np.asarray(rows, dtype=int) for rows in datasplitter["external_indexing"]]
            joined = np.concatenate(parts)
            if len(np.unique(joined)) != len(joined) or joined.min() < 0 or joined.max() >= n_cells:
                raise InputError(
                    f"external_indexing: indices must be distinct and within the {n_cells} cells"
                )
            return parts[0], parts[1] if len(parts) > 1 else np.array([], dtype=int)
        share = 0.9 if train_size is None else train_size
        rest = 1 - share if validation_size is None else validation_size
        if not (0 < share <= 1 and rest >= 0 and share + rest <= 1 + 1e-9):
            raise InputError(
                f"train_size = {share} and validation_size = {rest}: shares of the cells that "
                "add up to at most 1"
            )
        shuffled = np.random.default_rng(self.seed).permutation(n_cells)
        n_train = max(round(share * n_cells), 1)
        return shuffled[:n_train], shuffled[n_train : n_train + round(rest * n_cells)]

    @property
    def is_trained(self) -> bool:
        """Whether `train` or `load` has given the model its weights."""
        return self.fit_ is not None

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Metrics by epoch, each a data frame of one column: ``elbo_train`` in nats per cell (KL
        weight 1, higher is better), ``elbo_validation``, ``perplexity_validation``, ``kl_weight``.
        """
        import pandas as pd

        names = {
            "elbo_train": "train/elbo",
            "elbo_validation": "valid/elbo",
            "perplexity_validation": "valid/perplexity",
            "kl_weight": "train/kl_weight",
        }
        rows = self._fitted().history
        index = pd.Index([int(row["epoch"]) for row in rows], name="epoch")
        return {
            name: pd.DataFrame({name: [row[metric] for row in rows]}, index=index)
            for name, metric in names.items()
            if all(metric in row for row in rows)
        }

    history_ = history

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        n_samples: int = 5000,
    ) -> pd.DataFrame:
        """Topic proportions, cells × topics; `batch_size` changes nothing and is not needed."""
        cells = self._cells(adata, indices)
        return self._fitted().transform(cells, n_samples=n_samples, seed=self.seed)

    def get_feature_by_topic(self, n_samples: int = 5000) -> pd.DataFrame:
        """Gene proportions, genes × topics."""
        return self._fitted().gene_topics(n_samples=n_samples, seed=self.seed)

    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> float:
        """ELBO in nats per cell, KL weight 1; higher is better."""
        return self._fitted().elbo(self._cells(adata, indices), seed=self.seed)

    def get_perplexity(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> float:
        """exp(−ELBO / counts) of the cells: an upper bound on perplexity per count, at least 1."""
        from topicell.evaluation.perplexity import elbo_perplexity

        cells = self._cells(adata, indices)
        elbo = self._fitted().elbo(cells, seed=self.seed)
        return elbo_perplexity(elbo * cells.n_cells, float(cells.x.sum(dtype=np.float64)))

    def save(
        self, dir_path: str | Path, *, overwrite: bool = False, save_anndata: bool = False
    ) -> None:
        """Write the model to a folder, with its AnnData on request (``adata.h5ad``)."""
        import json

        fitted = self._fitted()

        def write(folder: Path) -> None:
            fitted.save(folder, overwrite=True)
            face = {"layer": self.layer, "seed": self.seed}
            (folder / "amortized_lda.json").write_text(json.dumps(face))
            if save_anndata:
                self.adata.write_h5ad(folder / "adata.h5ad")

        write_folder(dir_path, write, overwrite=overwrite)

    @classmethod
    def load(cls, dir_path: str | Path, adata: AnnData | None = None) -> Self:
        """Read a model written by `save`; `adata` is needed if it was saved without its own."""
        import json

        folder = Path(dir_path)
        fitted = TopicFit.load(folder)
        if not isinstance(fitted, AmortizedFit):
            raise InputError(
                f"{folder} holds a fit of {fitted.model.kind.value}; use topicell.load"
            )
        if adata is None:
            if not (folder / "adata.h5ad").exists():
                raise InputError(f"{folder} was saved without its AnnData: pass adata=…")
            import anndata

            adata = anndata.read_h5ad(folder / "adata.h5ad")
        face = json.loads((folder / "amortized_lda.json").read_text())
        cls.setup_anndata(adata, layer=face["layer"])
        model = cls(adata, n_topics=fitted.n_topics, seed=face["seed"])
        model.model, model.fit_ = fitted.model, fitted
        return model

    def _fitted(self) -> AmortizedFit:
        if self.fit_ is None:
            raise InputError("the model is not trained; call train() first")
        return self.fit_

    def _cells(self, adata: AnnData | None, indices: Sequence[int] | None) -> Counts:
        cells = Counts.of(self.adata if adata is None else adata, self.layer)
        cells = cells.with_genes(list(self._fitted().genes))
        return cells if indices is None else cells[np.asarray(indices)]

    def __repr__(self) -> str:
        state = "trained" if self.is_trained else "not trained"
        return (
            f"AmortizedLDA with n_topics={self.model.n_topics}, "
            f"n_hidden={self.model.n_hidden}: {state}, {self.adata.n_obs} cells × "
            f"{self.adata.n_vars} genes"
        )


def _as_list(prior: Any) -> Any:
    return prior if prior is None or np.isscalar(prior) else [float(value) for value in prior]
