"""Orientation of a matrix, types and names of features, dropped genes, and rounded counts."""

from __future__ import annotations

import gzip
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData

import topicell
from topicell.config import DataConfig, PreprocessConfig
from topicell.data.formats import text
from topicell.data.preprocessing import preprocess
from topicell.data.reading import load, read
from topicell.errors import InputError

SYMBOLS = ["MT-ND1", "MT-CO1", "RPL3", "RPS6", "GAPDH", "CD4", "GENE1", "GENE2", "GENE3"]
IDS = [f"ENSG{i:011d}" for i in range(100, 100 + len(SYMBOLS))]


def barcodes(n: int) -> list[str]:
    letters = np.array(list("ACGT"))
    rng = np.random.default_rng(n)
    return ["".join(rng.choice(letters, 16)) + "-1" for _ in range(n)]


def cells(names: list[str] = SYMBOLS, n_cells: int = 12, **var: list[str]) -> AnnData:
    x = np.random.default_rng(0).poisson(2.0, (n_cells, len(names))).astype(np.float32)
    x[:, -1] += 1
    return AnnData(
        sp.csr_matrix(x),
        obs=pd.DataFrame(index=barcodes(n_cells)),
        var=pd.DataFrame(var, index=pd.Index(names)),
    )


def frame(adata: AnnData) -> pd.DataFrame:
    return pd.DataFrame(adata.X.toarray().astype(int), adata.obs_names, adata.var_names)


def write(adata: AnnData, folder: Path) -> Path:
    path = folder / "cells.h5ad"
    adata.write_h5ad(path)
    return path


# --- orientation --------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [SYMBOLS, IDS])
@pytest.mark.parametrize("header", ["", "gene", "Geneid"])
def test_genes_in_rows_are_transposed_with_a_warning(names, header, tmp_path):
    adata = cells(names)
    table = frame(adata).T
    table.index.name = header or None
    table.to_csv(tmp_path / "turned.csv.gz")
    with pytest.warns(UserWarning, match="matrix is transposed"):
        found = read(tmp_path / "turned.csv.gz")
    np.testing.assert_array_equal(found.layers["counts"].toarray(), adata.X.toarray())
    assert list(found.obs_names) == list(adata.obs_names)
    assert list(found.var_names) == names
    assert found.var_names.name is None


def test_columns_about_genes_of_a_transposed_table_name_its_genes(tmp_path):
    """Tables of featureCounts and GEO have columns about genes before the cells."""
    adata = cells()
    table = frame(adata).T
    table.insert(0, "gene_name", SYMBOLS)
    table.insert(1, "Chr", "chr1")
    table.insert(2, "Length", 1200)
    table.index = pd.Index(IDS, name="Geneid")
    table.to_csv(tmp_path / "counts.tsv", sep="\t")
    with pytest.warns(UserWarning, match="transposed|metadata|get their names"):
        found = read(tmp_path / "counts.tsv")
    assert list(found.var_names) == SYMBOLS
    assert list(found.var["gene_ids"]) == IDS
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())


def test_a_doubtful_orientation_is_refused_with_the_setting(tmp_path):
    adata = cells()
    adata.obs_names = [f"s{i}" for i in range(12)]
    frame(adata).T.to_csv(tmp_path / "turned.csv")
    for prefix, call in (
        ("", lambda: read(tmp_path / "turned.csv")),
        ("data.", lambda: load(DataConfig(name="file", path=str(tmp_path / "turned.csv")))),
    ):
        with pytest.raises(InputError, match=f"; {prefix}orientation=genes_rows transposes"):
            call()
    turned = read(tmp_path / "turned.csv", orientation="genes_rows")
    np.testing.assert_array_equal(turned.X.toarray(), adata.X.toarray())
    assert read(tmp_path / "turned.csv", orientation="cells_rows").shape == (9, 12)


def test_a_transposed_h5ad_is_transposed_back(tmp_path):
    adata = cells()
    adata.obs["kind"] = list("ab" * 6)
    with pytest.warns(UserWarning, match="transposed"):
        found = read(write(adata.T.copy(), tmp_path))
    assert list(found.obs["kind"]) == list("ab" * 6)
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())


