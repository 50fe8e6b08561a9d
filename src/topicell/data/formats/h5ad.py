"""Readers of h5ad files, and of MuData in HDF5."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from topicell.counts import as_counts, locate
from topicell.data.formats.mudata import choose_modality, read_modality
from topicell.data.formats.repeats import n_repeated, warn_of_repeats
from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def read_h5ad(path: Path) -> AnnData:
    """Return the AnnData of an h5ad file that names its cells and genes."""
    import anndata
    import h5py

    # anndata invents names if the file has none; invented gene names would match any other file.
    with h5py.File(path, "r") as file:
        for side, what in (("obs", "cells"), ("var", "genes")):
            if side not in file:
                raise InputError(
                    f"cannot be read as h5ad: it has no {side} with the names of the {what}; write "
                    "it with anndata's write_h5ad"
                )
    return anndata.read_h5ad(path)


def read_h5mu(path: Path, modality: str | None = None, prefix: str = "") -> AnnData:
    """Return one modality of a MuData file; `choose_modality` says which."""
    import h5py

    with h5py.File(path, "r") as file:
        return read_modality(file, choose_modality(sorted(file["mod"]), modality, prefix))


def read_counts_alone(path: Path, layer: str | None, *, round_values: bool = False) -> AnnData:
    """Read only counts, obs and var of an h5ad file."""
    import h5py
    from anndata import AnnData
    from anndata.io import read_elem

    with h5py.File(path, "r") as file:
        if not all(isinstance(file.get(name), h5py.Group) for name in ("obs", "var")):
            raise InputError(
                "has obs and var in an old form (anndata before 0.7), which backed=true cannot "
                "read; leave out backed=true"
            )
        # `locate` finds the element in this object, which has the attributes of an AnnData, without
        # reading it.
        raw = SimpleNamespace(X=file["raw/X"], var_names=None) if "raw" in file else None
        outline = SimpleNamespace(
            X=file.get("X"), layers=file.get("layers", {}), raw=raw, var_names=None
        )
        where, element, _ = locate(outline, layer)
        var = _table(file["raw/var" if where == "raw" else "var"])
        matrix = read_elem(element)
        x = as_counts(matrix, where, genes=var.index, round_values=round_values)
        warn_of_repeats(n_repeated(matrix), where)
        return AnnData(x, obs=_table(file["obs"]), var=var, layers={"counts": x})


def _table(group: Any) -> pd.DataFrame:
    """Return a table; without an index it is numbered, as in anndata."""
    import pandas as pd
    from anndata.io import read_elem

    table = read_elem(group)
    if isinstance(table, pd.DataFrame):
        return table
    table = pd.DataFrame(table)
    return table.set_axis(table.index.astype(str))
