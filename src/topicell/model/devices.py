"""Which GPUs torch can use, for ``topicell doctor``."""

from __future__ import annotations

import warnings
from typing import Any


def devices() -> dict[str, Any]:
    """Return what torch says of CUDA: its own build, the GPUs with their memory, and problems.

    Returns
    -------
    ``build``, the version of CUDA for which torch was built (None for a build for the CPU);
    ``gpus``, name and bytes of memory of each; ``problem``, the warning of torch if it cannot use
    the driver, else an empty text.
    """
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        found = [torch.cuda.get_device_properties(number) for number in range(n_gpus)]
    return {
        "build": torch.version.cuda,
        "gpus": [(one.name, one.total_memory) for one in found],
        "problem": " ".join(str(caught[0].message).split()) if caught else "",
    }
