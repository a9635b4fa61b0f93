"""How unlike the training images a picture is: an out-of-distribution score on an encoder's frozen features.

With f the pooled feature of a picture, z = f / |f|, and larger scores for stranger pictures:

    knn          distance to the k-th nearest of the reference rows: || z - z_(k) || (Sun et al. 2022, arXiv:2204.06507)
    mahalanobis  min_c (f - m_c)' S^-1 (f - m_c)                                 (Lee et al. 2018, arXiv:1807.03888)
    relative     min_c (f - m_c)' S^-1 (f - m_c) - (f - m)' T^-1 (f - m)         (Ren et al. 2021, arXiv:2106.09022)

m_c is the mean of class c and S the covariance about the class means, m and T those of all rows; both covariances are
shrunk towards a multiple of the identity (Ledoit & Wolf 2004, J. Multivariate Anal. 88:365). `mahalanobis` is the
default: with two encoders it told best what is no chest X-ray (docs/ood.md). Applied with numpy alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ConfigError, InputError, ManifestError, did_you_mean
from thoraclip.runs import atomic_open, canonical_json

__all__ = ["KINDS", "MIN_ROWS", "OodScore", "fit_ood", "read_ood", "threshold_of", "write_ood"]

Features = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

KINDS = ("knn", "mahalanobis", "relative")

MIN_ROWS = 20
"""Fewest images to fit on, and fewest to calibrate on."""

_SCHEMA = 1
_BLOCK = 1024  # pictures scored at once: bounds memory at _BLOCK x rows
_ARRAYS = {
    "knn": {"rows": 2},
    "mahalanobis": {"means": 2, "factor": 2},
    "relative": {"means": 2, "factor": 2, "background_mean": 1, "background_factor": 2},
}


@dataclass(frozen=True, kw_only=True)
class OodScore:
    """A fitted score and the threshold above which a picture is called unlike the training images.

    Args:
        kind: one of `KINDS`.
        threshold: the score that a share `false_positive_rate` of pictures like the training images exceeds.
        false_positive_rate: that share, 0..1.
        calibrated_on: `held-out` (pictures that were not fitted on) or `leave-one-out` (the reference rows, each
            against the others).
        calibration_images: how many pictures the threshold was taken from.
        neighbours: k, for `knn`; 0 for the others.
        arrays: what was fitted. `knn`: rows f32[M, D], unit vectors. `mahalanobis`: means f32[C, D], factor f32[D, D]
            with factor^2 = S^-1. `relative`: these, and background_mean f32[D], background_factor f32[D, D] for T.
    """

    kind: str
    threshold: float
    false_positive_rate: float
    calibrated_on: str
    calibration_images: int
    neighbours: int
    arrays: dict[str, npt.NDArray[np.float32]]

    @property
    def dimension(self) -> int:
        """D, the length of a feature."""
        return int(self.arrays["rows" if self.kind == "knn" else "means"].shape[1])

    @cached_property
    def centres(self) -> Floats:
        """f64[C, D]: the class means, whitened; of `mahalanobis` and `relative`."""
        return _whitened(self.arrays["means"], self.arrays["factor"])

    @property
    def guaranteed_rate(self) -> float:
        """The false-positive rate that the calibration can promise: no smaller than 1 / (calibration images + 1)."""
        return max(self.false_positive_rate, 1 / (self.calibration_images + 1))

    def score(self, features: Features) -> Floats:
        """f32[N, D], as the encoder gives them -> f64[N]; larger is less like the training images.

        A picture's score does not depend on the others, rounding apart.

        Raises:
            InputError: the features are not f[N, D], or not finite.
        """
        features = _checked(features, "features to score")
        if features.shape[1] != self.dimension:
            raise InputError(
                f"features of {features.shape[1]} numbers: the out-of-distribution score was fitted on "
                f"{self.dimension}; use its encoder"
            )
        blocks = [_SCORES[self.kind](self, features[i : i + _BLOCK]) for i in range(0, len(features), _BLOCK)]
        return np.concatenate(blocks) if blocks else np.zeros(0)

    def is_flagged(self, scores: Floats) -> npt.NDArray[np.bool_]:
        """f64[N] -> bool[N]: which scores exceed the threshold."""
        flagged: npt.NDArray[np.bool_] = np.asarray(scores) > self.threshold
        return flagged


def _unit(features: npt.NDArray[np.floating]) -> Floats:
    wide = features.astype(np.float64)
    norms: Floats = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.maximum(norms, 1e-12))


def _distances(left: Floats, right: Floats) -> Floats:
    """f64[N, M] of distances between unit vectors."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * (left @ right.T), 0)))


