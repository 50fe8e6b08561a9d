"""Foresee the memory of a run before its data are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BASE = 700 * 2**20
"""Memory of a run of a few cells: mostly libraries (experiments/scale)."""
FEW, PER_FEW = 20_000, 10_000
"""Bytes for each cell up to a number of cells, above which mini-batches and maps do not grow."""
PER_VALUE = 57
"""Bytes for each non-zero count if all are in memory at once: counts, log-normalised values, and
copies of both while genes are chosen."""
PER_CELL = 1_800
"""Bytes for each cell if counts are prepared in parts: those of the modelled genes, and tables."""
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
    ),
)
"""Files with the limit and the use of memory of a container, versions 2 and 1."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a matrix of counts that was not read."""

    n_cells: int
    n_genes: int
    n_values: int
    """Number of stored values."""


def needed(size: Size, *, in_parts: bool) -> int:
    """Return the estimated peak memory of a run, bytes."""
    base = BASE + PER_FEW * min(size.n_cells, FEW)
    return base + (PER_CELL * size.n_cells if in_parts else PER_VALUE * size.n_values)


def free() -> int | None:
    """Return how much memory this process can get, bytes; None if the system does not say."""
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    for limit, used in CGROUPS:
        try:
            yield int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such file, or "max"
            continue


def shortage(size: Size, *, in_parts: bool, can_be_in_parts: bool) -> str:
    """Return why a run will not have enough memory, and how to change that; else an empty text."""
    there, need = free(), needed(size, in_parts=in_parts)
    if there is None or need <= there:
        return ""
    if in_parts:
        fix = "use fewer cells or a machine with more memory"
    elif can_be_in_parts:
        less = needed(size, in_parts=True)
        fix = f"data.backed=true prepares them in parts, which needs about {_gib(less)}"
    else:
        less = needed(size, in_parts=True)
        fix = (
            "write them as h5ad with cells in rows (CSR), which can be prepared in parts "
            f"(data.backed=true) with about {_gib(less)}"
        )
    return (
        f"{size.n_cells:,} cells × {size.n_genes:,} genes with {size.n_values:,} values need about "
        f"{_gib(need)} of memory, but {_gib(there)} are free; {fix}"
    )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"
