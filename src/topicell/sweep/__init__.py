"""Choosing the number of topics: Optuna proposes trials, worker processes run them.

`search` is the loop between the `study` (an Optuna study in a `storage`) and the `workers`; in a
worker, `tracker` connects a run to the sweep. `trials` are the results as plain data, from which
`selection` makes the verdict on K, and `conclusion` and `page` write it. A plain `grid` ends in the
same way. The Hydra plugin ``hydra_plugins.topicell_sweeper`` starts a sweep.
"""
