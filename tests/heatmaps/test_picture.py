"""One picture explained: its numbers and its sheet, in a small install too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.heatmaps.readers import PatchReader, noise
from tests.small_install import run_small

from thoraclip.data.phantom import draw_phantom
from thoraclip.errors import ImageError
from thoraclip.heatmaps.picture import Explanation, explain_picture, write_overlay


def test_evidence_in_the_lungs_is_counted_where_the_network_sees(tmp_path: Path) -> None:
    heat, lungs, seen = np.zeros((448, 448), np.float32), np.zeros((448, 448), bool), np.ones((448, 448), bool)
    heat[100:200, 100:200], lungs[150:300, 100:200], seen[:, 400:] = 1, True, False
    found = Explanation(
        label="b", scores={"a": 0.7, "b": 0.3}, method="occlusion", grey=noise(448), heat=heat, seen=seen, lungs=lungs,
        lungs_from="estimated", note="the first",
    )  # fmt: skip
    assert found.evidence_in_lungs == pytest.approx(0.5)
    assert found.lung_area == pytest.approx(150 * 100 / (448 * 400))
    assert found.predicted == "a"
    write_overlay(tmp_path / "a.png", found)
    first = (tmp_path / "a.png").read_bytes()
    write_overlay(tmp_path / "a.png", found)
    assert (tmp_path / "a.png").read_bytes() == first
    with Image.open(tmp_path / "a.png") as sheet:
        assert json.loads(sheet.info["thoraclip"]) == found.as_dict()
    without = replace(found, lungs=np.zeros_like(lungs), heat=np.zeros_like(heat))
    assert (without.evidence_in_lungs, without.lung_area) == (None, None)
    write_overlay(tmp_path / "b.png", without)
    assert Image.open(tmp_path / "b.png").size == (2 * 448 + 48 + 330, 448 + 24)


READER = PatchReader(32, slice(8, 16), slice(4, 12))


@pytest.fixture
def chest(tmp_path: Path) -> Path:
    """`chest.png` and, beside it, its lungs as `lungs.png`."""
    drawn = draw_phantom("Normal", rng=np.random.default_rng(3), size=128)
    Image.fromarray(drawn.lung_mask).save(tmp_path / "lungs.png")
    Image.fromarray(drawn.pixels).save(tmp_path / "chest.png")
    return tmp_path / "chest.png"


def test_lungs_are_the_given_mask_or_an_estimate_or_are_said_not_to_be_found(chest: Path, tmp_path: Path) -> None:
    given, own = (explain_picture(READER, chest, mask=m) for m in (chest.with_name("lungs.png"), None))
    assert (given.lungs_from, own.lungs_from) == ("given mask", "estimated")
    assert (given.lungs & own.lungs).sum() > 0.8 * given.lungs.sum()
    assert np.array_equal(given.heat, own.heat), "the outline is beside the matter"
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "blank.png")
    blank = explain_picture(READER, tmp_path / "blank.png")
    assert blank.lungs_from == "not found: the image is blank" and not blank.lungs.any()
    with pytest.raises(ImageError, match=r"blank\.png: the mask is empty: .*; give another mask, or none"):
        explain_picture(READER, chest, mask=tmp_path / "blank.png")


def test_a_small_install_draws_the_same(chest: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
import numpy as np
from tests.heatmaps.readers import PatchReader
from thoraclip.heatmaps.picture import explain_picture, why_no_mask, write_overlay
reader, folder = PatchReader(32, slice(8, 16), slice(4, 12)), Path({str(tmp_path)!r})
for name, mask in (("without", None), ("with", folder / "lungs.png")):
    found = explain_picture(reader, folder / "chest.png", mask=mask, note="a copy")
    np.save(folder / f"{{name}}.npy", found.heat)
    write_overlay(folder / f"{{name}}.png", found)
assert why_no_mask(folder / "lungs.png", folder / "chest.png") is None
"""
    done = run_small(code)
    assert done.returncode == 0, done.stderr
    for name, mask in (("without", None), ("with", tmp_path / "lungs.png")):
        here = explain_picture(READER, chest, mask=mask, note="a copy")
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), here.heat)
        with Image.open(tmp_path / f"{name}.png") as sheet:
            assert json.loads(sheet.info["thoraclip"]) == here.as_dict()


def test_what_a_remedy_cuts_off_is_not_seen(chest: Path) -> None:
    remedied = PatchReader(32, slice(8, 16), slice(4, 12))
    remedied.preprocess = replace(READER.preprocess, remedy="centre")
    found, plain = explain_picture(remedied, chest), explain_picture(READER, chest)
    side, cut = len(found.grey), round(0.1 * len(found.grey))
    rows = np.flatnonzero(found.seen.any(axis=1))
    assert abs(rows[0] - cut) <= 2 and abs(side - 1 - rows[-1] - cut) <= 2
    assert not found.heat[~found.seen].any() and np.array_equal(found.grey, plain.grey)
    at = [np.average(np.arange(side), weights=one.heat.sum(axis=1)) / side for one in (found, plain)]
    assert at[0] == pytest.approx(0.1 + 0.8 * at[1], abs=0.02), "a place in the part that is kept"
