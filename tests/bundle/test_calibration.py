"""What a bundle is fitted with, and that it predicts without what cannot be fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bundle.conftest import Workshop

from thoraclip.bundle.calibration import calibrate, measure
from thoraclip.bundle.opening import open_bundle
from thoraclip.imaging import decode, fit
from thoraclip.posthoc.conformal import fit_thresholds
from thoraclip.posthoc.operating import choose_threshold
from thoraclip.posthoc.scaling import fit_temperature
from thoraclip.proportions import patient_share

NAMES = ("a", "b", "c")


def validation(seed: int = 0, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """(scores f64[n, 3] that are twice too sure, targets i64[n])."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.normal(size=(n, 3))
    chance, scores = (np.exp(k * logits) / np.exp(k * logits).sum(axis=1, keepdims=True) for k in (1, 2))
    return scores, (chance.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1).astype(np.int64)


def calibrated(patients: int = 120, *, right: bool = False) -> dict[str, Any]:
    scores, target = validation()
    return calibrate(scores, scores.argmax(axis=1) if right else target, np.arange(120) % patients, NAMES)


def test_a_temperature_is_fitted_where_patients_are_enough() -> None:
    scores, target = validation()
    found = calibrated(30)
    assert found["temperature"] == fit_temperature(scores, target).temperature and found["not_calibrated"] is None
    assert 1.4 < found["temperature"] < 2.8, "planted: 2"


def test_sets_and_what_they_keep_count_patients() -> None:
    """Forty patients of three images each, who are not equally hard."""
    scores, target = validation()
    order = np.argsort(scores[np.arange(120), target])
    patients = np.empty(120, dtype=np.int64)
    patients[order] = np.arange(120) // 3  # alike images go together
    found = calibrate(scores, target, patients, NAMES)["sets"]
    by_patient, by_image = (fit_thresholds(scores, target, patients=p) for p in (patients, None))
    assert list(found["threshold"].values()) == by_patient.threshold.tolist() != by_image.threshold.tolist()
    assert list(found["patients"].values()) == by_patient.patients.tolist() != found["images"]
    test = measure(scores, np.zeros((120, 2), np.float32), target, patients, sets=by_patient, ood=None)
    right = scores.argmax(axis=1) == target
    assert (test["accuracy"]["low"], test["accuracy"]["high"]) == patient_share(right, patients)
    assert test["accuracy"]["low"] < patient_share(right, np.arange(120))[0] - 0.02


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"patients": 29}, "29 validation patients, and 30 are needed"), ({"right": True}, "it reaches 0.05")],
)
def test_without_a_temperature_the_reason_stands_there_and_thresholds_are_on_scores_as_they_are(
    options: dict[str, Any], reason: str
) -> None:
    found = calibrated(**options)
    assert found["temperature"] is None and reason in found["not_calibrated"]
    scores, target = validation()
    positive = (scores.argmax(axis=1) if options.get("right") else target) == 0
    patients = np.arange(120) % options.get("patients", 120)
    expected = choose_threshold(scores[:, 0], positive, patients=patients)
    assert expected is not None and found["operating_points"]["threshold"]["a"] == expected


def test_a_bundle_that_is_not_calibrated_predicts_as_the_model_does(workshop: Workshop) -> None:
    """The probe gets all validation images right, the ResNet does not."""
    for name, is_calibrated in (("probe", False), ("baseline-resnet", True)):
        opened = open_bundle(workshop.bundle(name))
        bundle, path = opened.bundle, workshop.manifest.paths()[0]
        card = (Path(bundle.folder) / "README.md").read_text(encoding="utf-8")
        assert (bundle.scaling is not None) == is_calibrated == (bundle.facts["not_calibrated"] is None)
        assert ("**Probabilities are not calibrated**" in card) != is_calibrated
        own = opened.look(fit(decode(path).pixels, opened.preprocess)[None])[1][0]
        shown = np.array(list(opened.classify(path).scores.values()))
        assert np.array_equal(shown, own) != is_calibrated
        if not is_calibrated:
            reason = "the best temperature of 45 validation images is not inside 0.05 to 20"
            assert bundle.facts["not_calibrated"].startswith(reason) and reason in card
