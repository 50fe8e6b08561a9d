"""Text, paths and patterns of the command line reach the configuration unchanged."""

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
ODD = [
    "été a=1, b#2 %3.h5ad",
    "~nobody's file.h5ad",
    "a(1) [b] {c}.h5ad",
    "$HOME and ${model.n_topics} and ${x}.h5ad",
    "[brackets].h5ad",
    "back\\slash\\.h5ad",
    '"quoted".h5ad',
    "'quoted'",
    "choice(1,2)",
    "1e3",
]
"""Names of files with characters that have a meaning in Hydra, OmegaConf or Python."""


@pytest.fixture
def of_a_file(small):
    """Return the settings of a short run on cells from a file, whose path is added."""
    return [
        *(setting for setting in small if not setting.startswith("data")),
        *("data=file", "preprocess=all_genes", "preprocess.drop_genes=[]"),
        *("train.epochs=1", "train.n_replicates=1"),
        *("evaluate.differential_expression=false", "tracking=off", "report=off"),
    ]


def write_cells(name):
    """Write 40 cells and 30 genes to a file."""
    x = np.random.default_rng(0).poisson(2.0, size=(40, 30)).astype(np.float32)
    adata = anndata.AnnData(x)
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    adata.write_h5ad(name)


def value_of(argument, multirun=False):
    """Return the value, or the list of values of a sweep, that Hydra reads from an argument."""
    (written,) = literal([argument], multirun=multirun)
    override = PARSER.parse_override(written)
    if not override.is_sweep_override():
        return override.value()
    return [PARSER.parse_override(f"x={one}").value() for one in override.sweep_string_iterator()]


@given(st.text(st.sampled_from("a'\"\\$,[( é~=") | st.characters(exclude_categories=["C", "Z"])))
def test_quoted_text_is_unquoted_by_hydra_and_by_unquoted(text):
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


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("preprocess.drop_genes=^MT-,^mt-", [["^MT-"], ["^mt-"]]),
        ("preprocess.drop_genes=[^MT-],[^mt-]", [["^MT-"], ["^mt-"]]),
        ("preprocess.drop_genes=[^MT-,^mt-]", ["^MT-", "^mt-"]),
        ("data.path=a b.h5ad,é(1,2).h5ad", ["a b.h5ad", "é(1,2).h5ad"]),
        ("data.path=choice(a,b)", ["a", "b"]),
        ("hydra.sweep.dir=a,b", "a,b"),
        ("data.path=there,is.h5ad", "there,is.h5ad"),
    ],
)
def test_several_values_with_m_are_a_sweep(argument, values):
    Path("there,is.h5ad").touch()
    assert value_of(argument, multirun=True) == values


def test_text_and_interpolations_stay_as_they_are_written():
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


@pytest.mark.parametrize(
    "name",
    [
        *("~/no file é.h5ad", "no/such=a,b [x] ${y}.h5ad", "~nobody's file.h5ad", "'quoted'"),
        *("$HOME and ${model.n_topics} and ${x}.h5ad", "choice(1,2)", "1e3"),
    ],
)
def test_a_missing_file_of_any_name_is_refused_by_its_name(name, run_here):
    code, _, err = run_here("train", "data=file", f"data.path={name}", "tracking=off")
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert "there is no such file" in err or "does not exist" in err
    # Hydra resolves the interpolations that it can.
    assert name.strip("~'").replace("${model.n_topics}", "10") in err


@pytest.mark.parametrize(
    "name", [ODD[0], *(pytest.param(name, marks=pytest.mark.slow) for name in ODD[1:])]
)
def test_a_file_of_any_name_is_read(name, run_here, of_a_file):
    write_cells("plain.h5ad")
    Path("plain.h5ad").rename(name)
    # Hydra cannot write to a folder with ${x} in its name.
    folder = f"runs of {name.replace('{', '(')}"
    code, _, err = run_here("train", *of_a_file, f"data.path={name}", f"hydra.run.dir={folder}")
    assert code == 0, err
    assert Path(folder, "adata.h5ad").is_file()
    arguments = [f"run={folder}", f"input={name}", f"output=out {name}.csv", "tracking=off"]
    code, _, err = run_here("transform", *arguments)
    assert code == 0, err
    assert Path(f"out {name}.csv").is_file()


@pytest.mark.parametrize(
    ("written", "files"),
    [
        ("[a.h5ad,b.h5ad]", ["a.h5ad", "b.h5ad"]),
        ('["a.h5ad", "b.h5ad"]', ["a.h5ad", "b.h5ad"]),
        ("[a b.h5ad,é(1,2).h5ad]", ["a b.h5ad", "é(1,2).h5ad"]),
        ("[~/a.h5ad,'x,y.h5ad']", [f"{Path.home()}/a.h5ad", "x,y.h5ad"]),
        ("[a.h5ad]", ["a.h5ad"]),
        ("[there].h5ad", "[there].h5ad"),
    ],
)
def test_a_list_in_brackets_names_several_files(written, files):
    Path("[there].h5ad").touch()
    assert value_of(f"data.path={written}") == files
    assert value_of(f"data.path={written}", multirun=True) == files


def test_several_lists_with_m_are_a_sweep():
    found = value_of("data.path=[a,b c],[d],e", multirun=True)
    assert found == [["a", "b c"], ["d"], "e"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "theta=t.csv", "beta=b.csv", "data=[a.h5ad,b.h5ad]"],
        ["transform", "run=x", "input=a.h5ad,b.h5ad", "output=o.csv"],
    ],
    ids=" ".join,
)
def test_several_files_are_refused_by_commands_that_take_one(arguments, run_here):
    for name in ("a.h5ad", "b.h5ad"):
        Path(name).touch()
    code, _, err = run_here(*arguments)
    assert code == 2
    assert "takes one file, found a list of 2" in err
    assert "topicell.load_dataset('file', path=files).write_h5ad(" in err


def test_several_files_without_brackets_are_refused(run_here):
    for name in ("a.h5ad", "b.h5ad"):
        Path(name).touch()
    code, _, err = run_here("train", "data=file", "data.path=a.h5ad,b.h5ad")
    assert code == 2
    assert "write data.path=[a.h5ad,b.h5ad]; for one run of each, topicell train -m" in err


@pytest.mark.slow
def test_two_files_with_m_are_two_runs(run_here, of_a_file):
    for name in ("a.h5ad", "b (1).h5ad"):
        write_cells(name)
    where = ["data.path=a.h5ad,b (1).h5ad", "hydra.sweep.dir=both é"]
    code, _, err = run_here("train", "-m", *of_a_file, *where)
    assert code == 0, err
    assert {path.parent.name for path in Path("both é").glob("*/adata.h5ad")} == {"0", "1"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "model.n_topics=~"], "model.n_topics takes a whole number"),
        (["train", "model.n_topixé=3"], "did you mean 'model.n_topics'"),
        (["train", "^mt-]"], "write settings as NAME=VALUE"),
        (["report", "run=x", "report.dpi=[1"], "report.dpi takes a whole number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_argument_outside_hydras_grammar_is_refused_by_its_setting(arguments, words, run_here):
    code, _, err = run_here(*arguments)
    assert code == 2
    assert len(err.splitlines()) == 1, err
    assert words in err


def test_an_advised_setting_is_accepted_when_copied(run_here):
    arguments = ["train", "model.n_topics=1", "tracking=off"]
    code, _, err = run_here(*arguments, "hydra.job.name=~é")
    assert code == 2
    advised = shlex.split(err.rpartition("write ")[2])
    code, _, err = run_here(*arguments, *advised)
    assert "model.n_topics = 1: needs at least 2 topics" in err
