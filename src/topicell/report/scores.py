"""What scores are called, what they say, and which stand first."""

from __future__ import annotations

import math

SCORES = {
    "test/perplexity_folded": (
        "Perplexity",
        "How many genes the model hesitates between for the next count of an unseen cell, its "
        "topics found by EM. Lower is better; a guess among all genes scores their number.",
    ),
    "test/perplexity_amortized": (
        "Perplexity, by the encoder",
        "The same, the cell's topics read off by the encoder. Lower is better; close to the one "
        "above means that the encoder does its work.",
    ),
    "test/perplexity_own": (
        "Perplexity, by the library's inference",
        "The same, the cell's topics inferred by the library that fitted them. Lower is better.",
    ),
    "given/perplexity": (
        "Perplexity of the proportions given",
        "Of all counts of all cells, by the two matrices as they were given: a fit to these cells "
        "scores too well here. Lower is better.",
    ),
    "given/perplexity_folded": (
        "Perplexity, half from half",
        "Half of each cell's counts predicted from the other half, for all cells: not held out, if "
        "the topics were fitted to them. Lower is better.",
    ),
    "given/elbo_given_topics": (
        "ELBO given the topics, all cells",
        "As the score of unseen cells below, over all cells. Higher is better.",
    ),
    "test/elbo_given_topics": (
        "ELBO given the topics",
        "Lower bound on the log-probability of an unseen cell with the topics held fixed and the "
        "cell's proportions optimised: the same for every kind of model, at one number of topics. "
        "Nats per cell, higher is better.",
    ),
    "test/elbo": (
        "ELBO",
        "Lower bound on the log-probability of an unseen cell, nats per cell, without the "
        "multinomial coefficient. Higher is better; compare on the same cells and genes only.",
    ),
    "topics/coherence_npmi": (
        "Coherence (NPMI)",
        "Do the top genes of a topic occur in the same cells? From −1, never, over 0, by chance, "
        "to 1, always. Higher is better.",
    ),
    "topics/coherence_umass": (
        "Coherence (UMass)",
        "The same by another formula; about 0 at best. Higher is better.",
    ),
    "topics/diversity": (
        "Diversity",
        "Share of distinct genes among the top genes of all topics. Near 1, topics differ.",
    ),
    "topics/exclusivity": (
        "Exclusivity (FREX)",
        "Are top genes both frequent and particular to their topic? From 0 to 1, higher is better.",
    ),
    "topics/used": (
        "Topics in use",
        "Topics dominant in more than 1 % of the cells. Good if all are.",
    ),
    "topics/effective": (
        "Effective topics",
        "Number of equally common topics that would be as diverse. Between 1 and the number of "
        "topics.",
    ),
    "topics/stability": (
        "Stability",
        "Do fits from other random starts find the same topics? Mean cosine of matched topics; "
        "1 is always, below 0.7 is a warning.",
    ),
    "topics/consensus": (
        "Topics found again",
        "Consensus topics that more than one replicate found (topics/consensus.csv).",
    ),
    "inference/amortization_gap": (
        "Amortization gap",
        "ELBO lost because an encoder guesses each cell's topics, nats per cell. Lower is better, "
        "0 is none; transform with refine=true avoids it.",
    ),
    "labels/nmi": (
        "Agreement with labels (NMI)",
        "Do clusters in topic space follow the known labels? From 0, no, to 1, fully.",
    ),
    "labels/ari": (
        "Agreement with labels (ARI)",
        "The same by pairs of cells, corrected for chance: 0 is chance, 1 is full agreement.",
    ),
    "labels/knn_accuracy": (
        "Label accuracy",
        "Share of cells whose nearest cells in topic space have the same label. Higher is better.",
    ),
    "speed/fit_seconds": ("Time of the fit", "Seconds."),
    "memory/peak_mib": ("Peak memory", "MiB."),
}
"""Name and meaning of each score, in the order of the table."""

HEADLINES = (
    "test/perplexity_folded",
    "given/perplexity_folded",
    "topics/coherence_npmi",
    "topics/used",
    "topics/stability",
    "labels/nmi",
)
"""The scores that a page begins with."""


def number(value: float) -> str:
    """A value with as many digits as say something."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if math.isnan(value):
        return "not defined"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 1
    return f"{value:,.{digits}f}".replace("-", "−")
