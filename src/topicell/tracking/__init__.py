"""Where runs are recorded: the only room of mlflow.

`record` (what a folder knows of its run) and `store` (address, client, patience) → `delivery` (from
folder to store, once) → `runs` and `parents` (recording) → `interrupted` (what to go on with) and
`stored` (reading again), `registry`, `ui`.
"""

import os

# Asked for when mlflow is imported, by whichever module of this room is first.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
