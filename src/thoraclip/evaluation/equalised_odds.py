"""Equalised odds: how far apart the rates of a classifier are in the groups of one column (sex, view, ...).

Per class against the rest, the true and the false positive rate should be the same in every group (Hardt, Price &
Srebro 2016, arXiv:1610.02413). The gap is the largest difference between two groups, over both rates and all classes. A
maximum of differences is above 0 by chance alone, the more, the smaller the groups: it stands beside its mean under
group labels that are permuted among patients of the same classes, and the permutations give its p (Phipson & Smyth
2010, arXiv:1603.05766).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.evaluation.weighted import ratio

__all__ = ["RATES", "GroupRates", "equalised_odds", "permuted_groups"]

RATES = ("tpr", "fpr")
_MOST = 1000
"""Resamples, and permutations: p is then 0.001 or more."""
_END = 0.975
_CHUNK_CELLS = 4_000_000
"""Group labels, as 0 and 1, of the permutations that are held at a time."""


@dataclass(frozen=True)
class GroupRates:
    """What the rates of one classifier at one operating point are counted from; rate 2c is the true positive rate of
    class c, rate 2c + 1 its false positive rate.

    Args:
        called: bool[N, 2C], whether an image counts into the numerator.
        of: bool[N, 2C], into the denominator.
        bounds: f64[2, G, 2C], lower and upper end of the 95 % interval of every rate of every group.
        judged: bool[G, 2C], which rates are known well enough to be compared.
    """

    called: Masks
    of: Masks
    bounds: Floats
    judged: Masks

    def rates(self, called: Floats, of: Floats) -> Floats:
        """f64[..., G, 2C] from the sums of each group; NaN where it is not compared or there is no such image."""
        return np.where(self.judged & self.compared, ratio(called, of, np.nan), np.nan)

    @property
    def compared(self) -> Masks:
        """bool[2C]: rates that two groups or more have."""
        return np.asarray(self.judged.sum(axis=0) >= 2)


def equalised_odds(
    found: Sequence[GroupRates], group: Ints, patients: Ints, target: Ints, *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The gap of each classifier, all over the same resamples and permutations.

    Args:
        found: rates of N images.
        group, patients, target: i64[N], group, patient (0..P-1 without a gap) and true class of every image.
        resamples, seed: of patients; 1,000 at most are used, and as many permutations.

    Returns:
        For each: `value`, `low`, `high`, `by_chance` (mean under permuted group labels), `p`, `spread` (f64[2C], NaN
        where a rate is not compared), `rate` (number of the one that is furthest apart), `highest` and `lowest` (the
        groups of it). Empty where no rate is known well enough in two groups. The interval is conservative: it
        holds the true gap in 98 % of simulated sets or more (docs/statistics.md), see `_lower_end` and `_upper_end`.
    """
    number, rows = min(resamples, _MOST), [np.flatnonzero(group == g) for g in range(int(group.max()) + 1)]
    columns = np.concatenate([np.concatenate([one.called, one.of], axis=1) for one in found], axis=1, dtype=np.float64)
    observed = np.stack([columns[own].sum(axis=0) for own in rows])[None]  # [1, G, K]
    drawn = [
        np.stack([columns[own].T @ weights[own] for own in rows]).transpose(2, 0, 1)
        for weights in resample_weights(patients, resamples=number, seed=seed)
    ]
    permuted = list(permuted_groups(columns, group, patients, target, permutations=number, seed=seed))
    gaps = [_gaps(found, np.concatenate(sums)) for sums in ([observed], drawn, permuted)]
    return [_entry(one, *each) if one.compared.any() else {} for one, *each in zip(found, *gaps, strict=True)]


def _gaps(found: Sequence[GroupRates], sums: Floats) -> list[Floats]:
    """Rates of every classifier from its part of f64[R, G, K] sums: f64[R, G, 2C] each."""
    parts = np.split(sums, len(found), axis=2)
    return [one.rates(*np.split(part, 2, axis=2)) for one, part in zip(found, parts, strict=True)]


def _spread(rates: Floats) -> Floats:
    """Largest minus smallest over the groups, f64[R, 2C]; NaN where fewer than two groups have the rate."""
    known = np.isfinite(rates)
    spread = np.where(known, rates, -np.inf).max(axis=1) - np.where(known, rates, np.inf).min(axis=1)
    return np.where(known.sum(axis=1) >= 2, spread, np.nan)


