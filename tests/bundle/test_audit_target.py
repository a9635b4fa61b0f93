"""A bundle under audit: judged on pictures that it has not learned from, and without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.bundle.conftest import Workshop
from tests.small_install import run_without

from thoraclip import audit
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.runtime import BundleAuditTarget
from thoraclip.data.splits import split_folds
from thoraclip.errors import InputError, ManifestError

SETTINGS = {"images": 34, "saliency": 1, "resamples": 100, "duplicates": False, "masks": "none"}


def test_it_is_judged_on_what_it_has_not_learned_from(workshop: Workshop) -> None:
    target = BundleAuditTarget(open_bundle(workshop.bundle("probe")))
    original, manifest = workshop.original("probe"), workshop.manifest
    ((fold, rows),) = target.parts(manifest)
    assert fold is None and np.array_equal(rows, original.test)
    unsplit = split_folds(manifest.with_columns(split=[None] * len(manifest)), folds=3, seed=1)
    ((_, rows),) = target.parts(unsplit)
    assert np.array_equal(rows, original.test), "whatever the other manifest says of its parts"
    renamed = unsplit.with_columns(sha256=[("0" * 56 + f"{i:08x}") for i in range(len(manifest))])
    ((_, rows),) = target.parts(renamed)
    assert len(rows) == len(manifest), "pictures from elsewhere"
    with pytest.raises(ManifestError, match="that the bundle has not learned from"):
        list(target.parts(manifest.take(original.train)))


def test_another_set_of_classes_is_refused_and_a_manifest_is_needed(workshop: Workshop, tmp_path: Path) -> None:
    target = BundleAuditTarget(open_bundle(workshop.bundle("probe")))
    labels = ["other" if label == "Normal" else label for label in workshop.manifest.column("label")]
    with pytest.raises(ManifestError, match="class 'Normal' has no image"):
        target.label_set(workshop.manifest.with_columns(label=labels))
    with pytest.raises(InputError, match="does not know where its images are; name a manifest with --manifest"):
        audit(workshop.bundle("probe"), out=tmp_path)


@pytest.mark.slow
def test_an_audit_of_a_bundle_is_that_of_its_run(workshop: Workshop, tmp_path: Path) -> None:
    """The same effects; and torch, Transformers and PEFT are never imported."""
    words = {"manifest": str(workshop.root / "manifest.parquet"), "out": str(tmp_path / "b"), **SETTINGS}
    code = f"from thoraclip import audit\naudit({str(workshop.bundle('probe'))!r}, **{words!r})\n"
    done = run_without(["onnx", "onnxscript"], code)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "b" / "audit.json").read_text())
    told = audit(workshop.run("probe"), out=tmp_path / "r", **SETTINGS)
    assert found["kind"] == "probe" and found["images"] == told["images"] > 30
    effects = [{t["name"]: t["effect"] for t in content["tests"]} for content in (found, told)]
    assert effects[0].keys() == effects[1].keys() and len(effects[0]) > 5
    for name, effect in effects[0].items():
        assert effect == pytest.approx(effects[1][name], abs=0.06), name
    assert (tmp_path / "b" / "audit.html").is_file()
