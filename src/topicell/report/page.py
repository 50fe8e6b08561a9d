"""The page of a run: one self-contained HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from topicell.config import dotted
from topicell.evaluation import ranking
from topicell.evaluation.conditions import Conditions
from topicell.evaluation.metrics import ordered
from topicell.model.registry import model_spec
from topicell.report import tables, viewer
from topicell.report.embedding import mapped
from topicell.report.figure_set import (
    FIGURES,
    MAX_TOPICS,
    folded,
    number_of_searches,
    shown_topics,
    with_little_support,
)
from topicell.report.scores import headlines, score
from topicell.report.templates import HERE, template
from topicell.report.warnings import dominance, run_warnings

if TYPE_CHECKING:
    from anndata import AnnData

RANKINGS = {
    "deviation": (
        "Deviation",
        "Certainly more frequent than in the average cell: lower end of the 95 % interval of the "
        "deviation from the background.",
    ),
    "probability": ("Probability", "The most frequent genes, often shared by all topics."),
    "relevance": (
        "Relevance",
        "More frequent in the topic than in other topics (log probability and log lift, λ = 0.6).",
    ),
    "frex": ("FREX", "Both frequent in the topic and exclusive to it."),
}
"""How genes can be ranked: heading and meaning."""
N_LEADING_MAPPED = 100
"""Number of leading genes of each topic and ranking whose expression is stored first."""
MAX_EFFECTS = 60
"""Largest number of effects of conditions in the table on the page."""
MAX_TABLE_VALUES = 500_000
"""A table with more values than this is only in the run folder, and the page says so."""

PACKAGES = ("topicell", "torch", "pyro-ppl", "numpy", "scipy", "anndata", "scanpy", "umap-learn")


def render(
    adata: AnnData,
    history: Sequence[Mapping[str, float]],
    figures: Mapping[str, str],
    n_genes: int = 10,
    sets: pd.DataFrame | None = None,
    not_drawn: Mapping[str, str] | None = None,
) -> str:
    """Return the report of a run as one self-contained HTML page.

    Parameters
    ----------
    adata
        The run's cells, maps, topics and ``uns["topicell"]``.
    history
        Metrics of each epoch.
    figures
        SVG by the names of `FIGURES`.
    n_genes
        Number of genes in the card of each topic.
    sets
        Enrichment of gene sets, from `topicell.report.enrichment`.
    not_drawn
        Errors of figures that could not be drawn, by the names of `FIGURES`.
    """
    not_drawn = not_drawn or {}
    run = adata.uns["topicell"]
    scores = json.loads(run["scores"])
    config = json.loads(run["config"])
    theta_NK = np.asarray(adata.obsm["X_lda"])
    beta_KG = np.asarray(adata.varm["lda_topics"]).T
    names = _names(adata)
    n_searches, n_replicates = number_of_searches(run), len(run.get("topic_matches", [0]))
    mapped_M = mapped(adata)
    shown = adata if len(mapped_M) == adata.n_obs else adata[mapped_M]
    groupings = _groupings(adata, mapped_M)
    script = (HERE / "viewer.js").read_text(encoding="utf-8")
    html: str = template("page.html.j2").render(
        run=run,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        cells=_cells(shown, beta_KG, groupings, tables.gene_frequency(adata)),
        groupings=[grouping["name"] for grouping in groupings],
        data=data_line(adata, given="theta" in config),
        model=model_line(config, theta_NK.shape[1], len(history), n_replicates),
        aligned_to=run.get("aligned_to"),
        refitted=run.get("n_searches"),
        headlines=[score(name, scores[name]) for name in headlines(scores)],
        scores=[score(name, scores[name]) for name in ordered(scores)],
        warnings=run_warnings(adata),
        left_out=_left_out(theta_NK),
        sample=_sample(len(mapped_M), adata.n_obs, run.get("differential_cells")),
        n_topics=theta_NK.shape[1],
        names=names,
        marked=_mark(names, n_searches),
        figures=[
            _figure(
                name,
                figures.get(name, ""),
                not_drawn.get(name, ""),
                n_cells=f"{len(mapped_M):,}",
                n_topics=min(theta_NK.shape[1], MAX_TOPICS),
                n_epochs=len(history),
            )
            for name, spec in FIGURES.items()
            if spec.caption and (name in figures or name in not_drawn)
        ],
        rankings={by: RANKINGS[by] for by in _rankings(adata)},
        ranking=_rankings(adata)[0] if "lda_deviations" in adata.varm else "frex",
        conditions=_conditions(run.get("conditions")),
        topics=_topics(adata, mapped_M, beta_KG, n_searches, n_genes, sets),
        tables=[
            (name, meaning, _packed(table))
            for name, meaning, table in tables.of_page(adata, scores, sets)
        ],
        settings=[f"{key}={json.dumps(value)}" for key, value in dotted(config).items()],
        versions=_versions(),
    )
    return html


def _conditions(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the contents of the section about conditions; None without a test."""
    if entry is None:
        return None
    found = Conditions.restored(entry)
    table = found.table.sort_values("p", kind="stable")
    return {
        "formula": found.formula,
        "n_samples": len(found.samples),
        "left_out": found.left_out,
        "smallest_p": {term: p for term, p in found.smallest_p.items() if p > tables.FDR},
        "n_rows": len(table),
        "rows": [
            {
                "topic": row["topic"].replace("topic_", "Topic "),
                "term": row["term"],
                "level": row["level"],
                "effect": f"{row['effect']:+.2f}".replace("-", "−"),
                "interval": f"{row['low']:+.2f} to {row['high']:+.2f}".replace("-", "−"),
                "p": f"{row['p']:.2g}",
                "permutation": f"{row['p_permutation']:.2g}",
                "q": f"{row['q']:.2g}",
                "significant": row["q"] < tables.FDR,
            }
            for row in table.head(MAX_EFFECTS).to_dict("records")
        ],
    }


