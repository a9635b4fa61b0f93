"""Pairs of files that show the same picture: byte for byte, or again after a resize, a crop, a rotation, a mirror, in
a border of one grey, or as a negative.

All chest radiographs look alike, so a short hash alone finds mostly strangers. Here a hash proposes and pixels confirm:

1. A picture's hash is the signs of 256 low-frequency cosines of its equalised thumbnail (pHash; Zauner 2010). A cosine
   of a warped picture is linear in the picture's own pixels: one matrix product hashes all 75 canonical `WARPS`.
2. The hashes of all warps meet the hashes of all pictures, plain, mirrored and negative, in an exact join
   (`HashIndex`).
3. A proposed pair is aligned by Gauss-Newton steps on an affine warp, and its fine detail is correlated.

Blank pictures (without contrast, or more than nine tenths of one grey) are duplicates of identical files only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from thoraclip.data.duplicates.hamming import ROOM, Hashes, HashIndex
from thoraclip.data.duplicates.thumbnails import (
    MIRRORED,
    NEGATIVE,
    THUMBNAIL_SIDE,
    WARPS,
    confirm,
    half_detail,
    is_blank,
    near_hashes,
    squash,
    thumbnail,
    variants,
)
from thoraclip.dtypes import Floats, Greys, Ints, Masks
from thoraclip.runs import Progress, needing_room, take_room
from thoraclip.threads import in_order

__all__ = ["THUMBNAIL_SIDE", "DuplicatePair", "array_on_disk", "clusters", "find_duplicates", "squash", "thumbnail"]

RADIUS, LONG_RADIUS = 5, 56
"""Bits that may differ in the first 64 and in all 256 for a pair to be proposed. Measured on 1,124 radiographs: of
copies changed in one way 99.8 % or more stay within both, of copies changed in two ways 99 %; of 631,000 pairs of
different pictures 136 do, two in ten thousand."""
NEAREST, GROUP = 32, 16
"""Bounds where thousands of pictures resemble each other: alignments tried for one picture at a time, and the size
above which a group of linked pictures is not searched for more pairs within it."""
_BLOCK, _ROUND = 128, 16
"""Pictures or pairs per block (memory only), and blocks that are aligned before linked pictures are grouped again."""


@dataclass(frozen=True)
class DuplicatePair:
    """Two images that show the same picture."""

    first: int  # positions in the list that was searched; first < second
    second: int
    kind: str  # `identical` (equal SHA-256) or `near`
    distance: int = 0  # bits of the 256-bit hash that differ after the best canonical warp
    correlation: float = 1.0  # of the fine detail after alignment, at most 1
    mirrored: bool = False  # left and right are swapped
    negative: bool = False  # dark and bright are swapped
    rotation_degrees: float = 0.0  # of the second thumbnail (mirrored back) against the first; counter-clockwise
    scale: float = 1.0  # of the same; above 1 it shows less of the picture


def find_duplicates(
    thumbnails: Greys, sha256: Sequence[str], *, among: Masks | None = None, progress: Progress | None = None
) -> list[DuplicatePair]:
    """All pairs of images that show the same picture; the answer does not depend on the order of the images.

    A group of identical files is a star: its first image is paired with each other one, and alone is searched further.
    Within a group of more than 16 pictures that are linked already, no further pairs are looked for: their cluster is
    found, not every pair in it. Each picture waits for alignment with its 32 nearest others at most.

    `thumbnails` u8[N, S, S] (a memory map will do) and `sha256` are of N images. Of `among`, bool[N], where given, near
    pairs of two images outside it are not looked for. `progress` gets (done, total). Returns pairs sorted by
    (first, second).
    """
    groups: dict[str, list[int]] = {}
    for position, digest in enumerate(sha256):
        groups.setdefault(digest, []).append(position)
    identical = [DuplicatePair(group[0], other, "identical") for group in groups.values() for other in group[1:]]
    # in the order of their SHA-256, so that nothing below depends on the order of the images
    order = np.array([groups[digest][0] for digest in sorted(groups)], dtype=np.int64)
    wanted = np.array([among is None or any(among[groups[digest]]) for digest in sorted(groups)], dtype=bool)
    near = _Search(thumbnails, order, wanted, progress).run()
    return sorted(identical + near, key=lambda pair: (pair.first, pair.second))


class _Search:
    """Near pairs among images in a fixed order, one of each pair at least wanted."""

    def __init__(self, thumbnails: Greys, order: Ints, wanted: Masks, progress: Progress | None) -> None:
        self.thumbnails, self.order, self.wanted = thumbnails, order, wanted
        self.group = np.arange(len(order))
        self.pairs = np.zeros((0, 5), dtype=np.int64)  # source, target, warp, variant, distance
        self.tried = np.zeros((0, 5), dtype=np.int64)  # the same, of every pair that was aligned
        self.correlations, self.warps = np.zeros(0), np.zeros((0, 3, 3))
        self.blocks, self.done, self.progress = range(0, len(order), _BLOCK), 0, progress

    def _step(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, len(self.blocks) + len(WARPS))

    def run(self) -> list[DuplicatePair]:
        hashed, rows = [np.zeros((0, len(WARPS), 4), dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
        for begin in self.blocks:
            block = np.asarray(self.thumbnails[self.order[begin : begin + _BLOCK]])
            seen = ~is_blank(block)
            hashed.append(near_hashes(block[seen]))
            rows.append(begin + np.flatnonzero(seen))
            self._step()
        hashes, kept = np.concatenate(hashed), np.concatenate(rows)
        del hashed
        self._join(hashes, kept, range(1))
        turn = np.argsort(self.group, kind="stable")
        few = np.zeros(len(turn), dtype=bool)  # of images that are linked by now the first GROUP of each group
        few[turn] = np.arange(len(turn)) - np.searchsorted(self.group[turn], self.group[turn]) < GROUP
        few = few[kept]
        self._join(hashes[few], kept[few], range(1, len(WARPS)))
        return self._near_pairs()

    def _join(self, hashes: Hashes, kept: Ints, warps: range) -> None:
        """Propose pairs of the kept pictures by some of the warps, and settle them."""
        count, waiting = max(len(kept), 1), [np.zeros((0, 5), dtype=np.int64)]
        known = variants(hashes[:, 0])
        index = HashIndex(np.ascontiguousarray(known[:, 0]), radius=RADIUS)
        for warp in warps:
            for rows, columns in index.search(np.ascontiguousarray(hashes[:, warp, 0])):
                distance = np.bitwise_count(hashes[rows, warp] ^ known[columns]).sum(axis=1, dtype=np.int64)
                source, target, variant = kept[rows], kept[columns % count], columns // count
                near = (distance <= LONG_RADIUS) & (source != target) & ~self._linked(source, target)
                near &= self.wanted[source] | self.wanted[target]
                fixed = np.full(len(rows), warp)
                waiting.append(np.column_stack([source, target, fixed, variant, distance])[near])
                if sum(map(len, waiting[1:])) > ROOM:
                    waiting = [_nearest(_best(np.concatenate(waiting), len(self.order)))]
            self._step()
        self._settle(_best(np.concatenate(waiting), len(self.order)))

    def _linked(self, source: Ints, target: Ints) -> Masks:
        """bool[K]: both stand in one group of more than GROUP pictures."""
        large = np.bincount(self.group) > GROUP
        return np.asarray((self.group[source] == self.group[target]) & large[self.group[source]])

    def _settle(self, waiting: Ints) -> None:
        """Align the proposals, nearest first, and remember what is confirmed.

        A pair that was aligned before is tried again only from a warp that brings it nearer.
        """
        waiting = _nearest(waiting[self._is_news(waiting)])
        self.tried = _best(np.concatenate([self.tried, waiting]), len(self.order))
        used = np.unique(waiting[:, :2])
        with TemporaryFile() as file:
            halves = self._halves(used, file)

            def confirmed(block: Ints) -> tuple[Floats, Floats]:
                places = np.searchsorted(used, block[:, :2])
                pairs = np.column_stack([self.order[block[:, :2]], block[:, 2:]])
                return confirm(self.thumbnails, pairs, halves, places)

            for begin in range(0, len(waiting), _ROUND * _BLOCK):
                part = waiting[begin : begin + _ROUND * _BLOCK]
                part = part[~self._linked(part[:, 0], part[:, 1])]
                blocks = [part[at : at + _BLOCK] for at in range(0, len(part), _BLOCK)]
                for block, (correlations, warps) in zip(blocks, in_order(confirmed, blocks), strict=True):
                    good = correlations > 0
                    self.pairs = np.concatenate([self.pairs, block[good]])
                    self.correlations = np.concatenate([self.correlations, correlations[good]])
                    self.warps = np.concatenate([self.warps, warps[good]])
                self.group = clusters(len(self.order), self.pairs)

    def _halves(self, used: Ints, file: IO[bytes]) -> npt.NDArray[np.float16]:
        """f16[M, S/2, S/2]: the half-size detail of the pictures that wait, in a file that is mapped into memory."""
        side = THUMBNAIL_SIDE // 2
        halves = array_on_disk(file, np.float16, (len(used), side, side))

        def detail(begin: int) -> npt.NDArray[np.float16]:
            return half_detail(np.asarray(self.thumbnails[self.order[used[begin : begin + _BLOCK]]]))

        begins = range(0, len(used), _BLOCK)
        for begin, details in zip(begins, in_order(detail, begins), strict=True):
            halves[begin : begin + _BLOCK] = details
        return halves

    def _is_news(self, waiting: Ints) -> Masks:
        """bool[K]: not confirmed, and not aligned yet from as near or nearer."""
        count = len(self.order)
        keys, known = _key(waiting, count), _key(self.tried, count)
        place = np.minimum(np.searchsorted(known, keys), max(len(known) - 1, 0))
        seen = known[place] == keys if len(known) else np.zeros(len(keys), dtype=bool)
        nearer = waiting[:, 4] < self.tried[place, 4] if len(known) else seen
        return np.asarray((~seen | nearer) & ~np.isin(keys, _key(self.pairs, count)))

    def _near_pairs(self) -> list[DuplicatePair]:
        pairs = []
        for row, correlation, warp in zip(self.pairs, self.correlations, self.warps, strict=True):
            (source, target), mirrored = self.order[row[:2]].tolist(), bool(row[3] & MIRRORED)
            turn = float(np.degrees(np.arctan2(warp[1, 0] - warp[0, 1], warp[0, 0] + warp[1, 1])))
            scale = float(abs(np.linalg.det(warp[:2, :2])) ** -0.5)
            if source > target:  # the other way round; a mirror turns the turn again
                source, target, scale, turn = target, source, 1 / scale, turn if mirrored else -turn
            same = int(row[4]), min(1.0, float(correlation)), mirrored, bool(row[3] & NEGATIVE)
            pairs.append(DuplicatePair(source, target, "near", *same, round(turn, 2) + 0.0, round(scale, 4)))
        return pairs


def array_on_disk(file: IO[bytes], kind: type[np.generic], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array in a temporary file, for what may not fit in memory; InputError where the disk has no room."""
    if not shape[0]:
        return np.zeros(shape, dtype=kind)
    with needing_room(Path(gettempdir())):
        take_room(file, math.prod(shape) * np.dtype(kind).itemsize)
    return np.memmap(file, dtype=kind, mode="r+", shape=shape)


