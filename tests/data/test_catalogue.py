"""Downloads from a local server with faults, and the data sets of the catalogue."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata
import numpy as np
import pytest

from topicell.data.catalogue import (
    CATALOGUE,
    Dataset,
    data_folder,
    fetch,
    load_pbmc68k,
    load_pbmc_facs,
    load_pbmc_facs_test,
    published_facs_fit,
)
from topicell.errors import InputError

BODY = bytes(range(256)) * 400


class Server:
    """A local web server; `mode` sets its next answers."""

    def __init__(self) -> None:
        self.mode = "whole"
        self.requests = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests += 1
                if outer.mode == "missing":
                    self.send_error(404)
                    return
                self.send_response(200)
                if outer.mode != "short without length":
                    self.send_header("Content-Length", str(len(BODY)))
                self.end_headers()
                sent = {"whole": BODY, "changed": BODY[::-1]}.get(outer.mode, BODY[:5000])
                self.wfile.write(sent)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/cells.h5ad"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def dataset(server: Server) -> Dataset:
    digest = hashlib.sha256(BODY).hexdigest()
    return Dataset("cells", server.url, "cells.h5ad", digest, None, "none", "bytes")


def get(dataset: Dataset, folder: Path) -> Path:
    return fetch(dataset, folder, progress=False, allow_loopback_http=True)


FAILURES = {
    "cut": "lost during the download",
    "short without length": "incomplete or has changed",
    "changed": "incomplete or has changed",
    "missing": "404",
}


def test_a_download_arrives_whole_and_is_not_repeated(
    server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    path = get(dataset, tmp_path / "new" / "folder")
    assert path.read_bytes() == BODY
    assert [p.name for p in path.parent.iterdir()] == ["cells.h5ad"]
    assert get(dataset, path.parent) == path
    assert server.requests == 1


def test_the_setting_shows_the_progress_bar(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(dataset, tmp_path / "a", progress=True, allow_loopback_http=True)
    assert "100%" in capsys.readouterr().err
    fetch(dataset, tmp_path / "b", progress=False, allow_loopback_http=True)
    assert "%|" not in capsys.readouterr().err


@pytest.mark.parametrize("before", [None, b"another file"])
@pytest.mark.parametrize("mode", FAILURES)
def test_a_failed_download_changes_no_file_and_the_next_one_succeeds(
    mode: str, before: bytes | None, server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "cells.h5ad"
    if before is not None:
        path.write_bytes(before)
    server.mode = mode
    with pytest.raises(InputError) as caught:
        get(dataset, tmp_path)
    message = str(caught.value)
    expected = ["cells", server.url, FAILURES[mode], "try again", str(path), "TOPICELL_DATA"]
    if before is not None:
        expected.append("the file there has another checksum and is kept")
    for part in expected:
        assert part in message
    assert "\n" not in message
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if before is None else [before])

    server.mode = "whole"
    assert get(dataset, tmp_path).read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [path]


def test_a_server_without_answer_is_an_input_error(dataset: Dataset, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gone = replace(dataset, url=f"http://127.0.0.1:{port}/cells.h5ad")
    with pytest.raises(InputError, match=r"cells could not be .* cannot be reached; try again"):
        get(gone, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_downloaded_file_is_used_without_request_or_write(
    server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "cells.h5ad").write_bytes(BODY)
    tmp_path.chmod(0o555)
    before = tmp_path.stat().st_mtime_ns
    try:
        get(dataset, tmp_path)
    finally:
        tmp_path.chmod(0o755)
    assert server.requests == 0
    assert tmp_path.stat().st_mtime_ns == before


def test_a_folder_that_cannot_be_written_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        get(dataset, tmp_path / "file" / "folder")


def test_plain_http_is_refused_unless_loopback_is_allowed(
    server: Server, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="not an https address"):
        fetch(dataset, tmp_path)
    with pytest.raises(InputError, match="not an https address"):
        get(replace(dataset, url="http://example.org/cells.h5ad"), tmp_path)
    assert server.requests == 0


def test_the_catalogue_is_pinned_and_named_consistently() -> None:
    assert list(CATALOGUE) == ["pbmc68k", "pbmc_facs", "pbmc3k", "pbmc10k", "pbmc5k"]
    for name, dataset in CATALOGUE.items():
        assert dataset.name == name
        assert dataset.licence
        assert dataset.description
        if dataset.url is not None:
            assert dataset.url.startswith("https://")
            assert dataset.url.endswith("/" + dataset.file_name)
            assert dataset.sha256 is not None
            assert len(bytes.fromhex(dataset.sha256)) == 32
    with pytest.raises(InputError, match="no file to download"):
        fetch(CATALOGUE["pbmc68k"])


def test_the_data_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOPICELL_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("TOPICELL_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data_folder().parts[-2:] == ("topicell", "data")


def test_pbmc68k_counts_are_whole_and_give_the_values_of_scanpy() -> None:
    import scanpy as sc

    adata = load_pbmc68k()
    shipped = sc.datasets.pbmc68k_reduced()
    x = adata.layers["counts"]
    assert adata.shape == (700, 765)
    assert x.dtype == np.float32
    assert x.nnz == shipped.raw.X.nnz
    assert (x.data == np.floor(x.data)).all()
    assert x.data.min() >= 1
    n_counts = adata.obs["n_counts"].to_numpy(float)
    assert (n_counts >= x.sum(axis=1).A1).all()

    log_counts = x.astype(np.float64)
    log_counts.data = np.log1p(log_counts.data / np.repeat(n_counts / 1e4, np.diff(x.indptr)))
    stored = shipped.raw.X.astype(np.float64).tocsr().sorted_indices()
    np.testing.assert_array_equal(log_counts.indices, stored.indices)
    # Equal to the third decimal, except four values near a tie (1.5e-7): scanpy computed in
    # single precision, which rounds them in the other direction.
    differs = np.round(log_counts.data, 3) != np.round(stored.data, 3)
    assert differs.sum() == 4
    assert np.abs(log_counts.data - stored.data).max() < 0.0005 + 1e-6

    assert list(adata.obs["bulk_labels"]) == list(shipped.obs["bulk_labels"])
    assert set(adata.obs) == set(shipped.obs)
    assert not adata.obsm
    assert set(adata.uns) == {"topicell_source"}


# A value between two counts; a value so large that several counts are within a thousandth.
@pytest.mark.parametrize("moved", [0.01, 9.0])
def test_pbmc68k_refuses_values_of_no_or_several_counts(
    moved: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import scanpy as sc

    shipped = sc.datasets.pbmc68k_reduced()
    shipped.raw.X.data[:10] += moved
    monkeypatch.setattr(sc.datasets, "pbmc68k_reduced", lambda: shipped)
    with pytest.raises(InputError, match="do not stand for exactly one count"):
        load_pbmc68k()


def test_pbmc_facs_has_the_published_cells(
    facs_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOPICELL_DATA", str(facs_folder))
    adata = load_pbmc_facs()
    assert adata.shape == (3774, 16791)
    x = adata.layers["counts"]
    assert x.nnz == 2_702_861
    assert (x.data == np.floor(x.data)).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.var["ensembl"].is_unique
    assert adata.var.loc["CD79A", "ensembl"] == "ENSG00000105369"
    groups = adata.obs["subpop"].value_counts().to_dict()
    assert groups == {"T cell": 1484, "B cell": 767, "CD34+": 687, "NK cell": 673, "CD14+": 163}
    assert len(adata.obs["celltype"].cat.categories) == 10
    # Every sort lies within one group.
    assert (adata.obs.groupby("celltype", observed=True)["subpop"].nunique() == 1).all()
    # A marker is high in its cells: cells, genes and labels are in the same order.
    cd79a = adata[:, "CD79A"].X.toarray().ravel()
    assert (
        cd79a[adata.obs["subpop"] == "B cell"].mean()
        > 20 * cd79a[adata.obs["subpop"] == "T cell"].mean()
    )
    source = adata.uns["topicell_source"]
    assert source["sha256"] == CATALOGUE["pbmc_facs"].sha256
    assert source["source"] == CATALOGUE["pbmc_facs"].url

    held_out = load_pbmc_facs_test(facs_folder / "pbmc_facs.RData")
    assert held_out.shape == (100, 16791)
    assert list(held_out.var_names) == list(adata.var_names)
    assert not set(held_out.obs_names) & set(adata.obs_names)

    genes, cells = published_facs_fit(facs_folder / "pbmc_facs.RData")
    assert genes.shape == (16791, 6)
    assert cells.shape == (3774, 6)
    assert list(genes.index) == list(adata.var_names)
    assert list(cells.index) == list(adata.obs_names)
    np.testing.assert_allclose(genes.sum(axis=0), 1)
    np.testing.assert_allclose(cells.sum(axis=1), 1)

    adata[:50].copy().write_h5ad(tmp_path / "facs.h5ad")
    again = anndata.read_h5ad(tmp_path / "facs.h5ad")
    assert list(again.obs["celltype"]) == list(adata.obs["celltype"][:50])


@pytest.mark.parametrize("content", [b"", b"not an R workspace at all"])
def test_pbmc_facs_refuses_another_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "pbmc_facs.RData"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pbmc_facs\.RData cannot be read"):
        load_pbmc_facs(path)
