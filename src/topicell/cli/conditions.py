"""``topicell conditions``: test which topics of a stored run change with conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from topicell.cli.command import NO_DEFAULT, Command
from topicell.cli.options import read
from topicell.cli.output import make_folder, new_folder
from topicell.cli.terminal import say
from topicell.config import TrackingConfig
from topicell.config.checks import POSITIVE, SEED, check_fields, setting
from topicell.errors import InputError

if TYPE_CHECKING:
    from topicell.evaluation.conditions import Conditions


@dataclass
class ConditionsCommand:
    """Test which topics of a run change with conditions, with the sample as the unit.

    formula="condition + age" names columns of obs that are constant within a sample; the first
    level of each is the reference. sample_key=COLUMN says which sample a cell is of; without it, it
    is the column of samples of the run.
    conditions.csv and a figure of each term are written into the new folder output=FOLDER.
    """

    run: str = NO_DEFAULT
    """MLflow id or folder of the run."""
    formula: str = NO_DEFAULT
    """Terms that are tested, such as ``condition + age``: columns of obs with one value in each
    sample."""
    sample_key: str | None = None
    """Column of obs with the sample of each cell; null uses that of the run."""
    min_sample_cells: int = setting(20, POSITIVE)
    """Samples with fewer cells are left out, with a warning."""
    output: str | None = None
    """New folder; null uses ``conditions-RUN_ID``."""
    seed: int = setting(0, SEED)
    """Seed of the random permutations."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_fields("", self)


def conditions(arguments: list[str]) -> None:
    """Print the changes of the topics, and write table and figures into a new folder."""
    asked: ConditionsCommand = read(COMMAND, arguments)
    import tempfile

    import anndata

    from topicell.evaluation.conditions import compare_conditions, warn_of_small_samples
    from topicell.files import whole
    from topicell.outputs import tested_proportions
    from topicell.report.figure_set import shown_topics
    from topicell.tracking.stored import fetch_run

    with tempfile.TemporaryDirectory() as scratch:
        folder, run_id = fetch_run(asked.run, asked.tracking, Path(scratch), ("adata.h5ad",))
        output = new_folder(asked.output, f"conditions-{run_id or folder.resolve().name}")
        adata = anndata.read_h5ad(folder / "adata.h5ad", backed="r")
        try:
            if "X_lda" not in adata.obsm:
                raise InputError(f"{folder / 'adata.h5ad'} was not written by a run")
            theta_NK, obs = tested_proportions(adata), adata.obs
            sample_key = asked.sample_key or adata.uns["topicell"].get("sample_key")
        finally:
            adata.file.close()
    if not sample_key:
        raise InputError("the run has no samples (data.sample_key); name sample_key=COLUMN")
    found = compare_conditions(
        theta_NK,
        obs,
        asked.formula,
        sample_key,
        min_cells=asked.min_sample_cells,
        seed=asked.seed,
    )
    warn_of_small_samples(found.left_out, len(found.samples), asked.min_sample_cells)
    make_folder(output)
    with whole(output / "conditions.csv") as unfinished:
        found.table.to_csv(unfinished, index=False)
    _draw(found, shown_topics(theta_NK), output)
    _print(found)
    print(output)


def _draw(found: Conditions, topics: list[int] | None, output: Path) -> None:
    """Write a figure of each term that can be drawn."""
    import re

    from topicell.report.figures import condition_effects, save

    for term in found.drawable():
        name = re.sub(r"\W+", "_", term, flags=re.ASCII).strip("_")
        figure = condition_effects(found.of_term(term), term, topics)
        save(figure, output / f"conditions_{name}", 150)


def _print(found: Conditions) -> None:
    """Print the effects, term by term, the smallest p first."""
    for term, smallest in found.smallest_p.items():
        of_term = found.table[found.table["term"] == term]
        say(f"{term}  ({len(found.samples)} samples; permutations: p of at least {smallest:.2g})")
        for row in of_term.sort_values("p", kind="stable").to_dict("records"):
            effect = f"{row['effect']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
            say(
                f"  {row['topic']:<10}{row['level'][:16]:<17}{effect:<27}"
                f"p = {row['p']:<9.2g}permutations {row['p_permutation']:<9.2g}q = {row['q']:.2g}"
            )


COMMAND = Command(
    name="conditions",
    summary="test which topics change with conditions, with the sample as the unit",
    examples=(('topicell conditions run=RUN_ID formula="condition" sample_key=sample', ""),),
    settings=ConditionsCommand,
    function=conditions,
)
