import pytest

from topicell.config import (
    AnnealingConfig,
    DataConfig,
    EarlyStoppingConfig,
    EvaluateConfig,
    Init,
    InputError,
    ModelConfig,
    PreprocessConfig,
    ReportConfig,
    RunConfig,
    SimulationConfig,
    SplitConfig,
    TrainConfig,
    as_dict,
    dotted,
)


@pytest.mark.parametrize(
    ("make", "knob"),
    [
        (lambda: ModelConfig(n_topics=1), "model.n_topics"),
        (lambda: ModelConfig(n_hidden=0), "model.n_hidden"),
        (lambda: ModelConfig(n_layers=0), "model.n_layers"),
        (lambda: ModelConfig(dropout=1.0), "model.dropout"),
        (lambda: ModelConfig(cell_topic_prior=0), "model.cell_topic_prior"),
        (lambda: ModelConfig(cell_topic_prior=[0.1, 0.2]), "model.cell_topic_prior"),
        (lambda: ModelConfig(cell_topic_prior="a"), "model.cell_topic_prior"),
        (lambda: ModelConfig(topic_gene_prior=[0.1, -1]), "model.topic_gene_prior"),
        (lambda: ModelConfig(topic_gene_prior=float("nan")), "model.topic_gene_prior"),
        (lambda: TrainConfig(epochs=0), "train.epochs"),
        (lambda: TrainConfig(n_replicates=0), "train.n_replicates"),
        (lambda: TrainConfig(batch_size=-1), "train.batch_size"),
        (lambda: TrainConfig(learning_rate=float("inf")), "train.learning_rate"),
        (lambda: TrainConfig(threads=0), "train.threads"),
        (lambda: AnnealingConfig(warmup_share=1.5), "train.kl_annealing.warmup_share"),
        (lambda: AnnealingConfig(min_weight=2.0), "train.kl_annealing.min_weight"),
        (lambda: AnnealingConfig(warmup_epochs=-1), "train.kl_annealing.warmup_epochs"),
        (lambda: EarlyStoppingConfig(patience=0), "train.early_stopping.patience"),
        (lambda: EarlyStoppingConfig(min_delta=-1), "train.early_stopping.min_delta"),
        (lambda: SplitConfig(train=0.5, valid=0.1, test=0.1), "preprocess.split"),
        (lambda: SplitConfig(train=0, valid=0.5, test=0.5), "preprocess.split.train"),
        (lambda: PreprocessConfig(n_variable_genes=0), "preprocess.n_variable_genes"),
        (lambda: PreprocessConfig(target_sum=0), "preprocess.target_sum"),
        (lambda: PreprocessConfig(min_cells_per_gene=-1), "preprocess.min_cells_per_gene"),
        (lambda: DataConfig(name="file"), "data.path"),
        (lambda: DataConfig(name="pbmc3k", path="x.h5ad"), "data.path"),
        (lambda: SimulationConfig(n_cells=0), "data.simulation.n_cells"),
        (lambda: SimulationConfig(counts_sd=-1), "data.simulation.counts_sd"),
        (lambda: EvaluateConfig(n_coherence_genes=1), "evaluate.n_coherence_genes"),
        (lambda: EvaluateConfig(n_samples=0), "evaluate.n_samples"),
        (lambda: ReportConfig(n_neighbors=1), "report.n_neighbors"),
        (lambda: ReportConfig(dpi=0), "report.dpi"),
        (lambda: RunConfig(seed=-1), "seed"),
    ],
)
def test_a_value_out_of_range_is_refused_by_the_name_of_its_knob(make, knob):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(f"{knob} ")


def test_priors_may_be_numbers_or_lists():
    model = ModelConfig(n_topics=2, cell_topic_prior=[1, 0.5], topic_gene_prior=0.1)
    assert model.cell_topic_prior == [1, 0.5]


def test_the_dict_is_plain_and_dotted_names_reach_every_knob():
    config = RunConfig(model=ModelConfig(init=Init.kmeans))
    assert as_dict(config)["model"]["init"] == "kmeans"
    flat = dotted(config)
    assert flat["model.init"] == "kmeans"
    assert flat["train.kl_annealing.warmup_share"] == 0.25
    assert not any(isinstance(value, dict) for value in flat.values())
