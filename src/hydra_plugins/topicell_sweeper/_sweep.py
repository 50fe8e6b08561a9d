"""A sweep from Hydra's side: overrides in, composed configurations to the workers."""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra import version as hydra_version
from hydra.core.utils import JobRuntime, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from hydra_plugins.topicell_sweeper._space import as_override, bounds_of, space_of
from topicell.cli.errors import own_process, require_reports
from topicell.cli.train import to_run_config
from topicell.config import RunConfig, SweepConfig, as_dict, dotted
from topicell.data.preprocessing import held_in_memory
from topicell.data.reading import source_digest
from topicell.errors import InputError
from topicell.redaction import without_password
from topicell.sweep.search import Job, Search, SweepError, conclude
from topicell.sweep.selection import Kind
from topicell.sweep.study import Study, study_name
from topicell.sweep.trials import TOPICS, now
from topicell.sweep.watch import CurrentTrial, working_on
from topicell.sweep.workers import Work
from topicell.tracking.parents import Parent

_WORKER = ExitStack()
"""What lasts as long as a worker."""
ELSEWHERE = ("report", "tracking")
"""Groups that do not change what a trial finds."""


def sweep(
    context: HydraContext, task: TaskFunction, config: DictConfig, arguments: Sequence[str]
) -> None:
    """Search, conclude, and print the verdict."""
    settings = OmegaConf.to_object(config.sweep)
    assert isinstance(settings, SweepConfig)
    space, written, fixed = space_of(settings.params, arguments, context.config_loader)
    bounds = bounds_of(space.get(TOPICS))
    fixed.append("sweep.enabled=true")
    base = to_run_config(context.config_loader.load_sweep_config(config, fixed))
    if not config.hydra.launcher._target_.endswith("BasicLauncher"):
        raise InputError(
            "hydra/launcher has no effect on sweep=topics, which has workers of its own: "
            "sweep.n_jobs=8, or sweep.join=true on several machines"
        )
    if base.preprocess.split.valid == 0:
        raise InputError(
            "preprocess.split.valid = 0: trials are compared on validation cells; keep some"
        )
    definition = _definition(base, written)
    settings.study = settings.study or study_name(base.data.title, definition)
    folder = Path(str(config.hydra.sweep.dir)) / settings.study
    study = Study(settings, space, definition, base.seed)
    if hasattr(task, "begun"):
        # What goes wrong from here on is not that a folder cannot be made.
        task.begun = True
    try:
        parent = _parent(study, settings, base, written, folder)
        ended = "FAILED"
        try:
            compose = partial(_compose, context, config, fixed, folder)
            prepare = partial(_prepare, context, task, str(config.hydra.job.name))
            Search(study, compose, prepare, settings, parent, _say).run()
            with study.exclusively():
                if study.n_others:
                    _say(f"{study.n_others} trials are still run by others who joined the study")
                    ended = "RUNNING"
                    return
                folders = _conclude(study, settings, parent, folder, base, written, bounds)
            ended = "FINISHED"
        except KeyboardInterrupt:
            ended = "KILLED"
            _say("interrupted; the same command goes on from here")
            raise
        finally:
            others = settings.join and study.n_others
            parent.finish("RUNNING" if others else ended)
    finally:
        study.close()
    require_reports(folders)


def _definition(base: RunConfig, written: Mapping[str, str]) -> dict[str, Any]:
    """All that decides what a trial finds."""
    settings = {
        name: value
        for name, value in dotted(base).items()
        if name.partition(".")[0] not in ELSEWHERE and name not in written
    }
    settings.pop("train.progress", None)
    settings.pop("data.path", None)
    searched = {name: f"searched over {text}" for name, text in written.items()}
    return settings | searched | {"data": source_digest(base.data), "topicell": version("topicell")}


