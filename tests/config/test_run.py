"""The bounds and choices of all settings."""

import math
from dataclasses import fields, is_dataclass
from enum import Enum

import pytest
from omegaconf import OmegaConf, ValidationError

from topicell.config import (
    AnnealingConfig,
    DataConfig,
    EarlyStoppingConfig,
    EvaluateConfig,
    ExternalConfig,
    ModelConfig,
    PreprocessConfig,
    ReportConfig,
    SimulationConfig,
    SplitConfig,
    TrainCommand,
    TrainConfig,
    checkpoint_interval,
    dotted,
)
from topicell.errors import InputError


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: ModelConfig(n_topics=1), "model.n_topics"),
        (lambda: ModelConfig(n_hidden=0), "model.n_hidden"),
        (lambda: ModelConfig(n_layers=0), "model.n_layers"),
        (lambda: ModelConfig(dropout=1.0), "model.dropout"),
        (lambda: ModelConfig(cell_topic_prior=0), "model.cell_topic_prior"),
        (lambda: ModelConfig(cell_topic_prior=[0.1, 0.2]), "model.cell_topic_prior"),
        (lambda: ModelConfig(cell_topic_prior="a"), "model.cell_topic_prior"),
        (lambda: ModelConfig(topic_gene_prior=[0.1, -1]), "model.topic_gene_prior"),
        (lambda: TrainConfig(epochs=0), "train.epochs"),
        (lambda: TrainConfig(n_replicates=0), "train.n_replicates"),
        (lambda: TrainConfig(threads=0), "train.threads"),
        (lambda: AnnealingConfig(warmup_share=1.5), "train.kl_annealing.warmup_share"),
        (lambda: AnnealingConfig(min_weight=2.0), "train.kl_annealing.min_weight"),
        (lambda: EarlyStoppingConfig(patience=0), "train.early_stopping.patience"),
        (lambda: SplitConfig(train=0.5, valid=0.1, test=0.1), "preprocess.split"),
        (lambda: SplitConfig(train=0, valid=0.5, test=0.5), "preprocess.split.train"),
        (lambda: PreprocessConfig(n_variable_genes=0), "preprocess.n_variable_genes"),
        (lambda: PreprocessConfig(target_sum=0), "preprocess.target_sum"),
        (lambda: DataConfig(name="file"), "data.path"),
        (lambda: DataConfig(name="pbmc3k", path="x.h5ad"), "data.path"),
        (lambda: SimulationConfig(n_cells=0), "data.simulation.n_cells"),
        (lambda: EvaluateConfig(n_coherence_genes=1), "evaluate.n_coherence_genes"),
        (lambda: EvaluateConfig(n_samples=0), "evaluate.n_samples"),
        (lambda: ReportConfig(n_neighbors=1), "report.n_neighbors"),
        (lambda: ReportConfig(dpi=0), "report.dpi"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_setting(make, setting):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(f"{setting} ")


def test_priors_may_be_numbers_or_lists():
    model = ModelConfig(n_topics=2, cell_topic_prior=[1, 0.5], topic_gene_prior=0.1)
    assert model.cell_topic_prior == [1, 0.5]


def groups(schema=TrainCommand, prefix=""):
    """Yield every dataclass of the configuration with its prefix, the outermost first."""
    yield prefix, schema
    for f in fields(schema):
        if is_dataclass(f.default_factory):
            yield from groups(f.default_factory, f"{prefix}{f.name}.")


NUMBERS = [
    (prefix, schema, f)
    for prefix, schema in [*groups(), ("", ExternalConfig)]
    for f in fields(schema)
    if f.name.endswith("_prior") or {"int", "float"} & set(str(f.type).split(" | "))
]
NOT_ONLY_NUMBERS = {"sweep.params", "train.checkpoint_every", "model.topic_gene_prior"}
"""Settings that take other values too, and have tests of their own."""


def test_groups_yields_all_numbers():
    names = {prefix + f.name for prefix, _, f in NUMBERS}
    flat = dotted(TrainCommand())
    numbers = {
        name
        for name, value in flat.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    assert numbers <= names
    assert len(names) > 50


@pytest.mark.parametrize(
    ("prefix", "schema", "setting"),
    [
        pytest.param(*number, id=number[0] + number[2].name)
        for number in NUMBERS
        if number[0] + number[2].name not in NOT_ONLY_NUMBERS
    ],
)
def test_no_number_may_be_nan_infinite_negative_or_huge(prefix, schema, setting):
    """A setting that is added later is tested too."""
    required = {"theta": "a", "beta": "b", "data": "c"} if schema is ExternalConfig else {}
    wrong = [math.nan, math.inf, -math.inf, -1, True, "many", [], {}]
    if "int" in str(setting.type).split(" | "):
        wrong += [1.5, 1e30, 10**30, -(10**30)]
    for value in wrong:
        with pytest.raises(InputError) as error:
            schema(**required, **{setting.name: value})
        assert str(error.value).startswith(f"{prefix}{setting.name} = "), error.value


CHOICES = [
    (prefix, schema, f)
    for prefix, schema in groups()
    for f in fields(schema)
    if isinstance(f.default, Enum)
]


@pytest.mark.parametrize(
    ("prefix", "schema", "setting"),
    [pytest.param(*choice, id=choice[0] + choice[2].name) for choice in CHOICES],
)
def test_an_unknown_choice_is_refused_by_name(prefix, schema, setting):
    with pytest.raises(ValidationError) as error:
        OmegaConf.merge(
            OmegaConf.structured(TrainCommand),
            OmegaConf.from_dotlist([f"{prefix}{setting.name}=fastest"]),
        )
    message = str(error.value)
    assert f"full_key: {prefix}{setting.name}" in message
    assert all(member.name in message for member in type(setting.default))


@pytest.mark.parametrize(
    ("every", "interval"),
    [
        (None, None),
        (10, (10, "epochs")),
        ("10", (10, "epochs")),
        ("60s", (60, "s")),
        (" 0.5 s ", (0.5, "s")),
        ("2.0", (2, "epochs")),
    ],
)
def test_checkpoints_are_written_every_few_epochs_or_seconds(every, interval):
    assert checkpoint_interval(every) == interval


@pytest.mark.parametrize(
    "every",
    [
        *(0, -1, 1.5, math.nan, math.inf, True, [], 10**30, "", "s", "0s", "-5s", "1e3", "1.5"),
        *("10 epochs", "60 S", "1min", "60ss", "٣s", "nan", "infs", "9" * 400, "9" * 400 + "s"),
    ],
)
def test_other_intervals_of_checkpoints_are_refused(every):
    with pytest.raises(InputError, match=r"^train\.checkpoint_every = "):
        TrainConfig(checkpoint_every=every)


def test_factors_of_topics_need_batches():
    with pytest.raises(InputError, match=r"model.batch_topic_scale = 0.1: .*model.batch_key"):
        ModelConfig(batch_topic_scale=0.1)
    assert ModelConfig(batch_topic_scale=0.1, batch_key="lab").batch_topic_scale == 0.1
