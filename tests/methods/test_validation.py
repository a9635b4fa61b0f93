"""Methods with an encoder keep the scores of their validation images; of probe and trivial, their oracles compare them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tests.conftest import files

import thoraclip
from thoraclip.methods import running
from thoraclip.methods.baseline import Config as BaselineConfig
from thoraclip.methods.baseline import SupervisedStep
from thoraclip.methods.finetune import Config as FinetuneConfig
from thoraclip.methods.parts import parts
from thoraclip.methods.probe import Config as ProbeConfig
from thoraclip.methods.running import is_done, run_method
from thoraclip.methods.zeroshot import Config as ZeroshotConfig
from thoraclip.tables.manifest import Manifest, write_manifest
from thoraclip.tables.predictions import Predictions, read_validation

TRAINING: dict[str, Any] = {
    "batch_size": 4, "chunk_size": 4, "steps": 1, "learning_rate": 3e-3, "precision": "fp32", "val_fraction": 0.25,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(scope="module")
def configs(models: dict[str, str]) -> dict[str, Any]:
    return {
        "zeroshot": ZeroshotConfig(),
        "finetune": FinetuneConfig(model=models["dual"], prompts="reference", **TRAINING),
        "baseline": BaselineConfig(model=models["vit"], **TRAINING),
    }


def rows_of(table: Predictions, manifest: Manifest) -> npt.NDArray[np.int64]:
    ids = list(manifest.column("image_id"))
    return np.array([ids.index(image) for image in table.image_id])


@pytest.mark.parametrize("kind", ["zeroshot", "finetune", "baseline"])
def test_every_fold_keeps_its_own(
    kind: str, configs: dict[str, Any], manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    """What is held out is drawn by the settings' seed and share."""
    config, labels = configs[kind], manifest.label_set()
    seed, share = (1, 0.25) if kind != "zeroshot" else (0, 0.2)
    config = config if kind == "zeroshot" else dataclasses.replace(config, seed=seed)
    run_method(kind, config, manifest, tmp_path / "run", cache=cache)
    found = read_validation(tmp_path / "run")
    wanted = list(parts(manifest, labels, val_fraction=share, seed=seed))
    others = parts(manifest, labels, val_fraction=share, seed=seed + 1)
    assert any(part.val.tolist() != other.val.tolist() for part, other in zip(wanted, others, strict=True))
    assert len(found) == len(wanted) == 3
    for table, part in zip(found, wanted, strict=True):
        assert rows_of(table, manifest).tolist() == part.val.tolist()
        assert set(table.split) == {"val"} and set(table.fold) == {part.fold}
        assert table.target.tolist() == manifest.targets(labels)[part.val].tolist()
        assert table.patient == tuple(manifest.column("patient")[row] for row in part.val)


def test_of_a_split_the_scores_are_those_of_the_tuned_encoder(
    configs: dict[str, Any], split_manifest: Manifest, cache: Path, tmp_path: Path
) -> None:
    config = configs["finetune"]
    run_method("finetune", config, split_manifest, tmp_path / "run", cache=cache)
    assert [f.name for f in sorted((tmp_path / "run").glob("validation*"))] == ["validation.parquet"]
    (found,) = read_validation(tmp_path / "run")
    rows = rows_of(found, split_manifest)
    assert rows.tolist() == [r for r, part in enumerate(split_manifest.column("split")) if part == "val"]
    assert set(found.fold) == {None}
    adapted = ZeroshotConfig(model=config.model, adapter=str(tmp_path / "run"), prompts="reference", precision="fp32")
    all_of_them, _ = run_method(
        "zeroshot", adapted, split_manifest, tmp_path / "z", cache=tmp_path / "run" / "embeddings"
    )
    np.testing.assert_allclose(found.scores, all_of_them.scores[rows], atol=1e-6)


def test_zero_shot_keeps_the_scores_that_it_gives_and_none_without_parts(manifest: Manifest, tmp_path: Path) -> None:
    predictions, _ = run_method("zeroshot", ZeroshotConfig(), manifest, tmp_path / "run")
    for table in read_validation(tmp_path / "run"):
        np.testing.assert_array_equal(table.scores, predictions.scores[rows_of(table, manifest)])
    partly = manifest.with_columns(fold=[None, None, *manifest.column("fold")[2:]])
    run_method(
        "zeroshot", ZeroshotConfig(only_folds=(1,)), partly, tmp_path / "one", cache=tmp_path / "run" / "embeddings"
    )
    assert [table.fold[0] for table in read_validation(tmp_path / "one")] == [1]
    bare = manifest.with_columns(fold=[None] * len(manifest))
    run_method("zeroshot", ZeroshotConfig(), bare, tmp_path / "bare")
    assert read_validation(tmp_path / "bare") == ()
    said: list[str] = []
    lone = bare.with_columns(split=["test"] * len(manifest))
    run_method("zeroshot", ZeroshotConfig(), lone, tmp_path / "lone", announce=said.append)
    assert read_validation(tmp_path / "lone") == () and any("no training image" in line for line in said)


def test_a_run_of_before_is_repeated_but_its_weights_are_not_trained_again(
    configs: dict[str, Any], manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configs["baseline"]
    with monkeypatch.context() as old:
        old.setattr(running, "_SCHEMA", 1)
        run_method("baseline", config, manifest, tmp_path / "run")
    expected = files(tmp_path / "run")
    for file in (tmp_path / "run").glob("validation*"):
        file.unlink()

    def refuse(*_: object) -> float:
        raise RuntimeError("trained again")

    monkeypatch.setattr(SupervisedStep, "backward", refuse)
    assert not is_done("baseline", config, manifest, tmp_path / "run")
    run_method("baseline", config, manifest, tmp_path / "run")
    found = files(tmp_path / "run")
    assert found.pop("done.json") != expected.pop("done.json") and found == expected
    assert is_done("baseline", config, manifest, tmp_path / "run")


@pytest.mark.slow
def test_a_report_of_run_folders_is_calibrated(manifest: Manifest, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", manifest)
    run_method("probe", ProbeConfig(l2_min=0.1, l2_max=0.1, l2_steps=1), manifest, tmp_path / "probe")
    for file in ("probe", "probe/predictions.parquet"):
        report = thoraclip.report(tmp_path / file, out=tmp_path / "report", resamples=100)
        trust = report["methods"][0]["trust"]
        assert trust["validation"]["folds"] == [0, 1, 2] and trust["conformal"]["classes"]
    for stale in (tmp_path / "probe").glob("validation*"):
        stale.unlink()
    bare = thoraclip.report(tmp_path / "probe", out=tmp_path / "report", resamples=100)["methods"][0]["trust"]
    assert "the run kept none" in bare["reason"]
