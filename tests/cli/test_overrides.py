"""Text, paths and patterns of the command line reach the configuration as they are written."""

import shlex
from pathlib import Path

import anndata
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from topicell.cli.overrides import literal, quoted, unquoted
from topicell.errors import InputError

PARSER = OverridesParser.create()
SMALL = [
    *("data=file", "preprocess=all_genes", "model.n_topics=3", "model.n_hidden=8"),
    *("train.epochs=1", "train.n_replicates=1", "train.progress=false"),
    *("evaluate.n_coherence_genes=5", "evaluate.differential_expression=false"),
    *("tracking=off", "report=off", "preprocess.drop_genes=[]"),
]
ODD = [
    "~nobody's file.h5ad",
    "été a=1, b#2 %3.h5ad",
    "a(1) [b] {c}.h5ad",
    "$HOME and ${model.n_topics} and ${x}.h5ad",
    "[brackets].h5ad",
    "back\\slash\\.h5ad",
    '"quoted".h5ad',
    "'quoted'",
    "choice(1,2)",
    "1e3",
]
"""Names of files in which Hydra, OmegaConf or Python sees something."""


def cells(name):
    """A file of 40 cells and 30 genes."""
    x = np.random.default_rng(0).poisson(2.0, size=(40, 30)).astype(np.float32)
    adata = anndata.AnnData(x)
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    adata.write_h5ad(name)


def value_of(argument, **settings):
    (written,) = literal([argument], **({"multirun": False} | settings))
    override = PARSER.parse_override(written)
    if not override.is_sweep_override():
        return override.value()
    return [PARSER.parse_override(f"x={one}").value() for one in override.sweep_string_iterator()]


@given(st.text(st.sampled_from("a'\"\\$,[( é~=") | st.characters(exclude_categories=["C", "Z"])))
def test_quotes_are_taken_back_by_hydra_and_by_us(text):
    assert unquoted(quoted(text)) == text
    assert PARSER.parse_override(f"x={quoted(text)}").value() == text


@pytest.mark.parametrize(
    ("written", "patterns"),
    [
        ("^MT-", ["^MT-"]),
        ("[^MT-,^mt-]", ["^MT-", "^mt-"]),
        ("[ ^MT-, ^mt- ]", ["^MT-", "^mt-"]),
        ('["^MT-","^mt-"]', ["^MT-", "^mt-"]),
        ("^MT-,^mt-", ["^MT-", "^mt-"]),
        ("'^MT-'", ["^MT-"]),
        ("['^A,B',c]", ["^A,B", "c"]),
        ("[^RP[SL],^MT-]", ["^RP[SL]", "^MT-"]),
        ("^RP[SL]", ["^RP[SL]"]),
        ("[mM][tT]", ["[mM][tT]"]),
        ("[[mM][tT]]", ["[mM][tT]"]),
        ("[^(RPS|RPL){1,3},[(],\\.1$]", ["^(RPS|RPL){1,3}", "[(]", "\\.1$"]),
        ("[^a\\(b,1]", ["^a\\(b", "1"]),
        ("[]", []),
        ("null", None),
    ],
)
def test_lists_of_patterns_need_no_quotes(written, patterns):
    assert value_of(f"preprocess.drop_genes={written}") == patterns


def test_several_values_with_m_are_a_sweep():
    for written in ("^MT-,^mt-", "[^MT-],[^mt-]"):
        found = value_of(f"preprocess.drop_genes={written}", multirun=True)
        assert found == [["^MT-"], ["^mt-"]]
    both = value_of("preprocess.drop_genes=[^MT-,^mt-]", multirun=True)
    assert both == ["^MT-", "^mt-"]
    paths = value_of("data.path=a b.h5ad,é(1,2).h5ad", multirun=True)
    assert paths == ["a b.h5ad", "é(1,2).h5ad"]
    assert value_of("data.path=choice(a,b)", multirun=True) == ["a", "b"]
    assert value_of("hydra.sweep.dir=a,b", multirun=True) == "a,b"
    Path("a,b.h5ad").touch()
    assert value_of("data.path=a,b.h5ad", multirun=True) == "a,b.h5ad"


