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
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Limits of a container, versions 2 and 1: the folder, its files with limit and use of memory, and
the entry of ``memory.stat`` with the pages of files that can be taken back."""


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a matrix of counts that was not read."""

    n_cells: int
    n_genes: int
    n_values: int
    """Number of non-zero values; of a dense matrix, estimated from some rows."""
    by_rows: bool = True
    """Whether some of the cells can be read alone."""
    dense_bytes: int = 0
    """Size of a dense matrix, bytes."""


def needed(size: Size, *, in_parts: bool) -> int:
    """Return the estimated peak memory of a run, bytes."""
    base = BASE + PER_FEW * min(size.n_cells, FEW)
    if in_parts and size.by_rows:
        return base + PER_CELL * size.n_cells
    return base + max(PER_VALUE * size.n_values, size.dense_bytes)


def free() -> int | None:
    """Return how much memory this process can get, bytes; None if the system does not say."""
    return min(_limits(), default=None)


def _limits() -> Iterator[int]:
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    for folder, limit, used, pages in CGROUPS:
        try:
            size, taken = (int((Path(folder) / name).read_text()) for name in (limit, used))
            lines = (Path(folder) / "memory.stat").read_text().splitlines()
            entries = dict(line.split()[:2] for line in lines)
            yield size - taken + int(entries.get(pages, 0))
        except (OSError, ValueError):  # no such file, or "max"
            continue


def shortage(size: Size, *, in_parts: bool, fix: str) -> str:
    """Return why a run will not have enough memory, and how to change that; else an empty text."""
    there, need = free(), needed(size, in_parts=in_parts)
    if there is None or need <= there:
        return ""
    return (
        f"{size.n_cells:,} cells × {size.n_genes:,} genes with {size.n_values:,} non-zero counts "
        f"need about {_gib(need)} of memory, but {_gib(there)} are free; {fix}"
    )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.1f} GiB"
