"""The command line: one module for each command. Only this package and the plugin use Hydra."""

from topicell.cli.main import main

__all__ = ["main"]
