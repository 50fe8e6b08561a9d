"""Hydra callbacks, which ``conf/config.yaml`` names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from topicell.cli.overrides import as_tag, resumes
from topicell.cli.terminal import BOLD, styled
from topicell.config import TrackingConfig
from topicell.redaction import without_password

if TYPE_CHECKING:
    from topicell.tracking.parents import Parent


class GridParent(Callback):  # type: ignore[misc]  # hydra is untyped
    """Make the MLflow parent of a grid before its first job, and end it after the last."""

    started: Parent | None = None
    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the parent run, unless a sweep runs, which has a parent of its own."""
        if config.hydra.sweeper._target_.startswith("hydra_plugins.topicell_sweeper"):
            return
        from topicell.tracking.parents import Parent
        from topicell.tracking.record import RECORD

        tracking = OmegaConf.to_object(config.tracking)
        assert isinstance(tracking, TrackingConfig)
        folder = Path(config.hydra.sweep.dir)
        if (folder / RECORD).exists() and not resumes(config.resume):
            # The jobs refuse to overwrite it, and say so.
            return
        tags = {"topicell.kind": "multirun", "topicell.overrides": as_tag(sys.argv[1:])}
        GridParent.folder = folder
        GridParent.started = Parent.start(tracking, f"multirun {folder.name}", tags, folder)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remove passwords from the file that Hydra has written before the first job of a grid."""
        file = Path(config.hydra.sweep.dir) / "multirun.yaml"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if (shown := without_password(text)) != text:
            # Replaced in one step, because jobs that start together all do this.
            aside = file.with_name(f".{file.name}.{os.getpid()}")
            aside.write_text(shown, encoding="utf-8")
            aside.replace(file)

    @classmethod
    def finish(cls, status: str) -> None:
        """End the parent run, if there is one, also when a job failed or was interrupted."""
        if cls.started is not None and cls.folder is not None:
            from topicell.sweep.grid import conclude

            parent, cls.started = cls.started, None
            try:
                if status != "KILLED":
                    # The verdict needs all runs, also those that the store rejected at first.
                    parent.deliver_runs()
                    for number, line in enumerate(conclude(parent, cls.folder)):
                        # The verdict is the first.
                        print(line if number else styled(line, BOLD))
            finally:
                parent.finish(status)