@pytest.mark.parametrize("names", [SYMBOLS, IDS, [f"g{i}" for i in range(9)]])
@pytest.mark.parametrize("cell_names", ["barcodes", "numbers", "words"])
def test_cells_in_rows_are_not_transposed(names, cell_names, tmp_path):
    adata = cells(names)
    if cell_names != "barcodes":
        adata.obs_names = [str(i) if cell_names == "numbers" else f"w{i}" for i in range(12)]
    frame(adata).to_csv(tmp_path / "table.csv")
    assert read(tmp_path / "table.csv").shape == (12, 9)


# --- text tables --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "separator"),
    [
        ("t.csv", ","),
        ("t.csv", ";"),
        ("t.csv", "\t"),
        ("t.txt", " "),
        ("t.tab", "\t"),
        ("t.csv.bz2", ","),
        ("T.CSV", ","),
        ("t.csv.zip", ","),
    ],
)
def test_tables_of_any_separator_and_compression_are_read(name, separator, tmp_path):
    adata = cells()
    frame(adata).to_csv(tmp_path / name, sep=separator)
    np.testing.assert_array_equal(read(tmp_path / name).X.toarray(), adata.X.toarray())


def test_metadata_columns_of_a_table_become_metadata_of_cells(tmp_path):
    adata = cells()
    table = frame(adata)
    table.insert(0, "n_counts", table.sum(axis=1))
    table.insert(0, "percent.mt", 0.25)
    table["cell_type"] = list("ab" * 6)
    table["my own note"] = "text"
    table.to_csv(tmp_path / "table.csv")
    with pytest.warns(UserWarning, match=r"treated as metadata: percent\.mt, n_counts, cell_type"):
        found = read(tmp_path / "table.csv")
    assert list(found.var_names) == SYMBOLS
    assert list(found.obs["cell_type"]) == list("ab" * 6)
    np.testing.assert_array_equal(found.obs["n_counts"], adata.X.toarray().sum(1))
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())


def test_metadata_among_the_genes_of_an_h5ad_is_left_out(tmp_path):
    adata = cells(["nCount_RNA", *SYMBOLS])
    with pytest.warns(UserWarning, match=r"1 of 10 genes are metadata .* nCount_RNA"):
        assert list(read(write(adata, tmp_path)).var_names) == SYMBOLS


def test_numbered_cells_of_fields_of_view_have_names_of_both(tmp_path):
    table = frame(cells())
    table.insert(0, "cell_ID", [1, 2, 3, 4, 5, 6] * 2)
    table.insert(0, "fov", [1] * 6 + [2] * 6)
    table.to_csv(tmp_path / "exprMat.csv", index=False)
    with pytest.warns(UserWarning, match="metadata"):
        found = read(tmp_path / "exprMat.csv")
    assert list(found.obs_names[[0, 6, 11]]) == ["1_1", "2_1", "2_6"]
    assert found.n_vars == 9


@pytest.mark.parametrize("values", [[5, 7, 9], [1, 0, 1]])
def test_a_first_column_of_counts_is_refused(values, tmp_path):
    table = frame(cells(n_cells=3)).assign(**{"MT-ND1": values})
    table.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(InputError, match="first column, 'MT-ND1', holds numbers"):
        read(tmp_path / "table.csv")


# --- features -----------------------------------------------------------------------------------

TYPES = ["Gene Expression"] * 6 + ["Antibody Capture"] * 2 + ["Peaks"]


@pytest.mark.parametrize(
    ("types", "column"),
    [
        (TYPES, "feature_types"),
        (TYPES, "feature_type"),
        ([{"Gene Expression": "GEX"}.get(t, t) for t in TYPES], "feature_types"),
        ([t.lower().replace("gene expression", "rna") for t in TYPES], "modality"),
    ],
)
def test_gene_expression_is_kept_and_other_features_are_counted(types, column, tmp_path):
    path = write(cells(**{column: types}), tmp_path)
    with pytest.warns(UserWarning, match=r"3 of 9 features are left out: 2 .*, 1 "):
        assert list(read(path).var_names) == SYMBOLS[:6]
    assert read(path, feature_type="all").n_vars == 9


def test_the_setting_selects_another_type(tmp_path):
    path = write(cells(feature_types=TYPES), tmp_path)
    with pytest.warns(UserWarning, match="8 of 9 features are left out"):
        assert list(read(path, feature_type="peaks").var_names) == ["GENE3"]
    with pytest.raises(InputError, match=r"feature_type = 'Guides': .*2 Antibody Capture"):
        read(path, feature_type="Guides")


