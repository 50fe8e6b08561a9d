"""The page of a comparison, one self-contained HTML file, and its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from topicell.comparison.values import (
    MATCHED,
    N_GENES,
    N_SIGMA,
    Comparison,
    Difference,
    Pairing,
    Score,
    Side,
)
from topicell.evaluation.metrics import METRICS, metric
from topicell.report.scores import number
from topicell.report.templates import template

DASH = "–"
"""Shown for values that a run does not have."""
LONG = 80
"""Longest value of a setting in a cell of a table, in characters."""
DPI = 150


def write(comparison: Comparison, directory: Path) -> Path:
    """Write ``compare.html``, the tables and ``figures/``; return the path of the page."""
    from topicell.report.figures import as_svg, save

    for name, frame in tables(comparison):
        frame.to_csv(directory / f"{name}.csv", index=False)
    (directory / "figures").mkdir()
    images = {}
    for name, figure in _figures(comparison):
        save(figure, directory / "figures" / name, DPI)
        images[name] = as_svg(figure, name)
    page = directory / "compare.html"
    page.write_text(render(comparison, images), encoding="utf-8")
    return page


def tables(comparison: Comparison) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the tables that hold all that the page says: file name and table."""
    sides = comparison.sides
    yield (
        "runs",
        pd.DataFrame(
            {
                "run": side.letter,
                "name": side.name,
                "run_id": side.run_id,
                "folder": side.folder,
                "data": side.data,
                "model": side.model,
                "made": side.made,
                **side.tags,
                **side.versions,
            }
            for side in sides
        ),
    )
    texts = list(comparison.parameters.values())
    settings = pd.DataFrame(texts, columns=comparison.letters, dtype=object)
    settings.insert(0, "parameter", list(comparison.parameters))
    settings.insert(1, "differs", settings["parameter"].isin(comparison.differing))
    yield "parameters", settings
    first = comparison.letters[0]
    rows = []
    for score in comparison.scores:
        for place, (side, value) in enumerate(zip(sides, score.values, strict=True)):
            if value is None:
                continue
            lead = value.against_first or Difference(math.nan, math.nan, 0)
            rows.append(
                {
                    "metric": score.name,
                    "run": side.letter,
                    "run_id": side.run_id,
                    "mean": value.mean,
                    "error": value.error,
                    "error_is": value.kind,
                    f"minus_{first}": lead.mean,
                    f"minus_{first}_se": lead.se,
                    "paired_splits": lead.paired,
                    "best": place == score.best,
                    "not_comparable": score.incompatibility,
                }
            )
    yield "scores", pd.DataFrame(rows)
    columns = (
        *("run", "topic", "other_run", "other_topic", "match", "cosine"),
        *("next_best", "next_best_cosine", "shared_top_genes"),
        *("mean_proportion", "other_mean_proportion", "theta_correlation"),
    )
    matched = [row for pairing in comparison.pairings for row in _topic_rows(pairing)]
    # Topics are integers; the columns are empty for topics without a partner.
    whole = {"other_topic": "Int64", "next_best": "Int64"}
    yield "matched_topics", pd.DataFrame(matched, columns=columns).astype(whole)


def _topic_rows(pairing: Pairing) -> Iterator[tuple[Any, ...]]:
    """Yield rows of matched_topics.csv: the pairs, then the topics that are in no pair."""
    a, b = pairing.letters
    for match in pairing.matches:
        yield (
            *(a, match.topic, b, match.partner, match.found, match.cosine),
            *(match.next_best or (None, math.nan)),
            " ".join(match.genes),
            *(match.proportion, match.partner_proportion, match.correlation),
        )
    paired = {match.topic for match in pairing.matches}, {m.partner for m in pairing.matches}
    sides = zip((a, b), (b, a), pairing.unmatched, paired, strict=True)
    for own, other, unmatched, taken in sides:
        for topic in unmatched:
            if topic.topic not in taken:
                yield (
                    *(own, topic.topic, other, None, False, math.nan),
                    *(topic.nearest, topic.cosine, "", topic.proportion, math.nan, math.nan),
                )


def _figures(comparison: Comparison) -> Iterator[tuple[str, Any]]:
    """Yield the matplotlib figures: file name and figure."""
    from topicell.report.figures.comparison import (
        score_panels,
        topic_matrix,
        training_overlay,
    )

    panels = [
        (
            score.title,
            "not comparable" if score.incompatibility else metric(score.name).axis,
            [v if v is None else (v.mean, v.error, v.single) for v in score.values],
        )
        for score in comparison.scores
        if metric(score.name).panel
    ]
    if panels:
        yield "scores", score_panels(panels, comparison.letters)
    for pairing in comparison.pairings:
        if pairing.matches:
            yield (
                f"topics_{'_'.join(pairing.letters)}",
                topic_matrix(
                    pairing.cosine_KK,
                    [(match.topic, match.partner) for match in pairing.matches],
                    len(pairing.found),
                    pairing.letters,
                ),
            )
    histories = [side.history for side in comparison.sides]
    curves = {
        name: (row.title, row.axis)
        for name, row in METRICS.items()
        if row.by_epoch and row.panel
        if any(name in values for history in histories for values in history)
    }
    if curves:
        yield "training", training_overlay(histories, comparison.letters, curves)


