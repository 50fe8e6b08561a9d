"""The page of a run: one HTML file that needs nothing else, neither network nor scripts."""

from __future__ import annotations

import base64
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell.config import dotted
from topicell.evaluation import ranking

if TYPE_CHECKING:
    from anndata import AnnData

FEW_TEST_CELLS = 30
USED_SHARE = 0.01
"""A topic that is dominant in no more than this share of the cells counts as not used."""
DUPLICATE_COSINE = 0.95
"""Two topics whose β have a greater cosine than this are near copies."""
STABLE = 0.7
"""A topic that replicates find with a cosine below this should not be read much into."""

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

MODELS = {
    "amortized_lda": "latent Dirichlet allocation with {n_topics} topics and amortized inference",
    "sklearn_lda": "scikit-learn's LatentDirichletAllocation with {n_topics} topics",
    "sklearn_nmf": "scikit-learn's NMF with {n_topics} components, Kullback-Leibler loss",
    "gensim_lda": "gensim's LdaModel with {n_topics} topics",
    "tomotopy_lda": "tomotopy's LDAModel with {n_topics} topics, Gibbs sampling",
    "scvi_lda": "scvi-tools' AmortizedLDA with {n_topics} topics",
}
"""What each kind of model is called."""

HEADLINES = (
    "test/perplexity_folded",
    "given/perplexity_folded",
    "topics/coherence_npmi",
    "topics/used",
    "topics/stability",
    "labels/nmi",
)

_MAP = "Each point is a cell; distances over more than a neighbourhood mean little in a UMAP."
FIGURES = {
    "structure": (
        "Topic proportions of single cells: each cell is one thin column, its topics stacked. "
        "Groups in brackets with their number of cells; small ones are drawn wider than they are.",
        "Stacked bars of the proportions of {n_topics} topics in the cells, by group",
    ),
    "top_genes": (
        "The most probable genes of each topic, all on one scale. Genes that every cell expresses "
        "lead many topics; the table below adds the characteristic ones.",
        "Bars of the proportions of the leading genes in each of {n_topics} topics",
    ),
    "umap_counts_topics": (
        f"Where each topic is found, on the map of the log-normalised counts. {_MAP}",
        "Map of {n_cells} cells by counts, once for each of {n_topics} topics, coloured by the "
        "topic's proportion",
    ),
    "umap_topics_topics": (
        "The same on the map of the topic proportions (neighbours by Hellinger distance).",
        "Map of {n_cells} cells by topic proportions, once for each of {n_topics} topics, coloured "
        "by the topic's proportion",
    ),
    "umap_counts_labels": (
        "Known labels on the map of the counts.",
        "Map of {n_cells} cells by counts, coloured by known label",
    ),
    "umap_topics_labels": (
        "Known labels on the map of the topics: groups that stay together are kept by the model.",
        "Map of {n_cells} cells by topic proportions, coloured by known label",
    ),
    "umap_counts_leiden": (
        "Leiden clusters of the counts, on their own map.",
        "Map of {n_cells} cells by counts, coloured by Leiden cluster",
    ),
    "umap_topics_leiden": (
        "Leiden clusters of the counts, on the map of the topics.",
        "Map of {n_cells} cells by topic proportions, coloured by Leiden cluster of the counts",
    ),
    "amortization_gap": (
        "What the encoder's posterior of each cell loses against one optimised for the cell, the "
        "topics held fixed.",
        "Histogram of the amortization gap of the cells, in nats",
    ),
    "training_curves": (
        "Training by epoch; bands are ± 1 standard deviation over replicates. The ELBO is taken "
        "with full KL weight throughout.",
        "Curves over {n_epochs} epochs: ELBO, validation perplexity, KL terms, KL weight and "
        "learning rate",
    ),
}
"""Caption and alternative text of each figure, in the order of the page."""

PACKAGES = ("topicell", "torch", "pyro-ppl", "numpy", "scipy", "anndata", "scanpy", "umap-learn")


