"""A sweep from Hydra's side: overrides in, composed configurations to the workers."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra import version as hydra_version
from hydra.core.utils import JobRuntime, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from hydra_plugins.topicell_sweeper._space import bounds_of, space_of
from topicell import progress
from topicell.cli.errors import own_process, require_reports
from topicell.cli.terminal import BOLD, YELLOW, note, say, styled
from topicell.cli.train import to_run_config
from topicell.config import RunConfig, SweepConfig, as_dict, dotted
from topicell.data.preprocessing import held_in_memory
from topicell.data.reading import source_digest
from topicell.errors import InputError
from topicell.redaction import without_password
from topicell.sweep.conclusion import conclude
from topicell.sweep.search import Job, Search, SweepError
from topicell.sweep.selection import Kind
from topicell.sweep.study import Space, Study, study_name
from topicell.sweep.tracker import CurrentTrial, set_current_trial
from topicell.sweep.trials import TOPICS, Sweep, now
from topicell.sweep.workers import Work
from topicell.tracking.parents import Parent

_WORKER = ExitStack()
"""Contexts that last as long as a worker process."""
ELSEWHERE = ("report", "tracking")
"""Groups of settings that do not change the result of a trial."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is searched, and with which settings."""

    context: HydraContext
    config: DictConfig
    settings: SweepConfig
    base: RunConfig
    """The settings of a run, without those that are searched."""
    space: Space
    written: Mapping[str, str]
    """Each searched setting as the user wrote it."""
    fixed: Sequence[str]
    definition: Mapping[str, Any]
    """Everything that determines the result of a trial."""
    folder: Path

    def compose(self, number: int, params: Mapping[str, Any]) -> Job:
        """Return the job of a trial, composed as by Hydra's own sweepers."""
        searched = [f"{name}={value}" for name, value in params.items()]
        loader = self.context.config_loader
        composed = loader.load_sweep_config(self.config, [*self.fixed, *searched])
        with open_dict(composed):
            composed.hydra.job.id = str(number)
            composed.hydra.job.num = number
            composed.hydra.sweep.dir = str(self.folder)
            # Only the parent writes to the terminal; warnings are in the log of the run's folder.
            composed.hydra.job_logging.handlers.console.level = "ERROR"
        run = to_run_config(composed)
        return Job(pickle.dumps(composed), run.model.n_topics, run.title, dotted(run))


def sweep(
    context: HydraContext, task: TaskFunction, config: DictConfig, arguments: Sequence[str]
) -> None:
    """Search, conclude, and print the verdict."""
    plan = make_plan(context, config, arguments)
    settings = plan.settings
    study = Study(settings, plan.space, plan.definition, plan.base.seed)
    if hasattr(task, "begun"):
        # A later error is not about the folder of the sweep.
        task.begun = True
    try:
        parent = start_parent(plan, study)
        status = "FAILED"
        try:
            prepare = partial(_prepare, context, task, str(config.hydra.job.name))
            Search(study, plan.compose, prepare, settings, parent, note).run()
            with study.exclusively():
                if study.n_others:
                    note(f"other processes that joined the study still run {study.n_others} trials")
                    status = "RUNNING"
                    return
                folders = conclude_and_print(plan, study, parent)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            note("interrupted; run the same command again to continue")
            raise
        finally:
            if status != "RUNNING" and not (settings.join and study.n_others):
                parent.finish(status)
    finally:
        study.close()
    require_reports(folders)


def make_plan(context: HydraContext, config: DictConfig, arguments: Sequence[str]) -> Plan:
    """Check the settings of a sweep, before anything is computed or written.

    Raises
    ------
    InputError
        A setting is invalid.
    """
    settings = OmegaConf.to_object(config.sweep)
    assert isinstance(settings, SweepConfig)
    space, written, fixed = space_of(settings.params, arguments, context.config_loader)
    bounds_of(space.get(TOPICS))
    fixed.append("sweep.enabled=true")
    base = to_run_config(context.config_loader.load_sweep_config(config, fixed))
    if not config.hydra.launcher._target_.endswith("BasicLauncher"):
        raise InputError(
            "hydra/launcher has no effect on sweep=topics, which starts its own workers; set "
            "their number with sweep.n_jobs=8, or use sweep.join=true on several machines"
        )
    if base.preprocess.split.valid == 0:
        raise InputError(
            "preprocess.split.valid = 0: trials are compared on validation cells; give a share "
            "above 0"
        )
    unused = ("train.progress", "data.path", "data.samples", *written)
    definition = {
        name: value
        for name, value in dotted(base).items()
        if name.partition(".")[0] not in ELSEWHERE and name not in unused
    }
    definition |= {name: f"searched over {text}" for name, text in written.items()}
    definition |= {"data": source_digest(base.data), "topicell": version("topicell")}
    settings.study = settings.study or study_name(base.data.title, definition)
    folder = Path(str(config.hydra.sweep.dir)) / settings.study
    return Plan(context, config, settings, base, space, written, fixed, definition, folder)


