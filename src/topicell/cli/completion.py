"""``topicell completion``: print the script that makes a shell complete commands and settings.

The script asks ``topicell completion query=SHELL`` what can come next; nothing heavy is imported
for the answer. Settings and their values come from the dataclasses and the folder of configuration
groups. Hydra's own completion, which imports Hydra, gives the names of Hydra's settings and the
current values of settings of ``topicell train``.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

from topicell.cli import terminal
from topicell.cli.command import NO_DEFAULT, Command, conf_folder
from topicell.cli.overrides import PATHS, TEXTS, kinds
from topicell.config import TrainCommand
from topicell.errors import InputError

BASH = """\
_topicell() {
    local program=${COMP_WORDS[0]/#\\~/$HOME} IFS=$'\\n' answer before path
    answer=($(COMP_LINE=${COMP_LINE:0:$COMP_POINT} COMP_WORDBREAKS=$COMP_WORDBREAKS \\
        "$program" completion query=bash 2> /dev/null))
    COMPREPLY=()
    if [[ ${answer[0]} == files$'\\x1f'* ]]; then
        IFS=$'\\x1f' read -r _ before path <<< "${answer[0]}"
        [[ -n $before ]] || compopt -o filenames 2> /dev/null
        COMPREPLY=($(compgen -f -P "$before" -- "$path"))
        return
    fi
    COMPREPLY=("${answer[@]}")
    [[ ${answer[0]} != *[=./] ]] || compopt -o nospace 2> /dev/null
}
complete -F _topicell topicell
"""
ZSH = """\
#compdef topicell
_topicell() {
    local -a answer parts whole open
    local one
    answer=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" \\
        "${(e)~words[1]}" completion query=zsh 2> /dev/null)}")
    if [[ $answer[1] == files$'\\x1f'* ]]; then
        compset -P '*[=,\\[]'
        _files
        return
    fi
    for one in $answer; do
        parts=("${(@ps:\\t:)one}")
        one="${parts[1]//:/\\\\:}${parts[2]:+:$parts[2]}"
        if [[ $parts[1] == *[=./] ]]; then open+=("$one"); else whole+=("$one"); fi
    done
    _describe -t names topicell open -S '' -- whole
}
(( $+functions[compdef] )) || { autoload -U compinit && compinit -D; }
compdef _topicell topicell
"""
FISH = """\
function __topicell_complete
    set -lx COMP_LINE (commandline -cp)
    set -l program (commandline -opc)[1]
    set -l answer ($program completion query=fish 2> /dev/null)
    if string match -q files\\x1f'*' -- "$answer[1]"
        set -l parts (string split \\x1f -- $answer[1])
        for path in (__fish_complete_path $parts[3])
            printf '%s%s\\n' $parts[2] $path
        end
        return
    end
    printf '%s\\n' $answer
end
complete -c topicell -e
complete -c topicell -f -a '(__topicell_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
REMOVED = {
    "bash": "complete -r topicell\nunset -f _topicell\n",
    "zsh": "compdef -d topicell\nunfunction _topicell\n",
    "fish": "complete -c topicell -e\nfunctions -e __topicell_complete\n",
}
HYDRAS = ("-sc", "--shell-completion")
"""Options of Hydra that ask for a script, as in ``topicell train -sc install=bash``."""
FILES = "files"
"""First word of an answer that leaves the names of files to the shell."""
SEPARATOR = "\x1f"
"""Between the parts of that answer: unlike a blank, shells keep it where a part is empty."""
PREFIXES = "+~"
"""Characters before the name of a setting in Hydra's grammar."""
PARAMS = "sweep.params."
"""Before the name of a setting that is searched."""
HELP = """\
topicell completion: Print the script that makes a shell complete commands, settings and values.

  eval "$(topicell completion bash)"                in ~/.bashrc
  eval "$(topicell completion zsh)"                 in ~/.zshrc
  topicell completion fish | source                 in ~/.config/fish/config.fish
"""


@dataclass(frozen=True, slots=True)
class Match:
    """What can come at the end of a command line, instead of its last word."""

    text: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """A file can come there: the text before its name, and the beginning of its name."""

    before: str
    path: str