def _score_knn(fitted: OodScore, features: Features) -> Floats:
    near = _distances(_unit(features), fitted.arrays["rows"].astype(np.float64))
    return np.asarray(np.partition(near, fitted.neighbours - 1, axis=1)[:, fitted.neighbours - 1])


def _whitened(rows: Features, factor: Features) -> Floats:
    """f64[N, D]: rows times the factor."""
    wide, exact = np.asarray(factor, np.float64), rows.astype(np.float64)  # no copy of a factor that is f64 already
    if len(rows) == 1:  # one picture of many threads: a BLAS would start threads of its own under each of them
        return np.asarray(np.einsum("nd,de->ne", exact, wide))
    return np.asarray(exact @ wide)


def _nearest(points: Floats, centres: Floats) -> Floats:
    """f64[N]: the smallest squared distance of whitened points to a whitened centre."""
    return np.asarray(np.min([((points - centre) ** 2).sum(axis=1) for centre in centres], axis=0))


def _score_mahalanobis(fitted: OodScore, features: Features) -> Floats:
    return _nearest(_whitened(features, fitted.arrays["factor"]), fitted.centres)


def _score_relative(fitted: OodScore, features: Features) -> Floats:
    factor = fitted.arrays["background_factor"]
    middle = _whitened(fitted.arrays["background_mean"][None], factor)
    return _score_mahalanobis(fitted, features) - _nearest(_whitened(features, factor), middle)


_SCORES = {"knn": _score_knn, "mahalanobis": _score_mahalanobis, "relative": _score_relative}


def fit_ood(
    features: Features,
    *,
    targets: npt.NDArray[np.int64] | None = None,
    held_out: Features | None = None,
    kind: str = "mahalanobis",
    neighbours: int = 5,
    false_positive_rate: float = 0.01,
    max_rows: int = 2000,
    seed: int = 0,
) -> OodScore:
    """Fit a score on training features and set its threshold on pictures that it was not fitted on.

    Args:
        features: f32[N, D] of the training images, as the encoder gives them.
        targets: i64[N], their classes; -1 is unknown. Not used by `knn`; an image of unknown class is left out by the
            others.
        held_out: f32[V, D] of validation images, no patient of which is trained on. None: the threshold of `knn` comes
            from its reference rows, each against the others; images of one patient then make it too low.
        kind: one of `KINDS`.
        neighbours: k of `knn`.
        false_positive_rate: share of images like the training ones that may be flagged.
        max_rows: `knn` keeps no more reference rows than this, drawn without replacement.
        seed: of that draw.

    Raises:
        ConfigError: a setting out of range.
        InputError: fewer than `MIN_ROWS` images to fit or to calibrate on, features that are not finite or not f[N, D],
            or `held_out` None for a kind that needs it.
    """
    _check_settings(kind, neighbours, false_positive_rate, max_rows)
    features = _checked(features, "training features", at_least=max(MIN_ROWS, neighbours + 2 if kind == "knn" else 0))
    if kind == "knn":
        arrays = {"rows": _reference_rows(features, max_rows, seed)}
    else:
        arrays = _gaussians(features, targets, relative=kind == "relative")
    open_ended = OodScore(
        kind=kind,
        threshold=np.inf,
        false_positive_rate=false_positive_rate,
        calibrated_on="held-out",
        calibration_images=0,
        neighbours=neighbours if kind == "knn" else 0,
        arrays=arrays,
    )
    return _calibrated(open_ended, held_out)