def start_parent(plan: Plan, study: Study) -> Parent:
    """Start the parent run of the study, or continue it, before any worker starts."""
    with study.exclusively():
        tags = {
            "topicell.kind": "sweep",
            "topicell.study": study.name,
            "topicell.storage": study.address,
            "topicell.overrides": " ".join(map(without_password, sys.argv[1:])),
        }
        before = study.parent_run
        name = f"sweep {study.name}"
        parent = Parent.start(plan.base.tracking, name, tags, plan.folder, before)
        if parent.run_id not in ("", before):
            study.parent_run = parent.run_id
        params = {k: v for k, v in dotted(plan.base).items() if k not in plan.written}
        params |= {f"searched.{name}": text for name, text in plan.written.items()}
        own = as_dict(plan.settings).items()
        parent.log_params(params | {f"sweep.{k}": v for k, v in own if k != "storage"})
    done = f"{study.n_done} of {plan.settings.n_trials} trials so far"
    note(f"study {study.name} in {study.address}: {done}")
    return parent


def conclude_and_print(plan: Plan, study: Study, parent: Parent) -> list[Path]:
    """Conclude the study, print the verdict and register the model; return the trials' folders."""
    settings = plan.settings
    found = Sweep(
        name=study.name,
        data=plan.base.data.title,
        kind="sweep",
        bounds=bounds_of(plan.space.get(TOPICS)),
        space=dict(plan.written),
        trials=study.trials(),
        importance=study.importance(),
        storage=study.address,
        sampler=settings.sampler.value,
        pruner=settings.pruner.value,
        seconds=study.seconds,
        n_jobs=settings.n_jobs,
        support_floor=settings.support_floor,
        parent_id=parent.run_id,
        experiment_id=parent.experiment,
        tracking=parent.store,
        version=version("topicell"),
        created=now(),
    )
    verdict = conclude(found, parent, plan.folder)
    errors = [trial.error for trial in found.trials if trial.failed]
    again = (
        "failed trials are not repeated: fix the cause, then name another sweep.study or raise "
        "sweep.n_trials"
    )
    if errors and not any(trial.state == "COMPLETE" for trial in found.trials):
        raise SweepError(
            f"none of {len(found.trials)} trials was completed (last error: {errors[-1]}); {again}"
        )
    print(styled(verdict.sentence, BOLD))
    for warning in verdict.warnings:
        say(f"  {styled(warning, YELLOW)}")
    print(f"report      {plan.folder / 'report.html'}")
    if verdict.kind is Kind.failed:
        raise SweepError(
            f"too many trials failed, so no number of topics is chosen (last error: {errors[-1]}) "
            f"and no model is registered; {again}"
        )
    folders = [Path(trial.folder) for trial in found.trials if trial.folder]
    chosen = next((trial for trial in found.trials if trial.number == verdict.trial), None)
    if chosen is None:
        return folders
    print(f"trial       {chosen.number}, in {os.path.relpath(chosen.folder)}")
    if parent.run_id:
        print(f"MLflow run  {parent.run_id}  (topicell ui)")
    if settings.register and chosen.run_id:
        tags = {"study": study.name, "n_topics": str(chosen.n_topics), "parent_run": parent.run_id}
        number = parent.register(chosen.run_id, Path(chosen.folder), settings.register, tags)
        if number:
            print(f"registered  {settings.register}/champion, version {number}")
    return folders


def _prepare(context: HydraContext, task: TaskFunction, name: str) -> Work:
    """Prepare a new process for Hydra and for topicell; return what runs a job."""
    setup_globals()
    hydra_version.setbase(None)
    JobRuntime.instance().set("name", name)
    own_process()
    progress.show(progress.Shown.nothing)
    # tqdm's own lock has a semaphore, which a killed worker would not release.
    tqdm.set_lock(threading.RLock())
    _WORKER.enter_context(held_in_memory())
    return partial(_work, context, task)


def _work(context: HydraContext, task: TaskFunction, payload: bytes, trial: CurrentTrial) -> None:
    """Run the job of a trial."""
    set_current_trial(trial)
    run_job(
        hydra_context=context,
        task_function=task,
        config=pickle.loads(payload),
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
