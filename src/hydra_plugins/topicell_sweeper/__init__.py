"""Hydra's sweeper that searches settings with Optuna: ``hydra/sweeper=topicell``."""