def _check_settings(kind: str, neighbours: int, false_positive_rate: float, max_rows: int) -> None:
    if kind not in KINDS:
        raise ConfigError(f"kind: unknown out-of-distribution score '{kind}'{did_you_mean(kind, KINDS)}")
    if neighbours < 1:
        raise ConfigError(f"neighbours = {neighbours}: 1 or more is needed")
    if not 0 < false_positive_rate < 1:
        raise ConfigError(f"false_positive_rate = {false_positive_rate}: a share between 0 and 1 is needed, as in 0.01")
    if max_rows < max(MIN_ROWS, neighbours + 2):
        raise ConfigError(f"max_rows = {max_rows}: {max(MIN_ROWS, neighbours + 2)} or more are needed")


def _checked(features: Features, what: str, *, at_least: int = 0) -> Features:
    array = np.asarray(features)
    if array.ndim != 2:
        raise InputError(f"{what} of shape {array.shape}: a table [images, numbers] is needed")
    if len(array) < at_least:
        raise InputError(
            f"{what} of {len(array)} images: an out-of-distribution score needs {at_least} or more; add images "
            "or leave it out"
        )
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InputError(f"{what}: row {row} is not finite; embed again with precision fp32")
    return array


def _reference_rows(features: Features, max_rows: int, seed: int) -> Features:
    kept = np.arange(len(features))
    if len(features) > max_rows:
        kept = np.sort(np.random.default_rng(seed).choice(len(features), max_rows, replace=False))
    return _unit(features[kept]).astype(np.float32)


def _gaussians(features: Features, targets: npt.NDArray[np.int64] | None, *, relative: bool) -> dict[str, Features]:
    targets = np.zeros(len(features), np.int64) if targets is None else targets
    if len(targets) != len(features):
        raise InputError(f"targets of {len(targets)} images: there are {len(features)} training features")
    known = targets >= 0
    if int(known.sum()) < MIN_ROWS:
        raise InputError(
            f"training features of {int(known.sum())} labelled images: {MIN_ROWS} or more are needed; use kind 'knn'"
        )
    rows, classes = features[known].astype(np.float64), targets[known]
    means = {c: rows[classes == c].mean(axis=0) for c in np.unique(classes).tolist()}
    centred = rows - np.stack([means[c] for c in classes.tolist()])
    arrays = {"means": np.stack(list(means.values())).astype(np.float32), "factor": _whitening(centred)}
    if relative:
        middle = rows.mean(axis=0)
        arrays |= {"background_mean": middle.astype(np.float32), "background_factor": _whitening(rows - middle)}
    return arrays


