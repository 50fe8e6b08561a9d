"""Named data sets: their addresses, their checksums, and how each is converted to counts.

`CATALOGUE` lists them. `fetch` downloads a file into the data folder and checks its sha256, or
finds it there without using the network. Data sets that are not plain h5ad have a loader here:
`load_pbmc68k` (included in scanpy, counts recovered from rounded logarithms) and `load_pbmc_facs`
(an R workspace, which also holds a published fit).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import scipy.sparse as sp

from topicell.counts import as_counts
from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named data set.

    Attributes
    ----------
    name
        As in ``data.name``.
    url
        Public address, or None for a data set that is included in scanpy.
    file_name
        Name in the data folder.
    sha256
        Fixed checksum of the file, or None if there is no download.
    label_key
        Column of obs that holds known cell types, or None.
    licence
        Terms under which the cells were published.
    description
        One line.
    """

    name: str
    url: str | None
    file_name: str
    sha256: str | None
    label_key: str | None
    licence: str
    description: str


CATALOGUE: Mapping[str, Dataset] = MappingProxyType(
    {
        dataset.name: dataset
        for dataset in (
            Dataset(
                name="pbmc68k",
                url=None,
                file_name="",
                sha256=None,
                label_key="bulk_labels",
                licence="CC BY 4.0 (10x Genomics); distributed with scanpy (BSD-3-Clause)",
                description=(
                    "700 blood cells × 765 genes of PBMC 68k (Zheng et al. 2017), included in "
                    "scanpy: needs no network"
                ),
            ),
            Dataset(
                name="pbmc_facs",
                url="https://github.com/stephenslab/fastTopics/raw/master/data/pbmc_facs.RData",
                file_name="pbmc_facs.RData",
                sha256="90ae0879b8c7ba4d456f9a0d1be964213b0dda6788a7b05b48d867b9f76f2946",
                label_key="celltype",
                licence="BSD-2-Clause (fastTopics); cells CC BY 4.0 (10x Genomics)",
                description="3,774 FACS-sorted blood cells × 16,791 genes in 10 sorted "
                "sub-populations (Zheng et al. 2017), with a published 6-topic fit",
            ),
            Dataset(
                name="pbmc3k",
                url="https://exampledata.scverse.org/scanpy/pbmc3k_raw.h5ad",
                file_name="pbmc3k_raw.h5ad",
                sha256="89a96f1beaa2dd83a687666d3f19a4513ac27a2a2d12581fcd77afed7ea653a1",
                label_key=None,
                licence="CC BY 4.0 (10x Genomics)",
                description="2,700 blood cells × 32,738 genes, unfiltered (10x Genomics)",
            ),
            Dataset(
                name="pbmc10k",
                url="https://github.com/YosefLab/scVI-data/raw/master/pbmc_10k_protein_v3.h5ad",
                file_name="pbmc_10k_protein_v3.h5ad",
                sha256="5f08b8575febf9e04b209b94eb43f6335f1e33b0985cdcf44adf7320f6243c69",
                label_key=None,
                licence="CC BY 4.0 (10x Genomics)",
                description="PBMC 10k, the cells of the scvi-tools tutorial (10x Genomics)",
            ),
            Dataset(
                name="pbmc5k",
                url="https://github.com/YosefLab/scVI-data/raw/master/pbmc_5k_protein_v3.h5ad",
                file_name="pbmc_5k_protein_v3.h5ad",
                sha256="a1bf51e070d24b39627ea4de9b3e489a4637ff795e1061e0733e26c3baec8847",
                label_key=None,
                licence="CC BY 4.0 (10x Genomics)",
                description="PBMC 5k with surface proteins (10x Genomics)",
            ),
        )
    }
)


def data_folder() -> Path:
    """Return the folder of downloads: ``TOPICELL_DATA``, else the user's cache folder."""
    folder = os.environ.get("TOPICELL_DATA")
    if folder:
        return Path(folder).expanduser()
    import pooch

    return Path(pooch.os_cache("topicell")) / "data"


