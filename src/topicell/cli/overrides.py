"""Arguments of the command line, rewritten so that text, paths and patterns are literal.

Hydra's grammar reads ``~``, ``^``, ``é``, blanks, brackets and commas as syntax, or not at all. A
setting that holds text is therefore quoted here before Hydra reads it. Three notations keep their
meaning: a value in quotes, an interpolation (``${oc.env:HOME}``), and, with ``-m``, a sweep
(``data.path=a.h5ad,b.h5ad``).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from topicell.config import TrainCommand
from topicell.errors import InputError
from topicell.redaction import without_password

TEXT = ("str", "str | None")
TEXTS = "list[str]"
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
"""Settings of Hydra itself that name a folder; each run or grid has one."""
PATHS = (
    *FOLDERS,
    *("data.path", "data.samples", "report.gene_sets", "resume"),
    *("model.topic_gene_prior", "model.init_topics"),
    *("run", "input", "output", "theta", "beta", "data", "held_out"),
)
"""Settings that name files, of ``train`` and of the other commands."""
PRIOR = "model.topic_gene_prior"
"""A setting of numbers, or of a file or a run."""
NUMBER = re.compile(r"[+-]?[\d_.]+([eE][+-]?\d+)?")
FILES = "data.path"
"""The setting that names the file of the cells, or a list of files."""
ONE_FILE = (FILES, "data", "input")
"""Settings that name the file of the cells; a list of files has brackets and needs `FILES`."""
SWEEP = re.compile(r"(choice|glob|shuffle|sort|range|interval|tag|str)\(.*\)", re.DOTALL)
"""Calls of Hydra's functions that give one setting several values."""
INTERPOLATION = re.compile(
    r"(\\*)\$\{(?!\w+(\.\w+)*:|hydra\.|("
    + "|".join(field.name for field in fields(TrainCommand))
    + r")[.}])"
)
"""``${`` that does not begin a name which OmegaConf can resolve."""
CLOSES = {"(": ")", "[": "]", "{": "}"}


def as_tag(arguments: Sequence[str]) -> str:
    """Return the arguments that identify a grid, without passwords, for its tag in MLflow."""
    own = ("resume=", "hydra.sweep.dir=")
    return " ".join(without_password(a) for a in arguments if not a.startswith(own))


def command_line(name: str, arguments: Sequence[str]) -> str:
    """Return the command that makes one run, as a shell reads it, without passwords.

    Examples
    --------
    >>> command_line("train", ["data.path='my cells.h5ad'", "sweep=topics", "seed=1"])
    "topicell train 'data.path=my cells.h5ad' seed=1"
    """
    pairs = [argument.partition("=") for argument in arguments]
    own = [
        f"{name}{equals}{unquoted(value)}"
        for name, equals, value in pairs
        if name != "resume" and name.partition(".")[0] != "sweep"
    ]
    return shlex.join(["topicell", name, *map(without_password, own)])


def resumes(resume: str | None) -> bool:
    """Return whether a value of ``resume`` asks to resume a run."""
    return str(resume).lower() not in ("none", "null", "false", "")


def kinds(config: Any, prefix: str = "") -> dict[str, str]:
    """Return the type of each setting, as the dataclasses declare it, by dotted name."""
    found: dict[str, str] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= kinds(value, f"{prefix}{field.name}.")
        else:
            # A string where the module of the dataclass imports annotations from __future__.
            kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
            found[f"{prefix}{field.name}"] = kind
    return found


def literal(arguments: Sequence[str], *, multirun: bool) -> list[str]:
    """Return the arguments of ``train`` with text, paths and patterns in Hydra's quotes.

    Raises
    ------
    InputError
        A list is given where one file is needed, or a list has no end.
    """
    known = kinds(TrainCommand()) | dict.fromkeys(FOLDERS, "str")
    return [_literal(argument, known, multirun=multirun) for argument in arguments]


