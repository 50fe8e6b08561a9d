"""Checkpoints: the state of a fit on disk, from which it goes on with the same bytes.

A checkpoint is one safetensors file: weights, moments of Adam, random states; and in its header, as
JSON, where the fit stood. It is written beside its place, flushed to the disk and renamed, so a
file that has its name is whole, whenever the process was killed.
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
"""Checkpoints that are kept: the one before stays where the newest turns out to be damaged."""


class Checkpoints:
    """The checkpoints of one fit.

    Parameters
    ----------
    folder
        Where they are; made with the first one.
    every
        ``train.checkpoint_every``; with null none is written, and none is looked for.
    """

    def __init__(self, folder: Path, every: int | str | None) -> None:
        self.folder = folder
        self.interval = checkpoint_interval(every)
        self.seconds_before = 0.0
        """Seconds that the fit took before the checkpoint it goes on from."""
        self._began = self._written = time.monotonic()
        self._epochs_written = 0
        self.written = False
        """Whether the fit was long enough to have a checkpoint."""

    @property
    def seconds(self) -> float:
        """Seconds that the fit has taken, those before an interruption too."""
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
        """Keep the state after so many steps, and the one before it; an interrupt waits for it.

        A disk that is full costs a warning and the checkpoint, not the fit.
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
        """Return the newest checkpoint that can be read, as `write` was given it; None if none can.

        Warns
        -----
        UserWarning
            A newer one is damaged.
        """
        if self.interval is None:
            return None
        import safetensors

        for path in reversed(self._paths()):
            try:
                with safetensors.safe_open(path, "pt") as file:
                    state = json.loads(file.metadata()["state"])
                    # It has keys, and is no mapping.
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
        """Delay interrupts of a fit that keeps its state; delay nothing of others."""
        return contextlib.nullcontext(Interrupt()) if self.interval is None else held_interrupts()

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))


def _write_whole(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file that is whole as soon as it has its name, and on the disk."""
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
    # The new name, too.
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
