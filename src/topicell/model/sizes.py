"""Checks of the sizes of data and model."""

from __future__ import annotations

from topicell.config import ModelConfig
from topicell.counts import Counts
from topicell.errors import InputError


def check_sizes(counts: Counts, model: ModelConfig) -> None:
    """Reject more topics than cells, a single gene, and a prior of the wrong length.

    Raises
    ------
    InputError
        A setting does not match the data.
    """
    if model.n_topics > counts.n_cells:
        raise InputError(
            f"model.n_topics = {model.n_topics}: there are only {counts.n_cells} training cells; "
            "ask for fewer topics"
        )
    if counts.n_genes < 2:
        raise InputError("only 1 gene is left to model, and topics need 2 at least")
    prior = model.topic_gene_prior
    if prior is None or isinstance(prior, (int, float, str)):
        return
    if len(prior) != counts.n_genes:
        raise InputError(
            f"model.topic_gene_prior has {len(prior)} numbers for {counts.n_genes} genes; give one "
            "number for each gene, or one number for all"
        )
