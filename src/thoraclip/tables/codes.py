"""Columns as integers: a table of millions of rows is joined, grouped and hashed without a Python object for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from thoraclip.dtypes import Ints, Masks
from thoraclip.runs import canonical_json

__all__ = ["codes", "columns_digest", "conflicting", "folds_of", "in_pieces", "ranks"]

_ROWS = 1 << 16  # that are Python objects at once


def ranks(column: pa.ChunkedArray) -> Ints:
    """i64[N]: place of each value among the sorted distinct ones (text by code points), -1 where it is null."""
    places = np.asarray(pc.rank(column, tiebreaker="dense")).astype(np.int64)
    places -= 1
    if column.null_count:
        places[np.asarray(column.is_null())] = -1
    return places


def codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int32], list[Any]]:
    """(i32[N] number of each value, -1 where it is null; distinct values as they appear), for columns of few values."""
    encoded = column.dictionary_encode()  # its chunks share one dictionary
    numbers = pa.chunked_array([chunk.indices for chunk in encoded.chunks], pa.int32())
    values = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
    return np.asarray(numbers.fill_null(-1)), values


def conflicting(key: npt.NDArray[np.integer], value: npt.NDArray[np.integer]) -> Masks:
    """bool[N]: rows of a key, i[N], that has more than one value, i[N]; negative ones are unknown and do not count."""
    known = (key >= 0) & (value >= 0)
    some = np.zeros(int(key.max(initial=-1)) + 1, dtype=value.dtype)
    some[key[known]] = value[known]  # whichever row comes last
    several = np.zeros(len(some) + 1, dtype=bool)  # one more, for the keys that are -1
    several[key[known][value[known] != some[key[known]]]] = True
    return np.asarray(known & several[key])


def folds_of(fold: pa.ChunkedArray, split: pa.ChunkedArray) -> pa.ChunkedArray:
    """Folds, -1 for an image of split `train` in none, which is trained on in every fold; as given where all are in
    none."""
    if fold.null_count == len(fold):
        return fold
    always = pc.and_(fold.is_null(), pc.fill_null(pc.equal(split, "train"), fill_value=False))
    return pc.if_else(always, pa.scalar(-1, fold.type), fold)


def in_pieces(column: pa.ChunkedArray) -> Iterator[list[Any]]:
    """A column as lists of some ten thousand rows."""
    return (column.slice(start, _ROWS).to_pylist() for start in range(0, len(column), _ROWS))


def columns_digest(columns: Iterable[pa.ChunkedArray]) -> str:
    """`runs.digest` of a list of columns, whose text is never whole in memory."""
    sha = hashlib.sha256(b"[")
    for number, column in enumerate(columns):
        sha.update(b",[" if number else b"[")
        for piece, rows in enumerate(in_pieces(column)):
            sha.update((("," if piece else "") + canonical_json(rows)[1:-1]).encode())
        sha.update(b"]")
    sha.update(b"]")
    return sha.hexdigest()
