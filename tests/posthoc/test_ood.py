"""The out-of-distribution score against slow oracles, its threshold's promise, and its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.covariance import LedoitWolf

from thoraclip.bundle import export
from thoraclip.bundle.parity import ModelSession
from thoraclip.errors import ConfigError, InputError, ManifestError
from thoraclip.imaging import Preprocess
from thoraclip.labels import LabelSet
from thoraclip.methods.parts import Part
from thoraclip.methods.probe import _keep_ood
from thoraclip.posthoc.ood import OodScore, fit_ood, read_ood, threshold_of, write_ood
from thoraclip.posthoc.quantile import patient_quantile
from thoraclip.runs import RunFolder


def toy(n: int = 120, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(features f32[N, D], targets) of three correlated Gaussian classes far from the origin."""
    rng = np.random.default_rng(seed)
    targets = np.arange(n) % 3
    spread = np.random.default_rng(99).normal(size=(d, d))
    features = rng.normal(size=(n, d)) @ spread + 4 * np.eye(3, d)[targets] + 5
    return features.astype(np.float32), targets


def fitted_on(seed: int = 0, **options: Any) -> OodScore:
    features, targets = toy(seed=seed)
    return fit_ood(features, targets=targets, held_out=toy(seed=seed + 1)[0], **options)


def mahalanobis_oracle(x: np.ndarray, centred: np.ndarray, means: list[np.ndarray]) -> list[float]:
    inverse = np.linalg.inv(LedoitWolf(assume_centered=True).fit(centred).covariance_)
    return [min(float((row - m) @ inverse @ (row - m)) for m in means) for row in x.astype(float)]


def test_the_score_is_that_of_the_explicit_inverse() -> None:
    features, targets = toy()
    strange = toy(seed=5)[0] * np.linspace(-1, 3, 6, dtype=np.float32)
    wide = features.astype(float)
    means = [wide[targets == c].mean(axis=0) for c in range(3)]
    own = mahalanobis_oracle(strange, np.stack([r - means[t] for r, t in zip(wide, targets, strict=True)]), means)
    np.testing.assert_allclose(fitted_on().score(strange), own, rtol=1e-4)


def test_unknown_classes_are_left_out_and_no_classes_are_one() -> None:
    features, targets = toy()
    held = toy(seed=1)[0]
    hidden = np.where(np.arange(120) < 30, -1, targets)
    left, right = (fit_ood(f, targets=t, held_out=held) for f, t in ((features, hidden), (features[30:], targets[30:])))
    np.testing.assert_allclose(left.score(held), right.score(held))
    one = fit_ood(features, held_out=held)
    np.testing.assert_allclose(one.arrays["means"], features.mean(axis=0)[None], rtol=1e-5)


def test_more_features_than_images_are_shrunk_not_singular() -> None:
    train, held = np.random.default_rng(0).normal(size=(2, 40, 200)).astype(np.float32)
    scores = fit_ood(train, held_out=held).score(np.concatenate([held, 3 * held]))
    assert np.isfinite(scores).all() and scores[40:].min() > scores[:40].max()


