"""Errors for users, and the one-line message of a failed run."""

from __future__ import annotations

import errno

from topicell.redaction import without_password


class InputError(ValueError):
    """Invalid data or an invalid setting: the message says what was found and how to fix it.

    Examples
    --------
    >>> import topicell
    >>> topicell.load_dataset("pbmc68", backed=False)
    Traceback (most recent call last):
      ...
    topicell.errors.InputError: data.name = 'pbmc68': did you mean pbmc68k? known are pbmc68k, ...
    """


class NotInPartsError(InputError):
    """A file cannot be prepared in parts, but perhaps in memory."""


def failure(error: BaseException, *, trains: bool = True) -> str:
    """Return in one line why a command failed.

    Parameters
    ----------
    error
        The error that it raised.
    trains
        Whether to name the settings of ``topicell train`` that save memory or disk space.
    """
    message = without_password(" ".join(str(error).split())) or "no message"
    if not trains and disk_is_full(error):
        return f"the disk is full ({message}); free disk space and run the command again"
    if not trains and isinstance(error, MemoryError):
        return f"memory is full ({message})"
    if type(error).__name__ == "OutOfMemoryError":
        # torch's error, which is not imported here.
        fix = (
            "lower train.batch_size, train.n_replicates or model.n_hidden, or use train.device=cpu"
        )
        return f"the GPU's memory is full ({message[:120]}); {fix}"
    if isinstance(error, MemoryError):
        fix = (
            "lower train.n_replicates or preprocess.n_variable_genes (in a sweep, also "
            "sweep.n_jobs), or read an h5ad file with data.backed=true"
        )
        return f"memory is full ({message}); {fix}"
    if disk_is_full(error) or "No space left on device" in message:
        fix = "free disk space, then add resume=true to the command to continue; "
        return f"the disk is full ({message}); {fix}report=off and fewer replicates need less space"
    return f"{type(error).__name__}: {message}"


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, is due to a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
