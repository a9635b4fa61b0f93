"""Point values of every metric; scikit-learn's numbers to the last bit, without its import, which takes longer than a
report.

Conventions, here and in `intervals`:
    the predicted class is the first of the largest scores (`argmax`);
    precision of a class that is never predicted counts as 0;
    means over classes (macro averages, balanced accuracy, AUROC, average precision) leave out classes without images;
    AUROC and average precision of a class that has no image (or has all of them) do not exist: `None`, never 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.evaluation import calibration
from thoraclip.evaluation.weighted import Weighted, mean_of_known

__all__ = ["METRICS", "PER_CLASS", "Scored", "confusion", "per_class", "precision_recall", "roc"]


@dataclass(frozen=True)
class Scored:
    """One set of scores next to the truth.

    Args:
        target: i64[N] in [0, C), N >= 1.
        scores: f64[N, C], not negative; rows are scaled to sum to 1 (a table may be off by rounding).
    """

    target: Ints
    scores: Floats

    def __post_init__(self) -> None:
        sums = self.scores.sum(axis=1, keepdims=True)
        # Rows that are right are left alone: a division could break ties between images.
        object.__setattr__(self, "scores", self.scores / np.where(np.abs(sums - 1) > 1e-9, sums, 1.0))

    @property
    def class_count(self) -> int:
        """C."""
        return int(self.scores.shape[1])

    @cached_property
    def predicted(self) -> Ints:
        """i64[N]: the first of the largest scores."""
        return np.asarray(self.scores.argmax(axis=1), dtype=np.int64)

    @cached_property
    def confidence(self) -> Floats:
        """f64[N]: the largest score."""
        return np.asarray(self.scores.max(axis=1), dtype=np.float64)

    @cached_property
    def correct(self) -> Masks:
        """bool[N]: the predicted class is the true one."""
        return np.asarray(self.predicted == self.target, dtype=np.bool_)

    @cached_property
    def rankable(self) -> tuple[int, ...]:
        """Classes that have at least one image, but not all of them."""
        counts = np.bincount(self.target)
        return tuple(int(c) for c in np.flatnonzero((counts > 0) & (counts < len(self.target))))

    @cached_property
    def areas(self) -> Floats:
        """f64[2, 1, C], see `Weighted`."""
        areas = np.full((2, 1, self.class_count), np.nan)
        for c in self.rankable:
            false, true = roc(self.target == c, self.scores[:, c])
            precision, recall = precision_recall(self.target == c, self.scores[:, c])
            areas[0, 0, c] = (np.diff(false) * (true[1:] + true[:-1]) / 2).sum()
            areas[1, 0, c] = max(0.0, -(np.diff(np.append(recall[::-1], 0.0)) * precision[::-1]).sum())
        return areas

    @cached_property
    def losses(self) -> Floats:
        """f64[3, 1], see `Weighted`."""
        calibration_error = calibration.ece(self.confidence, self.correct)
        return np.array([[log_loss_terms(self).mean()], [brier_terms(self).mean()], [calibration_error]])

    @cached_property
    def once(self) -> Weighted:
        """This table as one resample, which holds every image once."""
        return Weighted(confusion(self)[None].astype(np.float64), lambda: self.areas, lambda: self.losses)


@dataclass(frozen=True)
class Metric:
    """A headline metric.

    Args:
        title: as printed.
        resampled: f64[R], its values in R resamples, NaN where it does not exist.
        higher_is_better: direction.
        bounds: smallest and largest possible value.
        by_class: a mean over the classes, in which the rarest counts as much as the commonest.
    """

    title: str
    resampled: Callable[[Weighted], Floats]
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    by_class: bool = False

    def point(self, scored: Scored) -> float | None:
        """The value of a table, `None` where it does not exist."""
        return _known(self.resampled(scored.once))[0]


def confusion(scored: Scored) -> Ints:
    """i64[C, C]: rows are the true class, columns the predicted one."""
    count = scored.class_count
    cells = np.bincount(scored.target * count + scored.predicted, minlength=count * count)
    return cells.reshape(count, count).astype(np.int64)


def _thresholds(is_class: Masks, score: Floats) -> tuple[Floats, Floats]:
    """(true positives, false positives) at every distinct score, from the highest down."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    true = np.cumsum(is_class[order], dtype=np.float64)[last]
    return true, 1 + last - true


