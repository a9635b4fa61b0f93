"""All pairs of 64-bit hashes within a Hamming radius, exactly, in far less than all comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt

from thoraclip.dtypes import Ints

__all__ = ["ROOM", "HashIndex", "Hashes"]

Hashes = npt.NDArray[np.uint64]

ROOM = 1 << 20  # rows of candidates held; memory only


def _keys(hashes: Hashes, shift: int, bits: int) -> Ints:
    return ((hashes >> np.uint64(shift)) & np.uint64((1 << bits) - 1)).astype(np.int64)


def _layout(parts: int, radius: int) -> list[tuple[int, int, int]]:
    """(shift, bits, radius) of each substring; pairs within `radius` agree on one of them (Norouzi, section 3)."""
    edges = [64 * part // parts for part in range(parts + 1)]
    each, extra = divmod(radius, parts)
    return [(a, b - a, each if part <= extra else each - 1) for part, (a, b) in enumerate(pairwise(edges))]


class HashIndex:
    """Multi-index hashing (Norouzi et al. 2012, arXiv:1307.2982): exact search of u64[M] in a radius of 0..64 bits."""

    def __init__(self, hashes: Hashes, *, radius: int) -> None:
        self.hashes, self.radius = hashes, radius
        fewest = max(3, int(np.ceil(64 / (np.log2(len(hashes) + 2) + 2))))
        layout = min((_layout(parts, radius) for parts in range(fewest, fewest + 6)), key=self._cost)
        self._parts = []  # of each substring also the order of its keys, and where in it each key begins
        for shift, bits, near in layout:
            keys = _keys(hashes, shift, bits)
            starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=1 << bits))])
            order = np.argsort(keys, kind="stable") if near >= 0 else np.zeros(0, dtype=np.int64)
            self._parts.append((shift, bits, near, order, starts))

    def _cost(self, layout: list[tuple[int, int, int]]) -> float:
        """Look-ups and collisions if the hashes were searched for themselves; clumped hashes want longer substrings."""
        total = 0.0
        for shift, bits, near in layout:
            collisions = np.square(np.bincount(_keys(self.hashes, shift, bits)).astype(float)).sum()
            total += sum(comb(bits, flips) for flips in range(near + 1)) * (5000 + len(self.hashes) + collisions)
        return total

    def search(self, queries: Hashes) -> Iterator[tuple[Ints, Ints]]:
        """Blocks of (query, hash) positions, each pair within the radius once; a block tests about a million pairs."""
        for number, (shift, bits, radius, order, starts) in enumerate(self._parts):
            if radius < 0:
                continue
            keys = _keys(queries, shift, bits)
            turn = np.argsort(keys, kind="stable")
            keys = keys[turn]
            for flips in range(radius + 1):
                for places in combinations(range(bits), flips):
                    wanted = keys ^ sum(1 << place for place in places)
                    for rows, positions in _expand(starts[wanted], starts[wanted + 1]):
                        yield self._verify(queries, turn[rows], order[positions], number)

    def _verify(self, queries: Hashes, rows: Ints, columns: Ints, number: int) -> tuple[Ints, Ints]:
        """Keep the pairs within the radius that no earlier substring has found."""
        differing = queries[rows] ^ self.hashes[columns]
        near = np.flatnonzero(np.bitwise_count(differing) <= self.radius)
        rows, columns, differing = rows[near], columns[near], differing[near]
        new = np.ones(len(rows), dtype=bool)
        for shift, bits, radius, *_ in self._parts[:number]:
            new &= np.bitwise_count(_keys(differing, shift, bits)).astype(int) > radius
        return rows[new], columns[new]


def _expand(starts: Ints, stops: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Ranges to (row, position) in blocks of about a million; a single range is never cut."""
    rows = np.flatnonzero(stops > starts)
    ends = np.cumsum(stops[rows] - starts[rows])
    begin = 0
    while begin < len(rows):
        before = ends[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + ROOM, side="right")))
        part = rows[begin:end]
        counts = stops[part] - starts[part]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        yield np.repeat(part, counts), np.repeat(starts[part], counts) + offsets
        begin = end