def test_order_and_company_do_not_matter() -> None:
    (features, targets), held, strange = toy(), toy(seed=1)[0], toy(n=2100, seed=2)[0]
    order = np.random.default_rng(1).permutation(120)
    first = fit_ood(features, targets=targets, held_out=held)
    again = fit_ood(features[order], targets=targets[order], held_out=held[::-1])
    scores = first.score(strange)
    assert scores.shape == (2100,) and scores.dtype == np.float64
    np.testing.assert_allclose(again.score(strange), scores, rtol=1e-4, atol=1e-4)
    assert again.threshold == pytest.approx(first.threshold, rel=1e-4)
    np.testing.assert_allclose(first.score(strange[1000:1100]), scores[1000:1100], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([first.score(row[None])[0] for row in strange[:60]], scores[:60], rtol=1e-9, atol=1e-9)
    assert first.score(strange[:0]).shape == (0,)


def test_the_conformal_quantile_keeps_its_promise_exactly() -> None:
    """Of n + 1 exchangeable scores, the last one exceeds the threshold of the others in at most a share `rate` of cases."""
    rng = np.random.default_rng(0)
    for n, rate in ((199, 0.01), (99, 0.01), (120, 0.05), (40, 0.1)):
        scores = rng.permutation(n + 1).astype(float)
        exceeded = np.mean([scores[i] > threshold_of(np.delete(scores, i), rate) for i in range(n + 1)])
        assert rate - 1 / (n + 1) < exceeded <= rate + 1e-12


def test_too_few_calibration_images_promise_less() -> None:
    fitted = replace(fitted_on(false_positive_rate=0.01), calibration_patients=40)
    assert threshold_of(np.arange(40.0), 0.01) == 39.0
    assert fitted.guaranteed_rate == pytest.approx(1 / 41)
    assert replace(fitted, calibration_patients=500).guaranteed_rate == 0.01


def test_the_threshold_is_that_of_the_held_out_scores() -> None:
    (features, targets), held = toy(), toy(n=37, seed=1)[0]
    fitted = fit_ood(features, targets=targets, held_out=held, false_positive_rate=0.1)
    assert fitted.calibration_images == 37
    assert fitted.threshold == threshold_of(fitted.score(held), 0.1)
    assert fitted.is_flagged(fitted.score(held)).sum() == 37 - 35, "the threshold itself is not beyond it"


def test_a_patient_with_many_images_counts_once() -> None:
    (features, targets), held = toy(), toy(n=60, seed=1)[0]
    patients = np.minimum(np.arange(60), 30)  # the last one has thirty images
    fitted = fit_ood(features, targets=targets, held_out=held, patients=patients, false_positive_rate=0.1)
    assert (fitted.calibration_images, fitted.calibration_patients) == (60, 31)
    assert fitted.threshold == patient_quantile(fitted.score(held), patients, 0.9)
    assert threshold_of(np.arange(60.0), 0.01, patients) == 59.0, "of 31 patients none is as rare as 1 %"


def test_a_score_comes_back_as_it_was_written(tmp_path: Path) -> None:
    fitted, strange = fitted_on(false_positive_rate=0.02), toy(seed=9)[0]
    write_ood(tmp_path / "n.safetensors", fitted)
    again = read_ood(tmp_path / "n.safetensors")
    assert replace(again, arrays={}) == replace(fitted, arrays={})
    np.testing.assert_array_equal(again.score(strange), fitted.score(strange))
    write_ood(tmp_path / "again.safetensors", again)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "n.safetensors").read_bytes()


def changed(path: Path, about: dict[str, object] | None = None, drop: str = "", **arrays: np.ndarray) -> None:
    """Write a score of Mahalanobis whose metadata or arrays are not what they should be."""
    write_ood(path, fitted_on())
    size = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]
    known = json.loads(metadata["thoraclip"]) | (about or {})
    known.pop(drop, None)
    save_file(load_file(path) | arrays, path, metadata={"thoraclip": json.dumps(known)})


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda p: p.write_bytes(b"not safetensors at all"), "not the arrays that belong there"),
        (lambda p: save_file({"rows": np.ones((2, 2), np.float32)}, p), "no .thoraclip."),
        (lambda p: changed(p, {"kind": "linear-head"}), "kind = .linear-head.: one of"),
        (lambda p: changed(p, {"schema": 9}), "schema = 9: one of"),
        (lambda p: changed(p, {"score": "cosine"}), "score = .cosine.: one of"),
        (
            lambda p: changed(p, rows=np.ones((3, 6), np.float32)),
            r"arrays \['factor', 'means', 'rows'\], not",
        ),
        (lambda p: changed(p, drop="threshold"), "threshold"),
        (lambda p: changed(p, {"threshold": float("nan")}), "NaN is no finite number"),
        (lambda p: changed(p, means=np.ones((3, 5), np.float32)), r"array (factor|means) is float32"),
        (lambda p: changed(p, factor=np.full((6, 6), np.nan, np.float32)), "array factor is not finite"),
        (lambda p: changed(p, factor=np.ones((6, 6))), "array factor is float64"),
    ],
)
def test_files_that_are_no_scores_are_refused(damage: Callable[[Path], object], what: str, tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    write_ood(path, fitted_on())
    damage(path)
    with pytest.raises(ManifestError, match=f"n.safetensors: .*{what}.*; fit it again"):
        read_ood(path)
    with pytest.raises(InputError, match=r"gone\.safetensors: no such out-of-distribution score"):
        read_ood(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"false_positive_rate": 1.0}, ConfigError, r"false_positive_rate = 1\.0"),
        ({"held_out": toy(n=7)[0]}, InputError, "held-out features of 7 images: an out-of-distribution score needs 20"),
        ({"targets": np.full(120, -1)}, InputError, "training features of 0 labelled images: 20 or more"),
        ({"targets": np.zeros(119, np.int64)}, InputError, "targets of 119 images: there are 120"),
    ],
)
def test_bad_settings_are_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    features, targets = toy()
    with pytest.raises(error, match=message):
        fit_ood(features, **{"targets": targets, "held_out": toy(seed=1)[0]} | options)


