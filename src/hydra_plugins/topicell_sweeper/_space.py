"""Hydra's grammar of overrides as a space of Optuna's distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from topicell.config import InputError
from topicell.sweep.trials import TOPICS


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
        Hydra's, which resolves ``glob``.

    Returns
    -------
    The distribution of each searched setting, how it was written, and the fixed overrides.

    Raises
    ------
    InputError
        A sweep that cannot be searched, or nothing to search.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    given = parser.parse_overrides(list(arguments))
    named = {override.get_key_element() for override in given}
    asked = [f"{name}={text}" for name, text in params.items() if name not in named]
    space: dict[str, BaseDistribution] = {}
    written: dict[str, str] = {}
    fixed: list[str] = []
    for override in [*parser.parse_overrides(asked), *given]:
        if override.is_sweep_override():
            name = override.get_key_element()
            space[name] = distribution(override)
            written[name] = override.get_value_string()
        else:
            fixed.append(override.input_line)
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
    name, value = override.get_key_element(), override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, ChoiceSweep):
        choices = [_plain(override, element) for element in value.list]
        if override.is_sweep_override() and any(choice is None for choice in choices):
            choices = list(override.sweep_iterator(transformer=Transformer.encode))
        if len(set(map(repr, choices))) < len(choices):
            raise InputError(f"{name} = {override.get_value_string()}: a choice is there twice")
        return CategoricalDistribution(choices)
    if isinstance(value, RangeSweep):
        start, stop, step = value.start, value.stop, value.step
        assert start is not None
        assert stop is not None
        points = list(override.sweep_iterator())
        if not points:
            raise InputError(f"{name} = {override.get_value_string()}: the range is empty")
        low, high = min(points), max(points)
        if all(isinstance(point, int) for point in points):
            return IntDistribution(low, high, step=abs(int(step)))
        return FloatDistribution(float(low), float(high), step=abs(float(step)))
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None
        assert high is not None
        if low > high:
            raise InputError(f"{name} = {override.get_value_string()}: begins above its end")
        if log and low <= 0:
            raise InputError(
                f"{name} = {override.get_value_string()}: a logarithmic interval must begin above 0"
            )
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        if name == TOPICS:
            raise InputError(
                f"{name} = {override.get_value_string()}: numbers of topics are whole; write "
                f"int({override.get_value_string()})"
            )
        return FloatDistribution(float(low), float(high), log=log)
    raise InputError(
        f"{name} = {override.get_value_string()}: cannot be searched; give choice(…), range(…) "
        "or interval(…)"
    )


def bounds_of(found: BaseDistribution | None) -> tuple[int, int] | None:
    """Smallest and largest number of topics of a distribution."""
    if isinstance(found, IntDistribution):
        return found.low, found.high
    if isinstance(found, CategoricalDistribution):
        numbers = [int(choice) for choice in found.choices if isinstance(choice, (int, str))]
        return (min(numbers), max(numbers)) if numbers else None
    return None


def as_override(name: str, value: Any) -> str:
    """A value as the command line has it."""
    return f"{name}={'null' if value is None else value}"


def _plain(override: Override, element: Any) -> Any:
    """A choice that Optuna can store: numbers as they are, the rest as it is written."""
    if isinstance(element, bool) or not isinstance(element, (int, float)):
        written = override._get_value_element_as_str(element)
        return str(written)
    return element
