"""What a bundle says of a picture: the same through every door, and without torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.bundle.conftest import Workshop
from tests.cli.test_cli import refused
from tests.conftest import Capture, draw_picture, examples
from tests.imaging.files import dicom, encoded
from tests.small_install import run_small

import thoraclip
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.runtime import _greys
from thoraclip.cli.app import run
from thoraclip.errors import ImageError, MismatchError
from thoraclip.imaging import Preprocess, normalise
from thoraclip.predictor import Looker, Predictor


def png(pixels: np.ndarray) -> bytes:
    return encoded(Image.fromarray(pixels))


def test_scores_sets_and_labels_hang_together(workshop: Workshop) -> None:
    """Of a predictor like any other."""
    opened = open_bundle(workshop.bundle("probe"))
    assert isinstance(opened, Predictor) and not hasattr(opened, "logits")
    looker: Looker = opened
    assert looker.features_key == ("bundle", opened.bundle.fingerprint)
    sets = opened.bundle.sets
    assert sets is not None
    for seed in range(0, 12, 2):
        pixels = draw_picture(48, 40, seed=seed, lungs=0.1 + 0.03 * seed)
        found = opened.classify(png(pixels))
        assert sum(found.scores.values()) == pytest.approx(1)
        assert found.label == max(found.scores, key=found.scores.__getitem__)
        _, raw = opened.look(np.stack([np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC))]))
        assert set(found.set or ()) == {
            n for n, held in zip(opened.labels.names, 1 - raw[0] <= sets.threshold, strict=True) if held
        }


def test_dicom_gives_the_probabilities_of_its_png(workshop: Workshop, tmp_path: Path) -> None:
    """The same 8-bit pixels, once as MONOCHROME2 and once inverted as MONOCHROME1."""
    opened, pixels = open_bundle(workshop.bundle("probe")), draw_picture(60, 50, seed=1, lungs=0.3)
    told = opened.classify(png(pixels))
    for photometric, stored in (("MONOCHROME2", pixels), ("MONOCHROME1", 255 - pixels)):
        (tmp_path / "x.dcm").write_bytes(dicom(stored, bits=8, PhotometricInterpretation=photometric))
        found = opened.classify(tmp_path / "x.dcm")
        assert found.label == told.label and found.ood == told.ood
        assert list(found.scores.values()) == pytest.approx(list(told.scores.values()), abs=1e-3)


@pytest.mark.parametrize(
    ("name", "int8", "most"), [("probe", False, 0), ("probe", True, 0), ("baseline-resnet", True, 1e-5)]
)
def test_threads_and_company_change_nothing(workshop: Workshop, name: str, int8: bool, most: float) -> None:
    greys = np.random.default_rng(3).integers(0, 256, (23, 32, 32), dtype=np.uint8)
    opened = open_bundle(workshop.bundle(name, int8=int8), threads=3)
    alone = [opened.look(grey[None])[1][0] for grey in greys]
    assert np.abs(opened.look(greys)[1] - np.stack(alone)).max() <= most
    with ThreadPoolExecutor(4) as pool:
        told = [found.scores for found in pool.map(opened.classify_grey, greys)]
    assert told == [opened.classify_grey(grey).scores for grey in greys]


@given(st.integers(0, 2**16), st.tuples(*[st.floats(0, 1)] * 3), st.tuples(*[st.floats(0.05, 1)] * 3))
@examples(30)
def test_grey_levels_come_back_from_normalised_pixels(seed: int, mean: tuple, std: tuple) -> None:  # type: ignore[type-arg]
    spec = Preprocess(size=8, mean=mean, std=std)
    greys = np.random.default_rng(seed).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    assert np.array_equal(_greys(normalise(greys, spec), spec), greys)


def test_pixels_that_were_normalised_twice_or_are_of_another_shape_are_refused(workshop: Workshop) -> None:
    opened = open_bundle(workshop.bundle("probe"))
    pixels = normalise(np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8), opened.preprocess)
    with pytest.raises(ImageError, match="does not give whole grey levels"):
        opened.predict((pixels - 0.5) / 0.25)
    with pytest.raises(ImageError, match=r"pixels \[2, 3, 16, 32\]: expected \[B, 3, 32, 32\]"):
        opened.predict(pixels[:, :, :16])


def test_without_torch_and_all_that_comes_with_it(workshop: Workshop, tmp_path: Path) -> None:
    """In a process where nothing but the small install can be imported: predict, and explain by occlusion."""
    bundle, picture, shown = str(workshop.bundle("probe", int8=True)), tmp_path / "x.png", tmp_path / "x-map.png"
    picture.write_bytes(png(draw_picture(48, 40, seed=5)))
    done = run_small(
        "import json, thoraclip\n"
        "from pathlib import Path\n"
        "from thoraclip.bundle.opening import open_bundle\n"
        f"found = open_bundle({bundle!r}).classify(Path({str(picture)!r}))\n"
        f"told = thoraclip.explain({bundle!r}, {str(picture)!r}, out={str(shown)!r})\n"
        "print(json.dumps([found.label, found.scores, found.set, found.ood, told]))\n"
    )
    assert done.returncode == 0, done.stderr
    label, scores, inside, ood, told = json.loads(done.stdout)
    here = open_bundle(bundle).classify(picture)
    assert (label, scores, tuple(inside), ood) == (here.label, here.scores, here.set, here.ood)
    assert told["scores"] == scores, "the calibrated ones"
    assert told["method"] == "occlusion" and told["lungs_from"].startswith(("estimated", "not found: "))
    assert Image.open(shown).size[0] > 500


def test_a_bundle_explains_what_it_was_trained_on_only_on_demand(
    workshop: Workshop, tmp_path: Path, capsys: Capture
) -> None:
    bundle, manifest, out = workshop.bundle("probe"), workshop.manifest, tmp_path / "map.png"
    for part in ("train", "val", "test"):
        image = manifest.paths()[manifest.column("split").index(part)]
        command = ["explain", str(bundle), str(image), "--out", str(out)]
        if part != "test":
            used = "was trained or tuned on this image"
            assert f"{image}: {bundle} {used}; explain another" in refused(command, capsys)
            assert thoraclip.explain(bundle, image, out=out, seen=True)["note"].endswith(f", which {used}")
            continue
        (mask := tmp_path / "mask.png").write_bytes(png((np.arange(48 * 40).reshape(48, 40) < 40 * 12) * np.uint8(255)))
        given = manifest.with_columns(lung_mask=[str(mask)] * len(manifest))
        assert thoraclip.explain(bundle, image, out=out, manifest=given)["lungs_from"] == "given mask"
        assert run([*command, "--manifest", str(workshop.root / "manifest.parquet")]) == 0
        assert "bundle: probe on " in capsys.readouterr().out
    with pytest.raises(MismatchError, match="its run ran on another manifest than this one; leave --manifest out"):
        thoraclip.explain(bundle, image, out=out, manifest=manifest.with_columns(split=["test"] * len(manifest)))
    frozen = thoraclip.explain(workshop.bundle("zeroshot"), manifest.paths()[0], out=out)
    assert frozen["note"].endswith("fp32"), "has learned from no image"


def test_the_runtime_keeps_no_diary_and_reports_to_nobody(workshop: Workshop, tmp_path: Path) -> None:
    code = "import sys, thoraclip; print(thoraclip.open_bundle(sys.argv[1]).self_test() < 1)"
    homes = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"} | homes
    command = [sys.executable, "-c", code, str(workshop.bundle("probe"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "True\n", done.stderr
    assert list(tmp_path.rglob("*")) == []


def test_the_runtime_is_loaded_in_one_place() -> None:
    source = Path(thoraclip.__file__).parent
    importing = re.compile(r"^\s*(import onnxruntime|from onnxruntime import)", re.MULTILINE)
    found = [file.name for file in source.rglob("*.py") if importing.search(file.read_text())]
    assert found == ["sessions.py"]
