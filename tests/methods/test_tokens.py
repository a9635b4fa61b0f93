"""Training from cached tokens is training from images; the cache is told before, found again, and never mixed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.checkpoints import save_tower
from tests.conftest import examples, files
from tests.methods.test_gradcache import BATCH, ROWS, difference, gradients, make_step, with_settings
from tests.methods.threads import in_threads

from benchmarks import tuning
from thoraclip import disk
from thoraclip.errors import InputError
from thoraclip.methods import tokens as module
from thoraclip.methods.contrastive import ContrastiveStep
from thoraclip.methods.finetune import Config
from thoraclip.methods.parts import Part
from thoraclip.methods.running import RunContext, run_method
from thoraclip.methods.tokens import TokenCache, cached_views, make_cache
from thoraclip.methods.training.folds import FoldTraining
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.models.augment import AUGMENTATIONS, augment, drawn_views
from thoraclip.models.dual_encoder import load_vision_encoder
from thoraclip.models.lora import TunableEncoder, add_lora
from thoraclip.models.prefix import FrozenPrefix
from thoraclip.runs import RunFolder
from thoraclip.tables.manifest import Manifest

pytestmark = pytest.mark.usefixtures("plain")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tower("dinov2", tmp_path_factory.mktemp("tokens") / "dinov2"))


@pytest.fixture(scope="module")
def contrast(tmp_path_factory: pytest.TempPathFactory) -> ContrastiveStep:
    return make_step(tmp_path_factory.mktemp("contrast"), loss="unicl", augmentation="none", lora_blocks=1)


def from_tokens(contrast: ContrastiveStep) -> ContrastiveStep:
    encoder = contrast.tuned.encoder
    prefix = FrozenPrefix.of(encoder, 1)
    assert prefix is not None
    made = prefix.tokens(encoder.expand(np.array(contrast.greys))).numpy()
    return dataclasses.replace(contrast, tokens=TokenCache(prefix, {0: (ROWS, made)}, (), (), contrast.config.seed))


@pytest.mark.parametrize("family", ["vision-text-dual-encoder", "siglip2"])
def test_gradients_and_features_are_those_of_images(family: str, contrast: ContrastiveStep, tmp_path: Path) -> None:
    if family != "vision-text-dual-encoder":
        contrast = make_step(tmp_path, loss="siglip", family=family, augmentation="none", lora_blocks=1)
    expected, cached = gradients(contrast), from_tokens(contrast)
    for chunk in (BATCH, 5):
        assert difference(gradients(with_settings(cached, chunk_size=chunk)), expected) < 1e-5
    for one, two in zip(cached._encode(ROWS[::-3]), contrast._encode(ROWS[::-3]), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


@examples(10)
@given(rows=st.lists(st.integers(0, BATCH - 1), max_size=9), chunk=st.integers(1, 9))
def test_whatever_the_batch_and_the_chunk(rows: list[int], chunk: int, contrast: ContrastiveStep) -> None:
    batch = np.array(sorted({*rows, 0, 8, 16}))  # of all classes
    found = gradients(with_settings(from_tokens(contrast), chunk_size=chunk), rows=batch)
    assert difference(found, gradients(contrast, rows=batch)) < 1e-5


def test_a_text_tower_that_is_not_trained_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"towers": "vision", "projections": "freeze", "family": "clip"}
    contrast = make_step(tmp_path, loss="unicl", chunk_size=5, **settings)
    assert not contrast.tuned.trains_text and make_step(tmp_path, loss="unicl", family="clip").tuned.trains_text
    calls: list[int] = []
    real = type(contrast.encoder).text_features
    monkeypatch.setattr(
        type(contrast.encoder), "text_features", lambda self, t: calls.append(len(t["input_ids"])) or real(self, t)
    )
    first = gradients(contrast)
    assert difference(gradients(with_settings(contrast, chunk_size=BATCH)), first) < 1e-5
    calls.clear()
    assert difference(gradients(contrast), first) == 0 and calls == []
    prompts = [("one", "two"), ("three",), ("four",)]
    values = contrast.validate(ROWS, prompts)
    calls.clear()
    assert contrast.validate(ROWS, prompts) == values and calls == []
    contrast.validate(ROWS, prompts[::-1])
    assert calls != [], "other prompts are others"
    vectors = contrast.encoder.encode_texts(contrast.texts.texts)
    np.testing.assert_allclose(contrast._frozen_texts, vectors, atol=1e-6)


def test_a_view_is_drawn_for_seed_step_and_sample() -> None:
    drawn = {step: drawn_views(3, seed=1, step=step, samples=list(range(300))) for step in range(4)}
    for step, views in drawn.items():
        assert set(views) == {1, 2, 3} and min(np.bincount(views)[1:]) > 60
        assert (drawn_views(3, seed=1, step=step, samples=[7, 299]) == views[[7, 299]]).all()
    assert (
        len({tuple(views) for views in drawn.values()} | {tuple(drawn_views(3, seed=2, step=0, samples=range(300)))})
        == 5
    )


def test_which_images_are_in_which_view() -> None:
    targets, split = np.array([0, 1, -1, 0, 1, 0]), Part(None, np.array([0, 3]), np.array([4]), np.array([1]))

    def views(part: Part = split, **settings: Any) -> dict[int, list[int]]:
        config = Config(lora_blocks=1, prefix_views=2, **settings)
        return {view: rows.tolist() for view, rows in cached_views(config, targets, part).items()}

    assert views() == {0: [4], 1: [0, 3], 2: [0, 3]}
    assert views(loss="supcon") == views(select="probe") == {0: [0, 3, 4], 1: [0, 3], 2: [0, 3]}
    assert views(augmentation="none") == {0: [0, 3, 4]}
    fold = dataclasses.replace(split, fold=1)
    assert views(fold) == {view: [0, 1, 3, 4, 5] for view in range(3)}, (
        "of all labelled images, so that folds share them"
    )


FEW: dict[str, Any] = {
    "batch_size": 4,
    "steps": 3,
    "learning_rate": 1e-3,
    "val_fraction": 0.25,
    "loss": "cross_entropy",
}


def training_of(
    model: str, manifest: Manifest, folder: Path, *, log: list[str] | None = None, **settings: Any
) -> tuple[FoldTraining[Config], TunableEncoder, Any]:
    config = Config(model=model, lora_blocks=1, **{"precision": "fp32", **FEW, **settings})
    said = [] if log is None else log
    context = RunContext(manifest, RunFolder(folder / "run"), folder / "cache", folder / "pixels", log=said.append)
    split = np.array(manifest.column("split"))
    part = Part(None, *(np.flatnonzero(split == name) for name in ("train", "val", "test")))
    training = FoldTraining(config, context, part, manifest.label_set(), ProcessGroup())
    tuned = add_lora(load_vision_encoder(model, precision=config.precision), config.lora, seed=0, train_scale=False)
    return training, tuned, training.images(tuned.encoder.preprocess)


def test_the_tokens_are_those_of_the_augmented_views_and_found_again(
    model: str, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    training, tuned, greys = training_of(
        model, split_manifest, tmp_path, prefix_views=2, augmentation="light", log=said
    )
    cache = make_cache(training, tuned, greys)
    assert cache is not None and sorted(cache.views) == [0, 1, 2]
    assert said == ["first 1 of 2 blocks: 42 images and augmented views x 17 tokens x 16 numbers, 0.00 GB"]
    rows, light = training.part.train, AUGMENTATIONS["light"]
    assert light is not None
    encoder = tuned.encoder
    for view in (0, 1, 2):
        images = torch.from_numpy(np.array(greys[rows]))
        if view:
            images = augment(images, light, seed=0, step=view, samples=rows.tolist())
        expected = cache.prefix.tokens(encoder.expand(images))
        torch.testing.assert_close(cache._read(view, rows), expected, atol=1e-6, rtol=1e-6)
    drawn = drawn_views(2, seed=0, step=9, samples=rows.tolist())
    images = torch.stack([torch.from_numpy(np.array(greys[row])) for row in rows])
    seen = torch.cat([augment(images[n : n + 1], light, seed=0, step=int(v), samples=[int(rows[n])]) for n, v in enumerate(drawn)])  # fmt: skip
    torch.testing.assert_close(
        cache.of_batch(9, rows, rows)[0], encoder.image_features(encoder.expand(seen))[0], atol=1e-5, rtol=0
    )
    before = files(tmp_path / "pixels")
    monkeypatch.setattr(FrozenPrefix, "tokens", lambda *_: 1 / 0)
    again = make_cache(training, tuned, greys)
    assert again is not None and again.folders == cache.folders and files(tmp_path / "pixels") == before
    assert len(said) == 1, "nothing is announced where nothing is made"


def test_what_the_tokens_depend_on_makes_others(model: str, split_manifest: Manifest, tmp_path: Path) -> None:
    def folders(**settings: Any) -> tuple[Path, ...]:
        own, given = settings.pop("model", model), {"prefix_views": 1, **settings}
        made = make_cache(*training_of(own, split_manifest, tmp_path, **given))
        assert made is not None
        return tuple(made.folders)

    plain, view = folders()
    assert folders(rank=3, learning_rate=1, loss="supcon") == (plain, view), "what follows does not matter"
    assert folders(seed=1)[0] == plain != view and folders(seed=1)[1] != view
    assert folders(augmentation="light")[0] == plain and folders(augmentation="light")[1] != view
    assert folders(augmentation="none") == (plain,)
    other = str(save_tower("dinov2", tmp_path / "other", seed=1))
    assert not {plain, view} & set(folders(model=other)) and not {plain, view} & set(folders(precision="bf16"))
    training, *rest = training_of(model, split_manifest, tmp_path, prefix_views=0)
    assert make_cache(training, *rest) is None


def test_bf16_keeps_the_upper_half_of_each_number(model: str, split_manifest: Manifest, tmp_path: Path) -> None:
    training, tuned, greys = training_of(model, split_manifest, tmp_path, precision="bf16", augmentation="none")
    cache = make_cache(training, tuned, greys)
    assert cache is not None and cache.views[0][1].dtype == np.uint16
    rows = training.part.val
    with tuned.encoder.autocast():
        exact = cache.prefix.tokens(tuned.encoder.expand(np.array(greys[rows]))).float()
    found = cache._read(0, rows)
    torch.testing.assert_close(found, exact.bfloat16().float(), atol=0, rtol=2**-7)
    assert float((found - exact).norm() / exact.norm()) < 2**-8


def test_a_killed_pass_goes_on_and_several_processes_make_the_same(
    model: str, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 4)
    training, tuned, greys = training_of(model, split_manifest, tmp_path / "one", prefix_views=2)
    make_cache(training, tuned, greys)
    whole = files(tmp_path / "one" / "pixels")
    training, tuned, greys = training_of(model, split_manifest, tmp_path / "two", prefix_views=2)
    real, calls = FrozenPrefix.tokens, list[int]()

    def dying(self: FrozenPrefix, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 8:  # the first is the question of the size
            raise RuntimeError("killed")
        return real(self, pixels)

    monkeypatch.setattr(FrozenPrefix, "tokens", dying)
    with pytest.raises(RuntimeError, match="killed"):
        make_cache(training, tuned, greys)
    calls.clear()
    monkeypatch.setattr(FrozenPrefix, "tokens", lambda self, pixels: calls.append(len(pixels)) or real(self, pixels))
    make_cache(training, tuned, greys)
    assert sum(calls[1:]) == 42 - 22 and files(tmp_path / "two" / "pixels") == whole
    made = [training_of(model, split_manifest, tmp_path / "three", prefix_views=2) for _ in range(3)]

    def share(group: ProcessGroup) -> TokenCache | None:
        training, tuned, greys = made[group._accelerator.process_index]
        return make_cache(dataclasses.replace(training, group=group), tuned, greys)

    for cache in in_threads(3, share):
        assert cache is not None
        for view, (rows, array) in cache.views.items():
            folder = next(f for f, v in zip(cache.folders, cache.views, strict=True) if v == view)
            np.testing.assert_allclose(
                array, np.load(tmp_path / "one" / "pixels" / folder.name / "tokens.npy"), atol=1e-6
            )
            assert len(array) == len(rows)


def test_a_full_disk_is_said_before_the_work(
    model: str, split_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = training_of(model, split_manifest, tmp_path, prefix_views=2)
    needed = 42 * 17 * 16 * 4
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed / 0.95 - 1))
    with pytest.raises(InputError, match="the cache of tokens needs 0.0 GB .*; name a folder .* lower prefix_views"):
        make_cache(*training)
    assert not list((tmp_path / "pixels").glob("tokens-*"))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed / 0.95 + 1))
    assert make_cache(*training) is not None


@pytest.mark.parametrize("chunk", [4, 3])
def test_the_adapter_is_that_of_a_training_without_the_cache(
    chunk: int, model: str, manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And folds share the tokens of all images."""
    made: list[int] = []
    real = FrozenPrefix.tokens
    monkeypatch.setattr(FrozenPrefix, "tokens", lambda self, pixels: made.append(len(pixels)) or real(self, pixels))
    for views in (0, 1):
        config = Config(
            model=model, lora_blocks=1, prefix_views=views, augmentation="none", chunk_size=chunk, only_folds=(0, 2),
            select="last", precision="fp32", **FEW,
        )  # fmt: skip
        run_method("finetune", config, manifest, tmp_path / f"{views}")
    assert made == [1, 24]
    for fold in ("fold-0", "fold-2"):
        one, two = (load_file(tmp_path / v / fold / "adapter" / "adapter_model.safetensors") for v in ("0", "1"))
        assert one.keys() == two.keys()
        for name in one:
            assert float((one[name] - two[name]).norm() / one[name].norm().clamp(min=1e-12)) < 1e-3, name


@pytest.mark.slow
def test_the_benchmark_of_tokens_runs(tmp_path: Path) -> None:
    rows = tuning.bench(tmp_path, quick=True)
    assert [row.unit for row in rows] == ["images/s"] * 2 and all(row.ratio > 0 for row in rows)
