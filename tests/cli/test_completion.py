"""Shell completion: what can come next, and the scripts in real shells."""

import subprocess
import sys
from pathlib import Path

import pytest

from topicell.cli import completion
from topicell.cli.completion import File, hydras_own, matches, split
from topicell.cli.main import COMMANDS
from topicell.config import Init

QUESTION = """
import sys
from topicell.cli import main

try:
    main(["completion", "query=bash"])
except SystemExit as exit_:
    assert exit_.code == 0
assert not {HEAVY} & sys.modules.keys(), {HEAVY} & sys.modules.keys()
"""
HEAVY = {"torch", "pyro", "scanpy", "anndata", "mlflow", "pandas", "matplotlib", "numpy"}


def texts(*words):
    found = matches(words[:-1], words[-1])
    assert not isinstance(found, File)
    return [one.text for one in found]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("topicell", ([], "topicell")),
        ("topicell ", ([], "")),
        ("topicell train da", (["train"], "da")),
        ("topicell train 'data.path=my ce", (["train"], "data.path=my ce")),
        ('topicell train "a b" ', (["train", "a b"], "")),
        ("", ([], "")),
    ],
)
def test_a_line_is_split_at_its_last_word(line, words):
    assert split(line) == words


def test_commands_and_their_options():
    assert texts("") == list(COMMANDS)
    assert texts("co") == [name for name in COMMANDS if name.startswith("co")]
    assert {"--help", "--version", "-q", "--verbose"} <= set(texts("-"))
    assert texts("report", "--v") == ["--verbose"]
    assert texts("-q", "transf") == ["transform"]
    assert texts("completion", "") == ["bash", "zsh", "fish"]
    assert texts("nothing", "a") == []


@pytest.mark.parametrize(
    ("word", "hydras"),
    [
        ("model.", True),
        ("tra", True),
        ("train.early_stopping.", True),
        ("data=", True),
        ("experiment=", True),
        ("hydra.ru", True),
        ("hydra/launch", True),
        ("model.n_topics=", True),
        ("model.init=", False),
    ],
)
def test_train_completes_what_hydra_completes(word, hydras):
    found = texts("train", word)
    if hydras:
        assert set(found) == set(hydras_own([], word))
    else:
        # Hydra answers model.init=Init.kmeans.
        assert found == [f"{word}{one.value}" for one in Init]


def test_the_value_of_a_setting_comes_from_the_groups_before_it():
    assert texts("train", "data.name=") == ["data.name=pbmc68k"]
    assert texts("train", "data=pbmc3k", "data.name=") == ["data.name=pbmc3k"]


def test_values():
    assert texts("train", "train.search=") == ["train.search=true", "train.search=false"]
    assert texts("train", "+data=pbmc3") == ["+data=pbmc3k"]
    assert texts("train", "-m", "model=prodlda,sklearn_l") == ["model=prodlda,sklearn_lda"]
    assert texts("train", "sweep.params.model.n_to") == ["sweep.params.model.n_topics="]
    assert texts("report", "report=") == ["report=off"]
    assert texts("report", "report.dp") == ["report.dpi="]
    assert texts("train", "--cfg", "") == ["job", "hydra", "all"]
    assert "--multirun" in texts("train", "--m")
    assert matches(["train"], "data.path=~/ce") == File("data.path=", "~/ce")
    assert matches(["train", "-m"], "data.path=a.h5ad,b") == File("data.path=a.h5ad,", "b")
    assert matches(["compare"], "runs=[runs/a,ru") == File("runs=[runs/a,", "ru")
    assert matches(["transform"], "input=") == File("input=", "")


def test_every_setting_of_every_command_can_be_reached():
    from topicell.cli.main import load
    from topicell.cli.overrides import kinds

    for name in COMMANDS:
        settings = load(name).settings
        if settings is None:
            continue
        reached, waiting = set(), [""]
        while waiting:
            for text in texts(name, waiting.pop()):
                if text.endswith("."):
                    waiting.append(text)
                else:
                    reached.add(text)
        assert reached == {f"{one}=" for one in kinds(settings())}


def test_an_error_is_no_answer(monkeypatch, run_here):
    monkeypatch.setenv("COMP_LINE", "topicell train ")

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(completion, "matches", fail)
    assert run_here("completion", "query=bash") == (0, "", "")


def test_bad_arguments(run_here):
    code, _, err = run_here("completion", "tcsh")
    assert (code, err) == (
        2,
        "topicell: 'tcsh': the shell must be one of bash, zsh, fish\n",
    )
    assert run_here("completion")[0] == 2
    assert "eval" in run_here("completion", "--help")[1]


@pytest.mark.parametrize("line", ["topicell ", "topicell train model.", "topicell report rep"])
def test_answers_import_nothing_heavy(line, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    program = QUESTION.replace("{HEAVY}", repr(HEAVY | {"hydra", "omegaconf"}))
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert found.stdout


def test_hydras_own_answers_import_nothing_heavy(monkeypatch):
    monkeypatch.setenv("COMP_LINE", "topicell train model.n_topics=")
    program = QUESTION.replace("{HEAVY}", repr(HEAVY))
    found = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    # Bash replaces only what is after the equals sign.
    assert found.stdout == "10\n"
    assert not list(Path.cwd().iterdir())


@pytest.fixture
def program(tmp_path_factory, monkeypatch):
    """Put a program ``topicell`` on the path."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "topicell"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m topicell "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("topicell tra", ["train", "transform"]),
        ("topicell train model.init=", ["background", "kmeans", "random"]),
        ("topicell train data=file data.path=ce", ["cells.h5ad"]),
        ("topicell train data.path=my", ["my cells"]),
        ("topicell compare runs=[a,ce", ["[a,cells.h5ad"]),
        ("topicell nothing ", []),
        ("topicell train 'mo", ["model=", "model."]),
    ],
)
@pytest.mark.parametrize("asked", [["completion", "bash"], ["train", "-sc", "install=bash"]])
def test_bash_completes(line, replies, asked, program):
    Path("cells.h5ad").touch()
    Path("my cells").mkdir()
    script = (
        'eval "$(topicell "${@:2}")"; COMP_LINE=$1 COMP_POINT=${#1}; '
        "COMP_WORDS=(topicell) COMP_CWORD=1; complete -p topicell; _topicell; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    found = subprocess.run(
        ["bash", "-c", script, "_", line, *asked], check=True, capture_output=True, text=True
    )
    registered, *lines = found.stdout.splitlines()
    assert registered == "complete -F _topicell topicell"
    assert [one for one in lines if one] == replies
    assert found.stderr == ""
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["cells.h5ad", "my cells"]


@pytest.mark.extras("zsh")
def test_zsh_reads_the_script(program):
    script = (
        'autoload -U compinit; compinit -D; eval "$(topicell completion zsh)"; '
        "print $_comps[topicell]; which -w _topicell"
    )
    found = subprocess.run(["zsh", "-f", "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["_topicell", "_topicell: function"]


@pytest.mark.extras("fish")
@pytest.mark.parametrize(
    ("line", "replies"),
    [
        ("topicell transf", ["transform"]),
        ("topicell train model.init=", [f"model.init={one.value}" for one in Init]),
        ("topicell train data=file data.path=ce", ["data.path=cells.h5ad"]),
    ],
)
def test_fish_completes(line, replies, program, monkeypatch):
    Path("cells.h5ad").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(Path.cwd().parent))
    script = f'topicell completion fish | source; complete -C "{line}"'
    found = subprocess.run(["fish", "-N", "-c", script], capture_output=True, text=True, check=True)
    assert [one.partition("\t")[0] for one in found.stdout.splitlines()] == replies
