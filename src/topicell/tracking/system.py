"""Use of processor, memory, disk, network and GPU during a run, as MLflow measures it."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from topicell.signals import held_interrupts

if TYPE_CHECKING:
    from topicell.tracking.record import Journal

END_SECONDS = 2.0
"""Wait for the last line."""
PREFIX = "system/"
"""The prefix by which MLflow's UI knows these metrics."""

log = logging.getLogger(__name__)


class SystemMetrics:
    """Append MLflow's system metrics to the journal of a run, in a thread of its own.

    MLflow's own logger sends them to the store directly, and fails when the store fails. Here they
    are written to the folder first, and delivered to MLflow with the other metrics.

    Parameters
    ----------
    journal
        The open ``metrics.jsonl`` of the run.
    seconds
        Time between two lines. A line is the mean over this time where MLflow takes means.
    """

    def __init__(self, journal: Journal, seconds: float) -> None:
        self._journal, self._seconds = journal, seconds
        known = [line["step"] for line in journal.lines if "step" in line]
        self._step = max(known, default=-1) + 1
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)

    def begin(self) -> None:
        """Start to measure."""
        # An interrupt while the thread starts would hide whether it did.
        with held_interrupts():
            self._thread.start()

    def end(self) -> None:
        """Append the last line, and stop; a monitor that hangs is left alone."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(END_SECONDS)

    def _measure(self) -> None:
        try:
            monitors = _monitors()
            ended = False
            while not ended:
                # The use of the processor is that since the call before.
                ended = self._ending.wait(self._seconds)
                line: dict[str, Any] = {"step": self._step}
                for monitor in monitors:
                    monitor.collect_metrics()
                    line |= {PREFIX + k: v for k, v in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                self._journal.append(line)
                self._step += 1
        except Exception as error:
            # A failed measurement must not end the run.
            log.warning("system metrics are not recorded further (%s)", error)


def _monitors() -> list[Any]:
    """Return MLflow's monitors, with that of the GPU if there is one that it knows."""
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    psutil.cpu_percent()  # the first call returns 0
    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        monitors.append(GPUMonitor())
    except Exception:
        log.debug("no GPU is measured", exc_info=True)
    return monitors
