"""The reference: Python, commands, settings and named configurations, read from the code."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
import textwrap
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any, get_type_hints

from docutils import nodes

import topicell
from extension.pages import DOCS, ROOT, write
from topicell.cli.command import NO_DEFAULT, Command
from topicell.cli.main import COMMANDS
from topicell.cli.main import load as load_command
from topicell.config import TrainCommand, as_dict
from topicell.model.fit import TopicFit
from topicell.model.posterior import AmortizedFit

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

PAGES = DOCS / "reference"
TYPES = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "list[str]": "list of texts",
    "dict[str, str]": "texts by name",
    "Any": "see below",
}
EXTERNAL = {
    "anndata.AnnData": "https://anndata.readthedocs.io/en/stable/generated/anndata.AnnData.html",
    "pandas.DataFrame": "https://pandas.pydata.org/docs/reference/api/pandas.DataFrame.html",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "scipy.sparse.csr_matrix": (
        "https://docs.scipy.org/doc/scipy/reference/generated/scipy.sparse.csr_matrix.html"
    ),
    "pathlib.Path": "https://docs.python.org/3/library/pathlib.html#pathlib.Path",
    "collections.abc.Mapping": "https://docs.python.org/3/glossary.html#term-mapping",
    "collections.abc.Sequence": "https://docs.python.org/3/glossary.html#term-sequence",
}
"""Addresses of types of other packages: the build needs no network to resolve them."""
ALIASES = {
    "AnnData": "anndata.AnnData",
    "Path": "pathlib.Path",
    "np.ndarray": "numpy.ndarray",
    "pd.DataFrame": "pandas.DataFrame",
    "sp.csr_matrix": "scipy.sparse.csr_matrix",
    "scipy.sparse._csr.csr_matrix": "scipy.sparse.csr_matrix",
}
"""Other names of these types in signatures."""
BUILTIN = ("TypeError", "UserWarning", "ValueError")


# --- text -----------------------------------------------------------------------------------------


def title(text: str, line: str = "=") -> str:
    """Return a heading in reStructuredText."""
    return f"{text}\n{line * len(text)}\n"


def block(text: str, indent: int = 3) -> str:
    """Return an indented text."""
    return textwrap.indent(text, " " * indent)


def code(language: str, text: str) -> str:
    """Return a block of code in reStructuredText."""
    return f".. code-block:: {language}\n\n{block(text)}\n"


# --- settings -------------------------------------------------------------------------------------


def field_texts(config: type) -> dict[str, str]:
    """Return the text below each field of a class, also of an enumeration, and of its bases."""
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if not (base.__module__.startswith("topicell") and inspect.isclass(base)):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in pairwise(tree.body):
            name = field.target if isinstance(field, ast.AnnAssign) else None
            if isinstance(field, ast.Assign):
                (name,) = field.targets
            value = text.value if isinstance(text, ast.Expr) else None
            if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                texts[name.id] = inspect.cleandoc(str(value.value))
    return texts


def groups(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each dataclass of settings with the name of its group; that of all has none."""
    yield name, config
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from groups(value, f"{name}.{field.name}".lstrip("."))


SETTINGS = {
    f"{group}.{field.name}".lstrip("."): (config, field)
    for group, config in groups(TrainCommand())
    for field in fields(config)
    if not is_dataclass(getattr(config, field.name))
}
"""Dataclass and field of each setting of ``topicell train``."""
GROUP_OF = {type(config).__name__: group for group, config in groups(TrainCommand())}


def with_roles(text: str, group: str) -> str:
    """Return the text of a setting with links: ```name``` is a setting of this group or another."""

    def role(found: re.Match[str]) -> str:
        name = found[1]
        owner, _, last = name.rpartition(".")
        owner = GROUP_OF.get(owner.removeprefix("topicell.config."), owner)
        for setting in (f"{owner}.{last}".lstrip("."), f"{group}.{name}".lstrip(".")):
            if setting in SETTINGS:
                return f":confval:`{setting}`"
        return f"``{name}``"

    return re.sub(r"(?<!`)`([^`]+)`(?!`)", role, text)


def value_of(value: Any) -> str:
    """Return a value as it is written on the command line."""
    value = as_dict(value)
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    written = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return written[value]
    return "{}" if value == {} else str(value)


def kind_of(config: Any, field: Field[Any]) -> str:
    """Return the type of a setting in words."""
    hint = get_type_hints(type(config))[field.name]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(f"``{member.value}``" for member in hint)
    parts = [part.strip() for part in str(field.type).split("|")]
    return " or ".join(TYPES.get(part, "null" if part == "None" else part) for part in parts)