def _packed(table: pd.DataFrame) -> str:
    """Return a table for the page; nothing if it is too large."""
    if table.size > MAX_TABLE_VALUES:
        return ""
    return viewer.compressed(table.to_csv(float_format="%.6g").encode())


def data_line(adata: AnnData, *, given: bool) -> str:
    """Describe the cells, genes and parts in one line; `given` topics are of another tool."""
    line = f"{adata.n_obs:,} cells and {adata.n_vars:,} genes"
    n_passed = int(adata.uns.get("topicell_n_expressed", 0))
    if adata.raw is not None:
        n_passed = adata.raw.n_vars
    if n_passed > adata.n_vars:
        line += f", of {n_passed:,} that passed the filters"
    if "split" in adata.obs:
        sizes = adata.obs["split"].value_counts()
        parts = {
            "train": "not known to be held out" if given else "for training",
            "valid": "for validation",
            "test": "for testing",
        }
        line += "; " + ", ".join(f"{sizes[p]:,} {use}" for p, use in parts.items() if sizes.get(p))
    return line


def _names(adata: AnnData) -> list[str]:
    """Return the names of the topics, with a mark after those with little support."""
    marks = np.where(with_little_support(adata), "*", "")
    return [f"Topic {k}{mark}" for k, mark in enumerate(marks)]


def _mark(names: Sequence[str], n_searches: int) -> str:
    """Return the meaning of the mark in the names of topics; empty if none has it."""
    if not any(name.endswith("*") for name in names):
        return ""
    return (
        f"* At most half of the {n_searches} replicates have this topic: fits from other random "
        "starts have another one instead."
    )


def model_line(config: Mapping[str, Any], n_topics: int, n_epochs: int, n_replicates: int) -> str:
    """Describe the model and its fits in one line."""
    if "theta" in config:
        return f"{n_topics} topics from {config['beta']}, proportions from {config['theta']}"
    kind = config.get("model", {}).get("kind", "amortized_lda")
    line = model_spec(kind).title.format(n_topics=n_topics)
    if n_epochs:
        line += f", {n_epochs} epoch{'s' * (n_epochs > 1)}"
    if n_replicates > 1:
        line += (
            f"; {n_replicates} replicates, of which the one with the highest ELBO on validation "
            "cells is selected"
        )
    return line