def _parent(
    study: Study,
    settings: SweepConfig,
    base: RunConfig,
    written: Mapping[str, str],
    folder: Path,
) -> Parent:
    """The parent run of the study: made by whoever is first, before any worker starts."""
    with study.exclusively():
        tags = {
            "topicell.kind": "sweep",
            "topicell.study": study.name,
            "topicell.storage": study.address,
            "topicell.overrides": " ".join(map(without_password, sys.argv[1:])),
        }
        before = study.parent_run
        parent = Parent.start(base.tracking, f"sweep {study.name}", tags, folder, before)
        if parent.run_id not in ("", before):
            study.parent_run = parent.run_id
        searched = {f"searched.{name}": text for name, text in written.items()}
        own = {f"sweep.{k}": v for k, v in as_dict(settings).items() if k != "storage"}
        fixed = {name: v for name, v in dotted(base).items() if name not in written}
        parent.log_params(fixed | searched | own)
    done = f"{study.n_done} of {settings.n_trials} trials so far"
    _say(f"study {study.name} in {study.address}: {done}")
    return parent


def _conclude(
    study: Study,
    settings: SweepConfig,
    parent: Parent,
    folder: Path,
    base: RunConfig,
    written: Mapping[str, str],
    bounds: tuple[int, int] | None,
) -> list[Path]:
    """Print the verdict; the folders of the trials."""
    found, verdict = conclude(
        study,
        settings,
        parent,
        folder,
        {
            "data": base.data.title,
            "kind": "sweep",
            "bounds": bounds,
            "space": dict(written),
            "storage": study.address,
            "sampler": settings.sampler.value,
            "pruner": settings.pruner.value,
            "n_jobs": settings.n_jobs,
            "version": version("topicell"),
            "created": now(),
        },
    )
    errors = [trial.error for trial in found.trials if trial.failed]
    if errors and not any(trial.state == "COMPLETE" for trial in found.trials):
        raise SweepError(
            f"none of {len(found.trials)} trials was completed (the last: {errors[-1]}), and none "
            "is tried again: mend it, and name another sweep.study or raise sweep.n_trials"
        )
    print(verdict.sentence)
    for caution in verdict.cautions:
        print(f"  {caution}")
    print(f"report      {folder / 'report.html'}")
    if verdict.kind is Kind.failed:
        raise SweepError(
            f"too many trials failed to choose a number of topics (the last: {errors[-1]}); "
            "nothing is registered, and none is tried again: fix it, and name another sweep.study "
            "or raise sweep.n_trials"
        )
    folders = [Path(trial.folder) for trial in found.trials if trial.folder]
    chosen = next((trial for trial in found.trials if trial.number == verdict.trial), None)
    if chosen is None:
        return folders
    print(f"trial       {chosen.number}, in {chosen.folder}")
    if parent.run_id:
        print(f"MLflow run  {parent.run_id}  (topicell ui)")
    if settings.register and chosen.run_id:
        tags = {"study": study.name, "n_topics": str(chosen.n_topics), "parent_run": parent.run_id}
        number = parent.register(chosen.run_id, Path(chosen.folder), settings.register, tags)
        if number:
            print(f"registered  {settings.register}/champion, version {number}")
    return folders


def _compose(
    context: HydraContext,
    config: DictConfig,
    fixed: Sequence[str],
    folder: Path,
    number: int,
    params: Mapping[str, Any],
) -> Job:
    """The configuration of a trial, as Hydra's own sweepers make it."""
    moved = [as_override(name, value) for name, value in params.items()]
    composed = context.config_loader.load_sweep_config(config, [*fixed, *moved])
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
        composed.hydra.sweep.dir = str(folder)
        # The parent speaks for all; warnings are in the log of the run's folder.
        composed.hydra.job_logging.handlers.console.level = "ERROR"
    run = to_run_config(composed)
    return Job(pickle.dumps(composed), run.model.n_topics, run.title, dotted(run))


def _prepare(context: HydraContext, task: TaskFunction, name: str) -> Work:
    """Make a new process one of Hydra's, and ours."""
    setup_globals()
    hydra_version.setbase(None)
    JobRuntime.instance().set("name", name)
    own_process()
    # Its own is shared between processes, by a semaphore that a killed worker would leave behind.
    tqdm.set_lock(threading.RLock())
    _WORKER.enter_context(held_in_memory())
    return partial(_work, context, task)


def _work(context: HydraContext, task: TaskFunction, payload: bytes, trial: CurrentTrial) -> None:
    """Do the job of a trial."""
    composed = pickle.loads(payload)
    with working_on(trial):
        run_job(
            hydra_context=context,
            task_function=task,
            config=composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
