"""Genes of the topics of a stored run, for tools of gene set enrichment: GMT and RNK files."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from topicell.errors import InputError
from topicell.files import whole

if TYPE_CHECKING:
    import pandas as pd


class Order(Enum):
    """The score by which genes are ranked in a topic."""

    relevance = "relevance"
    probability = "probability"
    lift = "lift"
    frex = "frex"
    deviation = "deviation"
    """Of a model with a background (``model.background``)."""
    differential = "differential"
    """Log fold change against the nearest topic, divided by its standard error."""


DIFFERENTIAL = "differential_expression"


def ranked(topics: Path, by: Order) -> dict[str, pd.Series]:
    """Return the scores of the genes of each topic, by gene, best first.

    Genes that a topic does not have, or without a finite score, are left out.

    Parameters
    ----------
    topics
        The folder ``topics`` of a run.
    by
        The score.

    Raises
    ------
    InputError
        The run has no table with this score.
    """
    import numpy as np
    import pandas as pd

    name = DIFFERENTIAL if by is Order.differential else f"top_genes_{by.value}"
    path = topics / f"{'top_genes' if by is Order.probability else name}.csv"
    if not path.is_file():
        raise InputError(f"by = {by.value!r}: {_why_missing(by, topics)}")
    # A gene may be called NA.
    table = pd.read_csv(path, keep_default_na=False, na_values={"log2_fold_change": [""]})
    if by is Order.differential:
        z = table["log2_fold_change"] / table["standard_error"]
        found = {
            str(topic): pd.Series(z[rows.index].to_numpy(float), index=rows["gene"].astype(str))
            for topic, rows in table.groupby("topic", sort=False)
        }
        order = sorted(found, key=lambda topic: int(topic.rpartition("_")[2]))
        found = {topic: found[topic].sort_values(ascending=False, kind="stable") for topic in order}
    else:
        found = {}
        for name in table.columns[1:]:
            if name.endswith(("_prop", "_score")):
                continue
            share = table[f"{name}_prop"].to_numpy(float)
            score = table.get(f"{name}_score", table[f"{name}_prop"]).to_numpy(float)
            genes = pd.Series(score, index=table[name].astype(str))
            found[name] = genes[share > 0]
    return {topic: score[np.isfinite(score)] for topic, score in found.items()}


def _why_missing(by: Order, topics: Path) -> str:
    """Return why a run has no table of a score, and which it has."""
    there = [
        order.value
        for order in Order
        if (topics / f"top_genes_{order.value}.csv").is_file() or order is Order.probability
    ]
    if (topics / f"{DIFFERENTIAL}.csv").is_file():
        there.append(Order.differential.value)
    why = {
        Order.deviation: "only a model with model.background=true has it",
        Order.differential: "the run has fewer than two topics in use, or "
        "evaluate.differential_expression=false",
    }.get(by, "an earlier version of topicell made it")
    return f"the run has no such table ({why}); take one of {', '.join(there)}"


def write_gmt(ranks: dict[str, pd.Series], n_genes: int, description: str, output: Path) -> None:
    """Write the leading genes of each topic as gene sets: name, description, genes.

    Parameters
    ----------
    ranks
        Scores of the genes of each topic, by gene, best first.
    n_genes
        Number of genes of each set.
    description
        Second field of each line.
    output
        The file.
    """
    lines = [
        "\t".join((topic, description, *score.index[:n_genes])) for topic, score in ranks.items()
    ]
    with whole(output) as unfinished:
        unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_rnk(ranks: dict[str, pd.Series], folder: Path) -> None:
    """Write the genes of each topic with their scores, best first, as ``TOPIC.rnk``."""
    for topic, score in ranks.items():
        with whole(folder / f"{topic}.rnk") as unfinished:
            score.to_csv(unfinished, sep="\t", header=False)