def _groupings(adata: AnnData, mapped_M: np.ndarray) -> list[dict[str, Any]]:
    """Return groups by which the cells on the maps can be coloured, the dominant topic first."""
    from topicell.report import figures

    theta_NK = np.asarray(adata.obsm["X_lda"])
    n_topics = theta_NK.shape[1]
    found: list[dict[str, Any]] = [
        {
            "name": "Dominant topic",
            "names": _names(adata),
            "colors": figures.topic_colors(n_topics),
            "codes": ranking.dominant_topics(theta_NK[mapped_M]),
        }
    ]
    run = adata.uns["topicell"]
    columns = [
        (name, key)
        for name, key in (
            ("Label", run["label_key"]),
            ("Batch", run.get("batch_key")),
            ("Leiden cluster", "leiden"),
            ("Sample", run.get("sample_key")),
        )
        if key
    ]
    for name, key in columns:
        codes_N, names = figures.category_codes(folded(adata.obs[key]).iloc[mapped_M])
        found.append(
            {
                "name": name,
                "names": names,
                "colors": figures.category_colors(len(names)),
                "codes": codes_N,
            }
        )
    return [grouping for grouping in found if len(grouping["names"]) < viewer.NO_CATEGORY]


def _cells(
    adata: AnnData,
    beta_KG: np.ndarray,
    groupings: Sequence[Mapping[str, Any]],
    frequency_G: np.ndarray,
) -> str:
    """Return the data that the page's scripts read, from the cells on the maps."""
    from topicell.report import figures

    n_topics = len(beta_KG)
    # Leading genes of any ranking first, then genes by their share of all counts.
    leading = [
        ranking.top_genes(score_KG, N_LEADING_MAPPED).T.ravel()
        for by, score_KG in tables.scores_of_genes(adata, beta_KG, frequency_G).items()
        if by in RANKINGS
    ]
    order_G = pd.unique(np.concatenate([*leading, np.argsort(-frequency_G, kind="stable")]))
    return viewer.pack(
        cells=adata.obs_names,
        genes=adata.var_names,
        topics=_names(adata),
        colors=figures.topic_colors(n_topics),
        theta_NK=np.asarray(adata.obsm["X_lda"]),
        beta_KG=beta_KG,
        maps={space: np.asarray(adata.obsm[f"X_umap_{space}"]) for space in ("counts", "topics")},
        categories=groupings,
        expression_NG=adata.X,
        order_G=order_G,
        differential={
            name: np.asarray(adata.varm[key])
            for name, key in (("lfc", "lda_lfc"), ("q", "lda_q"))
            if key in adata.varm
        },
    )


def _figure(name: str, svg: str, error: str, **counts: Any) -> dict[str, Any]:
    from markupsafe import Markup

    spec = FIGURES[name]
    return {
        "name": name,
        "caption": spec.caption,
        "alt": spec.alt.format(**counts),
        # our own figure; matplotlib has escaped its text
        "svg": Markup(svg),
        "error": error,
    }


def _left_out(theta_NK: np.ndarray) -> str:
    """Say which topics cards and figures leave out; empty if none."""
    topics = shown_topics(theta_NK)
    if topics is None:
        return ""
    left_out = np.delete(np.arange(theta_NK.shape[1]), topics).tolist()
    return (
        f"Cards and figures show {len(topics)} of the {theta_NK.shape[1]} topics, those with the "
        f"largest mean proportion. They leave out {len(left_out)}: {_ranges(left_out)}. Maps, gene "
        "search and tables have all topics."
    )


def _sample(n_mapped: int, n_cells: int, n_compared: int | None) -> str:
    """Say which cells the maps and the differential expression leave out; empty if none."""
    compared = ""
    if n_compared:
        compared = f" Genes were compared between topics in {n_compared:,} drawn cells."
    if n_mapped == n_cells:
        return compared.strip()
    return (
        f"The maps show {n_mapped:,} of the {n_cells:,} cells (report.max_cells), drawn so that "
        "rare labels and topics are kept: the density of points is not that of the cells. The "
        "Leiden clusters were found among these cells, and every other cell has the cluster of "
        "most of its nearest ones. Topics, other figures and tables are of all cells; a score of a "
        f"sample has a sampling error.{compared}"
    )


