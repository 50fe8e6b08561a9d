"""Parent runs in MLflow: of a grid, of a sweep."""

from __future__ import annotations

import logging
import os

from topicell.config import TrackingConfig
from topicell.tracking.provenance import provenance, source_tags
from topicell.tracking.store import client, experiment_id, first_line

log = logging.getLogger(__name__)


PARENT_RUN = "TOPICELL_PARENT_RUN_ID"
"""Environment variable by which the jobs of a multirun find their parent run."""


def start_parent(config: TrackingConfig, name: str, overrides: str) -> str:
    """Create the parent run of a multirun and tell its jobs, through the environment."""
    store = client(config)
    tags = source_tags() | provenance() | {"topicell.kind": "multirun"}
    tags["topicell.overrides"] = overrides
    run = store.create_run(experiment_id(store, config), run_name=name, tags=tags)
    os.environ[PARENT_RUN] = run.info.run_id
    return str(run.info.run_id)


def finish_parent(config: TrackingConfig, run_id: str, status: str) -> None:
    """End the parent run of a multirun; a store that is gone by then costs a warning."""
    from mlflow.exceptions import MlflowException

    os.environ.pop(PARENT_RUN, None)
    try:
        client(config).set_terminated(run_id, status)
    except (MlflowException, OSError) as error:
        log.warning("the parent run %s could not be ended (%s)", run_id, first_line(error))
