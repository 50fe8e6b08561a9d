"""``topicell evaluate``: the scores of a run, and the two forms of its settings."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from topicell.cli.evaluate import COMMAND, in_short
from topicell.cli.options import read
from topicell.tracking.stored import read_metrics


@pytest.mark.filterwarnings("ignore:.*obs already has")
def test_topics_of_a_run_score_the_same_through_evaluate(run_here, small):
    settings = [setting for setting in small if "n_hidden" not in setting]
    settings += ["report=off", "model=sklearn_lda"]
    assert run_here("train", *settings, "hydra.run.dir=here")[0] == 0
    code, _, err = run_here(
        *("evaluate", "theta=here/cells/cell_topics.csv", "beta=here/topics/gene_topics.csv"),
        *("data=here/adata.h5ad", "held_out=split", "report=off", "tracking=off", "output=there"),
    )
    assert code == 0, err
    ours, theirs = (read_metrics(Path(folder))[1] for folder in ("here", "there"))
    for name in ("test/perplexity_folded", "topics/diversity", "topics/used"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-6), name


@pytest.fixture
def topics():
    """Write cells with two layers and labels, θ and β; return the arguments except the cells."""
    rng = np.random.default_rng(0)
    cells, genes = ([f"{letter}{i}" for i in range(n)] for letter, n in (("c", 60), ("g", 20)))
    theta, beta = rng.dirichlet(np.ones(3), 60), rng.dirichlet(np.ones(20), 3)
    x = np.stack([rng.multinomial(100, p) for p in theta @ beta]).astype(np.float32)
    adata = anndata.AnnData(
        np.zeros_like(x),
        obs=pd.DataFrame({"kind": np.array(list("abc"))[theta.argmax(1)]}, cells),
        var=pd.DataFrame(index=genes),
        layers={"umi": x, "other": np.flip(x, 1).copy()},
    )
    adata.write_h5ad("my cells.h5ad")
    pd.DataFrame(theta, cells).to_csv("theta.csv")
    pd.DataFrame(beta.T, genes).to_csv("beta.csv")
    return [
        *("theta=theta.csv", "beta=beta.csv", "report=off", "tracking=off"),
        "evaluate.n_coherence_genes=5",
    ]


LONG = ["data=file", "data.path=my cells.h5ad", "data.layer=umi", "data.label_key=kind"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["data=my cells.h5ad", "layer=umi", "label_key=kind"],
        LONG,
        ["layer=umi", "data.path='my cells.h5ad'", *LONG[3:], "data='file'"],
        [*LONG, "layer=umi", "label_key='kind'"],
    ],
    ids=["short", "long", "quoted", "both"],
)
def test_both_forms_of_the_settings_of_data_give_the_same_configuration(arguments, topics):
    config = read(COMMAND, in_short([*topics, *arguments]))
    assert (config.data, config.layer, config.label_key) == ("my cells.h5ad", "umi", "kind")


def test_the_settings_of_data_change_the_scores(topics, run_here):
    found = []
    for layer in ("umi", "other"):
        arguments = [*LONG, f"data.layer={layer}", f"output={layer}"]
        code, _, err = run_here("evaluate", *topics, *arguments)
        assert code == 0, err
        lines = Path(layer, "metrics.jsonl").read_text().splitlines()
        found.append(next(line for line in map(json.loads, lines) if "given/perplexity" in line))
    assert found[0]["labels/nmi"] > 0
    assert found[0]["given/perplexity"] < found[1]["given/perplexity"]


def test_a_file_with_the_name_of_a_data_set_is_read_as_a_file():
    assert in_short(["data=pbmc68k"]) == ["data=pbmc68k"]
    assert in_short(["data=file", "data.path=pbmc68k"]) == ["data=./pbmc68k"]
    assert in_short(["data=a.h5ad", "data.path=null"]) == ["data=a.h5ad"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=file"], "data.path has no value: data=file needs data.path=FILE"),
        (["data=file", "data.path=null"], "data=file needs data.path=FILE"),
        (["data.path=a.h5ad"], "data has no value: give data=file data.path=a.h5ad"),
        (
            ["data=pbmc68k", "data.path=a.h5ad"],
            "data=pbmc68k and data.path=a.h5ad contradict each other; give data=a.h5ad, or "
            "data=file data.path=a.h5ad",
        ),
        (
            [*LONG, "layer=other"],
            "layer=other and data.layer=umi contradict each other; give one of them",
        ),
        ([*LONG, "data.orientation=up"], "orientation: Invalid value 'up', expected one of [auto"),
        ([*LONG, "data.backed=true"], "'data.backed' is not a setting; topicell evaluate --help"),
        ([*LONG, "data.name=pbmc3k"], "'data.name' is not a setting; did you mean 'data'?"),
        (["data=file", "data.path=[a.h5ad,my cells.h5ad]"], "takes one file, found a list of 2"),
        ([*LONG, "data.layer=none"], "layer 'none' does not exist"),
        ([*LONG, "data.label_key=none"], "data.label_key = 'none': obs has no such column"),
        (["data=my cells.h5ad", "label_key=none"], "data.label_key = 'none'"),
        ([*LONG, "theta=nothing.csv"], "nothing.csv"),
        ([*LONG, "output=full"], "output=FOLDER"),
        (["dataa=x"], "did you mean 'data'"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_bad_settings_are_refused_and_nothing_is_written(arguments, words, topics, run_here):
    Path("full").mkdir()
    Path("full/config.yaml").touch()
    changed = tuple(f"{argument.split('=')[0]}=" for argument in arguments)
    kept = [argument for argument in topics if not argument.startswith(changed)]
    code, _, err = run_here("evaluate", *kept, *arguments)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("topicell: ")]
    assert words in line
    assert not Path("evaluations").exists() or not list(Path("evaluations").glob("*/*"))