def _literal(argument: str, known: Mapping[str, str], *, multirun: bool) -> str:
    name, equals, value = argument.partition("=")
    setting = name.lstrip("+")
    kind = known.get(setting)
    if not equals or value.strip().lower() in ("", "null"):
        return argument
    if setting == FILES and not _exists(value) and "[" in value:
        return f"{name}={_files(argument, value, multirun=multirun)}"
    if setting == PRIOR:
        return f"{name}={_numbers_or_text(value, multirun=multirun)}"
    if kind in TEXT or setting == FILES:
        return f"{name}={_text(setting, value, multirun=multirun and setting not in FOLDERS)}"
    if kind == TEXTS:
        return f"{name}={_texts(argument, value, multirun=multirun)}"
    return argument


def _text(name: str, value: str, *, multirun: bool) -> str:
    """Quote a text; with ``multirun``, each of several."""
    if multirun and not _exists(value):
        if SWEEP.fullmatch(value):
            return value
        parts = [part.strip() for part in _split(value)]
        if len(parts) > 1:
            return ",".join(quoted(plain(name, part, resolved=True)) for part in parts)
    return quoted(plain(name, value, resolved=True))


def _numbers_or_text(value: str, *, multirun: bool) -> str:
    """Quote a text that is no number and no list of numbers; with ``multirun``, each of several."""
    if SWEEP.fullmatch(value):
        return value
    parts = [part.strip() for part in _split(value)] if multirun and not _exists(value) else [value]
    written = [
        part
        if _inside(part) is not None or NUMBER.fullmatch(part) or part == "null"
        else _text(PRIOR, part, multirun=False)
        for part in parts
    ]
    return ",".join(written)


def _files(argument: str, value: str, *, multirun: bool) -> str:
    """Write a list of files as Hydra's list of quoted ones; with ``multirun``, each of several."""
    parts = [part.strip() for part in _split(value)]
    if len(parts) == 1 or multirun:
        written = []
        for part in parts:
            if _inside(part) is None:
                _require_end(argument, part)
                written.append(_text(FILES, part, multirun=multirun))
                continue
            items = [quoted(plain(FILES, one, resolved=True)) for one in listed(argument, part)]
            written.append(f"[{','.join(items)}]")
        return ",".join(written)
    return _text(FILES, value, multirun=multirun)


def plain(name: str, value: str, *, resolved: bool = False) -> str:
    """Return a text without quotes around it, with ``~`` expanded in paths and ``${`` escaped.

    With `resolved`, interpolations that OmegaConf can resolve are kept, unless a file has exactly
    this name.

    Raises
    ------
    InputError
        The setting takes one file, and the value is a list.
    """
    there = _exists(value)
    if name in ONE_FILE and not there:
        _require_one_file(name, value)
    dollars = INTERPOLATION if resolved and not there else re.compile(r"(\\*)\$\{")
    text = dollars.sub(r"\1\1\\${", value if there else unquoted(value))
    if name not in PATHS or not text.startswith("~"):
        return text
    try:
        home = Path(text).expanduser()
    except RuntimeError:
        # There is no such user: the name of the file begins with ~.
        home = None
    return str(Path(text).absolute() if home is None or Path(value).exists() else home)


def _require_one_file(name: str, value: str) -> None:
    inside = _inside(value)
    parts = [unquoted(part.strip()) for part in _split(value if inside is None else inside)]
    if not any(parts) or (inside is None and (len(parts) < 2 or not all(map(_exists, parts)))):
        return
    if len(parts) == 1:
        raise InputError(f"{name} takes one file, found a list of 1; give {name}={parts[0]}")
    if name == FILES:
        raise InputError(
            f"{name} takes one file or a list in brackets, found {len(parts)} files; to model them "
            f"together, write {name}=[{','.join(parts)}]; for one run of each, topicell train -m "
            f"{name}={','.join(parts)}"
        )
    raise InputError(
        f"{name} takes one file, found a list of {len(parts)}; join them first: "
        "topicell.load_dataset('file', path=files).write_h5ad('all.h5ad')"
    )


