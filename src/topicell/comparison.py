"""Stored runs side by side: ``topicell compare``.

runs → what differs → scores → topics that are the same; `topicell.report.compare` makes the page.

Shape suffixes: N cells, K topics, G genes.
"""

from __future__ import annotations

import json
import math
import string
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from topicell.config import InputError, TrackingConfig, dotted
from topicell.evaluation.ranking import top_genes
from topicell.report.compare import (
    MEANINGS,
    N_GENES,
    Comparison,
    Difference,
    Lone,
    Match,
    Pairing,
    Score,
    Side,
    Value,
)
from topicell.tracking.stored import (
    PARENT_KINDS,
    fetch_run,
    kind_of,
    read_metrics,
    read_scores,
)

USAGE = "topicell compare runs=[RUN_ID,RUN_ID] (run ids of MLflow or run folders)"
LETTERS = string.ascii_uppercase
ARTIFACTS = ("adata.h5ad", "config.yaml", "metrics.jsonl", "model", "scores.csv")
N_NAMED = 8
"""Leading genes by which a topic without a partner is described."""

BySplit = Mapping[str, Sequence[float]]
"""The values of a score: by split, one a replicate."""

RULES: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "valid/perplexity": (-1, ("counts", "split")),
    "test/perplexity": (-1, ("counts", "split")),
    "test/elbo": (1, ("counts", "split")),
    "test/elbo_given_topics": (1, ("counts", "split", "topics")),
    "fit/train_elbo": (0, ("counts", "split")),
    "fit/valid_elbo": (1, ("counts", "split")),
    "given/perplexity": (-1, ("counts",)),
    "given/elbo_given_topics": (1, ("counts", "topics")),
    "topics/coherence": (1, ("counts", "evaluate.n_coherence_genes")),
    "topics/diversity": (1, ("counts", "evaluate.n_diversity_genes")),
    "topics/exclusivity": (1, ("counts",)),
    "topics/stability": (1, ("counts",)),
    "topics/": (0, ("cells",)),
    "inference/": (-1, ("counts",)),
    "labels/": (1, ("cells", "labels")),
    "labels/knn": (1, ("cells", "labels", "evaluate.n_neighbors")),
    "speed/": (-1, ("device",)),
    "memory/": (-1, ("device",)),
}
"""Of scores by the beginning of their name: whether more (1) or less (−1) is better, and what must
be the same for them to be compared. The longest beginning counts."""

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredRun:
    """What a run folder holds, as far as runs are compared by it."""

    side: Side
    config: Mapping[str, Any]
    """Every setting by its dotted name."""
    source: tuple[str, str]
    """Name of the data, sha256 of their source."""
    prepared: str
    """The sha256 of the counts, cells and genes that were modelled."""
    device: str
    values: Mapping[str, BySplit]
    cells: pd.Index
    genes: pd.Index
    part_N: np.ndarray
    """Part of each cell in the run's own split."""
    labels_N: np.ndarray | None
    theta_NK: np.ndarray
    beta_KG: np.ndarray

    @property
    def letter(self) -> str:
        """The run's letter."""
        return self.side.letter


def folder_name(runs: Sequence[str]) -> str:
    """The folder of a comparison that was given none: ``compare-A-B``, from the runs' own names."""
    names = [Path(run).resolve().name[:20] if Path(run).is_dir() else run[:8] for run in runs]
    more = [f"and-{len(names) - 4}-more"] if len(names) > 4 else []
    return "-".join(["compare", *names[:4], *more])


