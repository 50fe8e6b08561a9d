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
"""Groups of settings that decide which cells and genes are predicted, or how that is measured."""


def space_of(
    params: Mapping[str, str], arguments: Sequence[str], config_loader: Any
) -> tuple[dict[str, BaseDistribution], dict[str, str], list[str]]:
    """Split overrides into what is searched and what is fixed.

    Parameters
    ----------
    params
        Settings of ``sweep.params``; the arguments go before them.
    arguments
        Overrides of the command line.
    config_loader
        Hydra's.

    Returns
    -------
    The distribution of each searched setting, how it was written, and the fixed overrides.

    Raises
    ------
    InputError
        A sweep that cannot be searched, or nothing to search.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    # Of several for one setting the last counts, as everywhere in Hydra.
    given = {_name(override): override for override in parser.parse_overrides(list(arguments))}
    named = given.keys()
    asked = [f"{name}={text}" for name, text in params.items() if name not in named]
    space: dict[str, BaseDistribution] = {}
    written: dict[str, str] = {}
    fixed: list[str] = []
    for override in [*parser.parse_overrides(asked), *given.values()]:
        if override.is_sweep_override():
            name = _name(override)
            space[name] = distribution(override)
            written[name] = override.get_value_string()
        else:
            fixed.append(override.input_line)
    for name in space:
        if name.partition(".")[0] in INCOMPARABLE:
            raise InputError(
                f"{name} = {written[name]}: cannot be searched, since perplexities of different "
                "cells or genes are not to be compared; give it one value (a grid has no sweep=)"
            )
    if not space:
        raise InputError(
            "sweep=topics has nothing to search: every setting has one value; give "
            "model.n_topics=range(2,31), say"
        )
    return space, written, fixed


def distribution(override: Override) -> BaseDistribution:
    """Optuna's distribution of a sweep.

    Ranges end before their stop, as everywhere in Hydra; intervals include both ends.
    """
    name, value = _name(override), override.value()
    written = f"{name} = {override.get_value_string()}"
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, ChoiceSweep):
        choices = [_plain(override, element) for element in value.list]
        if len({_identity(element) for element in value.list}) < len(choices):
            raise InputError(f"{written}: a choice is there twice")
        return CategoricalDistribution(choices)
    if isinstance(value, RangeSweep):
        if log:
            raise InputError(f"{written}: a range has steps; write tag(log,interval(…))")
        return _of_range(override, value, written)
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"{written}: both ends must be finite")
        if low > high:
            raise InputError(f"{written}: begins above its end")
        if log and low <= 0:
            raise InputError(f"{written}: a logarithmic interval must begin above 0")
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        if name == TOPICS:
            raise InputError(
                f"{written}: numbers of topics are whole; write int({override.get_value_string()})"
            )
        return FloatDistribution(float(low), float(high), log=log)
    raise InputError(f"{written}: cannot be searched; give choice(…), range(…) or interval(…)")


def _of_range(override: Override, value: RangeSweep, written: str) -> BaseDistribution:
    """The points that Hydra makes of a range, in decimals: sums of floats miss the last one."""
    parts = (value.start, value.stop, value.step)
    if not all(part is not None and math.isfinite(part) for part in parts) or value.step == 0:
        raise InputError(f"{written}: needs a start, a stop and a step other than 0")
    n_points = len(list(override.sweep_iterator()))
    if n_points == 0:
        raise InputError(f"{written}: the range is empty")
    start, step = Decimal(str(value.start)), Decimal(str(value.step))
    low, high = sorted((start, start + (n_points - 1) * step))
    if all(isinstance(part, int) for part in parts):
        return IntDistribution(int(low), int(high), step=abs(int(step)))
    if _name(override) == TOPICS:
        raise InputError(f"{written}: numbers of topics are whole")
    return FloatDistribution(float(low), float(high), step=float(abs(step)))


def bounds_of(found: BaseDistribution | None) -> tuple[int, int] | None:
    """Smallest and largest number of topics of a distribution."""
    if isinstance(found, IntDistribution):
        return found.low, found.high
    if isinstance(found, CategoricalDistribution):
        try:
            numbers = [int(str(choice).strip("'\"")) for choice in found.choices]
        except ValueError as error:
            raise InputError(f"{TOPICS}: numbers of topics are whole ({error})") from error
        return min(numbers), max(numbers)
    return None


def as_override(name: str, value: Any) -> str:
    """A value as the command line has it."""
    return f"{name}={value}"


def _name(override: Override) -> str:
    """The setting, whether it is changed or added (``+``, ``++``)."""
    return str(override.get_key_element()).lstrip("+")


def _identity(element: Any) -> tuple[str, Any]:
    """What makes two choices the same: 1 and 1.0 are, x and 'x' are, 0 and false are not."""
    if isinstance(element, (str, QuotedString)):
        return "text", element.text if isinstance(element, QuotedString) else element
    if isinstance(element, (int, float)) and not isinstance(element, bool):
        return "number", float(element)
    return "other", repr(element)


def _plain(override: Override, element: Any) -> Any:
    """A choice that Optuna can store: numbers as they are, the rest as it is written."""
    if isinstance(element, bool) or not isinstance(element, (int, float)):
        if isinstance(element, str) and set(element) & set("'\""):
            element = QuotedString(text=element, quote=Quote.single)
        if isinstance(element, QuotedString):
            return element.with_quotes()
        return str(override._get_value_element_as_str(element))
    return element
