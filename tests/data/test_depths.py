"""One depth from the index to the prediction: training and serving see the same pixels of a 16-bit picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tests.bundle.fake_bundle import FakeClassifier
from tests.conftest import draw_picture
from tests.imaging.files import Array, chunk, data_set, waves, written
from tests.imaging.test_depth import file_of, scaled

import thoraclip
from thoraclip.api.data import index as index_command
from thoraclip.bundle.images import find_images
from thoraclip.bundle.rows import Table
from thoraclip.bundle.runtime import BundleClassifier, Prediction
from thoraclip.bundle.scoring import score
from thoraclip.cli.show import predict as show_predict
from thoraclip.data.batches import grey_batches, picture_loader, pixel_cache, read_pixels
from thoraclip.data.check import check
from thoraclip.data.check.page import html_page
from thoraclip.data.index import index
from thoraclip.errors import ConfigError, MismatchError
from thoraclip.imaging import Preprocess, decode, fit, perceptual_hash
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest

SPEC = Preprocess(size=32)


def anatomy(seed: int, bits: int, exposure: float = 1.0) -> Array:
    grey = draw_picture(48, 48, seed=seed).astype(float)
    return np.asarray(np.round(grey / grey.max() * exposure * (2**bits - 1)).astype(np.uint16))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of 12 bits: two exposures of half the range and less, one with a bright pixel, one that states its depth; one of 8 bits."""
    root = tmp_path / "images"
    for number, label in enumerate(("covid", "covid", "covid", "normal", "normal", "normal", "normal")):
        (root / label).mkdir(parents=True, exist_ok=True)
        values = anatomy(number, 12, 0.3 if number in (1, 4) else 1.0)
        if number == 2:
            values[3, 4] = 65535
        said = [chunk(b"sBIT", b"\x0e")] if number == 5 else []
        (root / label / f"{number}.png").write_bytes(file_of(values, "grey", *said))
    Image.fromarray(draw_picture(48, 48)).save(root / "normal" / "6.png")
    return root


def depths(manifest: Manifest) -> dict[str, int | None]:
    return dict(zip((Path(path).stem for path in manifest.column("path")), manifest.bits, strict=True))


def test_the_images_of_a_set_have_one_depth_and_what_is_stated_stays(folder: Path, tmp_path: Path) -> None:
    alone = {path.stem: decode(path).bits for path in folder.rglob("*.png")}
    assert alone == {"0": 12, "1": 11, "2": 12, "3": 12, "4": 11, "5": 14, "6": None}
    found = index(folder, layout="folders", facts=tmp_path / "facts.jsonl")
    assert depths(found.manifest) == dict.fromkeys("01234", 12) | {"5": 14, "6": None}
    ((path, remark),) = found.remarks
    assert path.endswith("2.png") and remark.startswith("1 of 2,304 pixels exceed 4,095")
    assert [note for note in found.notes if "5 images of 16 bits without a stated depth: 12 bits" in note]
    for row, path in enumerate(found.manifest.paths()):
        pixels = decode(path, bits=found.manifest.bits[row]).pixels
        assert found.manifest.column("phash")[row] == perceptual_hash(pixels)
    again = index(folder, layout="folders", facts=tmp_path / "facts.jsonl")
    assert again.read == 0 and again.manifest.table.equals(found.manifest.table) and again.notes == found.notes
    fresh = index(folder, layout="folders")
    assert fresh.manifest.table.equals(found.manifest.table)


def test_a_stated_depth_is_that_of_all_and_is_not_kept_for_another(folder: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"layout": "folders", "facts": tmp_path / "facts.jsonl"}
    plain, stated = index(folder, **how), index(folder, bits=15, **how)
    assert depths(stated.manifest) == dict.fromkeys("012345", 15) | {"6": None}
    assert depths(index(folder, **how).manifest) == depths(plain.manifest)
    assert stated.manifest.content_fingerprint != plain.manifest.content_fingerprint
    assert stated.manifest.fingerprint != plain.manifest.fingerprint
    with pytest.raises(ConfigError, match="bits = 20: a whole number from 8 to 16 is needed"):
        index_command(folder, out=tmp_path / "m.parquet", bits=20)


