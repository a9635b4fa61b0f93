"""The gradient cache against one plain backward pass over the whole batch: every trainable tensor, dropout on."""

from __future__ import annotations

import copy
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
from sklearn.metrics import accuracy_score, f1_score
from tests.checkpoints import save_checkpoint
from tests.conftest import examples, write_class_folder
from tests.methods.threads import in_threads
from torch import Tensor, nn

from thoraclip.data.batches import pixel_cache
from thoraclip.data.index import index
from thoraclip.labels import load_prompts
from thoraclip.methods import image_step as module
from thoraclip.methods import losses
from thoraclip.methods.contrastive import CaptionTexts, ContrastiveStep, PromptTexts
from thoraclip.methods.finetune import Config
from thoraclip.methods.gradcache import Tower, cached_backward
from thoraclip.methods.training import images as training_images
from thoraclip.methods.training.processes import ProcessGroup
from thoraclip.methods.training.sampler import Batch
from thoraclip.methods.zeroshot import class_vectors
from thoraclip.models.augment import AUGMENTATIONS
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.lora import add_lora

BATCH = 24
LOSSES = ("infonce", "unicl", "siglip", "prompt_ce")
ROWS = np.arange(BATCH)


def make_step(
    folder: Path, *, loss: str, family: str = "vision-text-dual-encoder", captions: bool = True, **settings: Any
) -> ContrastiveStep:
    """A step on 24 pictures of three classes; the text tower is BERT with its own dropout of 0.1."""
    if not (folder / "images").exists():
        write_class_folder(folder / "images")
    manifest = index(folder / "images", layout="folders").manifest
    labels = manifest.label_set()
    model = folder / family
    if not model.exists():
        save_checkpoint(family, model)
    values = {"batch_size": BATCH, "chunk_size": BATCH, "precision": "fp32", "lora_dropout": 0.1}
    config = Config(model=str(model), loss=loss, **values | settings)
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
        texts = CaptionTexts.of(ROWS.tolist(), [f"a chest X-ray, number {row % 5}" for row in ROWS])
    greys = pixel_cache(manifest, encoder.preprocess, folder / "pixels").arrays["pixels"]
    weight = None if config.class_weight == "none" else np.array([0.5, 1.0, 1.5])[manifest.targets(labels)]
    return ContrastiveStep(
        config=config, loss=loss, logit_scale_max=config.logit_scale_max, tuned=tuned, greys=greys,
        targets=manifest.targets(labels), texts=texts, group=ProcessGroup(), weight=weight,
    )  # fmt: skip


def with_settings(contrast: ContrastiveStep, **settings: Any) -> ContrastiveStep:
    return dataclasses.replace(contrast, config=dataclasses.replace(contrast.config, **settings))


def gradients(
    contrast: ContrastiveStep,
    step: Callable[[ContrastiveStep, Batch], float] = ContrastiveStep.backward,
    rows: np.ndarray = ROWS,
) -> dict[str, Tensor]:
    """Of every trainable tensor, and the loss."""
    for parameter in contrast.tuned.parameters.values():
        parameter.grad = None
    found = {"loss": torch.tensor(step(contrast, Batch(7, rows, rows)))}
    for name, parameter in contrast.tuned.parameters.items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return found


