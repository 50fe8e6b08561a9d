"""The page that sets runs side by side: one HTML file that needs nothing else, and its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from topicell.evaluation.metrics import METRICS, metric
from topicell.report.compared import (
    MATCHED,
    N_GENES,
    N_SIGMA,
    Comparison,
    Difference,
    Pairing,
    Score,
    Side,
)
from topicell.report.scores import number
from topicell.report.templates import template

DASH = "–"
"""Stands for what a run does not have."""
LONG = 80
"""Characters of a setting's value that a cell shows."""
DPI = 150


def write(comparison: Comparison, directory: Path) -> Path:
    """Write ``compare.html``, the tables and ``figures/`` into a folder; the path of the page."""
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
    """All that the page says as tables, by the name of their file."""
    sides = comparison.sides
    yield (
        "runs",
        pd.DataFrame(
            {
                "run": side.letter,
                "name": side.name,
                "run_id": side.run_id,
                "folder": side.place,
                "data": side.data,
                "model": side.model,
                "made": side.made,
                **side.marks,
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
                    "not_comparable": score.obstacle,
                }
            )
    yield "scores", pd.DataFrame(rows)
    columns = (
        *("run", "topic", "other_run", "other_topic", "match", "cosine"),
        *("next_best", "next_best_cosine", "shared_top_genes"),
        *("mean_proportion", "other_mean_proportion", "theta_correlation"),
    )
    matched = [row for pairing in comparison.pairings for row in _topic_rows(pairing)]
    # Topics have whole numbers, or none where they have no partner.
    whole = {"other_topic": "Int64", "next_best": "Int64"}
    yield "matched_topics", pd.DataFrame(matched, columns=columns).astype(whole)


def _topic_rows(pairing: Pairing) -> Iterator[tuple[Any, ...]]:
    """Of the pairs, and then of the topics that no other one was left for."""
    a, b = pairing.letters
    for match in pairing.matches:
        yield (
            *(a, match.topic, b, match.partner, match.found, match.cosine),
            *(match.rival or (None, math.nan)),
            " ".join(match.genes),
            *(match.proportion, match.partner_proportion, match.correlation),
        )
    paired = {match.topic for match in pairing.matches}, {m.partner for m in pairing.matches}
    for own, other, lone, taken in zip((a, b), (b, a), pairing.lone, paired, strict=True):
        for topic in lone:
            if topic.topic not in taken:
                yield (
                    *(own, topic.topic, other, None, False, math.nan),
                    *(topic.nearest, topic.cosine, "", topic.proportion, math.nan, math.nan),
                )


def _figures(comparison: Comparison) -> Iterator[tuple[str, Any]]:
    """The matplotlib figures, by the name of their file."""
    from topicell.report.figures.comparison import (
        score_panels,
        topic_matrix,
        training_overlay,
    )

    panels = [
        (
            score.title,
            "not comparable" if score.obstacle else metric(score.name).axis,
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
    """The comparison as one HTML page, with its images inside.

    Parameters
    ----------
    comparison
        The runs.
    figures
        ``<svg>`` elements by the names of their files.
    """
    from markupsafe import Markup

    from topicell.report.figures import topic_colors

    letters = comparison.letters
    html: str = template("compare.html.j2").render(
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
        marks=_marks(comparison.sides),
        figures={name: Markup(svg) for name, svg in figures.items()},
        n_genes=N_GENES,
        captions=_captions(comparison),
        n_sigma=f"{N_SIGMA:g}",
        threshold=MATCHED,
        dash=DASH,
    )
    return html


def _summary(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What the page says in short: (what about, sentence)."""
    # What they say of a run changes none of its numbers.
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
        yield "Settings", "none differs" + " but of the report" * bool(comparison.differing)
    for place, letter in enumerate(comparison.letters):
        titles = [score.title for score in comparison.scores if score.best == place]
        if titles:
            yield f"{letter} is ahead in", "; ".join(titles)
    if all(score.best is None for score in comparison.scores):
        yield "Ahead", "no run is, by more than the error, in any score"
    for pairing in comparison.pairings:
        a, b = pairing.letters
        found = [match.cosine for match in pairing.found]
        sentence = f"{len(found)} of {len(pairing.cosine_KK)} topics of {a} are in {b}"
        if found:
            sentence += f" (mean cosine {np.mean(found):.2f})"
        yield f"Topics of {a} and {b}", f"{sentence}; {b} has {pairing.cosine_KK.shape[1]}"


def _row(score: Score, letters: Sequence[str]) -> dict[str, Any]:
    """A row of the table of scores, its values with as many digits as their errors allow."""
    values = [value for value in score.values if value is not None]
    errors = [
        error
        for value in values
        for error in (value.error, value.against_first.se if value.against_first else math.nan)
        if math.isfinite(error) and error > 0
    ]
    # Two digits of the smallest error, but never more than say something of the value.
    decimals = int(np.clip(1 - math.floor(math.log10(min(errors))), 0, 4)) if errors else None
    return {
        "name": score.name,
        "title": score.title,
        "meaning": metric(score.name).explanation,
        "obstacle": score.obstacle,
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
    """What the error bars are, if they are the same throughout; else each says it itself."""
    kinds = {v.kind for score in scores for v in score.values if v is not None and v.kind}
    return kinds.pop() if len(kinds) == 1 else ""


def _cut(text: str | None, length: int = LONG) -> str:
    if text is None:
        return DASH
    return text if len(text) <= length else f"{text[:length]}…"


def _alike(comparison: Comparison) -> Iterator[str]:
    """The settings that do not differ, as they are written on the command line."""
    for name, texts in comparison.parameters.items():
        if name not in comparison.differing:
            having = [
                letter
                for letter, text in zip(comparison.letters, texts, strict=True)
                if text is not None
            ]
            some = f"  ({', '.join(having)} alone)" if len(having) < len(texts) else ""
            yield f"{name}={next(text for text in texts if text is not None)}{some}"


def _pairing(pairing: Pairing) -> dict[str, Any]:
    """What the page shows of the topics of two runs."""
    a, b = pairing.letters
    return {
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
                "topic": match.topic,
                "partner": match.partner,
                "found": match.found,
                "cosine": f"{match.cosine:.3f}",
                "rival": f"{b} {match.rival[0]}: {match.rival[1]:.3f}" if match.rival else DASH,
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
        "lone": [
            (
                f"Topics of {own} without a partner in {other}",
                [
                    {
                        "name": f"{own} {topic.topic}",
                        "proportion": f"{100 * topic.proportion:.1f} %",
                        "nearest": f"{other} {topic.nearest}, cosine {topic.cosine:.3f}",
                        "genes": ", ".join(topic.genes),
                    }
                    for topic in lone
                ],
            )
            for own, other, lone in zip((a, b), (b, a), pairing.lone, strict=True)
            if lone
        ],
    }


def _marks(sides: Sequence[Side]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Digests and versions by name, each with the letters of the runs."""
    of_sides = [{**side.marks, **side.versions} for side in sides]
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
        return f"{a} ({of_a:,} genes) and {b} ({of_b:,}) have no gene in common: nothing to match."
    if of_a == of_b == common:
        return f"All {common:,} genes are common to both."
    return (
        f"Compared on the {common:,} genes of both: {a} has {of_a:,}, of which they hold "
        f"{100 * pairing.share[0]:.0f} % of the average topic; {b} has {of_b:,} "
        f"({100 * pairing.share[1]:.0f} %)."
    )


def _captions(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Caption and alternative text of each figure."""
    runs = " and ".join(comparison.letters)
    panels = [score.title for score in comparison.scores if metric(score.name).panel]
    captions = {
        "scores": (
            "Mean of each run with its error bar; to its right, faint, the single values that it "
            "summarises.",
            f"Small panels with the values of {runs} and their error bars: {', '.join(panels)}. "
            "The table above has the numbers.",
        ),
        "training": (
            "By epoch; bands are ± 1 standard deviation over replicates. Where the runs differ in "
            "cells or genes, compare shapes and not heights.",
            f"Curves by epoch of {runs}: ELBO and validation perplexity.",
        ),
    }
    for pairing in comparison.pairings:
        a, b = pairing.letters
        captions[f"topics_{a}_{b}"] = (
            "Cosine similarity of the gene proportions of all topics. Framed: those that are "
            f"matched, dashed where the cosine is below {MATCHED} and they are not called the "
            "same.",
            f"Matrix of the cosine similarity of {pairing.cosine_KK.shape[0]} topics of {a} and "
            f"{pairing.cosine_KK.shape[1]} of {b}; {len(pairing.found)} pairs match. The table "
            "below has the numbers.",
        )
    return captions
