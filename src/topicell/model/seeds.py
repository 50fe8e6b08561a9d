r"""Prior knowledge of topics: topics of an earlier fit, or gene sets.

The first J of the K topics are seeded, the others are free. In an earlier fit, gene g of topic j
has the proportion :math:`p_{jg}`; the prior mean of the logit is its logarithm. A gene set does not
say proportions: the prior mean of its genes is that of a gene that is `FOLD` times as frequent as
in the average cell. How far the data can move these logits is the setting ``model.prior_scale``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment

from topicell.config import ModelConfig
from topicell.counts import Counts, gene_places
from topicell.errors import InputError
from topicell.evaluation.gene_sets import BLOOD, read_gene_sets

FOLD = 10.0
"""How much more frequent the genes of a set are in its topic than in the average cell, a priori."""
LEAST_GENES = 2
"""Smallest number of modelled genes of a set or of an earlier topic."""
FLOOR = 0.01
"""Smallest proportion of a gene in an earlier topic, as a share of its background frequency."""
GENE_SETS = (".gmt", ".gmt.gz")
NAME = "model.topic_gene_prior"
KINDS = f", or use a GMT file, '{BLOOD}', or run=RUN_ID"
"""Other values of this setting."""
RUN = "run="
"""Prefix of a run in this setting."""


@dataclass(frozen=True, slots=True)
class Seeds:
    """Prior knowledge of J topics.

    Attributes
    ----------
    names
        Names of the topics or gene sets.
    logit_JG
        Prior means of the logits of known genes.
    known_JG
        Which genes are known: those of the table, or those of the set.
    of_sets
        Whether these are gene sets.
    """

    names: tuple[str, ...]
    logit_JG: np.ndarray
    known_JG: np.ndarray
    of_sets: bool


@dataclass(frozen=True, slots=True)
class EarlierTopics:
    """The topics of an earlier fit: gene proportions, shape (J, G), with names and ids of genes."""

    beta_JG: np.ndarray
    genes: np.ndarray
    ids: np.ndarray | None

    def for_genes(self, counts: Counts, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Return proportions of the modelled genes, (J, G), and which genes are known, (G,).

        Raises
        ------
        InputError
            Most of the modelled genes are not known.
        """
        place_G = gene_places(counts.genes, counts.ids, self.genes, self.ids)
        known_G = place_G >= 0
        if 2 * known_G.sum() < len(known_G):
            raise InputError(
                f"{where}: has {known_G.sum()} of the {len(known_G)} modelled genes; it needs half "
                "of them, by name or identifier"
            )
        beta_JG = np.where(known_G, self.beta_JG[:, place_G], 0)
        return beta_JG / np.maximum(beta_JG.sum(1, keepdims=True), 1e-300), known_G


def read_seeds(
    counts: Counts,
    model: ModelConfig,
    frequency_G: np.ndarray,
    earlier: EarlierTopics | None = None,
) -> Seeds | None:
    """Return the prior knowledge that a setting names; None if it names none.

    Parameters
    ----------
    counts
        The training cells.
    model
        The settings.
    frequency_G
        Background frequencies of the genes, all above 0.
    earlier
        The topics of the run that the setting names.

    Raises
    ------
    InputError
        The file cannot be read, does not match the genes, or has more topics than the model.
    """
    if not isinstance(model.topic_gene_prior, str):
        return None
    path = model.topic_gene_prior
    of_sets = path == BLOOD or path.lower().endswith(GENE_SETS)
    if path.startswith(RUN):
        if earlier is None:
            raise InputError(
                f"{NAME} = {path!r}: only topicell train reads runs; give a file, such as "
                "topics/gene_topics.csv of the run"
            )
        p_JG, known_G = earlier.for_genes(counts, f"{NAME} = {path!r}")
        names = tuple(f"topic_{j}" for j in range(len(p_JG)))
        known_JG = np.tile(known_G, (len(names), 1))
    else:
        names, p_JG, known_JG = _sets(path, counts) if of_sets else _table(path, counts)
    kept = known_JG.sum(1) >= LEAST_GENES
    if not kept.all():
        few = [f"{name} ({n})" for name, n in zip(names, known_JG.sum(1), strict=True)]
        few = [text for text, enough in zip(few, kept, strict=True) if not enough]
        listed = ", ".join(few[:6]) + (", …" if len(few) > 6 else "")
        problem = (
            f"{NAME} = {path!r}: {len(few)} of {len(names)} {'sets' if of_sets else 'topics'} have "
            f"fewer than {LEAST_GENES} of the {counts.n_genes} modelled genes ({listed})"
        )
        if not (of_sets and kept.any()):
            raise InputError(
                f"{problem}; check the kind of gene names, or model more genes "
                "(preprocess.n_variable_genes)"
            )
        warnings.warn(f"{problem}; they seed no topic", stacklevel=2)
        names = tuple(name for name, enough in zip(names, kept, strict=True) if enough)
        p_JG, known_JG = p_JG[kept], known_JG[kept]
    if len(names) > model.n_topics:
        raise InputError(
            f"{NAME} = {path!r}: has {len(names)} {'sets' if of_sets else 'topics'} for "
            f"{model.n_topics} topics; use model.n_topics={len(names)} or more, or fewer "
            f"{'sets' if of_sets else 'topics'}"
        )
    if of_sets:
        logit_JG = np.log(frequency_G) + np.log(FOLD) * known_JG
    else:
        # Known genes keep their share of all counts.
        share_J1 = (known_JG * frequency_G).sum(1, keepdims=True)
        p_JG = np.maximum(p_JG * share_J1, FLOOR * frequency_G)
        logit_JG = np.log(np.where(known_JG, p_JG, frequency_G))
    return Seeds(names, logit_JG.astype(np.float32), known_JG, of_sets)


