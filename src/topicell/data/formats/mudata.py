"""Reader of one modality of MuData: several AnnData over the same cells, in HDF5 or zarr."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_EXPRESSION = ("rna", "gex", "gene expression", "gene_expression", "scrna", "expression")


def is_mudata(group: Any) -> bool:
    """Return whether an open HDF5 file or zarr group is MuData."""
    return "mod" in group and "X" not in group


def require_no_modality(form: str, modality: str | None, prefix: str) -> None:
    """Raise an error if a modality is named but the data have none."""
    if modality is not None:
        raise InputError(
            f"{prefix}modality = {modality!r} is for MuData, but this is {form}; leave it out"
        )


def choose_modality(names: list[str], modality: str | None, prefix: str) -> str:
    """Return the modality to read: the named one, the only one, or the one with gene expression.

    Raises
    ------
    InputError
        There is no modality with that name, or none is named and none is known to be gene
        expression.

    Warns
    -----
    UserWarning
        One of several modalities is selected.
    """
    here = ", ".join(names)
    if modality is not None:
        if modality not in names:
            raise InputError(
                f"{prefix}modality = {modality!r}: no such modality; found: {here or 'none'}"
            )
        return modality
    if len(names) == 1:
        return names[0]
    known = [name for name in names if name.lower() in _EXPRESSION]
    if len(known) != 1:
        raise InputError(
            f"is MuData with the modalities {here or 'none'}; name the one with gene counts: "
            f"{prefix}modality=NAME"
        )
    others = ", ".join(name for name in names if name != known[0])
    warnings.warn(
        f"MuData: modality {known[0]!r} is read, {others} not; {prefix}modality=NAME selects "
        "another",
        UserWarning,
        stacklevel=3,
    )
    return known[0]


def read_modality(group: Any, modality: str) -> AnnData:
    """Return a modality of an open MuData, with the columns of cells that all modalities share."""
    from anndata import AnnData
    from anndata.io import read_elem

    adata = read_elem(group[f"mod/{modality}"])
    if not isinstance(adata, AnnData):  # written without the name of its encoding
        raise InputError(f"mod/{modality} is not an AnnData; write the file with mudata's write")
    shared: pd.DataFrame = read_elem(group["obs"]) if "obs" in group else adata.obs[[]]
    # Columns of a modality have its name as a prefix.
    shared = shared.rename(columns=lambda name: str(name).removeprefix(f"{modality}:"))
    shared = shared.loc[~shared.index.duplicated(), ~shared.columns.duplicated()]
    shared = shared.drop(columns=[name for name in shared if name in adata.obs])
    for name, column in shared.reindex(adata.obs_names).items():
        adata.obs[name] = column.array
    return adata
