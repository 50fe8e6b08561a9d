"""Every knob of a run, with its default, its unit and its check.

`RunConfig` is the whole; each field is one configuration group. Defaults live here and
nowhere else: the YAML files of ``conf/`` hold named differences only. A value out of range
raises `InputError`, which names the knob as it is written on the command line.

This module imports nothing heavy and nothing of ours: everything else may import it.
"""

from __future__ import annotations

import errno
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any, TypeVar

_E = TypeVar("_E", bound=Enum)


class InputError(ValueError):
    """Bad data or a bad setting: the message says what was found, where, and how to mend it."""


def failure(error: BaseException) -> str:
    """What ended a run, in one line; of memory and disk, with the knob to turn."""
    message = without_password(" ".join(str(error).split())) or "no message"
    if type(error).__name__ == "OutOfMemoryError":
        # torch's, which nothing here imports.
        mend = "lower train.batch_size, train.n_replicates or model.n_hidden, or train.device=cpu"
        return f"the GPU's memory is full ({message[:120]}); {mend}"
    if isinstance(error, MemoryError):
        mend = (
            "lower train.n_replicates or preprocess.n_variable_genes, of a sweep sweep.n_jobs, or "
            "read an h5ad with data.backed=true"
        )
        return f"memory is full ({message}); {mend}"
    if disk_is_full(error) or "No space left on device" in message:
        mend = "free it, then the same command with resume=true goes on; report.pdf=false, "
        return f"the disk is full ({message}); {mend}report=off and fewer replicates write less"
    return f"{type(error).__name__}: {message}"


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, is of a disk without room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def _require(condition: bool, knob: str, found: object, mend: str) -> None:
    if not condition:
        raise InputError(f"{knob} = {found!r}: {mend}")


LARGEST = 2**31 - 1
"""The largest whole number that a setting may be: no more fits where libraries put it."""


def _require_seed(seed: int, knob: str = "seed") -> None:
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    mend = "must be between 0 and 2**32 - 1, and whole"
    _require(whole and 0 <= seed < 2**32, knob, seed, mend)


def _require_numbers(
    prefix: str, config: Any, *knobs: str, allowed: Callable[[float], bool], mend: str
) -> None:
    """Refuse knobs that are not finite numbers, whole where an int is declared, and `allowed`."""
    declared = {f.name: str(f.type) for f in fields(config)}
    for knob in knobs:
        value = getattr(config, knob)
        if value is None and "None" in declared[knob]:
            continue
        name, whole = f"{prefix}.{knob}".lstrip("."), "float" not in declared[knob]
        kinds = int if whole else (int, float)
        _require(
            isinstance(value, kinds) and not isinstance(value, bool),
            name,
            value,
            "must be a whole number" if whole else "must be a number",
        )
        _require(allowed(value) and not math.isnan(value), name, value, mend)
        _require(
            abs(value) <= (LARGEST if whole else sys.float_info.max),
            name,
            value,
            f"must be at most {LARGEST}" if whole else "must be finite",
        )


def _member(knob: str, value: Any, enum: type[_E]) -> _E:
    """A member of an enumeration; Python callers may give its name."""
    try:
        return enum(value)
    except ValueError as error:
        names = ", ".join(member.value for member in enum)
        raise InputError(f"{knob} = {value!r}: must be one of {names}") from error


PRIOR_RANGE = "must be between 1e-30 and 1e30, where single precision has room for its arithmetic"


def _is_prior(value: object) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 1e-30 <= value <= 1e30
    )


def _require_positive(prefix: str, config: Any, *knobs: str) -> None:
    _require_numbers(
        prefix, config, *knobs, allowed=lambda value: value > 0, mend="must be greater than 0"
    )


def _require_not_negative(prefix: str, config: Any, *knobs: str) -> None:
    _require_numbers(
        prefix, config, *knobs, allowed=lambda value: value >= 0, mend="cannot be negative"
    )


def _require_share(prefix: str, config: Any, *knobs: str) -> None:
    _require_numbers(
        prefix,
        config,
        *knobs,
        allowed=lambda value: 0 <= value < 1,
        mend="must be at least 0 and less than 1",
    )