def completion(arguments: list[str]) -> None:
    """Print the script of a shell, or answer its question."""
    if arguments in (["-h"], ["--help"]):
        print(HELP, "", terminal.OPTIONS_HELP, sep="\n", end="")
        return
    if len(arguments) != 1:
        raise InputError(f"name one shell: topicell completion {'|'.join(SCRIPTS)}")
    verb, _, shell = arguments[0].rpartition("=")
    if shell not in SCRIPTS or verb not in ("", "install", "uninstall", "query"):
        raise InputError(f"{arguments[0]!r}: the shell must be one of {', '.join(SCRIPTS)}")
    if verb == "query":
        for line in answer(shell, os.environ):
            print(line)
    else:
        print((REMOVED if verb == "uninstall" else SCRIPTS)[shell], end="")


def answer(shell: str, environment: Mapping[str, str]) -> list[str]:
    """Return the lines that answer the script of a shell; none if nothing is known.

    Bash replaces only what is after the last of its word breaks, such as ``=``, and gets only that.
    """
    try:
        before, word = split(environment.get("COMP_LINE", ""))
        found = matches(before, word)
    except Exception:
        # The user is typing: whatever it is, the command itself will say it.
        return []
    cut = ""
    if shell == "bash":
        breaks = environment.get("COMP_WORDBREAKS", " \t\n\"'><=;|&(:")
        cut = word[: max((word.rfind(one) for one in breaks), default=-1) + 1]
    if isinstance(found, File):
        return [SEPARATOR.join([FILES, found.before.removeprefix(cut), found.path])]
    if shell == "bash":
        return [one.text.removeprefix(cut) for one in found]
    return [f"{one.text}\t{one.meaning}".rstrip() for one in found]


def split(line: str) -> tuple[list[str], str]:
    """Return the words after the name of the program, and the last one, which is not finished."""
    for end in ("", '"', "'"):
        # A quoted word may have no end yet.
        with contextlib.suppress(ValueError):
            words = shlex.split(line + end)
            break
    else:
        words = line.split()
    if not line or line[-1].isspace():
        words.append("")
    return words[1:-1], words[-1]


def matches(before: Sequence[str], word: str) -> list[Match] | File:
    """Return what the last word of a command line can become.

    Parameters
    ----------
    before
        The words between the name of the program and this one.
    word
        What is written of the word.
    """
    from topicell.cli.main import COMMANDS, HELP_FLAGS, load

    options = [*terminal.OPTIONS, *HELP_FLAGS]
    words, _ = terminal.without_options(before)
    if not words:
        if word.startswith("-"):
            return _beginning([*options, "--version"], word)
        return [Match(name, load(name).summary) for name in COMMANDS if name.startswith(word)]
    name, *arguments = words
    if name not in COMMANDS:
        return []
    if name == "train":
        return _of_train(arguments, word, options)
    if word.startswith("-"):
        return _beginning(options, word)
    if name == COMMAND.name:
        return _beginning(SCRIPTS, word)
    settings = load(name).settings
    return [] if settings is None else of_settings(settings(), word, {})


def _of_train(arguments: Sequence[str], word: str, options: Sequence[str]) -> list[Match] | File:
    """Return what an argument of ``topicell train`` can become."""
    if word.startswith("-") or (arguments and arguments[-1].startswith("-")):
        of_option = _of_hydras_options(arguments, word, options)
        if of_option is not None:
            return of_option
    groups = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in conf_folder().iterdir()
        if folder.is_dir()
    }
    prefix = word[: len(word) - len(word.lstrip(PREFIXES))]
    written = word[len(prefix) :]
    if written.startswith(PARAMS):
        prefix, written = prefix + PARAMS, written.removeprefix(PARAMS)
    if "," in written and not {"-m", "--multirun"}.isdisjoint(arguments):
        # The last of several values.
        name, _, values = written.partition("=")
        done, _, value = values.rpartition(",")
        several = of_settings(TrainCommand(), f"{name}={value}", groups)
        if isinstance(several, File):
            return File(f"{prefix}{name}={done},", several.path)
        return [Match(f"{prefix}{name}={done},{one.text.partition('=')[2]}") for one in several]
    if written.startswith(("hydra.", "hydra/")):
        return [Match(text) for text in hydras_own(arguments, word)]
    found = of_settings(TrainCommand(), written, groups)
    if isinstance(found, File):
        return File(prefix + found.before, found.path)
    if "=" in written and written.endswith("=") and len(found) < 2:
        # The current value may come from a group that was chosen before.
        current = hydras_own(arguments, word)
        return [Match(text) for text in current if not text.endswith("=None")]
    if not written or "hydra".startswith(written):
        found += [Match("hydra.", "settings of Hydra"), Match("hydra/", "groups of Hydra")]
    return [Match(prefix + one.text, one.meaning) for one in found]


