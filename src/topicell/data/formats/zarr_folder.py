"""Reader of AnnData and MuData in zarr folders, also in one zip archive; annbatch collections.

An annbatch collection is a zarr group whose members ``dataset_0``, ``dataset_1``, … are AnnData of
the same genes. `topicell.data.stored` reads it in parts.
"""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topicell.data.formats.mudata import (
    choose_modality,
    is_mudata,
    read_modality,
    require_no_modality,
)
from topicell.errors import InputError

if TYPE_CHECKING:
    from anndata import AnnData

COLLECTION = "an annbatch collection"
"""Name of the format in messages."""
_MARK = "annbatch-preshuffled"
"""The attribute ``encoding-type`` of a collection."""
_DATASET = re.compile("dataset_([0-9]+)")


def read_zarr(path: Path, modality: str | None = None, prefix: str = "") -> AnnData:
    """Return the AnnData of a zarr folder that has all of its chunks.

    Parameters
    ----------
    path
        The folder, or a zip archive of it.
    modality
        Modality to read from MuData.
    prefix
        Put before names of settings in messages.
    """
    import zarr

    if path.is_dir():
        return _read_group(zarr.open_group(path, mode="r"), modality, prefix)
    store = zarr.storage.ZipStore(path, mode="r")
    try:
        # The archive is the group itself, or holds one folder of its own name that is the group.
        for root in ("", path.stem):
            with contextlib.suppress(FileNotFoundError):
                return _read_group(zarr.open_group(store, mode="r", path=root), modality, prefix)
    finally:
        store.close()
    raise InputError("is a zip archive; unpack it and give the file or folder with the counts")


def _read_group(group: Any, modality: str | None, prefix: str) -> AnnData:
    import anndata

    if is_mudata(group):
        chosen = choose_modality(sorted(group["mod"]), modality, prefix)
        require_chunks(group, f"mod/{chosen}/")
        return read_modality(group, chosen)
    require_no_modality("AnnData", modality, prefix)
    if _is_collection(group):
        raise InputError(f"is {COLLECTION} in a zip archive; unpack it and give the folder")
    require_chunks(group)
    return anndata.read_zarr(group)


def is_collection(path: Path) -> bool:
    """Return whether a zarr folder is an annbatch collection."""
    import zarr

    # The reader of zarr folders reports what is wrong with a damaged one.
    with contextlib.suppress(Exception):
        return _is_collection(zarr.open_group(path, mode="r"))
    return False


def _is_collection(group: Any) -> bool:
    return group.attrs.get("encoding-type") == _MARK or (
        "dataset_0" in group and "obs" not in group
    )


def datasets_of(group: Any) -> dict[str, Any]:
    """Return the datasets of an annbatch collection by name, in order; none of another group.

    Raises
    ------
    InputError
        A collection lacks a dataset, or all.
    """
    if not _is_collection(group):
        return {}
    numbers = sorted(int(found[1]) for name in group if (found := _DATASET.fullmatch(name)))
    if not numbers:
        raise InputError(
            "is an annbatch collection without datasets; create it again (with annbatch's "
            "DatasetCollection.add_adatas)"
        )
    if missing := set(range(numbers[-1])).difference(numbers):
        raise InputError(
            f"lacks dataset_{min(missing)} of {numbers[-1] + 1} datasets; the folder is "
            "incomplete: copy or create it again"
        )
    return {f"dataset_{number}": group[f"dataset_{number}"] for number in numbers}


def require_chunks(group: Any, prefix: str = "") -> None:
    """Reject an AnnData in which chunks of the counts or of the names are missing.

    zarr reads a missing chunk as zeros, without a warning. In these arrays no chunk is all zeros,
    except that of the indices if only the first gene has counts; such data cannot be modelled.
    """
    import zarr

    arrays = []
    for side in ("obs", "var"):
        # A table whose index has no name is rejected, or numbered, when it is read.
        index = group[prefix + side].attrs.get("_index")
        if index is not None:
            arrays.append(f"{prefix}{side}/{index}")
    layers = group.get(f"{prefix}layers", {})
    for name in ("X", "raw/X", *(f"layers/{layer}" for layer in layers)):
        matrix = group.get(prefix + name)
        if isinstance(matrix, zarr.Group) and "data" in matrix and matrix["data"].size:
            arrays += [f"{prefix}{name}/{part}" for part in ("data", "indices", "indptr")]
    for name in arrays:
        for array in _parts(group[name]):
            # In a sharded array, each file (a shard) holds many chunks.
            shards = array.shards or array.chunks
            n_all = math.prod(-(-n // size) for n, size in zip(array.shape, shards, strict=True))
            chunks = zip(shards, array.chunks, strict=True)
            n_there = array.nchunks_initialized // math.prod(-(-s // c) for s, c in chunks)
            if n_there < n_all:
                raise InputError(
                    f"{name} lacks {n_all - n_there} of {n_all} chunks; the folder is incomplete: "
                    "copy or create it again"
                )


def _parts(element: Any) -> list[Any]:
    """Return the arrays of an element: itself, or those of its encoding."""
    import zarr

    if isinstance(element, zarr.Group):  # nullable strings
        return [element[name] for name in ("values", "codes") if name in element]
    return [element]