def test_every_source_has_a_depth_of_its_own(tmp_path: Path) -> None:
    lines = ["path,label,source,bits,image_remarks"]
    for number in range(8):
        source, bits = ("a", 10) if number < 4 else ("b", 14)
        (tmp_path / f"{number}.png").write_bytes(file_of(anatomy(number, bits, 0.3 if number % 4 == 1 else 1.0)))
        lines.append(f"{number}.png,{'covid' if number % 2 else 'normal'},{source},own,own")
    (tmp_path / "images.csv").write_text("\n".join(lines))
    found = index(tmp_path, layout="csv", csv_file=tmp_path / "images.csv")
    assert depths(found.manifest) == {str(n): 10 if n < 4 else 14 for n in range(8)}
    assert found.manifest.column("csv_bits") == found.manifest.column("csv_image_remarks") == ["own"] * 8
    (note,) = [n for n in found.notes if "4 images of 16 bits of source 'a' without a stated depth: 10 bits" in n]
    assert "by an estimate from all of them (1 of 9 bits, 3 of 10 bits); " in note


def test_every_reader_of_a_manifest_uses_its_depths(folder: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.parquet", index(folder, layout="folders", bits=13).manifest)
    manifest = read_manifest(tmp_path / "m.parquet")
    first = manifest.paths()[0]
    expected = scaled(anatomy(0, 12), 13)
    assert np.abs(read_pixels(first, None, bits=13) - expected).max() <= 0.51
    assert np.abs(picture_loader(manifest)(first) - expected).max() <= 0.51
    ((_, greys),) = grey_batches(manifest, SPEC, batch_size=100)
    np.testing.assert_array_equal(greys[0], fit(np.round(expected).astype(np.uint8), SPEC))
    cached = pixel_cache(manifest, SPEC, tmp_path / "pixels").arrays["pixels"]
    np.testing.assert_array_equal(cached, greys)
    other = pixel_cache(index(folder, layout="folders").manifest, SPEC, tmp_path / "pixels").arrays["pixels"]
    assert (other[0] != cached[0]).any()
    labelled = manifest.take(np.arange(3))
    assert labelled.bits == [13] * 3 and labelled.usual_bits == 13


def test_manifests_without_depths_are_read_and_keep_their_fingerprints(folder: Path, tmp_path: Path) -> None:
    new = index(folder, layout="folders").manifest
    plain = Manifest(new.table.drop_columns(["bits", "image_remarks"]), new.root)
    text = Manifest(plain.table.append_column("bits", pa.array(["12"] * len(plain))), new.root)
    empty = plain.with_columns(bits=pa.nulls(len(plain), pa.int32()))
    for old in (plain, text, empty):
        write_manifest(tmp_path / "old.parquet", old)
        read = read_manifest(tmp_path / "old.parquet")
        assert read.bits == [None] * len(read) and read.usual_bits is None
        assert read.content_fingerprint == plain.content_fingerprint and read.fingerprint == plain.fingerprint
    assert new.content_fingerprint != plain.content_fingerprint
    told = check(plain, None)["warnings"]
    assert [line for line in told if line.startswith("6 images of 16 bits without a depth in the manifest")]


def test_pictures_of_8_bits_have_no_such_columns(class_folder: Path) -> None:
    assert not {"bits", "image_remarks"} & set(index(class_folder, layout="folders").manifest.table.column_names)


def test_remarks_of_the_index_reach_its_report_and_the_check(folder: Path, tmp_path: Path) -> None:
    ds = data_set(waves(12), bits=12)
    ds.HighBit = 15
    (folder / "normal" / "x.dcm").write_bytes(written(ds))
    index_command(folder, out=tmp_path / "m.parquet")
    listed = json.loads((tmp_path / "m.index.json").read_text())["remarks"]
    assert [Path(entry["path"]).name for entry in listed] == ["2.png", "x.dcm"]
    assert "HighBit 15 contradicts 12 bits stored" in listed[1]["remark"]
    content = check(read_manifest(tmp_path / "m.parquet"), tmp_path / "work")
    assert [Path(entry["path"]).name for entry in content["remarks"]] == ["2.png", "x.dcm"]
    assert [line for line in content["warnings"] if line.startswith("remarks on 2 images, first ")]
    assert "remarks on 2 images" in html_page(content, read_manifest(tmp_path / "m.parquet"))


# predictions


class Bright(BundleClassifier):
    """A classifier of the mean grey, with everything of a bundle but the model."""

    def __init__(self, of_set: int | None, bits: int | None = None) -> None:
        self.bundle: Any = SimpleNamespace(bits=of_set, fingerprint="f" * 64)
        self.labels, self.preprocess, self.bits, self.together = FakeClassifier.labels, SPEC, bits, 2

    def classify_greys(self, greys: Array) -> list[Prediction]:
        shares = [float(grey.mean()) / 255 for grey in greys]
        return [
            Prediction("Normal", {"COVID-19": 1 - x, "Non-COVID": 0.0, "Normal": x}, None, None, None) for x in shares
        ]


def scores(classifier: Any, folder: Path | None, manifest: Path | None = None) -> tuple[list[float], Any]:
    images = find_images([] if folder is None else [folder], manifest=manifest)
    with Table(None, classifier.labels, "csv", fingerprint="f") as table:
        summary = score(classifier, images, table, threads=1)
    assert all("remarks" not in row for row in summary.rows)
    return [row["score_Normal"] for row in summary.rows], summary


def means(paths: list[Path], bits: Any) -> list[float]:
    found = [fit(decode(path, bits=depth).pixels, SPEC).mean() / 255 for path, depth in zip(paths, bits, strict=True)]
    return [round(float(mean), 6) for mean in found]


def test_predictions_see_what_training_saw(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted(folder.rglob("*.png"))
    found, summary = scores(Bright(12), folder)
    assert found == means(paths, [12, 12, 12, 12, 12, 14, None])
    assert summary.remarked == 1 and summary.first_remark[0] == str(paths[2])
    show_predict(summary, {"out": None})
    assert f"remarks on 1 images, first {paths[2]}: 1 of 2,304 pixels exceed 4,095" in capsys.readouterr().err
    assert scores(Bright(12, bits=13), folder)[0] == means(paths, [13] * 6 + [None])
    manifest = index(folder, layout="folders", bits=15).manifest
    write_manifest(tmp_path / "m.parquet", manifest)
    assert scores(Bright(12), None, tmp_path / "m.parquet")[0] == means(manifest.paths(), manifest.bits)
    assert scores(Bright(12, bits=13), None, tmp_path / "m.parquet")[0] == means(manifest.paths(), [13] * 6 + [None])
    answer = Bright(12).classify(paths[2])
    assert answer.remarks and Bright(12).classify_each([paths[2]]) == [answer]


def test_a_table_begun_with_another_depth_is_not_gone_on_with(tmp_path: Path) -> None:
    how: dict[str, Any] = {"fingerprint": "f"}
    table = Table(tmp_path / "t.csv", FakeClassifier.labels, "csv", bits=12, **how)
    with table:
        place = table.admit("a.png")
        table.put(place, {"path": "a.png", "error": None})
    with (
        pytest.raises(MismatchError, match="begun with another bits"),
        Table(tmp_path / "t.csv", FakeClassifier.labels, "csv", **how),
    ):
        pass


def test_predict_refuses_a_depth_that_cannot_be_before_it_opens_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bits = 7: a whole number from 8 to 16 is needed"):
        thoraclip.predict(tmp_path / "no-bundle", [tmp_path], bits=7, out=io.BytesIO())


def test_few_of_more_bits_keep_their_own_depth_beside_many_of_fewer(tmp_path: Path) -> None:
    for number in range(40):
        folder = tmp_path / "images" / ("covid" if number % 2 else "normal")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(file_of(anatomy(number, 16 if number == 7 else 12), "grey"))
    for _ in ("read", "kept"):
        found = index(tmp_path / "images", layout="folders", facts=tmp_path / "facts")
        assert {number for number, bits in depths(found.manifest).items() if bits != 12} == {"7"}
        assert depths(found.manifest)["7"] == 16
        assert found.remarks == [
            ("covid/7.png", "the 12 bits of the other images do not hold its values, so 16 are taken")
        ]