def _texts(argument: str, value: str, *, multirun: bool) -> str:
    """Write a list of texts, given in brackets or without, as Hydra's list of quoted ones."""
    value = value.strip()
    if "${" in value or SWEEP.fullmatch(value):
        return value
    parts = [part.strip() for part in _split(value)]
    if len(parts) > 1 and not multirun:
        if any(_inside(part) is not None for part in parts):
            # Hydra's message says that this would be a sweep.
            return value
        parts = [f"[{value}]"]
    written = []
    for part in parts:
        _require_end(argument, part)
        items = [unquoted(part)] if _inside(part) is None else listed(argument, part)
        written.append(f"[{','.join(map(quoted, items))}]")
    return ",".join(written)


def listed(argument: str, value: str) -> list[str]:
    """Return the items of a list of texts, which may go without its brackets.

    Raises
    ------
    InputError
        The list begins and has no end.
    """
    inside = _inside(value)
    _require_end(argument, value)
    parts = _split(value if inside is None else inside, depth=1)
    return [unquoted(part.strip()) for part in parts if part.strip()]


def _require_end(argument: str, value: str) -> None:
    if value.startswith("[") and "]" not in value:
        name = argument.partition("=")[0]
        raise InputError(
            f"{name} = {value!r}: the list has no closing bracket; write {name}=[A,B] without "
            "spaces, or in quotes"
        )


def _inside(value: str) -> str | None:
    """Return the text between the brackets of a list; None if it is no list.

    ``[mM][tT]`` is a pattern: its first bracket ends before the last.
    """
    if not (value.startswith("[") and value.endswith("]") and len(value) > 1):
        return None
    inside = value[1:-1]
    return inside if len(_split(inside, at="]", depth=1)) == 1 else None


def _split(text: str, at: str = ",", depth: int = 2) -> list[str]:
    r"""Split at a character, except within quotes and brackets.

    Square brackets nest up to `depth`: those of a list, then those of a pattern. Within a pattern's
    brackets, and after ``\``, all other brackets are plain characters.
    """
    parts, begin, i = [], 0, 0
    ends: list[str] = []
    while i < len(text):
        one = text[i]
        first = not text[begin:i].strip()
        if one == "\\":
            i += 1
        elif first and one in "'\"" and (end := _end_of_quoted(text, i)) is not None:
            i = end
        elif ends and one == ends[-1]:
            ends.pop()
        elif one in CLOSES and ends.count("]") < depth:
            ends.append(CLOSES[one])
        elif one == at and not ends:
            parts.append(text[begin:i])
            begin = i + 1
        i += 1
    return [*parts, text[begin:]]


def _end_of_quoted(text: str, begin: int) -> int | None:
    """Return where a quoted value ends; None if it does not."""
    found = re.compile(rf"(?:\\.|[^\\{text[begin]}])*{text[begin]}", re.DOTALL).match(
        text, begin + 1
    )
    return found.end() - 1 if found else None


def quoted(text: str) -> str:
    """Return a text in the quotes of Hydra's grammar."""
    # Backslashes count only before a quote.
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + (r"\'" if m[2] else ""), text)
    return f"'{escaped}'"


def unquoted(text: str) -> str:
    """Return a value without the quotes around it, if it has them."""
    if len(text) < 2 or text[0] not in "'\"" or _end_of_quoted(text, 0) != len(text) - 1:
        return text
    quote = text[0]
    return re.sub(rf"(\\+)({quote}|\Z)", lambda m: m[1][: len(m[1]) // 2] + m[2], text[1:-1])


def _exists(value: str) -> bool:
    try:
        return bool(value) and (Path(value).exists() or Path(value).expanduser().exists())
    except (OSError, ValueError, RuntimeError):
        # It cannot be the name of a file; the code that opens it says why.
        return False
