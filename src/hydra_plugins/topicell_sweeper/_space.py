"""Hydra's grammar of overrides as a space of Optuna's distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from topicell.errors import InputError
from topicell.sweep.trials import TOPICS

INCOMPARABLE = (
    "data",
    "preprocess",
    "seed",
    "evaluate",
    "report",
    "tracking",
    "sweep",
    "experiment",
)
"""Groups of settings that determine which cells and genes are predicted, or how it is measured."""


def space_of(
    params: Mapping[str, str], arguments: Sequence[str], config_loader: Any
) -> tuple[dict[str, BaseDistribution], dict[str, str], list[str]]:
    """Divide overrides into searched and fixed settings.

    Parameters
    ----------
    params
        The settings of ``sweep.params``; the arguments override them.
    arguments
        The overrides of the command line.
    config_loader
        Hydra's loader.

    Returns
    -------
    The distribution of each searched setting, each as the user wrote it, and the fixed overrides.

    Raises
    ------
    InputError
        A setting cannot be searched, or none is.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    # As everywhere in Hydra, the last override of a setting counts.
    given = {_name(override): override for override in parser.parse_overrides(list(arguments))}
    others = [f"{name}={text}" for name, text in params.items() if name not in given]
    space: dict[str, BaseDistribution] = {}
    written: dict[str, str] = {}
    fixed: list[str] = []
    for override in [*parser.parse_overrides(others), *given.values()]:
        if override.is_sweep_override():
            name = _name(override)
            space[name] = distribution(override)
            written[name] = override.get_value_string()
        else:
            fixed.append(override.input_line)
    for name in space:
        if name.partition(".")[0] in INCOMPARABLE:
            raise InputError(
                f"{name} = {written[name]}: cannot be searched, because perplexities of different "
                "cells or genes are not comparable; give it one value, or leave out sweep= to run "
                "a grid"
            )
    if not space:
        raise InputError(
            "sweep=topics has nothing to search: every setting has one value; give a range, for "
            "example model.n_topics=range(2,31)"
        )
    return space, written, fixed


def distribution(override: Override) -> BaseDistribution:
    """Return Optuna's distribution of a sweep.

    As everywhere in Hydra, ranges end before their stop, and intervals include both ends.
    """
    value = override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, ChoiceSweep):
        if len({_identity(element) for element in value.list}) < len(value.list):
            raise _bad(override, "a choice is repeated")
        return CategoricalDistribution([_plain(override, element) for element in value.list])
    if isinstance(value, RangeSweep):
        if log:
            raise _bad(override, "a range cannot be logarithmic; write tag(log,interval(…))")
        return _of_range(override, value)
    if not isinstance(value, IntervalSweep):
        raise _bad(override, "cannot be searched; give choice(…), range(…) or interval(…)")
    low, high = value.start, value.end
    assert low is not None
    assert high is not None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise _bad(override, "both ends must be finite")
    if low > high:
        raise _bad(override, "its start is above its end")
    if log and low <= 0:
        raise _bad(override, "a logarithmic interval must begin above 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    if _name(override) == TOPICS:
        whole = f"int({override.get_value_string()})"
        raise _bad(override, f"the number of topics must be a whole number; write {whole}")
    return FloatDistribution(float(low), float(high), log=log)


def _of_range(override: Override, value: RangeSweep) -> BaseDistribution:
    """Return the points of a range, computed in decimals: sums of floats can miss the last one."""
    parts = (value.start, value.stop, value.step)
    if not all(part is not None and math.isfinite(part) for part in parts) or value.step == 0:
        raise _bad(override, "needs a start, a stop and a step other than 0")
    n_points = len(list(override.sweep_iterator()))
    if n_points == 0:
        raise _bad(override, "the range is empty")
    start, step = Decimal(str(value.start)), Decimal(str(value.step))
    low, high = sorted((start, start + (n_points - 1) * step))
    if all(isinstance(part, int) for part in parts):
        return IntDistribution(int(low), int(high), step=abs(int(step)))
    if _name(override) == TOPICS:
        raise _bad(override, "the number of topics must be a whole number")
    return FloatDistribution(float(low), float(high), step=float(abs(step)))


def bounds_of(found: BaseDistribution | None) -> tuple[int, int] | None:
    """Return the smallest and largest number of topics of a distribution."""
    if isinstance(found, IntDistribution):
        return found.low, found.high
    if not isinstance(found, CategoricalDistribution):
        return None
    try:
        numbers = [int(str(choice).strip("'\"")) for choice in found.choices]
    except ValueError as error:
        raise InputError(f"{TOPICS}: must be a whole number ({error})") from error
    return min(numbers), max(numbers)


def _bad(override: Override, problem: str) -> InputError:
    return InputError(f"{_name(override)} = {override.get_value_string()}: {problem}")


def _name(override: Override) -> str:
    """Return the setting, whether the override changes it or adds it (``+``, ``++``)."""
    return str(override.get_key_element()).lstrip("+")


def _identity(element: Any) -> tuple[str, Any]:
    """Return what is equal for equal choices: 1 and 1.0 are equal, x and 'x', but not 0 and false.

    Optuna takes 1 and 1.0 as equal, and would never try one of them.
    """
    if isinstance(element, (str, QuotedString)):
        return "text", element.text if isinstance(element, QuotedString) else element
    if isinstance(element, (int, float)) and not isinstance(element, bool):
        return "number", float(element)
    return "other", repr(element)


def _plain(override: Override, element: Any) -> Any:
    """Return a choice that Optuna can store: a number, or text as it is written in an override."""
    if isinstance(element, (int, float)) and not isinstance(element, bool):
        return element
    if isinstance(element, str) and set(element) & set("'\""):
        element = QuotedString(text=element, quote=Quote.single)
    if isinstance(element, QuotedString):
        return element.with_quotes()
    return str(override._get_value_element_as_str(element))
