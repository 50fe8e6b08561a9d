"""Forms that other programs write are read with the same counts; others are refused by name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.io import write_elem

from topicell.config import DataConfig
from topicell.data import formats
from topicell.data.reading import read, source_digest
from topicell.errors import InputError

CELLS = [f"c{i}-1" for i in range(6)]
GENES = [f"G{i}" for i in range(5)]
IDS = [f"ENSG{i:011d}" for i in range(5)]
X = np.random.default_rng(0).poisson(1.0, (6, 5)).astype(np.float32)


def cells() -> AnnData:
    obs = pd.DataFrame({"kind": list("ababab")}, index=CELLS)
    return AnnData(sp.csr_matrix(X), obs=obs, var=pd.DataFrame({"id": IDS}, index=GENES))


def require_equal(adata: AnnData, genes: Sequence[str] = GENES) -> None:
    assert list(adata.obs_names) == CELLS
    assert list(adata.var_names) == list(genes)
    np.testing.assert_array_equal(adata.X.toarray(), X)


def write_file(path: Path, content: bytes | list[str]) -> None:
    data = content if isinstance(content, bytes) else "".join(f"{x}\n" for x in content).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def market(matrix: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    scipy.io.mmwrite(buffer, sp.coo_matrix(matrix.astype(int)), field="integer")
    return buffer.getvalue()


FEATURES = [f"{i}\t{g}\tGene Expression" for i, g in zip(IDS, GENES, strict=True)]


def triple(
    prefix: str,
    folder: Path,
    *,
    names: Sequence[str] = ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"),
    features: list[str] = FEATURES,
    matrix: np.ndarray = X.T,
    barcodes: list[str] = CELLS,
) -> Path:
    contents: tuple[bytes | list[str], ...] = (market(matrix), features, barcodes)
    for name, content in zip(names, contents, strict=True):
        write_file(folder / f"{prefix}{name}", content)
    return folder


PLAIN = ("matrix.mtx", "genes.tsv", "barcodes.tsv")
TWO_COLUMNS = [f"{i}\t{g}" for i, g in zip(IDS, GENES, strict=True)]
KALLISTO = (".mtx", ".genes.txt", ".barcodes.txt")
ALEVIN = (".mtx.gz", "_cols.txt", "_rows.txt")
PARSE = ("DGE.mtx", "all_genes.csv", "cell_metadata.csv")
PARSE_GENES = [
    "gene_id,gene_name,genome",
    *(f"{i},{g},hg38" for i, g in zip(IDS, GENES, strict=True)),
]

FOLDERS: dict[str, tuple[Callable[[Path], Path], Sequence[str]]] = {
    "GEO, one sample": (lambda f: triple("GSM1_tumor_", f), GENES),
    "a point": (lambda f: triple("S1.", f), GENES),
    "a hyphen, Cell Ranger 2": (
        lambda f: triple("S-1-", f, names=PLAIN, features=TWO_COLUMNS),
        GENES,
    ),
    "other words": (
        lambda f: triple(
            "GSM3_", f, names=("counts.mtx", "gene_names.txt", "cells.txt"), features=GENES
        ),
        GENES,
    ),
    "kallisto": (
        lambda f: triple("cells_x_genes", f, names=KALLISTO, features=IDS, matrix=X),
        IDS,
    ),
    "alevin": (lambda f: triple("quants_mat", f, names=ALEVIN, features=IDS, matrix=X), IDS),
    "Parse": (
        lambda f: triple(
            "", f, names=PARSE, features=PARSE_GENES, matrix=X, barcodes=["bc_wells", *CELLS]
        ),
        GENES,
    ),
    "names that R quoted": (
        lambda f: triple(
            "",
            f,
            names=PLAIN,
            features=['"x"', *(f'"{g}"' for g in GENES)],
            barcodes=['"x"', *(f'"{c}"' for c in CELLS)],
        ),
        GENES,
    ),
    "Cell Ranger's outs": (
        lambda f: triple("filtered_feature_bc_matrix/", triple("raw_feature_bc_matrix/", f)),
        GENES,
    ),
    "STARsolo": (
        lambda f: triple("Solo.out/Gene/filtered/", triple("Solo.out/Gene/raw/", f)),
        GENES,
    ),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_of_one_sample_is_read(kind: str, tmp_path: Path) -> None:
    make, genes = FOLDERS[kind]
    require_equal(read(make(tmp_path)), genes)


def test_a_square_matrix_has_the_orientation_of_its_program(tmp_path: Path) -> None:
    square = X[:5]
    triple("", tmp_path / "ours", matrix=square.T, barcodes=CELLS[:5])
    triple(
        "cells_x_genes",
        tmp_path / "theirs",
        names=KALLISTO,
        features=IDS,
        matrix=square,
        barcodes=CELLS[:5],
    )
    for name in ("ours", "theirs"):
        np.testing.assert_array_equal(read(tmp_path / name).X.toarray(), square)


def test_a_folder_of_several_samples_is_read_as_one(tmp_path: Path) -> None:
    triple("GSM1_a_", tmp_path)
    # In another order, and without the first gene.
    order = [4, 3, 2, 1]
    triple("GSM2_b_", tmp_path, features=[FEATURES[i] for i in order], matrix=X[:, order].T)
    with pytest.warns(UserWarning, match="1 of 5 genes are not in all of the 2 samples"):
        adata = read(tmp_path)
    assert list(adata.var_names) == GENES[1:]
    np.testing.assert_array_equal(adata.X.toarray(), np.vstack([X[:, 1:]] * 2))
    assert list(adata.obs_names) == [f"{s}_{c}" for s in ("GSM1_a", "GSM2_b") for c in CELLS]
    assert list(adata.obs["sample"]) == ["GSM1_a"] * 6 + ["GSM2_b"] * 6
    assert list(adata.var["gene_ids"]) == IDS[1:]


def test_symbols_that_repeat_are_matched_by_id(tmp_path: Path) -> None:
    twice = [row.replace("G1", "G0") for row in FEATURES]
    triple("a_", tmp_path, features=twice)
    triple("b_", tmp_path, features=twice[::-1], matrix=X[:, ::-1].T)
    with pytest.warns(UserWarning, match="1 gene names are repeated"):
        adata = read(tmp_path)
    np.testing.assert_array_equal(adata.X.toarray(), np.vstack([X, X]))


@pytest.mark.parametrize("part", ["matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"])
def test_each_file_of_a_sample_names_the_sample(part: str, tmp_path: Path) -> None:
    triple("a_", tmp_path, matrix=np.zeros((5, 6)))
    triple("b_", tmp_path)
    require_equal(read(tmp_path / f"b_{part}"))
    require_equal(read(triple("", tmp_path / "plain", names=PLAIN) / "matrix.mtx"))


def test_the_digest_of_a_sample_covers_its_files_and_no_other(tmp_path: Path) -> None:
    def digest() -> str:
        return source_digest(DataConfig(name="file", path=str(tmp_path / "b_matrix.mtx.gz")))

    triple("a_", triple("b_", tmp_path))
    before = digest()
    write_file(tmp_path / "a_barcodes.tsv.gz", CELLS[::-1])
    assert digest() == before
    write_file(tmp_path / "b_barcodes.tsv.gz", CELLS[::-1])
    assert digest() != before


def no_genes(folder: Path) -> Path:
    triple("a_", triple("b_", folder))
    (folder / "b_features.tsv.gz").unlink()
    return folder


def peaks(folder: Path) -> Path:
    triple("", folder)
    (folder / "features.tsv.gz").rename(folder / "peaks.bed.gz")
    return folder


def triple_without(name: str, folder: Path) -> Path:
    (triple("", folder, names=PLAIN, features=TWO_COLUMNS) / name).unlink()
    return folder


def half_a_matrix(folder: Path) -> Path:
    path = triple("", folder, names=PLAIN, features=TWO_COLUMNS) / "matrix.mtx"
    path.write_text("\n".join(path.read_text().splitlines()[:-2]) + "\n")
    return folder


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a sample without genes": (no_genes, r"b_matrix.mtx.gz has no file of names of genes.*: a_mat"),
    "peaks": (peaks, "peaks.bed and no features.tsv.*not of genes"),
    "samples in folders": (
        lambda f: triple("s1/", triple("s2/", f)),
        "several 10x mtx folders; give one of them as path: s1, s2",
    ),
    "files and folders": (
        lambda f: triple("spatial/x_", f, names=("a.csv", "b", "c")),
        r"give a file in it \(here: spatial/\)",
    ),
    "no gene in common": (
        lambda f: triple("a_", triple("b_", f, features=[f"x{row}" for row in FEATURES])),
        "no gene in common",
    ),
    "fewer genes": (lambda f: triple("a_", f, features=FEATURES[1:]), "of the same sample"),
    "fewer cells": (lambda f: triple("", f, barcodes=CELLS[1:]), "of the same sample"),
    "half a matrix": (half_a_matrix, "declares 20 entries"),
    "no barcodes": (lambda f: triple_without("barcodes.tsv", f), "no barcodes.tsv"),
    "no genes": (lambda f: triple_without("genes.tsv", f), "features.tsv or genes.tsv"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_folders_that_cannot_be_read_are_refused_with_their_content(
    case: str, tmp_path: Path
) -> None:
    make, message = BAD_FOLDERS[case]
    with pytest.raises(InputError, match=message):
        read(make(tmp_path))


@pytest.mark.parametrize("form", ["h5", "mtx"])
def test_a_gene_without_a_symbol_takes_its_id(form: str, tmp_path: Path) -> None:
    symbols = ["G0", "", "G2", " ", "G4"]
    if form == "mtx":
        path = triple(
            "", tmp_path, features=[f"{i}\t{s}" for i, s in zip(IDS, symbols, strict=True)]
        )
    else:
        path = write_10x_h5(tmp_path / "cells.h5", symbols)
    with pytest.warns(UserWarning, match="2 of 5 genes have no symbol"):
        require_equal(read(path), ["G0", IDS[1], "G2", IDS[3], "G4"])


def write_10x_h5(
    path: Path,
    symbols: Sequence[str] = GENES,
    *,
    types: Sequence[str] = ("Gene Expression",) * 5,
    v2: bool = False,
) -> Path:
    x = sp.csr_matrix(X)
    with h5py.File(path, "w") as file:
        group = file.create_group("hg19" if v2 else "matrix")
        group["barcodes"] = np.array(CELLS, dtype="S")
        group["data"] = x.data.astype(np.int32)
        group["indices"], group["indptr"], group["shape"] = x.indices, x.indptr, X.shape[::-1]
        columns = {"genes": IDS, "gene_names": symbols}
        if not v2:
            group = group.create_group("features")
            columns = {"id": IDS, "name": symbols, "feature_type": types}
        for name, values in columns.items():
            group[name] = np.array(values, dtype="S")
    return path


@pytest.mark.parametrize("v2", [False, True])
def test_10x_h5_is_read_under_any_name(v2: bool, tmp_path: Path) -> None:
    for name in ("filtered_feature_bc_matrix.h5", "really_10x.h5ad"):
        adata = read(write_10x_h5(tmp_path / name, v2=v2))
        require_equal(adata)
        assert list(adata.var["gene_ids"]) == IDS


def test_h5ad_is_read_under_the_name_of_10x_h5(tmp_path: Path) -> None:
    cells().write_h5ad(tmp_path / "cells.h5ad")
    require_equal(read((tmp_path / "cells.h5ad").rename(tmp_path / "cells.h5")))


@pytest.mark.parametrize("form", ["10x h5", "mtx"])
def test_only_gene_expression_is_read_by_default(form: str, tmp_path: Path) -> None:
    types = ["Gene Expression"] * 3 + ["Antibody Capture"] * 2
    if form == "mtx":
        rows = zip(IDS, GENES, types, strict=True)
        path = triple("", tmp_path, features=["\t".join(row) for row in rows])
    else:
        path = write_10x_h5(tmp_path / "cells.h5", types=types)
    with pytest.warns(UserWarning, match="2 of 5 features are left out: 2 Antibody Capture"):
        assert list(read(path).var_names) == GENES[:3]


@pytest.mark.parametrize("form", ["10x h5", "mtx"])
def test_repeated_symbols_become_unique_with_a_warning(form: str, tmp_path: Path) -> None:
    symbols = ["A", "B", "A", "A", "B"]
    if form == "mtx":
        rows = zip(IDS, symbols, strict=True)
        path = triple("", tmp_path, features=["\t".join(row) for row in rows])
    else:
        path = write_10x_h5(tmp_path / "cells.h5", symbols)
    with pytest.warns(UserWarning, match="3 gene names are repeated") as caught:
        require_equal(read(path), ["A", "B", "A-1", "A-2", "B-1"])
    assert [w.category for w in caught].count(UserWarning) == 1


def test_half_a_10x_h5_is_refused(tmp_path: Path) -> None:
    path = write_10x_h5(tmp_path / "cells.h5")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="copy or download it again"):
        read(path)


def test_groups_of_cellbender_beside_the_matrix_are_ignored(tmp_path: Path) -> None:
    path = write_10x_h5(tmp_path / "cells.h5")
    with h5py.File(path, "a") as file:
        file["droplet_latents/cell_probability"] = np.ones(6)
        file["global_latents/ambient_expression"] = np.ones(5)
        file["metadata/barcodes"] = np.array(CELLS, dtype="S")
        file["matrix/features/odd"] = np.ones(2)
    require_equal(read(path))


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "cells.h5ad.gz": gzip.compress,
    "cells": gzip.compress,
    "cells.h5ad.bz2": bz2.compress,
    "cells.h5ad.xz": lzma.compress,
    # muon writes a line before the HDF5 file.
    "cells.h5mu.gz": lambda data: gzip.compress(b"MuData".ljust(512, b"\0") + data),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_compressed_hdf5_is_read(name: str, tmp_path: Path) -> None:
    adata = cells()
    adata.write_h5ad(tmp_path / "plain.h5ad")
    path = tmp_path / name
    path.write_bytes(PACKINGS[name]((tmp_path / "plain.h5ad").read_bytes()))
    again = read(path)
    require_equal(again)
    assert list(again.obs["kind"]) == list("ababab")


def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    adata = cells()
    adata.uns["noise"] = np.random.default_rng(0).random(10_000)
    adata.write_h5ad(tmp_path / "plain.h5ad")
    packed = gzip.compress((tmp_path / "plain.h5ad").read_bytes())
    (tmp_path / "cells.h5ad.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"as an HDF5 file in gzip.*incomplete"):
        read(tmp_path / "cells.h5ad.gz")


def h5mu(folder: Path, *names: str) -> Path:
    path = folder / "multi.h5mu"
    others = AnnData(np.ones((6, 2)), pd.DataFrame(index=CELLS), pd.DataFrame(index=["P", "Q"]))
    with h5py.File(path, "w", userblock_size=512) as file:
        write_mudata(file, names, others)
    return path


def zarr_mudata(folder: Path, *names: str) -> Path:
    path = folder / "multi.zarr"
    others = AnnData(np.ones((6, 2)), pd.DataFrame(index=CELLS), pd.DataFrame(index=["P", "Q"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's own, about its formats
        write_mudata(zarr.open_group(path, mode="w"), names, others)
    return path


def write_mudata(file: Any, names: Sequence[str], others: AnnData) -> None:
    """Write a MuData file; the first modality has the genes."""
    obs = pd.DataFrame({f"{names[0]}:kind": list("zzzzzz"), "donor": list("xxyyzz")}, index=CELLS)
    write_elem(file, "obs", obs.iloc[::-1])
    file.create_group("mod")
    for name in names:
        write_elem(file["mod"], name, cells() if name == names[0] else others)


@pytest.mark.parametrize("make", [h5mu, zarr_mudata])
def test_a_modality_of_mudata_is_read(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path, "GEX", "prot")
    with pytest.warns(UserWarning, match="modality .GEX. is read, prot not"):
        adata = read(path)
    require_equal(adata)
    assert list(adata.obs["kind"]) == list("ababab")
    assert list(adata.obs["donor"]) == list("xxyyzz")
    require_equal(read(path, modality="GEX"))
    assert list(read(path, modality="prot").var_names) == ["P", "Q"]
    with pytest.raises(InputError, match="modality = 'rna': no such modality; found: GEX, prot"):
        read(path, modality="rna")


def test_a_modality_must_be_named_if_none_is_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"modalities a, b; name the one.*modality=NAME"):
        read(h5mu(tmp_path, "a", "b"))
    require_equal(read(h5mu(tmp_path, "only")))


@pytest.mark.parametrize("form", ["h5ad", "zarr", "mtx", "packed"])
def test_a_modality_is_refused_for_other_forms(form: str, tmp_path: Path) -> None:
    path = tmp_path / f"cells.{form}"
    if form == "mtx":
        triple("", path)
    elif form == "zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cells().write_zarr(path)
    else:
        cells().write_h5ad(path)
    if form == "packed":
        path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match="modality = 'rna' is for MuData, but this is"):
        read(path, modality="rna")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Return a zarr folder of version 3; its arrays of counts have shards of several chunks."""
    path = tmp_path / "cells.zarr"
    x = sp.csr_matrix(np.random.default_rng(0).poisson(5.0, (40, 30)).astype(np.float32))
    adata = AnnData(
        x,
        obs=pd.DataFrame(index=[f"c{i}" for i in range(40)]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(30)]),
    )
    with warnings.catch_warnings(action="ignore"), anndata.settings.override(zarr_write_format=3):
        adata.write_zarr(path)
        group = zarr.open_group(path, mode="a")
        for part in ("data", "indices"):
            values = group[f"X/{part}"][:]
            del group[f"X/{part}"]
            array = group["X"].create_array(
                part, shape=values.shape, dtype=values.dtype, chunks=(100,), shards=(500,)
            )
            array[:] = values
        zarr.consolidate_metadata(path)
    return path


