"""From a finished run to the one classifier that a bundle is made of, and the images that it learned from and is judged on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from thoraclip.errors import ConfigError, InputError, MismatchError
from thoraclip.methods.original import load_original
from thoraclip.methods.predictors import FinishedRun, read_run
from thoraclip.methods.probe import Config as Probe
from thoraclip.methods.running import run_method
from thoraclip.methods.zeroshot import Config as ZeroShot
from thoraclip.models.heads import read_head
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_predictions, read_validation

pytestmark = pytest.mark.usefixtures("plain")
Finish = Callable[..., FinishedRun]


@pytest.fixture
def gaps(manifest: Manifest) -> Manifest:
    """Three folds; one image has no label, and one is in no fold."""
    label, fold = list(manifest.column("label")), list(manifest.column("fold"))
    label[3], fold[12] = None, None
    return manifest.with_columns(label=label, fold=fold)


@pytest.fixture
def finish(tmp_path: Path, cache: Path) -> Finish:
    def finish(manifest: Manifest, config: Any) -> FinishedRun:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        run_method("probe" if isinstance(config, Probe) else "zeroshot", config, manifest, folder, cache=cache)
        return read_run(folder)

    return finish


def rows(manifest: Manifest, name: str, *values: object) -> list[int]:
    label = manifest.column("label")
    return [n for n, value in enumerate(manifest.column(name)) if value in values and label[n] is not None]


def kept(run: FinishedRun, fold: int | None, manifest: Manifest) -> list[int]:
    """The rows whose validation scores a run kept."""
    (own,) = (table for table in read_validation(run.folder) if table.fold[0] == fold)
    return sorted(manifest.column("image_id").index(image) for image in own.image_id)


@pytest.mark.parametrize("refit", [True, False])
def test_a_probe_of_a_fold_comes_with_the_others_heads(refit: bool, gaps: Manifest, finish: Finish) -> None:
    run = finish(gaps, Probe(l2_min=0.1, l2_max=0.1, l2_steps=1, refit=refit))
    for asked, fold in ((None, 0), (1, 1), (2, 2)):
        found = load_original(run, gaps, fold=asked)
        assert (found.name, found.kind, found.model, found.fold) == (run.folder.name, "probe", "tiny-clip", fold)
        assert (found.manifest, found.has_learned) == (gaps, True)
        assert found.classifier.encoder.precision == "fp32"  # type: ignore[union-attr]
        assert found.val.tolist() == kept(run, fold, gaps) and found.test.tolist() == rows(gaps, "fold", fold)
        expected = set(rows(gaps, "fold", 0, 1, 2)) - set(found.val.tolist()) - set(found.test.tolist())
        assert found.train.tolist() == sorted(expected)
        assert (found.validation is not None and found.validation.fold[0] == fold) == refit
        others = [other for other in (0, 1, 2) if other != fold]
        for (head, held), other in zip(found.alike, others, strict=True):
            np.testing.assert_array_equal(head.weight, read_head(run.folder / f"head-fold-{other}.safetensors").weight)
            assert held.tolist() == rows(gaps, "fold", other)
        assert found.predictions.image_id == read_predictions(run.folder / "predictions.parquet").image_id
        assert found.inputs == {"run": run.fingerprint, "manifest": gaps.fingerprint, **run.config.inputs()}
    with pytest.raises(ConfigError, match="--fold 3: .* has no such fold; its folds: 0, 1, 2"):
        load_original(run, gaps, fold=3)


def test_zero_shot_learns_nothing_and_its_head_is_one_for_all_folds(
    gaps: Manifest, split_manifest: Manifest, finish: Finish
) -> None:
    run = finish(gaps, ZeroShot(prompts="reference"))
    found = load_original(run, gaps, fold=1)
    assert (found.fold, found.has_learned, found.validation) == (1, False, None)
    for (head, held), other in zip(found.alike, (0, 2), strict=True):
        assert head is found.classifier.head  # type: ignore[union-attr]
        assert held.tolist() == sorted(set(rows(gaps, "fold", other)) - set(found.val.tolist()))
    found = load_original(finish(split_manifest, ZeroShot(prompts="reference")), split_manifest)
    assert (found.fold, list(found.alike)) == (None, [])
    for part in ("train", "val", "test"):
        assert getattr(found, part).tolist() == rows(split_manifest, "split", part)


def test_other_folds_heads_are_for_one_frozen_encoder_alone(
    gaps: Manifest, finish: Finish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finish(gaps, ZeroShot(prompts="reference"))
    own, asked = run.classifier(0, gaps.label_set()), []
    for name in ("one/adapter", "run/fold-0/adapter", "run/fold-1/adapter"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").write_text("{}")
    one, many = (dataclasses.replace(run.config, adapter=str(tmp_path / name)) for name in ("one", "run"))
    monkeypatch.setattr(FinishedRun, "classifier", lambda self, fold, _: asked.append(self.config.precision) or own)
    for changed, alike, has_learned in (
        (run, 2, False),
        (dataclasses.replace(run, config=one), 2, True),
        (dataclasses.replace(run, config=many), 0, True),
        (dataclasses.replace(run, kind="finetune"), 0, True),
    ):
        found = load_original(changed, gaps)
        assert (len(found.alike), found.has_learned, found.validation) == (alike, has_learned, None)
    assert set(asked) == {"fp32"}
    monkeypatch.setattr(FinishedRun, "classifier", lambda *_: object())
    assert list(load_original(run, gaps).alike) == [], "a network has its own features"


def test_what_no_bundle_is_made_of_is_refused(gaps: Manifest, manifest: Manifest, finish: Finish) -> None:
    run = finish(gaps, ZeroShot(prompts="reference"))
    with pytest.raises(InputError, match="a run of 'trivial' keeps no classifier of pictures"):
        load_original(dataclasses.replace(run, kind="trivial"), gaps)
    with pytest.raises(MismatchError, match="ran on another manifest than this one"):
        load_original(run, manifest)
    for file in run.folder.glob("validation*"):
        file.unlink()
    with pytest.raises(InputError, match="kept no scores of validation images"):
        load_original(run, gaps)