@dataclass(kw_only=True, slots=True)
class SimulationConfig:
    """A Dirichlet-multinomial corpus (``data=simulated``)."""

    n_cells: int = 2000
    n_genes: int = 500
    n_topics: int = 10
    mean_counts: float = 1000.0
    """Mean library size; sizes are log-normal with `counts_sd`."""
    counts_sd: float = 0.3
    """Standard deviation of the logarithm of the library size."""
    cell_topic_prior: float = 0.1
    """Dirichlet concentration of the topic proportions of a cell."""
    topic_gene_prior: float = 0.1
    """Dirichlet concentration of the gene proportions of a topic."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require_positive(
            "data.simulation",
            self,
            "n_cells",
            "n_genes",
            "n_topics",
            "mean_counts",
            "cell_topic_prior",
            "topic_gene_prior",
        )
        for knob in ("cell_topic_prior", "topic_gene_prior"):
            value = getattr(self, knob)
            _require(_is_prior(value), f"data.simulation.{knob}", value, PRIOR_RANGE)
        _require_numbers(
            "data.simulation",
            self,
            "counts_sd",
            allowed=lambda sd: 0 <= sd <= 10,
            mend="must be between 0 and 10, of the logarithm of the library size",
        )
        _require_seed(self.seed, "data.simulation.seed")


class Orientation(Enum):
    """Which way up a matrix lies in its file."""

    auto = "auto"
    """By the names of rows and columns; refused where they suggest genes in rows without proof."""
    cells_rows = "cells_rows"
    genes_rows = "genes_rows"
    """The matrix is transposed."""


@dataclass(kw_only=True, slots=True)
class ReadConfig:
    """How a file of counts is read: settings that every command that reads one has."""

    layer: str | None = None
    """Where the counts are: a layer's name, ``raw``, or null for X (in h5ad and zarr:
    ``layers["counts"]`` if there is one, else X)."""
    modality: str | None = None
    """Modality of a MuData file that is read; null takes the one with gene expression."""
    orientation: Orientation = Orientation.auto
    feature_type: str | None = None
    """Features that are kept where the file says of which type each is (10x files, CITE-seq);
    null keeps gene expression, ``all`` keeps every type."""
    gene_names: str | None = None
    """Column of var that names the genes in patterns, tables and figures; null takes a known column
    of symbols where the index holds ids, ``index`` keeps the index."""
    round: bool = False
    """Round values that are not whole, as of corrected or expected counts, instead of refusing."""

    def __post_init__(self) -> None:
        self.orientation = _member("orientation", self.orientation, Orientation)


@dataclass(kw_only=True, slots=True)
class DataConfig(ReadConfig):
    """Which cells: a named set, a simulated corpus, or a file."""

    name: str = "pbmc68k"
    """A set of the catalogue, ``simulated``, or ``file``."""
    path: str | None = None
    """With ``name: file``: h5ad, 10x h5, 10x mtx folder or a file in it, zarr, h5mu, loom, csv or
    tsv."""
    label_key: str | None = None
    """Column of obs that holds known cell types; null takes the catalogue's, if any."""
    backed: bool = False
    """With an h5ad file: read the counts, obs and var alone and leave the rest on disk."""
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    @property
    def title(self) -> str:
        """The set's name, or the file's."""
        return PurePath(self.path).stem if self.path else self.name

    def __post_init__(self) -> None:
        ReadConfig.__post_init__(self)
        _require(
            self.name != "file" or bool(self.path),
            "data.path",
            self.path,
            "data=file needs data.path=FILE",
        )
        _require(
            self.name == "file" or self.path is None,
            "data.path",
            self.path,
            f"only data=file reads a path, and data.name is {self.name!r}",
        )


class Flavor(Enum):
    """How variable genes are found: the flavours of `scanpy.pp.highly_variable_genes`."""

    seurat_v3 = "seurat_v3"
    seurat_v3_paper = "seurat_v3_paper"
    seurat = "seurat"
    cell_ranger = "cell_ranger"


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """Shares of the cells; the seed is the run's."""

    train: float = 0.8
    valid: float = 0.1
    test: float = 0.1
    stratify_by: str | None = None
    """Column of obs whose groups keep their shares in each part."""

    def __post_init__(self) -> None:
        prefix = "preprocess.split"
        _require_numbers(
            prefix,
            self,
            "train",
            allowed=lambda share: 0 < share <= 1,
            mend="must be greater than 0 and at most 1",
        )
        _require_share(prefix, self, "valid", "test")
        total = self.train + self.valid + self.test
        _require(
            math.isclose(total, 1, abs_tol=1e-6),
            prefix,
            total,
            "train + valid + test must be 1",
        )


