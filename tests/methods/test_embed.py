"""Embeddings: right rows, re-used when valid, the same bytes after an interruption."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import files

from thoraclip.errors import ConfigError, ImageError, InputError, MismatchError
from thoraclip.imaging import Preprocess, decode, normalise, preprocess
from thoraclip.methods import embed as module
from thoraclip.methods import engines
from thoraclip.methods.embed import EncoderConfig, cached_embeddings, embed, usual_batch_size
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.frozen import FrozenEncoder
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import Manifest


class FakeEncoder:
    """A cheap stand-in with the encoder's surface; counts its calls and can die on one."""

    def __init__(self, *, dies_at: int | None = None, weights: str = "w") -> None:
        self.device = torch.device("cpu")
        self.preprocess = Preprocess(size=16, mean=(0.5,) * 3, std=(0.5,) * 3)
        self.description = {"weights": weights, "precision": "fp32"}
        self.calls: list[int] = []
        self._dies_at = dies_at

    def encode_greys(self, greys: np.ndarray, *, check: bool = False) -> tuple[np.ndarray, np.ndarray]:
        assert check == (not self.calls), "the gate looks at the first batch"
        return self.encode_images(normalise(greys, self.preprocess))

    def encode_images(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._dies_at is not None and len(self.calls) == self._dies_at:
            raise KeyboardInterrupt
        self.calls.append(len(pixels))
        pooled = pixels[:, 0].reshape(len(pixels), 16, 16).mean(axis=2)
        return pooled, pooled[:, :4] / np.linalg.norm(pooled[:, :4], axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted here is counted in order; `test_engines` has several."""
    monkeypatch.setattr(engines, "threads_here", lambda: 1)


def test_rows_are_the_pictures_own_features(manifest: Manifest, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    done = embed(manifest, encoder, tmp_path / "e", batch_size=5)
    assert done.image_id == tuple(manifest.column("image_id"))
    for row, path in enumerate(manifest.paths()):
        alone = preprocess(decode(path), encoder.preprocess)[None]
        np.testing.assert_allclose(done.pooled[row], encoder.encode_images(alone)[0][0], rtol=1e-6)


def test_a_valid_folder_is_used_again(manifest: Manifest, tmp_path: Path) -> None:
    embed(manifest, FakeEncoder(), tmp_path / "e")
    again = FakeEncoder()
    embed(manifest, again, tmp_path / "e")
    assert again.calls == []


def test_another_encoder_or_other_images_are_embedded_anew(manifest: Manifest, tmp_path: Path) -> None:
    embed(manifest, FakeEncoder(), tmp_path / "e")
    other = FakeEncoder(weights="another")
    embed(manifest, other, tmp_path / "e")
    fewer = FakeEncoder(weights="another")
    part = manifest.take(np.arange(4))
    assert embed(part, fewer, tmp_path / "e").image_id == tuple(part.column("image_id"))
    assert sum(other.calls) == len(manifest)
    assert sum(fewer.calls) == 4


@pytest.mark.parametrize("dies_at", [0, 3])
def test_an_interrupted_pass_goes_on_and_ends_with_the_same_bytes(
    dies_at: int, manifest: Manifest, tmp_path: Path
) -> None:
    embed(manifest, FakeEncoder(), tmp_path / "whole", batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, FakeEncoder(dies_at=dies_at), tmp_path / "broken", batch_size=4)
    with pytest.raises(InputError, match="no finished embeddings"):
        read_embeddings(tmp_path / "broken")
    rest = FakeEncoder()
    embed(manifest, rest, tmp_path / "broken", batch_size=4)
    assert sum(rest.calls) == len(manifest) - 4 * dies_at, "finished batches are not run again"
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_begun_pass_whose_arrays_are_gone_starts_again(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, FakeEncoder(dies_at=2), tmp_path / "e", batch_size=4)
    (tmp_path / "e" / "pooled.npy.part").unlink()
    anew = FakeEncoder()
    embed(manifest, anew, tmp_path / "e", batch_size=4)
    assert sum(anew.calls) == len(manifest)


def test_a_pass_begun_with_other_settings_is_not_continued(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, FakeEncoder(dies_at=2), tmp_path / "e", batch_size=4)
    anew = FakeEncoder()
    embed(manifest, anew, tmp_path / "e", batch_size=3)
    assert sum(anew.calls) == len(manifest)


def test_a_death_between_the_last_batch_and_the_renaming_is_mended(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(manifest, FakeEncoder(), tmp_path / "whole")

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.ArrayWriter, "finish", die)
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, FakeEncoder(), tmp_path / "broken")
    monkeypatch.undo()
    rest = FakeEncoder()
    embed(manifest, rest, tmp_path / "broken")
    assert rest.calls == []
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_progress_reaches_the_total(manifest: Manifest, tmp_path: Path) -> None:
    seen: list[Sequence[int]] = []
    embed(
        manifest, FakeEncoder(), tmp_path / "e", batch_size=7, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (len(manifest), len(manifest))
    assert [s[0] for s in seen] == sorted({s[0] for s in seen})


def test_pictures_normalised_twice_are_refused(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference study's fault, planted: what comes out of one normalisation goes through another."""
    encoder = load_dual_encoder("tiny-clip", precision="fp32")
    once = DualEncoder.expand
    monkeypatch.setattr(DualEncoder, "expand", lambda self, greys: (once(self, greys) / 255 - 0.5) / 0.5)
    with pytest.raises(ImageError, match="normalise once|normalised twice"):
        embed(manifest, encoder, tmp_path / "e")
    assert not (tmp_path / "e" / "embeddings.json").exists()


def test_blank_pictures_are_refused_at_the_door(own_manifest: Manifest, tmp_path: Path) -> None:
    manifest = own_manifest
    for path in manifest.paths()[:8]:
        Image.fromarray(np.full((9, 9), 77, np.uint8)).save(path)
    blank = manifest.with_columns(sha256=[None] * len(manifest))
    with pytest.raises(ImageError, match="every picture is blank"):
        embed(blank, load_dual_encoder("tiny-clip", precision="fp32"), tmp_path / "e", batch_size=8)


@pytest.mark.parametrize("precision", ["bf16"])
def test_the_pixel_cache_changes_no_bit(own_manifest: Manifest, tmp_path: Path, precision: str) -> None:
    manifest = own_manifest
    encoder = load_dual_encoder("tiny-clip", precision=precision)
    direct = embed(manifest, encoder, tmp_path / "direct", batch_size=5)
    cached = embed(manifest, encoder, tmp_path / "cached", batch_size=5, pixels=tmp_path / "pixels")
    for path in manifest.paths():
        path.unlink()  # a warm cache needs no picture
    warm = embed(manifest, encoder, tmp_path / "warm", batch_size=5, pixels=tmp_path / "pixels")
    for name in ("pooled", "projected"):
        expected = getattr(direct, name).tobytes()
        assert getattr(cached, name).tobytes() == getattr(warm, name).tobytes() == expected


def test_named_embeddings_must_belong_to_encoder_and_geometry(manifest: Manifest, tmp_path: Path) -> None:
    embed(manifest, FakeEncoder(), tmp_path / "e")
    config = EncoderConfig(embeddings=str(tmp_path / "e"))
    assert cached_embeddings(config, manifest, tmp_path, encoder=FakeEncoder()).image_id == tuple(
        manifest.column("image_id")
    )
    with pytest.raises(MismatchError, match="another encoder"):
        cached_embeddings(config, manifest, tmp_path, encoder=FakeEncoder(weights="x"))
    content = json.loads((tmp_path / "e" / "embeddings.json").read_text())
    content["preprocess"]["geometry"] = "crop"
    (tmp_path / "e" / "embeddings.json").write_text(json.dumps(content))
    with pytest.raises(MismatchError, match="geometry 'crop'"):
        cached_embeddings(config, manifest, tmp_path, encoder=FakeEncoder())


def test_a_negative_batch_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size = -1: 1 or more"):
        EncoderConfig(batch_size=-1)


def test_a_batch_size_of_zero_is_the_devices_own() -> None:
    assert EncoderConfig().batch_size == 0
    assert (usual_batch_size(torch.device("cpu")), usual_batch_size(torch.device("cuda"))) == (32, 256)


def test_what_was_encoded_before_an_error_is_kept_though_no_second_has_passed(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_WRITES", 1e9)
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, FakeEncoder(dies_at=3), tmp_path / "e", batch_size=4)
    assert json.loads((tmp_path / "e" / "progress.json").read_text())["rows"] == 12


def test_how_the_features_are_made_is_told(manifest: Manifest, tmp_path: Path) -> None:
    said: list[str] = []
    encoder = FrozenEncoder.of(load_dual_encoder("tiny-clip", precision="bf16", device="cpu"))
    embed(manifest, encoder, tmp_path / "e", announce=said.append)
    embed(manifest, encoder, tmp_path / "e", announce=said.append)
    assert said == [f"embedding: {encoder.arithmetic}; batches of 32"], (
        "told when they are made, not when they are read again"
    )
