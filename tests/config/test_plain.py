"""Settings as plain dictionaries."""

from topicell.config import Init, ModelConfig, RunConfig, as_dict, dotted


def test_a_configuration_becomes_a_plain_or_a_flat_dictionary():
    config = RunConfig(model=ModelConfig(init=Init.kmeans))
    assert as_dict(config)["model"]["init"] == "kmeans"
    flat = dotted(config)
    assert flat["model.init"] == "kmeans"
    assert flat["train.kl_annealing.warmup_share"] == 0.25
    assert not any(isinstance(value, dict) for value in flat.values())