@dataclass(kw_only=True, slots=True)
class PreprocessConfig:
    """From raw counts to the genes that are modelled, as in the scvi-tools tutorial."""

    min_counts_per_cell: int = 1
    min_cells_per_gene: int = 1
    drop_genes: list[str] = field(default_factory=lambda: ["mitochondrial"])
    """Genes that are not modelled: ``mitochondrial``, ``ribosomal`` or ``spike_in``, in the
    spelling of any species, or regular expressions of names."""
    n_variable_genes: int | None = 1000
    """How many of the most variable genes are modelled; null models all."""
    flavor: Flavor = Flavor.seurat_v3
    batch_key: str | None = None
    """Column of obs: variable genes are found within each batch and the ranks merged."""
    target_sum: float | None = 1e5
    """Library size that log-normalised values are scaled to; null takes the median."""
    split: SplitConfig = field(default_factory=SplitConfig)
    cache: bool = True
    """Keep the prepared data in the user's cache folder, by digest of data and settings."""
    cache_limit_mb: int | None = 2000
    """Size in MB that the cache of prepared data may have: what was used longest ago is removed
    first, never what was written last; null sets no limit."""

    def __post_init__(self) -> None:
        _require_not_negative("preprocess", self, "min_counts_per_cell", "min_cells_per_gene")
        _require_positive("preprocess", self, "n_variable_genes", "target_sum", "cache_limit_mb")


class ModelKind(Enum):
    """Whose model: topicell's own, or one of another library under the same measures."""

    amortized_lda = "amortized_lda"
    """Latent Dirichlet allocation with an encoder (`topicell.model.program`)."""
    sklearn_lda = "sklearn_lda"
    """scikit-learn's LatentDirichletAllocation: batch variational Bayes."""
    sklearn_nmf = "sklearn_nmf"
    """scikit-learn's NMF with the Kullback-Leibler loss: maximum likelihood of the topics."""
    gensim_lda = "gensim_lda"
    """gensim's LdaModel: online variational Bayes."""
    tomotopy_lda = "tomotopy_lda"
    """tomotopy's LDAModel: collapsed Gibbs sampling."""
    scvi_lda = "scvi_lda"
    """scvi-tools' AmortizedLDA."""


class Init(Enum):
    """Where the topic logits start."""

    background = "background"
    """Log background frequency of the genes plus noise."""
    kmeans = "kmeans"
    """Log profiles of clusters of cells: of the best of `n_starts` k-means runs."""
    random = "random"
    """Draws from the prior: kept for comparison, it collapses to a few topics."""


BASELINE_KNOBS = {
    "model": ("kind", "n_topics", "cell_topic_prior", "topic_gene_prior"),
    "train": ("n_replicates", "epochs", "threads", "progress"),
}
"""Settings that other libraries' models have; every other one would be without effect."""


def _require_no_other_knobs(prefix: str, config: Any, kind: ModelKind) -> None:
    """Refuse settings that a baseline does not have: they would be ignored."""
    if kind is ModelKind.amortized_lda:
        return
    default = type(config)()
    for f in fields(config):
        value = getattr(config, f.name)
        _require(
            f.name in BASELINE_KNOBS[prefix] or value == getattr(default, f.name),
            f"{prefix}.{f.name}",
            as_dict(value),
            f"model.kind={kind.value} has no such setting; leave it out",
        )


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Amortized latent Dirichlet allocation, or another library's model (`kind`)."""

    kind: ModelKind = ModelKind.amortized_lda
    n_topics: int = 10
    n_hidden: int = 128
    """Units of each hidden layer of the encoder."""
    n_layers: int = 1
    dropout: float = 0.0
    """Share of hidden units dropped in training."""
    normalize_means: bool = True
    """Batch norm on the encoder's means, with one learned scale for all topics: keeps topics
    alive."""
    cell_topic_prior: Any = None
    """Dirichlet concentration of θ: a number, K numbers, or null for 1/K."""
    topic_gene_prior: Any = None
    """Dirichlet concentration of β: a number, G numbers, or null for 1/K."""
    init: Init = Init.kmeans
    n_starts: int = 8
    """Clusterings that each replicate tries at the k-means start, to begin at the best."""

    def __post_init__(self) -> None:
        self.kind = _member("model.kind", self.kind, ModelKind)
        self.init = _member("model.init", self.init, Init)
        _require_numbers(
            "model",
            self,
            "n_topics",
            allowed=lambda number: number >= 2,
            mend="needs at least 2 topics",
        )
        _require_positive("model", self, "n_hidden", "n_layers", "n_starts")
        _require_share("model", self, "dropout")
        for knob in ("cell_topic_prior", "topic_gene_prior"):
            prior = getattr(self, knob)
            if prior is None:
                continue
            values = (
                prior if isinstance(prior, Sequence) and not isinstance(prior, str) else [prior]
            )
            _require(
                len(values) > 0 and all(map(_is_prior, values)),
                f"model.{knob}",
                prior,
                f"each number {PRIOR_RANGE}",
            )
        if isinstance(self.cell_topic_prior, Sequence):
            _require(
                len(self.cell_topic_prior) == self.n_topics,
                "model.cell_topic_prior",
                self.cell_topic_prior,
                f"has {len(self.cell_topic_prior)} numbers for {self.n_topics} topics; "
                "give one a topic, or one for all",
            )
        _require_no_other_knobs("model", self, self.kind)