def compare(runs: Sequence[str], labels: Sequence[str], tracking: TrackingConfig) -> Comparison:
    """Read stored runs and set them side by side.

    Parameters
    ----------
    runs
        MLflow run ids and run folders.
    labels
        What to call them; without, runs keep their own names.
    tracking
        The store of the run ids.

    Raises
    ------
    InputError
        Fewer than two runs, one of them twice, or what is no run, or did not end.
    """
    if len(runs) < 2:
        raise InputError(f"runs: {len(runs)} given, and a comparison needs two or more: {USAGE}")
    if len(runs) > len(LETTERS):
        raise InputError(f"runs: {len(runs)} given, and a page takes {len(LETTERS)} at most")
    if labels and len(labels) != len(runs):
        raise InputError(f"labels: {len(labels)} given for {len(runs)} runs; give each run one")
    stored: list[StoredRun] = []
    known: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for place, run in enumerate(runs):
            folder = _folder_of(run, tracking, Path(scratch) / str(place))
            try:
                read = read_run(folder, run, LETTERS[place], labels[place] if labels else "")
            except (OSError, KeyError, ValueError) as error:
                what = str(error).partition("\n")[0]
                raise InputError(
                    f"runs: {run!r} cannot be read ({type(error).__name__}: {what}); is it a run, "
                    "and whole?"
                ) from error
            for name in filter(None, (read.side.run_id, str(folder.resolve()))):
                if name in known:
                    raise InputError(f"runs: {known[name]!r} and {run!r} are the same run")
                known[name] = run
            stored.append(read)
    return Comparison(
        sides=tuple(run.side for run in stored),
        cautions=tuple(cautions(stored)),
        parameters=parameters([run.config for run in stored]),
        scores=tuple(scores(stored)),
        pairings=tuple(pair_topics(stored[0], other) for other in stored[1:]),
        version=version("topicell"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _folder_of(run: str, tracking: TrackingConfig, scratch: Path) -> Path:
    """The folder of a run: the one named, without a look at MLflow, or a copy of what it keeps."""
    folder = Path(run)
    if folder.is_dir():
        is_sweep = (folder / "sweep.json").exists()
        if is_sweep or (any(folder.glob("*/adata.h5ad")) and not (folder / "adata.h5ad").exists()):
            page = f", or `topicell report run={run}` for one page of them all" if is_sweep else ""
            raise InputError(f"runs: {run!r} holds several runs; name the ones to compare{page}")
        missing = [name for name in ARTIFACTS if not (folder / name).exists()]
        if missing:
            raise InputError(
                f"runs: {run!r} has no {' and no '.join(missing)}: not a run folder, or the run "
                "did not end"
            )
        return folder
    kind = kind_of(run, tracking)
    if kind in PARENT_KINDS:
        raise InputError(
            f"runs: {run!r} is the parent of a {kind}; name its runs, or `topicell report "
            f"run={run}` for one page of them all"
        )
    return fetch_run(run, tracking, scratch, ARTIFACTS)[0]


def read_run(folder: Path, named: str, letter: str, label: str = "") -> StoredRun:
    """Read a run folder.

    Parameters
    ----------
    folder
        Where its artifacts are.
    named
        How it was asked for: its MLflow id, or its folder.
    letter
        What it is called on the page.
    label
        A name in place of its own.
    """
    import h5py
    from anndata.io import read_elem

    with h5py.File(folder / "adata.h5ad") as file:
        obs, genes = read_elem(file["obs"]), read_elem(file["var"]).index
        theta_NK = np.asarray(read_elem(file["obsm/X_lda"]), dtype=float)
        beta_KG = np.asarray(read_elem(file["varm/lda_topics"]), dtype=float).T
        about, source = read_elem(file["uns/topicell"]), read_elem(file["uns/topicell_source"])
    config = json.loads(about["config"])
    tags = _tags(folder / "config.yaml")
    history, final = read_metrics(folder)
    values: dict[str, BySplit] = dict(read_scores(folder / "scores.csv"))
    for name, value in final.items():
        # What has a mean or an error of its own is in scores.csv already.
        if name not in values and name.rpartition("_")[0] not in values:
            values[name] = {str(config["seed"]): [value]}
    part_N = obs["split"].to_numpy(dtype=str) if "split" in obs else np.full(len(obs), "")
    n_topics = len(beta_KG)
    dirty = " with uncommitted changes" * (tags.get("topicell.git_dirty") == "true")
    versions = json.loads((folder / "model" / "model.json").read_text())["versions"]
    side = Side(
        letter=letter,
        name=label or config["tracking"]["run_name"] or _title(config, about["data"], n_topics),
        data=_data(about["data"], obs.index, genes, part_N),
        model=_model(config, n_topics, len(history)),
        made=about["created"],
        run_id=about["run_id"],
        place=named if Path(named).is_dir() else "",
        marks={
            "data source": source["sha256"],
            "data as modelled": tags["topicell.prepared_digest"],
            "device": tags.get("device", ""),
        },
        versions={
            "topicell": about["version"],
            "commit": tags.get("topicell.git_commit", "")[:12] + dirty,
            **{name: found for name, found in versions.items() if name != "topicell"},
        },
        history=history,
    )
    return StoredRun(
        side=side,
        config=dotted(config),
        source=(about["data"], source["sha256"]),
        prepared=side.marks["data as modelled"],
        device=side.marks["device"],
        values=values,
        cells=obs.index,
        genes=genes,
        part_N=part_N,
        labels_N=obs[about["label_key"]].to_numpy(dtype=str) if about["label_key"] else None,
        theta_NK=theta_NK,
        beta_KG=beta_KG,
    )


def _tags(path: Path) -> dict[str, str]:
    """What the head of ``config.yaml`` says of the code, the device and the data."""
    lines = path.read_text().splitlines()
    return dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))


