"""Point values of every metric; scikit-learn's numbers to the last bit, without its import, which takes longer than a
report.

Conventions, here and in `intervals`:
    the predicted class is the first of the largest scores (`argmax`);
    precision of a class that is never predicted counts as 0;
    means over classes (macro averages, balanced accuracy, AUROC, average precision) leave out classes without images;
    AUROC and average precision of a class that has no image (or has all of them) do not exist: `None`, never 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from thoraclip.dtypes import Floats, Ints, Masks
from thoraclip.evaluation import calibration
from thoraclip.evaluation.weighted import Weighted, mean_of_known, ratio

__all__ = [
    "METRICS",
    "PER_CLASS",
    "Metric",
    "Scored",
    "confusion",
    "headline",
    "known_mean",
    "per_class",
    "precision_recall",
    "roc",
]


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
    def by_class(self) -> tuple[Floats, Floats, Floats]:
        """Precision, recall and F1, f64[C] each."""
        cells = confusion(self).astype(np.float64)
        hit, true, predicted = np.diag(cells), cells.sum(axis=1), cells.sum(axis=0)
        return ratio(hit, predicted), ratio(hit, true), ratio(2 * hit, true + predicted)

    @cached_property
    def averages(self) -> dict[str, tuple[float, ...]]:
        """Means of precision, recall and F1 over the classes that have images, `macro` and `weighted` by them."""
        images = np.bincount(self.target, minlength=self.class_count)
        return {
            "macro": tuple(float(np.average(values[images > 0])) for values in self.by_class),
            "weighted": tuple(float(np.average(values, weights=images)) for values in self.by_class),
        }

    @cached_property
    def auroc(self) -> list[float | None]:
        """Area under the ROC curve of each class against the rest."""
        return self._ranked(_auroc)

    @cached_property
    def average_precision(self) -> list[float | None]:
        """Average precision of each class: sum_k (recall_k - recall_{k-1}) precision_k over the thresholds."""
        return self._ranked(_average_precision)

    def _ranked(self, score: Callable[[Masks, Floats], float]) -> list[float | None]:
        return [
            score(self.target == c, self.scores[:, c]) if c in self.rankable else None for c in range(self.class_count)
        ]


@dataclass(frozen=True)
class Metric:
    """A headline metric.

    Args:
        title: as printed.
        point: the value of a table, `None` where it does not exist.
        resampled: f64[R], its values in R resamples; `None` evaluates `point` on the rows of each, thousands of times
            slower.
        needs_scores: False where the answers alone decide it.
        higher_is_better: direction.
        bounds: smallest and largest possible value.
        by_class: a mean over the classes, in which the rarest counts as much as the commonest.
    """

    title: str
    point: Callable[[Scored], float | None]
    resampled: Callable[[Weighted], Floats] | None = None
    needs_scores: bool = True
    higher_is_better: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    by_class: bool = False


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


def _auroc(is_class: Masks, score: Floats) -> float:
    false, true = roc(is_class, score)
    return float((np.diff(false) * (true[1:] + true[:-1]) / 2).sum())


def precision_recall(is_class: Masks, score: Floats) -> tuple[Floats, Floats]:
    """(precision, recall) at every distinct score of one class against the rest, from the highest down."""
    true, false = _thresholds(is_class, score)
    return true / (true + false), true / true[-1]


def _average_precision(is_class: Masks, score: Floats) -> float:
    precision, recall = precision_recall(is_class, score)
    return float(max(0.0, -(np.diff(np.append(recall[::-1], 0.0)) * precision[::-1]).sum()))


def _averaged(part: int, average: str) -> Callable[[Scored], float]:
    return lambda scored: float(scored.averages[average][part])


def _mcc(scored: Scored) -> float:
    """Matthews correlation, its R_K form for several classes (Gorodkin 2004); 0 for a constant prediction."""
    cells = confusion(scored)
    present = np.union1d(scored.target, scored.predicted)
    cells = cells[np.ix_(present, present)]
    true, predicted = cells.sum(axis=1, dtype=np.float64), cells.sum(axis=0, dtype=np.float64)
    hit, total = np.trace(cells, dtype=np.float64), predicted.sum()
    spread = (total**2 - predicted @ predicted) * (total**2 - true @ true)
    return 0.0 if spread == 0 else float((hit * total - true @ predicted) / np.sqrt(spread))


def known_mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist; `None` where none does."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _known(values: Floats | None) -> Floats:
    if values is None:
        raise ValueError("only the answers were resampled; this metric needs scores")
    return values


def log_loss_terms(scored: Scored) -> Floats:
    """f64[N]: -ln p(true class) in nats; p is kept 2.2e-16 away from 0 and 1 (as scikit-learn does)."""
    tiny = np.finfo(np.float64).eps
    chance = scored.scores[np.arange(len(scored.target)), scored.target]
    return np.asarray(-np.log(np.clip(chance, tiny, 1 - tiny)), dtype=np.float64)


def brier_terms(scored: Scored) -> Floats:
    """f64[N]: sum over the classes of (p - y)^2, in [0, 2] (Brier 1950; not halved, also for two classes)."""
    truth = np.eye(scored.class_count)[scored.target]
    return np.asarray(((scored.scores - truth) ** 2).sum(axis=1), dtype=np.float64)


def _answers(
    title: str, point: Callable[[Scored], float], resampled: Callable[[Weighted], Floats], **more: Any
) -> Metric:
    return Metric(title, point, resampled, needs_scores=False, **more)


METRICS: dict[str, Metric] = {
    "accuracy": _answers("accuracy", lambda s: float(s.correct.mean()), lambda w: w.hit.sum(axis=1) / w.total[:, 0]),
    "balanced_accuracy": _answers(
        "balanced accuracy", _averaged(1, "macro"), lambda w: w.macro(w.recall), by_class=True
    ),
    "macro_f1": _answers("macro F1", _averaged(2, "macro"), lambda w: w.macro(w.f1), by_class=True),
    "macro_precision": _answers(
        "macro precision", _averaged(0, "macro"), lambda w: w.macro(w.precision), by_class=True
    ),
    "macro_recall": _answers("macro recall", _averaged(1, "macro"), lambda w: w.macro(w.recall), by_class=True),
    "weighted_f1": _answers("weighted F1", _averaged(2, "weighted"), lambda w: w.by_images(w.f1)),
    "weighted_precision": _answers("weighted precision", _averaged(0, "weighted"), lambda w: w.by_images(w.precision)),
    "weighted_recall": _answers("weighted recall", _averaged(1, "weighted"), lambda w: w.by_images(w.recall)),
    "auroc": Metric(
        "AUROC, macro one-vs-rest",
        lambda scored: known_mean(scored.auroc),
        lambda w: mean_of_known(_known(w.auroc)),
        by_class=True,
    ),
    "average_precision": Metric(
        "average precision, macro one-vs-rest",
        lambda scored: known_mean(scored.average_precision),
        lambda w: mean_of_known(_known(w.average_precision)),
        by_class=True,
    ),
    "mcc": _answers("Matthews correlation", _mcc, lambda w: w.mcc, bounds=(-1.0, 1.0)),
    "log_loss": Metric(
        "log loss (nats)",
        lambda scored: float(log_loss_terms(scored).mean()),
        lambda w: _known(w.log_loss),
        higher_is_better=False,
        bounds=(0.0, float("inf")),
    ),
    "brier": Metric(
        "Brier score (0 to 2)",
        lambda scored: float(brier_terms(scored).mean()),
        lambda w: _known(w.brier),
        higher_is_better=False,
        bounds=(0.0, 2.0),
    ),
    "ece": Metric(
        "expected calibration error",
        lambda scored: calibration.ece(scored.confidence, scored.correct),
        lambda w: _known(w.ece),
        higher_is_better=False,
    ),
}
"""Headline metrics."""

PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "average_precision")
"""Metrics of one class against the rest."""


def headline(scored: Scored) -> dict[str, float | None]:
    """Every headline metric of one table, in the order of `METRICS`."""
    return {name: metric.point(scored) for name, metric in METRICS.items()}


def per_class(scored: Scored) -> dict[str, list[float | None]]:
    """Every metric of `PER_CLASS`, one value per class; `None` where the value does not exist.

    Specificity is TN / (TN + FP), the recall of "not this class"; it does not exist when every image is of the class.
    """
    others = [(c, scored.target != c) for c in range(scored.class_count)]
    precision, recall, f1 = scored.by_class
    present = np.bincount(scored.target, minlength=scored.class_count) > 0
    return {
        "precision": [float(v) for v in precision],
        "recall": [float(v) if here else None for v, here in zip(recall, present, strict=True)],
        "specificity": [float((scored.predicted[o] != c).sum() / o.sum()) if o.any() else None for c, o in others],
        "f1": [float(v) if here else None for v, here in zip(f1, present, strict=True)],
        "auroc": scored.auroc,
        "average_precision": scored.average_precision,
    }
