"""Curves of one class against the rest with bands: ROC, precision against recall, and net benefit.

A band is pointwise: 95 % of the resamples of patients lie in it at each place of the axis, not the whole curve. Near
the corners, where few images decide, it is too narrow, as percentiles of shares near 0 and 1 are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.evaluation.metrics import Scored, precision_recall
from thoraclip.evaluation.resampling import resample_weights

__all__ = ["SHARES", "THRESHOLDS", "curve_entry"]

THRESHOLDS = np.arange(1, 100) / 100
"""Threshold probabilities of the net benefit."""
SHARES = np.linspace(0, 1, 51)
"""False positive rates of the band of an ROC curve, recalls of that of a precision-recall curve."""
_POINTS = 60
_LEAST = 1e-9
"""Less than any weight, more than rounding."""
_ENDS = (0.025, 0.975)


def curve_entry(scored: Scored, classes: Sequence[str], groups: Ints, *, resamples: int, seed: int) -> dict[str, Any]:
    """Curves of a method, JSON-able; `None` for a class that has no image, or all of them.

    Args:
        scored, classes: its scores of N images, and the names of the classes in their order.
        groups, resamples, seed: of the bands, see `resampling.resample_weights`; one group has none.

    Returns:
        `pr`: class -> `recall`, `precision`, thinned for drawing, and `band` (`recall, low, high`).
        `roc_band`: class -> `fpr, low, high`.
        `net_benefit`: class -> `threshold, value, low, high, treat_all`: a list each, over `THRESHOLDS`. Net benefit is
        TP / N - FP / N * p / (1 - p) of answering yes from a score of p on; treating nobody has 0 (Vickers & Elkin
        2006, Med. Decis. Making 26:565). `gain` (`value, low, high`) is what it exceeds the better of treating all and
        treating nobody by, in the same resamples; `useful` the ends of the longest run of thresholds whose gain has an
        interval above 0, `None` where there is none.
    """
    curves = {name: _Curve(scored, c) if c in scored.rankable else None for c, name in enumerate(classes)}
    drawn: dict[str, list[tuple[Floats, ...]]] = {name: [] for name, curve in curves.items() if curve}
    for weights in resample_weights(groups, resamples=resamples, seed=seed) if groups.max() > 0 else ():
        for name, of_class in drawn.items():
            of_class.append(curves[name].measure(weights))  # type: ignore[union-attr]
    bands: dict[str, list[Any]] = {
        name: [_band(np.concatenate(one, axis=1)) for one in zip(*parts, strict=True)] for name, parts in drawn.items()
    }
    found: dict[str, Any] = {"pr": {}, "roc_band": {}, "net_benefit": {}}
    for name, curve in curves.items():
        of_roc, of_pr, of_benefit, of_gain = bands.get(name) or [None] * 4
        found["pr"][name] = curve and curve.drawn_pr() | {"band": of_pr and {"recall": SHARES.tolist(), **of_pr}}
        found["roc_band"][name] = of_roc and {"fpr": SHARES.tolist(), **of_roc}
        found["net_benefit"][name] = curve and curve.net_benefit(of_benefit, of_gain)
    return found


class _Curve:
    """One class against the rest, sorted once by falling score."""

    def __init__(self, scored: Scored, c: int) -> None:
        self.score, self.positive = scored.scores[:, c], scored.target == c
        self.order = np.argsort(-self.score, kind="stable")
        falling = self.score[self.order]
        self.last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)  # equal scores are one threshold
        self.at_least = len(falling) - np.searchsorted(falling[::-1], THRESHOLDS)  # images with such a score or more
        self.is_class = self.positive[self.order]

    def measure(self, weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Sensitivity at `SHARES` of false positives, precision at `SHARES` of recall (f64[S, r] each, NaN without
        images of a side), net benefit and its gain (f64[99, r] each) under f64[N, r] weights."""
        rows = np.ascontiguousarray(weights[self.order].T)  # [r, N]
        true = np.cumsum(np.where(self.is_class, rows, 0.0), axis=1)
        false = np.cumsum(rows, axis=1) - true
        benefit, treat_all = self._benefit(true, false)
        if len(self.last) < rows.shape[1]:
            true, false = true[:, self.last], false[:, self.last]
        of_roc, of_pr = np.full((2, len(SHARES), len(rows)), np.nan)
        for r, (t, f) in enumerate(zip(true, false, strict=True)):
            if t[-1] > 0 and f[-1] > 0:
                of_roc[:, r] = np.interp(SHARES * f[-1], np.append(0.0, f), np.append(0.0, t)) / t[-1]
                place = np.searchsorted(t, np.maximum(SHARES * t[-1], _LEAST) - _LEAST / 2)
                of_pr[:, r] = t[place] / (t[place] + f[place])
        return of_roc, of_pr, benefit, benefit - np.maximum(treat_all, 0.0)

    def _benefit(self, true: Floats, false: Floats) -> tuple[Floats, Floats]:
        """Net benefit, and that of treating all, f64[99, r], from cumulative weights, f64[r, N]."""
        odds, called = THRESHOLDS / (1 - THRESHOLDS), np.maximum(self.at_least - 1, 0)
        gain = np.where(self.at_least > 0, true[:, called] - odds * false[:, called], 0.0)
        total = true[:, -1:] + false[:, -1:]
        return (gain / total).T, ((true[:, -1:] - odds * false[:, -1:]) / total).T

    def net_benefit(self, band: Mapping[str, Any] | None, of_gain: Mapping[str, Any] | None) -> dict[str, Any]:
        """Of the sample, with the bands of the resamples; see `curve_entry`."""
        hits, unknown = self.is_class.astype(np.float64), {"low": None, "high": None}
        value, treat_all = (one[:, 0] for one in self._benefit(np.cumsum(hits)[None], np.cumsum(1 - hits)[None]))
        return {
            "threshold": THRESHOLDS.tolist(),
            "value": _rounded(value),
            **(band or unknown),
            "treat_all": _rounded(treat_all),
            "gain": {"value": _rounded(value - np.maximum(treat_all, 0.0)), **(of_gain or unknown)},
            "useful": _longest_run(np.array(of_gain["low"]) > 0) if of_gain else None,
        }

    def drawn_pr(self) -> dict[str, Any]:
        """Recall and precision at some of the thresholds."""
        precision, recall = precision_recall(self.positive, self.score)
        keep = np.unique(np.searchsorted(recall, np.linspace(recall[recall > 0][0], 1, _POINTS)))
        return {"recall": _rounded(recall[keep]), "precision": _rounded(precision[keep])}


def _band(values: Floats) -> dict[str, list[float]]:
    """Pointwise ends of f64[S, R], the resamples without it left out."""
    known = values[:, np.isfinite(values).all(axis=0)]
    low, high = np.quantile(known, _ENDS, axis=1) if known.size else np.full((2, len(values)), np.nan)
    return {"low": _rounded(low), "high": _rounded(high)}


def _longest_run(holds: Masks) -> list[float] | None:
    """First and last threshold of the longest run of those for which something holds."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], holds, [False]]).astype(int)))
    if not len(edges):
        return None
    begin, end = max(zip(edges[::2], edges[1::2], strict=True), key=lambda run: run[1] - run[0])
    return [float(THRESHOLDS[begin]), float(THRESHOLDS[end - 1])]


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 4) for value in values]
