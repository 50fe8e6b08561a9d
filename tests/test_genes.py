"""Names of genes and cells, in the spellings of several species, tools and languages."""

from __future__ import annotations

import pytest

from topicell import genes

MITOCHONDRIAL = {
    "human": "MT-ND1 MT-CO1 MT-CYB MT-RNR2",
    "mouse": "mt-Nd1 mt-Cytb mt-Rnr2",
    "rat": "Mt-nd1 Mt-atp6",
    "fish": "mt-nd1 mt-co3",
    "fly": "mt:ND1 mt:CoI mt:ATPase6",
    "worm": "nduo-1 ndfl-4 ctc-3 ctb-1 MTCE.7",
    "thale cress": "ATMG00010",
    "yeast": "Q0045",
    "no prefix": "ND1 ND4L COX1 COX3 COI ATP6 CYTB",
    "changed by R": "MT.ND1 mt.Co1 MT.CYB mt.CoI nduo.1",
    "joint reference": "hg19_MT-ND1 mm10___mt-Nd1 GRCh38_MT-CO1 GRCm39_mt-Co1 human_MT-ND2",
    "identifiers": "ENSG00000198888 ENSG00000212907.2 ENSMUSG00000064370 ENSMUSG00000065947.3",
}
NUCLEAR = (
    "MT1X MT2A Mt1 MTOR Mtor MTHFR MTG1 COX4I1 COX17 COX6A1 ATP6V0C ATP8A1 CYTH1 COIL MTRNR2L1 ND7 "
    "ENSG00000111640 GAPDH ctc-4 MTX1 ATP5F1A"
)


@pytest.mark.parametrize("species", MITOCHONDRIAL)
def test_mitochondrial_genes_are_known_in_every_spelling(species: str) -> None:
    names = MITOCHONDRIAL[species].split()
    assert dict(zip(names, genes.is_of("mitochondrial", names), strict=True)) == dict.fromkeys(
        names, True
    )


def test_nuclear_genes_of_similar_names_are_not_mitochondrial() -> None:
    names = NUCLEAR.split()
    assert not genes.is_of("mitochondrial", names).any()


def test_ribosomal_proteins_are_known_and_their_kinases_are_not() -> None:
    proteins = "RPL3 RPS27A RPLP0 RPSA Rps6 Rplp1 rpl13a RpL3 RpS6 rpl-3 rps.6 hg19_RPL3 RPS4X"
    others = "RPS6KA1 Rps6kb1 RPRD1A RPN1 RPE RPS19BP1 MRPL3 RPLX"
    assert genes.is_of("ribosomal", proteins.split()).all()
    assert not genes.is_of("ribosomal", others.split()).any()


def test_spike_ins_are_known() -> None:
    assert genes.is_of("spike_in", ["ERCC-00002", "ERCC.00130", "gSpikein_ERCC-00002"]).all()
    assert not genes.is_of("spike_in", ["ERCC1", "ERCC6L2"]).any()


@pytest.mark.parametrize(
    ("names", "symbols"),
    [
        (["ENSG00000198888.2_MT-ND1", "ENSG00000111640_GAPDH"], ["MT-ND1", "GAPDH"]),
        (["MT-ND1|ENSG00000198888", "GAPDH|ENSG00000111640"], ["MT-ND1", "GAPDH"]),
        (["MT-ND1 (ENSG00000198888)", "GAPDH (ENSG00000111640)"], ["MT-ND1", "GAPDH"]),
        (["FBgn0000042:Act5C", "FBgn0001091:Gapdh1"], ["Act5C", "Gapdh1"]),
    ],
)
def test_names_of_identifier_and_symbol_are_divided(names: list[str], symbols: list[str]) -> None:
    divided = genes.divided(names)
    assert divided is not None
    assert divided[0] == symbols
    assert all(genes.IDS.match(identifier) for identifier in divided[1])


def test_other_names_are_not_divided() -> None:
    assert genes.divided(["HLA-A", "MT-ND1"]) is None
    assert genes.divided([]) is None


def test_names_of_cells_and_genes_are_recognised() -> None:
    cells = (
        "AAACCTGAGAAACCAT-1 s1_AAACCTGAGAAACCAT AAACCTGAGAAACCAT.1 cell_12 SRR1234567 01_02_03__s1"
    )
    assert genes.n_cell_like(cells.split()) == 6
    assert genes.n_gene_like(cells.split()) == 0
    some = "ENSG00000198888 Gapdh actb RPL3 mt:CoI FBgn0000042 HLA-A"
    assert genes.n_gene_like(some.split()) == 7
    assert genes.n_cell_like([*some.split(), "CATSPER1", "GATA3", "TACC1"]) == 0


def test_columns_of_metadata_are_recognised() -> None:
    columns = ["n_counts", "nCount_RNA", "percent.mt", "RNA_snn_res.0.8", "orig.ident", "cell_type"]
    assert genes.metadata_columns(columns, rows_are_genes=False) == list(range(6))
    symbols = ["CD4", "AGER", "PCNA", "SEX1", "X", "Y", "w", "ST8", "TOTAL1", "DAY"]
    assert genes.metadata_columns(symbols, rows_are_genes=False) == []
    assert genes.metadata_columns(["Chr", "Start", "cell1"], rows_are_genes=True) == [0, 1]
