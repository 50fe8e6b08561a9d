"""Bounds of settings: declared with the field, checked by `check_fields`."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, TypeVar, get_type_hints

from topicell.errors import InputError

_E = TypeVar("_E", bound=Enum)

LARGEST = 2**31 - 1
"""The largest whole number that a setting may be: some libraries store it in 32 bits."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of a number, and the sentence that an error says about it."""

    low: float
    high: float = math.inf
    says: str = ""
    excludes_low: bool = False
    excludes_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.excludes_low else value >= self.low
        below = value < self.high if self.excludes_high else value <= self.high
        return above and below

    @property
    def sentence(self) -> str:
        """Say the range in words, unless `says` does."""
        if self.says:
            return self.says
        low = f"{'greater than' if self.excludes_low else 'at least'} {self.low:g}"
        if math.isinf(self.high):
            return f"must be {low}"
        if not (self.excludes_low or self.excludes_high):
            return f"must be between {self.low:g} and {self.high:g}"
        return f"must be {low} and {'less than' if self.excludes_high else 'at most'} {self.high:g}"


POSITIVE = Bounds(0, excludes_low=True)
NOT_NEGATIVE = Bounds(0, says="cannot be negative")
CONCENTRATIONS = {"concentrations": True}
"""Metadata of a field of Dirichlet concentrations: null, a number, or a list of numbers."""
SHARE = Bounds(0, 1, excludes_high=True)
SEED = Bounds(0, 2**32 - 1, "must be a whole number between 0 and 2**32 - 1")
PRIOR = Bounds(
    1e-30,
    1e30,
    "must be between 1e-30 and 1e30, so that single precision can represent all values",
)


def setting(default: Any, bounds: Bounds) -> Any:
    """Return a dataclass field whose number must be within bounds."""
    return field(default=default, metadata={"bounds": bounds})


def check_fields(prefix: str, config: Any) -> None:
    """Check every field of a dataclass by its metadata; give enumerations their member.

    Parameters
    ----------
    prefix
        Group of the settings, as on the command line: ``train.kl_annealing``.
    config
        The dataclass.

    Raises
    ------
    InputError
        A value is of another type, out of bounds, or no member of its enumeration.
    """
    hints = get_type_hints(type(config))
    for f in fields(config):
        name, value = f"{prefix}.{f.name}".lstrip("."), getattr(config, f.name)
        hint = hints[f.name]
        if isinstance(hint, type) and issubclass(hint, Enum):
            setattr(config, f.name, _member(name, value, hint))
        elif "bounds" in f.metadata:
            if value is not None or "None" not in str(f.type):
                _require_number(name, value, f.metadata["bounds"], "float" not in str(f.type))
        elif "text" in f.metadata and isinstance(value, str):
            require(bool(value.strip()), name, value, "is empty; name a file, or use null")
        elif "concentrations" in f.metadata and value is not None:
            several = isinstance(value, Sequence) and not isinstance(value, str)
            values = value if several else [value]
            fine = len(values) > 0 and all(_is_number(v) and v in PRIOR for v in values)
            require(fine, name, value, f"each number {PRIOR.says}")


def require(condition: bool, name: str, found: object, fix: str) -> None:
    """Refuse the value of a setting unless a condition holds.

    Raises
    ------
    InputError
        It says the setting, the value, and how to fix it.
    """
    if not condition:
        raise InputError(f"{name} = {found!r}: {fix}")


def _require_number(name: str, value: Any, bounds: Bounds, whole: bool) -> None:
    if bounds is SEED:
        fine = _is_number(value) and isinstance(value, int) and value in SEED
        require(fine, name, value, SEED.says)
        return
    right = _is_number(value) and (isinstance(value, int) or not whole)
    require(right, name, value, "must be a whole number" if whole else "must be a number")
    require(value in bounds, name, value, bounds.sentence)
    if whole:
        require(value <= LARGEST, name, value, f"must be at most {LARGEST}")
    require(value <= sys.float_info.max, name, value, "must be finite")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _member(name: str, value: Any, enum: type[_E]) -> _E:
    """Return a member of an enumeration; Python callers may give its name."""
    try:
        return enum(value)
    except ValueError as error:
        names = ", ".join(member.value for member in enum)
        raise InputError(f"{name} = {value!r}: must be one of {names}") from error
