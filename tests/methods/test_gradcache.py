"""The gradient cache against one plain backward pass over the whole batch: every trainable tensor, dropout on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tests.checkpoints import save_checkpoint
from tests.conftest import examples, write_class_folder
from torch import Tensor, nn

from thoraclip.data.batches import pixel_cache
from thoraclip.data.index import index
from thoraclip.labels import load_prompts
from thoraclip.methods import losses
from thoraclip.methods.contrast import Contrast
from thoraclip.methods.finetune import Config
from thoraclip.methods.gradcache import Tower, cached_backward
from thoraclip.methods.pairs import CaptionTexts, PromptTexts
from thoraclip.methods.processes import ProcessGroup
from thoraclip.methods.training import Batch
from thoraclip.methods.zeroshot import class_vectors
from thoraclip.models.dropout import KeyedDropout
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.lora import add_lora

BATCH = 24
LOSSES = ("infonce", "unicl", "siglip", "prompt_ce")


def make_contrast(
    folder: Path, *, loss: str, family: str = "vision-text-dual-encoder", captions: bool = True, **settings: Any
) -> Contrast:
    """A step on 24 pictures of three classes; the text tower is BERT with its own dropout of 0.1."""
    if not (folder / "images").exists():
        write_class_folder(folder / "images")
    manifest = index(folder / "images", layout="folders").manifest
    labels = manifest.label_set()
    targets = manifest.targets(labels)
    model = folder / family
    if not model.exists():
        save_checkpoint(family, model)
    values = {
        "batch_size": BATCH,
        "chunk_size": BATCH,
        "loss": loss,
        "precision": "fp32",
        "lora_dropout": 0.1,
    } | settings
    config = Config(model=str(model), **values)
    encoder = load_dual_encoder(config.model, precision="fp32")
    tuned = add_lora(encoder, config, seed=3, train_scale=True, train_bias=loss == "siglip",
                     checkpointing=config.gradient_checkpointing)  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    for name, parameter in tuned.encoder_parameters.items():  # B is zero at the start, and then A has no gradient
        if "lora_B" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    prompts = load_prompts("reference" if loss == "prompt_ce" else "chest-xray-ensemble")
    texts: CaptionTexts | PromptTexts = PromptTexts.of([prompts.for_class(n) for n in labels.names])
    if captions and loss != "prompt_ce":  # five captions for 24 images
        rows = list(range(len(manifest)))
        texts = CaptionTexts.of(rows, [f"a chest X-ray, number {row % 5}" for row in rows])
    greys = pixel_cache(manifest, encoder.preprocess, folder / "pixels").pixels
    return Contrast(config, tuned, greys, targets, np.array([0.5, 1.0, 1.5]), texts, ProcessGroup())


def gradients(contrast: Contrast, step: Callable[[Contrast, Batch], float]) -> tuple[float, dict[str, Tensor]]:
    for parameter in contrast.tuned.parameters.values():
        parameter.grad = None
    batch = Batch(7, np.arange(BATCH), np.arange(BATCH))
    value = step(contrast, batch)
    found = {}
    for name, parameter in contrast.tuned.parameters.items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return value, found


def cached(contrast: Contrast, batch: Batch) -> float:
    return contrast.backward(batch)


def plain(contrast: Contrast, batch: Batch) -> float:
    """One forward pass of everything, every caption as often as it stands in the batch, one backward pass."""
    everything = torch.arange(BATCH)
    image = contrast._images_of(batch)(everything)
    if isinstance(contrast.texts, PromptTexts):
        numbers, inverse = contrast.texts_of(batch)
    else:
        numbers, inverse = contrast.texts.draw(batch), np.arange(BATCH)
    text = contrast._texts_of(batch, numbers)(torch.arange(len(numbers)))
    loss = contrast._loss_of(batch, inverse)(image, text)
    loss.backward()
    return float(loss.detach())


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest relative difference (norm of the difference over the norm) of any tensor."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / other[n].norm().clamp(min=1e-12)) for n in one)


def with_chunk(contrast: Contrast, chunk: int, **settings: Any) -> Contrast:
    return dataclasses.replace(contrast, config=dataclasses.replace(contrast.config, chunk_size=chunk, **settings))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradcache")


@pytest.fixture(scope="module", params=LOSSES)
def contrast(work: Path, request: pytest.FixtureRequest) -> Iterator[Contrast]:
    return make_contrast(work, loss=request.param)


@pytest.mark.parametrize("chunk", [24, 5])
def test_the_chunk_never_changes_the_gradient(contrast: Contrast, chunk: int) -> None:
    expected_loss, expected = gradients(contrast, plain)
    loss, found = gradients(with_chunk(contrast, chunk), cached)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert difference(found, expected) < 1e-5
    assert "log_scale" in found
    assert any("visual_projection" in name for name in found)
    assert ("bias" in found) == (contrast.config.loss == "siglip")


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
def test_nor_in_another_family(work: Path, family: str) -> None:
    contrast = make_contrast(work, loss="unicl", family=family, class_weight="balanced")
    assert difference(gradients(with_chunk(contrast, 5), cached)[1], gradients(contrast, plain)[1]) < 1e-5


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_nor_without_captions(work: Path, loss: str) -> None:
    contrast = make_contrast(work, loss=loss, captions=False)
    _, expected = gradients(contrast, plain)
    assert difference(gradients(with_chunk(contrast, 5), cached)[1], expected) < 1e-5


def test_without_captions_the_text_is_the_vector_that_scores(work: Path) -> None:
    contrast = make_contrast(work, loss="unicl", captions=False)
    seen: list[Tensor] = []
    batch = Batch(0, np.arange(BATCH), np.arange(BATCH))
    numbers, inverse = contrast.texts_of(batch)
    with torch.no_grad():
        text = contrast._texts_of(batch, numbers)(torch.arange(len(numbers)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "unicl", lambda image, pairs, *_, **__: seen.append(pairs) or pairs.sum())
        contrast._loss_of(batch, inverse)(text, text)
    vectors = class_vectors([text[torch.tensor(contrast.texts.classes) == c].numpy() for c in range(3)])  # type: ignore[union-attr]
    np.testing.assert_allclose(seen[0].numpy(), vectors[contrast.targets], atol=1e-6)


def test_nor_with_gradient_checkpointing(work: Path) -> None:
    _, expected = gradients(make_contrast(work, loss="unicl"), plain)
    saving = make_contrast(work, loss="unicl", gradient_checkpointing=True, chunk_size=5)
    assert any(getattr(m, "gradient_checkpointing", False) and m.training for m in saving.tuned.encoder.model.modules())
    assert difference(gradients(saving, cached)[1], expected) < 1e-5


def test_nor_under_autocast_beyond_its_rounding(work: Path) -> None:
    contrast = make_contrast(work, loss="unicl")
    half = dataclasses.replace(contrast.tuned, encoder=dataclasses.replace(contrast.tuned.encoder, precision="bf16"))
    contrast = dataclasses.replace(contrast, tuned=half)
    _, expected = gradients(contrast, plain)
    _, found = gradients(with_chunk(contrast, 5), cached)
    assert 1e-6 < difference(found, expected) < 0.05


def test_it_is_red_where_the_mask_forgets_the_sample(contrast: Contrast, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask by the place in the chunk instead of the sample: the gradient then depends on the chunk."""
    _, expected = gradients(contrast, plain)
    drop = KeyedDropout.forward

    def by_place(self: KeyedDropout, x: Tensor) -> Tensor:
        if self.key.samples is not None:
            self.key.samples = torch.arange(len(x))
        return drop(self, x)

    monkeypatch.setattr(KeyedDropout, "forward", by_place)
    assert difference(gradients(with_chunk(contrast, 5), cached)[1], expected) > 0.01


