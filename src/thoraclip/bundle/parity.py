"""Features and scores of the images of an export, by the original and by the exported model: how far they are apart,
and what is allowed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np

from thoraclip.bundle.format import Thumbnails
from thoraclip.bundle.runtime import BundleClassifier
from thoraclip.data.batches import grey_batches
from thoraclip.data.splits import independent_groups
from thoraclip.dtypes import Floats, Greys, Ints, Singles
from thoraclip.errors import ParityError
from thoraclip.evaluation.intervals import percentile_interval
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.imaging import Preprocess
from thoraclip.models.classifiers import Original
from thoraclip.proportions import patient_share
from thoraclip.runs import Progress

__all__ = [
    "FP32_TOLERANCE",
    "INT8_ACCURACY",
    "INT8_FLIPS",
    "ModelSession",
    "compare_scores",
    "require_alike",
    "require_equal",
]

Look = Callable[[Greys], tuple[Singles, Floats]]

FP32_TOLERANCE = 1e-4
"""Largest difference of a probability between the original in fp32 and the exported model in fp32."""
INT8_FLIPS = 0.02
"""Largest share of the test images that may get another answer in int8."""
INT8_ACCURACY = 0.005
"""Bounds, either side of 0, that must hold the 95 % interval of the change of accuracy in int8."""

SIDE = 128
"""Of a thumbnail, in pixels; black bars make it square."""

_RESAMPLES = 2000
_BATCH = 32
_EQUAL_ON = 256
"""Test images, spread over all, on which fp32 must equal fp32."""
_SCALES_FROM = 128
"""Validation images that fix the scales of static int8."""


class ModelSession:
    """Draws the images of one export, at most `images` of each split, and runs models over them."""

    def __init__(self, original: Original, *, images: int, seed: int, progress: Progress | None, is_int8: bool) -> None:
        self.original, self.seed, self._progress = original, seed, progress
        self.targets = original.manifest.targets(original.predictions.labels)
        self.train, self.val, self.test = (
            rows
            if len(rows) <= images
            else np.sort(np.random.default_rng([seed, salt]).choice(rows, images, replace=False))
            for salt, rows in enumerate((original.train, original.val, original.test))
        )
        self._equal_on = _spread(original.test, _EQUAL_ON)
        self._alike_on = np.concatenate([original.test, *(rows for _, rows in original.alike)])
        self._done = 0
        self._total = 2 * len(self._equal_on) + len(self.train) + len(self.val) + len(self.test)
        self._total += 2 * len(self._alike_on) if is_int8 else 0

    def look(self, ask: Look, rows: Ints) -> tuple[Singles, Floats]:
        """(features f32[R, D], scores f64[R, C]) of some rows of the manifest."""
        parts = []
        for greys in self._greys(rows, self.original.classifier.preprocess):
            parts.append(ask(greys))
            self._done += len(greys)
            if self._progress:
                self._progress(self._done, self._total)
        return np.concatenate([features for features, _ in parts]), np.concatenate([scores for _, scores in parts])

    def for_scales(self) -> Greys:
        """u8[N, S, S]: validation pictures that fix the scales of static int8."""
        rows = _spread(self.original.val, _SCALES_FROM)
        return np.concatenate([*self._greys(rows, self.original.classifier.preprocess)])

    def thumbnails(self, features: Singles, count: int) -> Thumbnails:
        """Some of the training pictures, whose features f32[T, D] are known."""
        patients = self.original.manifest.column("patient")
        chosen = draw_rows(self.targets[self.train], [patients[row] for row in self.train], count=count, seed=self.seed)
        rows, names = self.train[chosen], self.original.predictions.labels.names
        small = replace(self.original.classifier.preprocess, size=SIDE, geometry="pad", short_side=None)
        unit = features[chosen] / np.maximum(np.linalg.norm(features[chosen], axis=1, keepdims=True), 1e-12)
        labels = [names[target] for target in self.targets[rows]]
        return Thumbnails(np.concatenate([*self._greys(rows, small)]), labels, unit)

    def _greys(self, rows: Ints, spec: Preprocess) -> Iterator[Greys]:
        for _, greys in grey_batches(self.original.manifest.take(rows), spec, batch_size=_BATCH):
            yield greys

    def equality(self, runtime: BundleClassifier) -> dict[str, Any]:
        """fp32 against fp32, see `parity.compare_scores`."""
        return compare_scores(*(self.look(m.look, self._equal_on)[1] for m in (self.original.classifier, runtime)))

    def alikeness(self, runtime: BundleClassifier) -> dict[str, Any]:
        """int8 against the original, see `parity.compare_answers`.

        The images are its own test images, and those of other folds by their own heads on the same features.
        """
        before, after = (self.look(m.look, self._alike_on) for m in (self.original.classifier, runtime))
        groups = np.unique(independent_groups(self.original.manifest.take(self._alike_on)), return_inverse=True)[1]
        target = self.targets[self._alike_on]
        own, others = self._by_own_heads(*before), self._by_own_heads(*after)
        return compare_answers(own, others, target, groups.astype(np.int64), seed=self.seed)

    def _by_own_heads(self, features: Singles, scores: Floats) -> Floats:
        """f64[N, C]: each image by the head of the fold that held it out."""
        start, own = len(self.original.test), scores.copy()
        for head, rows in self.original.alike:
            own[start : start + len(rows)] = head.predict(features[start : start + len(rows)])
            start += len(rows)
        return own


def _spread(rows: Ints, most: int) -> Ints:
    """No more than `most` of the rows, evenly over all."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]


