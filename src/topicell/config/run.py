"""Settings of one run: their defaults, units and bounds, one dataclass for each group.

`RunConfig` is the whole; each of its fields is one configuration group. Defaults live here only:
the YAML files of ``conf/`` hold named differences. A value out of bounds raises `InputError`, which
names the setting as it is written on the command line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

from topicell.config.checks import (
    CONCENTRATIONS,
    LARGEST,
    NOT_NEGATIVE,
    POSITIVE,
    PRIOR,
    SEED,
    SHARE,
    Bounds,
    check_fields,
    require,
    setting,
)


@dataclass(kw_only=True, slots=True)
class SimulationConfig:
    """A Dirichlet-multinomial corpus (``data=simulated``)."""

    n_cells: int = setting(2000, POSITIVE)
    n_genes: int = setting(500, POSITIVE)
    n_topics: int = setting(10, POSITIVE)
    mean_counts: float = setting(1000.0, POSITIVE)
    """Mean library size; sizes are log-normal with `counts_sd`."""
    counts_sd: float = setting(
        0.3,
        Bounds(
            0,
            10,
            "must be between 0 and 10; it is the standard deviation of the logarithm of the "
            "library size",
        ),
    )
    """Standard deviation of the logarithm of the library size."""
    cell_topic_prior: float = setting(0.1, PRIOR)
    """Dirichlet concentration of the topic proportions of a cell."""
    topic_gene_prior: float = setting(0.1, PRIOR)
    """Dirichlet concentration of the gene proportions of a topic."""
    seed: int = setting(0, SEED)

    def __post_init__(self) -> None:
        check_fields("data.simulation", self)


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
        check_fields("", self)


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
        check_fields("data", self)
        require(
            self.name != "file" or bool(self.path),
            "data.path",
            self.path,
            "data=file needs data.path=FILE",
        )
        require(
            self.name == "file" or self.path is None,
            "data.path",
            self.path,
            f"only data=file reads a path, but data.name is {self.name!r}",
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

    train: float = setting(0.8, Bounds(0, 1, excludes_low=True))
    valid: float = setting(0.1, SHARE)
    test: float = setting(0.1, SHARE)
    stratify_by: str | None = None
    """Column of obs whose groups keep their shares in each part."""

    def __post_init__(self) -> None:
        check_fields("preprocess.split", self)
        total = self.train + self.valid + self.test
        require(
            math.isclose(total, 1, abs_tol=1e-6),
            "preprocess.split",
            total,
            "train + valid + test must be 1",
        )


@dataclass(kw_only=True, slots=True)
class PreprocessConfig:
    """From raw counts to the genes that are modelled, as in the scvi-tools tutorial."""

    min_counts_per_cell: int = setting(1, NOT_NEGATIVE)
    min_cells_per_gene: int = setting(1, NOT_NEGATIVE)
    drop_genes: list[str] = field(default_factory=lambda: ["mitochondrial"])
    """Genes that are not modelled: ``mitochondrial``, ``ribosomal`` or ``spike_in``, in the
    spelling of any species, or regular expressions of names."""
    n_variable_genes: int | None = setting(1000, POSITIVE)
    """How many of the most variable genes are modelled; null models all."""
    flavor: Flavor = Flavor.seurat_v3
    batch_key: str | None = None
    """Column of obs: variable genes are found within each batch and the ranks merged."""
    target_sum: float | None = setting(1e5, POSITIVE)
    """Library size that log-normalised values are scaled to; null takes the median."""
    split: SplitConfig = field(default_factory=SplitConfig)
    cache: bool = True
    """Keep the prepared data in the user's cache folder, by digest of data and settings."""
    cache_limit_mb: int | None = setting(2000, POSITIVE)
    """Largest size of the cache of prepared data, in MB: data used longest ago are removed first,
    those written last never; null sets no limit."""

    def __post_init__(self) -> None:
        check_fields("preprocess", self)


