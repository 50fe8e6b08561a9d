"""Examples of docstrings: that of a method continues that of its class, in an empty folder."""

from __future__ import annotations

import doctest
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@cache
def names_after(*classes: type) -> dict[str, Any]:
    """Return the names that the examples of classes define, in this order."""
    names: dict[str, Any] = {}
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner()
    for one in classes:
        text = vars(one).get("__doc__") or ""
        test = parser.get_doctest(text, names, one.__name__, None, None)
        runner.run(test, out=lambda _: None, clear_globs=False)
        names = test.globs
    return names


@pytest.fixture(autouse=True)
def example(
    request: pytest.FixtureRequest,
    doctest_namespace: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Give an example the names of its class and of the bases of its class."""
    monkeypatch.chdir(tmp_path)
    *_, owner, name = request.node.name.split(".")
    module = request.node.dtest.globs
    classes: list[type] = []
    if isinstance(module.get(name), type):
        classes = module[name].__mro__[:0:-1]
    elif isinstance(module.get(owner), type):
        classes = module[owner].__mro__[::-1]
    doctest_namespace.clear()
    doctest_namespace.update(names_after(*classes))
