"""Make a stored run again, and find what differs: ``topicell reproduce``.

stored run → same settings and data → run → comparison of code, environment, files and scores.

Shape suffixes: K topics, G genes.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from topicell.config import RunConfig
from topicell.data.preprocessing import settings_of_data
from topicell.data.reading import digest_of_files
from topicell.errors import InputError
from topicell.evaluation.metrics import metric
from topicell.evaluation.stability import match_topics
from topicell.files import whole
from topicell.outputs import Result
from topicell.report.scores import number
from topicell.run import run
from topicell.tracking.provenance import DIFF, ENVIRONMENT
from topicell.tracking.runs import Tracker
from topicell.tracking.stored import read_dataset, read_scores, read_tags

NEEDED = ("config.yaml", "metrics.jsonl", "scores.csv", "model", "topics", "cells")
"""Artifacts without which a run cannot be made again and compared."""
OPTIONAL = (ENVIRONMENT, DIFF, "figures")
RESULTS = ("model", "topics", "cells", "figures", "scores.csv")
"""Files and folders whose bytes are compared; the others contain times and the id of the run."""
ROUNDING = 1e-9
"""Relative difference of two scores that counts as rounding."""
NOISE = 3.0
"""A mean within this many standard deviations of the stored values differs by noise only."""
SCORES = "reproduction.csv"


@dataclass(frozen=True, slots=True)
class Difference:
    """A score in the stored run and in the new one: means over replicates and splits.

    `noise` is the standard deviation of the stored values, NaN if there is one value only. `lost`
    says that the new run has fewer finite values, or none.
    """

    name: str
    stored: float
    new: float
    noise: float
    lost: bool = False

    @property
    def size(self) -> float:
        """Return the difference in standard deviations; NaN if these are not known."""
        if self.lost:
            return math.inf
        if math.isclose(self.new, self.stored, rel_tol=ROUNDING):
            return 0.0
        if math.isnan(self.new) and math.isnan(self.stored):
            return 0.0
        if self.noise == 0:
            return math.inf
        return abs(self.new - self.stored) / self.noise


@dataclass(frozen=True, slots=True)
class Reproduction:
    """The differences between a stored run and the run that was made again.

    Attributes
    ----------
    code, environment
        Differences in one line each; empty if there are none.
    files
        Compared files, each with whether its bytes are the same.
    scores
        All scores of ``scores.csv``.
    cosine_K
        Similarity of matched topics; None if the runs have other genes or numbers of topics.
    """

    code: Sequence[str]
    environment: Sequence[str]
    files: Mapping[str, bool]
    scores: Sequence[Difference]
    cosine_K: np.ndarray | None

    @property
    def same_bytes(self) -> bool:
        """Return whether all compared files have the same bytes."""
        return all(self.files.values())

    @property
    def beyond_noise(self) -> list[Difference]:
        """Return the scores that differ by more than noise."""
        return [score for score in self.scores if score.size > NOISE]

    @property
    def judged(self) -> list[Difference]:
        """Return the scores whose noise is known, or that are equal."""
        return [score for score in self.scores if not math.isnan(score.size)]

    @property
    def noise_is_known(self) -> bool:
        """Return whether the stored run has several values of a score."""
        return any(not math.isnan(score.noise) for score in self.scores)

    @property
    def reproduced(self) -> bool:
        """Return whether the bytes are the same, or else all scores within their noise.

        If the noise is not known, all scores must be equal.
        """
        if self.same_bytes:
            return True
        if not self.noise_is_known:
            return bool(self.scores) and all(score.size == 0 for score in self.scores)
        return not self.beyond_noise


def require_reproducible(folder: Path, config: RunConfig) -> None:
    """Check that a stored run can be made again.

    Parameters
    ----------
    folder
        The folder with its artifacts.
    config
        Its settings; the data are where they are now.

    Raises
    ------
    InputError
        The data cannot be read or are others.
    """
    stored = read_dataset(folder)["digest"]
    found = digest_of_files(settings_of_data(config.data, config.preprocess))
    if found != stored:
        raise InputError(
            f"the data of the run have changed: their sha256 was {stored[:12]}… and is "
            f"{found[:12]}…; restore the file, or name its new place with data.path=FILE or "
            "data.samples=FILE (a list of files must be where it was)"
        )


def reproduce(folder: Path, config: RunConfig, tracker: Tracker) -> tuple[Result, Reproduction]:
    """Make a stored run again, and compare the two.

    Parameters
    ----------
    folder
        The folder with the artifacts of the stored run.
    config
        Its settings.
    tracker
        Where the new run is recorded. Its folder also receives ``reproduction.csv``.

    Raises
    ------
    InputError
        The run cannot be made with this version of topicell or on this machine.
    """
    result = run(config, tracker)
    found = compare(folder, tracker.directory)
    write_scores(found.scores, tracker.directory / SCORES)
    return result, found


def compare(stored: Path, new: Path) -> Reproduction:
    """Return what differs between the folders of two runs with the same settings."""
    return Reproduction(
        code=list(code_differences(stored, new)),
        environment=list(environment_differences(stored, new)),
        files=compared_files(stored, new),
        scores=compared_scores(stored, new),
        cosine_K=_matched(stored, new),
    )


def code_differences(stored: Path, new: Path) -> Iterator[str]:
    """Yield differences of version, commit and uncommitted changes, and of the device."""
    then, now = read_tags(stored), read_tags(new)
    for title, name in (
        ("version", "topicell.version"),
        ("commit", "topicell.git_commit"),
        ("device", "device"),
    ):
        before, after = then.get(name, "none"), now.get(name, "none")
        if before != after:
            yield f"{title} {before[:12]} → {after[:12]}"
    before, after = _text(stored / DIFF), _text(new / DIFF)
    if then.get("topicell.git_dirty") == "true" and not before:
        yield "uncommitted changes, which the stored run does not have"
    elif before != after:
        has = {True: "uncommitted changes", False: "no uncommitted changes"}
        other = "other uncommitted changes" if before and after else has[bool(after)]
        yield f"{has[bool(before)]} → {other}"


def environment_differences(stored: Path, new: Path) -> Iterator[str]:
    """Yield the packages with other versions, and a difference of Python or of the system."""
    if not (stored / ENVIRONMENT).exists():
        yield f"the stored run has no {ENVIRONMENT}: an older version made it"
        return
    (system, then), (system_now, now) = (
        _packages(folder / ENVIRONMENT) for folder in (stored, new)
    )
    if system != system_now:
        yield f"{system} → {system_now}"
    for name in sorted(then.keys() | now.keys()):
        before, after = then.get(name, "none"), now.get(name, "none")
        if before != after:
            yield f"{name} {before} → {after}"


def _packages(path: Path) -> tuple[str, dict[str, str]]:
    """Return the system, and the version of each package, of a file of the environment."""
    system, *lines = path.read_text(encoding="utf-8").splitlines()
    requirements = [line.removeprefix("# ").split(" (")[0] for line in lines if "==" in line]
    versions = (line.partition("==") for line in requirements)
    return system.removeprefix("# "), {name: found for name, _, found in versions}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def compared_files(stored: Path, new: Path) -> dict[str, bool]:
    """Return the files of `RESULTS` in either folder, each with whether its bytes are the same.

    A folder that the stored run does not have, such as figures of a run without a report, is not
    compared.
    """
    names = {
        path.relative_to(folder).as_posix()
        for folder in (stored, new)
        for name in RESULTS
        if (stored / name).exists()
        for path in ([folder / name] if name == "scores.csv" else (folder / name).rglob("*"))
        if path.is_file()
    }
    return {
        name: all((folder / name).exists() for folder in (stored, new))
        and _content(stored / name) == _content(new / name)
        for name in sorted(names)
    }


def _content(path: Path) -> bytes:
    """Return the bytes of a file; of ``model.json``, without the measured speed of each epoch."""
    content = path.read_bytes()
    if path.name != "model.json":
        return content
    document = json.loads(content)
    for epoch in document["history"]:
        for name in [name for name in epoch if name.startswith("speed/")]:
            del epoch[name]
    return json.dumps(document).encode()


def compared_scores(stored: Path, new: Path) -> list[Difference]:
    """Return all scores of the stored run, of values that are finite."""
    then, now = (
        {
            name: np.concatenate([*by_split.values()])
            for name, by_split in read_scores(folder / "scores.csv").items()
        }
        for folder in (stored, new)
    )
    scores = []
    for name, values in then.items():
        before, after = (of[np.isfinite(of)] for of in (values, now.get(name, np.array([]))))
        scores.append(
            Difference(
                name,
                float(before.mean()) if before.size else math.nan,
                float(after.mean()) if after.size else math.nan,
                float(before.std(ddof=1)) if before.size > 1 else math.nan,
                lost=after.size < before.size,
            )
        )
    return scores


def _matched(stored: Path, new: Path) -> np.ndarray | None:
    """Return the cosine of the gene proportions of matched topics, shape (K,)."""
    import pandas as pd

    then, now = (
        pd.read_csv(folder / "topics" / "gene_topics.csv", index_col=0) for folder in (stored, new)
    )
    if then.shape != now.shape or not then.index.equals(now.index):
        return None
    return match_topics(then.to_numpy().T, now.to_numpy().T).cosine


def write_scores(scores: Sequence[Difference], path: Path) -> None:
    """Write the scores of both runs as a table."""
    with whole(path) as unfinished, unfinished.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["metric", "stored", "new", "noise", "difference_in_noise"])
        for score in scores:
            table.writerow([score.name, score.stored, score.new, score.noise, score.size])


def described(found: Reproduction) -> Iterator[str]:
    """Yield the differences as lines for the terminal."""
    yield f"code        {'; '.join(found.code) or 'same version, commit and changes'}"
    shown = [*found.environment[:5]]
    if len(found.environment) > len(shown):
        shown.append(f"{len(found.environment) - len(shown)} more")
    yield f"environment {'; '.join(shown) or 'same Python and packages'}"
    n_files, n_same = len(found.files), sum(found.files.values())
    if found.same_bytes:
        yield f"results     same bytes in all {n_files} files of {', '.join(RESULTS)}"
        return
    first = next(name for name, same in found.files.items() if not same)
    yield f"results     other bytes in {n_files - n_same} of {n_files} files, such as {first}"
    n_within = sum(score.size <= NOISE for score in found.judged)
    yield (
        f"scores      {n_within} of {len(found.judged)} within {NOISE:g} standard deviations of "
        "the stored values"
    )
    for score in sorted(found.judged, key=lambda one: -one.size)[:3]:
        if score.size:
            yield (
                f"            {metric(score.name).title}: {number(score.stored)} → "
                f"{number(score.new)} ({score.size:.2g} standard deviations)"
            )
    if found.cosine_K is None:
        yield "topics      other genes, or another number of topics"
    else:
        mean, least = found.cosine_K.mean(), found.cosine_K.min()
        yield f"topics      cosine of matched topics: mean {mean:.4f}, smallest {least:.4f}"
