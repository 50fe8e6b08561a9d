"""Read gene sets: a GMT file, or the markers of blood cells that are included."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import NoReturn

from topicell.errors import InputError

BLOOD = "blood"
"""Name of the sets that are included in topicell."""
BLOOD_MARKERS = Path(__file__).with_name("blood_markers.gmt")
"""Human blood cells and programs. A gene that HGNC has renamed is included with both symbols,
because references of older 10x data have the former symbol. Data have only one of them, and a
set is restricted to the genes of the data."""


def read_gene_sets(path: str | Path, setting: str = "report.gene_sets") -> dict[str, list[str]]:
    """Read a GMT file: on each line a name, a description, and genes, separated by tabs.

    Parameters
    ----------
    path
        The file, plain or compressed by gzip; the string ``"blood"`` selects the included markers
        of blood cells (write a file with that name as ``"./blood"``).
    setting
        Name of the setting, for messages.

    Returns
    -------
    dict
        Genes by name of the set, in the order of the file, each gene once. Empty lines and
        fields are skipped.

    Raises
    ------
    InputError
        The file cannot be read, is not UTF-8 text, or is not a GMT file.

    Examples
    --------
    >>> read_gene_sets("blood")["B cell"][:4]
    ['CD19', 'MS4A1', 'CD79A', 'CD79B']
    """
    try:
        return _parsed(path, _read_text(path))
    except _UnreadableError as error:
        raise InputError(f"{setting} = {error}") from None


def _parsed(path: str | Path, text: str) -> dict[str, list[str]]:
    """Return the sets of the text of a GMT file."""
    gene_sets: dict[str, list[str]] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if not line.strip():
            continue
        if "\t" not in line:
            start = line.strip()[:40]
            _refuse(
                path,
                f"line {number} has no tab ({start!r})",
                "each line of a GMT file has a name, a description and genes, separated by tabs",
            )
        name, _, *genes = (field.strip() for field in line.split("\t"))
        if not name:
            _refuse(path, f"the set on line {number} has no name", "name it in the first field")
        if name in lines:
            _refuse(
                path,
                f"lines {lines[name]} and {number} are both named {name!r}",
                "give each set a name of its own",
            )
        unique = list(dict.fromkeys(gene for gene in genes if gene))
        if not unique:
            _refuse(
                path,
                f"the set {name!r} on line {number} has no genes",
                "genes follow the name and the description, which may be empty; "
                "add them or delete the line",
            )
        gene_sets[name], lines[name] = unique, number
    if not gene_sets:
        _refuse(path, "the file is empty", "name a GMT file with at least one set")
    return gene_sets


class _UnreadableError(ValueError):
    """What is wrong with a file of gene sets, and how to fix it."""


def _read_text(path: str | Path) -> str:
    file = BLOOD_MARKERS if path == BLOOD else Path(path).expanduser()
    try:
        data = file.read_bytes()
        # The first bytes decide, because the name can be wrong, and no text starts with these
        # bytes.
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        _refuse(
            path,
            f"there is no such file (looked from {Path.cwd()})",
            f"check the path, or use {BLOOD!r}, the sets included in topicell",
        )
    except (EOFError, gzip.BadGzipFile, zlib.error):
        _refuse(path, "the gzip file is incomplete or damaged", "copy or download it again")
    except OSError as error:
        what = (error.strerror or type(error).__name__).lower()
        _refuse(path, f"cannot be read ({what})", "name a GMT file that can be read")
    except UnicodeDecodeError as error:
        _refuse_binary(path, data, error.start)
    if "\0" in text:
        _refuse_binary(path, data, data.index(b"\0"))
    return text


def _refuse_binary(path: str | Path, data: bytes, position: int) -> NoReturn:
    line = data.count(b"\n", 0, position) + 1
    _refuse(path, f"line {line} is not UTF-8 text", "save the gene sets as a GMT file in UTF-8")


def _refuse(path: str | Path, what: str, fix: str) -> NoReturn:
    raise _UnreadableError(f"{str(path)!r}: {what}; {fix}") from None
