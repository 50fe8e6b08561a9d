"""Settings of the commands other than train: defaults, stored values, arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from topicell.cli.command import Command
from topicell.cli.errors import setting_message, takes, unknown_setting
from topicell.cli.overrides import TEXT, TEXTS, kinds, listed, plain
from topicell.config import RunConfig
from topicell.errors import InputError

OFF = ("report", "tracking")
"""Groups that ``GROUP=off`` disables, as in ``topicell train``."""


def read(command: Command, arguments: list[str], stored: Mapping[str, Any] | None = None) -> Any:
    """Return the settings of a command: its dataclass with the values of the arguments.

    Parameters
    ----------
    command
        A command with settings.
    arguments
        What the user wrote, each as NAME=VALUE.
    stored
        Values that replace the defaults, and are replaced by the arguments.

    Raises
    ------
    InputError
        An argument names no setting or holds no value for it, or a setting has no value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    assert command.settings is not None
    types = kinds(command.settings())
    names = {name: None for one in types for name in (*_groups_of(one), one)}
    lister = f"topicell {command.name} --help"
    try:
        merged = OmegaConf.merge(OmegaConf.structured(command.settings), stored or {})
        for argument in arguments:
            name, equals, value = argument.partition("=")
            if not equals:
                raise InputError(f"{argument!r}: write settings as NAME=VALUE")
            if name not in names:
                raise InputError(unknown_setting(name, names, lister))
            if name in OFF and value == "off":
                merged = OmegaConf.merge(merged, {name: {"enabled": False}})
            elif types.get(name) in TEXT and value != "null":
                # A file may have any name, and an id may look like a number.
                OmegaConf.update(merged, name, plain(name, value))
            elif types.get(name) == TEXTS and value != "null":
                OmegaConf.update(merged, name, listed(argument, value))
            else:
                merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([argument]))
    except YAMLError as error:
        raise InputError(f"{argument!r}: {takes(name, types)}") from error
    except OmegaConfBaseException as error:
        raise InputError(setting_message(error, names, lister)) from error
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise InputError(f"{missing[0]} has no value; give {missing[0]}=VALUE")
    return OmegaConf.to_object(merged)


def _groups_of(name: str) -> list[str]:
    """Return the groups that hold a setting: ``a`` and ``a.b`` of ``a.b.c``."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def stored_run_config(stored: Mapping[str, Any]) -> RunConfig:
    """Return the settings of a stored run; those that it does not have yet have their defaults."""
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), stored))
    assert isinstance(config, RunConfig)
    return config
