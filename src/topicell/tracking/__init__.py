"""Where runs are recorded: the only room of mlflow.

`store` (address and client) → `parents` and `runs` (recording) → `stored` (reading again) and `ui`.
"""
