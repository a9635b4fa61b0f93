"""Paired comparison of methods on the same images, corrected for the number of pairs.

A trained method is what its trainings have in common. With several seeds, or folds, a difference is one of methods, and
its variance holds the trainings' (`trainings.total`); with one training it is one of the two trained models, about
which resampled patients say nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.evaluation.intervals import bootstrap_variance
from thoraclip.evaluation.trainings import SEEDS, Variance, difference_variances, total
from thoraclip.proportions import t_quantile

__all__ = ["ALPHA", "COMPARED", "MODELS", "Contestant", "compare", "correct_p", "holm", "pair", "t_test"]

COMPARED = ("accuracy", "macro_f1")
"""Metrics whose differences are tested."""
ALPHA = 0.05
"""A Holm-corrected p below it is called a difference."""
METHODS, MODELS = "methods", "models"
"""What a difference is one of: of methods, or of two trained models."""
_MOST_SEEDS = 30


@dataclass(frozen=True)
class Contestant:
    """A method as a comparison sees it; the resamples of all contestants are the same ones, in the same order.

    Args:
        name: of the method.
        values: metric -> value on all images (the mean over seeds).
        replicates: metric -> f64[R], value in each resample (the mean over seeds).
        correct: bool[N] for a method with one seed; `None` for several.
        trainings: metric -> f64[k, K], the value of each seed in each fold, see `trainings.training_variance`.
        trained: False where nothing was fitted, so that there is no training to vary.
    """

    name: str
    values: Mapping[str, float]
    replicates: Mapping[str, Floats]
    correct: Masks | None
    trainings: Mapping[str, Floats]
    trained: bool = True


def compare(contestants: Sequence[Contestant], *, intervals: bool, groups: Ints) -> list[dict[str, Any]]:
    """Difference a - b of every pair, for every metric of `COMPARED`.

    Args:
        intervals: False when the images cannot be resampled (one group): then no interval and no bootstrap p.
        groups: i64[N], the patient (or the image itself) of each image: what is independent of what.

    Returns:
        One mapping per metric and pair: a, b, metric, difference, low, high, p, p_holm, mcnemar_p, mcnemar_p_holm;
        `claim`, `METHODS` or `MODELS`; `source`, what the variance was estimated from, a constant of `trainings`; and
        `seeds_needed`, how many seeds of each method would show the difference if it and both spreads are what they
        seem, `None` where no number up to 30 does, or nothing is open. The Holm families are all pairs within one
        metric. McNemar stands with accuracy only, for pairs of methods with one seed each; it compares models. What
        does not exist is `None`.
    """
    rows: list[dict[str, Any]] = []
    for metric in COMPARED:
        family = [pair(a, b, metric, intervals, groups) for a, b in combinations(contestants, 2)]
        for name in ("p", "mcnemar_p"):
            correct_p(family, name)
        rows += family
    return rows


def pair(a: Contestant, b: Contestant, metric: str, intervals: bool, groups: Ints) -> dict[str, Any]:
    """One row of `compare`, not yet corrected for the number of pairs; arguments as there."""
    difference = a.values[metric] - b.values[metric]
    training = difference_variances([(one.trainings[metric], one.trained) for one in (a, b)])
    row: dict[str, Any] = {"a": a.name, "b": b.name, "metric": metric, "difference": difference}
    row |= dict.fromkeys(("low", "high", "p", "p_holm", "mcnemar_p", "mcnemar_p_holm", "source", "seeds_needed"))
    row["claim"] = MODELS if training is None else METHODS
    if intervals:
        drawn = a.replicates[metric] - b.replicates[metric]
        sampling = bootstrap_variance(drawn, int(groups.max()) + 1)
        variance = total(sampling, training or [])
        reach = t_quantile(variance.df) * math.sqrt(variance.value)
        row |= {"low": max(-1.0, difference - reach), "high": min(1.0, difference + reach)}
        row |= {"p": t_test(difference, variance), "source": variance.source}
        row["seeds_needed"] = _seeds_needed(difference, sampling, training or [])
    if metric == "accuracy" and a.correct is not None and b.correct is not None:
        row["mcnemar_p"] = mcnemar_p(a.correct, b.correct, groups)
    return row


def t_test(difference: float, variance: Variance) -> float:
    """Two-sided p of "no difference": Student's t with the degrees of freedom of the variance, which is above 0 (Welch
    1947, Biometrika 34:28)."""
    from scipy.special import ndtr, stdtr  # type: ignore[import-untyped]  # 0.2 s

    t = -abs(difference) / math.sqrt(variance.value)
    return float(2 * (stdtr(variance.df, t) if math.isfinite(variance.df) else ndtr(t)))


def _seeds_needed(difference: float, sampling: Variance, training: Sequence[Variance]) -> int | None:
    """Of an open question over seeds; see `compare`."""
    is_seeds = bool(training) and all(one.source == SEEDS for one in training)
    if not is_seeds or t_test(difference, total(sampling, training)) < ALPHA:
        return None
    for seeds in range(2, _MOST_SEEDS + 1):
        then = [Variance(one.value * (one.df + 1) / seeds, seeds - 1, SEEDS) for one in training]
        if seeds > min(one.df + 1 for one in training) and t_test(difference, total(sampling, then)) < ALPHA:
            return seeds
    return None


def mcnemar_p(a: Masks, b: Masks, groups: Ints) -> float:
    """Exact two-sided McNemar test that two methods are right equally often (McNemar 1947, Psychometrika 12:153).

    Let d_k be how many more of group k's images the first method has right. If the methods are alike, the sign of each
    d_k is a coin's (Fisher's randomisation test for pairs, "The Design of Experiments" 1935, section 21), so
    p = P(|sum s_k |d_k|| >= |sum d_k|) over all signs s_k. With every image a group of its own this is the exact
    binomial McNemar test; with several images a patient it stays valid, as the patients are what is independent.

    Args:
        a, b, groups: bool[N] and bool[N], whether either method is right, and i64[N], the group of each image.
    """
    lead = np.bincount(groups, weights=a.astype(np.float64) - b).astype(np.int64)
    chance = np.ones(1)  # of the sum being -reach, ..., reach
    for size, count in zip(*np.unique(np.abs(lead[lead != 0]), return_counts=True), strict=True):
        heads = np.arange(count + 1)
        log_factorial = np.cumsum(np.log(np.maximum(heads, 1)))
        log_pmf = log_factorial[-1] - log_factorial - log_factorial[::-1] - count * np.log(2)
        step = np.zeros(2 * size * count + 1)
        step[2 * size * heads] = np.exp(log_pmf)
        chance = np.convolve(chance, step)
    reach = len(chance) // 2
    return min(1.0, float(chance[np.abs(np.arange(-reach, reach + 1)) >= abs(int(lead.sum()))].sum()))


def correct_p(family: Sequence[dict[str, Any]], name: str = "p") -> None:
    """Set `<name>_holm` of the rows whose p is known, see `holm`."""
    known = [row for row in family if row[name] is not None]
    for row, corrected in zip(known, holm([row[name] for row in known]), strict=True):
        row[f"{name}_holm"] = corrected


def holm(p: Sequence[float]) -> list[float]:
    """Step-down correction for the family-wise error (Holm 1979, Scand. J. Stat. 6:65), in the order given.

    The k-th smallest of m values becomes max over j <= k of min(1, (m - j + 1) p_(j)).
    """
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(steps) if len(values) else steps
    return [float(v) for v in corrected]