def test_a_file_without_gene_expression_is_read_or_refused(tmp_path):
    with pytest.warns(UserWarning, match="all 9 features are of type 'Peaks'"):
        assert read(write(cells(feature_types=["Peaks"] * 9), tmp_path)).n_vars == 9
    two = ["Antibody Capture"] * 5 + ["CRISPR Guide Capture"] * 4
    with pytest.raises(InputError, match="no feature is of this type; found: 5 Antibody Capture"):
        read(write(cells(feature_types=two), tmp_path))


def test_biotypes_are_not_feature_types(tmp_path):
    """CELLxGENE's column of this name holds biotypes."""
    biotypes = ["protein_coding"] * 5 + ["lncRNA"] * 4
    assert read(write(cells(feature_type=biotypes), tmp_path)).n_vars == 9


@pytest.mark.parametrize("column", ["feature_name", "gene_symbols", "Symbol", "gene_name"])
def test_a_known_column_of_symbols_replaces_ids(column, tmp_path):
    path = write(cells(IDS, **{column: SYMBOLS}), tmp_path)
    with pytest.warns(UserWarning, match=f"names from var\\['{column}'\\]"):
        found = read(path)
    assert list(found.var_names) == SYMBOLS
    assert list(found.var["gene_ids"]) == IDS
    assert list(read(path, gene_names="index").var_names) == IDS


@pytest.mark.parametrize("missing", ["", None])
def test_the_setting_selects_the_column_of_names(missing, tmp_path):
    path = write(cells([f"row{i}" for i in range(9)], mine=[*SYMBOLS[:8], missing]), tmp_path)
    assert read(path).var_names[0] == "row0"
    # A gene without a symbol keeps its name.
    assert list(read(path, gene_names="mine").var_names) == [*SYMBOLS[:8], "row8"]
    with pytest.raises(InputError, match="no such column; found: mine"):
        read(path, gene_names="yours")


def test_summaries_of_counting_programs_are_left_out(tmp_path):
    extra = ["__no_feature", "__alignment_not_unique", "N_unmapped", "Unassigned_Ambiguity"]
    with pytest.warns(UserWarning, match="4 of 13 genes are sums from a counting program"):
        found = read(write(cells([*SYMBOLS, *extra]), tmp_path))
    assert list(found.var_names) == SYMBOLS


# --- dropped genes and cells ---------------------------------------------------------------------


def prepared(names: list[str], **settings) -> list[str]:
    adata = cells(names)
    adata.layers["counts"] = adata.X
    config = PreprocessConfig(n_variable_genes=None, **settings)
    return list(preprocess(adata, config).var_names)


@pytest.mark.parametrize("spelling", ["MT-ND1", "mt-Nd1", "mt:ND1", "MT.ND1", "hg19_MT-ND1", "ND1"])
def test_mitochondrial_genes_of_every_species_are_dropped_by_default(spelling):
    assert prepared([spelling, "A", "B"]) == ["A", "B"]


@pytest.mark.parametrize("pattern", ["mitochondrial", "^MT-", "ribosomal", "^nothing$"])
def test_a_pattern_that_matches_no_gene_gives_a_warning(pattern):
    with pytest.warns(
        UserWarning, match=f"drop_genes: '{re.escape(pattern)}' matches none of 2 genes"
    ):
        assert prepared(["A", "B"], drop_genes=[pattern]) == ["A", "B"]


def test_a_pattern_of_another_species_suggests_the_class():
    with pytest.warns(
        UserWarning, match=r"such as mt-Nd1: preprocess.drop_genes=\[mitochondrial\]"
    ):
        prepared(["mt-Nd1", "Gapdh"], drop_genes=["^MT-"])
    with pytest.warns(UserWarning, match=r"these names are ids: data.gene_names=COLUMN"):
        prepared(IDS)


def test_spike_ins_and_antibodies_give_a_warning():
    with pytest.warns(UserWarning, match="1 spike-ins, such as ERCC-00002, are modelled"):
        prepared(["MT-ND1", "ERCC-00002", "A"])
    with pytest.warns(
        UserWarning, match="named like antibodies or hashtags, such as CD3_TotalSeqB"
    ):
        prepared(["MT-ND1", "CD3_TotalSeqB", "A"])


def with_droplets(n_empty: int, deepest: int = 3) -> AnnData:
    rng = np.random.default_rng(1)
    x = np.vstack([rng.poisson(40, (200, 30)), rng.binomial(deepest, 0.05, (n_empty, 30)) + 0])
    x[:, 0] += 1
    adata = AnnData(
        sp.csr_matrix(x.astype(np.float32)),
        obs=pd.DataFrame(index=barcodes(len(x))),
        var=pd.DataFrame(index=["MT-ND1", *(f"g{i}" for i in range(29))]),
    )
    adata.layers["counts"] = adata.X
    return adata


