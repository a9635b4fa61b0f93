"""Pixels of DICOM files that were decoded before: a new version of a decoder must not change them unseen."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np
import pytest
from tests.imaging.golden import PAGE, facts

from thoraclip.imaging import decode

pytest.importorskip("gdcm")
pytest.importorskip("openjpeg")

GOLDEN: dict[str, dict[str, Any]] = json.loads(PAGE.read_text(encoding="utf-8"))["files"]


def test_every_transfer_syntax_is_there() -> None:
    assert len(GOLDEN) == 9 * 3 + 2 + 2 * 3 + 3 * 2
    assert len({entry.get("sha256") for entry in GOLDEN.values()}) > 8


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_pixels(name: str) -> None:
    """Tolerances: see `golden.py`."""
    entry = GOLDEN[name]
    pixels = decode(zlib.decompress(base64.b64decode(entry["file"]))).pixels
    if "sha256" in entry:
        assert facts(pixels, is_lossless=True) == {key: entry[key] for key in ("mean", "sha256")}
    else:
        assert abs(float(pixels.mean()) - entry["mean"]) <= 0.5
        assert np.abs(pixels[::7, ::7].astype(int) - entry["every_seventh"]).max() <= 2