def _ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, with ranges of three or more shortened: ``0, 2–5, 7``."""
    runs: list[list[int]] = []
    for topic in numbers:
        if runs and topic == runs[-1][-1] + 1:
            runs[-1].append(topic)
        else:
            runs.append([topic])
    return ", ".join(
        f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )


def _topics(
    adata: AnnData,
    mapped_M: np.ndarray,
    beta_KG: np.ndarray,
    n_searches: int,
    n_genes: int,
    sets: pd.DataFrame | None,
) -> list[dict[str, Any]]:
    """Return the contents of the cards of topics."""
    from topicell.report import figures

    run = adata.uns["topicell"]
    theta_NK = np.asarray(adata.obsm["X_lda"])
    stability_K, support_K = run.get("topic_stability"), run.get("topic_support")
    frequency_G = tables.gene_frequency(adata)
    scores = tables.scores_of_genes(adata, beta_KG, frequency_G)
    leading = {by: ranking.top_genes(scores[by], n_genes) for by in _rankings(adata)}
    seeds = run["seeds"]["seed"].to_dict() if "seeds" in run else {}
    dominance_K, mean_K = dominance(theta_NK), theta_NK.mean(axis=0)
    umap_M2 = np.asarray(adata.obsm["X_umap_counts"])[mapped_M]
    cards = []
    names = _names(adata)
    colors = figures.topic_colors(len(beta_KG))
    for topic in shown_topics(theta_NK) or range(len(beta_KG)):
        color = colors[topic]
        card = {
            "name": names[topic],
            "number": topic,
            "color": color,
            "mean": _percent(mean_K[topic]),
            "dominance": _percent(dominance_K[topic]),
            "stability": "" if stability_K is None else f"{stability_K[topic]:.2f}",
            "support": ""
            if support_K is None
            else f"found in {support_K[topic]} of {n_searches} replicates",
            "thumbnail": base64.b64encode(
                figures.thumbnail(umap_M2, theta_NK[mapped_M, topic], color)
            ).decode(),
            "genes": {
                by: [(adata.var_names[g], _percent(beta_KG[topic, g])) for g in genes_KT[topic]]
                for by, genes_KT in leading.items()
            },
            "distinct": _distinct(adata, topic),
            "sets": [],
            "seed": seeds.get(f"topic_{topic}", ""),
        }
        if sets is not None:
            of_topic = sets[(sets["topic"] == f"topic_{topic}") & (sets["q"] < tables.FDR)].head(4)
            card["sets"] = [
                (row.gene_set, f"{row.q:.1g}", row.genes) for row in of_topic.itertuples()
            ]
        cards.append(card)
    return cards


def _rankings(adata: AnnData) -> list[str]:
    """Return how the genes of topics are ranked on the page."""
    return [by for by in RANKINGS if by != "deviation" or "lda_deviations" in adata.varm]


def _distinct(adata: AnnData, topic: int, n: int = 6) -> list[tuple[str, str]]:
    """Return the significant genes with the largest fold change against all other topics."""
    if "lda_lfc" not in adata.varm:
        return []
    lfc_G = np.asarray(adata.varm["lda_lfc"])[:, topic]
    sure_G = (np.asarray(adata.varm["lda_q"])[:, topic] < tables.FDR) & (lfc_G > 0)
    order = np.flatnonzero(sure_G)[np.argsort(-lfc_G[sure_G], kind="stable")][:n]
    return [(str(adata.var_names[g]), f"{lfc_G[g]:.1f}") for g in order]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _versions() -> list[tuple[str, str]]:
    installed = {distribution.name for distribution in metadata.distributions()}
    return [("python", platform.python_version())] + [
        (package, metadata.version(package)) for package in PACKAGES if package in installed
    ]