def test_bad_features_are_refused() -> None:
    features, targets = toy()
    broken, fitted = features.copy(), fitted_on()
    broken[7, 2] = np.nan

    def fit_to(rows: np.ndarray) -> OodScore:
        return fit_ood(rows, targets=targets[: len(rows)], held_out=features)

    for call, message in (
        (
            lambda: fit_to(features[:19]),
            "training features of 19 images: an out-of-distribution score needs 20 or more",
        ),
        (lambda: fit_to(broken), "training features: row 7 is not finite"),
        (lambda: fitted.score(broken), "features to score: row 7 is not finite"),
        (lambda: fitted.score(features[0]), r"features to score of shape \(6,\)"),
        (lambda: fitted.score(features[:, :5]), "features of 5 numbers: the out-of-distribution score was fitted on 6"),
        (lambda: fit_to(np.ones((30, 6), np.float32)), "all the same"),
    ):
        with pytest.raises(InputError, match=message):
            call()


FEATURES = np.random.default_rng(3).normal(size=(300, 6)).astype(np.float32)
FEATURES[120:200] *= 2
ROWS = {"train": np.arange(120), "val": np.arange(120, 200), "test": np.arange(200, 300)}
"""Validation images are spread twice as far as those that are trained on, so that the threshold tells them apart."""
TARGETS, PATIENTS = np.arange(300) % 3, np.arange(300) // 2


def kept_by_a_probe(folder: Path) -> OodScore:
    context: Any = SimpleNamespace(folder=RunFolder(folder), manifest=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("thoraclip.methods.probe.independent_groups", lambda _: PATIENTS)
        _keep_ood(context, (Part(fold=None, **ROWS), FEATURES, None), TARGETS)
    return read_ood(folder / "novelty.safetensors")


def kept_by_a_bundle(folder: Path) -> OodScore:
    """All of an export up to the fitted score, on features that are known."""

    class WrittenError(Exception):
        pass

    def write(_: Path, found: OodScore) -> None:
        raise WrittenError(found)

    labels, scores = LabelSet(("a", "b", "c")), np.random.default_rng(0).dirichlet(np.ones(3), 300)
    original: Any = SimpleNamespace(
        manifest=SimpleNamespace(targets=lambda _: TARGETS), predictions=SimpleNamespace(labels=labels), kind="probe",
        model="m", classifier=SimpleNamespace(preprocess=Preprocess(size=32)), validation=None, alike=(), **ROWS,
    )  # fmt: skip
    session = ModelSession(original, images=1000, seed=0, progress=None, is_int8=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(WrittenError) as written:
        patch.setattr(session, "look", lambda _, rows: (FEATURES[rows], scores[rows]))
        patch.setattr("thoraclip.bundle.format.write_ood_arrays", write)
        patch.setattr(export, "independent_groups", lambda _: PATIENTS)
        runtime: Any = SimpleNamespace(look=None, bundle=SimpleNamespace(facts={}))
        export._finish(folder, session, runtime, {"precision": "fp32", "int8": None}, thumbnails=0)
    return written.value.args[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kept_by", [kept_by_a_probe, kept_by_a_bundle])
def test_the_threshold_comes_from_validation_images(kept_by: Callable[[Path], OodScore], tmp_path: Path) -> None:
    found, (train, val) = kept_by(tmp_path), (FEATURES[ROWS[name]] for name in ("train", "val"))
    expected = fit_ood(train, targets=TARGETS[:120], held_out=val, patients=PATIENTS[ROWS["val"]])
    assert found.threshold == pytest.approx(expected.threshold, rel=1e-6)
    assert (found.calibration_images, found.calibration_patients) == (80, 40)
    np.testing.assert_array_equal(found.arrays["means"], expected.arrays["means"])