def _key(pairs: Ints, count: int) -> Ints:
    return np.asarray(pairs[:, :2].min(axis=1) * count + pairs[:, :2].max(axis=1))


def _best(waiting: Ints, count: int) -> Ints:
    """One row for each pair, that of the smallest distance; sorted by pair."""
    waiting = waiting[np.lexsort((waiting[:, 3], waiting[:, 2], waiting[:, 1], waiting[:, 0], waiting[:, 4]))]
    _, best = np.unique(_key(waiting, count), return_index=True)
    return np.asarray(waiting[best])


def _nearest(waiting: Ints) -> Ints:
    """Of rows of different pairs, the NEAREST of either end; the smallest distance first."""
    waiting = waiting[np.lexsort((waiting[:, 1], waiting[:, 0], waiting[:, 4]))]
    keep = np.zeros(len(waiting), dtype=bool)
    for end in (0, 1):
        turn = np.argsort(waiting[:, end], kind="stable")
        _, first, sizes = np.unique(waiting[turn, end], return_index=True, return_counts=True)
        keep[turn] |= np.arange(len(waiting)) - np.repeat(first, sizes) < NEAREST
    return waiting[keep]


def clusters(count: int, pairs: Sequence[DuplicatePair] | Ints) -> Ints:
    """i64[count]: groups of images that pairs (or positions i64[K, >=2]) link, numbered by their first members."""
    if not isinstance(pairs, np.ndarray):
        pairs = np.array([(pair.first, pair.second) for pair in pairs], dtype=np.int64).reshape(-1, 2)
    links = coo_array((np.ones(len(pairs), dtype=bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(links, directed=False)[1], dtype=np.int64)