def roc(is_class: Masks, score: Floats) -> tuple[Floats, Floats]:
    """(false, true positive rates) at the corners of the ROC curve of one class against the rest, both of which have
    images."""
    true, false = _thresholds(is_class, score)
    if len(true) > 2:  # points on a straight line
        corner = np.concatenate([[True], (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0), [True]])
        true, false = true[corner], false[corner]
    return np.append(0.0, false) / false[-1], np.append(0.0, true) / true[-1]


def precision_recall(is_class: Masks, score: Floats) -> tuple[Floats, Floats]:
    """(precision, recall) at every distinct score of one class against the rest, from the highest down."""
    true, false = _thresholds(is_class, score)
    return true / (true + false), true / true[-1]


def _known(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


def log_loss_terms(scored: Scored) -> Floats:
    """f64[N]: -ln p(true class) in nats; p is kept 2.2e-16 away from 0 and 1 (as scikit-learn does)."""
    tiny = np.finfo(np.float64).eps
    chance = scored.scores[np.arange(len(scored.target)), scored.target]
    return np.asarray(-np.log(np.clip(chance, tiny, 1 - tiny)), dtype=np.float64)


def brier_terms(scored: Scored) -> Floats:
    """f64[N]: sum over the classes of (p - y)^2, in [0, 2] (Brier 1950; not halved, also for two classes)."""
    truth = np.eye(scored.class_count)[scored.target]
    return np.asarray(((scored.scores - truth) ** 2).sum(axis=1), dtype=np.float64)


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", lambda w: w.hit.sum(axis=1) / w.total[:, 0]),
    "balanced_accuracy": Metric("balanced accuracy", lambda w: w.macro(w.recall), by_class=True),
    "macro_f1": Metric("macro F1", lambda w: w.macro(w.f1), by_class=True),
    "macro_precision": Metric("macro precision", lambda w: w.macro(w.precision), by_class=True),
    "macro_recall": Metric("macro recall", lambda w: w.macro(w.recall), by_class=True),
    "weighted_f1": Metric("weighted F1", lambda w: w.by_images(w.f1)),
    "weighted_precision": Metric("weighted precision", lambda w: w.by_images(w.precision)),
    "weighted_recall": Metric("weighted recall", lambda w: w.by_images(w.recall)),
    "auroc": Metric("AUROC, macro one-vs-rest", lambda w: mean_of_known(w.areas()[0]), by_class=True),
    "average_precision": Metric(
        "average precision, macro one-vs-rest", lambda w: mean_of_known(w.areas()[1]), by_class=True
    ),
    "mcc": Metric("Matthews correlation", lambda w: w.mcc, bounds=(-1.0, 1.0)),
    "log_loss": Metric("log loss (nats)", lambda w: w.losses()[0], higher_is_better=False, bounds=(0.0, float("inf"))),
    "brier": Metric("Brier score (0 to 2)", lambda w: w.losses()[1], higher_is_better=False, bounds=(0.0, 2.0)),
    "ece": Metric("expected calibration error", lambda w: w.losses()[2], higher_is_better=False),
}
"""Headline metrics."""

PER_CLASS: dict[str, Callable[[Weighted], Floats]] = {
    "precision": lambda w: w.precision,
    "recall": lambda w: w.of_present(w.recall),
    "specificity": lambda w: w.specificity,
    "f1": lambda w: w.of_present(w.f1),
    "auroc": lambda w: w.areas()[0],
    "average_precision": lambda w: w.areas()[1],
}
"""Metrics of one class against the rest: f64[R, C], NaN where they do not exist."""


def per_class(scored: Scored) -> dict[str, list[float | None]]:
    """Every metric of `PER_CLASS`, one value per class; `None` where the value does not exist, as a specificity (TN /
    (TN + FP)) where every image is of the class."""
    return {name: _known(of(scored.once)[0]) for name, of in PER_CLASS.items()}