def test_it_is_red_where_the_base_is_in_train_mode(contrast: Contrast) -> None:
    """BERT's own dropout then draws from the stream, another mask in each pass."""
    _, expected = gradients(contrast, plain)
    contrast.tuned.encoder.model.train()
    try:
        assert difference(gradients(with_chunk(contrast, 5), cached)[1], expected) > 0.01
    finally:
        contrast.tuned.encoder.model.eval()


def test_repeated_captions_count_as_often_as_they_stand_there(work: Path) -> None:
    contrast = make_contrast(work, loss="infonce")
    seen: list[int] = []
    original = contrast.tuned.encoder.model.text_model.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        seen.append(len(kwargs["input_ids"]))
        return original(*args, **kwargs)

    contrast.tuned.encoder.model.text_model.forward = counting
    gradients(with_chunk(contrast, 24), cached)
    assert sum(seen) == 5, "each different caption once"


def test_towers_may_have_different_sizes_and_one_may_be_unused() -> None:
    left, right = nn.Linear(3, 2), nn.Linear(4, 2)
    x, y = torch.randn(7, 3), torch.randn(2, 4)
    towers = (Tower(7, lambda rows: left(x[rows])), Tower(2, lambda rows: right(y[rows])))
    value = cached_backward(towers, lambda a, b: (a.sum(dim=0) * a.mean(dim=0)).sum(), chunk_size=3)
    found = left.weight.grad
    assert found is not None
    left.weight.grad = None
    a = left(x)
    expected = (a.sum(dim=0) * a.mean(dim=0)).sum()
    expected.backward()
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(found, left.weight.grad, rtol=1e-4)  # type: ignore[arg-type]
    assert right.weight.grad is None


