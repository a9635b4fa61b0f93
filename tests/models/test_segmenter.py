"""Segmenters against Transformers' own post-processing, and against models whose answer is built in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoints import SIDE, save_classifier, save_segmenter
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

from thoraclip.errors import ModelError
from thoraclip.models.segmenter import load_segmenter

Greys = npt.NDArray[np.uint8]


def pictures(number: int, height: int = SIDE, width: int = SIDE, seed: int = 0) -> Greys:
    """Pictures with large dark and bright parts, so that the answer differs from place to place."""
    coarse = np.random.default_rng(seed).integers(0, 256, (number, 4, 4)).astype(np.uint8)
    return coarse.repeat(-(-height // 4), axis=1).repeat(-(-width // 4), axis=2)[:, :height, :width]


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (60, 44)])
def test_masks_are_those_of_transformers(tmp_path: Path, height: int, width: int) -> None:
    folder = save_segmenter(tmp_path / "model")
    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    processor = SegformerImageProcessorPil.from_pretrained(folder)
    greys = pictures(3, height, width)
    inputs = processor(list(greys[..., None].repeat(3, axis=-1)), return_tensors="pt")
    with torch.inference_mode():
        told = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[(height, width)] * 3)
    expected = np.stack([np.isin(one.numpy(), (1, 2)) for one in told])
    found = load_segmenter(str(folder), precision="fp32", device="cpu").masks(greys)
    assert found.dtype == bool and found.shape == (3, height, width)
    assert 0.05 < expected.mean() < 0.95  # the comparison says something
    assert (found != expected).mean() < 0.005  # ties between classes along the borders


def test_an_estimate_is_the_mask_of_one_picture(tmp_path: Path) -> None:
    segmenter = load_segmenter(str(save_segmenter(tmp_path / "model")), precision="fp32", device="cpu")
    greys = pictures(4, 50, 40)
    for grey, mask in zip(greys, segmenter.masks(greys), strict=True):
        np.testing.assert_array_equal(segmenter.estimate(grey), mask)


@pytest.mark.parametrize(("always", "inside"), [("left lung", True), ("Right Lung", True), ("heart", False)])
def test_both_lungs_are_lung_and_nothing_else_is(tmp_path: Path, always: str, inside: bool) -> None:
    segmenter = load_segmenter(str(save_segmenter(tmp_path / "model", always=always)), device="cpu")
    assert segmenter.lung_classes == ("left lung", "Right Lung")
    masks = segmenter.masks(pictures(2))
    assert masks.all() if inside else not masks.any()


def test_the_caller_names_the_lung_classes(tmp_path: Path) -> None:
    folder = str(save_segmenter(tmp_path / "model", classes=("a", "b", "c"), always="c"))
    assert load_segmenter(folder, lung_classes=("c", "a"), device="cpu").masks(pictures(1)).all()
    assert not load_segmenter(folder, lung_classes=("b",), device="cpu").masks(pictures(1)).any()
    with pytest.raises(ModelError, match=r"no class 'd'; known: a, b, c"):
        load_segmenter(folder, lung_classes=("d",), device="cpu")
    with pytest.raises(ModelError, match=r"no class is named after the lung; its classes: a, b, c"):
        load_segmenter(folder, device="cpu")
    with pytest.raises(ModelError, match=r"all 3 classes are lung; a class for all else is needed"):
        load_segmenter(folder, lung_classes=("a", "b", "c"), device="cpu")


def test_the_fingerprint_follows_the_weights(tmp_path: Path) -> None:
    one, again, other = (
        load_segmenter(str(save_segmenter(tmp_path / name, seed=seed)), device="cpu").fingerprint
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert one == again != other


def test_what_is_no_segmentation_model_is_refused(tmp_path: Path) -> None:
    folder = str(save_classifier("vit", tmp_path / "vit"))
    with pytest.raises(ModelError, match=r"vit': type 'vit' is no semantic segmentation model"):
        load_segmenter(folder, device="cpu")
    with pytest.raises(ModelError, match="no such folder"):
        load_segmenter("nowhere", device="cpu")


def test_a_missing_weight_is_refused(tmp_path: Path) -> None:
    folder = save_segmenter(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["decode_head.classifier.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing, first 'decode_head\.classifier\.bias'"):
        load_segmenter(str(folder), device="cpu")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = save_segmenter(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"a model\.safetensors is needed"):
        load_segmenter(str(folder), device="cpu")


def test_a_network_of_one_channel_is_refused(tmp_path: Path) -> None:
    folder = save_segmenter(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_channels": 1}), encoding="utf-8")
    with pytest.raises(ModelError, match="takes 1 channels; a network of 3 is needed"):
        load_segmenter(str(folder), device="cpu")
