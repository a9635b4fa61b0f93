"""A method on finished embeddings takes the encoder that made them, unless another one is stated."""

from __future__ import annotations

from pathlib import Path

import pytest

import thoraclip
from thoraclip.errors import InputError, MismatchError
from thoraclip.tables.manifest import Manifest


@pytest.fixture(scope="module")
def features(manifest: Manifest, models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("features")
    thoraclip.embed(manifest, model=models["clip"], geometry="crop", out=folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["probe", "zeroshot"])
def test_the_encoder_is_that_of_the_embeddings(
    kind: str, features: str, manifest: Manifest, models: dict[str, str], tmp_path: Path
) -> None:
    method = getattr(thoraclip, kind)
    predictions, _ = method(manifest, out=tmp_path / "a", embeddings=features)
    stated, _ = method(manifest, out=tmp_path / "b", embeddings=features, model=models["clip"], geometry="crop")
    assert predictions.scores.tobytes() == stated.scores.tobytes()
    assert (tmp_path / "a" / "config.toml").read_bytes() == (tmp_path / "b" / "config.toml").read_bytes()
    for other in ({"model": "tiny-clip"}, {"geometry": "squash"}):
        with pytest.raises(MismatchError, match="another"):
            method(manifest, out=tmp_path / "c", embeddings=features, **other)
    with pytest.raises(InputError, match="nowhere: no finished embeddings"):
        method(manifest, out=tmp_path / "d", embeddings="nowhere")
    assert not (tmp_path / "d").exists()
