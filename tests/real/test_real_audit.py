"""The audit on real radiographs: given masks of COVID-QU-Ex, and no masks but a telling frame in covid3-talo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.audit_controls import one
from tests.real.conftest import first_of_each_class, folder

from thoraclip.data.index import IndexResult
from thoraclip.data.splits import split_folds
from thoraclip.methods.audit import AuditConfig, audit
from thoraclip.methods.predictors import read_run
from thoraclip.methods.probe import Config
from thoraclip.methods.running import run_method
from thoraclip.tables.manifest import Manifest

pytestmark = pytest.mark.slow
SETTINGS = AuditConfig(resamples=200, saliency=0, duplicates=False)


def audited(manifest: Manifest, folder: Path, settings: AuditConfig = SETTINGS) -> dict[str, Any]:
    probe = Config(model="tiny-clip", l2_min=0.01, l2_max=1.0, l2_steps=3)
    run_method("probe", probe, manifest, folder / "run", pixels=folder / "pixels")
    return audit(read_run(folder / "run"), manifest, settings, folder / "audit", pixels=folder / "pixels")


def test_every_mask_based_test_runs_on_the_given_masks(covid_qu_ex: IndexResult, tmp_path: Path) -> None:
    manifest = covid_qu_ex.manifest
    assert None not in manifest.column("lung_mask")
    labelled = manifest.take(np.flatnonzero([label is not None for label in manifest.column("label")]))
    plain = labelled.with_columns(split=[None] * len(labelled))
    content = audited(split_folds(plain, folds=2, seed=0), tmp_path, dataclasses.replace(SETTINGS, folds=2))
    lungs = content["lungs"]
    assert lungs["origin"] == "given" and lungs["usable"] == lungs["images"] == len(labelled) and not lungs["set_aside"]
    names = {t["name"]: t for t in content["tests"]}
    for name in ("lungs-removed", "box-removed", "lungs-only"):
        assert names[name]["images"] == len(labelled)
    assert {"background-swapped", "refitted lungs-only-other"} <= set(names)
    assert content["overall"] == "cannot_tell", "so few images cannot show a thing"


def test_frame_and_file_of_covid3_talo_are_named(talo: IndexResult, tmp_path: Path) -> None:
    manifest = talo.manifest.take(np.array(first_of_each_class(talo.manifest, 40)))
    manifest = manifest.with_columns(lung_mask=[None] * len(manifest))
    content = audited(split_folds(manifest, folds=2, seed=0), tmp_path)
    found = {t["name"]: t for t in content["tests"]}
    assert found["background all"]["verdict"] == found["background file"]["verdict"] == "strong"
    assert content["data"] == "strong" and content["overall"] in {"strong", "some", "cannot_tell"}
    assert any("alone name the class with" in sentence for sentence in content["reading"])
    source = next(row for row in content["attributes"] if row["column"] == "source")
    assert "have the same one, 'muhammedtalo/COVID-19'" in source["words"]
    assert content["lungs"]["origin"] == "estimated"


@pytest.mark.parametrize(
    ("case", "has_shortcut"),
    [("adults of one source, labels at random", False), ("normal, children and adults of two sources", True)],
)
def test_labels_at_random_raise_no_alarm_and_two_sources_do(
    case: str, has_shortcut: bool, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(shared, "cxr3")
    monkeypatch.setenv("THORACLIP_SHARED", str(shared))
    row = one(case, 0, 150)
    assert not row["tests"]["control"], "labels shuffled before fitting are named at chance"
    assert (row["data"] == "strong") is has_shortcut
    assert has_shortcut or not {row["classifier"], row["data"]} & {"some", "strong"}
