"""The model card of a run: data, model, settings, scores, limits, and how to cite it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from topicell.config import ExternalConfig, RunConfig, dotted
from topicell.data.catalogue import CATALOGUE
from topicell.evaluation.metrics import METRICS
from topicell.model.registry import model_spec
from topicell.report.figure_set import number_of_searches
from topicell.report.page import data_line, model_line
from topicell.report.scores import number
from topicell.report.summary import as_text
from topicell.report.warnings import run_warnings

if TYPE_CHECKING:
    from anndata import AnnData

LIMITS = (
    "A topic is a set of genes that these cells express together. It is not a cell type, and it is "
    "no evidence of a cause.",
    "The topics describe the tissue, the technology and the conditions of these cells. Other cells "
    "get proportions of the same topics, whether these fit them or not: compare their ELBO with "
    "that of the test cells.",
    "Perplexity and ELBO are those of held-out cells of the same data, not of other donors or "
    "laboratories.",
    "Standard deviations are over replicates and splits of the same cells. They say nothing about "
    "other donors.",
    "Which topics change with a condition is a question about samples, not about cells: use "
    "`topicell conditions`.",
)
"""Limits that all runs have."""
NO_RESULTS = ("tracking.", "train.progress", "train.checkpoint_every", "preprocess.cache", "output")
"""Beginnings of the names of settings that change no result."""


def card(adata: AnnData) -> str:
    """Return the model card of a run in Markdown.

    Parameters
    ----------
    adata
        The run's cells, topics and ``uns["topicell"]``.
    """
    run, source = adata.uns["topicell"], adata.uns["topicell_source"]
    config, scores = json.loads(run["config"]), json.loads(run["scores"])
    external = "theta" in config
    n_topics, n_replicates = adata.obsm["X_lda"].shape[1], len(run.get("topic_matches", [0]))
    named = f"run={run['run_id'] or 'FOLDER'}"
    model = model_line(config, n_topics, int(scores.get("fit/epochs", 0)), n_replicates)
    rows = [
        ("Model", model),
        ("Made by", f"topicell {run['version']}, {run['created']}"),
        ("Run in MLflow", run["run_id"] or "none"),
        ("Data", as_text(run["data"])),
        ("Source", as_text(source["source"])),
        ("sha256 of the source", source["sha256"]),
        ("Cells and genes", data_line(adata, given=external)),
    ]
    columns = {"Labels": "label_key", "Samples": "sample_key", "Batches": "batch_key"}
    rows += [
        (title, f"column {as_text(run[key])} of obs")
        for title, key in columns.items()
        if run.get(key)
    ]
    if run["data"] in CATALOGUE:
        rows.append(("Licence of the data", CATALOGUE[run["data"]].licence))
    return "\n".join(
        [
            f"# Model card: {n_topics} topics in {as_text(run['data'])}",
            "",
            *_table(("Property", "Value"), rows),
            "",
            "## Settings that are not the defaults",
            "",
            *(_settings(config) or ["None: all settings have their defaults."]),
            "",
            "`config.yaml` has all settings, with the commit of the code.",
            "",
            "## Scores",
            "",
            *_scores(scores, number_of_searches(run)),
            "",
            "`scores.csv` has every value of every replicate and split.",
            "",
            "## Warnings about this run",
            "",
            *([f"- **{head}.** {text}" for head, text in run_warnings(adata)] or ["None."]),
            "",
            "## Limits of every run",
            "",
            *(f"- {limit}" for limit in LIMITS),
            "",
            "## Use",
            "",
            *_use(named, adata, external=external),
            "",
            "## Cite",
            "",
            f"- topicell {run['version']}: `CITATION.cff` of its source",
            *_references(config, external=external),
            "- the publication of the data",
            "",
        ]
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _settings(config: Mapping[str, Any]) -> list[str]:
    """Return the settings with results that differ from the defaults, as on the command line."""
    kind = ExternalConfig if "theta" in config else RunConfig
    default = dotted(kind())
    return [
        f"- `{name}={json.dumps(value, ensure_ascii=False) if value is None else value}`"
        for name, value in dotted(config).items()
        if value != default.get(name) and not name.startswith(NO_RESULTS)
    ]


def _scores(scores: Mapping[str, float], n_searches: int) -> Iterator[str]:
    """Yield a table of the scores that a page or the terminal shows first, with their meaning."""
    rows = [
        (
            row.title,
            f"{number(scores[name])} {row.unit}".rstrip(),
            number(scores[f"{name}_sd"]) if f"{name}_sd" in scores else "",
            row.explanation,
        )
        for name, row in METRICS.items()
        if name in scores and (row.headline or row.printed)
    ]
    yield from _table(("Score", "Value", "Standard deviation", "Meaning"), rows)
    if n_searches == 1:
        yield "\nThere is one replicate, so standard deviations are not known."


def _use(named: str, adata: AnnData, *, external: bool) -> Iterator[str]:
    """Yield how to apply the model, and how to make the run again."""
    if not external:
        yield f"Topic proportions of new cells: `topicell transform {named} input=new.h5ad`."
        yield (
            f"They need raw counts and the {adata.n_vars:,} genes of the model, by name or by "
            "identifier (`model/model.json`)."
        )
        yield ""
        yield f"Make the run again, and see what differs: `topicell reproduce {named}`."
    yield "`environment.txt` has the installed packages; `git.diff`, if there is one, has the"
    yield "changes of the code that were not committed."


def _references(config: Mapping[str, Any], *, external: bool) -> list[str]:
    """Return the publications to cite for the model."""
    if external:
        return ["- the tool that fitted the topics"]
    references = model_spec(config["model"]["kind"]).reference
    return [f"- {one}" for one in references.split("; ") if one]
