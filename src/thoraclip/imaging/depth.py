"""Which whole bit depth the samples of a 16-bit picture have: one rule for training and serving.

A PNG of 16 bits often holds samples of 10 to 15. White is the largest value of the depth, never the largest value that
occurs: one bright pixel, a burnt-in marker or a border must not change the grey of the anatomy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from thoraclip.dtypes import Ints
from thoraclip.ranges import BITS

__all__ = ["Depth", "choose_depth", "common_depth", "estimate_depth", "stated_in_text"]

_TEXT_KEY = re.compile(r"bits|.*(bitdepth|bitsstored|bitspersample|significantbits|00280101)")
"""Keywords of PNG text that state the depth, without spaces, punctuation and capitals; 0028,0101 is DICOM's tag."""
_FLAT_VALUES = 4
"""Values that markers and borders may have; the rest of what lies above a depth must be next to nothing."""
_FEW_VALUES = 32
"""A picture of fewer values below a depth may be a test pattern; flat values above it then are part of it."""
_MOST_ABOVE, _MOST_SCATTERED, _MOST_NEAR = 0.5, 0.05, 0.001
"""Shares of the pixels that are not black: above the depth (of a test pattern); of those not of flat values: above it,
just above it."""
_SAID = {"file": "that it declares", "set": "of the other images"}
_UNUSED = 3
"""A picture that leaves so many bits of its depth unused is at most an eighth as bright as it could be."""


@dataclass(frozen=True)
class Depth:
    """By how many bits the samples are scaled, and who said so: `stated`, `file`, `set` or `estimate`."""

    bits: int
    origin: str
    remarks: tuple[str, ...] = ()


def choose_depth(counts: Ints, *, stated: int | None, declared: int | None, of_set: int | None) -> Depth:
    """The depth of a picture: what is stated, else what the file declares, else that of its set, else an estimate.

    What the file declares and what the set has is passed over, with a remark, where the anatomy lies above it.

    Args:
        counts: i64[65536], visible pixels of each value; so in all functions here.
        stated: by the user, or by the manifest.
        declared: by the file.
        of_set: of the other images of the source or of the training set.
    """
    used = estimate_depth(counts)
    given = {"stated": stated, "file": declared and _packing(counts, declared), "set": of_set}
    origin, bits, too_few = "estimate", used, []
    for name, said in given.items():
        if said and (name == "stated" or not _is_exceeded(counts, said)):
            origin, bits = name, said
            break
        if said:
            too_few.append(f"the {said} bits {_SAID[name]} do not hold its values")
    remarks = [f"{text}, so {bits} are taken" for text in too_few]
    above, pixels = int(counts[2**bits :].sum()), int(counts.sum())
    if above:
        share = f"{above:,} of {pixels:,} pixels exceed {2**bits - 1:,}, the largest value of {bits} bits"
        remarks.append(f"{share}, and are shown white")
    if bits - used >= _UNUSED and counts[1:].any():
        remarks.append(f"its values take {used} of {bits} bits, so it is shown dark; state the depth with --bits")
    return Depth(bits, origin, tuple(remarks))


def estimate_depth(counts: Ints) -> int:
    """The smallest depth above which lies nothing that looks like anatomy.

    Markers and borders have a few flat values, in any number of pixels. Noise and the soft edge of a marker are few
    pixels, far from the anatomy or spread thinly. Black does not count, so that a black border changes nothing.
    """
    lit = _lit(counts)
    total = int(lit.sum())
    if not total:  # an even picture
        return max(8, int(np.argmax(counts > 0)).bit_length())
    for bits in BITS[:-1]:
        all_above = int(lit[2**bits :].sum())
        if all_above < _MOST_ABOVE * total or np.count_nonzero(lit[: 2**bits]) >= _FEW_VALUES:
            above = _scattered(lit, bits)
            rest = total - all_above + above.sum()
            near = int(above[: 2 ** (bits - 2)].sum())
            if above.sum() <= _MOST_SCATTERED * rest and near <= max(1, _MOST_NEAR * rest):
                return bits
    return BITS[-1]


def _lit(counts: Ints) -> Ints:
    """The counts without those of the darkest value."""
    lit = counts.copy()
    lit[: int(np.argmax(lit > 0)) + 1] = 0
    return lit


def _scattered(lit: Ints, bits: int) -> Ints:
    """The counts above a depth, without those of the few flat values that markers and borders may have."""
    above = lit[2**bits :].copy()
    above[np.argpartition(above, -_FLAT_VALUES)[-_FLAT_VALUES:]] = 0
    return above


def _is_exceeded(counts: Ints, bits: int) -> bool:
    """Whether more lies above a depth than markers, borders and noise."""
    lit = _lit(counts)
    return bits in BITS[:-1] and bool(_scattered(lit, bits).sum() > _MOST_SCATTERED * lit.sum())


def _packing(counts: Ints, declared: int) -> int:
    """The depth by which samples with so many significant bits are scaled.

    PNG (third edition, 11.3.2.5) wants them scaled to 16 bits, by zeros or by repeating the high bits; many writers
    leave them as they were.
    """
    values = np.arange(65536)
    step = 16 - declared
    repeated = values >> step << step
    for shift in range(declared, 16, declared):
        repeated |= repeated >> shift
    is_scaled = (values % 2**step == 0) | (values == repeated)
    lit = _lit(counts)
    return 16 if step and lit[is_scaled].sum() > 0.9 * lit.sum() else declared


def stated_in_text(texts: Mapping[str, Any]) -> int | None:
    """The depth that a PNG's text states, such as `BitsStored: 12`; `None` without one of 1 to 16."""
    for key, value in texts.items():
        match = re.fullmatch(r"\s*(\d{1,2})(\.0*)?\s*-?\s*(bits?)?\s*", str(value), re.ASCII | re.IGNORECASE)
        if match and _TEXT_KEY.fullmatch(re.sub(r"[\W_]", "", str(key)).lower()) and 1 <= int(match[1]) <= 16:
            return int(match[1])
    return None


def common_depth(estimates: Sequence[int]) -> int:
    """The depth of a set, from those of its images, one or more: the smallest that holds 95 % of them."""
    return sorted(estimates)[ceil(0.95 * len(estimates)) - 1]
