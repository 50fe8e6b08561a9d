"""Random input, right and broken: it is read as it was written, or refused in one line.

    python experiments/robustness/fuzz.py [--seconds 600] [--seed N] [--faults FOLDER]

Each drive of `DRIVES` makes one small input from random numbers and gives it to topicell, in a
process of its own: what is read must equal what was written, or be sound counts; a refusal must be
one line of an `InputError`. Anything else, a crash and more than ten seconds too, is a fault: its
files and its error go to FOLDER/DRIVE-NUMBER. A crash or an endless loop inside libhdf5, which
follows damaged pointers of strings, is no fault but has a column of its own: topicell
cannot prevent it.
Prints how many inputs of each drive ended in which way; ends with code 1 on a fault. The same seed
and number give the same input:

    python experiments/robustness/fuzz.py --seed N --only DRIVE-NUMBER

The tests take the same drives with Hypothesis's random numbers.
"""

from __future__ import annotations

import argparse
import faulthandler
import gzip
import itertools
import multiprocessing
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata import AnnData
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from topicell.cli.train import to_run_config
from topicell.config import RunConfig, TrainCommand, as_dict, dotted
from topicell.counts import MAX_COUNT, Counts
from topicell.data.reading import read
from topicell.errors import InputError

SECONDS_EACH = 10
LATE = f"no answer within {SECONDS_EACH} s"
MEMORY = 8 * 2**30
"""What a worker may reserve: an input of a few kilobytes needs nothing near it."""

# What is written


def draw_counts(rng: random.Random) -> np.ndarray:
    """Counts of a few cells and genes, from none to very many zeros."""
    n_cells, n_genes = rng.randint(1, 9), rng.randint(1, 7)
    values = (1, 2, 3, 100, 255, 300, 70_000, MAX_COUNT)
    share = rng.choice((0.0, 0.3, 0.9, 1.0))
    return np.array(
        [
            [rng.choice(values) if rng.random() < share else 0 for _ in range(n_genes)]
            for _ in range(n_cells)
        ]
    )


def draw_names(rng: random.Random, letter: str, number: int, odd: str) -> list[str]:
    """Unique names, some with letters from `odd`."""
    return [
        f"{letter}{i}{''.join(rng.choice(odd) for _ in range(rng.randint(0, 3)))}."
        for i in range(number)
    ]


def draw_cells(rng: random.Random, odd: str = "éß日🧬 -_/|'") -> AnnData:
    x = draw_counts(rng)
    return AnnData(
        x.astype(np.float32),
        obs=pd.DataFrame(index=draw_names(rng, "c", x.shape[0], odd)),
        var=pd.DataFrame(index=draw_names(rng, "g", x.shape[1], odd)),
    )


def any_type(rng: random.Random, x: np.ndarray) -> np.ndarray:
    """The same numbers in a type that holds them."""
    kinds = ("u1", "i2", "i4", "u4", "i8", "u8", "f4", "f8", "f2", "?")
    with np.errstate(all="ignore"):
        fitting = [kind for kind in kinds if (x.astype(kind).astype(np.float64) == x).all()]
    return x.astype(rng.choice(fitting))


def shuffled_rows(rng: random.Random, x: sp.csr_matrix) -> sp.csr_matrix:
    """The same matrix with the entries of each row, or column, in any order."""
    for start, end in itertools.pairwise(x.indptr):
        order = list(range(start, end))
        rng.shuffle(order)
        x.indices[start:end], x.data[start:end] = x.indices[order], x.data[order]
    x.has_sorted_indices = False
    return x


def write_h5ad(rng: random.Random, adata: AnnData, folder: Path) -> Path:
    x = adata.X.astype(np.float64)
    form = rng.choice(("dense", "csr", "csc"))
    if form == "dense":
        adata.X = any_type(rng, x)
    else:
        # scipy has no sparse matrix of half precision.
        values = any_type(rng, x)
        values = values.astype(np.float32) if values.dtype == np.float16 else values
        adata.X = shuffled_rows(rng, (sp.csr_matrix if form == "csr" else sp.csc_matrix)(values))
    if rng.random() < 0.3:
        adata.layers["counts"], adata.X = adata.X, np.log1p(x)
    path = folder / "cells.h5ad"
    adata.write_h5ad(path, compression=rng.choice((None, "gzip")))
    return path


