"""Settings of one run: their defaults, units and bounds, one dataclass for each group.

Each field of `RunConfig` is one configuration group. Defaults are only here: the YAML files of
``conf/`` hold named differences. A value out of bounds raises `InputError`, which names the setting
as it is written on the command line.
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
    """Number of cells."""
    n_genes: int = setting(500, POSITIVE)
    """Number of genes."""
    n_topics: int = setting(10, POSITIVE)
    """Number of topics of the corpus; ``model.n_topics`` is that of the fit."""
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
    """Seed of the corpus; ``seed`` is that of the run."""

    def __post_init__(self) -> None:
        check_fields("data.simulation", self)


class Orientation(Enum):
    """Whether the rows of a matrix in a file are cells or genes."""

    auto = "auto"
    """Decided by the names of rows and columns; rejected if the names suggest genes in rows but
    do not prove it."""
    cells_rows = "cells_rows"
    genes_rows = "genes_rows"
    """The matrix is transposed."""


@dataclass(kw_only=True, slots=True)
class ReadConfig:
    """How a file of counts is read; all commands that read counts have these settings."""

    layer: str | None = None
    """Where the counts are: the name of a layer, ``raw``, or null for X (in h5ad and zarr:
    ``layers["counts"]`` if it exists, else X)."""
    modality: str | None = None
    """Modality of a MuData file; null selects the modality with gene expression."""
    orientation: Orientation = Orientation.auto
    feature_type: str | None = None
    """Type of the features that are kept, if the file has types of features (10x files,
    CITE-seq); null keeps gene expression, ``all`` keeps every type."""
    gene_names: str | None = None
    """Column of var with the gene names for patterns, tables and figures; null uses a known
    column of symbols if the index holds ids, ``index`` keeps the index."""
    round: bool = False
    """Round values that are not whole numbers (corrected or expected counts) instead of
    rejecting them."""

    def __post_init__(self) -> None:
        check_fields("", self)


class Join(Enum):
    """Which genes of several files are modelled."""

    inner = "inner"
    """Those that all files have."""
    outer = "outer"
    """Those that any file has; a gene that a file does not have has no counts in its cells."""


@dataclass(kw_only=True, slots=True)
class DataConfig(ReadConfig):
    """The cells: a named data set, a simulated corpus, or files."""

    name: str = "pbmc68k"
    """A data set of the catalogue, ``simulated``, or ``file``."""
    path: Any = None
    """With ``name: file``: h5ad, 10x h5, 10x mtx folder or a file in it, zarr, an annbatch
    collection, h5mu, loom, csv or tsv; a list of such files is read as samples of one study."""
    samples: str | None = None
    """With ``name: file``, instead of `path`: a table (csv or tsv) with one row for each file and
    the columns ``path`` (relative to the table), ``sample`` (its name), and any others, such as
    donor, batch or condition, which become columns of obs."""
    sample_key: str | None = None
    """Column of obs with the sample of each cell. Several files: the column that receives the
    samples, null means ``sample``; or a column of the table, such as ``donor``, if a sample has
    several files. Other data: an existing column, null means none."""
    join: Join = Join.inner
    """Which genes of several files are modelled."""
    label_key: str | None = None
    """Column of obs with known cell types; null uses that of the catalogue, if there is one."""
    backed: bool = False
    """With an h5ad file or a zarr folder: read only counts, obs and var, and prepare the counts in
    parts: those of the modelled genes are written to a file and mapped to memory. A matrix with
    more than 30 million non-zero values, or an annbatch collection, is always prepared in parts."""
    keep_counts: bool | None = None
    """Write counts and log-normalised values to ``adata.h5ad``; null does so unless the counts were
    prepared in parts. Without them, ``topicell report`` prepares them again from the source."""
    simulation: SimulationConfig = field(default_factory=SimulationConfig)

    @property
    def title(self) -> str:
        """The name of the data set, the file or the table; of several files, the first name."""
        if isinstance(self.path, list):
            n_others = len(self.path) - 1
            others = f" and {n_others} other file{'s' * (n_others > 1)}" if n_others else ""
            return PurePath(self.path[0]).stem + others
        path = self.samples or self.path
        return PurePath(path).stem if path else self.name

    def __post_init__(self) -> None:
        check_fields("data", self)
        several = isinstance(self.path, (list, tuple))
        paths = [] if self.path is None else list(self.path) if several else [self.path]
        require(
            all(isinstance(path, (str, PurePath)) for path in paths)
            and (not several or (len(paths) > 0 and all(map(str, paths)))),
            "data.path",
            self.path,
            "give a file, or a list of files: data.path=[A,B]",
        )
        if paths:
            self.path = list(map(str, paths)) if several else str(self.path)
        if self.samples is not None:
            self.samples = str(self.samples)
        require(
            self.name != "file" or bool(self.path) or bool(self.samples),
            "data.path",
            self.path,
            "data=file needs data.path=FILE, data.path=[FILE,FILE] or data.samples=TABLE",
        )
        require(
            self.path is None or self.samples is None,
            "data.samples",
            self.samples,
            "the table names the files, so leave data.path out",
        )
        for name, value in (("path", self.path), ("samples", self.samples)):
            require(
                self.name == "file" or value is None,
                f"data.{name}",
                value,
                f"only data=file reads files, but data.name is {self.name!r}",
            )


class Flavor(Enum):
    """How variable genes are found: the flavours of `scanpy.pp.highly_variable_genes`."""

    seurat_v3 = "seurat_v3"
    seurat_v3_paper = "seurat_v3_paper"
    seurat = "seurat"
    cell_ranger = "cell_ranger"


ON_COUNTS = (Flavor.seurat_v3, Flavor.seurat_v3_paper)
"""Flavours that rank genes by their counts, not by log-normalised values."""


@dataclass(kw_only=True, slots=True)
class SplitConfig:
    """Shares of the cells in each part; the seed is that of the run."""

    train: float = setting(0.8, Bounds(0, 1, excludes_low=True))
    """Share of the training cells."""
    valid: float = setting(0.1, SHARE)
    """Share of the validation cells, by which settings and replicates are chosen."""
    test: float = setting(0.1, SHARE)
    """Share of the test cells, which only the final scores use."""
    stratify_by: str | None = None
    """Column of obs whose groups have the same shares in each part."""

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
    """Cells with fewer counts are left out."""
    min_cells_per_gene: int = setting(1, NOT_NEGATIVE)
    """Genes with counts in fewer cells are left out."""
    drop_genes: list[str] = field(default_factory=lambda: ["mitochondrial"])
    """Genes that are not modelled: ``mitochondrial``, ``ribosomal`` or ``spike_in``, recognised
    in the spellings of all supported species, or regular expressions for names."""
    n_variable_genes: int | None = setting(1000, POSITIVE)
    """Number of the most variable genes that are modelled; null models all genes."""
    flavor: Flavor = Flavor.seurat_v3
    batch_key: str | None = None
    """Column of obs with batches: variable genes are found within each batch, and the ranks are
    merged. Null uses ``model.batch_key``."""
    target_sum: float | None = setting(1e5, POSITIVE)
    """Library size to which log-normalised values are scaled; null uses the median."""
    split: SplitConfig = field(default_factory=SplitConfig)
    cache: bool = True
    """Keep the prepared data in the user's cache folder, by digest of data and settings."""
    cache_limit_mb: int | None = setting(2000, POSITIVE)
    """Largest size of the cache of prepared data, in MB. The least recently used data are
    removed first, the data written last never; null sets no limit."""
    dask: str | None = None
    """Share the passes over an h5ad file or a zarr folder, which is then prepared in parts whatever
    its size, among the workers of Dask: ``local`` starts one process for each core; or the address
    of a scheduler (``tcp://HOST:PORT``, ``tls://HOST:PORT``), or its file (``FILE.json``)."""

    def __post_init__(self) -> None:
        check_fields("preprocess", self)
        if self.dask is None:
            return
        require(
            re.fullmatch(r"local|tcp://\S+:[0-9]+|tls://\S+:[0-9]+|.+\.json", self.dask)
            is not None,
            "preprocess.dask",
            self.dask,
            "give local, the address of a scheduler (tcp://HOST:PORT or tls://HOST:PORT) or its "
            "file (FILE.json), or null",
        )
        require(
            self.n_variable_genes is None or self.flavor in ON_COUNTS,
            "preprocess.dask",
            self.dask,
            f"preprocess.flavor={self.flavor.value} needs the log-normalised values of all genes "
            "in memory; use preprocess.flavor=seurat_v3, or leave preprocess.dask out",
        )