def fetch(
    dataset: Dataset,
    folder: str | Path | None = None,
    progress: bool = True,
    *,
    allow_loopback_http: bool = False,
) -> Path:
    """Return the file of a data set, downloaded if it is not in the folder yet.

    An existing file with the right checksum is used: no request is made and nothing is written. An
    existing file with another checksum is replaced after the new one is downloaded completely. If a
    download fails, the files of the folder do not change.

    Parameters
    ----------
    dataset
        An entry of `CATALOGUE`.
    folder
        Folder of the file; None is `data_folder`.
    progress
        Show a progress bar.
    allow_loopback_http
        Accept a plain http address on this machine (for tests and local mirrors).

    Raises
    ------
    InputError
        The file could not be downloaded completely.
    """
    if dataset.url is None or dataset.sha256 is None:
        raise InputError(f"{dataset.name} comes with scanpy; there is no file to download")
    path = Path(folder if folder is not None else data_folder()) / dataset.file_name
    if path.is_file() and _sha256(path) == dataset.sha256:
        return path
    if not _is_safe(dataset.url, allow_loopback_http):
        raise InputError(f"{dataset.name}: {dataset.url} is not an https address")

    import pooch
    import requests

    try:
        # pooch writes to a temporary name in the same folder, checks the checksum, then renames the
        # file.
        pooch.retrieve(
            dataset.url,
            known_hash=f"sha256:{dataset.sha256}",
            fname=path.name,
            path=path.parent,
            downloader=partial(_download, progress, allow_loopback_http),
        )
    except requests.HTTPError as error:
        found = f"the server answered {str(error).partition(' for url')[0]}"
        raise _not_downloaded(dataset, path, found) from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise _not_downloaded(
            dataset, path, "the connection was lost during the download"
        ) from error
    except requests.Timeout as error:
        raise _not_downloaded(dataset, path, "the server did not answer in time") from error
    except requests.exceptions.SSLError as error:
        found = f"no secure connection ({error})"
        raise _not_downloaded(dataset, path, found) from error
    except requests.ConnectionError as error:
        raise _not_downloaded(dataset, path, "the server cannot be reached") from error
    except requests.RequestException as error:
        raise _not_downloaded(dataset, path, str(error)) from error
    except ValueError as error:  # pooch: the checksum differs
        found = "the downloaded file has a wrong checksum: it is incomplete or has changed"
        raise _not_downloaded(dataset, path, found) from error
    except OSError as error:
        raise _not_downloaded(dataset, path, f"the file cannot be written ({error})") from error
    return path


def load_pbmc68k() -> AnnData:
    """Return 700 cells of PBMC 68k with their integer counts, from the copy in scanpy.

    Scanpy's copy holds ``log1p(count * 1e4 / n_counts)`` rounded to three decimals. Each stored
    value r stands for an interval of counts, ``expm1(r ± 0.0005) * n_counts / 1e4``; the count
    is recovered only if that interval is narrower than 1 and holds exactly one whole number,
    so the result is the only table of counts that agrees with the stored values.

    Raises
    ------
    InputError
        A value does not stand for exactly one count (scanpy has other data than expected).
    """
    import scanpy as sc
    from anndata import AnnData

    shipped = sc.datasets.pbmc68k_reduced()
    logged = sp.csr_matrix(shipped.raw.X)
    n_counts = shipped.obs["n_counts"].to_numpy(np.float64)
    counts = _undo_rounded_log1p(logged, n_counts / 1e4)
    x = as_counts(counts, "pbmc68k", genes=shipped.raw.var_names)
    adata = AnnData(x, obs=shipped.obs.copy(), var=shipped.raw.var.copy(), layers={"counts": x})
    # There is no file to hash, so the digest is that of the arrays that scanpy returned.
    arrived = hashlib.sha256()
    for array in (logged.data, logged.indices, logged.indptr, n_counts):
        arrived.update(np.ascontiguousarray(array).tobytes())
    adata.uns["topicell_source"] = {
        "name": "pbmc68k",
        "source": "scanpy",
        "sha256": arrived.hexdigest(),
        "label_key": "bulk_labels",
    }
    return adata


