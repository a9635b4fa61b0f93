"""How unlike the training images a picture is: an out-of-distribution score on an encoder's frozen features.

With f the pooled feature of a picture, and larger scores for stranger pictures:

    min_c (f - m_c)' S^-1 (f - m_c)                                              (Lee et al. 2018, arXiv:1807.03888)

m_c is the mean of class c and S the covariance about the class means, shrunk towards a multiple of the identity
(Ledoit & Wolf 2004, J. Multivariate Anal. 88:365). With two encoders it told best what is no chest X-ray (docs/ood.md).
Applied with numpy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.array_files import Expected, read_safetensors
from thoraclip.dtypes import Floats, Ints, Masks, Singles
from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.posthoc.quantile import patient_quantile
from thoraclip.runs import atomic_open, canonical_json
from thoraclip.shapes import check, number, one_of, table, whole

__all__ = ["MIN_ROWS", "OodScore", "fit_ood", "read_ood", "threshold_of", "write_ood"]


MIN_ROWS = 20
"""Fewest images to fit on, and fewest to calibrate on."""

_SCHEMA = 1
_KIND = "mahalanobis"
OOD_ARRAYS: Expected = {"means": ("f4", ("K", "D")), "factor": ("f4", ("D", "D"))}
OOD_SHAPE = table(
    score=one_of(_KIND),
    threshold=number(),
    false_positive_rate=number(0, 1),
    calibration_images=whole(),
    calibration_patients=whole(),
    may=["calibration_patients"],
)
"""Of `OodScore.facts`."""
_BLOCK = 1024  # pictures scored at once: bounds memory


@dataclass(frozen=True, kw_only=True)
class OodScore:
    """A fitted score and the threshold above which a picture is called unlike the training images.

    Args:
        threshold: the score that a share `false_positive_rate` of pictures like the training images exceeds.
        false_positive_rate: that share, 0..1.
        calibration_images, calibration_patients: how many, none of which was fitted on, the threshold was taken from.
        arrays: what was fitted: `means` f32[C, D], and `factor` f32[D, D] with factor^2 = S^-1.
    """

    threshold: float
    false_positive_rate: float
    calibration_images: int
    calibration_patients: int
    arrays: dict[str, Singles]

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> OodScore:
        """The score that `facts`, of `OOD_SHAPE`, described."""
        return cls(
            threshold=float(facts["threshold"]),
            false_positive_rate=float(facts["false_positive_rate"]),
            calibration_images=facts["calibration_images"],
            calibration_patients=facts.get("calibration_patients", facts["calibration_images"]),
            arrays=arrays,
        )

    @property
    def facts(self) -> dict[str, Any]:
        """All but the arrays, JSON-able."""
        rates = {name: getattr(self, name) for name in ("threshold", "false_positive_rate", "guaranteed_rate")}
        counts = {name: getattr(self, name) for name in ("calibration_images", "calibration_patients")}
        return {"score": _KIND, **rates, **counts}

    @cached_property
    def centres(self) -> Floats:
        """f64[C, D]: the class means, whitened."""
        return _whitened(self.arrays["means"], self.arrays["factor"])

    @property
    def guaranteed_rate(self) -> float:
        """The false-positive rate that the calibration can promise: no smaller than 1 / (calibration patients + 1)."""
        return max(self.false_positive_rate, 1 / (self.calibration_patients + 1))

    def score(self, features: Singles) -> Floats:
        """f32[N, D], as the encoder gives them -> f64[N]; larger is less like the training images.

        A picture's score does not depend on the others, rounding apart.

        Raises:
            InputError: the features are not f[N, D], or not finite.
        """
        features = _checked(features, "features to score")
        length = self.arrays["means"].shape[1]
        if features.shape[1] != length:
            fitted = f"the out-of-distribution score was fitted on {length}; use its encoder"
            raise InputError(f"features of {features.shape[1]} numbers: {fitted}")
        scores = [np.zeros(0)]
        for first in range(0, len(features), _BLOCK):
            points = _whitened(features[first : first + _BLOCK], self.arrays["factor"])
            scores.append(np.min([((points - centre) ** 2).sum(axis=1) for centre in self.centres], axis=0))
        return np.concatenate(scores)

    def is_flagged(self, scores: Floats) -> Masks:
        """f64[N] -> bool[N]: which scores exceed the threshold."""
        return np.asarray(np.asarray(scores) > self.threshold)


def _whitened(rows: Singles, factor: Singles) -> Floats:
    """f64[N, D]: rows times the factor."""
    wide, exact = np.asarray(factor, np.float64), rows.astype(np.float64)  # no copy of a factor that is f64 already
    if len(rows) == 1:  # one picture of many threads: a BLAS would start threads of its own under each of them
        return np.asarray(np.einsum("nd,de->ne", exact, wide))
    return np.asarray(exact @ wide)


def fit_ood(
    features: Singles,
    *,
    held_out: Singles,
    patients: Ints | None = None,
    targets: Ints | None = None,
    false_positive_rate: float = 0.01,
) -> OodScore:
    """Fit a score on training features and set its threshold on pictures that it was not fitted on.

    Args:
        features: f32[N, D] of the training images, as the encoder gives them.
        held_out: f32[V, D] of validation images, no patient of which is trained on.
        patients: i64[V], whose image it is; `None` where every image stands for itself.
        targets: i64[N], the classes of the training images; -1 is unknown, and left out. None: all are of one class.
        false_positive_rate: share of images like the training ones that may be flagged.

    Raises:
        ConfigError: `false_positive_rate` out of range.
        InputError: fewer than `MIN_ROWS` images to fit or to calibrate on, or features that are not finite or not
            f[N, D].
    """
    if not 0 < false_positive_rate < 1:
        raise ConfigError(f"false_positive_rate = {false_positive_rate}: a share between 0 and 1 is needed, as in 0.01")
    features = _checked(features, "training features", at_least=MIN_ROWS)
    targets = np.zeros(len(features), np.int64) if targets is None else targets
    if len(targets) != len(features):
        raise InputError(f"targets of {len(targets)} images: there are {len(features)} training features")
    known = targets >= 0
    if int(known.sum()) < MIN_ROWS:
        raise InputError(f"training features of {int(known.sum())} labelled images: {MIN_ROWS} or more are needed")
    rows, classes = features[known].astype(np.float64), targets[known]
    means = {c: rows[classes == c].mean(axis=0) for c in np.unique(classes).tolist()}
    centred = rows - np.stack([means[c] for c in classes.tolist()])
    arrays = {"means": np.stack(list(means.values())).astype(np.float32), "factor": _whitening(centred)}
    patients = np.arange(len(held_out)) if patients is None else patients
    about = {"calibration_images": len(held_out), "calibration_patients": len(np.unique(patients))}
    fitted = OodScore(threshold=np.inf, false_positive_rate=false_positive_rate, arrays=arrays, **about)
    scores = fitted.score(_checked(held_out, "held-out features", at_least=MIN_ROWS))
    return replace(fitted, threshold=threshold_of(scores, false_positive_rate, patients))


def _checked(features: Singles, what: str, *, at_least: int = 0) -> Singles:
    array = np.asarray(features)
    if array.ndim != 2:
        raise InputError(f"{what} of shape {array.shape}: a table [images, numbers] is needed")
    if len(array) < at_least:
        needed = f"an out-of-distribution score needs {at_least} or more; add images or leave it out"
        raise InputError(f"{what} of {len(array)} images: {needed}")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InputError(f"{what}: row {row} is not finite; embed again with precision fp32")
    return array


def _whitening(centred: Floats) -> Singles:
    """f32[D, D], symmetric: the inverse root of the shrunk covariance of centred rows f64[N, D]."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums keep one order everywhere
        covariance = _shrunk_covariance(centred)
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] <= 0:
            needed = "an out-of-distribution score needs different images"
            raise InputError(f"training features that are all the same: {needed}")
        roots = np.sqrt(np.maximum(values, 1e-9 * values[-1]))
        factor: Singles = ((vectors / roots) @ vectors.T).astype(np.float32)
    return factor


