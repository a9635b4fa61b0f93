"""Embeddings: right rows, re-used when valid, the same bytes after an interruption, and which encoder makes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import files

from thoraclip.errors import ImageError, InputError, MismatchError
from thoraclip.imaging import Preprocess, decode, normalise, preprocess
from thoraclip.methods import embed as module
from thoraclip.methods import encoders, engines
from thoraclip.methods.embed import cached_embeddings, embed, usual_batch_size
from thoraclip.methods.encoders import EncoderConfig, ModelConfig, finished_embeddings, load_encoder
from thoraclip.models import dual_encoder
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.files import SHIPPED, description, locate
from thoraclip.models.frozen import FrozenEncoder
from thoraclip.runs import folder_digest
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import Manifest


class FakeEncoder:
    """A cheap stand-in with the encoder's surface; counts its calls and can die on one."""

    def __init__(self, *, dies_at: int | None = None, weights: str = "w", precision: str = "fp32") -> None:
        self.device = torch.device("cpu")
        self.preprocess, self.name = Preprocess(size=16, mean=(0.5,) * 3, std=(0.5,) * 3), "fake"
        self.description = description(weights, precision)
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
    encoder, seen = FakeEncoder(), list[Sequence[int]]()
    done = embed(manifest, encoder, tmp_path / "e", batch_size=5, progress=lambda *given: seen.append(given))
    assert encoder.calls == [5, 5, 5, 5, 4]
    assert seen == [(5, 24), (10, 24), (15, 24), (20, 24), (24, 24)]
    assert done.image_id == tuple(manifest.column("image_id"))
    for row, path in enumerate(manifest.paths()):
        alone = preprocess(decode(path), encoder.preprocess)[None]
        np.testing.assert_allclose(done.pooled[row], encoder.encode_images(alone)[0][0], rtol=1e-6)


def test_a_valid_folder_is_used_again_and_another_encoder_or_other_images_are_embedded_anew(
    manifest: Manifest, tmp_path: Path
) -> None:
    part = manifest.take(np.arange(4))
    for images, weights, calls in ((manifest, "w", [24]), (manifest, "w", []), (manifest, "x", [24]), (part, "x", [4])):
        encoder = FakeEncoder(weights=weights)
        assert embed(images, encoder, tmp_path / "e").image_id == tuple(images.column("image_id"))
        assert encoder.calls == calls


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
    assert rest.calls == [4] * (6 - dies_at), "finished batches are not run again"
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


@pytest.mark.parametrize("batch_size", [4, 3])
def test_a_pass_whose_arrays_are_gone_or_that_had_other_settings_starts_again(
    batch_size: int, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, FakeEncoder(dies_at=2), tmp_path / "e", batch_size=4)
    if batch_size == 4:
        (tmp_path / "e" / "pooled.npy.part").unlink()
    anew = FakeEncoder()
    embed(manifest, anew, tmp_path / "e", batch_size=batch_size)
    assert sum(anew.calls) == len(manifest)