def load_pbmc_facs(path: str | Path | None = None) -> AnnData:
    """Return 3,774 FACS-sorted blood cells: counts, sorted populations, gene identifiers.

    ``obs`` has ``celltype`` (10 sorted sub-populations) and ``subpop`` (5 groups); the index of
    ``var`` is the gene symbol, with the suffix ``-1`` for the second of two equal symbols, and it
    has a column ``ensembl``.

    Parameters
    ----------
    path
        ``pbmc_facs.RData``; None fetches it.

    Raises
    ------
    InputError
        The file cannot be downloaded, or is not this R workspace.
    """
    return _facs_cells(path, "counts", "samples", "pbmc_facs")


def load_pbmc_facs_test(path: str | Path | None = None) -> AnnData:
    """Return the 100 cells held out from `load_pbmc_facs`, with the same genes in the same order.

    Parameters
    ----------
    path
        ``pbmc_facs.RData``; None fetches it.

    Raises
    ------
    InputError
        The file cannot be downloaded, or is not this R workspace.
    """
    return _facs_cells(path, "counts_test", "samples_test", "pbmc_facs_test")


def published_facs_fit(path: str | Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the 6-topic multinomial fit published with the FACS cells.

    Parameters
    ----------
    path
        ``pbmc_facs.RData``; None fetches it.

    Returns
    -------
    F
        Genes × topics, columns sum to 1, indexed as ``var_names`` of `load_pbmc_facs`.
    L
        Cells × topics, rows sum to 1, indexed as its ``obs_names``.

    Raises
    ------
    InputError
        The file cannot be downloaded, or is not this R workspace.

    References
    ----------
    Dey, Hsiao, Stephens (2017), PLoS Genetics 13, e1006599; Carbonetto et al., fastTopics.
    """
    import pandas as pd

    _, workspace = _facs_workspace(path)
    fit, names = workspace["fit"], workspace["counts"].Dimnames
    topics = [str(name) for name in fit["F"].coords["dim_1"].to_numpy()]
    genes = _facs_genes(workspace).index
    cells = pd.Index(names[0].astype(object))
    return (
        pd.DataFrame(fit["F"].to_numpy(), index=genes, columns=topics),
        pd.DataFrame(fit["L"].to_numpy(), index=cells, columns=topics),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(
    progress: bool, allow_loopback_http: bool, url: str, target: str, _pooch: object
) -> None:
    # Like pooch's own downloader, which however leaves a broken connection open and follows
    # redirects to any address.
    import requests
    from tqdm import tqdm

    def stay_safe(response: requests.Response, **_: object) -> None:
        place = urljoin(response.url, response.headers.get("Location", ""))
        if response.is_redirect and not _is_safe(place, allow_loopback_http):
            raise requests.RequestException(f"it redirects to {place}, not an https address")

    headers = {"Accept-Encoding": "identity"}
    with requests.get(
        url, stream=True, timeout=30, headers=headers, hooks={"response": stay_safe}
    ) as response:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0)) or None
        with (
            Path(target).open("wb") as file,
            tqdm(total=size, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            for chunk in response.iter_content(2**16):
                file.write(chunk)
                bar.update(len(chunk))


def _is_safe(url: str, allow_loopback_http: bool) -> bool:
    address = urlsplit(url)
    loopback = address.hostname in ("127.0.0.1", "::1", "localhost")
    return address.scheme == "https" or (
        allow_loopback_http and loopback and address.scheme == "http"
    )


def _not_downloaded(dataset: Dataset, path: Path, found: str) -> InputError:
    there = " (the file there has another checksum and is kept)" if path.is_file() else ""
    return InputError(
        f"{dataset.name} could not be downloaded from {dataset.url}: {found}; try again, or save "
        f"the file yourself as {path}{there}, or set TOPICELL_DATA to a folder that has "
        f"{dataset.file_name}"
    )


def _undo_rounded_log1p(logged: sp.csr_matrix, scale: np.ndarray) -> sp.csr_matrix:
    """Return counts from log1p(count / scale) rounded to 3 decimals, one scale for each row."""
    # Rounding moved a value by half a thousandth at most, single precision by far less than 1e-6.
    slack = 0.0005 + 1e-6
    value = logged.data.astype(np.float64)
    row_scale = np.repeat(scale, np.diff(logged.indptr))
    low, high = np.expm1(value - slack) * row_scale, np.expm1(value + slack) * row_scale
    first, last = np.ceil(low), np.floor(high)
    certain = (high - low < 1) & (first == last)
    if not certain.all():
        raise InputError(
            f"pbmc68k: {int((~certain).sum())} values of scanpy's pbmc68k_reduced do not stand for "
            "exactly one count; this version of scanpy contains other data: choose another data "
            "set (data=pbmc3k)"
        )
    return sp.csr_matrix((first, logged.indices, logged.indptr), shape=logged.shape)


def _facs_workspace(path: str | Path | None) -> tuple[Path, dict[str, Any]]:
    file = Path(path) if path is not None else fetch(CATALOGUE["pbmc_facs"])
    import rdata
    from rdata.conversion import DEFAULT_CLASS_MAP

    # R classes that rdata does not know are left unchanged; naming them here avoids its warning.
    unknown = (
        "dgCMatrix",
        "multinom_topic_model_fit",
        "list",
        "col_spec",
        "collector",
        "collector_character",
        "collector_guess",
    )
    constructors: dict[str | bytes, Any] = dict(DEFAULT_CLASS_MAP)
    constructors |= dict.fromkeys(unknown, lambda value, attributes: value)
    try:
        workspace = rdata.read_rda(file, constructor_dict=constructors)["pbmc_facs"]
    except Exception as error:  # a damaged file can fail anywhere inside the parser
        raise InputError(
            f"{file} cannot be read as the R workspace pbmc_facs.RData ({type(error).__name__}: "
            f"{error}); download it again from {CATALOGUE['pbmc_facs'].url}"
        ) from error
    return file, workspace


def _facs_genes(workspace: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd
    from anndata.utils import make_index_unique

    genes = workspace["genes"]
    symbols = make_index_unique(pd.Index(genes["symbol"].to_numpy(object)))
    return pd.DataFrame({"ensembl": genes["ensembl"].to_numpy(object)}, index=symbols)


def _facs_cells(path: str | Path | None, counts: str, samples: str, name: str) -> AnnData:
    import pandas as pd
    from anndata import AnnData

    file, workspace = _facs_workspace(path)
    matrix, sample = workspace[counts], workspace[samples]
    x = as_counts(sp.csc_matrix((matrix.x, matrix.i, matrix.p), shape=tuple(matrix.Dim)), name)
    obs = pd.DataFrame(
        {
            "barcode": sample["barcode"].to_numpy(object),
            "celltype": _plain_categories(sample["celltype"]),
            "subpop": _plain_categories(sample["subpop"]),
        },
        # Barcodes alone are not unique: cells of different sorted populations may have the same
        # barcode.
        index=pd.Index(matrix.Dimnames[0].astype(object)),
    )
    adata = AnnData(x, obs=obs, var=_facs_genes(workspace), layers={"counts": x})
    pinned, found = CATALOGUE["pbmc_facs"], _sha256(file)
    adata.uns["topicell_source"] = {
        "name": name,
        "source": str(pinned.url if found == pinned.sha256 else file),
        "sha256": found,
        "label_key": "celltype",
    }
    return adata


def _plain_categories(column: pd.Series[Any]) -> pd.Categorical[Any]:
    # rdata returns categories of pandas' string type, which older h5ad readers reject.
    import pandas as pd

    names = pd.Index([str(name) for name in column.cat.categories], dtype=object)
    return pd.Categorical.from_codes(column.cat.codes.to_numpy(), categories=names)
