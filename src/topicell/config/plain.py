"""Configurations as plain dicts, for records and command lines."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from topicell.redaction import without_password


def as_dict(config: Any) -> Any:
    """Return a configuration as dicts, lists, numbers and strings, without passwords."""
    if isinstance(config, str):
        return without_password(config)
    if isinstance(config, Enum):
        return config.value
    if is_dataclass(config):
        return {f.name: as_dict(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, (list, tuple)):
        return [as_dict(value) for value in config]
    return config


def dotted(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every setting by its dotted name, as it is written on the command line."""
    flat: dict[str, Any] = {}
    for name, value in (as_dict(config) if is_dataclass(config) else config).items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
