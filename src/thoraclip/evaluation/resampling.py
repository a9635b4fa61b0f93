"""Every metric of every bootstrap resample at once, computed from weights.

A resample draws as many groups (patients, or images) as there are, with replacement; an image's weight is how often
its group was drawn. A metric of the resample is the metric of the rows repeated as often as their weights say.
All tables that are judged together see the same weights, so their differences are paired.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from thoraclip.dtypes import Floats, Ints
from thoraclip.evaluation import calibration
from thoraclip.evaluation.metrics import METRICS, PER_CLASS, Scored, brier_terms, log_loss_terms
from thoraclip.evaluation.weighted import Weighted, ratio

__all__ = ["PreparedTable", "Replicates", "replicate", "resample_weights"]


_CHUNK_CELLS = 300_000
"""Weights held at a time (2.4 MiB, so that they stay in the cache); the answer does not depend on it."""


@dataclass(frozen=True)
class Replicates:
    """Metrics of R resamples; NaN where a resample has no image of a class that a metric needs.

    Args:
        headline: name -> f64[R], the names of `METRICS`.
        per_class: name -> f64[R, C], the names of `PER_CLASS`.
        noise: name -> f64[R], for a metric that measures a distance: how far the resample's vector lies from the
            sample's (what the metric would be without any signal).
    """

    headline: dict[str, Floats]
    per_class: dict[str, Floats]
    noise: dict[str, Floats]


def resample_weights(groups: Ints, *, resamples: int, seed: int, cells: int = _CHUNK_CELLS) -> Iterator[Floats]:
    """Yield the weights of the resamples in chunks, f64[N, r] with the r summing to `resamples`.

    Args:
        groups: i64[N], the group of every image, numbered 0..G-1 without a gap.
        resamples: R, at least 1.
        seed: of the PCG64 generator; the same seed gives the same resamples whatever the chunk size, and the first
            resamples of a longer run are those of a shorter one.
        cells: numbers in a chunk; bounds the memory.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    count = int(groups.max()) + 1
    one_each = count == len(groups) and bool((groups == np.arange(count)).all())
    width = max(1, cells // len(groups))
    for start in range(0, resamples, width):
        r = min(width, resamples - start)
        drawn = generator.integers(0, count, size=(r, count))  # [r, G]
        flat = drawn * r + np.arange(r)[:, None]
        weights = np.bincount(flat.ravel(), minlength=count * r).reshape(count, r).astype(np.float64)
        yield weights if one_each else weights[groups]


def replicate(
    tables: Sequence[Scored], groups: Ints, *, resamples: int, seed: int, names: Collection[str] | None = None
) -> list[Replicates]:
    """Metrics of each of T tables over the same N images in the same order, all in the same resamples.

    Args:
        tables: T tables.
        groups, resamples, seed: as of `resample_weights`.
        names: in `METRICS`, where these alone are wanted, and nothing by class; those of answers are ten times as fast.
    """
    prepared = [PreparedTable(table) for table in tables]
    chunks: list[list[Replicates]] = [[] for _ in tables]
    # The products are small: BLAS threads would only wait for each other (ten times slower beside another job).
    with _threads().limit(limits=1, user_api="blas"):
        for weights in resample_weights(groups, resamples=resamples, seed=seed):
            for parts, table in zip(chunks, prepared, strict=True):
                parts.append(table.metrics(weights, names))
    return [_join(parts) for parts in chunks]


@cache
def _threads() -> Any:
    """Finding the loaded BLAS libraries takes milliseconds, so it is done once."""
    return ThreadpoolController()


def _join(parts: Sequence[Replicates]) -> Replicates:
    kinds = [[getattr(part, kind) for part in parts] for kind in ("headline", "per_class", "noise")]
    return Replicates(*({name: np.concatenate([one[name] for one in of]) for name in of[0]} for of in kinds))


class PreparedTable:
    """What a table contributes to every resample, worked out once, and not before it is asked for."""

    def __init__(self, scored: Scored) -> None:
        self.scored, c = scored, scored.class_count
        self.cells = np.ascontiguousarray(np.eye(c * c)[scored.target * c + scored.predicted].T)  # [C * C, N]

    @cached_property
    def gaps(self) -> Floats:
        """f64[N, B], see `calibration.gap_columns`."""
        return calibration.gap_columns(self.scored.confidence, self.scored.correct)

    @cached_property
    def terms(self) -> Floats:
        """f64[2 + B, N]: log loss, Brier score and gaps of every image."""
        columns = [log_loss_terms(self.scored)[:, None], brier_terms(self.scored)[:, None], self.gaps]
        return np.ascontiguousarray(np.concatenate(columns, axis=1).T)

    @cached_property
    def curves(self) -> list[_Ranking | None]:
        """One a class, where it can be ranked."""
        return [_Ranking(self.scored, c) if c in self.scored.rankable else None for c in range(self.scored.class_count)]

    def metrics(self, weights: Floats, names: Collection[str] | None = None) -> Replicates:
        """Metrics under weights f64[N, r], each column with a positive sum; `names` as of `replicate`."""
        cells, c = (self.cells @ weights).T, self.scored.class_count
        total, wanted = cells.sum(axis=1), METRICS if names is None else names
        unknown = np.full((2, len(total)), np.nan)
        areas = cache(lambda: np.stack([k.areas(weights) if k else unknown for k in self.curves], axis=2))
        means = cache(lambda: (self.terms @ weights / total).T)  # [r, 2 + B]
        losses = cache(lambda: np.stack([means()[:, 0], means()[:, 1], np.abs(means()[:, 2:]).sum(axis=1)]))
        drawn = Weighted(cells.reshape(-1, c, c), areas, losses)
        return Replicates(
            {name: METRICS[name].resampled(drawn) for name in wanted},
            {name: of(drawn) for name, of in PER_CLASS.items()} if names is None else {},
            {"ece": np.abs(means()[:, 2:] - self.gaps.mean(axis=0)).sum(axis=1)} if "ece" in wanted else {},
        )


class _Ranking:
    """One class against the rest, sorted once; areas under weighted curves by cumulative sums."""

    def __init__(self, scored: Scored, c: int) -> None:
        score, is_class = scored.scores[:, c], scored.target == c
        order = np.argsort(score, kind="stable")
        self.positive, self.negative = order[is_class[order]], order[~is_class[order]]
        high, low = score[self.positive], score[self.negative]
        self.below = np.searchsorted(low, high, side="left")
        self.up_to = np.searchsorted(low, high, side="right")
        self.tied = bool((self.below != self.up_to).any())
        self.first = np.searchsorted(high, high, side="left")
        self.distinct = bool((self.first == np.arange(len(high))).all())

    def areas(self, weights: Floats) -> Floats:
        """f64[2, r]: AUROC and average precision, NaN where the weights leave positives or negatives empty.

        AUROC = sum_p w_p (W_neg(s < s_p) + W_neg(s = s_p) / 2) / (W_pos W_neg), the Mann-Whitney form.
        AP = sum_p w_p precision(s >= s_p) / W_pos, equal scores being one threshold.
        """
        w_pos = weights[self.positive]  # [P, r], ascending scores
        false = _cumulative(weights[self.negative])  # [Q + 1, r]
        true = _cumulative(w_pos)
        beaten = false[self.below]
        half_ties = 0.5 * (false[self.up_to] - beaten) if self.tied else 0.0
        pairs = np.einsum("pr,pr->r", w_pos, beaten + half_ties)
        auroc = ratio(pairs, true[-1] * false[-1], np.nan)
        recalled = true[-1] - (true[:-1] if self.distinct else true[self.first])
        precision = ratio(recalled, recalled + (false[-1] - beaten))
        area = ratio(np.einsum("pr,pr->r", w_pos, precision), true[-1], np.nan)
        return np.stack([auroc, np.where(false[-1] > 0, area, np.nan)])


def _cumulative(rows: Floats) -> Floats:
    """Sums of the first k rows, k = 0..N: f64[N + 1, r]."""
    sums = np.zeros((len(rows) + 1, rows.shape[1]))
    np.cumsum(rows, axis=0, out=sums[1:])
    return sums