def test_the_unfiltered_matrix_is_refused_until_it_is_filtered():
    config = PreprocessConfig(n_variable_genes=None)
    with pytest.raises(InputError, match=r"2000 of 2200 barcodes .*filtered_feature_bc_matrix"):
        preprocess(with_droplets(2000), config)
    config.min_counts_per_cell = 500
    with pytest.warns(UserWarning, match="2000 of 2200 cells have fewer counts"):
        assert preprocess(with_droplets(2000), config).n_obs == 200


@pytest.mark.parametrize("depth", [10.0, 1000.0])
@pytest.mark.parametrize("sd", [0.0, 1.0, 2.0])
def test_cells_of_any_depth_are_not_empty_droplets(depth, sd):
    adata = topicell.load_dataset(
        "simulated",
        simulation=topicell.config.SimulationConfig(
            n_cells=1500, n_genes=40, n_topics=3, mean_counts=depth, counts_sd=sd
        ),
    )
    config = PreprocessConfig(n_variable_genes=None, min_counts_per_cell=1, drop_genes=[])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cells have fewer counts")
        assert preprocess(adata, config).n_obs > 1000


# --- values that are no counts --------------------------------------------------------------------


def test_rounding_errors_are_removed(tmp_path):
    adata = cells()
    exact = adata.X.toarray()
    adata.X = sp.csr_matrix(exact + np.random.default_rng(0).normal(0, 1e-6, exact.shape))
    np.testing.assert_array_equal(read(write(adata, tmp_path)).X.toarray(), exact)


def test_corrected_counts_are_rounded_on_request(tmp_path):
    adata = cells()
    adata.X = adata.X * np.float32(0.93)
    path = write(adata, tmp_path)
    with pytest.raises(InputError, match=r"not whole \(first: .*; .*data\.round=true"):
        read(path)
    with pytest.warns(UserWarning, match="99 values are not whole and were rounded"):
        rounded = read(path, round=True)
    assert rounded.uns["topicell_rounded"] == 99
    np.testing.assert_array_equal(rounded.X.toarray(), np.rint(adata.X.toarray()))


@pytest.mark.parametrize("logged", [False, True])
def test_normalised_values_are_not_counts_even_when_rounded(logged, tmp_path):
    adata = cells()
    x = adata.X.toarray()
    x = x / x.sum(1, keepdims=True) * 1e4
    adata.X = sp.csr_matrix(np.log1p(x) if logged else x)
    with pytest.raises(InputError, match=r"these values are (log-)?normalised"):
        read(write(adata, tmp_path), round=True)


# --- genes of a fit ------------------------------------------------------------------------------


def test_cells_of_another_file_are_matched_by_name_or_identifier(tmp_path):
    symbols = cells(SYMBOLS, gene_ids=IDS)
    symbols.layers["counts"] = symbols.X
    fit = topicell.fit(symbols, n_topics=2, n_replicates=1, epochs=1, progress=False)
    expected = fit.transform(symbols)
    versions = [f"{i}.7" for i in IDS]
    for names in (IDS, versions, SYMBOLS):
        other = cells(names)[:, ::-1].copy()
        pd.testing.assert_frame_equal(fit.transform(other), expected)
    with pytest.raises(InputError, match="9 of the model's 9 genes are not in the data"):
        fit.transform(cells([f"x{i}" for i in range(9)]))
    fit.save(tmp_path / "model")
    loaded = topicell.load(tmp_path / "model")
    assert list(loaded.gene_ids) == IDS
    pd.testing.assert_frame_equal(loaded.transform(cells(IDS)), expected)


def test_python_reads_features_as_the_command_line_does():
    adata = cells([*IDS], feature_name=SYMBOLS, feature_types=TYPES)
    with pytest.warns(UserWarning, match="left out|get their names"):
        names = topicell.preprocess(adata, n_variable_genes=None).var_names
    assert list(names) == SYMBOLS[2:6]


def test_a_gzipped_table_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_CSV_VALUES", 20)
    adata = cells()
    with gzip.open(tmp_path / "t.tsv.gz", "wt") as file:
        frame(adata).to_csv(file, sep="\t")
    np.testing.assert_array_equal(read(tmp_path / "t.tsv.gz").X.toarray(), adata.X.toarray())