class Init(Enum):
    """Initial values of the topic logits."""

    background = "background"
    """Log background frequency of the genes plus noise."""
    kmeans = "kmeans"
    """Log profiles of clusters of cells, from the best of `n_starts` k-means runs."""
    random = "random"
    """Draws from the prior; only for comparison, because such fits collapse to a few topics."""


class PriorKind(Enum):
    """The prior of the topic logits of a cell."""

    independent = "independent"
    """That of `ModelConfig.cell_topic_prior`, the same for all cells."""
    correlated = "correlated"
    """A full covariance of the topics, which starts as the independent prior and is learned."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Amortized latent Dirichlet allocation, or another library's model (`kind`)."""

    kind: str = "amortized_lda"
    """Name of a model of `topicell.model.registry`."""
    n_topics: int = setting(10, Bounds(2, says="needs at least 2 topics"))
    """Number of topics, K."""
    n_hidden: int = setting(128, POSITIVE)
    """Units of each hidden layer of the encoder."""
    n_layers: int = setting(1, POSITIVE)
    """Hidden layers of the encoder."""
    dropout: float = setting(0.0, SHARE)
    """Share of hidden units dropped in training."""
    normalize_means: bool = True
    """Batch norm on the encoder's means, with one learned scale for all topics, which keeps all
    topics in use."""
    cell_topic_prior: Any = field(default=None, metadata=CONCENTRATIONS)
    """Dirichlet concentration of θ: a number, K numbers, or null for 1/K."""
    topic_gene_prior: Any = field(default=None, metadata=CONCENTRATIONS | {"text": True})
    """Dirichlet concentration of β: a number, G numbers, or null for 1/K. Or prior knowledge of the
    first topics; the others are free: ``run=RUN_ID`` (or a folder) or a table of genes × topics
    (csv) continues earlier topics; gene sets (a GMT file, or ``blood``) seed one topic each."""
    prior_scale: float = setting(0.5, POSITIVE)
    """How far the logit of a gene can move from prior knowledge: the standard deviation of its
    prior. Smaller values hold it more strongly."""
    background: bool = False
    """Topics are sparse deviations from the gene frequencies of all cells: the prior of a logit is
    a Laplace distribution around the background, instead of that of `topic_gene_prior`."""
    background_scale: float = setting(0.5, POSITIVE)
    """Scale of this Laplace distribution; smaller values make more deviations negligible."""
    batch_key: str | None = None
    """Column of obs with the batch of each cell (study, technology, donor). Each batch multiplies
    the proportion of each gene by a factor, the same in all topics; topics are without these
    factors. Variable genes are then found within batches (`PreprocessConfig.batch_key`)."""
    batch_scale: float = setting(0.3, POSITIVE)
    """Standard deviation of the prior of the logarithms of these factors."""
    batch_topic_scale: float | None = setting(None, POSITIVE)
    """Standard deviation of the prior of what the logarithms of the factors of a topic differ from
    those of all topics; null: they do not differ. Slower the more batches there are."""
    prevalence: str | None = None
    """Formula of columns of obs (``condition + age``): the prior mean of the topic logits of a cell
    is linear in them. Tests of conditions do not use these proportions (`evaluate.conditions`)."""
    prior: PriorKind = PriorKind.independent
    """``correlated`` learns which topics occur together."""
    init: Init = Init.kmeans
    n_starts: int = setting(8, POSITIVE)
    """Clusterings that each replicate computes for the k-means initialisation; the best is used."""
    init_topics: str | None = None
    """Table of genes × topics (csv, such as ``topics/gene_topics.csv`` of a run) with which every
    replicate starts, instead of a search or `init`."""
    align_to: str | None = None
    """Run id or folder of an earlier run whose topic numbers and colours this run keeps: topic k of
    this run is the topic whose proportions in the cells agree best with topic k of that run."""

    def __post_init__(self) -> None:
        if isinstance(self.topic_gene_prior, PurePath):
            self.topic_gene_prior = str(self.topic_gene_prior)
        check_fields("model", self)
        require(
            self.batch_topic_scale is None or self.batch_key is not None,
            "model.batch_topic_scale",
            self.batch_topic_scale,
            "has an effect only with model.batch_key=COLUMN",
        )
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
    """Length of the warm-up in epochs (of one cycle, if cyclical); null uses `warmup_share`."""
    warmup_share: float = setting(0.25, Bounds(0, 1))
    """Length of the warm-up as a share of all epochs (of each cycle, if cyclical)."""
    n_cycles: int = setting(4, POSITIVE)
    """Number of cycles, if `shape` is cyclical."""
    min_weight: float = setting(1e-3, POSITIVE)
    """Weight at the start of the warm-up, and of each cycle."""
    max_weight: float = setting(1.0, POSITIVE)
    """Weight after the warm-up; 1 is the ELBO."""

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
    """Stop when the validation ELBO no longer rises, and return to the best epoch."""

    enabled: bool = True
    """Whether training stops early; it needs validation cells."""
    patience: int = setting(10, POSITIVE)
    """Epochs without a gain before training stops."""
    min_delta: float = setting(0.01, NOT_NEGATIVE)
    """Smallest rise of the validation ELBO, in nats per cell, that counts as a gain."""

    def __post_init__(self) -> None:
        check_fields("train.early_stopping", self)


