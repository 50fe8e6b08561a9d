"""Checkpoints: the state of a fit on disk, from which it continues with the same bytes.

A checkpoint is one safetensors file with weights, moments of Adam and random states; its header has
the progress of the fit as JSON. It is written under a temporary name, flushed to the disk and
renamed, so a file with the final name is complete, even if the process was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicell.config import checkpoint_interval
from topicell.signals import Interrupt, held_interrupts

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2
"""Number of checkpoints that are kept: the previous one is used if the newest is damaged."""


class Checkpoints:
    """The checkpoints of one fit.

    Parameters
    ----------
    folder
        Folder of the checkpoints; created with the first one.
    every
        ``train.checkpoint_every``; null disables checkpoints.
    """

    def __init__(self, folder: Path, every: int | str | None) -> None:
        self.folder = folder
        self.interval = checkpoint_interval(every)
        self.seconds_before = 0.0
        """Seconds that the fit took before the checkpoint from which it continues."""
        self._began = self._written = time.monotonic()
        self._epochs_written = 0
        self.written = False
        """Whether the fit was long enough to have a checkpoint."""

    @property
    def seconds(self) -> float:
        """Seconds that the fit has taken, including those before an interruption."""
        return self.seconds_before + time.monotonic() - self._began

    def due(self, n_epochs: int, *, epoch_ended: bool) -> bool:
        """Return whether a checkpoint is due, after a step or, if `epoch_ended`, an epoch."""
        if self.interval is None:
            return False
        number, unit = self.interval
        if unit == "epochs":
            return epoch_ended and n_epochs - self._epochs_written >= number
        return time.monotonic() - self._written >= number

    def write(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any], step: int) -> None:
        """Write the state after so many steps, and keep the previous one; delay interrupts.

        If the disk is full, the checkpoint is skipped with a warning, and the fit continues.
        """
        if self.interval is None:
            return
        path = self.folder / f"step-{step:09d}.safetensors"
        header = {"state": json.dumps({**state, "seconds": self.seconds})}
        whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with held_interrupts():
            try:
                _write_whole(path, whole, header)
            except OSError as error:
                warnings.warn(
                    f"the checkpoint {path} could not be written ({error.strerror}); the fit "
                    "continues without it. Free disk space, or set train.checkpoint_every=null",
                    stacklevel=2,
                )
            else:
                self.written = True
                for old in self._paths()[:-KEPT]:
                    old.unlink(missing_ok=True)
            self._written = time.monotonic()
            self._epochs_written = int(state["epoch"])

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest readable checkpoint, as passed to `write`; None if there is none.

        Warns
        -----
        UserWarning
            A newer checkpoint is damaged.
        """
        if self.interval is None:
            return None
        import safetensors

        for path in reversed(self._paths()):
            try:
                with safetensors.safe_open(path, "pt") as file:
                    state = json.loads(file.metadata()["state"])
                    # It has keys, but is not a mapping.
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
                warnings.warn(
                    f"the checkpoint {path} is damaged ({error}); the fit continues from an "
                    "earlier state",
                    stacklevel=2,
                )
                path.unlink()
                continue
            self.seconds_before = float(state.pop("seconds"))
            self._epochs_written = int(state["epoch"])
            self.written = True
            return tensors, state
        return None

    def held_interrupts(self) -> contextlib.AbstractContextManager[Interrupt]:
        """Delay interrupts of a fit that has checkpoints; do not delay them for other fits."""
        return contextlib.nullcontext(Interrupt()) if self.interval is None else held_interrupts()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))


def _write_whole(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file that is complete and on the disk before it gets its name."""
    import safetensors.torch

    unfinished = path.with_suffix(".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(safetensors.torch.save(dict(tensors), dict(header)))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    # Flush the new name too.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