def _title(config: Mapping[str, Any], data: str, n_topics: int) -> str:
    if "theta" in config:
        return f"{data}, topics of {Path(config['beta']).stem}"
    kind = config["model"]["kind"]
    own = "" if kind == "amortized_lda" else f"{kind}, "
    return f"{data}, {own}{n_topics} topics, seed {config['seed']}"


def _data(name: str, cells: pd.Index, genes: pd.Index, part_N: np.ndarray) -> str:
    sizes = [(part, int((part_N == part).sum())) for part in ("train", "valid", "test")]
    parts = ", ".join(f"{size:,} {part}" for part, size in sizes if size)
    line = f"{name}: {len(cells):,} cells × {len(genes):,} genes"
    return f"{line} ({parts})" if parts else line


def _model(config: Mapping[str, Any], n_topics: int, n_epochs: int) -> str:
    if "theta" in config:
        return f"{n_topics} topics of {config['beta']}"
    line = f"{config['model']['kind']}, {n_topics} topics"
    for number, noun in (
        (n_epochs, "epoch"),
        (config["train"]["n_replicates"], "replicate"),
        (config["evaluate"]["n_splits"], "split"),
    ):
        if number:
            line += f", {number} {noun}{'s' * (number > 1)}"
    return line


def parameters(configs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str | None, ...]]:
    """Every setting of the runs as text, one a run; None of a run that does not have it.

    Parameters
    ----------
    configs
        The settings of each run by their dotted names.
    """
    return {
        name: tuple(_text(config[name]) if name in config else None for config in configs)
        for name in dict.fromkeys(name for config in configs for name in config)
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def scores(runs: Sequence[StoredRun]) -> Iterator[Score]:
    """Every score that a run has: its values, by how much they differ, and which is best."""
    names = dict.fromkeys(name for run in runs for name in run.values)
    for name in sorted(names, key=[*MEANINGS, *names].index):
        having = [run for run in runs if name in run.values]
        obstacle = _obstacle(name, having)
        compared = name in runs[0].values and not obstacle
        yield Score(
            name,
            tuple(
                summarized(
                    run.values[name],
                    _lead(name, run, runs[0]) if compared and run is not runs[0] else None,
                )
                if name in run.values
                else None
                for run in runs
            ),
            None if obstacle else _best(name, runs),
            OBSTACLES.get(obstacle, (f"Different {obstacle}",))[0].lower() if obstacle else "",
        )


def summarized(by_split: BySplit, against_first: Difference | None = None) -> Value:
    """Mean over splits and replicates, and its error.

    The standard error over splits where there are several. Of one split there is none, for which
    cells are held out matters more than the random start: there the standard deviation over
    replicates is given.
    """
    means = [float(np.mean(values)) for values in by_split.values()]
    if len(means) > 1:
        return Value(
            float(np.mean(means)), _standard_error(means), "splits", tuple(means), against_first
        )
    (values,) = by_split.values()
    if len(values) > 1:
        return Value(means[0], _sd(values), "replicates", tuple(values), against_first)
    return Value(means[0], math.nan, "", tuple(values), against_first)


def difference(a: BySplit, b: BySplit, *, paired: bool) -> Difference:
    """Mean of a − b and its standard error.

    Parameters
    ----------
    a, b
        Values by split, one a replicate.
    paired
        Whether splits of one name are of the same cells: a split is easy or hard for both.

    Returns
    -------
    On the splits of both, if they are paired, the error is the larger of that of the splits'
    differences and that of the replicates within splits: of few splits the first is small by
    chance now and then. Else the errors of both means are added in squares.
    """
    both = [split for split in a if split in b] if paired else []
    if not both:
        errors = [_standard_error_of_mean(of) for of in (a, b)]
        mean = _grand_mean(a) - _grand_mean(b)
        return Difference(mean, math.hypot(*errors), 0)
    by_split = [float(np.mean(a[split])) - float(np.mean(b[split])) for split in both]
    within = [math.hypot(_standard_error(a[split]), _standard_error(b[split])) for split in both]
    of_replicates = math.sqrt(sum(error**2 for error in within)) / len(both)
    known = [e for e in (_standard_error(by_split), of_replicates) if not math.isnan(e)]
    return Difference(float(np.mean(by_split)), max(known, default=math.nan), len(both))


def _grand_mean(by_split: BySplit) -> float:
    return float(np.mean([np.mean(values) for values in by_split.values()]))


def _standard_error_of_mean(by_split: BySplit) -> float:
    """Over splits where there are several, else over replicates."""
    means = [float(np.mean(values)) for values in by_split.values()]
    return _standard_error(means if len(means) > 1 else next(iter(by_split.values())))


def _standard_error(values: Sequence[float]) -> float:
    return _sd(values) / math.sqrt(len(values))


def _sd(values: Sequence[float]) -> float:
    """NaN of a single value, and where one is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.std(values, ddof=1))


def _lead(name: str, run: StoredRun, other: StoredRun) -> Difference:
    return difference(run.values[name], other.values[name], paired=_same_split(run, other, name))


def _best(name: str, runs: Sequence[StoredRun]) -> int | None:
    """The place of the run that is ahead of every other one by more than the error."""
    sign, _ = _rule(name)
    having = [place for place, run in enumerate(runs) if name in run.values]
    if sign == 0 or len(having) < 2:
        return None
    best = max(having, key=lambda place: sign * _grand_mean(runs[place].values[name]))
    leads = [_lead(name, runs[best], runs[place]) for place in having if place != best]
    return best if all(lead.clear and sign * lead.mean > 0 for lead in leads) else None


def _rule(name: str) -> tuple[int, tuple[str, ...]]:
    known = [start for start in RULES if name.startswith(start)]
    return RULES[max(known, key=len)] if known else (0, ())


def _obstacle(name: str, runs: Sequence[StoredRun]) -> str:
    """What should be the same for a score to be compared, and is not; empty if all is."""
    for needed in _rule(name)[1]:
        if needed == "split":
            fine = all(_same(needed, name, a, b) for a, b in combinations(runs, 2))
        else:
            fine = _linked(runs, partial(_same, needed, name))
        if not fine:
            return needed
    return ""


def _linked(runs: Sequence[StoredRun], same: Callable[[StoredRun, StoredRun], bool]) -> bool:
    """Whether all runs are the same as one of them.

    So they are the same as each other, even if of two of them it is not known without the third.
    """
    return not runs or any(all(same(a, b) for b in runs) for a in runs)


def _same(what: str, score: str, a: StoredRun, b: StoredRun) -> bool:
    tests: dict[str, Callable[[], bool]] = {
        "counts": lambda: a.prepared == b.prepared,
        "cells": lambda: _same_cells(a, b),
        # Errors over several splits hold what the choice of the held-out cells does.
        "split": lambda: (
            _same_split(a, b, score) or min(len(a.values[score]), len(b.values[score])) > 1
        ),
        "topics": lambda: len(a.beta_KG) == len(b.beta_KG),
        "labels": lambda: (
            a.labels_N is not None
            and b.labels_N is not None
            and pd.Series(a.labels_N, a.cells).equals(pd.Series(b.labels_N, b.cells)[a.cells])
        ),
        "device": lambda: a.device == b.device,
    }
    return tests[what]() if what in tests else a.config.get(what) == b.config.get(what)


def _same_source(a: StoredRun, b: StoredRun) -> bool:
    """Whether cells of one name are the same cells: barcodes come again in other data."""
    return a.prepared == b.prepared or a.source[1] == b.source[1]


def _same_cells(a: StoredRun, b: StoredRun) -> bool:
    return _same_source(a, b) and set(a.cells) == set(b.cells)


def _same_split(a: StoredRun, b: StoredRun, score: str) -> bool:
    """Whether a score is of the same cells in splits of one name.

    Splits follow from the cells, the shares and a seed, which is their name; so if the own
    splits of both runs are the same, the further ones are.
    """
    if not (_same_source(a, b) and a.cells.equals(b.cells)):
        return False
    for part in ("train", "valid", "test"):
        if score.startswith((f"{part}/", f"fit/{part}")):
            return bool(np.array_equal(a.part_N == part, b.part_N == part))
    return bool(np.array_equal(a.part_N, b.part_N))


def cautions(runs: Sequence[StoredRun]) -> Iterator[tuple[str, str]]:
    """What a reader should know before comparing: (heading, explanation).

    Parameters
    ----------
    runs
        The runs.
    """
    lost: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for run in runs for name in run.values):
        obstacle = _obstacle(name, [run for run in runs if name in run.values])
        if obstacle:
            lost.setdefault(obstacle, []).append(MEANINGS.get(name, (name, ""))[0])

    other_data = list(_other_data(runs))
    if other_data:
        (heading, explanation), *further = other_data
        titles = lost.pop("counts", []) + lost.pop("cells", [])
        yield heading, f"{explanation} {_not_comparable(titles)}"
        yield from further
    if len({run.source[1] for run in runs}) > 1 and _linked(runs, _same_source):
        yield (
            "Different sources, the same cells",
            "The data were read from different places, but runs from each of them modelled the "
            "same counts of the same cells: where they came from forbids no comparison.",
        )
    for obstacle, titles in lost.items():
        heading, explanation = OBSTACLES.get(obstacle, (f"Different {obstacle}", ""))
        if not explanation:
            explanation = f"{_grouped(runs, [_text(run.config.get(obstacle)) for run in runs])}."
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
    if not _linked(runs, _same_source):
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


def pair_topics(a: StoredRun, b: StoredRun) -> Pairing:
    """Which topic of one run is which of another.

    One to one, so that the sum of the cosine similarities of the gene proportions is greatest.
    Over the genes of both; the cosine does not change with the share of a topic that they hold.

    Parameters
    ----------
    a, b
        Runs, of whatever numbers of topics.

    References
    ----------
    Kuhn (1955), The Hungarian method for the assignment problem.
    """
    genes = a.genes.intersection(b.genes, sort=False)
    cells = a.cells.intersection(b.cells, sort=False) if _same_source(a, b) else a.cells[:0]
    betas = [run.beta_KG[:, run.genes.get_indexer(genes)] for run in (a, b)]
    thetas = [run.theta_NK[run.cells.get_indexer(cells)] for run in (a, b)]
    proportions = [run.theta_NK.mean(0) for run in (a, b)]
    unit_a, unit_b = (_unit(beta_KG) for beta_KG in betas)
    cosine_KK = unit_a @ unit_b.T
    leading = [
        [tuple(genes[order]) for order in top_genes(beta_KG, min(N_GENES, len(genes)))]
        for beta_KG in betas
    ]
    pairs = list(zip(*linear_sum_assignment(cosine_KK, maximize=True), strict=True))
    matches = []
    for topic, partner in pairs if len(genes) else []:
        others = np.delete(np.arange(len(unit_b)), partner)
        rival = None
        if len(others):
            nearest = others[cosine_KK[topic, others].argmax()]
            rival = (int(nearest), float(cosine_KK[topic, nearest]))
        matches.append(
            Match(
                topic=int(topic),
                partner=int(partner),
                cosine=float(cosine_KK[topic, partner]),
                rival=rival,
                genes=tuple(g for g in leading[0][topic] if g in leading[1][partner]),
                proportion=float(proportions[0][topic]),
                partner_proportion=float(proportions[1][partner]),
                correlation=_correlation(thetas[0][:, topic], thetas[1][:, partner]),
            )
        )
    matches.sort(key=lambda match: not match.found)

    def lone(side: int, matched: set[int], similar_KK: np.ndarray) -> tuple[Lone, ...]:
        return tuple(
            Lone(
                topic=topic,
                nearest=int(similar_KK[topic].argmax()),
                cosine=float(similar_KK[topic].max()),
                proportion=float(proportions[side][topic]),
                genes=leading[side][topic][:N_NAMED],
            )
            for topic in range(len(similar_KK))
            if topic not in matched
        )

    return Pairing(
        letters=(a.letter, b.letter),
        n_genes=(len(a.genes), len(b.genes), len(genes)),
        share=(float(betas[0].sum(1).mean()), float(betas[1].sum(1).mean())),
        n_cells=len(cells),
        cosine_KK=cosine_KK,
        matches=tuple(matches),
        lone=(
            lone(0, {match.topic for match in matches if match.found}, cosine_KK),
            lone(1, {match.partner for match in matches if match.found}, cosine_KK.T),
        ),
    )


def _unit(beta_KG: np.ndarray) -> np.ndarray:
    """Rows of length one; a topic without any of the genes stays 0, like nothing."""
    length_K1 = np.linalg.norm(beta_KG, axis=1, keepdims=True)
    unit_KG: np.ndarray = beta_KG / np.where(length_K1 > 0, length_K1, 1)
    return unit_KG


def _correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
    if len(a_N) < 3 or not (np.ptp(a_N) and np.ptp(b_N)):
        return math.nan
    return float(np.corrcoef(a_N, b_N)[0, 1])
