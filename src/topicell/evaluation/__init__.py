"""Metrics of topics: arrays in, numbers out. `metrics` has the table, the other modules compute."""