def _sets(path: str, counts: Counts) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return names, and which genes are in each set, twice."""
    sets = read_gene_sets(path, NAME)
    known_JG = np.zeros((len(sets), counts.n_genes), dtype=bool)
    for known_G, genes in zip(known_JG, sets.values(), strict=True):
        places = gene_places(np.array(genes, dtype=object), None, counts.genes, counts.ids)
        known_G[places[places >= 0]] = True
    return tuple(sets), known_JG.astype(float), known_JG


def _table(path: str, counts: Counts) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return names of topics, their gene proportions, (J, G), and which genes are known, (J, G)."""
    names, beta_JG, known_G = read_topics(Path(path), counts, f"{NAME} = {path!r}")
    return names, beta_JG, np.tile(known_G, (len(names), 1))


def read_topics(
    path: Path, counts: Counts, where: str
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return the topics of a table of genes × topics for the modelled genes.

    Parameters
    ----------
    path
        A csv file, or a tsv file by its name.
    counts
        Cells with the modelled genes.
    where
        Beginning of messages.

    Returns
    -------
    names
        Names of the J topics.
    beta_JG
        Their proportions of known genes, which sum to 1.
    known_G
        Which of the modelled genes the table has.

    Raises
    ------
    InputError
        The file is not a table of numbers that are not negative, a gene is there twice, or it lacks
        most of the modelled genes.
    """
    import pandas as pd

    try:
        # As text, so that genes named 007 or NA keep their names.
        sep = "\t" if path.name.lower().endswith((".tsv", ".txt", ".tsv.gz")) else ","
        table = pd.read_csv(path.expanduser(), dtype=str, keep_default_na=False, sep=sep)
        table = table.set_index(table.columns[0])
        values = table.to_numpy(dtype=float)
    except FileNotFoundError as error:
        raise InputError(
            f"{where}: there is no such file (looked from {Path.cwd()}); check the path of the "
            "table of genes × topics (csv)" + (KINDS if where.startswith(NAME) else "")
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: cannot be read as a table of numbers ({error})") from error
    if not table.shape[1]:
        raise InputError(f"{where}: has no columns of topics; the first column has the genes")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values.sum(0) > 0).all()):
        raise InputError(
            f"{where}: gene proportions must be finite and not negative, and a topic needs a gene"
        )
    if table.index.has_duplicates:
        twice = table.index[table.index.duplicated()][0]
        raise InputError(f"{where}: gene {twice!r} is there twice")
    place_G = table.index.get_indexer(pd.Index(counts.genes.astype(str)))
    known_G = place_G >= 0
    if 2 * known_G.sum() < len(known_G):
        raise InputError(
            f"{where}: has {known_G.sum()} of the {len(known_G)} modelled genes; it needs half of "
            "them, by name"
        )
    beta_JG = np.where(known_G, values[place_G].T, 0)
    empty = np.flatnonzero(beta_JG.sum(1) == 0)
    if len(empty):
        raise InputError(f"{where}: topic {empty[0]} has none of the modelled genes")
    names = tuple(str(name) for name in table.columns)
    return names, beta_JG / beta_JG.sum(1, keepdims=True), known_G


def matched_first(profiles_KG: np.ndarray, seeds: Seeds, frequency_G: np.ndarray) -> np.ndarray:
    """Return initial logits of topics from clusters of cells, seeded topics first, shape (K, G).

    Each seed gets the cluster that has its genes most above the background; all pairs are chosen
    together. The initial logits of a seeded topic are those of the prior for an earlier topic, and
    the mean of prior and cluster for a gene set.
    """
    log_lift_KG = np.log(profiles_KG / frequency_G)
    weight_JG = np.where(seeds.known_JG, seeds.logit_JG - np.log(frequency_G), 0)
    weight_JG /= np.maximum(np.linalg.norm(weight_JG, axis=1, keepdims=True), 1e-12)
    norm_K = np.maximum(np.linalg.norm(log_lift_KG, axis=1), 1e-12)
    score_JK = weight_JG @ (log_lift_KG / norm_K[:, None]).T
    _, chosen_J = linear_sum_assignment(-score_JK)
    order_K = np.concatenate([chosen_J, np.setdiff1d(np.arange(len(profiles_KG)), chosen_J)])
    logit_KG: np.ndarray = np.log(profiles_KG)[order_K]
    share = 0.5 if seeds.of_sets else 1.0
    n_seeds = len(chosen_J)
    logit_KG[:n_seeds] = share * seeds.logit_JG + (1 - share) * logit_KG[:n_seeds]
    return logit_KG
