"""Tracking of runs; the only package that imports mlflow.

`record` (the run folder) and `store` (address and client of MLflow) → `delivery` (from the folder
to the store) → `runs` and `parents` (trackers of a run, and of a grid or a sweep). `interrupted`
finds runs to resume, `stored` reads runs, `registry` keeps models, `ui` serves MLflow's pages.
"""

import os

# MLflow reads it when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
