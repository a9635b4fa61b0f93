"""How far an exported model is from the original, and what is allowed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ParityError
from thoraclip.evaluation.intervals import LEVEL
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.proportions import clopper_pearson

__all__ = [
    "FP32_TOLERANCE",
    "INT8_ACCURACY",
    "INT8_FLIPS",
    "compare_answers",
    "compare_scores",
    "require_alike",
    "require_equal",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FP32_TOLERANCE = 1e-4
"""Largest difference of a probability between the original in fp32 and the exported model in fp32."""
INT8_FLIPS = 0.02
"""Largest share of the test images that may get another answer in int8."""
INT8_ACCURACY = 0.005
"""Bounds, either side of 0, that must hold the 95 % interval of the change of accuracy in int8."""

_RESAMPLES = 2000


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
    """Flips, and the paired change of accuracy with its 95 % bootstrap interval over groups.

    Args:
        original, exported: scores f64[N, C] of the same images.
        target: i64[N].
        groups: i64[N], the patient of each image, numbered from 0 without a gap.

    Returns:
        `compare_scores`, `share_high` (the exact upper 95 % bound of the share of other answers), and `accuracy`.
    """
    found = compare_scores(original, exported)
    n, before, after = len(target), original.argmax(axis=1) == target, exported.argmax(axis=1) == target
    change = after.astype(np.float64) - before
    value = float(change.mean())
    weights = resample_weights(groups, resamples=_RESAMPLES, seed=seed)
    drawn = np.concatenate([change @ w / w.sum(axis=0) for w in weights])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return found | {
        "share": found["other_answers"] / n,
        "share_high": clopper_pearson(found["other_answers"], n)[1],
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
        change, low, high = (f"{100 * accuracy[name]:+.2f}" for name in ("change", "low", "high"))
        few = "; with so few test images this cannot be shown" if n * INT8_ACCURACY < 2 * max(flips, 1) else ""
        rule = f"is not within {100 * INT8_ACCURACY:.1f} points either side of 0{few}"
        raise ParityError(f"{where}; the change of accuracy, {change} [{low}, {high}] points, {rule}; {remedy}")
