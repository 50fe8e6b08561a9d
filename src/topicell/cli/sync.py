"""``topicell sync``: deliver to MLflow the runs that it does not have yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from topicell.cli.command import Command
from topicell.cli.errors import FAILED, fail
from topicell.cli.options import read
from topicell.config import TrackingConfig
from topicell.errors import InputError

SECONDS = 30.0
"""Seconds to wait for a store that does not answer, for each run."""
BYTES_PER_SECOND = 500_000
"""Slowest upload that is waited for."""


@dataclass
class SyncCommand:
    """Deliver runs to MLflow that could not reach it: folders=[…], or all in this folder."""

    folders: list[str] = field(default_factory=list)
    """Run folders to deliver; an empty list means all in the current folder."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def sync(arguments: list[str]) -> None:
    """Deliver the run folders that are not delivered yet, and print which of them failed."""
    asked: SyncCommand = read(COMMAND, arguments)
    from topicell.tracking.delivery import deliver, undelivered
    from topicell.tracking.interrupted import ROOTS
    from topicell.tracking.record import BusyError, Record
    from topicell.tracking.store import Unreachable

    folders = [Path(folder) for folder in asked.folders]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"folders: there is no folder {str(folder)!r}")
    waiting = undelivered(folders or [Path(root) for root in ROOTS])
    problems: list[str] = []
    away: set[str] = set()
    n_delivered = 0
    for folder in waiting:
        store = asked.tracking.uri or Record.read(folder).store
        if store in away:
            continue
        try:
            run_id = deliver(folder, asked.tracking, SECONDS, BYTES_PER_SECOND)
        except BusyError:
            print(f"{folder}: the run is not finished; it will deliver its results itself")
        except Unreachable as error:
            away.add(store)
            problems.append(f"MLflow could not take {folder} ({error})")
        except (InputError, OSError) as error:
            problems.append(f"{folder} cannot be delivered ({error})")
        else:
            n_delivered += 1
            print(f"{folder}: MLflow run {run_id}")
    done = f"{n_delivered} of {len(waiting)} runs delivered"
    if problems:
        then = "fix this, then run topicell sync again to continue"
        fail(FAILED, f"{done}; {'; '.join(problems)}; {then}")
    print(done if waiting else "all runs are delivered")


COMMAND = Command(
    name="sync",
    summary="deliver runs to MLflow that could not reach it",
    examples=(("topicell sync", "or folders=[FOLDER,FOLDER]"),),
    settings=SyncCommand,
    function=sync,
)