def test_a_death_between_the_last_batch_and_the_renaming_is_mended(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(manifest, FakeEncoder(), tmp_path / "whole")

    def die(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module.ArrayWriter, "finish", die)
        embed(manifest, FakeEncoder(), tmp_path / "broken")
    embed(manifest, FakeEncoder(), tmp_path / "broken", engine=die)
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_features_are_written_at_once_then_once_a_second_and_before_an_error(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, written, append = [100.0], list[int](), module.ArrayWriter.append
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(
        module.ArrayWriter, "append", lambda self, given: (written.append(len(given["pooled"])), append(self, given))
    )

    def slow(features: Any) -> Any:
        now[0] += 0.5
        return features

    encoder = FakeEncoder(dies_at=11)
    with pytest.raises(KeyboardInterrupt):
        embed(manifest, encoder, tmp_path / "e", engine=lambda batches: (slow(encoder.encode_greys(
            np.zeros((len(rows), 16, 16), np.uint8) + 9, check=rows.start == 0)) for rows in engines.cut(24, 2)))  # fmt: skip
    assert written == [2, 4, 4, 4, 4, 4]
    assert json.loads((tmp_path / "e" / "progress.json").read_text())["rows"] == 22


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


def test_the_pixel_cache_changes_no_bit_and_what_is_made_is_told(own_manifest: Manifest, tmp_path: Path) -> None:
    few = own_manifest.take(np.arange(6))
    encoder = FrozenEncoder.of(load_dual_encoder("tiny-clip", precision="bf16", device="cpu"))
    said, seen = list[str](), list[Sequence[int]]()
    cache: dict[str, Any] = {"pixels": tmp_path / "pixels", "progress": lambda *given: seen.append(given)}
    for name, given in (("direct", {}), ("cached", cache), ("warm", cache)):
        if name == "warm":
            assert seen == [(6, 6)] * 2, "of decoding, and of encoding"
            for path in few.paths():
                path.unlink()  # a warm cache needs no picture
        embed(few, encoder, tmp_path / name, batch_size=6, announce=said.append, **given)
        embed(few, encoder, tmp_path / name, batch_size=6, announce=said.append)
        assert files(tmp_path / name) == files(tmp_path / "direct")
    assert said == [f"embedding: {encoder.arithmetic}; batches of 6"] * 3, "not when they are read again"


@pytest.mark.parametrize("pixels", [True, False])
def test_some_rows_alone_are_encoded_from_the_pixel_cache_of_all(
    pixels: bool, manifest: Manifest, tmp_path: Path
) -> None:
    encoder, rows = FakeEncoder(), np.array([7, 2, 20])
    cache = tmp_path / "pixels" if pixels else None
    some = embed(manifest, encoder, tmp_path / "some", batch_size=2, rows=rows, pixels=cache)
    assert encoder.calls == [2, 1]
    assert some.image_id == tuple(manifest.take(rows).column("image_id"))
    every = embed(manifest, FakeEncoder(), tmp_path / "every", pixels=cache)
    np.testing.assert_allclose(some.pooled, every.pooled[rows], rtol=1e-6)
    assert cache is None or len(list(cache.iterdir())) == 1


def test_named_embeddings_must_belong_to_encoder_precision_and_geometry(manifest: Manifest, tmp_path: Path) -> None:
    """With `auto` those of either precision do, whatever the device would choose."""
    for made in ("fp32", "bf16"):
        embed(manifest, FakeEncoder(precision=made), tmp_path / made)
        for here in ("fp32", "bf16"):
            for asked in ("auto", here):
                config = EncoderConfig(embeddings=str(tmp_path / made), precision=asked)
                encoder: Any = FakeEncoder(precision=here)
                if asked == "auto" or made == here:
                    found = cached_embeddings(config, manifest, tmp_path / "c", encoder=encoder)
                    assert found.image_id == tuple(manifest.column("image_id"))
                    assert encoder.calls == [] and not (tmp_path / "c").exists()
                else:
                    with pytest.raises(MismatchError, match="another encoder or precision than model 'tiny-clip'"):
                        cached_embeddings(config, manifest, tmp_path / "c", encoder=encoder)
    with pytest.raises(MismatchError, match="another encoder"):
        cached_embeddings(config, manifest, tmp_path, encoder=FakeEncoder(weights="x"))
    note = tmp_path / "bf16" / "embeddings.json"
    content = json.loads(note.read_text())
    content["preprocess"]["geometry"] = "crop"
    note.write_text(json.dumps(content))
    with pytest.raises(MismatchError, match="geometry 'crop'"):
        cached_embeddings(config, manifest, tmp_path, encoder=FakeEncoder(precision="bf16"))
    content["encoder"]["precision"] = "fp16"
    note.write_text(json.dumps(content))
    with pytest.raises(MismatchError, match="another encoder"):
        cached_embeddings(EncoderConfig(embeddings=str(note.parent)), manifest, tmp_path, encoder=FakeEncoder())


def test_a_cache_has_a_folder_for_each_encoder_and_embeds_as_it_is_told(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(module, "load_encoder", lambda config: FakeEncoder(weights=config.model))
    monkeypatch.setattr(module, "embed", lambda *given, **named: calls.append((given, named)))
    named: dict[str, Any] = {
        "rows": np.arange(2),
        "pixels": tmp_path / "p",
        "progress": lambda *_: None,
        "announce": lambda _: None,
    }
    for model in ("a", "b", "a"):
        cached_embeddings(EncoderConfig(model=model, batch_size=7, runtime="torch"), manifest, tmp_path / "c", **named)
    folders = [given[2] for given, _ in calls]
    assert folders[0] == folders[2] != folders[1]
    assert all(folder.parent == tmp_path / "c" and len(folder.name) == 12 for folder in folders)
    assert all(given[0] is manifest and more == {"batch_size": 7, "runtime": "torch", **named} for given, more in calls)


def test_the_last_encoder_is_kept_as_long_as_its_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(
        dual_encoder, "load_vision_encoder", lambda model, **given: loaded.append((model, given)) or object()
    )
    monkeypatch.setattr(FrozenEncoder, "of", lambda encoder: encoder)
    for name in ("model", "adapter"):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "weights").write_text("1")
    given = {"adapter": str(tmp_path / "adapter"), "adapter_scale": 0.5, "geometry": "crop", "remedy": "centre"}
    given |= {"precision": "bf16"}
    config = EncoderConfig(model=str(tmp_path / "model"), **given)  # type: ignore[arg-type]
    first = load_encoder(config)
    assert load_encoder(config) is first and loaded == [(config.model, given)]
    for name in ("model", "adapter"):
        (tmp_path / name / "inner" / "weights").write_text("22")
        assert load_encoder(config) is not first
        first = load_encoder(config)
    assert len(loaded) == 3
    encoders._load.cache_clear()


class TestConfig:
    def test_the_bounds_are_fine(self) -> None:
        assert [EncoderConfig(adapter_scale=share).adapter_scale for share in (0, 1)] == [0, 1]
        assert (EncoderConfig().batch_size, EncoderConfig().adapter_scale) == (0, 1.0)
        assert (usual_batch_size(torch.device("cpu")), usual_batch_size(torch.device("cuda"))) == (32, 256)

    def test_its_inputs_are_the_files_that_it_names(self, manifest: Manifest, tmp_path: Path) -> None:
        model = {"model": folder_digest(Path(locate(SHIPPED[0])[0]))}
        assert ModelConfig(model="owner/name").inputs() == {"model": "Hub: owner/name"}
        assert EncoderConfig().inputs() == EncoderConfig(embeddings=str(tmp_path)).inputs() == model
        embed(manifest, FakeEncoder(), tmp_path / "e")
        named = EncoderConfig(embeddings=str(tmp_path / "e")).inputs()
        assert named == model | {"embeddings": folder_digest(tmp_path / "e" / "embeddings.json")}
        digests = set()
        for fold in (0, 1):
            adapter = tmp_path / "run" / f"fold-{fold}" / "adapter"
            adapter.mkdir(parents=True)
            (adapter / "adapter_config.json").write_text("{}")
            digests.add(EncoderConfig(adapter=str(tmp_path / "run")).inputs()["adapter"])
        assert len(digests) == 2, "of all folds"

    def test_finished_features_are_taken_only_where_files_alone_prove_that_the_model_made_them(
        self, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("transformers.utils.cached_file", lambda *_: 1 / 0)  # for a folder the Hub is not asked
        encoder = load_dual_encoder("tiny-clip", precision="fp32")
        embed(manifest, encoder, tmp_path / "e")
        given: dict[str, Any] = {"embeddings": str(tmp_path / "e")}
        for more in ({}, {"precision": "fp32"}):
            found = finished_embeddings(EncoderConfig(**given | more))
            assert found is not None and found.image_id == tuple(manifest.column("image_id"))
        for wrong in (
            {"embeddings": ""}, {"adapter": "a"}, {"precision": "bf16"}, {"geometry": "pad"},
            {"model": "no/such-model"}, {"model": str(tmp_path)},
        ):  # fmt: skip
            assert finished_embeddings(EncoderConfig(**given | wrong)) is None, wrong
        note = tmp_path / "e" / "embeddings.json"
        content = json.loads(note.read_text())
        for name, value in (("weights", "x"), ("precision", "fp16")):
            note.write_text(json.dumps(content | {"encoder": content["encoder"] | {name: value}}))
            assert finished_embeddings(EncoderConfig(**given)) is None, name