def _whitening(centred: Floats) -> Features:
    """f32[D, D], symmetric: the inverse root of the shrunk covariance of centred rows f64[N, D]."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # sums keep one order everywhere
        covariance = _shrunk_covariance(centred)
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] <= 0:
            raise InputError(
                "training features that are all the same: an out-of-distribution score needs different images"
            )
        roots = np.sqrt(np.maximum(values, 1e-9 * values[-1]))
        factor: Features = ((vectors / roots) @ vectors.T).astype(np.float32)
    return factor


def _shrunk_covariance(centred: Floats) -> Floats:
    """f64[D, D] of centred rows f64[N, D] (Ledoit & Wolf 2004, J. Multivariate Analysis 88:365).

    The numbers of scikit-learn's `ledoit_wolf(centred, assume_centered=True)`, up to 1,000 columns to the last bit; its
    import takes longer than a probe.
    """
    rows, columns = centred.shape
    if columns == 1:
        return np.atleast_2d((centred**2).mean())
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


def _calibrated(fitted: OodScore, held_out: Features | None) -> OodScore:
    if held_out is not None:
        scores = fitted.score(_checked(held_out, "held-out features", at_least=MIN_ROWS))
        origin = "held-out"
    elif fitted.kind == "knn":
        rows = fitted.arrays["rows"]
        scores = np.partition(_off_diagonal(rows), fitted.neighbours - 1, axis=1)[:, fitted.neighbours - 1]
        origin = "leave-one-out"
    else:
        raise InputError(
            f"held_out: none given, but '{fitted.kind}' needs images that it was not fitted on; use kind 'knn'"
        )
    return replace(
        fitted,
        threshold=threshold_of(scores, fitted.false_positive_rate),
        calibrated_on=origin,
        calibration_images=len(scores),
    )


def _off_diagonal(rows: Features) -> Floats:
    """f64[M, M] of distances between reference rows; infinite from each to itself."""
    wide = rows.astype(np.float64)
    near = _distances(wide, wide)
    np.fill_diagonal(near, np.inf)
    return near


def threshold_of(scores: Floats, false_positive_rate: float) -> float:
    """The score that a share of pictures like the calibration images exceeds: the conformal quantile.

    With n calibration scores it is the ceil((n + 1)(1 - rate))-th smallest: a new exchangeable picture exceeds it with
    probability at most `rate` (Vovk et al. 2005; Bates et al. 2023, Annals of Statistics 51:149, arXiv:2104.08279). Too
    few scores for the promise, (n + 1) rate < 1: the largest one, which a new picture exceeds with probability 1 / (n +
    1).
    """
    rank = int(np.ceil((len(scores) + 1) * (1 - false_positive_rate) - 1e-9))
    return float(np.sort(scores)[min(rank, len(scores)) - 1])


def write_ood(path: Path, fitted: OodScore) -> None:
    """Write a score as safetensors; what is not an array stands in the file's metadata."""
    from safetensors.numpy import save

    about = {
        "schema": _SCHEMA,
        "kind": "novelty",
        "score": fitted.kind,
        "threshold": fitted.threshold,
        "false_positive_rate": fitted.false_positive_rate,
        "calibrated_on": fitted.calibrated_on,
        "calibration_images": fitted.calibration_images,
        "neighbours": fitted.neighbours,
    }
    metadata = {"thoraclip": canonical_json(about)}  # one key: safetensors writes several in any order
    arrays = {name: np.ascontiguousarray(array) for name, array in fitted.arrays.items()}
    with atomic_open(path) as stream:
        stream.write(save(arrays, metadata=metadata))


def read_ood(path: Path) -> OodScore:
    """Read a score; raises InputError when the file is missing and ManifestError when it is not one, or a later
    schema."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such out-of-distribution score; name a novelty.safetensors of a run")
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["thoraclip"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["kind"] != "novelty":
            raise ValueError(f"it holds a {about['kind']}")
        if about["schema"] != _SCHEMA:
            raise ValueError(f"schema {about['schema']}, this version reads {_SCHEMA}")
        fitted = OodScore(
            kind=about["score"],
            threshold=float(about["threshold"]),
            false_positive_rate=float(about["false_positive_rate"]),
            calibrated_on=str(about["calibrated_on"]),
            calibration_images=int(about["calibration_images"]),
            neighbours=int(about["neighbours"]),
            arrays=arrays,
        )
        _check_arrays(fitted)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ManifestError(f"{path}: not an out-of-distribution score ({error!r}); fit it again") from error
    return fitted


def _check_arrays(fitted: OodScore) -> None:
    """Raise ValueError unless the arrays are those of the kind, of one width, and finite."""
    needed = _ARRAYS[fitted.kind]
    if set(fitted.arrays) != set(needed):
        raise ValueError(f"arrays {sorted(fitted.arrays)}, {fitted.kind} has {sorted(needed)}")
    for name, array in fitted.arrays.items():
        if array.dtype != np.float32 or array.ndim != needed[name] or array.shape[-1] != fitted.dimension:
            raise ValueError(f"array {name} is {array.dtype}{list(array.shape)}")
        if not np.isfinite(array).all():
            raise ValueError(f"array {name} is not finite")
    if fitted.kind == "knn" and not 1 <= fitted.neighbours <= len(fitted.arrays["rows"]):
        raise ValueError(f"{fitted.neighbours} neighbours of {len(fitted.arrays['rows'])} rows")
    if not np.isfinite(fitted.threshold):
        raise ValueError(f"threshold {fitted.threshold}")