def test_sharded_zarr_is_read_and_a_missing_shard_refused(sharded: Path) -> None:
    counts = np.random.default_rng(0).poisson(5.0, (40, 30))
    np.testing.assert_array_equal(read(sharded).X.toarray(), counts)
    (sharded / "X" / "data" / "c" / "2").unlink()
    with pytest.raises(InputError, match="X/data lacks 1 of 3 chunks"):
        read(sharded)


@pytest.mark.parametrize("inside", [".", "cells.zarr"])
@pytest.mark.parametrize("version", [2, 3])
def test_zipped_zarr_is_read(version: Any, inside: str, tmp_path: Path) -> None:
    with (
        warnings.catch_warnings(action="ignore"),
        anndata.settings.override(zarr_write_format=version),
    ):
        cells().write_zarr(tmp_path / "in" / "cells.zarr")
    root = tmp_path / "in" if inside != "." else tmp_path / "in" / "cells.zarr"
    require_equal(read(shutil.make_archive(str(tmp_path / "cells.zarr"), "zip", root)))


@pytest.mark.parametrize(
    ("genes", "barcodes"),
    [("Gene", "CellID"), ("gene_names", "barcodes"), ("var_names", "obs_names")],
)
def test_loom_is_read(genes: str, barcodes: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "cells.loom", "w") as file:
        file["matrix"] = X.T
        file["layers/spliced"] = X.T * 2
        file[f"row_attrs/{genes}"] = np.array(GENES, dtype="S")
        file["row_attrs/Accession"] = np.array(IDS, dtype="S")
        file["row_attrs/wide"] = np.ones((5, 2))
        file[f"col_attrs/{barcodes}"] = CELLS
        file["col_attrs/kind"] = list("ababab")
    adata = read(tmp_path / "cells.loom")
    require_equal(adata)
    assert list(adata.var["Accession"]) == IDS
    assert list(adata.obs["kind"]) == list("ababab")
    np.testing.assert_array_equal(read(tmp_path / "cells.loom", layer="spliced").X.toarray(), X * 2)
    with h5py.File(tmp_path / "cells.loom", "a") as file:
        del file[f"col_attrs/{barcodes}"]
    with pytest.raises(InputError, match=r"no attribute with the names of the cells.*found: kind"):
        read(tmp_path / "cells.loom")