class Schedule(Enum):
    """How the learning rate changes during training."""

    one_cycle = "one_cycle"
    constant = "constant"


class Device(Enum):
    """The device of the computation; ``auto`` is CUDA if it is available."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Engine(Enum):
    """The code that computes the ELBO and its gradients; both give equal numbers on equal noise."""

    fused = "fused"
    """Plain tensor operations with hand-written gradients: several times faster."""
    pyro = "pyro"
    """The Pyro program, which defines the model; for changes of the model."""


class Precision(Enum):
    """Precision of matrix products in training, on CUDA; on the CPU always single precision."""

    float32 = "float32"
    tf32 = "tf32"
    """Factors rounded to 10 bits of mantissa, sums in single precision."""
    bfloat16 = "bfloat16"
    """The products of the encoder in bfloat16, all others as with tf32."""


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
    """Independent fits of the same model, trained at the same time."""
    search: bool = True
    """Search for the initial topics of each replicate, so that other seeds find the same topics.
    Has an effect with ``model.init=kmeans``, whose clusters it replaces (off: these clusters)."""
    epochs: int | None = setting(None, POSITIVE)
    """Passes over the training cells; null gives about 250 steps, with 3 to 200 epochs (for
    models of other libraries, see `topicell.model.registry.MODELS`)."""
    max_steps: int | None = setting(None, POSITIVE)
    """Stop after this many optimisation steps, even if epochs are left."""
    batch_size: int = setting(128, POSITIVE)
    """Cells per step; all mini-batches have nearly the same size."""
    learning_rate: float = setting(0.1, POSITIVE)
    """Peak rate of Adam."""
    schedule: Schedule = Schedule.one_cycle
    kl_annealing: AnnealingConfig = field(default_factory=AnnealingConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    engine: Engine = Engine.fused
    device: Device = Device.auto
    precision: Precision = Precision.tf32
    replicates_per_device: int | None = setting(None, POSITIVE)
    """With several processes (torchrun, srun): number of replicates in each; processes that this
    leaves over divide the cells of each mini-batch. Null divides the replicates as far as
    possible."""
    threads: int | None = setting(1, POSITIVE)
    """CPU threads; null keeps torch's default. On shared cores, one thread is often faster than
    two."""
    progress: bool = True
    """Show a progress bar on the terminal."""
    checkpoint_every: int | str | None = "60s"
    """How often the state of a fit is saved for ``resume``: a number of epochs, or of seconds as
    ``60s``; null means never. An interrupted fit saves its state too, unless this is null."""

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
    """How the metrics are computed; they are defined in `topicell.evaluation`."""

    n_samples: int = setting(256, POSITIVE)
    """Monte-Carlo samples of the posterior means of θ and β."""
    n_elbo_samples: int = setting(10, POSITIVE)
    """Monte-Carlo samples of the expected log-likelihood in the final ELBO."""
    n_coherence_genes: int = setting(20, Bounds(2, says="pairs need at least 2 genes"))
    """Top genes of a topic whose pairs are used for coherence."""
    n_diversity_genes: int = setting(25, POSITIVE)
    """Top genes of a topic that are used for diversity."""
    n_neighbors: int = setting(15, POSITIVE)
    """Neighbours of the label classifier in topic space."""
    max_cells: int = setting(50_000, Bounds(100, says="must be at least 100"))
    """Largest number of cells of each part, drawn by the seed, for which perplexity and ELBO are
    computed, and of all cells, for the agreement with labels. Perplexity, ELBO and label accuracy
    of a sample have a sampling error beside them."""
    n_elbo_cells: int = setting(4000, POSITIVE)
    """Largest number of test cells, drawn by the seed, for which the ELBO with fixed topics is
    computed."""
    n_gap_cells: int = setting(4000, NOT_NEGATIVE)
    """Number of random cells for which the amortization gap is computed; 0 skips it."""
    differential_expression: bool = True
    """Compute fold changes of the genes between each topic and the others, with standard errors."""
    n_differential_cells: int = setting(100_000, POSITIVE)
    """Largest number of cells, drawn by the seed, from which they are computed."""
    n_splits: int = setting(1, POSITIVE)
    """Number of splits of the cells, each with its own fits, for error bars over splits and
    replicates. The artifacts show the first split."""
    conditions: str | None = None
    """Formula of columns of obs, such as ``condition + age``: test which topics change with its
    terms, with the sample as the unit. Needs ``data.sample_key``."""
    min_sample_cells: int = setting(20, POSITIVE)
    """Samples with fewer cells are left out of this test, with a warning."""

    def __post_init__(self) -> None:
        check_fields("evaluate", self)


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """Embeddings, figures and the page."""

    enabled: bool = True
    """Make maps, figures and page; ``report=off`` does not."""
    max_cells: int | None = setting(20_000, Bounds(100, says="must be at least 100, or null"))
    """Largest number of cells on the maps, drawn so that rare labels and topics are kept; null puts
    all cells on them. Everything else in the report is of all cells."""
    n_components: int = setting(30, POSITIVE)
    """Principal components of the log-normalised counts."""
    n_neighbors: int = setting(20, Bounds(2, says="must be at least 2"))
    """Neighbours of both UMAPs."""
    leiden_resolution: float = setting(0.8, POSITIVE)
    """Resolution of the Leiden clusters; higher values give more clusters."""
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
    """Resolution of the figures, dots per inch (in PDFs, only of the points of maps)."""
    pdf: bool = False
    """Also write every figure as PDF, which takes longer than everything else about the figures;
    ``topicell report`` does so by default."""
    gene_sets: str | None = None
    """Gene sets that are tested among the leading genes of each topic: a GMT file, or ``blood``
    for the included markers of blood cells."""
    n_enrichment_genes: int = setting(50, POSITIVE)
    """Number of leading genes of each topic, by FREX, that are tested for gene sets."""

    def __post_init__(self) -> None:
        check_fields("report", self)


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Where MLflow stores the run; the run folder always holds the same."""

    enabled: bool = True
    """Record the run in MLflow; ``tracking=off`` writes only the run folder."""
    uri: str | None = None
    """Tracking server or store; null uses ``MLFLOW_TRACKING_URI``, else
    ``sqlite:///mlflow.db`` in the current folder."""
    artifact_location: str | None = None
    """Where a new experiment in a local store keeps artifacts; null uses ``mlartifacts`` next to
    the store. A server uses its own place."""
    experiment: str = "topicell"
    """Name of the experiment in MLflow; it is created if it does not exist."""
    run_name: str | None = None
    """Name of the run; null makes it from the data, the number of topics and the seed."""
    system_metrics: float | None = setting(5.0, POSITIVE)
    """Seconds between two measurements of processor, memory, disk, network and GPU by MLflow's
    own monitors (metrics ``system/…``); null measures nothing."""

    def __post_init__(self) -> None:
        check_fields("tracking", self)


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
    """Seed of the split, the initialisation, the mini-batches, the noise and the embeddings."""

    def __post_init__(self) -> None:
        check_fields("", self)
        if self.preprocess.batch_key is None:
            self.preprocess.batch_key = self.model.batch_key

    @property
    def title(self) -> str:
        """Name of a run for which no name is set."""
        default = self.model.kind == ModelConfig().kind
        kind = "" if default else f"{self.model.kind}, "
        return f"{self.data.title}, {kind}{self.model.n_topics} topics, seed {self.seed}"


