"""The model card of a run."""

import json
import re
from pathlib import Path

import anndata
import pytest

from topicell.model.registry import MODELS
from topicell.report.card import card


@pytest.fixture
def adata(run_here, small):
    """Return the cells of a small run, whose folder is ``run``."""
    code, _, err = run_here(
        "train", *small, "report=off", "tracking=off", "hydra.run.dir=run", "model.dropout=0.1"
    )
    assert code == 0, err
    return anndata.read_h5ad("run/adata.h5ad")


def table(text, heading):
    """Return the rows of the table after a heading, without its head."""
    lines = text.partition(f"{heading}\n\n")[2].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_a_card_has_data_settings_scores_and_limits(adata):
    text = card(adata)
    assert Path("run/MODEL_CARD.md").read_text(encoding="utf-8") == text
    about, scores = adata.uns["topicell"], json.loads(adata.uns["topicell"]["scores"])
    facts = dict(table(text, "simulated"))
    assert facts["sha256 of the source"] == adata.uns["topicell_source"]["sha256"]
    assert f"{adata.n_obs:,} cells and {adata.n_vars:,} genes" in facts["Cells and genes"]
    assert facts["Made by"] == f"topicell {about['version']}, {about['created']}"
    settings = text.partition("not the defaults\n\n")[2].partition("\n\n")[0].splitlines()
    assert "- `model.dropout=0.1`" in settings
    assert "- `data.name=simulated`" in settings
    assert not any("tracking." in line for line in settings)
    shown = {row[0]: row for row in table(text, "## Scores")}
    perplexity = shown["Perplexity of test cells"]
    assert float(perplexity[1].split()[0]) == pytest.approx(
        scores["test/perplexity_folded"], rel=0.01
    )
    assert perplexity[2]
    assert "topicell reproduce run=FOLDER" in text
    assert MODELS["amortized_lda"].reference.split("; ")[0] in text


def test_names_do_not_break_the_card(adata):
    adata.uns["topicell"]["data"] = "a|b <b>*c*</b> [x](y)"
    text = card(adata)
    assert "<b>" not in text
    assert dict(table(text, r"\[x\](y)"))["Data"] == r"a\|b &lt;b&gt;\*c\*&lt;/b&gt; \[x\](y)"


def test_a_card_of_external_topics_has_no_commands_of_a_fit(adata):
    config = json.loads(adata.uns["topicell"]["config"])
    given = {"theta": "theta.csv", "beta": "beta.csv", "data": "cells.h5ad", "seed": 0}
    adata.uns["topicell"]["config"] = json.dumps(given | {"evaluate": config["evaluate"]})
    text = card(adata)
    assert "topicell transform" not in text
    assert "topicell reproduce" not in text
    assert "the tool that fitted the topics" in text


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_every_model_has_a_reference_with_a_year_or_a_program(spec):
    assert re.search(r"\(\d{4}\)|\(software\)", spec.reference)
