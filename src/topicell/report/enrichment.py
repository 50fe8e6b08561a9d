"""Find gene sets that are over-represented among the leading genes of a topic.

`restricted_sets` selects the sets that can be tested against the modelled genes, and `enrichment`
tests them. Nothing is downloaded.

gseapy would give the same p (a test compares them), but it adjusts p only over the sets that share
a gene with the topic, and it changes the case of symbols. The test itself is one line of scipy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from topicell.errors import InputError

MIN_GENES = 2
"""A set with fewer modelled genes is not tested, because a single shared gene would be the whole
set."""


def restricted_sets(
    gene_sets: Mapping[str, Sequence[str]], background: Sequence[str]
) -> dict[str, list[str]]:
    """Return the gene sets to test: restricted to the background, with at least `MIN_GENES` genes.

    Parameters
    ----------
    gene_sets
        Genes by name of the set.
    background
        Names of the modelled genes.

    Returns
    -------
    dict
        Genes by name of the set, in the same order.

    Raises
    ------
    InputError
        No set is left.
    """
    modelled = {str(gene) for gene in background}
    restricted = {
        name: [gene for gene in dict.fromkeys(genes) if gene in modelled]
        for name, genes in gene_sets.items()
    }
    tested = {name: genes for name, genes in restricted.items() if len(genes) >= MIN_GENES}
    if tested:
        return tested
    if not any(restricted.values()):
        folded = {gene.casefold(): gene for gene in sorted(modelled)}
        for name, genes in gene_sets.items():
            for gene in genes:
                if gene.casefold() in folded:
                    raise InputError(
                        f"report.gene_sets: no gene of the {len(gene_sets)} sets is among the "
                        f"{len(modelled)} modelled genes, but some differ only in case: {gene!r} "
                        f"of {name!r} is {folded[gene.casefold()]!r} in the data; write the "
                        "symbols as in the data, or use sets of the same species"
                    )
    examples = [next(iter(next(iter(gene_sets.values()), ())), ""), min(modelled, default="")]
    raise InputError(
        f"report.gene_sets: none of the {len(gene_sets)} sets has {MIN_GENES} of the "
        f"{len(modelled)} modelled genes (the sets have names like {examples[0]!r}, the data like "
        f"{examples[1]!r}); use sets with the same kind of gene names, or model more genes"
    )


def enrichment(
    leading_K: Sequence[Sequence[str]],
    gene_sets: Mapping[str, Sequence[str]],
    background: Sequence[str],
    topic_names: Sequence[str],
) -> pd.DataFrame:
    """Test over-representation of gene sets among the leading genes of each topic.

    The test is hypergeometric: p is the probability that the same number of genes, drawn from the
    background without replacement, shares at least as many genes with the set. The false discovery
    rate is controlled within each topic over all tested sets, including those without a shared gene
    (p = 1).

    Parameters
    ----------
    leading_K
        Leading genes of each topic, best first.
    gene_sets
        Genes by name of the set, restricted by `restricted_sets`.
    background
        Names of the modelled genes, from which the leading genes come.
    topic_names
        Names of the topics.

    Returns
    -------
    DataFrame
        One row per topic and tested set, by topic and, within it, by p:

        - ``topic``, ``gene_set``
        - ``overlap``: shared genes
        - ``set_size``: genes of the set in the background
        - ``genes_leading``, ``background``: leading genes of the topic, genes of the background
        - ``odds_ratio``: with 0.5 added to each cell of the table (Haldane–Anscombe), so it is
          finite
        - ``p``, ``q``: of the test, and adjusted by Benjamini & Hochberg (1995)
        - ``genes``: the shared genes in the order of the topic, separated by spaces

        ``attrs["left_out"]`` lists the sets with fewer than `MIN_GENES` genes in the background.

    Raises
    ------
    InputError
        No set can be tested.
    """
    tested = restricted_sets(gene_sets, background)
    modelled = set(map(str, background))
    parts = [
        _enrichment_of_topic(topic, list(dict.fromkeys(map(str, leading))), tested, modelled)
        for topic, leading in zip(topic_names, leading_K, strict=True)
    ]
    table = pd.concat(parts, ignore_index=True)
    table.attrs["left_out"] = [name for name in gene_sets if name not in tested]
    return table


def _enrichment_of_topic(
    topic: str, leading: list[str], tested: dict[str, list[str]], modelled: set[str]
) -> pd.DataFrame:
    from scipy.stats import false_discovery_control, hypergeom

    assert modelled >= set(leading), "leading genes are modelled genes"
    members = [set(genes) for genes in tested.values()]
    shared = [[gene for gene in leading if gene in genes] for genes in members]
    overlap = np.array([len(genes) for genes in shared])
    set_size = np.array([len(genes) for genes in members])
    only_leading = len(leading) - overlap
    neither = len(modelled) - set_size - only_leading
    # Probability of at least as many shared genes; 1 if none is shared.
    p = hypergeom.sf(overlap - 1, len(modelled), set_size, len(leading))
    table = pd.DataFrame(
        {
            "topic": topic,
            "gene_set": list(tested),
            "overlap": overlap,
            "set_size": set_size,
            "genes_leading": len(leading),
            "background": len(modelled),
            "odds_ratio": (overlap + 0.5)
            * (neither + 0.5)
            / ((set_size - overlap + 0.5) * (only_leading + 0.5)),
            "p": p,
            "q": false_discovery_control(p),
            "genes": [" ".join(genes) for genes in shared],
        }
    )
    return table.sort_values("p", kind="stable", ignore_index=True)
