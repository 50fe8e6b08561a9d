"""The page of the benchmark, from its results: tables, comparison and figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

OURS = "topicell"
TEMPLATE = Path(__file__).with_name("page.md.in")
FAR = 5.0
"""A larger difference of perplexity is written as text, so that small ones are visible."""


@dataclass(frozen=True)
class Measure:
    """One column of results.csv."""

    title: str
    decimals: int
    better: int = 1
    """1 if higher is better, −1 if lower is, 0 if neither."""
    of_split: bool = False
    """Whether the split changes it more than the model, so that only differences on the same splits
    are compared."""


def _against_sets() -> dict[str, Measure]:
    found = {}
    for by in ("probability", "frex"):
        found[f"{by}/unshared"] = Measure("unshared", 3)
        for sets, name in (("blood", "blood"), ("spectra", "Spectra")):
            found |= {
                f"{by}/{sets}/coherence": Measure(f"{name}: coherence", 3),
                f"{by}/{sets}/topic_quality": Measure(f"{name}: × unshared", 3),
                f"{by}/{sets}/number": Measure(f"{name}: number", 1),
                f"{by}/{sets}/uniqueness": Measure(f"{name}: uniqueness", 2),
                f"{by}/{sets}/quality": Measure(f"{name}: quality", 1),
            }
    return found


MEASURES = {
    "test/perplexity_folded": Measure("perplexity", 2, -1, of_split=True),
    "test/elbo_given_topics": Measure("ELBO given topics", 1, of_split=True),
    "seeds/found_again": Measure("found again", 2),
    "seeds/cosine": Measure("cosine", 3),
    "topics/coherence_npmi": Measure("NPMI", 3),
    "topics/coherence_npmi_frex": Measure("NPMI, FREX", 3),
    "topics/diversity": Measure("diversity", 3),
    "topics/exclusivity": Measure("exclusivity", 3),
    "topics/used": Measure("used", 1, 0),
    "topics/effective": Measure("effective", 1, 0),
    "labels/nmi": Measure("NMI", 3),
    "labels/ari": Measure("ARI", 3),
    "labels/knn_accuracy": Measure("kNN", 3),
    "labels/purity": Measure("purity", 3),
} | _against_sets()
"""In the order of the columns."""

TABLES = {
    "Prediction, and the same topics from other seeds": ("test/", "seeds/"),
    "Topics and labels": ("topics/", "labels/"),
    "Gene sets, by the most probable genes": ("probability/",),
    "Gene sets, by the genes that lead by FREX": ("frex/",),
}
"""Heading of a table: beginnings of its measures."""
GROUPS = {
    "probability/": "most probable genes",
    "frex/": "FREX genes",
}

DATA = {
    "pbmc68k": "700 blood cells × 764 genes, 10 cell types",
    "pbmc_facs": "3,774 sorted blood cells, 1,000 variable genes, 10 sorted populations",
    "two_studies": "6,474 blood cells of two studies, 1,000 variable genes, 7 cell classes and "
    "62 cells of none",
}


def text(results: pd.DataFrame, made: dict[str, Any]) -> str:
    """Return the page."""
    parts = {
        "conditions": conditions(results, made),
        "comparison": comparison(results),
        "tables": "\n\n".join(
            f"## {data}\n\n{DATA[str(data)]}.{missing(results, of_data)}\n\n{tables(of_data)}"
            for data, of_data in results.groupby("data", sort=False)
        ),
    }
    page = TEMPLATE.read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"{{{{{name}}}}}", part)
    return page


def conditions(results: pd.DataFrame, made: dict[str, Any]) -> str:
    """Return what made the fits."""
    libraries = ", ".join(f"{name} {found}" for name, found in made["libraries"].items())
    dates = " to ".join(dict.fromkeys((made["dates"][0], made["dates"][-1])))
    commits = ", ".join(f"`{commit}`" for commit in made["commits"])
    return (
        f"{len(results)} fits, {dates}, commit {commits}, with one thread on a machine with "
        f"{made['cores']} cores\n({made['processor']}). Python {made['python']}, {libraries}.\n"
        "Slow models have fewer seeds; the first column of the tables says how many."
    )


def missing(results: pd.DataFrame, of_data: pd.DataFrame) -> str:
    """Return a sentence that names the models of other data sets that were not fitted to these."""
    models = [m for m in results["model"].unique() if m not in set(of_data["model"])]
    return f" Not fitted, because it takes too long: {', '.join(models)}." if models else ""


def tables(of_data: pd.DataFrame) -> str:
    """Return the tables of one data set: mean ± standard deviation over seeds, the best in bold."""
    found = []
    n_fits = of_data.groupby("model", sort=False).size()
    for heading, beginnings in TABLES.items():
        columns: list[tuple[str, pd.Series]] = [("fits", n_fits.astype(str))]
        for name in MEASURES:
            if name.startswith(beginnings) and name in of_data:
                columns.append((MEASURES[name].title, cells_of(of_data, name)))
                if MEASURES[name].of_split:
                    columns.append(("minus topicell's", differences(of_data, name)))
        lines = [f"### {heading}\n", f"| | {' | '.join(title for title, _ in columns)} |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for model in n_fits.index:
            lines.append(f"| {model} | {' | '.join(column[model] for _, column in columns)} |")
        found.append("\n".join(lines))
    return "\n\n".join(found)


def cells_of(of_data: pd.DataFrame, name: str) -> pd.Series:
    """Return mean ± standard deviation of each model as text."""
    measure = MEASURES[name]
    groups = of_data.groupby("model", sort=False)[name]
    means = groups.mean()
    best = means.max() if measure.better > 0 else means.min()
    marks = measure.better and not measure.of_split
    found = {}
    for model, values in groups:
        if values.isna().all():
            found[model] = "–"
            continue
        cell = number(means[model], measure.decimals)
        if marks and cell == number(best, measure.decimals):
            cell = f"**{cell}**"
        # Seeds share their pairs.
        if values.count() > 1 and not name.startswith("seeds/"):
            cell += f" ± {number(values.std(), measure.decimals)}"
        found[model] = cell
    return pd.Series(found)


def differences(of_data: pd.DataFrame, name: str) -> pd.Series:
    """Return the difference from topicell on the same splits ± standard error, as text."""
    measure = MEASURES[name]
    wide = of_data.pivot(index="seed", columns="model", values=name)
    less = wide.sub(wide[OURS], axis=0)
    best = less.mean().max() if measure.better > 0 else less.mean().min()
    found = {}
    for model in less:
        values = less[model].dropna()
        cell = number(values.mean(), measure.decimals, sign=model != OURS)
        if cell == number(best, measure.decimals, sign=model != OURS):
            cell = f"**{cell}**"
        if len(values) > 1 and model != OURS:
            cell += f" ± {number(values.std() / len(values) ** 0.5, measure.decimals)}"
        found[model] = cell
    return pd.Series(found)


def number(value: float, decimals: int, *, sign: bool = False) -> str:
    """Return a number as text, with the minus sign of typography and without a negative zero."""
    form = f"{round(value, decimals) + 0.0:{'+' if sign else ''}.{decimals}f}"
    return form.replace("-", "−")


def verdicts(of_data: pd.DataFrame, name: str) -> tuple[str, float, float, str, int] | None:
    """Compare topicell with the best model of others by one measure, on the same splits.

    Returns
    -------
    ``better``, ``equal``, ``undecided`` or ``worse``; mean difference; half of its 95 % interval
    (Student's t); the other model; the number of common seeds. None if no other model has two of
    them.
    """
    sign = MEASURES[name].better
    wide = of_data.pivot(index="seed", columns="model", values=name)
    # The advantage of topicell: positive if it is better.
    ahead = {
        model: (sign * (wide[OURS] - wide[model])).dropna()
        for model in wide
        if not model.startswith(OURS)
    }
    ahead = {model: values for model, values in ahead.items() if len(values) > 1}
    if not ahead:
        return None
    other = min(ahead, key=lambda model: ahead[model].mean())
    values = ahead[other]
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1) * values.std() / n**0.5)
    mean = float(values.mean())
    if not values.any():
        word = "equal"
    else:
        word = "undecided" if abs(mean) <= half else "better" if mean > 0 else "worse"
    return word, sign * mean, half, other, n


def comparison(results: pd.DataFrame) -> str:
    """Return a table of topicell's default against the best other model, by measure and data."""
    data_sets = list(dict.fromkeys(results["data"]))
    counts = {
        data: dict.fromkeys(("better", "equal", "undecided", "worse"), 0) for data in data_sets
    }
    rows = []
    for name, measure in MEASURES.items():
        if name not in results or not measure.better:
            continue
        cells = []
        for data in data_sets:
            found = verdicts(results[results["data"] == data], name)
            if found is None:
                cells.append("–")
                continue
            word, mean, half, other, n = found
            counts[data][word] += 1
            shown = f"**{word}**" if word in ("better", "worse") else word
            difference = number(mean, measure.decimals, sign=True)
            cells.append(f"{shown} {difference} ± {number(half, measure.decimals)} ({other}, {n})")
        rows.append(f"| {title_of(name)} | {' | '.join(cells)} |")
    summary = "; ".join(
        f"on `{data}` " + ", ".join(f"{word} in {n}" for word, n in of.items())
        for data, of in counts.items()
    )
    return "\n".join(
        [
            f"Of {len(rows)} measures, topicell's default is {summary}.\n",
            f"| | {' | '.join(data_sets)} |",
            "|---" * (len(data_sets) + 1) + "|",
            *rows,
        ]
    )


def title_of(name: str) -> str:
    """Return the title of a measure outside of the tables."""
    measure = MEASURES[name]
    beginning, *middle, _ = name.split("/")
    title = measure.title.partition(": ")[2] or measure.title
    if middle:
        title = f"{title}, {'Spectra' if middle[0] == 'spectra' else middle[0]} sets"
    group = GROUPS.get(f"{beginning}/")
    title = f"{title}, {group}" if group else title
    return f"{title} ({'higher' if measure.better > 0 else 'lower'} is better)"


SHOWN = {
    "test/perplexity_folded": "perplexity above\ntopicell's, same split\n(lower is better)",
    "seeds/found_again": "topics found again\nby other seeds\n(higher is better)",
    "labels/nmi": "NMI with labels\n(higher is better)",
    "labels/purity": "purity of\ndominant topics\n(higher is better)",
    "frex/spectra/topic_quality": "coherence × unshared,\nFREX genes, Spectra\n(higher is better)",
    "frex/spectra/quality": "distinct enriched sets,\nFREX genes, Spectra\n(more is better)",
    "probability/blood/quality": "distinct enriched sets,\nprobable genes, blood\n(more is better)",
}
"""Measures in the figure."""

STYLE = """\
<style>svg{--ink:#24292f;--soft:#6e7781;--line:#d8dce0;--page:#ffffff;font-family:sans-serif}
@media (prefers-color-scheme:dark){svg{--ink:#e6e8eb;--soft:#a0a8b1;--line:#353b43;--page:#16191d}}
</style><rect width="100%" height="100%" fill="var(--page)"/>"""


def figure(results: pd.DataFrame) -> str:
    """Return the figure as SVG, in the colours of the reader's light or dark theme."""
    from matplotlib.figure import Figure

    from topicell.report.figures.drawing import FAINT, INK, SMALL, as_svg, plain

    data_sets = list(dict.fromkeys(results["data"]))
    models = list(dict.fromkeys(results["model"]))
    shown = {name: title for name, title in SHOWN.items() if name in results}
    drawing = Figure(
        figsize=(1.75 * len(shown) + 1.7, 0.21 * len(models) * len(data_sets) + 1.3),
        layout="constrained",
    )
    panels = drawing.subplots(len(data_sets), len(shown), squeeze=False, sharey=True)
    for place, (row, data) in enumerate(zip(panels, data_sets, strict=True)):
        of_data = results[results["data"] == data]
        row[0].set_ylabel(data, fontsize=9, fontweight="bold", color=INK)
        for axes, (name, title) in zip(row, shown.items(), strict=True):
            plain(axes, "both")
            if place == 0:
                axes.set_title(title, fontsize=SMALL, color=INK)
            wide = of_data.pivot(index="seed", columns="model", values=name)
            if MEASURES[name].of_split:
                wide = wide.sub(wide[OURS], axis=0)
            for height, model in enumerate(models):
                if model not in wide or wide[model].isna().all():
                    continue
                values = wide[model].dropna()
                color = "#0072b2" if model.startswith(OURS) else "#d55e00"
                if MEASURES[name].of_split and values.mean() > FAR:
                    axes.annotate(
                        f"+{values.mean():.1f} →", (1, height),
                        xycoords=("axes fraction", "data"), ha="right", va="center",
                        fontsize=SMALL, color=FAINT,
                    )  # fmt: skip
                    continue
                axes.plot(
                    values, np.full(len(values), height), "o", ms=3, color=color, alpha=0.6, mew=0
                )
                axes.plot(values.mean(), height, "|", ms=9, mew=2, color=color)
            axes.set_yticks(range(len(models)), models)
            axes.set_ylim(len(models) - 0.5, -0.5)
            axes.locator_params(axis="x", nbins=4)
            if name.endswith("/quality"):
                axes.set_xlim(0)
    svg = as_svg(drawing, "benchmark").replace(' aria-hidden="true"', "", 1)
    head, _, rest = svg.partition(">")
    return f"{head}>{STYLE}{rest}\n"
