"""Share the passes over a file among the workers of Dask (``preprocess.dask``).

Each worker opens the file by its path and computes the partial results of one chunk of cells. They
come back in the order of the file, a bounded number of them at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import logging
import multiprocessing
import os
import platform
import signal
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topicell.errors import InputError
from topicell.files import digest_of_code
from topicell.progress import step
from topicell.signals import held_interrupts

if TYPE_CHECKING:
    from distributed import Client

    from topicell.data.stored import JoinedMatrix, Over, StoredCounts, StoredMatrix

LOCAL = "local"
"""Value of ``preprocess.dask`` for worker processes on this machine."""
SECONDS = 10
"""How long to wait for the answer of a scheduler."""
N_AHEAD = 2
"""Number of chunks for each thread of a worker that are computed, or wait, at the same time."""


def require_distributed(dask: str | None) -> None:
    """Reject the setting if its library is not installed.

    Raises
    ------
    InputError
        The message names the extra.
    """
    if dask is not None and importlib.util.find_spec("distributed") is None:
        raise InputError(
            f"preprocess.dask = {dask!r} needs the library distributed, which is not installed; "
            "pip install 'topicell[dask]'"
        )


@contextlib.contextmanager
def shared(stored: StoredCounts, dask: str | None) -> Iterator[Over]:
    """Yield what computes functions of the counts: this process, or the workers of Dask.

    Parameters
    ----------
    stored
        The counts.
    dask
        The setting; None computes in this process.

    Raises
    ------
    InputError
        The workers cannot be reached, have other code, or do not find a file.
    """
    if dask is None:
        yield stored.over
        return
    require_distributed(dask)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        n_chunks = len(stored.matrix.rows[:: stored.matrix.n_rows])
        client = stack.enter_context(_local(n_chunks) if dask == LOCAL else _remote(dask))
        _require_same(client, stored.matrix, dask)
        yield OverWorkers(client, stored.matrix)


@dataclass(frozen=True, slots=True)
class OverWorkers:
    """Compute functions of the counts with the workers of a client; see `Over`."""

    client: Client
    matrix: StoredMatrix | JoinedMatrix

    def __call__(
        self, function: Callable[..., Iterator[Any]], of_cells: Sequence[np.ndarray], *others: Any
    ) -> Iterator[Any]:
        """Give each chunk of cells to a worker; yield its results in the order of the file."""
        common = (code(), self.matrix, others)
        future = self.client.scatter([common], broadcast=True, hash=False)[0]
        limit = N_AHEAD * sum(self.client.nthreads().values())
        waiting: deque[Any] = deque()
        starts = self.matrix.rows[:: self.matrix.n_rows]
        with step("chunks of cells, by the workers of Dask", len(starts), "chunks") as shown:
            for first in starts:
                rows = range(first, min(first + self.matrix.n_rows, self.matrix.rows.stop))
                of_rows = [of_cell[rows.start : rows.stop] for of_cell in of_cells]
                submitted = self.client.submit(_part, function, rows, of_rows, future, pure=False)
                waiting.append(submitted)
                if len(waiting) >= max(limit, 1):
                    yield from _result(waiting.popleft())
                    shown.advance()
            while waiting:
                yield from _result(waiting.popleft())
                shown.advance()


def _part(
    function: Callable[..., Iterator[Any]],
    rows: range,
    of_rows: Sequence[np.ndarray],
    common: tuple[str, StoredMatrix | JoinedMatrix, tuple[Any, ...]],
) -> list[Any] | Exception:
    """Return the partial results of some rows, in a worker.

    An error is returned too: Dask would log one that is raised.
    """
    theirs, matrix, others = common
    try:
        # A worker may have come after the others were checked.
        if problem := _problem(theirs, {str(file): None for file in matrix.files}):
            raise InputError(f"preprocess.dask: a worker {problem}")
        return list(function(replace(matrix, rows=rows), *of_rows, *others))
    except Exception as error:
        error.add_note(f"in a worker of Dask:\n{traceback.format_exc()}")
        return error


def _result(future: Any) -> list[Any]:
    """Return the partial results of a chunk."""
    try:
        found: list[Any] | Exception = future.result()
    except Exception as error:  # Dask's errors have no class in common
        raise RuntimeError(
            "preprocess.dask: the workers or their scheduler were lost "
            f"({type(error).__name__}: {error}); their logs say why"
        ) from error
    if isinstance(found, Exception):
        raise found
    return found


@functools.cache
def code() -> str:
    """Return the versions of all that determines a partial result, and a digest of topicell."""
    digest = digest_of_code(Path(__file__).parents[1])
    versions = [f"{name} {version(name)}" for name in ("numpy", "scipy", "anndata", "scanpy")]
    own = f"topicell {version('topicell')} (code {digest[:8]})"
    return ", ".join([own, *versions, "Python " + ".".join(platform.python_version_tuple()[:2])])


def _problem(theirs: str, sizes: Mapping[str, int | None]) -> str | None:
    """Return why this process cannot compute partial results; None if it can.

    `sizes` has the bytes of each file; None is not checked.
    """
    if theirs != code():
        return f"has {code()}, whereas this process has {theirs}; install the same versions"
    for file, size in sizes.items():
        path = Path(file)
        if not path.exists():
            return (
                f"does not find {file}; put the file on a disk that all workers have at this path"
            )
        if size is not None and path.stat().st_size != size:
            return f"has another file at {file}, with {path.stat().st_size} bytes instead of {size}"
    return None


def _require_same(client: Client, matrix: StoredMatrix | JoinedMatrix, dask: str) -> None:
    """Reject workers that have other code or other files than this process."""
    sizes = {str(file): file.stat().st_size if file.is_file() else None for file in matrix.files}
    problems = client.run(_problem, code(), sizes, on_error="return")
    if not problems:
        raise InputError(
            f"preprocess.dask = {dask!r}: the scheduler has no workers; start some with "
            "`dask worker ADDRESS --nthreads 1`"
        )
    found = {address: problem for address, problem in problems.items() if problem is not None}
    for address, problem in found.items():
        if isinstance(problem, Exception):
            # It could not even import this function.
            problem = (
                f"cannot run this version of topicell ({type(problem).__name__}: {problem}); "
                f"install {code()}"
            )
        raise InputError(
            f"preprocess.dask = {dask!r}: the worker {address} {problem} ({len(found)} of "
            f"{len(problems)} workers)"
        )


@contextlib.contextmanager
def _remote(dask: str) -> Iterator[Client]:
    """Connect to a scheduler by its address or its file."""
    from distributed import Client

    address = _address_in(dask) if dask.endswith(".json") else dask
    try:
        # A client waits forever for what is no scheduler.
        asyncio.run(asyncio.wait_for(_identity_of(address), SECONDS))
        client = Client(address, timeout=SECONDS, set_as_default=False)
    except Exception as error:  # another server at this address can cause any error
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"preprocess.dask = {dask!r}: no scheduler answers within {SECONDS} s ({why}); start "
            "one with `dask scheduler`, or use preprocess.dask=local"
        ) from error
    with client:
        yield client


def _address_in(file: str) -> str:
    """Return the address in the file of a scheduler."""
    try:
        return str(json.loads(Path(file).expanduser().read_text())["address"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"preprocess.dask = {file!r}: this is not the file of a scheduler ({error}); "
            "`dask scheduler --scheduler-file FILE.json` writes it"
        ) from error


async def _identity_of(address: str) -> None:
    """Ask a scheduler who it is."""
    from distributed import Security
    from distributed.core import rpc

    arguments = Security().get_connection_args("client")
    async with rpc(address, connection_args=arguments) as scheduler:
        await scheduler.identity()


@contextlib.contextmanager
def _local(n_chunks: int) -> Iterator[Client]:
    """Start worker processes on this machine, and end them.

    They listen on the loopback interface only, with encryption by a key that is made for them, so
    that other users of the machine cannot give them tasks.
    """
    import dask
    from dask.system import CPU_COUNT
    from distributed import Client, LocalCluster

    if multiprocessing.current_process().daemon:
        raise InputError(
            "preprocess.dask = 'local': a trial of a sweep cannot start workers; first run "
            "topicell train with these data, which the sweep then takes from the cache, or give "
            "the address of a scheduler"
        )
    settings: dict[str, Any] = {
        # Dask would set the environment of this process too.
        "distributed.nanny.pre-spawn-environ": {},
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        "distributed.nanny.http.routes": [],
    }
    before = dict(os.environ)
    with (
        tempfile.TemporaryDirectory(prefix="topicell-dask-") as folder,
        dask.config.set({**settings, "temporary-directory": folder}),
        contextlib.ExitStack() as stack,
    ):
        # Half a cluster could not be closed.
        with held_interrupts(), _interrupts_blocked():
            cluster = LocalCluster(
                n_workers=max(1, min(CPU_COUNT, n_chunks)),
                threads_per_worker=1,
                host="127.0.0.1",
                security=True,
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                local_directory=folder,
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            )
            stack.callback(_restore, before)
            stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster, timeout=SECONDS, set_as_default=False))
        client.run(_silence)
        yield client


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes that never receive Ctrl-C: it reaches this process alone."""
    # Python's own helper process would unblock it in the thread that starts it.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _silence() -> None:
    """Keep a worker process from writing to the terminal of the user."""
    import warnings

    warnings.simplefilter("ignore")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def _restore(before: dict[str, str]) -> None:
    """Remove variables of the environment that Dask added."""
    for name in set(os.environ) - set(before):
        del os.environ[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask's own log lines from the terminal: the errors that they tell of are raised."""
    import distributed  # noqa: F401 it sets its levels when it is imported

    names = [n for n in logging.root.manager.loggerDict if n.startswith(("distributed", "tornado"))]
    loggers = [logging.getLogger(name) for name in names]
    levels = [(logger, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
