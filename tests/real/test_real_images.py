"""The real material in shared/: DICOM files, COVID-QU-Ex's own folders, and 1,124 radiographs with a table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

from thoraclip.data.index import IndexResult
from thoraclip.data.layouts import detect_layout
from thoraclip.errors import ImageError
from thoraclip.imaging import decode

pytestmark = pytest.mark.slow
NIH = "nih_dx_1.3.6.1.4.1.11129.5.5.110503645592756492463169821050252582267888.dcm"


def test_a_computed_radiograph_of_15_bits_is_bright_where_it_is_dense(shared: Path) -> None:
    found = decode(shared / "data" / "dicom" / "RG1_J2KI.dcm")
    assert (found.mode, found.format, found.width, found.height) == ("MONOCHROME1", "DICOM", 1841, 1955)
    dataset = pydicom.dcmread(shared / "data" / "dicom" / "RG1_J2KI.dcm")
    stored = dataset.pixel_array
    assert (dataset.BitsStored, dataset.WindowCenter, dataset.WindowWidth) == (15, 15_000, 30_000)
    shown = np.clip((stored - 14_999.5) / 29_999 + 0.5, 0, 1) * 255  # PS3.3 C.11.2.1.2.1
    assert np.abs(found.pixels - (255 - shown)).max() <= 0.51
    assert len(np.unique(found.pixels)) > 200
    assert found.header is not None
    assert (found.header.view, found.header.body_part) == ("PA", "CHEST")


def test_a_digital_radiograph_of_8_bits_is_that_of_its_pixels_and_one_without_is_refused(shared: Path) -> None:
    path = shared / "data" / "dicom" / NIH
    found, stored = decode(path), pydicom.dcmread(path).pixel_array
    assert (found.mode, found.width, found.height) == ("MONOCHROME2", 1024, 1024)
    assert (stored.min(), stored.max()) == (0, 252)
    np.testing.assert_array_equal(found.pixels, stored)  # no window, 8 bits: as a PNG of the same pixels
    assert found.header is not None and found.header.patient_id == "Covid0000"
    with pytest.raises(ImageError, match=r"chest32x32\.dcm: a DICOM header without pixel data"):
        decode(shared / "data" / "dicom" / "pydicom_chrJapMulti_chest32x32.dcm")


def test_covid_qu_ex_sample(covid_qu_ex: IndexResult) -> None:
    result, manifest = covid_qu_ex, covid_qu_ex.manifest
    root = manifest.root
    assert detect_layout(root) == "covid-qu-ex"
    assert Counter(manifest.column("label")) == {"COVID-19": 6, "Non-COVID": 6, "Normal": 6}
    assert Counter(manifest.column("split")) == {"test": 12, None: 6}
    assert sum(mask is not None for mask in manifest.column("infection_mask")) == 12
    assert None not in manifest.column("lung_mask")
    assert sum(count for path, count in result.unknown_folders if path.startswith("lung_only_examples")) == 9
    assert result.set_aside == [] and result.repeats == [] and result.other_files == ["manifest.csv"]
    masks = [decode(root / mask) for mask in manifest.column("lung_mask")]
    assert all((m.width, m.height) == (256, 256) and set(np.unique(m.pixels)) <= {0, 255} for m in masks)


def test_covid3_talo(talo: IndexResult) -> None:
    manifest = talo.manifest
    assert Counter(manifest.column("label")) == {"covid": 124, "normal": 500, "pneumonia": 500}
    assert talo.set_aside == []
    assert len(talo.repeats) == 1 and len(talo.repeats[0]["image_ids"]) == 2
    assert set(manifest.column("mode")) == {"L"} and set(manifest.column("format")) == {"JPEG"}
    assert min(map(min, zip(manifest.column("width"), manifest.column("height"), strict=True))) == 256
    assert len(manifest.patients_in_two("label")) == 21