class AnnealingShape(Enum):
    """How the weight of both KL terms rises from its minimum to its maximum."""

    linear = "linear"
    sigmoid = "sigmoid"
    cyclical = "cyclical"
    constant = "constant"


@dataclass(kw_only=True, slots=True)
class AnnealingConfig:
    """The weight of the KL terms over training."""

    shape: AnnealingShape = AnnealingShape.linear
    warmup_epochs: float | None = None
    """Length of the warm-up in epochs (of one cycle, if cyclical); null takes the share."""
    warmup_share: float = 0.25
    """Length of the warm-up as a share of all epochs (of each cycle, if cyclical)."""
    n_cycles: int = 4
    min_weight: float = 1e-3
    max_weight: float = 1.0

    def __post_init__(self) -> None:
        prefix = "train.kl_annealing"
        _require_numbers(
            prefix,
            self,
            "warmup_share",
            allowed=lambda share: 0 <= share <= 1,
            mend="must be between 0 and 1",
        )
        _require_not_negative(prefix, self, "warmup_epochs")
        _require_positive(prefix, self, "n_cycles", "max_weight", "min_weight")
        _require(
            self.min_weight <= self.max_weight,
            f"{prefix}.min_weight",
            self.min_weight,
            f"must not exceed max_weight = {self.max_weight}",
        )


@dataclass(kw_only=True, slots=True)
class EarlyStoppingConfig:
    """Stop when the validation ELBO no longer rises, and go back to the best epoch."""

    enabled: bool = True
    patience: int = 10
    """Epochs without a gain before training stops."""
    min_delta: float = 0.01
    """Smallest rise of the validation ELBO, in nats per cell, that counts as a gain."""

    def __post_init__(self) -> None:
        _require_positive("train.early_stopping", self, "patience")
        _require_not_negative("train.early_stopping", self, "min_delta")


class Schedule(Enum):
    """How the learning rate moves over training."""

    one_cycle = "one_cycle"
    constant = "constant"


class Device(Enum):
    """Where the arithmetic runs; ``auto`` is CUDA where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Engine(Enum):
    """What computes the ELBO and its gradients; both give the same numbers on the same noise."""

    fused = "fused"
    """Plain tensor operations with hand-written gradients: several times faster."""
    pyro = "pyro"
    """The Pyro program: the definition, for those who change the model."""


class Precision(Enum):
    """Of the matrix products of training, on CUDA; on the CPU all is in single precision."""

    float32 = "float32"
    tf32 = "tf32"
    """Factors rounded to 10 bits of mantissa, sums in single precision."""
    bfloat16 = "bfloat16"
    """The encoder's products in bfloat16, all else as under tf32."""


