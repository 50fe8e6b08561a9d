"""Errors of reading a file, as messages that name the file and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from topicell.errors import InputError


@contextlib.contextmanager
def named_errors(path: Path, form: str) -> Iterator[None]:
    """Raise every error of reading a file as an `InputError` that begins with its path.

    Parameters
    ----------
    path
        The file or folder.
    form
        Name of its format.
    """
    try:
        yield
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    except MemoryError as error:
        raise InputError(
            f"{path}: reading it needs more memory than there is ({error}); if the file is small, "
            "it is damaged: copy or download it again; if it is a large h5ad file, use topicell "
            "train with data.backed=true, which reads only the counts"
        ) from error
    except Exception as error:
        # A damaged file can cause any error of h5py, zarr, pandas, scipy or gzip.
        what = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{path}: cannot be read as {form} ({type(error).__name__}: {what}); the file may be "
            "incomplete, damaged or in another format: copy or download it again, or write a new "
            "file"
        ) from error