def test_a_frozen_tower_is_encoded_once() -> None:
    layer, frozen, seen = nn.Linear(3, 2), nn.Linear(4, 2).requires_grad_(False), []
    x, y = torch.randn(7, 3), torch.randn(7, 4)

    def encode(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return frozen(y[rows])

    cached_backward((Tower(7, lambda rows: layer(x[rows])), Tower(7, encode)), lambda a, b: (a * b).sum(), chunk_size=3)
    assert seen == [3, 3, 1]
    assert torch.allclose(layer.bias.grad, frozen(y).sum(dim=0), rtol=1e-4)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_leaves_the_encoders_without_gradient() -> None:
    layer = nn.Linear(3, 2)
    x = torch.randn(7, 3)
    value = cached_backward((Tower(7, lambda rows: layer(x[rows])),), lambda a: a.sum() / 0, chunk_size=3)
    assert not torch.isfinite(value)
    assert layer.weight.grad is None


@example(images=5, texts=3, count=4, chunk=1, seed=0)  # the last of four has two chunks of padding alone
@examples(40)
@given(
    images=st.integers(1, 9),
    texts=st.integers(1, 5),
    count=st.integers(1, 4),
    chunk=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_the_processes_gradients_add_up_to_one_and_padding_adds_nothing(
    images: int, texts: int, count: int, chunk: int, seed: int
) -> None:
    """As many processes as are asked for, one after the other; the padding may fill a chunk, or all that one has."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(3, 2).double(), nn.Linear(4, 2).double()]
    inputs = [torch.randn(n, width, generator=generator).double() for n, width in ((images, 3), (texts, 4))]

    def loss(image: Tensor, text: Tensor) -> Tensor:
        return torch.logsumexp(image @ text.T, dim=1).sum() - (image[:1] * text[-1:]).sum()

    def gradient() -> list[Tensor]:
        made = [torch.zeros_like(p) if p.grad is None else p.grad for layer in layers for p in layer.parameters()]
        for layer in layers:
            layer.zero_grad()
        return made

    loss(*(layer(x) for layer, x in zip(layers, inputs, strict=True))).backward()
    expected, added = gradient(), [torch.zeros_like(p) for layer in layers for p in layer.parameters()]
    for rank in range(count):
        whole = iter([layer(x).detach() for layer, x in zip(layers, inputs, strict=True)])
        place: Any = SimpleNamespace(count=count, _accelerator=SimpleNamespace(process_index=rank))
        group: Any = SimpleNamespace(
            own=lambda rows, place=place: ProcessGroup.own(place, rows), gather=lambda _, rows, whole=whole: next(whole)
        )
        towers = [Tower(len(x), lambda rows, n=n: layers[n](inputs[n][rows])) for n, x in enumerate(inputs)]
        cached_backward(towers, loss, chunk_size=chunk, processes=group)
        added = [one + more for one, more in zip(added, gradient(), strict=True)]
    for found, wanted in zip(added, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
