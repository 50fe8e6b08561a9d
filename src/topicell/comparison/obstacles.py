"""What stands between runs and their comparison, in words: what differs that should not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from topicell.comparison.rules import linked, same_source, what_differs
from topicell.comparison.runs import StoredRun, as_text
from topicell.evaluation.estimates import BySplit
from topicell.evaluation.metrics import metric

OBSTACLES = {
    "counts": ("Different data", ""),
    "cells": ("Different cells", ""),
    "split": (
        "Different held-out cells",
        "The runs share no split of the cells, and a split is easy or hard for every model alike. "
        "One seed, or several splits each (evaluate.n_splits=5), makes such scores comparable.",
    ),
    "topics": (
        "Different numbers of topics",
        "The prior of a cell's proportions follows from it.",
    ),
    "labels": ("Different labels", "Not all runs know the cells by the same labels."),
    "device": ("Different devices", "Time and memory are of the device first."),
}
"""Heading and explanation where something is not the same; `_other_data` explains the first two."""


def in_words(obstacle: str) -> tuple[str, str]:
    """Heading and explanation of what is not the same; a setting is named by itself."""
    return OBSTACLES.get(obstacle, (f"Different {obstacle}", ""))


def cautions(runs: Sequence[StoredRun]) -> Iterator[tuple[str, str]]:
    """What a reader should know before comparing: (heading, explanation).

    Parameters
    ----------
    runs
        The runs.
    """
    lost: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.values):
        obstacle = what_differs(name, [run for run in runs if name in run.values])
        if obstacle:
            lost.setdefault(obstacle, []).append(metric(name).title)

    other_data = list(_other_data(runs))
    if other_data:
        (heading, explanation), *further = other_data
        titles = lost.pop("counts", []) + lost.pop("cells", [])
        yield heading, f"{explanation} {_not_comparable(titles)}"
        yield from further
    if len({run.source[1] for run in runs}) > 1 and linked(runs, same_source):
        yield (
            "Different sources, the same cells",
            "The data were read from different places, but runs from each of them modelled the "
            "same counts of the same cells: where they came from forbids no comparison.",
        )
    for obstacle, titles in lost.items():
        heading, explanation = in_words(obstacle)
        if not explanation:
            explanation = f"{_grouped(runs, [as_text(run.config.get(obstacle)) for run in runs])}."
        yield heading, f"{explanation} {_not_comparable(titles)}"

    versions = []
    for name in dict.fromkeys(name for run in runs for name in run.side.versions):
        found = [run.side.versions.get(name) or "not known" for run in runs]
        if len(set(found)) > 1:
            versions.append(f"{name} {_grouped(runs, found)}")
    if versions:
        yield (
            "Different versions",
            f"{'. '.join(versions)}. The same settings may give other numbers with them.",
        )
    alone = [run.letter for run in runs if not any(_has_error(v) for v in run.values.values())]
    if alone:
        yield (
            f"No error bars for {_listed(alone)}",
            "One replicate of one split: whether a difference is more than chance is not known. "
            "train.n_replicates=4 and evaluate.n_splits=5 give error bars.",
        )


def _other_data(runs: Sequence[StoredRun]) -> Iterator[tuple[str, str]]:
    """In what the data differ that the runs modelled."""
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
            of_all = "by name, " * (noun == "cells") + f"{len(common):,} are in all"
            text = f"{_grouped(runs, counted)}; {of_all}."
            if noun == "genes":
                text += " Perplexity grows with the number of genes to guess among."
            yield f"Different {noun}", text
    if not explained:
        yield (
            "Different counts",
            "Of the same cells and genes: by another layer, or another way of preprocessing.",
        )


def _grouped(runs: Sequence[StoredRun], found: Sequence[str]) -> str:
    """What was found, and in which runs."""
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
