"""The data for the script of a page: cells, maps, topics and genes as one compressed block.

The block is a little-endian length, a JSON head, and arrays; `viewer.js` reads it. Proportions and
expression have 8 bits and positions 16, more than a screen can show; the tables have the exact
numbers.

Shape suffixes: N cells, G genes, K topics.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

MAX_EXPRESSION = 1_500_000
"""Largest number of non-zero expression values in a page, about 4 MB; leading genes come first."""
NO_CATEGORY = 255


def pack(
    cells: Sequence[str],
    genes: Sequence[str],
    topics: Sequence[str],
    colors: Sequence[str],
    theta_NK: np.ndarray,
    beta_KG: np.ndarray,
    maps: Mapping[str, np.ndarray],
    categories: Sequence[Mapping[str, Any]],
    expression_NG: sp.spmatrix | np.ndarray,
    order_G: np.ndarray,
    differential: Mapping[str, np.ndarray],
) -> str:
    """Return the block as base64.

    Parameters
    ----------
    cells, genes, topics
        Names.
    colors
        Colours of the topics.
    theta_NK, beta_KG
        Topic proportions of the cells, gene proportions of the topics.
    maps
        Coordinates of the cells, (N, 2), by name of the map.
    categories
        Groupings: ``name``, ``names`` and ``colors`` of its categories, ``codes`` of the cells (−1:
        none). At most 255 categories each.
    expression_NG
        Log-normalised values.
    order_G
        Genes in the order in which their expression is stored, if the page cannot hold all.
    differential
        Arrays (G, K) with the names ``lfc`` and ``q`` of `viewer.js`.
    """
    n = len(cells)
    arrays: dict[str, np.ndarray] = {
        "theta": np.rint(255 * theta_NK.T).astype(np.uint8),
        "beta": beta_KG.T.astype(np.float32),
        **{name: values.astype(np.float32) for name, values in differential.items()},
        **{f"umap_{space}": _positions(xy_N2) for space, xy_N2 in maps.items()},
    }
    groupings = []
    for number, category in enumerate(categories):
        codes_N = np.asarray(category["codes"], dtype=np.int64)
        arrays[f"category_{number}"] = np.where(codes_N < 0, NO_CATEGORY, codes_N).astype(np.uint8)
        sizes = np.bincount(codes_N[codes_N >= 0], minlength=len(category["names"]))
        groupings.append(
            {key: list(category[key]) for key in ("names", "colors")}
            | {"name": category["name"], "sizes": sizes.tolist()}
        )
    mapped, expressed = _expression(expression_NG, order_G)
    head = {
        "n": n,
        "cells": list(map(str, cells)),
        "genes": list(map(str, genes)),
        "topics": list(topics),
        "colors": list(colors),
        "categories": groupings,
        "mapped": [str(genes[g]) for g in mapped],
    }
    return compressed(_block(head, arrays | expressed))


def compressed(content: bytes) -> str:
    """Return content as gzip in base64; the same content gives the same text."""
    return base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()


def _positions(xy_N2: np.ndarray) -> np.ndarray:
    """Return coordinates from 0 to 65,535, on one scale for both directions, centred."""
    low, high = xy_N2.min(axis=0), xy_N2.max(axis=0)
    span = max(float((high - low).max()), 1e-9)
    unit_N2 = (xy_N2 - (low + high) / 2) / span + 0.5
    positions_N2: np.ndarray = np.rint(65535 * np.clip(unit_N2, 0, 1)).astype(np.uint16)
    return positions_N2


def _expression(
    expression_NG: sp.spmatrix | np.ndarray, order_G: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the genes whose values are stored, and the non-zero values by gene."""
    x_NG = sp.csc_matrix(expression_NG, dtype=np.float32)
    x_NG.eliminate_zeros()
    size_G = np.diff(x_NG.indptr)
    kept = order_G[np.cumsum(size_G[order_G]) <= MAX_EXPRESSION]
    x_NG = x_NG[:, kept]
    greatest = np.array(
        [column.max(initial=0) for column in np.split(x_NG.data, x_NG.indptr[1:-1])]
        if len(kept)
        else [],
        dtype=np.float32,
    )
    scale = np.repeat(255 / np.maximum(greatest, 1e-9), np.diff(x_NG.indptr))
    # An expressed gene is always visible.
    values = np.clip(np.rint(x_NG.data * scale), 1, 255).astype(np.uint8)
    index = np.uint16 if x_NG.shape[0] <= 1 << 16 else np.uint32
    return kept, {
        "gene_start": x_NG.indptr.astype(np.uint32),
        "gene_cells": x_NG.indices.astype(index),
        "gene_values": values,
        "gene_greatest": greatest,
    }


def _block(head: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return length of the header, header, arrays; every array begins at a multiple of 4 bytes."""
    bodies: list[bytes] = []
    places: dict[str, dict[str, Any]] = {}
    at = 0
    for name, array in arrays.items():
        body = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
        places[name] = {"type": array.dtype.name, "offset": at, "length": array.size}
        bodies.append(body + b"\0" * (-len(body) % 4))
        at += len(bodies[-1])

    def encoded(start: int) -> bytes:
        moved = {
            name: place | {"offset": place["offset"] + start} for name, place in places.items()
        }
        text = json.dumps(head | {"arrays": moved}, ensure_ascii=False, separators=(",", ":"))
        raw = text.encode()
        return raw + b" " * (-len(raw) % 4)

    # The header contains offsets that depend on its own length, so repeat until it does not change.
    start = 4
    while start != 4 + len(encoded(start)):
        start = 4 + len(encoded(start))
    raw = encoded(start)
    return b"".join([len(raw).to_bytes(4, "little"), raw, *bodies])
