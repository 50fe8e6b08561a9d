"""The entry point: help, version, exit codes, and the table of commands."""

import subprocess
import sys

import pytest

from topicell.cli.main import COMMANDS

TOY = """
from dataclasses import dataclass, field

from topicell.cli.command import Command
from topicell.cli.options import read
from topicell.config import TrackingConfig
from topicell.errors import InputError


@dataclass
class ToyCommand:
    \"\"\"Count the letters of word=TEXT.\"\"\"

    word: str = "???"
    times: int = 1
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def toy(arguments):
    asked = read(COMMAND, arguments)
    if not asked.tracking.enabled:
        print("off")
    if not asked.word:
        raise InputError("word = '': give a word of one letter or more")
    print(asked.times * len(asked.word))


COMMAND = Command(
    name="toy",
    summary="count the letters of a word",
    examples=(("topicell toy word=abc", "prints 3"),),
    settings=ToyCommand,
    function=toy,
)
"""


def test_help_and_version(topicell):
    answer = subprocess.run(
        [sys.executable, "-m", "topicell", "--help"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in answer.stdout
        assert f"\n              topicell {command}" in answer.stdout
    assert topicell("--version").stdout.startswith("topicell ")
    assert topicell().returncode == 2


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["evaluate", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    program = """
import sys
from topicell.cli import main

try:
    main(sys.argv[1:])
except SystemExit as exit_:
    assert exit_.code == 0
heavy = {"torch", "pyro", "scanpy", "anndata", "mlflow", "pandas", "matplotlib", "numpy"}
heavy |= {"hydra", "omegaconf", "yaml"}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program, *arguments], check=True)


def test_help_of_a_command_lists_its_settings(topicell):
    answer = topicell("transform", "--help")
    assert answer.returncode == 0
    assert "fill_missing=False" in answer.stdout


def test_a_command_is_one_file_and_one_row(tmp_path, monkeypatch, run_here):
    (tmp_path / "toy_command.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "toy", "toy_command")
    code, out, _ = run_here("--help")
    assert code == 0
    lines = out.splitlines()
    row = lines.index("  toy         count the letters of a word")
    assert lines[row + 1].split() == ["topicell", "toy", "word=abc", "prints", "3"]
    code, out, _ = run_here("toy", "--help")
    assert code == 0
    assert out.startswith("topicell toy: Count the letters of word=TEXT.\n")
    assert "\n  word=\n  times=1\n" in out
    assert run_here("toy", "word=three", "times=2", "tracking=off") == (0, "off\n10\n", "")
    for argument, words in (
        ("word=", "word = '': give a word of one letter or more"),
        ("word", "'word': write settings as NAME=VALUE"),
        ("times=1", "word has no value; give word=VALUE"),
        ("times=many", "times: Value 'many' of type 'str' could not be converted to Integer"),
        ("wird=a", "'wird' is not a setting; did you mean 'word'? topicell toy --help lists all"),
    ):
        assert run_here("toy", argument) == (2, "", f"topicell: {words}\n")
    _, _, err = run_here("toi")
    assert err == "topicell: 'toi' is not a command; did you mean 'toy'?\n"


def test_an_interrupt_in_a_weakref_callback_ends_the_command():
    program = """
import dataclasses, time, weakref
from topicell.cli import main, report

class Collected: pass

def interrupt(_): raise KeyboardInterrupt

def command(arguments):
    held = Collected()
    reference = weakref.ref(held, interrupt)
    del held
    time.sleep(60)

report.COMMAND = dataclasses.replace(report.COMMAND, function=command)
main(["report"])
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert (answer.returncode, answer.stderr) == (130, "topicell: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "did you mean 'train'"),
        (["transform", "run=x"], "has no value"),
        (["transform", "run=x", "input=a", "output=b.txt"], ".h5ad or .csv"),
        (["transform", "run=x", "input=a", "out=b.csv"], "'out' is not a setting"),
        (["report", "somewhere"], "NAME=VALUE"),
        (["report", "run=nowhere"], "does not exist:"),
        (["ui"], "does not exist:"),
        (["ui", "port=abc"], "port: Value 'abc'"),
    ],
    ids=lambda value: " ".join(value[:2] + value[-1:]) if isinstance(value, list) else "",
)
def test_bad_settings_end_with_code_2_and_one_line(arguments, words, run_here):
    code, _, err = run_here(*arguments)
    assert code == 2, err
    lines = [line for line in err.strip().splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith("topicell: ")
    assert words in lines[0]
    assert "Traceback" not in err


def test_warnings_of_a_run_are_printed_with_its_scores(tmp_path, capsys):
    from topicell.cli.output import print_result
    from topicell.tracking.record import Record

    Record(name="run").write(tmp_path)
    (tmp_path / "summary.md").write_text("**10 topics**\n\n- Near copies\n- Two are hardly used\n")
    print_result({"topics/used": 9.0, "topics/stability": 0.9}, tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed[:2]] == [
        ["Topics", "in", "use", "9", "topics"],
        ["Stability", "0.9", "mean", "cosine"],
    ]
    assert printed[2:4] == ["warning     Near copies", "warning     Two are hardly used"]