def test_text_is_kept_and_interpolations_of_settings_too():
    assert value_of("data.label_key=01") == "01"
    assert value_of("tracking.uri=postgresql://u:p@h/db?a=b") == "postgresql://u:p@h/db?a=b"
    assert value_of("data.path=${oc.env:HOME}/é.h5ad") == "${oc.env:HOME}/é.h5ad"
    assert value_of("hydra.run.dir=runs/${now:%Y}/é") == "runs/${now:%Y}/é"
    assert value_of("hydra.run.dir=~/é") == f"{Path.home()}/é"
    assert literal(["data=file", "model.n_topics=1,2", "-m", "seed"], multirun=True) == [
        *("data=file", "model.n_topics=1,2", "-m", "seed")
    ]


def test_a_list_without_an_end_is_refused():
    with pytest.raises(InputError, match=r"closing bracket; write preprocess.drop_genes=\[A,B\]"):
        literal(["preprocess.drop_genes=[^MT-,", "^mt-]"], multirun=False)


@pytest.mark.parametrize("name", ["~/no file é.h5ad", "no/such=a,b [x] ${y}.h5ad", *ODD])
def test_a_file_that_is_not_there_is_said_to_be_missing(name, run_here):
    code, _, err = run_here("train", "data=file", f"data.path={name}", "tracking=off")
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert "there is no such file" in err or "does not exist" in err
    # Of a name that is not there, what Hydra can resolve is resolved.
    assert name.strip("~'").replace("${model.n_topics}", "10") in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_a_file_of_any_name_is_read(name, run_here):
    cells("plain.h5ad")
    Path("plain.h5ad").rename(name)
    # Hydra itself cannot have ${x} in the name of a folder.
    folder = f"runs of {name.replace('{', '(')}"
    code, _, err = run_here("train", *SMALL, f"data.path={name}", f"hydra.run.dir={folder}")
    assert code == 0, err
    assert Path(folder, "adata.h5ad").is_file()
    arguments = [f"run={folder}", f"input={name}", f"output=out {name}.csv", "tracking=off"]
    code, _, err = run_here("transform", *arguments)
    assert code == 0, err
    assert Path(f"out {name}.csv").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "data=file", "data.path=[a.h5ad,b.h5ad]"],
        ["train", "data=file", "data.path=a.h5ad,b.h5ad"],
        ["train", "data=file", 'data.path=["a.h5ad", "b.h5ad"]'],
        ["train", "-m", "data=file", "data.path=[a.h5ad,b.h5ad]", "seed=0,1"],
        ["evaluate", "theta=t.csv", "beta=b.csv", "data=[a.h5ad,b.h5ad]"],
        ["transform", "run=x", "input=a.h5ad,b.h5ad", "output=o.csv"],
    ],
    ids=" ".join,
)
def test_several_files_are_refused_with_the_way_to_join_them(arguments, run_here):
    for name in ("a.h5ad", "b.h5ad"):
        Path(name).touch()
    code, _, err = run_here(*arguments)
    assert code == 2
    assert "takes one file, found a list of 2" in err
    assert "anndata.concat(" in err


@pytest.mark.slow
def test_two_files_with_m_are_two_runs(run_here):
    for name in ("a.h5ad", "b (1).h5ad"):
        cells(name)
    where = ["data.path=a.h5ad,b (1).h5ad", "hydra.sweep.dir=both é"]
    code, _, err = run_here("train", "-m", *SMALL, *where)
    assert code == 0, err
    assert {path.parent.name for path in Path("both é").glob("*/adata.h5ad")} == {"0", "1"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "model.n_topics=~"], "model.n_topics takes int"),
        (["train", "model.n_topixé=3"], "did you mean 'model.n_topics'"),
        (["train", "^mt-]"], "write settings as NAME=VALUE"),
        (["report", "run=x", "report.dpi=[1"], "report.dpi takes int"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_the_grammar_does_not_take_is_said_in_terms_of_settings(arguments, words, run_here):
    code, _, err = run_here(*arguments)
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert words in err


def test_advice_works_when_it_is_copied(run_here):
    arguments = ["train", "model.n_topics=1", "tracking=off"]
    code, _, err = run_here(*arguments, "hydra.job.name=~é")
    assert code == 2
    advised = shlex.split(err.rpartition("write ")[2])
    code, _, err = run_here(*arguments, *advised)
    assert "model.n_topics = 1: needs at least 2 topics" in err