def _shrunk_covariance(centred: Floats) -> Floats:
    """f64[D, D] of centred rows f64[N, D] (Ledoit & Wolf 2004, J. Multivariate Analysis 88:365).

    The numbers of scikit-learn's `ledoit_wolf(centred, assume_centered=True)`, up to 1,000 columns to the last bit; its
    import takes longer than a probe.
    """
    rows, columns = centred.shape
    squares = centred**2
    variances = squares.sum(axis=0) / rows
    mean = variances.sum() / columns
    products = centred.T @ centred
    delta = (products**2).sum() / rows**2
    beta = 1.0 / (columns * rows) * ((squares.T @ squares).sum() / rows - delta)
    delta = (delta - 2.0 * mean * variances.sum() + columns * mean**2) / columns
    beta = min(beta, delta)
    shrinkage = 0.0 if beta == 0 else beta / delta
    covariance: Floats = products / rows
    mean = np.trace(covariance) / columns
    covariance *= 1.0 - shrinkage
    covariance.flat[:: columns + 1] += shrinkage * mean
    return covariance


def threshold_of(scores: Floats, false_positive_rate: float, patients: Ints | None = None) -> float:
    """The score that a share of pictures like the calibration images exceeds: the conformal quantile.

    A new patient's picture exceeds it with probability at most `rate` (Vovk et al. 2005; Bates et al. 2023, Annals of
    Statistics 51:149, arXiv:2104.08279; patients: `quantile.patient_quantile`). Too few patients for the promise, (P +
    1) rate < 1: the largest score, which a new picture exceeds with probability 1 / (P + 1) or less.
    """
    patients = np.arange(len(scores)) if patients is None else patients
    return min(patient_quantile(scores, patients, 1 - false_positive_rate), float(scores.max()))


def write_ood(path: Path, fitted: OodScore) -> None:
    """Write a score as safetensors; what is not an array stands in the file's metadata."""
    from safetensors.numpy import save

    about = {"schema": _SCHEMA, "kind": "novelty", **fitted.facts}
    del about["guaranteed_rate"]
    metadata = {"thoraclip": canonical_json(about)}  # one key: safetensors writes several in any order
    arrays = {name: np.ascontiguousarray(array) for name, array in fitted.arrays.items()}
    with atomic_open(path) as stream:
        stream.write(save(arrays, metadata=metadata))


def read_ood(path: Path) -> OodScore:
    """Read a score; raises InputError for a missing file, ManifestError for one that is none or of a later schema."""
    if not path.is_file():
        raise InputError(f"{path}: no such out-of-distribution score; name a novelty.safetensors of a run")
    arrays, about = read_safetensors(path, OOD_ARRAYS, error=ManifestError, remedy="fit it again")
    for shape in (table(kind=one_of("novelty"), schema=one_of(_SCHEMA)), OOD_SHAPE):
        check(about, shape, path, error=ManifestError, remedy="fit it again")
    return OodScore.from_facts(about, arrays)