def checkpoint_interval(every: int | str | None) -> tuple[float, str] | None:
    """``train.checkpoint_every`` as a number and its unit, ``epochs`` or ``s``."""
    if every is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*(s?)", str(every).strip())
    number = float(found[1]) if found else 0.0
    _require(
        found is not None and 0 < number <= LARGEST and (found[2] == "s" or number == int(number)),
        "train.checkpoint_every",
        every,
        "give a whole number of epochs (10), or seconds (60s), or null",
    )
    assert found is not None
    return number, found[2] or "epochs"


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Stochastic variational inference."""

    n_replicates: int = 4
    """Independent fits of the same model, trained side by side."""
    epochs: int | None = None
    """Passes over the training cells; null takes as many as make about 250 steps,
    between 3 and 200 (of another library's model: `topicell.model.baselines.PASSES`)."""
    max_steps: int | None = None
    """Stop after this many optimisation steps, whatever the epochs."""
    batch_size: int = 128
    """Cells a step; batches are made equal in size, so none is short."""
    learning_rate: float = 0.1
    """Peak rate of Adam."""
    schedule: Schedule = Schedule.one_cycle
    kl_annealing: AnnealingConfig = field(default_factory=AnnealingConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    engine: Engine = Engine.fused
    device: Device = Device.auto
    precision: Precision = Precision.tf32
    threads: int | None = 1
    """CPU threads of the arithmetic; null leaves torch's own. On shared cores one thread is
    often faster than two."""
    progress: bool = True
    """Show a progress bar on the terminal."""
    checkpoint_every: int | str | None = "60s"
    """How often a fit keeps what ``resume`` goes on from: a number of epochs, or of seconds as
    ``60s``; null never does. A fit that is interrupted keeps it as well."""

    def __post_init__(self) -> None:
        checkpoint_interval(self.checkpoint_every)
        _require_positive(
            "train",
            self,
            "n_replicates",
            "epochs",
            "max_steps",
            "batch_size",
            "learning_rate",
            "threads",
        )
        _require(
            self.precision is not Precision.bfloat16 or self.engine is Engine.fused,
            "train.precision",
            self.precision.value,
            "is for train.engine = fused",
        )


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """How the fit is measured; every measure is defined in `topicell.evaluation`."""

    n_samples: int = 256
    """Monte-Carlo samples of the posterior means of θ and β."""
    n_elbo_samples: int = 10
    """Monte-Carlo samples of the expected log-likelihood in the final ELBO."""
    n_coherence_genes: int = 20
    """Top genes of a topic over whose pairs coherence is taken."""
    n_diversity_genes: int = 25
    """Top genes of a topic that count for diversity."""
    n_neighbors: int = 15
    """Neighbours of the label classifier in topic space."""
    n_gap_cells: int = 4000
    """Cells, drawn at random, whose amortization gap is measured; 0 measures none."""
    differential_expression: bool = True
    """Fold changes of the genes in each topic against the others, with standard errors."""
    n_splits: int = 1
    """Splits of the cells, each with fits of its own: error bars over splits and replicates. The
    first is the run's, which the artifacts show."""

    def __post_init__(self) -> None:
        _require_not_negative("evaluate", self, "n_gap_cells")
        _require_positive(
            "evaluate",
            self,
            "n_samples",
            "n_elbo_samples",
            "n_diversity_genes",
            "n_neighbors",
            "n_splits",
        )
        _require_numbers(
            "evaluate",
            self,
            "n_coherence_genes",
            allowed=lambda number: number >= 2,
            mend="pairs need at least 2 genes",
        )


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Embeddings, figures and the page."""

    enabled: bool = True
    n_components: int = 30
    """Principal components of the log-normalised counts."""
    n_neighbors: int = 20
    """Neighbours of both UMAPs."""
    leiden_resolution: float = 0.8
    n_top_genes: int = 10
    """Top genes of each topic that figures and page show."""
    dpi: int = 150
    """Resolution of the figures, dots per inch (in the PDFs, of the points of maps alone)."""
    pdf: bool = True
    """Every figure as PDF too, beside the PNG: a third of the time of a report."""
    gene_sets: str | None = None
    """Gene sets to look for among the leading genes of each topic: a GMT file, or ``blood`` for the
    markers of blood cells that come with topicell."""
    n_enrichment_genes: int = 50
    """Leading genes of each topic, by FREX, among which gene sets are looked for."""

    def __post_init__(self) -> None:
        _require_positive(
            "report",
            self,
            "n_components",
            "leiden_resolution",
            "n_top_genes",
            "n_enrichment_genes",
        )
        _require_numbers(
            "report",
            self,
            "n_neighbors",
            allowed=lambda number: number >= 2,
            mend="needs 2 or more",
        )
        _require_numbers(
            "report",
            self,
            "dpi",
            allowed=lambda dpi: 10 <= dpi <= 1200,
            mend="must be between 10 and 1200: figures of fewer dots cannot be drawn, of more take "
            "gigabytes",
        )


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where MLflow keeps the run; the run folder holds the same in any case."""

    enabled: bool = True
    uri: str | None = None
    """Tracking server or store; null takes ``MLFLOW_TRACKING_URI``, else
    ``sqlite:///mlflow.db`` in the current folder."""
    artifact_location: str | None = None
    """Where a new experiment on a local store keeps artifacts; null takes ``mlartifacts``
    beside the store. A server decides for itself."""
    experiment: str = "topicell"
    run_name: str | None = None
    """null names a run by its data, its number of topics and its seed."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One run of ``topicell train``: data, preprocessing, model, training, measures, report."""

    data: DataConfig = field(default_factory=DataConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0
    """Reaches the split, the start, the mini-batches, the noise and the embeddings."""

    def __post_init__(self) -> None:
        _require_seed(self.seed)
        require_effect(self.model, self.train)

    @property
    def title(self) -> str:
        """What a run is called that was given no name."""
        own = self.model.kind is ModelKind.amortized_lda
        kind = "" if own else f"{self.model.kind.value}, "
        return f"{self.data.title}, {kind}{self.model.n_topics} topics, seed {self.seed}"


class Sampler(Enum):
    """Which of Optuna's samplers proposes the next trial."""

    tpe = "tpe"
    """Tree-structured Parzen estimator, multivariate."""
    gp = "gp"
    """Gaussian process with expected improvement."""
    random = "random"
    grid = "grid"
    """Every point of the space, in order; for finite spaces."""
    qmc = "qmc"
    """Quasi-Monte Carlo: Sobol' points."""


class Pruner(Enum):
    """Which of Optuna's pruners ends hopeless trials, by validation perplexity at each epoch."""

    median = "median"
    """Ends a trial that is worse than the median of the earlier ones at the same epoch."""
    hyperband = "hyperband"
    patient = "patient"
    """The median rule, once a trial has not gained for `SweepConfig.patience` epochs."""
    none = "none"


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """A search over settings (``-m sweep=topics``) by Optuna."""

    enabled: bool = False
    params: dict[str, str] = field(default_factory=dict)
    """Settings that are moved, in Hydra's grammar of sweeps; the command line adds to them and
    goes before: ``model.n_topics=range(2,31)``, ``choice(5,10,20)``, ``int(interval(2,30))``,
    ``tag(log,interval(1e-3,1))``."""
    study: str | None = None
    """The study's name; null names it by the data and a digest of all that decides its trials, so
    that the same command finds it again."""
    storage: str | None = None
    """``sqlite:///FILE``, ``journal:FILE`` or ``postgresql+psycopg://…``; null takes
    ``sqlite:///optuna.db`` in the current folder."""
    join: bool = False
    """Work on one study from several processes or machines; each has to be started with it."""
    n_trials: int = 20
    """Trials of the study, over all sessions; a trial of a killed worker does not count twice."""
    timeout: float | None = None
    """Seconds after which no further trial is started, over all sessions."""
    n_jobs: int = 2
    """Worker processes, each taking one trial after another."""
    sampler: Sampler = Sampler.tpe
    pruner: Pruner = Pruner.median
    n_startup_trials: int = 4
    """Trials that must be complete before one is pruned by its epochs; to race, one is enough."""
    pruning_warmup: float = 0.5
    """Share of the epochs of a fit in which no trial is pruned."""
    pruning_margin: float = 0.01
    """A trial whose perplexity is within this share of the best one's at the same epoch is not
    pruned there: the smallest number of topics on a plateau is to be found, not only the best."""
    racing_errors: float = 2.0
    """After each split, a trial that is worse than the best on the same splits by more than so
    many standard errors is pruned as well (unless ``pruner=none``)."""
    patience: int = 3
    """Epochs without a gain before ``pruner=patient`` may end a trial, of those that the sweep
    looks at: all of the first 50, then every second, every fourth, and so on."""
    max_failure_rate: float | None = None
    """End the sweep when more than this share of `n_trials` has failed; null goes on."""
    stability_floor: float = 0.7
    """Numbers of topics of a lower mean stability are not chosen."""
    register: str | None = "topicell"
    """Registered model of MLflow that receives the chosen one, under the alias ``champion``; null
    registers nothing."""

    def __post_init__(self) -> None:
        _require_positive("sweep", self, "n_trials", "timeout", "n_jobs", "patience")
        _require_not_negative("sweep", self, "n_startup_trials", "pruning_margin", "racing_errors")
        _require_share("sweep", self, "pruning_warmup", "max_failure_rate")
        _require_numbers(
            "sweep",
            self,
            "stability_floor",
            allowed=lambda floor: 0 <= floor <= 1,
            mend="must be between 0 and 1",
        )
        for knob in ("study", "register"):
            value = getattr(self, knob)
            _require(
                value is None or (value not in ("", ".", "..") and not set(value) & set("/:\\")),
                f"sweep.{knob}",
                value,
                "must be a name without / and :",
            )


@dataclass(kw_only=True, slots=True)
class TrainCommand(RunConfig):
    """What ``topicell train`` is told: a run, and with ``-m`` how runs are searched."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    resume: str | None = None
    """Go on with a run that did not end: ``true`` for the last one of the same settings (or begin
    one, if there is none), else its MLflow id or its folder."""


@dataclass(kw_only=True, slots=True)
class GivenConfig(ReadConfig):
    """Score and report topics from elsewhere: theta=FILE beta=FILE data=SET-or-FILE."""

    theta: str = "???"
    """Topic proportions of cells: FILE.csv, .tsv, .txt, .npy, .npz or .h5ad[:obsm/NAME]."""
    beta: str = "???"
    """Gene proportions of topics: the same forms; of an h5ad, varm."""
    data: str = "???"
    """The cells: a set of the catalogue, or a file or folder as in ``data=file``."""
    label_key: str | None = None
    """Column of obs that holds known cell types; null takes the catalogue's, if any."""
    held_out: str | None = None
    """Cells that the topics were not fitted to: a file of names, one a line; or a column of obs,
    true or ``test`` for these cells."""
    normalize: bool = False
    """Rescale the proportions of each cell, and of each topic, to sum to 1."""
    floor: float = 0.0
    """Least proportion of a gene in a topic; an exact 0 makes an unseen count impossible."""
    output: str | None = None
    """Folder to write; null takes ``evaluations/DATE/TIME``."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        ReadConfig.__post_init__(self)
        _require_seed(self.seed)
        _require_numbers(
            "",
            self,
            "floor",
            allowed=lambda floor: 0 <= floor < 0.1,
            mend="must be at least 0 and below 0.1",
        )

    @property
    def title(self) -> str:
        """What an evaluation is called that was given no name."""
        return f"{PurePath(self.data).stem}, topics of {PurePath(self.beta).stem}"


def require_effect(model: ModelConfig, train: TrainConfig) -> None:
    """Refuse settings of the training that the kind of model does not have."""
    _require_no_other_knobs("train", train, model.kind)


_PASSWORD = re.compile(r"(:/{1,3}[^\s:/@]*):\S*@")
"""Of ``SCHEME://USER:PASSWORD@HOST``; a path has one slash alone, and a password may hold ``@``."""
_TOKEN = re.compile(r"(https?:/{1,2})[^\s:/@]+@")
"""Of ``https://TOKEN@HOST``: of a server, unlike a database, nobody is asked for a name alone."""
_SECRET_FIELD = re.compile(
    r"(?i)([?&;][^\s=?&;]*(?:pass|pwd|token|secret|credential|signature|api_?key|odbc_connect)"
    r"[^\s=?&;]*=)[^\s&]*"
)
"""Of the fields after the question mark, and of the string of ODBC, which may hold anything."""


def without_password(text: str) -> str:
    """A text without the passwords and tokens of the addresses in it."""
    shown = _PASSWORD.sub(r"\1:***@", text)
    shown = _TOKEN.sub(r"\1***@", shown)
    return _SECRET_FIELD.sub(r"\1***", shown)


def as_dict(config: Any) -> Any:
    """A configuration as plain dicts, lists, numbers and strings, to be recorded: no passwords."""
    if isinstance(config, str):
        return without_password(config)
    if isinstance(config, Enum):
        return config.value
    if is_dataclass(config):
        return {f.name: as_dict(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, (list, tuple)):
        return [as_dict(value) for value in config]
    return config


def dotted(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every knob by its dotted name, as it is written on the command line."""
    flat: dict[str, Any] = {}
    for name, value in (as_dict(config) if is_dataclass(config) else config).items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