@dataclass(kw_only=True, slots=True)
class ExternalConfig(ReadConfig):
    """Score topics of another tool, and make a report: theta=FILE beta=FILE data=NAME-or-FILE."""

    theta: str = "???"
    """Topic proportions of cells: FILE.csv, .tsv, .txt, .npy, .npz or .h5ad[:obsm/NAME]."""
    beta: str = "???"
    """Gene proportions of topics: the same formats; in an h5ad file, varm."""
    data: str = "???"
    """The cells: a data set of the catalogue, or a file or folder as with ``data=file``."""
    label_key: str | None = None
    """Column of obs with known cell types; null uses that of the catalogue, if there is one."""
    sample_key: str | None = None
    """Column of obs with the sample of each cell."""
    held_out: str | None = None
    """Cells that the topics were not fitted to: a file with one name per line, or a column of
    obs that is true or ``test`` for these cells."""
    normalize: bool = False
    """Rescale the proportions of each cell, and of each topic, to sum to 1."""
    floor: float = setting(
        0.0, Bounds(0, 0.1, "must be at least 0 and below 0.1", excludes_high=True)
    )
    """Smallest proportion of a gene in a topic; with an exact 0, a count of the gene is
    impossible."""
    output: str | None = None
    """Output folder; null uses ``evaluations/DATE/TIME``."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = setting(0, SEED)
    """Seed of drawn cells, of the halves of the counts, and of the embeddings."""

    def __post_init__(self) -> None:
        check_fields("", self)

    @property
    def title(self) -> str:
        """Name of an evaluation for which no name is set."""
        return f"{PurePath(self.data).stem}, topics of {PurePath(self.beta).stem}"
