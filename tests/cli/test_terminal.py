"""How much commands write to the terminal, and in which colours."""

import logging
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from topicell import progress
from topicell.cli import terminal
from topicell.cli.terminal import Verbosity, colours, styled, without_options
from topicell.progress import Shown

ESCAPE = "\x1b["


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", terminal.VERBOSITY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def in_terminal(*arguments, **environment):
    """Run the command line in a pseudo terminal; return its exit code and what it shows."""
    ours, theirs = pty.openpty()
    # A new one has no width, and shows no bars.
    termios.tcsetwinsize(theirs, (30, 120))
    process = subprocess.Popen(
        [sys.executable, "-m", "topicell", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | environment,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the last of its processes has ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(60), shown.decode()


def test_options_are_removed_wherever_they_are():
    arguments = ["-q", "train", "--verbose", "a=b", "-v"]
    assert without_options(arguments) == (["train", "a=b"], Verbosity.verbose)
    assert without_options(["train"]) == (["train"], None)


def test_the_state_ends_with_the_command(capsys):
    before = progress.shown()
    with terminal.used(Verbosity.quiet):
        assert terminal.is_quiet()
        assert progress.shown() is Shown.nothing
        # Worker processes read it.
        assert os.environ[terminal.VERBOSITY] == "quiet"
        with terminal.used(None):
            assert terminal.is_quiet()
    assert terminal.VERBOSITY not in os.environ
    assert progress.shown() is before
    assert not logging.getLogger("topicell").handlers


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (Verbosity.quiet, ["error: e"]),
        (None, ["p", "warning: w", "error: e"]),
        (Verbosity.verbose, ["[] pd", "[] p", "[] d", "[] i", "warning: w", "error: e"]),
    ],
)
def test_what_of_the_log_is_shown(asked, shown, capsys):
    with terminal.used(asked):
        steps, log = logging.getLogger("topicell.progress"), logging.getLogger("topicell.run")
        steps.debug("pd")
        steps.info("p")
        log.debug("d")
        log.info("i")
        log.warning("w")
        log.error("e")
    err = re.sub(r"\[[\d:]+\]", "[]", capsys.readouterr().err)
    assert err.splitlines() == shown


def test_worker_processes_show_warnings_only(capsys):
    with terminal.used(Verbosity.verbose):
        progress.show(Shown.nothing)
        logging.getLogger("topicell.progress").info("p")
        logging.getLogger("topicell.run").warning("w")
    assert capsys.readouterr().err == "warning: w\n"


def test_a_run_is_quiet_but_its_log_is_not(topicell, small):
    # Too few variable genes: a warning.
    arguments = ["train", *small, "tracking=off", "report=off", "preprocess.n_variable_genes=100"]
    quiet = topicell(*arguments, "-q", "hydra.run.dir=quiet")
    assert quiet.returncode == 0, quiet.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == "run folder  quiet\n"
    assert "only 57 genes passed the filters" in Path("quiet/topicell.log").read_text()
    plain = topicell(*arguments, "hydra.run.dir=plain")
    assert "warning: preprocess.n_variable_genes = 100" in plain.stderr
    assert "Perplexity of test cells" in plain.stdout
    assert "took" not in Path("plain/topicell.log").read_text()
    verbose = topicell("--verbose", *arguments, "hydra.run.dir=verbose")
    for text in (verbose.stderr, Path("verbose/topicell.log").read_text()):
        assert re.search(r"\] (DEBUG )?fit took \d+\.\d\d s", text)
        assert re.search(r"\] (DEBUG )?measures took \d+\.\d\d s", text)
    results = [
        Path(name, "topics", "gene_topics.csv").read_bytes()
        for name in ("quiet", "plain", "verbose")
    ]
    assert results[0] == results[1] == results[2]


def test_a_quiet_grid_prints_its_folders_only(topicell, small):
    answer = topicell(
        *("train", "-m", "--quiet", *small, "tracking=off", "report=off", "seed=0,1"),
        "hydra.sweep.dir=grid",
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines() == ["run folder  grid/0", "run folder  grid/1"]
    assert answer.stderr == ""


def test_errors_of_quiet_commands_are_shown(run_here):
    code, out, err = run_here("train", "-q", "model.n_topic=3")
    assert (code, out) == (2, "")
    assert err.startswith("topicell: 'model.n_topic' is not a setting")


def test_help_names_the_options(run_here, topicell):
    for arguments in (["--help"], ["report", "--help"], ["completion", "--help"]):
        assert "-q, --quiet" in run_here(*arguments)[1]
    assert "-v, --verbose" in topicell("train", "--help").stdout


def test_colours_are_for_terminals(monkeypatch):
    class Stream:
        def __init__(self, terminal):
            self.isatty = lambda: terminal

    assert colours(Stream(True))
    assert not colours(Stream(False))
    assert styled("a", terminal.RED, Stream(False)) == "a"
    assert styled("a", terminal.RED, Stream(True)) == "\x1b[1;31ma\x1b[0m"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert colours(Stream(False))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colours(Stream(True))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.delenv("FORCE_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not colours(Stream(True))


def test_output_that_is_piped_has_no_escapes(topicell, small):
    answer = topicell("train", *small, "tracking=off", "report=off", "hydra.run.dir=run")
    assert answer.returncode == 0
    assert "\x1b" not in answer.stdout + answer.stderr
    answer = topicell("train", "nothing=1")
    assert answer.stderr.startswith("topicell: ")
    answer = topicell("train", "nothing=1", env={"FORCE_COLOR": "1"})
    assert answer.stderr.startswith("\x1b[1;31mtopicell:\x1b[0m ")


def test_errors_in_a_terminal_are_coloured():
    code, shown = in_terminal("repot")
    assert code == 2
    assert shown.startswith("\x1b[1;31mtopicell:\x1b[0m 'repot' is not a command")
    code, shown = in_terminal("repot", NO_COLOR="1")
    assert shown.startswith("topicell: 'repot'")
    assert ESCAPE not in shown


@pytest.mark.slow
def test_a_run_in_a_terminal_shows_bars_and_colours(small):
    arguments = ["train", *small, "tracking=off", "report=off", "train.epochs=40"]
    code, shown = in_terminal(*arguments, "train.progress=true")
    assert code == 0
    assert f"{ESCAPE}1m" in shown
    assert re.search(r"fit 40/40 epochs .* left, ELBO", shown)
    code, shown = in_terminal(*arguments, "-q", "train.progress=true")
    assert re.fullmatch(r"run folder  \S+\r\n", shown)
