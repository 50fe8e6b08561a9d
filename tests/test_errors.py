"""The line in which a failed command says why it failed."""

import errno

import pytest
import torch

from topicell.errors import failure


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "lower train.batch_size"),
        (MemoryError("Unable to allocate 9 GiB"), "lower train.n_replicates"),
        (OSError(errno.ENOSPC, "No space left on device"), "add resume=true"),
        (RuntimeError("HDF5: No space left on device"), "add resume=true"),
        (ValueError("two\nlines"), "ValueError: two lines"),
        (KeyError(), "KeyError: no message"),
    ],
)
def test_a_failure_is_one_line_with_the_setting_to_change(error, words):
    assert words in failure(error)
    assert "\n" not in failure(error)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 9 GiB"), "memory is full (Unable to allocate 9 GiB)"),
        (
            OSError(errno.ENOSPC, "No space left"),
            "the disk is full ([Errno 28] No space left); free disk space and run the command "
            "again",
        ),
    ],
)
def test_commands_other_than_train_name_no_setting_of_train(error, line):
    assert failure(error, trains=False) == line