def plain(contrast: ContrastiveStep, batch: Batch) -> float:
    """One forward pass of everything, every caption as often as it stands in the batch, one backward pass."""
    image = contrast._images_of(batch)(torch.arange(BATCH))
    if isinstance(contrast.texts, PromptTexts):
        numbers, inverse = contrast.texts_of(batch)
    else:
        numbers, inverse = np.array([contrast.texts.of_row[row] for row in batch.rows.tolist()]), ROWS
    text = contrast._texts_of(batch, numbers)(torch.arange(len(numbers)))
    loss = contrast._loss_of(batch, inverse)(image, text)
    loss.backward()
    return float(loss.detach())


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest relative difference (norm of the difference over the norm) of any tensor."""
    assert one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / other[n].norm().clamp(min=1e-12)) for n in one)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradcache")


@pytest.fixture(scope="module")
def captioned(work: Path) -> ContrastiveStep:
    return make_step(work, loss="unicl")


@pytest.fixture(scope="module", params=LOSSES)
def contrast(work: Path, request: pytest.FixtureRequest) -> Iterator[ContrastiveStep]:
    return make_step(work, loss=request.param)


class TestContrast:
    """The parts of a step, each against what it must be."""

    def test_the_chunk_never_changes_the_gradient(self, contrast: ContrastiveStep) -> None:
        expected = gradients(contrast, plain)
        for chunk in (24, 5):
            assert difference(gradients(with_settings(contrast, chunk_size=chunk)), expected) < 1e-5
        assert {"log_scale", "bias"} & expected.keys() == {"log_scale"} | (
            {"bias"} if contrast.loss == "siglip" else set()
        )
        assert any("visual_projection" in name for name in expected)

    @pytest.mark.parametrize(
        "settings",
        [{"family": "clip"}, {"family": "siglip"}, {"family": "siglip2"}, {"captions": False}, {"gradient_checkpointing": True}],
    )  # fmt: skip
    def test_nor_in_another_family_without_captions_or_with_gradient_checkpointing(
        self, settings: dict[str, Any], work: Path
    ) -> None:
        saving = settings.get("gradient_checkpointing", False)
        one = make_step(work, loss="siglip", **settings | {"gradient_checkpointing": False})
        other = make_step(work, loss="siglip", chunk_size=5, **settings)
        modules = other.tuned.encoder.model.modules()
        assert saving == any(getattr(m, "gradient_checkpointing", False) and m.training for m in modules)
        assert difference(gradients(other), gradients(one, plain)) < 1e-5

    def test_nor_under_autocast_beyond_its_rounding(self, work: Path) -> None:
        contrast = make_step(work, loss="unicl")
        half = dataclasses.replace(contrast.tuned.encoder, precision="bf16")
        contrast = dataclasses.replace(contrast, tuned=dataclasses.replace(contrast.tuned, encoder=half))
        assert 1e-6 < difference(gradients(with_settings(contrast, chunk_size=5)), gradients(contrast, plain)) < 0.05

    def test_several_processes_have_the_gradient_of_one(self, work: Path) -> None:
        """23 images, a number that none divides, and five texts; the last process has one of these, and one of padding."""
        made = [make_step(work, loss="siglip", chunk_size=5) for _ in range(4)]
        expected = gradients(made.pop(), rows=ROWS[:-1])

        def work_of(group: ProcessGroup) -> dict[str, Tensor]:
            return gradients(dataclasses.replace(made[group._accelerator.process_index], group=group), rows=ROWS[:-1])

        assert max(difference(found, expected) for found in in_threads(3, work_of)) < 1e-5

    def test_each_row_is_its_own_picture_and_text_in_whatever_process(self, work: Path) -> None:
        contrast = make_step(work, loss="unicl", lora_dropout=0.0, augmentation="none")
        rows = np.roll(ROWS[::-1], 5)[:-1]
        batch = Batch(7, rows, rows)
        _, images = contrast.tuned.encoder.encode_greys(np.array(contrast.greys[rows]))

        def check(group: ProcessGroup) -> list[int]:
            own, real = group.own(len(rows))
            with torch.no_grad():
                found = dataclasses.replace(contrast, group=group)._images_of(batch)(own[-3:])
            np.testing.assert_allclose(found, images[own[-3:]], atol=1e-5)
            return own[:real].tolist()

        assert [n for own in in_threads(3, check) for n in own] == list(range(23))
        numbers, inverse = contrast.texts_of(batch)
        texts = [contrast.texts.texts[n] for n in numbers]
        assert [texts[n] for n in inverse] == [f"a chest X-ray, number {row % 5}" for row in rows] and len(texts) == 5
        with torch.no_grad():
            found = contrast._texts_of(batch, numbers)(torch.tensor([4, 1]))
        np.testing.assert_allclose(found, contrast.tuned.encoder.encode_texts([texts[4], texts[1]]), atol=1e-5)

    def test_dropout_is_of_step_and_sample_in_both_towers_and_ends_with_the_step(
        self, captioned: ContrastiveStep
    ) -> None:
        """Drawn again within an epoch, an image is another sample and has another mask."""
        contrast, five, some = with_settings(captioned, augmentation="none"), torch.arange(5), torch.tensor([3, 1])
        scored, others = contrast._encode(ROWS), ROWS + 100 * (ROWS % 2)

        def images(step: int, rows: Tensor, samples: np.ndarray = ROWS) -> Tensor:
            return contrast._images_of(Batch(step, ROWS, samples))(rows)

        def texts(step: int, rows: Tensor) -> Tensor:
            return contrast._texts_of(Batch(step, ROWS, ROWS), ROWS[:5])(rows)

        with torch.no_grad():
            for tower in (images, texts):
                torch.testing.assert_close(tower(7, some), tower(7, five)[some], atol=1e-5, rtol=0)
                assert not torch.allclose(tower(7, some), tower(8, some), atol=1e-3)
            same = (images(7, five) - images(7, five, others)).abs().amax(dim=1) < 1e-4
        assert same.tolist() == [True, False, True, False, True]
        gradients(contrast)
        assert all(np.array_equal(one, two) for one, two in zip(scored, contrast._encode(ROWS), strict=True))

    @pytest.mark.parametrize("augmentation", ["light", "none"])
    def test_images_are_augmented_by_seed_step_and_sample_where_asked_for(
        self, augmentation: str, captioned: ContrastiveStep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        contrast, calls = with_settings(captioned, augmentation=augmentation, seed=9), list[Any]()
        monkeypatch.setattr(training_images, "augment", lambda greys, *given, **named: calls.append((greys.tolist(), *given, named)) or greys)  # fmt: skip
        contrast._images_of(Batch(7, ROWS[3:5], ROWS[3:5] + 100))
        chosen = AUGMENTATIONS[augmentation]
        expected = (contrast.greys[3:5].tolist(), chosen, {"seed": 9, "step": 7, "samples": [103, 104]})
        assert calls == ([expected] if chosen else [])

    @pytest.mark.parametrize("weight", ["none", "balanced"])
    def test_the_loss_is_the_one_that_is_named_of_the_texts_that_score(
        self, weight: str, contrast: ContrastiveStep
    ) -> None:
        """Without captions an image's text is its class's vector; weights are those of the images."""
        weights = np.linspace(0.5, 1.5, len(contrast.targets)) if weight == "balanced" else None
        contrast, rows = dataclasses.replace(contrast, weight=weights), ROWS[[3, 20, 9, 10, 17]]
        batch, target = Batch(0, rows, rows), torch.from_numpy(contrast.targets[rows])
        each = None if weights is None else torch.from_numpy(weights[rows]).float()
        scale, bias = contrast.tuned.log_scale.exp(), contrast.tuned.bias
        prompts = PromptTexts.of([("a", "b"), ("c",), ("d", "e", "f")])
        classes = torch.from_numpy(prompts.classes)
        for texts in (contrast.texts, prompts):
            numbers, inverse = dataclasses.replace(contrast, texts=texts).texts_of(batch)
            drawn = torch.randn(5 + len(numbers), 8, generator=torch.Generator().manual_seed(0))
            image, text = nn.functional.normalize(drawn).split([5, len(numbers)])
            if texts is prompts:
                vectors = class_vectors([text[classes == c].double().numpy() for c in range(3)])
                pairs = torch.from_numpy(vectors).float()[target]
            elif contrast.loss != "prompt_ce":
                pairs = text[inverse]
            else:
                continue
            function, *given = {
                "infonce": (losses.infonce, image, pairs, scale),
                "unicl": (losses.unicl, image, pairs, scale, target),
                "siglip": (losses.siglip, image, pairs, scale, bias, target),
                "prompt_ce": (losses.prompt_cross_entropy, image, text, scale, target, classes),
            }[contrast.loss]
            found = dataclasses.replace(contrast, texts=texts)._loss_of(batch, inverse)(image, text)
            torch.testing.assert_close(found, function(*given, weight=each))

    def test_a_validation_scores_by_the_prompts_and_by_the_best_of_three_probes(
        self, captioned: ContrastiveStep, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        contrast, rows = captioned, np.array([20, 3, 9, 10, 2, 0, 1])
        prompts = [("a chest X-ray, number 1", "lungs"), ("a chest X-ray, number 2",), ("nothing",)]
        vectors = class_vectors([contrast.tuned.encoder.encode_texts(p).astype(np.float64) for p in prompts])
        pooled, projected = contrast.tuned.encoder.encode_greys(np.array(contrast.greys[rows]))
        cosine, target = projected @ vectors.T, contrast.targets[rows]
        named = cosine.argmax(axis=1)
        assert contrast.validate(rows, prompts) == {
            "val_accuracy": accuracy_score(target, named),
            "val_macro_f1": f1_score(target, named, average="macro", labels=range(3), zero_division=0),
            "val_mean_cosine": pytest.approx(cosine.mean(), abs=1e-6),
        }
        for count in (1, 2, 3):
            ranks = in_threads(count, lambda group: dataclasses.replace(contrast, group=group)._encode(rows))
            assert all(np.allclose(pooled, found, atol=1e-5) for found, _ in ranks)
        fitted: list[Any] = []

        def fit(features: np.ndarray, targets: np.ndarray, labels: Any, **given: Any) -> list[Any]:
            """Of three heads the second one knows all, and the others name four of seven images wrongly."""
            fitted.append((features, targets.tolist(), labels, given))
            row = lambda x: [np.abs(pooled - one).sum(axis=1).argmin() for one in x]  # noqa: E731
            answers = [np.eye(3)[(target + wrong * (np.arange(7) < 4)) % 3] for wrong in (1, 0, 2)]
            return [SimpleNamespace(predict=lambda x, a=a: a[row(x)]) for a in answers]

        monkeypatch.setattr(module, "fit_lbfgs", fit)
        assert contrast.fit_head(ROWS[4:8], rows, ("a", "b", "c"))[1]["val_macro_f1"] == 1.0  # type: ignore[arg-type]
        ((features, targets, labels, given),) = fitted
        np.testing.assert_allclose(features, contrast._encode(ROWS[4:8])[0], atol=1e-5)
        assert (targets, labels) == (contrast.targets[4:8].tolist(), ("a", "b", "c"))
        assert given == {"l2": [1.0, 0.1, 0.01], "weighting": "none", "sources": None}


def test_a_caption_belongs_to_its_row() -> None:
    texts = CaptionTexts.of([7, 3, 5], ["b", "a", "b"])
    assert (texts.texts, texts.of_row) == (("a", "b"), {7: 1, 3: 0, 5: 1})
    with pytest.raises(ValueError, match="shorter"):
        CaptionTexts.of([7, 3], ["b"])


def test_an_unused_or_frozen_tower_and_a_loss_that_is_not_finite() -> None:
    """The first has no gradient, the second is encoded once, and with the third no encoder has a gradient."""
    layer, unused, frozen, seen = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(4, 2).requires_grad_(False), []
    x, y = torch.randn(7, 3), torch.randn(7, 4)

    def encode(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return frozen(y[rows])

    towers = (Tower(7, lambda rows: layer(x[rows])), Tower(2, lambda rows: unused(x[rows])), Tower(7, encode))
    assert not torch.isfinite(
        cached_backward(towers, lambda a, b, c: a.sum() / 0, chunk_size=3, processes=ProcessGroup())
    )
    assert layer.weight.grad is None
    seen.clear()
    value = cached_backward(towers, lambda a, b, c: (a * c).sum(), chunk_size=3, processes=ProcessGroup())
    torch.testing.assert_close(value, (layer(x) * frozen(y)).sum().detach())
    assert seen == [3, 3, 1] and unused.weight.grad is None
    torch.testing.assert_close(layer.bias.grad, frozen(y).sum(dim=0), rtol=1e-4, atol=1e-5)


@example(images=5, texts=3, count=4, chunk=1, seed=0)  # the last of four has two chunks of padding alone
@example(images=7, texts=3, count=2, chunk=4, seed=0)  # the last of two has three images and one of padding in a chunk
@examples(60)
@given(
    images=st.integers(1, 9), texts=st.integers(1, 5), count=st.integers(1, 4), chunk=st.integers(1, 5), seed=st.integers(0, 99)
)  # fmt: skip
def test_the_processes_gradients_add_up_to_one_and_padding_adds_nothing(
    images: int, texts: int, count: int, chunk: int, seed: int
) -> None:
    """The padding may fill a chunk, or all that one process has."""
    generator = torch.Generator().manual_seed(seed)
    layers = nn.ModuleList([nn.Linear(3, 2), nn.Linear(4, 2)]).double()
    inputs = [torch.randn(n, width, generator=generator).double() for n, width in ((images, 3), (texts, 4))]

    def loss(image: Tensor, text: Tensor) -> Tensor:
        return torch.logsumexp(image @ text.T, dim=1).sum() - (image[:1] * text[-1:]).sum()

    def gradient(group: ProcessGroup) -> list[Tensor]:
        own, most = copy.deepcopy(layers), [0]

        def encode(rows: Tensor, n: int) -> Tensor:
            most.append(len(rows))
            return own[n](inputs[n][rows])

        towers = [Tower(len(x), lambda rows, n=n: encode(rows, n)) for n, x in enumerate(inputs)]
        cached_backward(towers, loss, chunk_size=chunk, processes=group)
        assert max(most) <= chunk
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in own.parameters()]

    added = [sum(parts) for parts in zip(*in_threads(count, gradient), strict=True)]
    loss(*(layer(x) for layer, x in zip(layers, inputs, strict=True))).backward()
    for found, parameter in zip(added, layers.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-9, atol=1e-9)
