"""Reader of folders of text files: a matrix in MatrixMarket form, names of genes, names of cells.

A triple is the three files of one sample. Cell Ranger and STARsolo write matrix.mtx, features.tsv
(genes.tsv before Cell Ranger 3) and barcodes.tsv; GEO adds the name of the sample as a prefix, so
that one folder can hold several samples; kallisto and alevin use other names, and cells in rows.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from topicell.counts import require_sound
from topicell.data.formats.names import named
from topicell.data.formats.repeats import warn_of_repeats
from topicell.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_ENDING = r"\.(?:tsv|txt|csv)(?:\.gz)?$"
_GENES = re.compile(rf"(?i)^(|.*[._-])(features|genes|gene_names|cols){_ENDING}")
_CELLS = re.compile(rf"(?i)^(|.*[._-])(barcodes|cells|cell_names|cell_metadata|rows){_ENDING}")
_MATRIX = re.compile(r"(?i)^(.*)\.mtx(?:\.gz)?$")
_MATRIX_WORD = re.compile(r"(?i)(?:(?:count_?)?matrix|counts?|mtx)$")
_HEADER = re.compile(r"(?i)|x|v\d+|id|bc.*|.*(gene|feature|symbol|name|cell|barcode).*")
"""First field of a header line that some programs write above the names."""
_CELLS_IN_ROWS = re.compile(r"(?i)cells_x_genes|quants_mat|dge")
"""Names of the matrices that kallisto, alevin and Parse write: cells × genes."""


@dataclass(frozen=True, slots=True)
class Triple:
    """The files of one sample; `genes` or `cells` is None if the folder has no such file."""

    name: str
    matrix: Path
    genes: Path | None
    cells: Path | None

    @property
    def files(self) -> list[Path]:
        """The files that exist."""
        return [file for file in (self.matrix, self.genes, self.cells) if file is not None]

    @property
    def complete(self) -> bool:
        """Whether all three files exist."""
        return len(self.files) == 3


def triples(folder: Path) -> list[Triple]:
    """Return the samples of a folder, by name; a plain matrix.mtx is the only one."""
    # Compressed files first: if there are two files of one name, the compressed one is read.
    files = sorted(
        (f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")),
        key=lambda f: (f.suffix != ".gz", f.name),
    )
    genes = [(match[1], match[2].lower(), f) for f in files if (match := _GENES.match(f.name))]
    cells = [(match[1], match[2].lower(), f) for f in files if (match := _CELLS.match(f.name))]
    matrices: dict[str, Path] = {}
    for file in files:
        if match := _MATRIX.match(file.name):
            matrices.setdefault(match[1], file)
    if "matrix" in matrices:
        matrices = {"matrix": matrices["matrix"]}

    prefixes = {base: _MATRIX_WORD.sub("", base) for base in matrices}

    def companion(base: str, listed: list[tuple[str, str, Path]], words: str) -> Path | None:
        # "s1_matrix" has s1_barcodes.tsv, "quants_mat" quants_mat_rows.txt.
        expected = (prefixes[base], *(base + mark for mark in "._-"))
        for word in words.split():
            for before, found, file in listed:
                if found == word and before in expected:
                    return file
        # Else use the only list: that of the only matrix, or the genes that all samples have.
        if len(listed) == 1 and listed[0][0] not in prefixes.values():
            return listed[0][2] if len(matrices) == 1 or listed is genes else None
        return None

    return [
        Triple(
            prefixes[base].rstrip("._- ") or base,
            matrix,
            companion(base, genes, "features genes gene_names cols"),
            companion(base, cells, "barcodes cells cell_names cell_metadata rows"),
        )
        for base, matrix in sorted(matrices.items())
    ]


def triple_of(path: Path) -> Triple | None:
    """Return the sample to which a file belongs, if there is one."""
    if not any(pattern.match(path.name) for pattern in (_GENES, _CELLS, _MATRIX)):
        return None
    found = [triple for triple in triples(path.parent) if path in triple.files]
    return found[0] if len(found) == 1 else None


def read_mtx(path: Path) -> AnnData:
    """Return the cells × features of the samples of a folder, or of the sample of a file.

    For several samples, the result has the genes that all of them have. Names of cells begin with
    the name of the sample, which is also in ``obs["sample"]``.
    """
    if path.is_file():
        sample = triple_of(path)
        assert sample is not None, "the form is recognised by the triple"
        return _read_triple(sample)
    samples = triples(path)
    if len(samples) == 1:
        return _read_triple(samples[0])
    for sample in samples:
        if not sample.complete:
            whole = next((s for s in samples if s.complete), samples[0])
            missing = "names of cells" if sample.genes else "names of genes"
            raise InputError(
                f"the folder holds {len(samples)} matrices, and {sample.matrix.name} has no file "
                f"of {missing} beside it; to read one sample, give its matrix as data.path: "
                f"{whole.matrix.name}"
            )
    return _together([sample.name for sample in samples], [_read_triple(s) for s in samples])


def _together(names: list[str], parts: list[AnnData]) -> AnnData:
    """Return samples as one AnnData with the genes that all of them have."""
    import pandas as pd
    from anndata import AnnData

    by_id = all("gene_ids" in part.var and part.var["gene_ids"].is_unique for part in parts)
    places = [_places(part.var["gene_ids"] if by_id else part.var_names) for part in parts]
    # In the order of the first sample.
    shared = [gene for gene in places[0] if all(gene in other for other in places[1:])]
    if not shared:
        firsts = "; ".join(
            f"{name}: {part.var_names[0]}, …" for name, part in zip(names, parts, strict=True)
        )
        raise InputError(
            f"its {len(parts)} samples have no gene in common ({firsts}); give one of them as "
            "data.path, or use the same gene names in all"
        )
    n_all = len({gene for of in places for gene in of})
    if n_all > len(shared):
        warnings.warn(
            f"{n_all - len(shared)} of {n_all} genes are not in all of the {len(parts)} samples "
            "and are left out",
            UserWarning,
            stacklevel=4,
        )
    chosen = [[of[gene] for gene in shared] for of in places]
    sample = np.repeat(names, [part.n_obs for part in parts])
    cells = [cell for part in parts for cell in part.obs_names]
    return AnnData(
        sp.vstack([part.X[:, at] for part, at in zip(parts, chosen, strict=True)], format="csr"),
        obs=pd.DataFrame(
            {"sample": pd.Categorical(sample)},
            index=[f"{name}_{cell}" for name, cell in zip(sample, cells, strict=True)],
        ),
        var=parts[0].var.iloc[chosen[0]].copy(),
    )


def _places(names: pd.Index | pd.Series) -> dict[tuple[str, int], int]:
    """Return the position of each gene; two genes with the same name are different genes."""
    seen: Counter[str] = Counter()
    places = {}
    for place, name in enumerate(names):
        places[name, seen[name]] = place
        seen[name] += 1
    return places


def _read_triple(sample: Triple) -> AnnData:
    # scanpy's reader only supports Cell Ranger's own names: no features.tsv without .gz.
    import pandas as pd
    from anndata import AnnData

    folder = sample.matrix.parent
    for file, names in (
        (sample.genes, "features.tsv or genes.tsv"),
        (sample.cells, "barcodes.tsv"),
    ):
        if file is not None:
            continue
        if file is sample.genes and list(folder.glob("*peaks.bed*")):
            raise InputError(
                f"the folder has peaks.bed and no {names}: it holds counts of chromatin peaks, not "
                "of genes; give the folder or file with gene expression"
            )
        raise InputError(
            f"the folder has no {names} (.gz or not) for {sample.matrix.name}; put it into the "
            "same folder, with the same prefix"
        )
    assert sample.genes is not None
    assert sample.cells is not None
    genes, cells = _table(sample.genes), _table(sample.cells)
    x, genes, cells = _entries(sample.matrix, genes, cells)
    require_sound(x, sample.matrix.name)
    # The third column of Cell Ranger's files has types; files with a header are from other
    # programs.
    known = ("gene_ids", "symbols", "feature_types")[: 3 if genes.index[0] == 0 else 2]
    columns = dict(zip(known, genes, strict=False))
    ids = genes[columns["gene_ids"]].to_numpy()
    var = pd.DataFrame(
        {key: genes[columns[key]].to_numpy() for key in columns if key != "symbols"},
        index=named(genes[columns.get("symbols", 0)], ids),
    )
    return AnnData(x, obs=pd.DataFrame(index=cells[0].to_numpy()), var=var)


def _table(file: Path) -> pd.DataFrame:
    import pandas as pd

    comma = ".csv" in file.suffixes[-2:]
    # Names are read as text: a gene called NA is not a missing value.
    table = pd.read_csv(
        file,
        sep="," if comma else "\t",
        header=None,
        dtype=str,
        na_filter=False,
        quoting=0 if comma else 3,
        encoding="utf-8-sig",
    )
    # R writes names in quotation marks.
    quoted = table.iloc[:, 0].str.fullmatch('".*"').all()
    return table.apply(lambda column: column.str.strip('"')) if quoted else table


def _entries(
    path: Path, genes: pd.DataFrame, cells: pd.DataFrame
) -> tuple[sp.csr_matrix, pd.DataFrame, pd.DataFrame]:
    """Return the cells × genes of a MatrixMarket file, and the tables without a header.

    scipy's reader is not used, because a damaged line can make it end the process.
    """
    import gzip

    import pandas as pd

    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        banner = file.readline().decode().lower().split()
        if banner[:3] != ["%%matrixmarket", "matrix", "coordinate"] or banner[4:] != ["general"]:
            raise InputError(
                f"{path.name} does not begin with '%%MatrixMarket matrix coordinate … general'; "
                "the file may be damaged or in another format: write it again"
            )
        sizes = next((line for line in file if line.strip() and not line.startswith(b"%")), b"")
        n_rows, n_columns, n_entries = map(int, sizes.split())
        genes, cells, turned = _fitted(path, (n_rows, n_columns), genes, cells)
        shape = (n_rows, n_columns) if turned else (n_columns, n_rows)
        if not n_entries:
            return sp.csr_matrix(shape), genes, cells
        table = pd.read_csv(file, sep=r"\s+", header=None, na_filter=False, comment="%")
    if table.shape != (n_entries, 3) or any(kind.kind not in "iuf" for kind in table.dtypes):
        raise InputError(
            f"{path.name} declares {n_entries} entries of gene, cell and count, but holds "
            f"{len(table)} lines of {table.shape[1]} values, or values that are not numbers; it "
            "may be incomplete or damaged: copy or download it again"
        )
    at = table[[0, 1]].to_numpy()
    if not ((at >= 1) & (at <= (n_rows, n_columns)) & (at == np.floor(at))).all():
        raise InputError(
            f"{path.name} has entries beyond its {len(genes)} genes × {len(cells)} cells; it is "
            "damaged: copy or download it again"
        )
    row, column = at.astype(np.int64).T - 1
    cell, gene = (row, column) if turned else (column, row)
    # Integers overflow when values of one cell and gene are added.
    x = sp.csr_matrix((table[2].to_numpy(np.float64), (cell, gene)), shape=shape)
    warn_of_repeats(n_entries - x.nnz, path.name)
    return x, genes, cells


def _fitted(
    path: Path, shape: tuple[int, int], genes: pd.DataFrame, cells: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, bool]:
    """Return the tables without a header line, if they have one, and whether cells are rows."""
    # If both orientations are possible, the name of the file decides.
    usual = bool(_CELLS_IN_ROWS.search(path.name))
    headed = [bool(_HEADER.fullmatch(str(table.iloc[0, 0]))) for table in (genes, cells)]
    for cells_first in (usual, not usual):
        expected = shape[::-1] if cells_first else shape
        excess = [len(t) - n for t, n in zip((genes, cells), expected, strict=True)]
        if all(n == 0 or (n == 1 and head) for n, head in zip(excess, headed, strict=True)):
            return genes[excess[0] :], cells[excess[1] :], cells_first
    n_genes, n_cells = shape[::-1] if usual else shape
    raise InputError(
        f"{path.name} has {n_genes} genes × {n_cells} cells, but there are names for {len(genes)} "
        f"genes and {len(cells)} cells; use files of the same sample"
    )