def meaning(config: Any, field: Field[Any], group: str) -> str:
    """Return what a setting means: its text, and its choices.

    Raises
    ------
    ValueError
        There is no text below the field.
    """
    hint = get_type_hints(type(config))[field.name]
    text = field_texts(type(config)).get(field.name, "")
    paragraphs = [text] if text else []
    if isinstance(hint, type) and issubclass(hint, Enum):
        paragraphs = paragraphs or [inspect.cleandoc(hint.__doc__ or "")]
        known = field_texts(hint)
        choices = [f"- ``{m.value}``: {known[m.name]}" for m in hint if m.name in known]
        paragraphs.append("\n".join(line.replace("\n", "\n  ") for line in choices))
    if not paragraphs:
        where = f"{type(config).__module__}.{type(config).__name__}"
        raise ValueError(f"{where}.{field.name} has no text below it that says what it means")
    return with_roles("\n\n".join(filter(None, paragraphs)), group)


def described(config: Any, field: Field[Any], group: str) -> Iterator[str]:
    """Yield what is below the name of a setting: its type, bounds and default, and its meaning."""
    value, facts = getattr(config, field.name), [kind_of(config, field)]
    if (bounds := field.metadata.get("bounds")) is not None:
        facts.append(bounds.sentence.removeprefix("must be ").removeprefix("a whole number "))
    facts.append("no default" if value == NO_DEFAULT else f"default ``{value_of(value)}``")
    line = "; ".join(facts)
    yield block(f"{line[:1].upper()}{line[1:]}.\n")
    yield block(meaning(config, field, group)) + "\n"


def settings_page() -> str:
    """Return the page of all settings of ``topicell train``."""
    parts = [
        title("All settings"),
        "This page has every setting of ``topicell train``, with its default, its bounds and its\n"
        "meaning, as in the code. ``topicell train --cfg job`` prints them with their values.\n"
        ":doc:`../settings` has those that are changed most often, and says how to write them.\n",
    ]
    for group, config in groups(TrainCommand()):
        parts.append(f".. _settings-{type(config).__name__}:\n")
        if group:
            parts.append(title(group, "-" if "." not in group else "~"))
        else:
            parts.append(title("Settings without a group", "-"))
        parts.append(with_roles(inspect.cleandoc(type(config).__doc__ or ""), group) + "\n")
        for field in fields(config):
            name = f"{group}.{field.name}".lstrip(".")
            if name in SETTINGS:
                parts += [f".. confval:: {name}\n", *described(config, field, group)]
    return "\n".join(parts)


# --- commands -------------------------------------------------------------------------------------


def options(name: str, config: Any, group: str = "") -> Iterator[str]:
    """Yield the description of each setting of a command."""
    if not group:
        yield f".. program:: topicell {name}\n"
    shared = []
    of_train = {type(one) for _, one in groups(TrainCommand())}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and type(value) not in of_train:
            yield from options(name, value, f"{field.name}.")
            continue
        if is_dataclass(value):
            other = [
                f"``{field.name}.{f.name}={value_of(getattr(value, f.name))}``"
                for f in fields(value)
                if getattr(value, f.name) != getattr(type(value)(), f.name)
            ]
            differs = f" (with {', '.join(other)} as the default)" if other else ""
            shared.append(f":ref:`{field.name} <settings-{type(value).__name__}>`{differs}")
            continue
        yield f".. option:: {group}{field.name}\n"
        yield from described(config, field, "")
    if shared:
        yield f"Settings of these groups are as in ``topicell train``: {', '.join(shared)}.\n"


def command_section(name: str, command: Command, line: str) -> Iterator[str]:
    """Yield the section of a command, or of one of its forms, with the line under its title."""
    width = max(len(written) for written, _ in command.examples) + 2
    examples = "\n".join(
        f"{written:<{width}}{'# ' * bool(remark)}{remark}".rstrip()
        for written, remark in command.examples
    )
    yield f".. _command-{name.replace(' ', '-')}:\n"
    yield title(f"topicell {name}", line)
    yield f"{command.summary[:1].upper()}{command.summary[1:]}.\n"
    yield code("bash", examples)
    if command.settings is not None:
        yield with_roles(inspect.cleandoc(command.settings.__doc__ or ""), "") + "\n"
        yield from options(name, command.settings())