def render(comparison: Comparison, figures: Mapping[str, str]) -> str:
    """Return the comparison as one HTML page that includes its images.

    Parameters
    ----------
    comparison
        The comparison.
    figures
        ``<svg>`` elements by the names of their files.
    """
    from markupsafe import Markup

    from topicell.report.figures import topic_colors

    letters = comparison.letters
    html: str = template("compare.html.j2", Path(__file__).parent).render(
        comparison=comparison,
        sides=comparison.sides,
        letters=letters,
        colors=dict(zip(letters, topic_colors(len(letters)), strict=True)),
        summary=list(_summary(comparison)),
        differing=[
            (name, [_cut(text) for text in comparison.parameters[name]])
            for name in comparison.differing
        ],
        alike=list(_alike(comparison)),
        rows=[_row(score, letters) for score in comparison.scores],
        kinds=_kinds(comparison.scores),
        pairings=[_pairing(pairing) for pairing in comparison.pairings],
        tags=_tags(comparison.sides),
        figures={name: Markup(svg) for name, svg in figures.items()},
        n_genes=N_GENES,
        captions=_captions(comparison),
        n_sigma=f"{N_SIGMA:g}",
        threshold=MATCHED,
        dash=DASH,
    )
    return html


def _summary(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield the summary at the head of the page: subject and sentence."""
    # These settings do not change the numbers of a run.
    aside = ("report.", "tracking.")
    differing = [name for name in comparison.differing if not name.startswith(aside)]
    if differing:
        shown = "; ".join(
            f"{name} = {', '.join(_cut(text, 24) for text in comparison.parameters[name])}"
            for name in differing[:3]
        )
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        yield "Settings", shown + more
    else:
        yield "Settings", "the same" + ", except for the report" * bool(comparison.differing)
    for place, letter in enumerate(comparison.letters):
        titles = [score.title for score in comparison.scores if score.best == place]
        if titles:
            yield f"{letter} is ahead in", "; ".join(titles)
    if all(score.best is None for score in comparison.scores):
        yield "Ahead", "no run is clearly ahead in any score"
    for pairing in comparison.pairings:
        a, b = pairing.letters
        found = [match.cosine for match in pairing.found]
        sentence = f"{len(found)} of {len(pairing.cosine_KK)} topics of {a} are in {b}"
        if found:
            sentence += f" (mean cosine {np.mean(found):.2f})"
        yield f"Topics of {a} and {b}", f"{sentence}; {b} has {pairing.cosine_KK.shape[1]}"


def _row(score: Score, letters: Sequence[str]) -> dict[str, Any]:
    """Return a row of the table of scores; values have as many digits as their errors justify."""
    values = [value for value in score.values if value is not None]
    errors = [
        error
        for value in values
        for error in (value.error, value.against_first.se if value.against_first else math.nan)
        if math.isfinite(error) and error > 0
    ]
    # Two digits of the smallest error, but at most 4 decimals.
    decimals = int(np.clip(1 - math.floor(math.log10(min(errors))), 0, 4)) if errors else None
    return {
        "name": score.name,
        "title": score.title,
        "meaning": metric(score.name).explanation,
        "incompatibility": score.incompatibility,
        "cells": [
            {
                "letter": letter,
                "best": place == score.best,
                "value": DASH if value is None else _text(value.mean, decimals),
                "error": _text(value.error, decimals)
                if value is not None and math.isfinite(value.error)
                else "",
                "kind": "" if value is None else value.kind,
                "lead": ""
                if value is None or value.against_first is None
                else _lead(value.against_first, decimals, letters[0]),
            }
            for place, (letter, value) in enumerate(zip(letters, score.values, strict=True))
        ],
    }


def _lead(difference: Difference, decimals: int | None, first: str) -> str:
    sign = "+" if difference.mean > 0 else ""
    error = f" ± {_text(difference.se, decimals)}" if math.isfinite(difference.se) else ""
    return f"vs {first}: {sign}{_text(difference.mean, decimals)}{error}"


def _text(value: float, decimals: int | None) -> str:
    if decimals is None or not math.isfinite(value):
        return number(value)
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")


def _kinds(scores: Sequence[Score]) -> str:
    """Return what the errors are if all are of the same kind, else nothing: each cell says it."""
    kinds = {v.kind for score in scores for v in score.values if v is not None and v.kind}
    return kinds.pop() if len(kinds) == 1 else ""


def _cut(text: str | None, length: int = LONG) -> str:
    if text is None:
        return DASH
    return text if len(text) <= length else f"{text[:length]}…"


def _alike(comparison: Comparison) -> Iterator[str]:
    """Yield the settings that do not differ, as they are written on the command line."""
    for name, texts in comparison.parameters.items():
        if name not in comparison.differing:
            having = [
                letter
                for letter, text in zip(comparison.letters, texts, strict=True)
                if text is not None
            ]
            some = f"  (only {', '.join(having)})" if len(having) < len(texts) else ""
            yield f"{name}={next(text for text in texts if text is not None)}{some}"


def _pairing(pairing: Pairing) -> dict[str, Any]:
    """Return what the page shows about the topics of two runs."""
    a, b = pairing.letters
    of_a, of_b = (dict.fromkeys(little, "*") for little in pairing.little)
    return {
        "little": any(pairing.little),
        "name": f"topics_{a}_{b}",
        "a": a,
        "b": b,
        "pairing": pairing,
        "genes": _common_genes(pairing),
        "cells": f"{pairing.n_cells:,} cells are in both."
        if pairing.n_cells
        else "The runs share no cells, so their topic proportions cannot be compared cell by cell.",
        "matches": [
            {
                "topic": f"{match.topic}{of_a.get(match.topic, '')}",
                "partner": f"{match.partner}{of_b.get(match.partner, '')}",
                "found": match.found,
                "cosine": f"{match.cosine:.3f}",
                "next_best": f"{b} {match.next_best[0]}: {match.next_best[1]:.3f}"
                if match.next_best
                else DASH,
                "n_genes": len(match.genes),
                "genes": ", ".join(match.genes[:8]) + ("…" if len(match.genes) > 8 else ""),
                "proportions": f"{100 * match.proportion:.1f} % and "
                f"{100 * match.partner_proportion:.1f} %",
                "correlation": f"{match.correlation:.3f}".replace("-", "−")
                if math.isfinite(match.correlation)
                else DASH,
            }
            for match in pairing.matches
        ],
        "unmatched": [
            (
                f"Topics of {own} without a partner in {other}",
                [
                    {
                        "name": f"{own} {topic.topic}{mark.get(topic.topic, '')}",
                        "proportion": f"{100 * topic.proportion:.1f} %",
                        "nearest": f"{other} {topic.nearest}, cosine {topic.cosine:.3f}",
                        "genes": ", ".join(topic.genes),
                    }
                    for topic in unmatched
                ],
            )
            for own, other, unmatched, mark in zip(
                (a, b), (b, a), pairing.unmatched, (of_a, of_b), strict=True
            )
            if unmatched
        ],
    }


def _tags(sides: Sequence[Side]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return digests and versions by name, each with its text for every run."""
    of_sides = [{**side.tags, **side.versions} for side in sides]
    return [
        (
            name,
            [
                (side.letter, _cut(of_side.get(name) or DASH, 40))
                for side, of_side in zip(sides, of_sides, strict=True)
            ],
        )
        for name in dict.fromkeys(name for of in of_sides for name in of)
    ]


def _common_genes(pairing: Pairing) -> str:
    (a, b), (of_a, of_b, common) = pairing.letters, pairing.n_genes
    if not common:
        return f"{a} ({of_a:,} genes) and {b} ({of_b:,}) have no gene in common to match topics by."
    if of_a == of_b == common:
        return f"All {common:,} genes are common to both."
    return (
        f"Compared on the {common:,} common genes: {a} has {of_a:,} genes (the common ones hold "
        f"{100 * pairing.share[0]:.0f} % of its average topic), {b} has {of_b:,} "
        f"({100 * pairing.share[1]:.0f} %)."
    )


def _captions(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Return caption and alternative text of each figure, by name."""
    runs = " and ".join(comparison.letters)
    panels = [score.title for score in comparison.scores if metric(score.name).panel]
    captions = {
        "scores": (
            "Mean of each run with its error bar; the faint points to its right are the single "
            "values.",
            f"Small panels with the values of {runs} and their error bars: {', '.join(panels)}. "
            "The table above has the numbers.",
        ),
        "training": (
            "By epoch; bands are ± 1 standard deviation over replicates. If the runs differ in "
            "cells or genes, compare the shapes of the curves, not their heights.",
            f"Curves by epoch of {runs}: ELBO and validation perplexity.",
        ),
    }
    for pairing in comparison.pairings:
        a, b = pairing.letters
        captions[f"topics_{a}_{b}"] = (
            "Cosine similarity of the gene proportions of all topics. Frames mark matched topics; "
            f"a dashed frame means a cosine below {MATCHED}, too low to count as the same topic.",
            f"Matrix of the cosine similarity of {pairing.cosine_KK.shape[0]} topics of {a} and "
            f"{pairing.cosine_KK.shape[1]} of {b}; {len(pairing.found)} pairs match. The table "
            "below has the numbers.",
        )
    return captions