def draw_rows(targets: Ints, patients: Sequence[str | None], *, count: int, seed: int) -> Ints:
    """Which of N labelled images are shown, i64[min(count, N)], ascending: of every class as many as of the others, as
    far as there are; no patient twice while there is another one of the class. Images without a patient count as
    patients of their own."""
    seen, turns, ranked, drawn = Counter[tuple[int, str | int]](), Counter[int](), [], []
    for row in np.random.default_rng(seed).permutation(len(targets)):
        patient = row if patients[row] is None else patients[row]
        ranked.append((seen[targets[row], patient], row))
        seen[targets[row], patient] += 1
    for _, row in sorted(ranked, key=itemgetter(0)):  # stable: the draw decides among equals
        drawn.append((turns[targets[row]], row))
        turns[targets[row]] += 1
    return np.sort([row for _, row in sorted(drawn, key=itemgetter(0))[:count]]).astype(np.int64)


def compare_scores(original: Floats, exported: Floats) -> dict[str, Any]:
    """The largest difference of a score f64[N, C], and how many images get another answer."""
    return {
        "images": len(original),
        "largest_difference": float(np.abs(original - exported).max()),
        "other_answers": int((original.argmax(axis=1) != exported.argmax(axis=1)).sum()),
    }


def require_equal(found: dict[str, Any], name: str) -> None:
    """Raise ParityError where fp32 differs from fp32."""
    if not found["largest_difference"] <= FP32_TOLERANCE:  # NaN is no parity
        raise ParityError(
            f"{name}: the exported model's probabilities differ by {found['largest_difference']:.3g} from the "
            f"original's, and {FP32_TOLERANCE} is allowed; nothing was written"
        )


def compare_answers(original: Floats, exported: Floats, target: Ints, groups: Ints, *, seed: int) -> dict[str, Any]:
    """`compare_scores` of scores f64[N, C], `share_high` (the 95 % upper end of the share of other answers),
    and the paired change of `accuracy` with its 95 % bootstrap interval over `groups` i64[N], numbered from 0 without a
    gap.
    """
    found = compare_scores(original, exported)
    n, before, after = len(target), original.argmax(axis=1) == target, exported.argmax(axis=1) == target
    change = after.astype(np.float64) - before
    value = float(change.mean())
    weights = resample_weights(groups, resamples=_RESAMPLES, seed=seed)
    low, high = percentile_interval(np.concatenate([change @ w / w.sum(axis=0) for w in weights]))
    return found | {
        "share": found["other_answers"] / n,
        "share_high": patient_share(original.argmax(axis=1) != exported.argmax(axis=1), groups)[1],
        "accuracy": {
            "original": float(before.mean()),
            "exported": float(after.mean()),
            "change": value,
            "low": min(float(low), value),
            "high": max(float(high), value),
            "patients": int(groups.max()) + 1,
        },
    }


def require_alike(found: dict[str, Any], name: str) -> None:
    """Raise ParityError where int8 answers too differently, or the test images are too few to tell."""
    n, flips, accuracy = found["images"], found["other_answers"], found["accuracy"]
    where = f"{name}: in int8 {flips} of {n} test images get another answer"
    remedy = "export without --int8; nothing was written"
    if not found["share"] <= INT8_FLIPS:
        raise ParityError(f"{where}, more than {100 * INT8_FLIPS:.0f} %; {remedy}")
    if not -INT8_ACCURACY <= accuracy["low"] <= accuracy["high"] <= INT8_ACCURACY:
        change, low, high = (f"{100 * accuracy[name]:+z.2f}" for name in ("change", "low", "high"))
        few = "; with so few test images this cannot be shown" if n * INT8_ACCURACY < 2 * max(flips, 1) else ""
        rule = f"is not within {100 * INT8_ACCURACY:.1f} points either side of 0{few}"
        raise ParityError(f"{where}; the change of accuracy, {change} [{low}, {high}] points, {rule}; {remedy}")
