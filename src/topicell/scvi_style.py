"""`AmortizedLDA` with the interface of scvi-tools, for code that was written for it.

Each method takes the arguments of scvi-tools 1.4.2 in their order. An argument with an equivalent
is mapped to it. One warning for each call names the arguments without effect and says why. An
argument that scvi-tools does not have gives a TypeError that names the most similar argument.
"""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import numpy as np

from topicell.config import (
    AnnealingConfig,
    AnnealingShape,
    Device,
    EarlyStoppingConfig,
    ModelConfig,
    TrainConfig,
)
from topicell.counts import Counts
from topicell.data.cells import with_covariates
from topicell.errors import InputError
from topicell.model.engines import resolve_device
from topicell.model.fit import write_folder
from topicell.model.loading import load_fit
from topicell.model.posterior import AmortizedFit
from topicell.model.training import train

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

P = ParamSpec("P")
R = TypeVar("R")

SETUP = "_topicell_setup"
"""Key of uns under which `AmortizedLDA.setup_anndata` stores the layer and the batches."""


def _all(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


SETUP_WITHOUT_EFFECT = (
    _all("sample_key", "the model has no samples")
    | _all("labels_key unlabeled_category", "the model does not see labels")
    | _all("size_factor_key", "the library size of a cell is the sum of its counts")
    | _all(
        "categorical_covariate_keys continuous_covariate_keys cat_cov_keys cont_cov_keys",
        "the model has no covariates",
    )
    | _all("indices_key", "cells are identified by their names")
    | _all(
        "source_registry extend_categories allow_missing_labels field_registries",
        "topicell has no such registry",
    )
)
"""Arguments of `setup_anndata` of all models of scvi-tools that have no equivalent here."""
PLAN_WITHOUT_EFFECT = (
    _all(
        "optim optimizer optimizer_creator weight_decay eps betas amsgrad reduce_lr_on_plateau "
        "lr_factor lr_patience lr_threshold lr_scheduler_metric lr_min",
        "the optimiser is Adam, of which only the learning rate is set",
    )
    | _all("loss_fn loss_kwargs", "the loss is the ELBO")
    | _all("scale_elbo", "the steps of Adam do not depend on the scale of the ELBO")
    | _all("blocked update_only_decoder", "all parameters are trained")
    | _all("compile compile_kwargs on_step on_epoch", "the training loop is topicell's own")
)
"""Keys of ``plan_kwargs`` and ``optim_kwargs``."""
PLAN = (
    *("lr", "optim_kwargs", "n_steps_kl_warmup", "n_epochs_kl_warmup"),
    *("max_kl_weight", "min_kl_weight"),
)
"""Keys of ``plan_kwargs`` that are mapped."""
SPLITTER_WITHOUT_EFFECT = _all(
    "load_sparse_tensor pin_memory num_workers persistent_workers prefetch_factor shuffle "
    "shuffle_test_val sampler drop_last drop_dataset_tail data_and_attributes iter_ndarray "
    "distributed_sampler collate_fn timeout worker_init_fn batch_sampler multiprocessing_context "
    "generator pin_memory_device in_order",
    "mini-batches are gathered in memory, without a data loader",
)
"""Keys of ``datasplitter_kwargs``."""
TRAINER_WITHOUT_EFFECT = (
    _all("training_plan", "the training loop is topicell's own")
    | _all(
        "strategy num_nodes sync_batchnorm use_distributed_sampler plugins",
        "one device is used",
    )
    | _all(
        "early_stopping_monitor early_stopping_mode early_stopping_warmup_epochs",
        "early stopping uses the validation ELBO from the first epoch on",
    )
    | _all(
        "check_val_every_n_epoch val_check_interval num_sanity_val_steps limit_val_batches",
        "the validation cells are evaluated after each epoch",
    )
    | _all("gradient_clip_val gradient_clip_algorithm", "gradients are not clipped")
    | _all("deterministic", "a fit depends only on its seed")
    | _all("precision", "matrix products are in single precision")
    | _all(
        "benchmark logger log_every_n_steps log_save_dir learning_rate_monitor callbacks "
        "default_root_dir enable_checkpointing checkpointing_monitor ckpt_path "
        "enable_model_summary simple_progress_bar fast_dev_run min_epochs min_steps max_time "
        "limit_train_batches limit_test_batches limit_predict_batches overfit_batches "
        "accumulate_grad_batches inference_mode profiler detect_anomaly barebones "
        "reload_dataloaders_every_n_epochs enable_autolog_hparams model_registry",
        "there is no Lightning trainer",
    )
)
"""Arguments of the trainers of scvi-tools and Lightning."""
TRAINER = (
    *("max_steps", "enable_progress_bar", "progress_bar_refresh_rate", "devices", "use_gpu"),
    *("early_stopping", "early_stopping_patience", "early_stopping_min_delta"),
)
"""Arguments of the trainers that are mapped."""
SAVE_WITHOUT_EFFECT = (
    _all("save_kwargs", "weights are written as safetensors")
    | _all("legacy_mudata_format", "there is no MuData")
    | _all("datamodule", "the model belongs to an AnnData")
)
LOAD_WITHOUT_EFFECT = (
    _all("accelerator device", "a loaded model computes on the CPU")
    | _all("backup_url", "nothing is downloaded")
    | _all("datamodule", "the model belongs to an AnnData")
    | _all("allowed_classes_names_list", "nothing is unpickled")
)
SAME_HERE: dict[str, tuple[Any, ...]] = {
    "devices": (1, "1", "0", [0]),
    "num_nodes": (1,),
    "accumulate_grad_batches": (1,),
    "check_val_every_n_epoch": (1,),
    "scale_elbo": (1,),
    "precision": (32, "32", "32-true"),
    "early_stopping_monitor": ("elbo_validation",),
    "early_stopping_mode": ("min",),
}
"""Values that have the same meaning as the default."""
WRITE_H5AD = ("compression", "compression_opts", "as_dense", "convert_strings_to_categoricals")
ACCELERATORS = {"auto": Device.auto, "cpu": Device.cpu, "gpu": Device.cuda, "cuda": Device.cuda}


def _named(method: Callable[P, R]) -> Callable[P, R]:
    """Make an error about an unknown argument name the most similar known one."""
    names = list(inspect.signature(method).parameters)[1:]

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        _require_known(method.__name__, kwargs, names)
        return method(*args, **kwargs)

    return call


def _require_known(method: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise a TypeError that names the most similar argument.

    Raises
    ------
    TypeError
        An argument is not known.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"AmortizedLDA.{method}: there is no argument {name!r}{hint}")


def _warn_of(method: str, given: Mapping[str, Any], reasons: Mapping[str, str], level: int) -> None:
    """Warn once about the arguments that have no effect, grouped by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, value in given.items():
        if _asks(value) and value not in SAME_HERE.get(name, ()):
            by_reason.setdefault(reasons[name], []).append(name)
    if by_reason:
        listed = "; ".join(f"{', '.join(names)} ({why})" for why, names in by_reason.items())
        warnings.warn(
            f"AmortizedLDA.{method}: these arguments have no effect: {listed}", stacklevel=level + 1
        )


def _asks(value: Any) -> bool:
    """Return whether a value requests something, unlike values for "off" or "automatic"."""
    if isinstance(value, (bool, int, float, list, tuple, dict, type(None))):
        return bool(value)
    return not (isinstance(value, str) and value in ("", "auto"))


def _as_mapping(method: str, name: str, given: Any) -> dict[str, Any]:
    """Return a mapping, or a configuration object of scvi-tools, as a dictionary."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    if hasattr(given, "to_kwargs"):
        return dict(given.to_kwargs())
    if is_dataclass(given) and not isinstance(given, type):
        return asdict(given)
    raise TypeError(
        f"AmortizedLDA.{method}: {name} must be a mapping, found {type(given).__name__}"
    )


def _device_of(accelerator: Any) -> Device:
    """Return the device of Lightning's accelerator.

    Raises
    ------
    InputError
        topicell does not support the device, or it does not exist.
    """
    device = ACCELERATORS.get(str(accelerator).partition(":")[0])
    if device is None:
        raise InputError(
            f"accelerator = {accelerator!r}: topicell runs on the CPU or on CUDA; give auto, cpu "
            "or gpu"
        )
    try:
        resolve_device(device)
    except InputError as error:
        raise InputError(
            f"accelerator = {accelerator!r}: torch sees no CUDA device; give auto or cpu"
        ) from error
    return device


class AmortizedLDA:
    """Amortized LDA with the interface of scvi-tools, for code like that of its tutorial.

    Names and shapes are those of `scvi.model.AmortizedLDA`; None means the tuned default of
    topicell. Unlike in scvi-tools, `get_elbo` is in nats per cell, `get_perplexity` is exp(−ELBO /
    counts), and a subset keeps the names of its own cells.

    Parameters
    ----------
    adata
        AnnData that was prepared by `setup_anndata`.
    n_topics
        Number of topics, K.
    n_hidden
        Units of the encoder's hidden layer.
    cell_topic_prior
        Dirichlet concentration of θ: a number, K numbers, or None for 1/K.
    topic_feature_prior
        Dirichlet concentration of β: a number, G numbers, or None for 1/K; or a file of prior
        knowledge, as ``topic_gene_prior`` of `topicell.fit`.
    seed
        Seed of the initial topics, mini-batches, noise, and held-out cells.
    prior, background, prior_scale, prevalence
        As in `topicell.fit`; batches are named by ``setup_anndata(batch_key=…)``.

    Attributes
    ----------
    train_indices, validation_indices, test_indices
        Rows of the cells of each part, after `train`.

    Examples
    --------
    >>> import topicell
    >>> from topicell.config import SimulationConfig
    >>> corpus = SimulationConfig(n_cells=200, n_genes=100, n_topics=3)
    >>> adata = topicell.load_dataset("simulated", simulation=corpus)
    >>> topicell.AmortizedLDA.setup_anndata(adata, layer="counts")
    >>> model = topicell.AmortizedLDA(adata, n_topics=3)
    >>> model.train(enable_progress_bar=False)
    >>> model
    AmortizedLDA with n_topics=3, n_hidden=128: trained, 200 cells × 100 genes
    """

    @_named
    def __init__(
        self,
        adata: AnnData,
        n_topics: int = 20,
        n_hidden: int = 128,
        cell_topic_prior: float | Sequence[float] | None = None,
        topic_feature_prior: float | Sequence[float] | None = None,
        *,
        seed: int = 0,
        prior: str = "independent",
        background: bool = False,
        prior_scale: float = ModelConfig().prior_scale,
        prevalence: str | None = None,
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
            batch_key=adata.uns[SETUP].get("batch_key"),
            prior=prior,  # type: ignore[arg-type]  # the configuration takes its name
            background=background,
            prior_scale=prior_scale,
            prevalence=prevalence,
        )
        self.fit_: AmortizedFit | None = None
        self.train_indices: np.ndarray | None = None
        self.validation_indices: np.ndarray | None = None
        self.test_indices: np.ndarray | None = None

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        *,
        batch_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Store which layer holds the counts (None: X), and the batches; check both.

        Parameters
        ----------
        adata
            Cells × genes.
        layer
            Where the counts are; None takes X.
        batch_key
            Column of obs with the batch of each cell, as ``batch_key`` of scvi-tools' other
            models: topics are then without effects of batches (`topicell.fit` with ``batch_key``).
        kwargs
            Further arguments of scvi-tools' models (``labels_key`` …), which have no effect and
            give a warning.

        Examples
        --------
        >>> other = adata.copy()
        >>> topicell.AmortizedLDA.setup_anndata(other, layer="counts", batch_key="dominant_topic")
        """
        _require_known("setup_anndata", kwargs, ["layer", "batch_key", *SETUP_WITHOUT_EFFECT])
        _warn_of("setup_anndata", kwargs, SETUP_WITHOUT_EFFECT, 2)
        layer = layer or "X"
        Counts.of(adata, layer).with_batches(adata.obs, batch_key)
        adata.uns[SETUP] = {"layer": layer} | ({"batch_key": batch_key} if batch_key else {})

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        device: int | str | Sequence[int] = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int | None = 128,
        early_stopping: bool = False,
        lr: float | None = None,
        training_plan: Any = None,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_config: Any = None,
        plan_kwargs: Any = None,
        trainer_config: Any = None,
        *,
        n_replicates: int = 1,
        **trainer_kwargs: Any,
    ) -> None:
        """Fit the model; a second call continues the first fit.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; None uses the tuned default.
        accelerator
            ``auto``, ``cpu``, ``gpu`` or ``cuda``.
        device
            One device is used; another number has no effect.
        train_size, validation_size
            Shares of the cells; 0.9 and the rest by default.
        shuffle_set_split
            Whether the split is random; if not, the first cells are for validation, the next for
            training.
        batch_size
            Cells per step; None uses all training cells.
        early_stopping
            Stop when the validation ELBO no longer rises.
        lr
            Peak learning rate; None takes that of ``plan_kwargs``, or the tuned default.
        datasplitter_kwargs
            ``{"external_indexing": [train, valid, test]}``: indices of the cells of each part.
        plan_config, plan_kwargs
            Of these, ``lr`` and ``optim_kwargs={"lr": …}`` are the peak learning rate;
            ``n_epochs_kl_warmup``, ``n_steps_kl_warmup`` (neither: no warm-up), ``min_kl_weight``
            and ``max_kl_weight`` are the warm-up of the KL weight.
        n_replicates
            Number of independent fits; the best by ELBO is selected.
        training_plan, trainer_config, trainer_kwargs
            Of these, ``max_steps``, ``early_stopping_patience``, ``early_stopping_min_delta`` (in
            nats of all training cells, as there), ``enable_progress_bar`` and ``use_gpu`` have an
            effect.

        Raises
        ------
        InputError
            A bad value, or a GPU that is not there.
        TypeError
            An argument that scvi-tools does not have either.

        Examples
        --------
        >>> other = topicell.AmortizedLDA(adata, n_topics=3)
        >>> other.train(max_epochs=5, train_size=0.8, enable_progress_bar=False)
        >>> len(other.train_indices), len(other.validation_indices)
        (160, 40)
        """
        trainer = _as_mapping("train", "trainer_config", trainer_config) | trainer_kwargs
        plan = _as_mapping("train", "plan_config", plan_config)
        plan |= _as_mapping("train", "plan_kwargs", plan_kwargs)
        optimiser = dict(plan.get("optim_kwargs") or {})
        splitter = dict(datasplitter_kwargs or {})
        own = [*inspect.signature(self.train).parameters][:-1]
        _require_known("train", trainer, [*own, *TRAINER, *TRAINER_WITHOUT_EFFECT])
        _require_known("train: plan_kwargs", plan, [*PLAN, *PLAN_WITHOUT_EFFECT])
        _require_known("train: optim_kwargs", optimiser, ["lr", *PLAN_WITHOUT_EFFECT])
        _require_known(
            "train: datasplitter_kwargs",
            splitter,
            ["external_indexing", *SPLITTER_WITHOUT_EFFECT],
        )
        devices = trainer.get("devices", device)
        without_effect = {
            name: value
            for name, value in (plan | optimiser | splitter | trainer).items()
            if name in PLAN_WITHOUT_EFFECT | SPLITTER_WITHOUT_EFFECT | TRAINER_WITHOUT_EFFECT
        } | {"training_plan": training_plan, "devices": devices}
        _warn_of(
            "train",
            without_effect,
            PLAN_WITHOUT_EFFECT
            | SPLITTER_WITHOUT_EFFECT
            | TRAINER_WITHOUT_EFFECT
            | _all("devices", "one device is used, the first in CUDA_VISIBLE_DEVICES"),
            2,
        )
        if trainer.get("use_gpu") is not None:
            # An argument of scvi-tools before 1.0.
            accelerator = "gpu" if trainer["use_gpu"] else "cpu"
        chosen = _device_of(accelerator)
        counts = Counts.of(self.adata, self.layer)
        counts = counts.with_batches(self.adata.obs, self.model.batch_key)
        counts = with_covariates(counts, self.adata.obs, self.model.prevalence)
        rows = self._split(
            counts.n_cells,
            train_size,
            validation_size,
            splitter.get("external_indexing"),
            shuffle=shuffle_set_split,
        )
        n_train = max(len(rows[0]), 1)
        batch_size = n_train if batch_size is None else batch_size
        max_steps = trainer.get("max_steps")
        settings: dict[str, Any] = {
            "epochs": max_epochs,
            # -1 means no limit in Lightning.
            "max_steps": None if max_steps == -1 else max_steps,
            "n_replicates": n_replicates,
            "batch_size": batch_size,
            "device": chosen,
            "kl_annealing": _annealing(plan, math.ceil(n_train / max(batch_size, 1))),
            "early_stopping": _stopping(trainer, n_train, enabled=early_stopping),
            "progress": trainer.get("enable_progress_bar") is not False
            and trainer.get("progress_bar_refresh_rate") != 0,
        }
        rates = [rate for rate in (lr, optimiser.get("lr"), plan.get("lr")) if rate is not None]
        if rates:
            settings["learning_rate"] = rates[0]
        self.fit_ = train(
            counts[rows[0]],
            counts[rows[1]],
            self.model,
            TrainConfig(**settings),
            seed=self.seed,
            start=self.fit_,
        )
        self.fit_.cells = counts
        self.train_indices, self.validation_indices, self.test_indices = rows

    def _split(
        self,
        n_cells: int,
        train_size: float | None,
        validation_size: float | None,
        external: Sequence[Any] | None,
        *,
        shuffle: bool,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows for training, those for validation, and the others."""
        if external is not None:
            parts = [np.asarray(rows, dtype=int) for rows in external]
            joined = np.concatenate(parts)
            if len(np.unique(joined)) != len(joined) or joined.min() < 0 or joined.max() >= n_cells:
                raise InputError(
                    f"external_indexing: indices must be distinct and within the {n_cells} cells"
                )
            parts += [np.array([], dtype=int)] * 2
            return parts[0], parts[1], parts[2]
        share = 0.9 if train_size is None else train_size
        rest = 1 - share if validation_size is None else validation_size
        if not (0 < share <= 1 and rest >= 0 and share + rest <= 1 + 1e-9):
            raise InputError(
                f"train_size = {share} and validation_size = {rest}: shares of the cells that "
                "add up to at most 1"
            )
        n_train, n_valid = max(round(share * n_cells), 1), round(rest * n_cells)
        if not shuffle:
            n_valid = min(n_valid, n_cells - n_train)
            valid, train_, other = np.split(np.arange(n_cells), [n_valid, n_valid + n_train])
            return train_, valid, other
        shuffled = np.random.default_rng(self.seed).permutation(n_cells)
        train_, valid, other = np.split(shuffled, [n_train, min(n_train + n_valid, n_cells)])
        return train_, valid, other

    @property
    def is_trained(self) -> bool:
        """Whether `train` or `load` has given the model its weights."""
        return self.fit_ is not None

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """Metrics by epoch, as data frames of one column.

        Their names are ``elbo_train`` (nats per cell, KL weight 1, higher is better),
        ``elbo_validation``, ``perplexity_validation`` and ``kl_weight``.
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

    @_named
    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
        n_samples: int = 5000,
    ) -> pd.DataFrame:
        """Return topic proportions, cells × topics; `batch_size` has no effect.

        Examples
        --------
        >>> model.get_latent_representation(n_samples=100).head(3).round(1)
                topic_0  topic_1  topic_2
        cell_0      0.0      0.0      1.0
        cell_1      0.0      0.0      1.0
        cell_2      0.8      0.0      0.2
        >>> model.get_latent_representation(indices=[5, 7]).index.tolist()
        ['cell_5', 'cell_7']
        """
        cells = self._cells(adata, indices)
        return self._fitted().transform(cells, n_samples=n_samples, seed=self.seed)

    @_named
    def get_feature_by_topic(self, n_samples: int = 5000) -> pd.DataFrame:
        """Return gene proportions, genes × topics.

        Examples
        --------
        >>> model.get_feature_by_topic().sum().round(3)
        topic_0    1.0
        topic_1    1.0
        topic_2    1.0
        dtype: float32
        """
        return self._fitted().gene_topics(n_samples=n_samples, seed=self.seed)

    @_named
    def get_elbo(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> float:
        """Return the ELBO in nats per cell, KL weight 1; higher is better.

        Examples
        --------
        >>> round(model.get_elbo(), -2)
        -2900.0
        """
        return self._fitted().elbo(self._cells(adata, indices), seed=self.seed)

    @_named
    def get_perplexity(
        self,
        adata: AnnData | None = None,
        indices: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> float:
        """Return exp(−ELBO / counts): an upper bound on the perplexity per count, at least 1.

        Examples
        --------
        >>> round(model.get_perplexity())
        19
        """
        from topicell.evaluation.perplexity import elbo_perplexity

        cells = self._cells(adata, indices)
        elbo = self._fitted().elbo(cells, seed=self.seed)
        return elbo_perplexity(elbo * cells.n_cells, float(cells.x.sum(dtype=np.float64)))

    def view_anndata_setup(
        self, adata: AnnData | None = None, hide_state_registries: bool = False
    ) -> None:
        """Print which AnnData and layer the model reads.

        Examples
        --------
        >>> model.view_anndata_setup()
        AnnData set up for AmortizedLDA: 200 cells × 100 genes, counts in 'counts'
        """
        adata = self.adata if adata is None else adata
        if SETUP not in adata.uns:
            raise InputError("call AmortizedLDA.setup_anndata(adata, layer=…) first")
        print(  # noqa: T201 for this it is called
            f"AnnData set up for AmortizedLDA: {adata.n_obs} cells × {adata.n_vars} genes, "
            f"counts in {adata.uns[SETUP]['layer']!r}"
        )

    def save(
        self,
        dir_path: str | Path,
        prefix: str | None = None,
        overwrite: bool = False,
        save_anndata: bool = False,
        save_kwargs: Mapping[str, Any] | None = None,
        legacy_mudata_format: bool = False,
        datamodule: Any = None,
        **anndata_write_kwargs: Any,
    ) -> None:
        """Write the model to a folder, with its AnnData on request (``adata.h5ad``).

        Parameters
        ----------
        dir_path
            The folder.
        prefix
            The model goes into a folder of this name within it.
        overwrite
            Replace a folder that exists.
        save_anndata, anndata_write_kwargs
            Whether to write the AnnData, and arguments of its ``write_h5ad``.
        save_kwargs, legacy_mudata_format, datamodule
            No effect.

        Examples
        --------
        >>> from pathlib import Path
        >>> model.save("model", save_anndata=True)
        >>> sorted(file.name for file in Path("model").iterdir())
        ['adata.h5ad', 'amortized_lda.json', 'model.json', 'weights.safetensors']
        """
        import json

        names = [*inspect.signature(self.save).parameters][:-1]
        _require_known("save", anndata_write_kwargs, [*names, *WRITE_H5AD])
        given = {
            "save_kwargs": save_kwargs,
            "legacy_mudata_format": legacy_mudata_format,
            "datamodule": datamodule,
        }
        _warn_of("save", given, SAVE_WITHOUT_EFFECT, 2)
        fitted = self._fitted()

        def write(folder: Path) -> None:
            fitted.save(folder, overwrite=True)
            face = {"layer": self.layer, "seed": self.seed}
            (folder / "amortized_lda.json").write_text(json.dumps(face))
            if save_anndata:
                self.adata.write_h5ad(folder / "adata.h5ad", **anndata_write_kwargs)

        write_folder(Path(dir_path, prefix or ""), write, overwrite=overwrite)

    @classmethod
    @_named
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
        backup_url: str | None = None,
        datamodule: Any = None,
        allowed_classes_names_list: Sequence[str] | None = None,
    ) -> Self:
        """Read a model written by `save`; `adata` is needed if it was saved without its own.

        `dir_path` and `prefix` are those of `save`; the arguments after `adata` have no other
        effect.

        Examples
        --------
        >>> model.save("model")
        >>> topicell.AmortizedLDA.load("model", adata).is_trained
        True
        """
        import json

        given = {
            "accelerator": "" if accelerator == "cpu" else accelerator,
            "device": "" if device == "cpu" else device,
            "backup_url": backup_url,
            "datamodule": datamodule,
            "allowed_classes_names_list": allowed_classes_names_list,
        }
        _warn_of("load", given, LOAD_WITHOUT_EFFECT, 3)
        folder = Path(dir_path, prefix or "")
        fitted = load_fit(folder)
        if not isinstance(fitted, AmortizedFit):
            raise InputError(f"{folder} holds a fit of {fitted.model.kind}; use topicell.load")
        if adata is None:
            if not (folder / "adata.h5ad").exists():
                raise InputError(f"{folder} was saved without its AnnData: pass adata=…")
            import anndata

            adata = anndata.read_h5ad(folder / "adata.h5ad")
        face = json.loads((folder / "amortized_lda.json").read_text())
        cls.setup_anndata(adata, layer=face["layer"], batch_key=fitted.model.batch_key)
        model = cls(adata, n_topics=fitted.n_topics, seed=face["seed"])
        model.model, model.fit_ = fitted.model, fitted
        return model

    def _fitted(self) -> AmortizedFit:
        if self.fit_ is None:
            raise InputError("the model is not trained; call train() first")
        return self.fit_

    def _cells(self, adata: AnnData | None, indices: Sequence[int] | None) -> Counts:
        adata = self.adata if adata is None else adata
        cells = Counts.of(adata, self.layer).with_batches(adata.obs, self.model.batch_key)
        cells = cells.with_genes(self._fitted().genes, ids=self._fitted().gene_ids)
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


def _annealing(plan: Mapping[str, Any], steps_per_epoch: int) -> AnnealingConfig:
    """Return the warm-up of the KL weight that a training plan asks for."""
    settings: dict[str, Any] = {}
    if "max_kl_weight" in plan:
        settings["max_weight"] = plan["max_kl_weight"]
    if "min_kl_weight" in plan:
        # A weight of 0 would not determine the scale of the posterior.
        settings["min_weight"] = max(plan["min_kl_weight"], 1e-6)
    epochs, steps = plan.get("n_epochs_kl_warmup"), plan.get("n_steps_kl_warmup")
    if epochs:
        settings["warmup_epochs"] = epochs
    elif steps:
        settings["warmup_epochs"] = steps / steps_per_epoch
    elif "n_epochs_kl_warmup" in plan:
        settings["shape"] = AnnealingShape.constant
    return AnnealingConfig(**settings)


def _stopping(trainer: Mapping[str, Any], n_train: int, *, enabled: bool) -> EarlyStoppingConfig:
    """Return the early stopping that the arguments of a trainer ask for."""
    settings: dict[str, Any] = {}
    if "early_stopping_patience" in trainer:
        settings["patience"] = trainer["early_stopping_patience"]
    if "early_stopping_min_delta" in trainer:
        # In scvi-tools it is the sum over all training cells, here their mean.
        settings["min_delta"] = trainer["early_stopping_min_delta"] / n_train
    return EarlyStoppingConfig(enabled=trainer.get("early_stopping", enabled), **settings)