def hdf5(path: Path, **arrays: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name.replace("__", "/")] = values


def tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("matrix.mtx"))


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "seurat.rds": (lambda p: p.write_bytes(b"\x1f\x8b\x08rds"), "an R file.*zellkonverter"),
    "all.RData": (lambda p: p.write_bytes(b"RDX3"), "an R file"),
    "counts.xlsx": (lambda p: p.write_bytes(zipped("a", b"")), "spreadsheet.*as csv"),
    "a.cloupe": (lambda p: p.write_bytes(b"x"), "Loupe Browser.*filtered_feature_bc_matrix.h5"),
    "a.h5seurat": (
        lambda p: hdf5(p, assays__RNA=[1], **{"cell.names": [1]}),
        r"SeuratDisk::Convert",
    ),
    "molecule_info.h5": (
        lambda p: hdf5(p, barcode_idx=[1], feature_idx=[1]),
        "list of molecules.*filtered_feature_bc_matrix.h5",
    ),
    "GSE1_RAW.tar": (tar, r"tar -xf GSE1_RAW.tar"),
    "matrix.tar.gz": (tar, "is a tar archive"),
    "cells.zip": (
        lambda p: p.write_bytes(zipped("cells.h5ad", b"")),
        "zip archive; unpack it and give the file",
    ),
    "alone.mtx": (lambda p: p.write_bytes(market(X)), "into the same folder and give the folder"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_forms_are_refused_with_a_way_to_convert_them(name: str, tmp_path: Path) -> None:
    make, message = OTHERS[name]
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_form_is_added_by_one_row(tmp_path, monkeypatch):
    """`read` uses it, and its errors name it."""
    path = tmp_path / "cells.toy"
    path.write_text("3 1\n0 2\n")

    def read_toy(path):
        adata = AnnData(np.loadtxt(path, dtype=np.float32))
        adata.obs_names, adata.var_names = ["c0", "c1"], ["CD3D", "LYZ"]
        return adata

    with pytest.raises(InputError, match="not in a supported format"):
        read(path)
    form = formats.Form("a toy", lambda path: path.suffix == ".toy", read_toy)
    monkeypatch.setattr(formats, "FORMS", [form, *formats.FORMS])
    assert read(path).layers["counts"].toarray().tolist() == [[3, 1], [0, 2]]
    with pytest.raises(InputError, match="modality = 'rna' is for MuData, but this is a toy"):
        read(path, modality="rna")
