"""The plugin that Hydra finds. The work is in `_sweep`, which has the heavy imports."""

# No annotations from __future__: Hydra runs this module before it is in `sys.modules`, where a
# dataclass would look for it.

from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class TopicellSweeperConf:
    """The sweeper has no settings here: they are in the group ``sweep`` (`SweepConfig`)."""

    _target_: str = "hydra_plugins.topicell_sweeper.sweeper.TopicellSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="topicell", node=TopicellSweeperConf, provider="topicell"
)


class TopicellSweeper(Sweeper):  # type: ignore[misc]  # hydra is untyped
    """Trials proposed by Optuna, run by long-lived processes."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep the arguments for `sweep`."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Search the settings that the arguments and ``sweep.params`` leave open."""
        from hydra_plugins.topicell_sweeper._sweep import sweep

        sweep(self.hydra_context, self.task_function, self.config, arguments)