def of_settings(config: Any, word: str, groups: Mapping[str, Sequence[str]]) -> list[Match] | File:
    """Return what the name or the value of a setting can become.

    Parameters
    ----------
    config
        The settings of a command, with their defaults.
    word
        What is written of NAME=VALUE.
    groups
        Groups whose name takes a value, the name of one of their files.
    """
    name, equals, value = word.partition("=")
    defaults = dict(_defaults(config))
    if not equals:
        return _names(name, defaults, groups)
    if name in groups:
        return _beginning([f"{name}={one}" for one in groups[name]], word)
    if name in ("report", "tracking") and f"{name}.enabled" in defaults:
        return _beginning([f"{name}=off"], word)
    if name not in defaults:
        return []
    kind, default = kinds(config)[name], defaults[name]
    if kind == TEXTS:
        # Lists of runs are mostly lists of folders.
        start = max(value.rfind("["), value.rfind(",")) + 1
        return File(f"{name}={value[:start]}", value[start:])
    if name in PATHS:
        return File(f"{name}=", value)
    if isinstance(default, bool):
        values = ["true", "false"]
    elif isinstance(default, Enum):
        values = [str(member.value) for member in type(default)]
    else:
        values = [] if default in (None, NO_DEFAULT) else [str(default)]
    return _beginning([f"{name}={one}" for one in values], word)


def _names(
    written: str, defaults: Mapping[str, Any], groups: Mapping[str, Sequence[str]]
) -> list[Match]:
    """Return the names that begin so, up to the next dot."""
    found = {f"{name}=": "" for name in groups if name.startswith(written)}
    for name, default in defaults.items():
        if not name.startswith(written):
            continue
        inner, dot, _ = name[len(written) :].partition(".")
        if dot:
            found.setdefault(f"{written}{inner}.", "")
        else:
            found[f"{name}="] = _shown(default)
    return [Match(text, meaning) for text, meaning in found.items()]


def _shown(default: Any) -> str:
    if default in (None, "", NO_DEFAULT) or isinstance(default, (list, dict)):
        return ""
    value = default.value if isinstance(default, Enum) else default
    return f"default {str(value).lower() if isinstance(value, bool) else value}"


def _defaults(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a dataclass by their dotted names, with their defaults as they are."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _defaults(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def _beginning(texts: Sequence[str] | Mapping[str, Any], word: str) -> list[Match]:
    return [Match(text) for text in texts if text.startswith(word)]


def _of_hydras_options(
    arguments: Sequence[str], word: str, options: Sequence[str]
) -> list[Match] | None:
    """Return Hydra's options, or the values of the one before; None if that has none."""
    from hydra._internal.utils import get_args_parser

    actions = get_args_parser()._actions
    if word.startswith("-"):
        names = [name for action in actions for name in action.option_strings]
        return _beginning(list(dict.fromkeys([*options, *names])), word)
    for action in actions:
        if action.option_strings and arguments[-1] in action.option_strings and action.choices:
            return _beginning([str(one) for one in action.choices], word)
    return None


def hydras_own(arguments: Sequence[str], word: str) -> list[str]:
    """Return what Hydra's own completion answers: it composes the configuration."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    Plugins.instance()
    ConfigStore.instance().store(name="train_command", node=TrainCommand)
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_folder())))
    # It splits the line at blanks, also within quotes.
    line = [one for one in arguments if not any(map(str.isspace, one))]
    found = DefaultCompletionPlugin(loader)._query("config", " ".join([*line, word]))
    return [text for text in found if text.startswith(word) and PurePath(text).name]


def asked_by_hydra(arguments: Sequence[str]) -> list[str] | None:
    """Return the arguments of this command that do what ``-sc …`` asks for; None without it."""
    for place, argument in enumerate(arguments):
        if argument in HYDRAS:
            return [*arguments[place + 1 : place + 2]]
    return None


COMMAND = Command(
    name="completion",
    summary="print the script that makes a shell complete commands and settings",
    examples=(("topicell completion bash", "or zsh, fish; --help says where to put it"),),
    settings=None,
    function=completion,
)