def write_zarr(rng: random.Random, adata: AnnData, folder: Path) -> Path:
    path = folder / "cells.zarr"
    # Indices that are all zero zarr does not write; topicell takes them for lost.
    if rng.random() < 0.5 and adata.X[:, 1:].any():
        adata.X = sp.csr_matrix(adata.X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's and zarr's own, about their formats
        adata.write_zarr(path)
    return path


def write_10x_h5(rng: random.Random, adata: AnnData, folder: Path) -> Path:
    x = shuffled_rows(rng, sp.csr_matrix(adata.X))
    path = folder / "cells.h5"
    features = {key: list(adata.var_names) for key in ("id", "name", "genome")}
    features["feature_type"] = ["Gene Expression"] * adata.n_vars
    parts = {
        "barcodes": list(adata.obs_names),
        "data": x.data.astype(rng.choice(("i4", "i8", "f4"))),
        "indices": x.indices.astype(rng.choice(("i4", "i8"))),
        "indptr": x.indptr.astype(rng.choice(("i4", "i8"))),
        "shape": np.array(x.shape[::-1]),
    }
    with h5py.File(path, "w") as file:
        for name, values in (parts | {f"features/{k}": v for k, v in features.items()}).items():
            texts = isinstance(values, list)
            file[f"matrix/{name}"] = [v.encode() for v in values] if texts else values
    return path


def write_mtx(rng: random.Random, adata: AnnData, folder: Path) -> Path:
    path = folder / "mtx"
    path.mkdir()
    x = sp.coo_matrix(adata.X.T.astype(int))
    order = list(range(x.nnz))
    rng.shuffle(order)
    x = sp.coo_matrix((x.data[order], (x.row[order], x.col[order])), shape=x.shape)
    scipy.io.mmwrite(path / "matrix.mtx", x, symmetry="general")
    (path / "features.tsv").write_text("".join(f"E{g}\t{g}\n" for g in adata.var_names))
    (path / "barcodes.tsv").write_text("".join(f"{c}\n" for c in adata.obs_names))
    if rng.random() < 0.3:
        for file in list(path.iterdir()):
            Path(f"{file}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
            file.unlink()
    return path


def write_text(rng: random.Random, adata: AnnData, folder: Path) -> Path:
    suffix = rng.choice((".csv", ".tsv", ".txt"))
    text = adata.to_df().astype(int).to_csv(sep="," if suffix == ".csv" else "\t", index_label="c")
    packed = rng.random() < 0.3
    path = folder / f"cells{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())
    return path


WRITERS = {
    "h5ad": write_h5ad,
    "zarr": write_zarr,
    "10x h5": write_10x_h5,
    "mtx": write_mtx,
    "text": write_text,
}

# How it is broken


def corrupt(rng: random.Random, path: Path) -> None:
    """Change some bytes of a file, or of one file of a folder."""
    if path.is_dir():
        path = rng.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    content = bytearray(path.read_bytes())
    in_place = rng.random() < 0.6
    for _ in range(rng.choice((1, 1, 1, 2, 6))):
        start = rng.randint(0, max(len(content) - 1, 0))
        end = min(len(content), start + rng.choice((1, 1, 2, 8, 100)))
        noise = bytes(rng.choice((0, 1, 9, 10, 45, 49, 128, 255)) for _ in range(end - start))
        moved = rng.choice((b"", bytes(content[start:end]) * 2, noise))
        content[start:end] = noise if in_place else moved
        if not in_place and rng.random() < 0.1:
            del content[start:]
    path.write_bytes(content)


def change_part(rng: random.Random, path: Path) -> None:
    """Take away or replace one array, group or attribute of an HDF5 file."""
    with h5py.File(path, "a") as file:
        names: list[str] = []
        file.visit(names.append)
        name = rng.choice(sorted(names))
        attributes = sorted(file[name].attrs)
        what = rng.choice(("drop", "replace", "replace", "attribute"))
        if what == "attribute" and attributes:
            key = rng.choice(attributes)
            del file[name].attrs[key]
            if rng.random() < 0.7:
                file[name].attrs[key] = rng.choice(
                    (0, -1, "array", "csr_matrix", "csc_matrix", [3, 4], [10**12, 10**12], "X", "")
                )
            return
        kept, old = dict(file[name].attrs), file[name]
        size = old.shape[0] if isinstance(old, h5py.Dataset) and old.shape else 3
        del file[name]
        if what == "replace":
            size = max(0, size + rng.choice((0, 0, 0, 1, -1)))
            pool = rng.choice(((0, 1), (-1, 0, 5), (0, 10**9), (0, 2**62), (0.5, 1.0), (1e300, 2)))
            values = np.array([rng.choice(pool) for _ in range(size)])
            if rng.random() < 0.2:
                values = np.array([b"a", b"", b"\xff\xfe", b"b\0c"] * size)[:size]
            elif rng.random() < 0.2:
                values = values.reshape(size, 1)
            file[name] = values
            file[name].attrs.update(kept)


# The drives: one input each


def is_read(path: Path, *, layer: str | None = None, backed: bool = False) -> AnnData | None:
    """What a file is read as, sound counts; None if it is refused in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            adata = read(path, layer=layer, backed=backed)
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{path}: "), message
            assert "\n" not in message, message
            return None
        counts = Counts.of(adata[:, ::-1][::-1].copy())
    assert counts.x.has_canonical_format
    assert (counts.x.data >= 1).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    return adata


def round_trip(form: str) -> Callable[[random.Random, Path], bool]:
    def drive(rng: random.Random, folder: Path) -> bool:
        """What was written is read back."""
        quoted = ",\"'\t\n" if form in ("text", "h5ad") else ""
        written = draw_cells(rng, "éß日🧬 -_/|" + quoted)
        path = WRITERS[form](rng, written.copy(), folder)
        adata = is_read(path, backed=form == "h5ad" and rng.random() < 0.5)
        assert adata is not None, "what is right was refused"
        assert (adata.X.toarray() == written.X).all()
        assert list(adata.obs_names) == list(written.obs_names)
        assert list(adata.var_names) == list(written.var_names)
        return True

    return drive


def corrupted(form: str) -> Callable[[random.Random, Path], bool]:
    def drive(rng: random.Random, folder: Path) -> bool:
        """Bytes are changed."""
        path = WRITERS[form](rng, draw_cells(rng), folder)
        corrupt(rng, path)
        return is_read(path, backed=form == "h5ad" and rng.random() < 0.2) is not None

    return drive


def changed(form: str) -> Callable[[random.Random, Path], bool]:
    def drive(rng: random.Random, folder: Path) -> bool:
        """A part of an HDF5 file is another."""
        path = WRITERS[form](rng, draw_cells(rng), folder)
        change_part(rng, path)
        return is_read(path, backed=form == "h5ad" and rng.random() < 0.3) is not None

    return drive


VALUES = (
    *("nan", "inf", "-inf", "-1", "0", "1", "2", "3", "0.5", "1e30", "-0.0", "1e-300"),
    *(str(10**30), str(-(10**30)), "2147483648", "null", "true", "false", "[]", "[1,2]"),
    *("{a: 1}", "{}", "''", "abc", "é", "${seed}", "???", "60s", "9s", "1.5", "file", "a.h5ad"),
    *("constant", "pyro", "bfloat16", "sklearn_nmf", "grid", "[a,b]", "2020-01-01", "0x10"),
)


def configured(rng: random.Random, _: Path) -> bool:
    """Settings are anything."""
    knobs = dotted(TrainCommand())
    asked = []
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(sorted(knobs))
        whole = isinstance(knobs[name], (int, float)) and rng.random() < 0.5
        asked.append(f"{name}={rng.randint(0, 9) if whole else rng.choice(VALUES)}")
    try:
        settings = OmegaConf.merge(
            OmegaConf.structured(TrainCommand), OmegaConf.from_dotlist(asked)
        )
        config = to_run_config(settings)
    except (InputError, OmegaConfBaseException):
        return False
    except Exception as error:
        error.add_note(" ".join(asked))
        raise
    assert isinstance(config, RunConfig)
    assert as_dict(config)
    return True


DRIVES: dict[str, Callable[[random.Random, Path], bool]] = {
    **{f"{form}, right": round_trip(form) for form in WRITERS},
    **{f"{form}, bytes changed": corrupted(form) for form in WRITERS},
    **{f"{form}, a part changed": changed(form) for form in ("h5ad", "10x h5")},
    "settings": configured,
}
"""Each takes random numbers and an empty folder: True if its input was taken, False if refused."""

# For as long as asked


def work(seed: int, first: int, scratch: Path, pipe: Connection) -> None:
    """Take one input after another, each said before and after, until the process is ended."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # Where it was when it crashed or hung, also inside of compiled code.
    stack = (scratch / "stack.txt").open("w")
    faulthandler.enable(stack)
    for number in itertools.count(first):
        pipe.send(("begin", number))
        folder = scratch / str(number)
        folder.mkdir()
        name = list(DRIVES)[number % len(DRIVES)]
        faulthandler.dump_traceback_later(0.8 * SECONDS_EACH, file=stack)
        try:
            taken = DRIVES[name](random.Random(f"{seed} {number}"), folder)
        except Exception:
            pipe.send(("fault", traceback.format_exc()))
        else:
            pipe.send(("read" if taken else "refused", ""))
            shutil.rmtree(folder)


def fuzz(seconds: float, seed: int, faults: Path) -> Counter[tuple[str, str]]:
    """Drive for so many seconds: how often each drive ended in which way."""
    context = multiprocessing.get_context("fork")
    found: Counter[tuple[str, str]] = Counter()
    until, number = time.monotonic() + seconds, 0
    with tempfile.TemporaryDirectory() as scratch:
        while time.monotonic() < until:
            here, there = context.Pipe()
            worker = context.Process(target=work, args=(seed, number, Path(scratch), there))
            worker.start()
            there.close()
            outcome = "begin"
            while time.monotonic() < until or outcome == "begin":
                detail = ""
                try:
                    if not here.poll(SECONDS_EACH):
                        outcome, detail = "fault", LATE
                    else:
                        outcome, detail = here.recv()
                except EOFError:
                    worker.join()
                    outcome, detail = "fault", f"the process ended with code {worker.exitcode}"
                if outcome == "begin":
                    number = int(detail)
                    continue
                name = list(DRIVES)[number % len(DRIVES)]
                found[name, outcome] += 1
                if outcome == "fault":
                    dead = not detail.startswith("Traceback")
                    if dead:
                        stack = (Path(scratch) / "stack.txt").read_text()
                        detail = f"{stack}\n{detail}"
                        if in_libhdf5(stack):
                            found[name, "fault"] -= 1
                            found[name, "libhdf5"] += 1
                            break
                    place = faults / f"{name.replace(', ', '-').replace(' ', '-')}-{number}"
                    keep(place, Path(scratch) / str(number), detail)
                    if dead:
                        break
            worker.kill()
            worker.join()
            here.close()
            number += 1
    return found


def in_libhdf5(stack: str) -> bool:
    """Return whether the innermost frame of the last stack is in h5py, which has no loops."""
    *_, last = stack.split("(most recent call first):")
    frame = last.strip().partition("\n")[0]
    return "/h5py/" in frame


def keep(place: Path, files: Path, detail: str) -> None:
    """Keep what a fault was made of."""
    shutil.copytree(files, place, dirs_exist_ok=True)
    (place / "fault.txt").write_text(detail)
    print(f"fault: {place}: {detail.strip().splitlines()[-1]}", file=sys.stderr, flush=True)


def table(found: Counter[tuple[str, str]]) -> str:
    outcomes = ("read", "refused", "libhdf5", "fault")
    lines = [
        f"| {'input':<24} | {' | '.join(f'{o:>8}' for o in outcomes)} |",
        "|---|---|---|---|---|",
    ]
    for name in DRIVES:
        lines.append(f"| {name:<24} | {' | '.join(f'{found[name, o]:>8}' for o in outcomes)} |")
    total = {o: sum(n for (_, end), n in found.items() if end == o) for o in outcomes}
    lines.append(f"| {'all':<24} | {' | '.join(f'{total[o]:>8}' for o in outcomes)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=Path, default=Path("faults"))
    parser.add_argument("--only", help="one input again, in this process: DRIVE-NUMBER, or NUMBER")
    asked = parser.parse_args()
    if asked.only:
        number = int(asked.only.rpartition("-")[2])
        name = list(DRIVES)[number % len(DRIVES)]
        folder = asked.faults / f"again-{number}"
        folder.mkdir(parents=True)
        taken = DRIVES[name](random.Random(f"{asked.seed} {number}"), folder)
        print(f"{name}: {'read' if taken else 'refused'}; its files: {folder}")
        return
    found = fuzz(asked.seconds, asked.seed, asked.faults)
    print(table(found))
    sys.exit(int(any(outcome == "fault" for _, outcome in found)))


if __name__ == "__main__":
    main()
