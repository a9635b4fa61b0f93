"""Plain Transformers folders of tiny models of the real classes, opened by Transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.checkpoints import SIDE, TOWERS, save_checkpoint, save_classifier, save_tower
from tests.conftest import draw_picture, files
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer, pipeline

from thoraclip.errors import InputError
from thoraclip.imaging import preprocess
from thoraclip.labels import LabelSet
from thoraclip.methods.zeroshot import class_vectors
from thoraclip.models.backbones import load_backbone
from thoraclip.models.classifiers import EncoderClassifier
from thoraclip.models.dual_encoder import load_dual_encoder, load_vision_encoder
from thoraclip.models.heads import LinearHead
from thoraclip.models.plain_folder import (
    OpenedPlain,
    PlainModel,
    image_classifier,
    is_plain_folder,
    plain_dual_encoder,
    write_plain,
)
from thoraclip.models.vision_encoder import VisionEncoder

LABELS = LabelSet(("a|b", "Normal", "COVID"))
PROMPTS = {"a|b": ("a chest x-ray",), "Normal": ("lungs", "no finding at all"), "COVID": ("white lungs",)}
PICTURES = [draw_picture(h, w, seed=h, patch=0.3) for h, w in ((48, 40), (40, 61), (33, 33), (150, 40))]


def dual(family: str, folder: Path, **options: Any) -> EncoderClassifier:
    """A zero-shot classifier by `PROMPTS`, built by hand; its logit scale is a trained one."""
    encoder = load_dual_encoder(save_checkpoint(family, folder), precision="fp32", device="cpu", **options)
    encoder.model.logit_scale.data.fill_(3.3)
    vectors = class_vectors([encoder.encode_texts(texts).astype(np.float64) for texts in PROMPTS.values()])
    weight = (encoder.logit_scale * vectors).astype(np.float32)
    return EncoderClassifier(encoder, LinearHead.unscaled(LABELS, weight), "projected")


def probe(family: str, folder: Path, **options: Any) -> EncoderClassifier:
    """A head of standardised features as a probe fits it, of any numbers."""
    return probe_on(load_dual_encoder(save_checkpoint(family, folder), precision="fp32", device="cpu", **options))


def probe_on(encoder: VisionEncoder) -> EncoderClassifier:
    rng, width = np.random.default_rng(0), encoder.encode_greys(np.zeros((1, SIDE, SIDE), np.uint8))[0].shape[1]
    mean, scale, weight, bias = rng.normal(size=width), rng.uniform(0.5, 2, width), rng.normal(size=(3, width)), rng.normal(size=3)  # fmt: skip
    head = LinearHead(LABELS, *(array.astype(np.float32) for array in (mean, scale, weight, bias)))
    return EncoderClassifier(encoder, head, "pooled")


def pixels_of(folder: Path, greys: list[Any]) -> torch.Tensor:
    made = AutoImageProcessor.from_pretrained(folder)(images=[Image.fromarray(g) for g in greys], return_tensors="pt")
    return made["pixel_values"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["clip", "siglip", "vision-text-dual-encoder"])
@pytest.mark.parametrize("geometry", ["squash", "crop"])
def test_a_dual_encoder_is_opened_by_auto_model(family: str, geometry: str, tmp_path: Path) -> None:
    classifier = dual(family, tmp_path / "base", geometry=geometry)
    plain = plain_dual_encoder(classifier, PROMPTS)
    for out in ("one", "two"):
        (tmp_path / out).mkdir()
        write_plain(tmp_path / out, plain, prompts=PROMPTS)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len({path.stat().st_mode for path in (tmp_path / "one").iterdir()}) == 1, "whoever may read one may read all"
    assert str(tmp_path).encode() not in b"".join(f for n, f in files(tmp_path / "one").items() if n.endswith("json"))
    folder = tmp_path / "one"
    pixels = pixels_of(folder, PICTURES[:3])
    ours = np.stack([preprocess(grey, classifier.preprocess) for grey in PICTURES[:3]])
    np.testing.assert_allclose(pixels.numpy(), ours, atol=1e-5)  # none is shrunk in height: see `imaging.resize`
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if family == "siglip" else "longest"
    vectors = []
    for texts in PROMPTS.values():
        tokens = tokenizer(list(texts), padding=padding, truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            output = model(**tokens, pixel_values=pixels)
        mean = output.text_embeds.double().mean(dim=0)
        vectors.append(mean / mean.norm())
    expected = np.exp(3.3) * output.image_embeds.double() @ torch.stack(vectors).T
    with torch.inference_mode():
        own = classifier.logits(pixels)
    np.testing.assert_allclose(own.double(), expected, atol=1e-5 * max(1.0, float(expected.abs().max())))
    np.testing.assert_allclose(
        OpenedPlain(folder, plain).logits(pixels), own, atol=1e-5 * max(1.0, float(own.abs().max()))
    )
    again = load_dual_encoder(folder, geometry=geometry, precision="fp32", device="cpu")
    assert (again.preprocess, again.fingerprint) == (
        classifier.preprocess,
        load_dual_encoder(tmp_path / "two").fingerprint,
    )
    greys = np.stack([np.asarray(Image.fromarray(g).resize((SIDE, SIDE))) for g in PICTURES])
    np.testing.assert_array_equal(again.encode_greys(greys)[1], classifier.encoder.encode_greys(greys)[1])


@pytest.mark.parametrize("family", ["clip", "siglip", "vision-text-dual-encoder"])
def test_the_pipeline_gives_the_scores_of_single_prompts(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tests.checkpoints as made

    monkeypatch.setitem(made._TEXT, "max_position_embeddings", 64)  # the pipeline pads SigLIP's texts to 64
    encoder = load_dual_encoder(save_checkpoint(family, tmp_path / "base"), precision="fp32", device="cpu")
    single = {name: texts[:1] for name, texts in PROMPTS.items()}
    vectors = class_vectors([encoder.encode_texts(texts).astype(np.float64) for texts in single.values()])
    head = LinearHead.unscaled(LABELS, (encoder.logit_scale * vectors).astype(np.float32))
    classifier = EncoderClassifier(encoder, head, "projected")
    (tmp_path / "out").mkdir()
    write_plain(tmp_path / "out", plain_dual_encoder(classifier, single), prompts=single)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "out"), device="cpu")
    texts = [text for (text,) in single.values()]
    answers = classify(Image.fromarray(PICTURES[0]), candidate_labels=texts, hypothesis_template="{}")
    found = np.array([next(a["score"] for a in answers if a["label"] == text) for text in texts])
    if family != "siglip":
        expected = classifier.predict(preprocess(PICTURES[0], encoder.preprocess)[None])[0]
    else:
        with torch.inference_mode():
            logits = classifier.logits(torch.from_numpy(preprocess(PICTURES[0], encoder.preprocess))[None])[0]
        expected = (logits + encoder.model.logit_bias).sigmoid().detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_probe_on_dinov2_is_an_image_classifier_with_nothing_on_the_patches(tmp_path: Path) -> None:
    classifier = probe("vision-text-dual-encoder", tmp_path / "base")
    plain = image_classifier(classifier)
    assert plain.architecture == "Dinov2ForImageClassification"
    write_plain((tmp_path / "out").mkdir() or tmp_path / "out", plain)  # type: ignore[func-returns-value]
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == dict(enumerate(LABELS.names)), "the labels' order is that of the scores"
    assert not model.classifier.weight[:, 16:].any() and model.classifier.weight[:, :16].all()
    pixels = pixels_of(tmp_path / "out", PICTURES)
    with torch.inference_mode():
        found, tower = model(pixels).logits.double().numpy(), classifier.network(pixel_values=pixels)
    head = classifier.head
    features = tower.last_hidden_state[:, 0].double().numpy()  # the class token
    expected = ((features - head.mean) / head.scale) @ head.weight.T.astype(np.float64) + head.bias
    np.testing.assert_allclose(found, expected, atol=1e-5)
    classify = pipeline("image-classification", model=str(tmp_path / "out"), device="cpu")
    scores = {one["label"]: one["score"] for one in classify(Image.fromarray(PICTURES[0]), top_k=None)}
    own = classifier.predict(preprocess(PICTURES[0], classifier.preprocess)[None])[0]
    np.testing.assert_allclose([scores[name] for name in LABELS.names], own, atol=1e-5)


SAME = {
    "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters", "vit": "ViT", "vit_msn": "ViTMSN",
    "convnext": "ConvNext", "convnextv2": "ConvNextV2", "resnet": "ResNet", "regnet": "RegNet", "swin": "Swin",
    "swinv2": "Swinv2", "beit": "Beit", "deit": "DeiT", "mobilenet_v1": "MobileNetV1", "mobilenet_v2": "MobileNetV2",
    "efficientnet": "EfficientNet",
}  # fmt: skip
"""Towers whose image classifier in Transformers reads their pooled output."""


@pytest.mark.parametrize("model_type", TOWERS)
def test_a_probe_on_a_tower_alone(model_type: str, tmp_path: Path) -> None:
    classifier = probe_on(
        load_vision_encoder(save_tower(model_type, tmp_path / "base"), precision="fp32", device="cpu")
    )
    if model_type not in SAME:
        with pytest.raises(
            InputError, match=rf"model '.*': Transformers has no image classifier of type '{model_type}'"
        ):
            image_classifier(classifier)
        return
    plain = image_classifier(classifier)
    (tmp_path / "out").mkdir()
    write_plain(tmp_path / "out", plain)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == plain.architecture == f"{SAME[model_type]}ForImageClassification"
    pixels = pixels_of(tmp_path / "out", PICTURES)
    with torch.inference_mode():
        own = classifier.logits(pixels)
        np.testing.assert_allclose(model(pixels).logits, own, atol=1e-5 * max(1.0, float(own.abs().max())))


@pytest.mark.parametrize(
    ("family", "name"), [("clip", "CLIPForImageClassification"), ("siglip", "SiglipForImageClassification")]
)
def test_an_image_classifier_that_pools_otherwise_is_refused_by_name(family: str, name: str, tmp_path: Path) -> None:
    message = f"{name} of model .*: its head does not read .* the tower's pooled output.*thoraclip export"
    with pytest.raises(InputError, match=message):
        image_classifier(probe(family, tmp_path / "base"))


def test_towers_of_other_pixels_and_types_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"Siglip2Model does not take images of side 32 .*thoraclip export"):
        plain_dual_encoder(dual("siglip2", tmp_path / "siglip2"), PROMPTS)
    with pytest.raises(InputError, match="Siglip2ForImageClassification of model"):
        image_classifier(probe("siglip2", tmp_path / "again"))
    import transformers

    monkeypatch.setattr(transformers, "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", {})
    with pytest.raises(InputError, match="has no image classifier of type 'dinov2'"):
        image_classifier(probe("vision-text-dual-encoder", tmp_path / "dual"))


@pytest.mark.parametrize("kind", ["resnet", "vit", "vision-text-dual-encoder"])
def test_a_trained_network_is_the_image_classifier_itself(kind: str, tmp_path: Path) -> None:
    save = save_checkpoint if "dual" in kind else save_classifier
    backbone = load_backbone(str(save(kind, tmp_path / "base")), LABELS, precision="fp32", device="cpu")
    plain = image_classifier(backbone)
    (tmp_path / "out").mkdir()
    write_plain(tmp_path / "out", plain)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    pixels = pixels_of(tmp_path / "out", PICTURES)
    with torch.inference_mode():
        np.testing.assert_allclose(model(pixels).logits, backbone.logits(pixels), atol=1e-5)


def test_only_our_own_folder_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert not is_plain_folder(folder)
    write_plain(folder, PlainModel(**vars(image_classifier(probe("vision-text-dual-encoder", tmp_path / "base")))))
    assert is_plain_folder(folder)
    (folder / "notes.txt").write_text("mine")
    assert not is_plain_folder(folder)
    (folder / "notes.txt").unlink()
    (folder / "thoraclip.json").write_text(json.dumps({"schema": 1, "facts": {"files": 3}}))
    assert not is_plain_folder(folder)
