"""Recognise names of genes and their kind, names of cells, and names of metadata.

Sources: the gene nomenclatures of HGNC, MGI, RGD, ZFIN, FlyBase, WormBase, SGD and TAIR; the
identifiers of Ensembl; the summary rows that HTSeq, STAR and featureCounts write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

# A reference of two species adds the name of the genome as a prefix: hg19_MT-ND1, mm10___mt-Nd1. R
# changes each "-" and ":" of a column name into ".".
_GENOME = r"(?:(?:GRC[hmrz]\w*?|hg\d+|mm\d+|rn\d+|dm\d+|ce\d+|danRer\d+|human|mouse)[_.-]+)?"
_MITOCHONDRIAL_IDS = (
    # Ensembl's mitochondrial genes of human, proteins and ribosomal RNA ...
    "ENSG00000(?:198(?:888|763|804|712|899|938|840|886|786|695|727)|228253|212907|211459|210082)"
    # ... and of mouse.
    "|ENSMUSG000000(?:643(?:37|39|41|45|51|54|56|57|58|60|63|67|68|70)|65947)"
)
CLASSES = {
    "mitochondrial": re.compile(
        rf"(?i)^{_GENOME}(?:"
        r"mt[-.:_](?!$)"  # MT-ND1, mt-Nd1, Mt-nd1, mt:CoI, MT.ND1, MT_ND1
        r"|(?:nd(?:[1-6]|4l)|cox?[123]|coi{1,3}|atp[68]|cyt-?b)$"  # Ensembl, species without prefix
        r"|nduo[-.]\d|ndfl[-.]4$|ctc[-.][123]$|ctb[-.]1$|mtce[-.]\d"  # Caenorhabditis
        r"|atmg\d{5}|q0\d{3}$"  # Arabidopsis, Saccharomyces
        rf"|(?:{_MITOCHONDRIAL_IDS})(?:\.\d+)?$)"
    ),
    "ribosomal": re.compile(
        rf"(?i)^{_GENOME}rp(?:[ls][-.]?(?!6k)p?[-.]?\d+(?!\d|bp)|sa(?:$|\d|[-.]))"
    ),
    "spike_in": re.compile(rf"(?i)^{_GENOME}(?:gSpikein[-_.])?ERCC[-_.]\d{{5}}"),
}
"""Kinds of genes that `preprocess.drop_genes` recognises, in the spellings of all species."""

SUMMARY = re.compile(
    r"^(?:__\w+|\*|N_(?:unmapped|multimapping|noFeature|ambiguous)"
    r"|(?:no_feature|ambiguous|too_low_aQual|not_aligned|alignment_not_unique)"
    r"|Unassigned_\w+)$"
)
"""Rows that counting programs add below the genes, for reads without a gene."""
ANTIBODY = re.compile(
    r"(?i)(?:[-_.]TotalSeq[-_]?[ABC]?|_TotalA|^(?:adt|ab|antibody|hto|hashtag|protein)[-_.:]"
    r"|^hashtag[-_ ]?\d|[-_](?:adt|hto)$)"
)
"""Typical names of antibodies and hashtags, for files without a column of feature types."""

IDS = re.compile(
    r"^(?:ENS[A-Z]{0,6}G\d{11}|FBgn\d{7}|WBGene\d{8}|AT[1-5CM]G\d{5}|Y[A-P][LR]\d{3}[WC](?:-[A-Z])?"
    r"|ENTREZ\w*\d+|MGI:\d+|HGNC:\d+)(?:\.\d+)?(?:_PAR_Y)?$"
)
"""Identifiers of genes, which readers cannot interpret."""
_ID_AND_SYMBOL = re.compile(
    r"^(?P<id>(?:ENS[A-Z]{0,6}G\d{11}|FBgn\d{7}|WBGene\d{8})(?:\.\d+)?)[_|;:, /](?P<symbol>.+)$"
)
_SYMBOL_AND_ID = re.compile(
    r"^(?P<symbol>.+?)[_|;:, /(]+"
    r"(?P<id>(?:ENS[A-Z]{0,6}G\d{11}|FBgn\d{7}|WBGene\d{8})(?:\.\d+)?)\)?$"
)
_VERSION = re.compile(r"^(ENS[A-Z]{0,6}G\d{11})\.\d+$")

_KNOWN = frozenset(
    """
    ACTB ACTG1 AIF1 ALB APOE B2M BTG1 CCL5 CCNB1 CCND1 CCR7 CD14 CD163 CD19 CD2 CD27 CD3D CD3E CD3G
    CD4 CD44 CD52 CD68 CD69 CD7 CD74 CD79A CD79B CD8A CD8B CDH1 CDH5 CLDN5 COL1A1 COL1A2 COL3A1 CST3
    CTSS CXCR4 DCN DDX5 EEF1A1 EEF2 EGFR EPCAM ESR1 FAU FCER1A FCGR3A FN1 FOS FOXP3 FTH1 FTL GAPDH
    GFAP GNLY GZMA GZMB GZMK HBA1 HBB HLA-A HLA-B HLA-C HLA-DRA HLA.A HLA.DRA HMGB1 HNRNPA1 HSP90AA1
    HSP90AB1 HSPA1A HSPA8 IL2RA IL32 IL7R INS ITGAM JUN JUNB KIT KLRB1 KRT18 KRT19 KRT5 KRT8 LDHA
    LGALS1 LYZ MALAT1 MEF2C MKI67 MS4A1 NCAM1 NEAT1 NKG7 NPM1 OLIG2 PCNA PDGFRA PDGFRB PECAM1 PLP1
    PPBP PPIA PRF1 PTPRC RACK1 S100A4 S100A8 S100A9 SLC17A7 SNAP25 SOX2 SOX9 SPARC SST STMN1 TAGLN
    TMSB10 TMSB4X TOP2A TP53 TPT1 TRAC TUBA1A TUBA1B TUBB UBA52 UBB UBC VIM VWF XIST YWHAZ ZFP36
    """.split()
)
"""Common genes: nearly every table of human or mouse genes has some of them."""

_BARCODE = re.compile(r"(?:^|[_:#.|/-])[ACGTN]{8,}(?:$|[_:#.|-])")
_CELL = re.compile(
    r"(?i)^(?:(?:cell|barcode|bc|sample|droplet|nucleus|spot)[ _.-]?\d+"
    r"|(?:SRR|ERR|DRR|GSM|SRX)\d{4,}"
    r"|\d{2}_\d{2}_\d{2}(?:__s\d+)?)"
)

_METADATA = frozenset(
    """
    n_counts n_count n_genes n_genes_by_counts total_counts total_umis log1p_total_counts
    log1p_n_genes_by_counts ncount_rna nfeature_rna ncount_sct nfeature_sct ncount_spatial
    nfeature_spatial numi ngene nfeatures ncounts
    library_size size_factor size_factors pct_counts_mt pct_counts_mito pct_counts_ribo
    pct_counts_in_top_50_genes percent.mt percent_mt percent.mito percent_mito percent_mitochondrial
    percent.ribo percent_ribo mito_frac pct_mito
    cluster clusters cluster_id clusterid seurat_clusters leiden louvain kmeans cell_type celltype
    cell.type cell_types celltypes cell_label cell_class cell_subtype subtype annotation annotations
    label labels ident orig.ident idents phase s.score g2m.score s_score g2m_score doublet_score
    doublet_scores predicted_doublet is_doublet doublet scrublet_score
    batch batch_id sample sample_id sampleid donor donor_id patient patient_id individual subject
    condition treatment group genotype disease diagnosis status tissue organ region sex gender age
    stage timepoint time_point plate plate_id well well_id lane library library_id replicate run
    channel chemistry protocol technology dataset study species organism strain
    barcode barcodes cell_barcode cell_id cellid cell_name cellname cell
    fov cell_area x_centroid y_centroid x_global_px y_global_px x_local_px y_local_px
    centerx_global_px centery_global_px centerx_local_px centery_local_px array_row array_col
    pxl_row_in_fullres pxl_col_in_fullres in_tissue
    umap_1 umap_2 umap1 umap2 tsne_1 tsne_2 tsne1 tsne2 pc_1 pc_2 pc1 pc2
    """.split()
)
_METADATA_PATTERN = re.compile(r"(?i)^(?:rna_snn_res|sct_snn_res|integrated_snn_res)\.\d")
_GENE_METADATA = frozenset(
    """
    gene gene_id geneid gene.id gene_name genename gene.name gene_symbol genesymbol gene.symbol
    symbol symbols hgnc_symbol mgi_symbol external_gene_name gene_short_name ensembl ensembl_id
    ensembl_gene_id ensemblid entrez entrezid entrez_id accession feature features feature_name
    feature_id id gene_ids gene_names gene_symbols
    gene_type gene_biotype biotype description chr chrom chromosome seqname start end strand length
    gene_length width refseq transcript_id locus unigene
    """.split()
)
"""Headers of the columns that describe genes, in a table of genes in rows; lower case."""

_CELL_HEADERS = (
    "barcode barcodes cell cells cell_id cellid cell_name cellname cell_barcode cell_ids"
).split()


def metadata_columns(header: Sequence[str], *, rows_are_genes: bool) -> list[int]:
    """Return the positions of the columns of a table that hold no counts, according to their names.

    Parameters
    ----------
    header
        Names of the columns except the first.
    rows_are_genes
        Whether the rows are genes, so that columns may describe genes.
    """
    known = _GENE_METADATA if rows_are_genes else _METADATA
    return [
        i
        for i, name in enumerate(header)
        if name.strip().lower() in known
        or (not rows_are_genes and _METADATA_PATTERN.match(name.strip()))
    ]


def names_gene(header: str) -> bool:
    """Return whether the header of a first column says that its rows are genes."""
    return header.strip().lower() in _GENE_METADATA


def names_cell(header: str) -> bool:
    """Return whether the header of a first column says that its rows are cells."""
    return header.strip().lower() in _CELL_HEADERS


def share_of_ids(names: Sequence[str] | np.ndarray) -> float:
    """Return the share of names that are identifiers, such as those of Ensembl, and not symbols."""
    return sum(bool(IDS.match(str(name))) for name in names) / max(len(names), 1)


def without_version(name: str) -> str:
    """Return an Ensembl identifier without its version; other names are not changed.

    Examples
    --------
    >>> without_version("ENSG00000198888.2"), without_version("AC012345.1")
    ('ENSG00000198888', 'AC012345.1')
    """
    found = _VERSION.match(name)
    return found[1] if found else name


def divided(names: Sequence[str]) -> tuple[list[str], list[str]] | None:
    """Split names that hold an identifier and a symbol: (symbols, identifiers).

    Return None unless at least 90 % of the names have one such form; the other names are kept.

    Examples
    --------
    >>> divided(["ENSG00000198888.2_MT-ND1", "ENSG00000111640_GAPDH"])
    (['MT-ND1', 'GAPDH'], ['ENSG00000198888.2', 'ENSG00000111640'])
    """
    for form in (_ID_AND_SYMBOL, _SYMBOL_AND_ID):
        found = [form.match(str(name)) for name in names]
        if names and sum(f is not None for f in found) >= 0.9 * len(found):
            parts = [
                (f["symbol"], f["id"]) if f else (str(name), str(name))
                for f, name in zip(found, names, strict=True)
            ]
            return [symbol for symbol, _ in parts], [identifier for _, identifier in parts]
    return None


def is_of(kind: str, names: Iterable[str]) -> np.ndarray:
    """Return which names are genes of a kind in `CLASSES`, shape (G,)."""
    return np.array([bool(CLASSES[kind].match(str(name))) for name in names], dtype=bool)


def is_like(kind: str, pattern: str) -> bool:
    """Return whether a regular expression is meant for genes of a kind in `CLASSES`.

    Examples
    --------
    >>> is_like("mitochondrial", "^MT-"), is_like("ribosomal", "^MT-")
    (True, False)
    """
    some = {
        "mitochondrial": ("MT-ND1", "mt-Nd1", "Mt-nd1", "mt:ND1", "MT.ND1"),
        "ribosomal": ("RPL3", "RPS6", "Rpl3", "Rps6", "rpl3", "RpL3"),
        "spike_in": ("ERCC-00002", "ERCC.00002", "ERCC_00002"),
    }
    return any(re.search(pattern, name) for name in some[kind])


def n_gene_like(names: Iterable[str]) -> int:
    """Return how many names can only be names of genes: identifiers and common genes."""
    return sum(
        bool(
            IDS.match(name)
            or name.upper() in _KNOWN
            or CLASSES["ribosomal"].match(name)
            or (CLASSES["mitochondrial"].match(name) and not _BARCODE.search(name))
            or _ID_AND_SYMBOL.match(name)
        )
        for name in map(str, names)
    )


def n_cell_like(names: Iterable[str]) -> int:
    """Return how many names are names of cells: nucleotide barcodes, accessions, numbered cells."""
    return sum(bool(_BARCODE.search(name) or _CELL.match(name)) for name in map(str, names))
