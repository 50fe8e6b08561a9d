"""Reasons that prevent or limit the comparison of runs, as texts for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from topicell.comparison.rules import linked, same_source, what_differs
from topicell.comparison.runs import StoredRun, as_text
from topicell.evaluation.estimates import BySplit
from topicell.evaluation.metrics import metric

INCOMPATIBILITIES = {
    "counts": ("Different data", ""),
    "cells": ("Different cells", ""),
    "split": (
        "Different held-out cells",
        "The runs share no split of the cells, and a split can be easier or harder than another "
        "for every model. Use the same seed, or several splits in each run "
        "(evaluate.n_splits=5).",
    ),
    "n_topics": (
        "Different numbers of topics",
        "The prior of the topic proportions depends on the number of topics.",
    ),
    "labels": ("Different labels", "Not all runs have the same labels of the cells."),
    "device": ("Different devices", "Time and memory depend on the device."),
}
"""Heading and explanation of each unmet condition; `_other_data` explains the first two."""


def in_words(condition: str) -> tuple[str, str]:
    """Return heading and explanation of an unmet condition, which may be the name of a setting."""
    return INCOMPATIBILITIES.get(condition, (f"Different {condition}", ""))


def find_warnings(runs: Sequence[StoredRun]) -> Iterator[tuple[str, str]]:
    """Find what a reader must know before comparing the runs: yield heading and explanation."""
    lost: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.values):
        condition = what_differs(name, [run for run in runs if name in run.values])
        if condition:
            lost.setdefault(condition, []).append(metric(name).title)

    other_data = list(_other_data(runs))
    if other_data:
        (heading, explanation), *further = other_data
        titles = lost.pop("counts", []) + lost.pop("cells", [])
        yield heading, f"{explanation} {_not_comparable(titles)}"
        yield from further
    if len({run.source[1] for run in runs}) > 1 and linked(runs, same_source):
        yield (
            "Different sources, the same cells",
            "The data were read from different places, but the runs modelled the same counts of "
            "the same cells, so they can be compared.",
        )
    for condition, titles in lost.items():
        heading, explanation = in_words(condition)
        if not explanation:
            explanation = f"{_grouped(runs, [as_text(run.config.get(condition)) for run in runs])}."
        yield heading, f"{explanation} {_not_comparable(titles)}"

    versions = []
    for name in dict.fromkeys(name for run in runs for name in run.side.versions):
        found = [run.side.versions.get(name) or "not known" for run in runs]
        if len(set(found)) > 1:
            versions.append(f"{name} {_grouped(runs, found)}")
    if versions:
        yield (
            "Different versions",
            f"{'. '.join(versions)}. The same settings can give different numbers.",
        )
    alone = [run.letter for run in runs if not any(_has_error(v) for v in run.values.values())]
    if alone:
        yield (
            f"No error bars for {_listed(alone)}",
            "With one replicate of one split, a difference can be due to chance. "
            "train.n_replicates=4 and evaluate.n_splits=5 give error bars.",
        )


def _other_data(runs: Sequence[StoredRun]) -> Iterator[tuple[str, str]]:
    """Find the differences between the data that the runs modelled."""
    if len({run.prepared for run in runs}) == 1:
        return
    explained = False
    if not linked(runs, same_source):
        explained = True
        sources = [f"{name} (sha256 {sha[:12]}…)" for name, sha in (run.source for run in runs)]
        yield "Different data", f"{_grouped(runs, sources)}."
    for noun, names in (
        ("cells", [run.cells for run in runs]),
        ("genes", [run.genes for run in runs]),
    ):
        common = set(names[0]).intersection(*names[1:])
        if any(len(common) != len(of_run) for of_run in names):
            explained = True
            counted = [f"{len(of_run):,} {noun}" for of_run in names]
            by_name = "by name, " * (noun == "cells")
            text = f"{_grouped(runs, counted)}; {by_name}{len(common):,} are in all."
            if noun == "genes":
                text += " Perplexity grows with the number of genes."
            yield f"Different {noun}", text
    if not explained:
        yield (
            "Different counts",
            "The cells and genes are the same, but not the counts: the layer or the preprocessing "
            "differs.",
        )


def _grouped(runs: Sequence[StoredRun], found: Sequence[str]) -> str:
    """Return each text with the letters of the runs that it is true for."""
    letters: dict[str, list[str]] = {}
    for run, text in zip(runs, found, strict=True):
        letters.setdefault(text, []).append(run.letter)
    return "; ".join(f"{_listed(of_text)}: {text}" for text, of_text in letters.items())


def _not_comparable(titles: Sequence[str]) -> str:
    return f"Not comparable: {_listed(titles)}." if titles else ""


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _has_error(by_split: BySplit) -> bool:
    return len(by_split) > 1 or any(len(values) > 1 for values in by_split.values())
