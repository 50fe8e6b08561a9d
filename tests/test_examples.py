"""Docstrings of the public names: each has an example, which the suite runs."""

import inspect

import pytest

import topicell
from topicell.model.fit import TopicFit
from topicell.model.posterior import AmortizedFit


def public():
    """Return each public function, class and method by name."""
    found = {name: getattr(topicell, name) for name in topicell.__all__}
    classes = {name: value for name, value in found.items() if inspect.isclass(value)}
    for name, value in (classes | {"AmortizedFit": AmortizedFit}).items():
        for method, defined in vars(value).items():
            function = getattr(defined, "__func__", defined)
            # Models with an encoder have further methods; the others are those of all fits.
            repeated = value is AmortizedFit and (
                hasattr(TopicFit, method) or isinstance(defined, classmethod)
            )
            if not method.startswith("_") and inspect.isfunction(function) and not repeated:
                found[f"{name}.{method}"] = function
    return found


@pytest.mark.parametrize("name", public())
def test_a_public_name_has_a_docstring_with_an_example(name):
    text = inspect.cleandoc(public()[name].__doc__ or "")
    assert "\nExamples\n--------\n>>> " in text


def test_methods_of_all_kinds_are_found():
    names = public()
    assert {"fit", "TopicFit.theta", "TopicFit.load", "AmortizedFit.seeds"} <= set(names)
    assert {"AmortizedLDA.load", "AmortizedLDA.get_elbo", "Counts.of"} <= set(names)