def render(
    adata: AnnData,
    history: Sequence[Mapping[str, float]],
    figures: Mapping[str, bytes],
    n_genes: int = 10,
) -> str:
    """The report of a run as one HTML page, with its images inside.

    Parameters
    ----------
    adata
        The run's cells, topics and ``uns["topicell"]``.
    history
        Metrics of each epoch.
    figures
        PNG images by the names of `FIGURES`; others go last, under their own name.
    n_genes
        Genes that the table gives for each topic.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    run = adata.uns["topicell"]
    scores = json.loads(run["scores"])
    config = json.loads(run["config"])
    theta_NK = np.asarray(adata.obsm["X_lda"])
    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    stability_K = run.get("topic_stability")
    support_K = run.get("topic_support")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        run=run,
        n_topics=theta_NK.shape[1],
        data=_data_line(adata, given="theta" in config),
        model=_model_line(config, theta_NK.shape[1], len(history)),
        headlines=[_score(name, scores[name]) for name in HEADLINES if name in scores],
        scores=[_score(name, scores[name]) for name in _known_first(scores, SCORES)],
        cautions=[
            *cautions(theta_NK, beta_KG, stability_K, support_K),
            *limits(_n_test(adata), replicated=stability_K is not None, given="theta" in config),
        ],
        figures=[
            _figure(
                name,
                figures[name],
                n_cells=f"{adata.n_obs:,}",
                n_topics=theta_NK.shape[1],
                n_epochs=len(history),
            )
            for name in _known_first(figures, FIGURES)
        ],
        topics=_topics(
            adata.var_names.to_numpy(),
            theta_NK,
            beta_KG,
            stability_K,
            support_K,
            _n_replicates(config),
            n_genes,
        ),
        settings=[f"{key}={json.dumps(value)}" for key, value in dotted(config).items()],
        versions=_versions(),
    )


def cautions(
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    stability_K: np.ndarray | None = None,
    support_K: np.ndarray | None = None,
) -> Iterator[tuple[str, str]]:
    """What a reader should know before reading the topics: (heading, explanation).

    Parameters
    ----------
    theta_NK
        Topic proportions of the cells.
    beta_KG
        Gene proportions of the topics.
    stability_K
        How well replicates agree on each topic; None where there is one replicate only.
    support_K
        In how many replicates each topic was found.
    """
    n_topics = theta_NK.shape[1]
    unused = np.flatnonzero(_dominance(theta_NK) <= USED_SHARE)
    if len(unused):
        yield (
            f"{len(unused)} of {n_topics} topics hardly used",
            f"{_topic_names(unused)} dominant in at most {100 * USED_SHARE:g} % of the cells: "
            "collapsed, or a background that many cells share a little of. If the genes say "
            "nothing either, lower model.n_topics.",
        )
    unit_KG = beta_KG / np.linalg.norm(beta_KG, axis=1, keepdims=True)
    cosine_KK = np.triu(unit_KG @ unit_KG.T, k=1)
    pairs = [
        f"{a} and {b} ({cosine_KK[a, b]:.3f})" for a, b in np.argwhere(cosine_KK > DUPLICATE_COSINE)
    ]
    if pairs:
        yield (
            "Near copies among the topics",
            f"Cosine of the gene proportions above {DUPLICATE_COSINE}: topics {', '.join(pairs)}. "
            "Read each pair as one topic, or lower model.n_topics.",
        )
    if stability_K is not None:
        stability_K = np.asarray(stability_K, dtype=float)
        weak_K = stability_K < STABLE
        if support_K is not None:
            weak_K |= np.asarray(support_K) == 1
        unstable = np.flatnonzero(weak_K)
        if len(unstable):
            found = ", ".join(f"{topic} ({stability_K[topic]:.3f})" for topic in unstable)
            yield (
                f"{len(unstable)} of {n_topics} topics not found again",
                f"In this replicate alone, or of a stability below {STABLE}: "
                f"{'topics' if len(unstable) > 1 else 'topic'} {found}. Other starts give other "
                "topics in their place, unstable or redundant; build nothing on them.",
            )


def limits(n_test: int, *, replicated: bool, given: bool = False) -> Iterator[tuple[str, str]]:
    """What the scores cannot tell: (heading, explanation).

    Parameters
    ----------
    n_test
        Number of test cells; 0 where none were kept.
    replicated
        Whether there are several replicates.
    given
        Whether the topics come from elsewhere.
    """
    if given and not n_test:
        yield (
            "No cell is known to be held out",
            "If the topics were fitted to these cells, the perplexities and the ELBO are too good; "
            "held_out=FILE names cells that they were not fitted to.",
        )
    if 0 < n_test < FEW_TEST_CELLS:
        yield (
            f"Only {n_test} test cells",
            "The perplexity of other cells may be quite another: compare it with nothing but fits "
            "of the same split.",
        )
    if not replicated and not given:
        yield (
            "One replicate, so no stability",
            "Nothing here says whether another start finds the same topics; train.n_replicates=4 "
            "does.",
        )


def _n_test(adata: AnnData) -> int:
    return int((adata.obs["split"] == "test").sum()) if "split" in adata.obs else 0


def _topic_names(topics: np.ndarray) -> str:
    names = [str(topic) for topic in topics]
    if len(names) == 1:
        return f"Topic {names[0]} is"
    return f"Topics {', '.join(names[:-1])} and {names[-1]} are"


def _dominance(theta_NK: np.ndarray) -> np.ndarray:
    """Share of the cells in which each topic is dominant."""
    dominant_N = ranking.dominant_topics(theta_NK)
    return np.bincount(dominant_N, minlength=theta_NK.shape[1]) / len(theta_NK)


def _data_line(adata: AnnData, *, given: bool) -> str:
    line = f"{adata.n_obs:,} cells and {adata.n_vars:,} genes"
    if adata.raw is not None and adata.raw.n_vars > adata.n_vars:
        line += f", of {adata.raw.n_vars:,} that passed the filters"
    if "split" in adata.obs:
        sizes = adata.obs["split"].value_counts()
        parts = {
            "train": "not known to be held out" if given else "to train on",
            "valid": "to validate on",
            "test": "kept to test on",
        }
        line += "; " + ", ".join(f"{sizes[p]:,} {use}" for p, use in parts.items() if sizes.get(p))
    return line


def _n_replicates(config: Mapping[str, Any]) -> int:
    return int(config.get("train", {}).get("n_replicates", 1))


def _model_line(config: Mapping[str, Any], n_topics: int, n_epochs: int) -> str:
    if "theta" in config:
        return f"{n_topics} topics from {config['beta']}, proportions from {config['theta']}"
    kind = config.get("model", {}).get("kind", "amortized_lda")
    line = MODELS[kind].format(n_topics=n_topics)
    if n_epochs:
        line += f", {n_epochs} epoch{'s' * (n_epochs > 1)}"
    n_replicates = _n_replicates(config)
    if n_replicates > 1:
        line += (
            f"; {n_replicates} replicates, and the one of the highest ELBO on validation cells is "
            "shown"
        )
    return line


def _score(name: str, value: float) -> dict[str, str]:
    title, meaning = SCORES.get(name, (name, ""))
    return {"name": name, "title": title, "meaning": meaning, "value": _number(value)}


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if math.isnan(value):
        return "not defined"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}".replace("-", "−")
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 1
    return f"{value:,.{digits}f}".replace("-", "−")


def _known_first(names: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    return [name for name in known if name in names] + [name for name in names if name not in known]


def _figure(name: str, png: bytes, **counts: Any) -> dict[str, Any]:
    caption, alt = FIGURES.get(name, (name, name))
    return {
        "name": name,
        "caption": caption,
        "alt": alt.format(**counts) if name in FIGURES else alt,
        "data": base64.b64encode(png).decode(),
        # a PNG begins with 16 fixed bytes and its size: known sizes keep the page from jumping
        "width": int.from_bytes(png[16:20]),
        "height": int.from_bytes(png[20:24]),
    }


def _topics(
    genes: np.ndarray,
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    stability_K: np.ndarray | None,
    support_K: np.ndarray | None,
    n_replicates: int,
    n_genes: int,
) -> list[dict[str, Any]]:
    from topicell.report.figures import topic_colors

    probable_KT = ranking.top_genes(beta_KG, n_genes)
    characteristic_KT = ranking.top_genes(ranking.frex(beta_KG), n_genes)
    dominance_K, mean_K = _dominance(theta_NK), theta_NK.mean(axis=0)
    return [
        {
            "name": f"Topic {topic}",
            "color": color,
            "mean": f"{100 * mean_K[topic]:.1f} %",
            "dominance": f"{100 * dominance_K[topic]:.1f} %",
            "stability": "" if stability_K is None else f"{stability_K[topic]:.2f}",
            "support": ""
            if support_K is None
            else f"found in {support_K[topic]} of {n_replicates} replicates",
            "probable": [
                (genes[g], f"{100 * beta_KG[topic, g]:.1f} %") for g in probable_KT[topic]
            ],
            "characteristic": [
                (genes[g], f"{100 * beta_KG[topic, g]:.1f} %") for g in characteristic_KT[topic]
            ],
        }
        for topic, color in enumerate(topic_colors(len(beta_KG)))
    ]


def _versions() -> list[tuple[str, str]]:
    installed = {distribution.name for distribution in metadata.distributions()}
    return [("python", platform.python_version())] + [
        (package, metadata.version(package)) for package in PACKAGES if package in installed
    ]
