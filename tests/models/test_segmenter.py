"""Segmenters against Transformers' own post-processing, and against models whose answer is built in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tests.checkpoints import SIDE, save_segmenter
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

from thoraclip.errors import ModelError
from thoraclip.models.segmenter import Segmenter, load_segmenter

Greys = npt.NDArray[np.uint8]


def load(folder: Path) -> Segmenter:
    return load_segmenter(str(folder), precision="fp32", device="cpu")


def pictures(number: int, height: int = SIDE, width: int = SIDE) -> Greys:
    """Pictures with large dark and bright parts, so that the answer differs from place to place."""
    coarse = np.random.default_rng(0).integers(0, 256, (number, 4, 4)).astype(np.uint8)
    return coarse.repeat(-(-height // 4), axis=1).repeat(-(-width // 4), axis=2)[:, :height, :width]


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (60, 44)])
def test_masks_are_those_of_transformers(checkpoints: dict[str, Path], height: int, width: int) -> None:
    folder = checkpoints["segformer"]
    model = SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    processor = SegformerImageProcessorPil.from_pretrained(folder)
    greys = pictures(3, height, width)
    inputs = processor(list(greys[..., None].repeat(3, axis=-1)), return_tensors="pt")
    with torch.inference_mode():
        told = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[(height, width)] * 3)
    expected = np.stack([np.isin(one.numpy(), (1, 2)) for one in told])
    segmenter = load(folder)
    found = np.stack([segmenter.estimate(grey) for grey in greys])
    assert found.dtype == bool and found.shape == (3, height, width)
    assert 0.05 < expected.mean() < 0.95  # the comparison says something
    assert (found != expected).mean() < 0.005  # ties between classes along the borders


@pytest.mark.parametrize(("always", "inside"), [("left lung", True), ("Right Lung", True), ("heart", False)])
def test_both_lungs_are_lung_and_nothing_else_is(tmp_path: Path, always: str, inside: bool) -> None:
    segmenter = load(save_segmenter(tmp_path / "model", always=always))
    mask = segmenter.estimate(pictures(1)[0])
    assert mask.all() if inside else not mask.any()


def test_some_classes_are_named_after_the_lung_and_some_are_not(tmp_path: Path) -> None:
    for classes, message in (
        (("a", "b", "c"), r"no class is named after the lung; its classes: a, b, c"),
        (("lung", "left Lung", "LUNGS"), r"all 3 classes are lung; a class for all else is needed"),
    ):
        with pytest.raises(ModelError, match=message):
            load(save_segmenter(tmp_path / classes[0], classes=classes))