def help_of(command: Command) -> str:
    """Return what a command without settings prints for ``--help``."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        command.function(["--help"])
    return printed.getvalue().rstrip()


def commands_page() -> str:
    """Return the page of all commands."""
    parts = [
        title("All commands"),
        "Settings are written as ``NAME=VALUE``. ``topicell COMMAND --help`` prints the same.\n"
        ":doc:`../commands` has examples of all commands, and the exit codes.\n",
    ]
    for name, module in COMMANDS.items():
        command = load_command(name)
        parts += command_section(name, command, "-")
        if name == "train":
            parts.append(
                "Its settings are on the page :doc:`settings`, named sets of them on the page\n"
                ":doc:`configurations`.\n"
            )
        elif command.settings is None:
            parts.append(code("text", help_of(command)))
        # A command of several forms has a table of them.
        for form, row in getattr(import_module(module), "FORMATS", {}).items():
            parts += command_section(f"{name} {form}", row, "~")
    return "\n".join(parts)


# --- named configurations -------------------------------------------------------------------------


def configurations_page() -> str:
    """Return the page of the files of conf/."""
    import yaml

    conf = ROOT / "conf"
    chosen: dict[str, Any] = {}
    for entry in yaml.safe_load((conf / "config.yaml").read_text("utf-8"))["defaults"]:
        chosen |= entry if isinstance(entry, dict) else {}
    parts = [
        title("Named configurations"),
        "``GROUP=NAME`` on the command line of ``topicell train`` sets several settings at once.\n"
        "Each file below has the settings that it changes; all others keep their\n"
        ":doc:`defaults <settings>`, and settings on the command line come last.\n"
        "``GROUP=null`` uses no configuration of a group.\n",
    ]
    for group in sorted(path for path in conf.iterdir() if path.is_dir()):
        parts.append(title(group.name, "-"))
        for file in sorted(group.glob("*.yaml")):
            default = " (default)" if chosen.get(group.name) == file.stem else ""
            text = file.read_text("utf-8").removeprefix("# @package _global_\n").rstrip()
            parts += [f"``{group.name}={file.stem}``{default}\n", code("yaml", text)]
    return "\n".join(parts)


# --- Python ---------------------------------------------------------------------------------------


def own_methods() -> list[str]:
    """Return the methods of topicell's own models that other fits do not have."""
    return [
        name
        for name, value in vars(AmortizedFit).items()
        if not name.startswith("_") and inspect.isfunction(value) and not hasattr(TopicFit, name)
    ]


def python_pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page about the public names."""
    public = {name: getattr(topicell, name) for name in topicell.__all__}
    classes = [
        name
        for name, value in public.items()
        if inspect.isclass(value) and not issubclass(value, Exception)
    ]
    listed = "\n".join(f"   {name.lower()}" for name in classes)
    parts = [
        title("Python reference"),
        "All names below are in the package ``topicell``. :doc:`../python` is an introduction.\n",
        f".. toctree::\n   :maxdepth: 1\n\n{listed}\n",
        ".. currentmodule:: topicell\n",
    ]
    for name, value in public.items():
        if name not in classes:
            kind = "autoexception" if inspect.isclass(value) else "autofunction"
            parts.append(f".. {kind}:: topicell.{name}\n")
    yield "python", "\n".join(parts)
    for name in classes:
        text = f"{title(name)}\n.. currentmodule:: topicell\n\n"
        text += f".. autoclass:: topicell.{name}\n   :members:\n"
        if public[name] is TopicFit:
            # What topicell.fit returns for topicell's own models.
            text += (
                "\n.. autoclass:: topicell.model.posterior.AmortizedFit\n"
                f"   :members: {', '.join(own_methods())}\n   :show-inheritance:\n"
            )
        yield name.lower(), text


def write_pages(app: Sphinx) -> None:
    """Write all pages of the reference."""
    pages = {
        "settings": settings_page(),
        "commands": commands_page(),
        "configurations": configurations_page(),
    } | dict(python_pages())
    for name, text in pages.items():
        write(PAGES / f"{name}.rst", text)


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: Element
) -> nodes.Node | None:
    """Return a link for a Python name that the site does not describe itself, or its text.

    A name in single backticks can be a parameter; a name that begins with ``topicell.`` must
    exist, otherwise None makes Sphinx warn of it.
    """
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    target = ALIASES.get(target, target)
    if target in EXTERNAL:
        return nodes.reference("", "", contnode, internal=False, refuri=EXTERNAL[target])
    config = target.removeprefix("topicell.config.")
    if config in GROUP_OF:
        assert app.builder is not None
        uri = app.builder.get_relative_uri(node["refdoc"], "reference/settings")
        anchor = nodes.make_id(f"settings-{config}")
        return nodes.reference("", "", contnode, internal=True, refuri=f"{uri}#{anchor}")
    if target.startswith("topicell."):
        return contnode if _exists(target) else None
    if node["reftype"] == "obj" or target in BUILTIN:
        return contnode
    return None


def _exists(name: str) -> bool:
    """Return whether a dotted name is a module, or something in one."""
    module, *rest = name.split(".")
    found: Any = import_module(module)
    for part in rest:
        if not hasattr(found, part):
            try:
                import_module(f"{found.__name__}.{part}")
            except (ImportError, AttributeError):
                return False
        found = getattr(found, part)
    return True


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the functions with Sphinx."""
    app.connect("builder-inited", write_pages)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
