"""Choosing the number of topics: Optuna proposes, worker processes run, a verdict ends it.

The way: `study` (what Optuna keeps, and how it survives) and `workers` (processes that make one
run after another) → `search` (the loop between them) → `trials` (what was found, as plain data)
→ `selection` (the verdict on K) → `page`. `watch` is the other end: what a run shows of itself
while it is a trial. The Hydra plugin ``hydra_plugins.topicell_sweeper`` stands above all this.
"""