class Init(Enum):
    """Where the topic logits start."""

    background = "background"
    """Log background frequency of the genes plus noise."""
    kmeans = "kmeans"
    """Log profiles of clusters of cells: of the best of `n_starts` k-means runs."""
    random = "random"
    """Draws from the prior: kept for comparison, it collapses to a few topics."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Amortized latent Dirichlet allocation, or another library's model (`kind`)."""

    kind: str = "amortized_lda"
    """Name of a model of `topicell.model.registry`."""
    n_topics: int = setting(10, Bounds(2, says="needs at least 2 topics"))
    n_hidden: int = setting(128, POSITIVE)
    """Units of each hidden layer of the encoder."""
    n_layers: int = setting(1, POSITIVE)
    dropout: float = setting(0.0, SHARE)
    """Share of hidden units dropped in training."""
    normalize_means: bool = True
    """Batch norm on the encoder's means, with one learned scale for all topics: keeps topics
    alive."""
    cell_topic_prior: Any = field(default=None, metadata=CONCENTRATIONS)
    """Dirichlet concentration of θ: a number, K numbers, or null for 1/K."""
    topic_gene_prior: Any = field(default=None, metadata=CONCENTRATIONS)
    """Dirichlet concentration of β: a number, G numbers, or null for 1/K."""
    init: Init = Init.kmeans
    n_starts: int = setting(8, POSITIVE)
    """Clusterings that each replicate tries at the k-means start, to begin at the best."""

    def __post_init__(self) -> None:
        check_fields("model", self)
        prior = self.cell_topic_prior
        if isinstance(prior, Sequence):
            require(
                len(prior) == self.n_topics,
                "model.cell_topic_prior",
                prior,
                f"has {len(prior)} numbers for {self.n_topics} topics; give one number for each "
                "topic, or one number for all",
            )


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
    warmup_epochs: float | None = setting(None, NOT_NEGATIVE)
    """Length of the warm-up in epochs (of one cycle, if cyclical); null takes the share."""
    warmup_share: float = setting(0.25, Bounds(0, 1))
    """Length of the warm-up as a share of all epochs (of each cycle, if cyclical)."""
    n_cycles: int = setting(4, POSITIVE)
    min_weight: float = setting(1e-3, POSITIVE)
    max_weight: float = setting(1.0, POSITIVE)

    def __post_init__(self) -> None:
        check_fields("train.kl_annealing", self)
        require(
            self.min_weight <= self.max_weight,
            "train.kl_annealing.min_weight",
            self.min_weight,
            f"must not exceed max_weight = {self.max_weight}",
        )


