"""Which classifier of a finished run may score which image: none that was trained on it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from thoraclip.data.splits import split_folds
from thoraclip.errors import LeakError, ManifestError, MismatchError
from thoraclip.methods.predictors import FinishedRun, read_run
from thoraclip.methods.probe import Config
from thoraclip.methods.running import run_method
from thoraclip.tables.manifest import Manifest, write_manifest


@pytest.fixture
def study(manifest: Manifest, cache: Path, plain: None, tmp_path: Path) -> tuple[FinishedRun, Manifest]:
    """A probe of three folds, of which one is held out, and its manifest beside it."""
    folds = split_folds(manifest.with_columns(split=[None] * len(manifest)), folds=3, seed=0)
    write_manifest(tmp_path / "study" / "manifest.parquet", folds)
    run_method(
        "probe",
        Config(l2_steps=1, l2_min=1.0, only_folds=(1,)),
        folds,
        tmp_path / "study" / "runs" / "probe",
        cache=cache,
    )
    return read_run(tmp_path / "study" / "runs" / "probe"), folds


def test_of_its_own_manifest_each_fold_scores_what_it_held_out(study: tuple[FinishedRun, Manifest]) -> None:
    run, folds = study
    ((fold, rows),) = run.parts(folds)
    assert fold == 1 and rows.tolist() == [i for i, f in enumerate(folds.column("fold")) if f == 1]


def test_of_another_manifest_what_was_trained_on_is_left_out(study: tuple[FinishedRun, Manifest]) -> None:
    run, folds = study
    held = {sha for sha, f in zip(folds.column("sha256"), folds.column("fold"), strict=True) if f == 1}
    other = split_folds(folds, folds=3, seed=5).with_columns(patient=[f"p{i}" for i in range(len(folds))])
    ((fold, rows),) = run.parts(other)
    assert fold == 1 and {other.column("sha256")[row] for row in rows} == held
    new = other.with_columns(sha256=[f"new{i}" if i < 4 else s for i, s in enumerate(other.column("sha256"))])
    ((_, rows),) = run.parts(new)
    kept = {i for i, s in enumerate(new.column("sha256")) if s in held or i < 4}
    assert set(rows.tolist()) == kept, "images from elsewhere, and those that were held out"
    seen = folds.take(np.array([i for i, f in enumerate(folds.column("fold")) if f != 1]))
    with pytest.raises(ManifestError, match="that the run has not seen"):
        list(run.parts(seen))


def test_without_its_own_manifest_nobody_knows_what_it_was_trained_on(
    study: tuple[FinishedRun, Manifest], tmp_path: Path
) -> None:
    run, folds = study
    shutil.move(run.folder, tmp_path / "alone")
    alone = read_run(tmp_path / "alone")
    other = folds.with_columns(patient=[f"p{i}" for i in range(len(folds))])
    with pytest.raises(LeakError, match="name the manifest that the run ran on"):
        list(alone.parts(other))
    elsewhere = other.with_columns(image_id=[f"x{i}" for i in range(len(folds))], split=["test"] * len(folds))
    ((fold, rows),) = alone.parts(elsewhere)
    assert fold == 1 and len(rows) == len(folds)


def test_another_model_than_the_one_it_ran_with_is_refused(study: tuple[FinishedRun, Manifest]) -> None:
    run, _ = study
    note = run.folder / "provenance.json"
    facts = json.loads(note.read_text())
    facts["inputs"]["model"] = "another"
    note.write_text(json.dumps(facts))
    with pytest.raises(MismatchError, match="its model .'tiny-clip'. is not the one that it ran with"):
        read_run(run.folder)
    assert dataclasses.is_dataclass(run)
