"""`imaging.preprocess` against the image processors of Transformers, over many odd sizes.

The largest differences measured are 4.8e-7 (CLIP, BiT) and 1.2e-7 (SigLIP): rounding of float32 where the order of the
multiplications differs. The limit is 1e-6; one grey level would be 1.4e-2.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thoraclip.imaging import Preprocess, preprocess

LIMIT = 1e-6
SIZES = [
    (224, 224), (225, 224), (224, 225), (223, 301), (31, 47), (500, 97), (97, 500), (256, 256), (257, 513), (1, 1), (1, 9),
    (40, 45), (110, 55), (80, 170), (71, 142), (300, 299), (13, 640), (333, 448),
]  # fmt: skip
"""Height and width. At 40 x 45 and 80 x 170 the scaled side is a whole number that a rounded quotient falls short of."""

MINE = {
    "clip": Preprocess(geometry="crop"),
    "siglip": Preprocess(geometry="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "bit": Preprocess(geometry="crop", short_side=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}


def processor(kind: str) -> Any:
    """The processor of Transformers in its PIL form, told what `MINE[kind]` says; DINOv2's checkpoints use BiT's."""
    module = importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}")
    made = getattr(module, {"clip": "CLIP", "siglip": "Siglip", "bit": "Bit"}[kind] + "ImageProcessorPil")
    if kind != "bit":
        return made()
    spec = MINE["bit"]
    return made(size={"shortest_edge": 256}, image_mean=list(spec.mean), image_std=list(spec.std))


@pytest.mark.parametrize("kind", list(MINE))
def test_preprocess_equals_transformers(
    picture: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of passes of Pillow 12: from 13 on, Pillow shrinks the rows of tall images first, see `resize`."""
    once = Image.Image.resize

    def resized(image: Image.Image, size: tuple[int, int], resample: Any = None, **options: Any) -> Image.Image:
        return once(once(image, (size[0], image.height), resample), size, resample, **options)

    monkeypatch.setattr(Image.Image, "resize", resized)
    theirs, spec = processor(kind), MINE[kind]
    assert str(getattr(theirs.resample, "name", theirs.resample)).lower() in {spec.resample, "3"}
    for number, (height, width) in enumerate(SIZES):
        grey = picture(height, width, seed=number)
        expected = theirs(images=Image.fromarray(grey).convert("RGB"), return_tensors="np")["pixel_values"][0]
        found = preprocess(grey, spec)
        assert found.shape == expected.shape == (3, 224, 224)
        assert np.abs(found - expected).max() <= LIMIT, (height, width)