def _largest(rates: Floats) -> Floats:
    """f64[R]: the gap of every resample."""
    return np.asarray(np.nan_to_num(_spread(rates), nan=0.0).max(axis=1))


def _entry(one: GroupRates, observed: Floats, drawn: Floats, permuted: Floats) -> dict[str, Any]:
    spread, rates, by_chance = _spread(observed)[0], observed[0], _largest(permuted)
    rate = int(np.nanargmax(spread))
    value = float(spread[rate])
    return {
        "value": value,
        "low": _lower_end(value, drawn - rates, by_chance),
        "high": _upper_end(rates, one.bounds),
        "by_chance": float(by_chance.mean()),
        "p": float((1 + (by_chance >= value - 1e-12).sum()) / (1 + len(by_chance))),
        "spread": spread,
        "rate": rate,
        "highest": int(np.nanargmax(rates[:, rate])),
        "lowest": int(np.nanargmin(rates[:, rate])),
    }


def _lower_end(value: float, shifts: Floats, by_chance: Floats) -> float:
    """0 where 2.5 % of the permutations have such a gap (f64[P] `by_chance`); else the value minus what the differences
    of all pairs of groups together change by in 97.5 % of the resampled patients (f64[R, G, 2C] `shifts`), so that it
    holds whichever is the largest."""
    if value <= np.quantile(by_chance, _END):
        return 0.0
    return max(0.0, value - float(np.quantile(_largest(shifts), _END)))


def _upper_end(rates: Floats, bounds: Floats) -> float:
    """The largest upper end of the difference between the outermost groups of a rate, from their own intervals (Zou &
    Donner 2008, Stat. Med. 27:1693): rates of 0 and 1 do not vary in resamples."""
    ends = [0.0]
    for k in np.flatnonzero(np.isfinite(rates).sum(axis=0) >= 2):
        high, low = int(np.nanargmax(rates[:, k])), int(np.nanargmin(rates[:, k]))
        reach = np.hypot(bounds[1, high, k] - rates[high, k], rates[low, k] - bounds[0, low, k])
        ends.append(float(rates[high, k] - rates[low, k] + reach))
    return min(1.0, max(ends))


def permuted_groups(
    columns: Floats, group: Ints, patients: Ints, target: Ints, *, permutations: int, seed: int
) -> Iterator[Floats]:
    """Sums of columns over groups whose labels are permuted, f64[p, G, K] in chunks.

    Patients with images of one group exchange their group with patients who have about as many images of each class (up
    to a power of two); of a patient with images of several groups, the images of a class exchange theirs. So every
    group keeps its patients of every class, and how well they are classified has nothing to do with the group.

    Args:
        columns: f64[N, K] to sum; the others as in `equalised_odds`.
    """
    unit, stratum = _units(group, patients, target)
    sums = np.zeros((columns.shape[1], len(stratum)))
    np.add.at(sums.T, unit, columns)
    label = np.zeros(len(stratum), dtype=np.int64)
    label[unit] = group
    groups = int(group.max()) + 1
    members = np.eye(groups)[label[np.argsort(stratum, kind="stable")]]  # [U, G]
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    width = max(1, _CHUNK_CELLS // members.size)
    for start in range(0, permutations, width):
        moved = np.empty((len(stratum), min(width, permutations - start), groups))
        for p in range(moved.shape[1]):
            moved[np.argsort(stratum + generator.random(len(stratum))), p] = members
        yield (sums @ moved.reshape(len(stratum), -1)).reshape(len(sums), -1, groups).transpose(1, 2, 0)


def _units(group: Ints, patients: Ints, target: Ints) -> tuple[Ints, Ints]:
    """(unit of every image, stratum of every unit): labels are exchanged between units of a stratum."""
    count = int(patients.max()) + 1
    first = np.zeros(count, dtype=np.int64)
    first[patients] = group
    mixed = (np.bincount(patients, weights=group != first[patients], minlength=count) > 0)[patients]
    images = np.zeros((count, int(target.max()) + 1), dtype=np.int64)
    np.add.at(images, (patients, target), 1)
    alike = np.where(mixed[:, None], 0, np.frexp(images)[1][patients])  # 0, 1, 2 to 3, 4 to 7, ... images of a class
    keys = np.column_stack([mixed, mixed * patients, mixed * target, alike])
    _, place, unit = np.unique(
        np.where(mixed, count + np.arange(len(group)), patients), return_index=True, return_inverse=True
    )
    return unit, np.unique(keys[place], axis=0, return_inverse=True)[1]