@dataclass(kw_only=True, slots=True)
class EarlyStoppingConfig:
    """Stop when the validation ELBO no longer rises, and go back to the best epoch."""

    enabled: bool = True
    patience: int = setting(10, POSITIVE)
    """Epochs without a gain before training stops."""
    min_delta: float = setting(0.01, NOT_NEGATIVE)
    """Smallest rise of the validation ELBO, in nats per cell, that counts as a gain."""

    def __post_init__(self) -> None:
        check_fields("train.early_stopping", self)


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
    """Return ``train.checkpoint_every`` as a number and its unit, ``epochs`` or ``s``."""
    if every is None:
        return None
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)\s*(s?)", str(every).strip())
    number = float(found[1]) if found else 0.0
    require(
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

    n_replicates: int = setting(4, POSITIVE)
    """Independent fits of the same model, trained side by side."""
    epochs: int | None = setting(None, POSITIVE)
    """Passes over the training cells; null takes as many as make about 250 steps,
    between 3 and 200 (of another library's model: `topicell.model.registry.MODELS`)."""
    max_steps: int | None = setting(None, POSITIVE)
    """Stop after this many optimisation steps, whatever the epochs."""
    batch_size: int = setting(128, POSITIVE)
    """Cells a step; batches are made equal in size, so none is short."""
    learning_rate: float = setting(0.1, POSITIVE)
    """Peak rate of Adam."""
    schedule: Schedule = Schedule.one_cycle
    kl_annealing: AnnealingConfig = field(default_factory=AnnealingConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    engine: Engine = Engine.fused
    device: Device = Device.auto
    precision: Precision = Precision.tf32
    threads: int | None = setting(1, POSITIVE)
    """CPU threads of the arithmetic; null leaves torch's own. On shared cores one thread is
    often faster than two."""
    progress: bool = True
    """Show a progress bar on the terminal."""
    checkpoint_every: int | str | None = "60s"
    """How often a fit keeps what ``resume`` goes on from: a number of epochs, or of seconds as
    ``60s``; null never does. A fit that is interrupted keeps it as well."""

    def __post_init__(self) -> None:
        check_fields("train", self)
        checkpoint_interval(self.checkpoint_every)
        require(
            self.precision is not Precision.bfloat16 or self.engine is Engine.fused,
            "train.precision",
            self.precision.value,
            "works with train.engine=fused only",
        )


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """How the fit is measured; every measure is defined in `topicell.evaluation`."""

    n_samples: int = setting(256, POSITIVE)
    """Monte-Carlo samples of the posterior means of θ and β."""
    n_elbo_samples: int = setting(10, POSITIVE)
    """Monte-Carlo samples of the expected log-likelihood in the final ELBO."""
    n_coherence_genes: int = setting(20, Bounds(2, says="pairs need at least 2 genes"))
    """Top genes of a topic over whose pairs coherence is taken."""
    n_diversity_genes: int = setting(25, POSITIVE)
    """Top genes of a topic that count for diversity."""
    n_neighbors: int = setting(15, POSITIVE)
    """Neighbours of the label classifier in topic space."""
    n_gap_cells: int = setting(4000, NOT_NEGATIVE)
    """Cells, drawn at random, whose amortization gap is measured; 0 measures none."""
    differential_expression: bool = True
    """Fold changes of the genes in each topic against the others, with standard errors."""
    n_splits: int = setting(1, POSITIVE)
    """Splits of the cells, each with fits of its own: error bars over splits and replicates. The
    first is the run's, which the artifacts show."""

    def __post_init__(self) -> None:
        check_fields("evaluate", self)


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Embeddings, figures and the page."""

    enabled: bool = True
    n_components: int = setting(30, POSITIVE)
    """Principal components of the log-normalised counts."""
    n_neighbors: int = setting(20, Bounds(2, says="must be at least 2"))
    """Neighbours of both UMAPs."""
    leiden_resolution: float = setting(0.8, POSITIVE)
    n_top_genes: int = setting(10, POSITIVE)
    """Top genes of each topic that figures and page show."""
    dpi: int = setting(
        150,
        Bounds(
            10,
            1200,
            "must be between 10 and 1200: with less, figures cannot be drawn; with more, they "
            "take gigabytes of memory",
        ),
    )
    """Resolution of the figures, dots per inch (in the PDFs, of the points of maps alone)."""
    pdf: bool = True
    """Every figure as PDF too, beside the PNG: a third of the time of a report."""
    gene_sets: str | None = None
    """Gene sets to look for among the leading genes of each topic: a GMT file, or ``blood`` for the
    markers of blood cells that come with topicell."""
    n_enrichment_genes: int = setting(50, POSITIVE)
    """Leading genes of each topic, by FREX, among which gene sets are looked for."""

    def __post_init__(self) -> None:
        check_fields("report", self)


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
    seed: int = setting(0, SEED)
    """Reaches the split, the start, the mini-batches, the noise and the embeddings."""

    def __post_init__(self) -> None:
        check_fields("", self)

    @property
    def title(self) -> str:
        """Name of a run without a name of its own."""
        default = self.model.kind == ModelConfig().kind
        kind = "" if default else f"{self.model.kind}, "
        return f"{self.data.title}, {kind}{self.model.n_topics} topics, seed {self.seed}"


@dataclass(kw_only=True, slots=True)
class ExternalConfig(ReadConfig):
    """Score topics of another tool, and make a report: theta=FILE beta=FILE data=NAME-or-FILE."""

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
    floor: float = setting(
        0.0, Bounds(0, 0.1, "must be at least 0 and below 0.1", excludes_high=True)
    )
    """Least proportion of a gene in a topic; an exact 0 makes an unseen count impossible."""
    output: str | None = None
    """Folder to write; null takes ``evaluations/DATE/TIME``."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = setting(0, SEED)

    def __post_init__(self) -> None:
        check_fields("", self)

    @property
    def title(self) -> str:
        """What an evaluation is called that was given no name."""
        return f"{PurePath(self.data).stem}, topics of {PurePath(self.beta).stem}"
