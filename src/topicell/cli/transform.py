"""``topicell transform``: topic proportions for new cells."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from topicell.cli import options
from topicell.cli.command import NO_DEFAULT, Command
from topicell.config import ReadConfig, TrackingConfig
from topicell.errors import InputError
from topicell.files import whole


@dataclass
class TransformCommand(ReadConfig):
    """Infer topic proportions of cells: run=RUN_ID or model=NAME/ALIAS, output=FILE.h5ad or csv."""

    run: str | None = None
    """MLflow id or folder of the run whose model is used; or name a `model`."""
    model: str | None = None
    """Registered model: its name and its version or alias, such as ``topicell/champion``."""
    input: str = NO_DEFAULT
    """File or folder of the new cells, in any form that ``data.path`` accepts."""
    output: str = NO_DEFAULT
    """New file: ``.h5ad`` has the proportions in ``obsm["X_lda"]``, ``.csv`` only the
    proportions."""
    replicate: int | None = None
    """Number of the replicate, from 0; null uses the selected one."""
    fill_missing: bool = False
    """Count genes of the model that the file does not have as zero, instead of rejecting the
    file."""
    unknown_batches: str = "refuse"
    """Cells of batches that the model does not know: ``refuse`` rejects the file; ``mean`` takes
    the mean of the known batches for them."""
    refine: bool = False
    """Optimise the posterior of each cell instead of using the encoder: slower, and never with a
    lower ELBO."""
    n_samples: int = 256
    """Monte-Carlo samples of the posterior mean of the proportions."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def transform(arguments: list[str]) -> None:
    """Write the proportions by the model of a stored run, or by a registered model."""
    asked: TransformCommand = options.read(COMMAND, arguments)
    if bool(asked.run) == bool(asked.model):
        found = "both run and model are set" if asked.run else "neither run nor model is set"
        raise InputError(f"{found}; give run=RUN_ID or model=NAME/ALIAS")
    output = Path(asked.output)
    if output.exists():
        raise InputError(f"output = {asked.output!r} exists; name another file")
    if not output.parent.is_dir():
        raise InputError(f"output = {asked.output!r}: there is no folder {output.parent}")
    if output.suffix not in (".h5ad", ".csv"):
        raise InputError(f"output = {asked.output!r}: name a file ending in .h5ad or .csv")
    import tempfile

    from topicell.data.frames import write_h5ad
    from topicell.data.reading import read
    from topicell.model.loading import load_fit
    from topicell.outputs import annotate
    from topicell.progress import step
    from topicell.tracking.registry import fetch_model
    from topicell.tracking.stored import fetch_run

    adata = read(asked.input, **{f.name: getattr(asked, f.name) for f in fields(ReadConfig)})
    with tempfile.TemporaryDirectory() as scratch:
        if asked.model:
            folder = fetch_model(asked.model, asked.tracking, Path(scratch))
        else:
            assert asked.run is not None
            run, _ = fetch_run(asked.run, asked.tracking, Path(scratch), ("model",))
            folder = run / "model"
        fit = load_fit(folder)
    with step("topic proportions"):
        frame = fit.transform(
            adata,
            fill_missing=asked.fill_missing,
            unknown_batches=asked.unknown_batches,
            replicate=asked.replicate,
            refine=asked.refine,
            n_samples=asked.n_samples,
        )
    try:
        with whole(output) as unfinished:
            if output.suffix == ".csv":
                frame.to_csv(unfinished, index_label="cell")
            else:
                annotate(adata, frame.to_numpy())
                write_h5ad(adata, unfinished)
    except OSError as error:
        raise InputError(f"output = {asked.output!r} cannot be written ({error})") from error
    print(f"{output}: {len(frame)} cells × {fit.n_topics} topics")


COMMAND = Command(
    name="transform",
    summary="infer the topic proportions of new cells",
    examples=(
        ("topicell transform run=RUN_ID input=new.h5ad output=mapped.h5ad", ""),
        ("topicell transform model=topicell/champion …", "a registered model: NAME/ALIAS"),
    ),
    settings=TransformCommand,
    function=transform,
)
