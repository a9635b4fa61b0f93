"""As a user: a folder in open_clip's format is a model like every other."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import Capture
from tests.methods.conftest import make_manifest
from tests.open_clip_folders import BIOMED, WEIGHTS, save

from thoraclip.cli.app import run
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import write_manifest


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open-clip")
    write_manifest(folder / "m.parquet", make_manifest(folder / "images"))
    return folder / "m.parquet"


@pytest.mark.slow
def test_from_open_clips_files_to_bundles(images: Path, tmp_path: Path, capsys: Capture) -> None:
    model, m = str(save(tmp_path / "model", BIOMED)), str(images)

    def does(verb: str, name: str, *settings: str) -> str:
        out = str(tmp_path / name)
        asked = [part for setting in settings for part in ("--set", setting)]
        assert run([verb, m, "--out", out, *asked]) == 0, capsys.readouterr().err
        return out

    assert run(["embed", m, "--model", model, "--out", str(tmp_path / "e")]) == 0
    features = read_embeddings(tmp_path / "e")
    assert features.pooled.shape == (24, 24) and features.projected.shape == (24, 16)
    does("zeroshot", "z", f"model={model}", f"embeddings={tmp_path / 'e'}")
    small = ("batch_size=4", "steps=1", "only_folds=[0]")
    tuned = does("finetune", "f", f"model={model}", "chunk_size=2", *small)
    probe = does("probe", "p", f"model={model}", f"adapter={tuned}", "only_folds=[0]", "l2_steps=2")
    trained = does("baseline", "b", f"model={model}", "augmentation=none", *small)
    picture = str(next((images.parent / "images").rglob("*.png")))
    for number, folder in enumerate((probe, trained)):
        bundle = str(tmp_path / f"bundle-{number}")
        assert run(["export", folder, "--manifest", m, "--out", bundle]) == 0, capsys.readouterr().err
        assert run(["predict", bundle, picture]) == 0


def test_pickled_weights_are_one_line_before_any_work(images: Path, tmp_path: Path, capsys: Capture) -> None:
    model = save(tmp_path / "model", BIOMED)
    (model / WEIGHTS).rename(model / "open_clip_pytorch_model.bin")
    capsys.readouterr()
    for verb in ("zeroshot", "finetune", "probe", "baseline"):
        assert run([verb, str(images), "--out", str(tmp_path / "run"), "--set", f"model={model}"]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and "pickled weights (.bin, .pt) are not read; convert them" in message
    assert not (tmp_path / "run").exists()
