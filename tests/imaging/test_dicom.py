"""DICOM files: every transfer syntax gives the same picture, what cannot be read says why, and what the header tells."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pydicom.pixels
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from tests.imaging.files import (
    LOSSLESS,
    LOSSY,
    Array,
    bare,
    data_set,
    dicom,
    encapsulated,
    encoded,
    refused,
    waves,
    written,
)

from thoraclip.imaging import decode

pytest.importorskip("gdcm", reason="the encoder of half the transfer syntaxes: pip install python-gdcm")
pytest.importorskip("openjpeg", reason="the encoder of JPEG 2000: pip install pylibjpeg-openjpeg")

RAMP = np.arange(256, dtype=np.uint8).reshape(8, 32)


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


def shown(values: Array, photometric: str, bits: int) -> Array:
    """f64: 8 bits as they are (signed ones from -128 up), deeper ones from the smallest to the largest value."""
    least = -128 if values.dtype.kind == "i" else 0
    low, high = (int(values.min()), int(values.max())) if bits > 8 else (least, least + 255)
    grey = (values.astype(np.float64) - low) * 255 / (high - low)
    return 255 - grey if photometric == "MONOCHROME1" else grey


# transfer syntaxes


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (8, True), (10, True), (12, False), (15, False), (16, True)])
def test_lossless_syntaxes_give_the_same_picture(bits: int, signed: bool) -> None:
    values, photometric = waves(bits, signed=signed), f"MONOCHROME{2 - signed}"
    for name, encode in LOSSLESS.items():
        found = decode(encode(data_set(values, bits=bits, PhotometricInterpretation=photometric)))
        assert np.abs(found.pixels - shown(values, photometric, bits)).max() <= 0.5 + 1e-9, name
        assert (found.mode, found.format, found.width, found.height) == (photometric, "DICOM", 48, 40)
        assert found.pixels.dtype == np.uint8 and found.pixels.flags.writeable


def test_a_frame_in_several_fragments_is_one_frame() -> None:
    whole = read(LOSSLESS["JPEG 2000 lossless"](data_set(waves(12), bits=12)))
    frame = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1)
    parts = [frame[at : at + 100] for at in range(0, len(frame), 100)]
    found = decode(encapsulated(data_set(waves(12), bits=12), uid.JPEG2000Lossless, *parts))
    np.testing.assert_array_equal(found.pixels, decode(dicom(waves(12), bits=12)).pixels)


@pytest.mark.parametrize("sides", [(1, 7), (7, 1), (33, 35)])
def test_odd_sizes(sides: tuple[int, int]) -> None:
    values = waves(12)[:, :40].repeat(2, 0)[: sides[0], : sides[1]].copy()
    values.flat[-1] = 4095
    reference = decode(dicom(values, bits=12)).pixels
    assert reference.shape == sides
    for name, encode in LOSSLESS.items():
        if name != "JPEG 2000 lossless" or min(sides) >= 32:  # its encoder wants six resolutions
            np.testing.assert_array_equal(decode(encode(data_set(values, bits=12))).pixels, reference, err_msg=name)
    small = values.astype(np.uint8)
    np.testing.assert_array_equal(decode(dicom(small)).pixels, small)


def test_a_blank_dicom_is_black_and_an_even_one_of_8_bits_stays() -> None:
    assert (decode(dicom(np.full((4, 4), 900, np.uint16), bits=12)).pixels == 0).all()
    assert (decode(dicom(np.full((4, 4), 9, np.uint8))).pixels == 9).all()


# files without preamble


@pytest.mark.parametrize("bits", [8, 12])
def test_files_without_preamble(bits: int, tmp_path: Path) -> None:
    values, signed = waves(bits), waves(bits, signed=True)
    expected = decode(dicom(values, bits=bits)).pixels
    for name in ("implicit", "explicit", "big endian", "deflated", "JPEG 2000 lossless", "JPEG lossless", "RLE"):
        whole = LOSSLESS[name](data_set(values, bits=bits))
        np.testing.assert_array_equal(decode(whole[132:]).pixels, expected, err_msg=name)
    for implicit, little in ((True, True), (False, True), (False, False)):
        data = bare(data_set(values, bits=bits), implicit=implicit, little=little)
        np.testing.assert_array_equal(decode(data).pixels, expected)
        data = bare(data_set(signed, bits=bits), implicit=implicit, little=little)
        np.testing.assert_array_equal(decode(data).pixels, decode(dicom(signed, bits=bits)).pixels)
        (tmp_path / "bare").write_bytes(data)
        assert decode(tmp_path / "bare").format == "DICOM"


# refusals


HEADER = data_set(RAMP)
del HEADER.PixelData
RGB = {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
JPEG_2000 = LOSSLESS["JPEG 2000 lossless"](data_set(waves(12), bits=12))


@pytest.mark.filterwarnings("ignore:A value of 'None'", "ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dicom(RAMP, NumberOfFrames=2, PixelData=2 * RAMP.tobytes()), "2 frames; one is expected: export the frame"),
        (dicom(np.stack([RAMP] * 3, axis=-1), PhotometricInterpretation="RGB", **RGB),
         "3 samples a pixel, photometric interpretation 'RGB'; one grey sample is expected"),
        (dicom(RAMP, PhotometricInterpretation="PALETTE COLOR"), "1 .* 'PALETTE COLOR'; one grey sample is expected"),
        (dicom(RAMP, PhotometricInterpretation=None), "1 samples a pixel, photometric interpretation ''"),
        *((dicom(RAMP, Modality=m), rf"DICOM modality '{m}'; a radiograph \(CR, DX or R") for m in ("CT", "MG", "SR")),
        (written(HEADER), "a DICOM header without pixel data$"),
        (dicom(RAMP, Rows=None), "DICOM pixels cannot be decoded"),
        (dicom(RAMP, PixelData=b"12"), "DICOM pixels cannot be decoded"),
        (dicom(RAMP, BitsAllocated=32, BitsStored=32), "32 bits stored in 32; 8 to 16 bits are expected"),
        (dicom(RAMP, BitsAllocated=1, BitsStored=1), "1 bits stored in 1; 8 to 16 bits are expected"),
        (dicom(RAMP, BitsStored=9), "9 bits stored in 8; 8 to 16 bits are expected"),
        (dicom(RAMP, BitsStored=1), "1 bits stored in 8"),
        (dicom(RAMP, WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC"),
         r".* \(VOI LUT function 'CUBIC'; LINEAR, LINEAR_EXACT or SIGMOID"),
        (dicom(RAMP, SamplesPerPixel=None), "DICOM pixels cannot be decoded"),  # pydicom itself wants the number
        (dicom(RAMP).replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00ZZ"), "damaged DICOM"),  # an unreadable element
        (bare(read(JPEG_2000), implicit=False),
         r"compressed DICOM pixels, and the file does not say how \(no transfer syntax\)$"),
        (encapsulated(data_set(waves(8)), "1.2.840.10008.1.2.4.100", b"1234"), "DICOM pixels cannot be decoded"),
        (dicom(RAMP).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"), "DICOM pixels cannot be decoded"),
        (LOSSY["JPEG extended"](data_set(waves(12), bits=12)),
         r"DICOM pixels cannot be decoded \(.*JPEG Extended.*12-bit"),  # it has no decoder
    ],
)  # fmt: skip
def test_what_is_not_one_grey_frame_of_a_radiograph_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    refused(data, f"^image: {message}")
    (tmp_path / "a.dcm").write_bytes(data)
    refused(tmp_path / "a.dcm", rf"a\.dcm: {message}")


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:A value of 'None'")
@pytest.mark.parametrize(
    "tags", [{"NumberOfFrames": None}, *({"Modality": m} for m in ("CR", "DX", "RG", "OT", "SC", "", None, "dx"))]
)
def test_any_modality_that_can_be_a_radiograph_is_read_and_no_count_of_frames_is_one(tags: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decode(dicom(RAMP, **tags)).pixels, RAMP)


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize(
    "name", ["explicit", "implicit", "deflated", "RLE", "JPEG lossless", "JPEG-LS", "JPEG 2000 lossless"]
)
def test_a_file_that_ends_early_is_not_taken_for_a_header(name: str) -> None:
    data = LOSSLESS[name](data_set(waves(12), bits=12))
    refused(data[: len(data) * 3 // 4], "damaged DICOM|DICOM pixels cannot be decoded")


@pytest.mark.parametrize("name", ["JPEG 2000 lossless", "JPEG lossless", "JPEG-LS", "JPEG baseline"])
def test_a_frame_of_another_size_is_refused(name: str) -> None:
    encode = {**LOSSLESS, **LOSSY}[name]
    ds = read(encode(data_set(waves(8))))
    for rows, columns in ((20, 96), (48, 40)):  # as many pixels
        ds.Rows, ds.Columns = rows, columns
        refused(written(ds), f"frame says 48 x 40 pixels of 1 components, the header {columns} x {rows} of one")


@pytest.mark.parametrize(
    ("syntax", "kind", "options"),
    [(uid.JPEGBaseline8Bit, "JPEG", {}), (uid.JPEG2000, "JPEG2000", {"no_jp2": True})],
)
def test_a_frame_in_colour_is_refused(syntax: str, kind: str, options: dict[str, bool]) -> None:
    frame = encoded(Image.fromarray(np.stack([waves(8)] * 3, axis=-1)), kind, **options)
    says = "48 x 40 pixels of 3 components, the header 48 x 40 of one"
    refused(encapsulated(data_set(waves(8)), syntax, frame), says)


@pytest.mark.parametrize("name", ["JPEG lossless", "JPEG 2000 lossless"])
def test_a_missing_decoder_names_the_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = LOSSLESS[name](data_set(waves(12), bits=12))
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda _: SimpleNamespace(available_plugins=()))
    refused(data, r"^image: 'a decoder for JPEG.*' is not installed; mend it with: pip install 'thoraclip\[dicom\]'$")


# header


def view(*meanings: str) -> dict[str, list[Dataset]]:
    codes = [Dataset() for _ in meanings]
    for code, meaning in zip(codes, meanings, strict=True):
        code.CodeMeaning = meaning
    return {"ViewCodeSequence": codes}


AGES = {"006M": 0.5, "520W": 9.97, "900D": 2.46, "000Y": 0.0, "45": 45.0, "45Y": 45.0}
EMPTY = dict.fromkeys(("PatientID", "ViewPosition", "PatientSex", "PatientAge", "PatientBirthDate", "BodyPartExamined"))


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, {}),
        (EMPTY, {}),
        (
            {"PatientID": " 00  42 ", "IssuerOfPatientID": "Ward 3", "ViewPosition": "pa", "BodyPartExamined": "chest"},
            {"patient_id": "Ward 3/00 42", "view": "PA", "body_part": "CHEST"},
        ),
        ({"PatientSex": "m", "PatientAge": "045Y"}, {"sex": "M", "age_years": 45.0}),
        ({"PatientID": "0042", "PatientSex": "F"}, {"patient_id": "0042", "sex": "F"}),
        ({"IssuerOfPatientID": "Ward 3", "PatientSex": "W", "PatientBirthDate": "19500101"}, {}),
        ({"SpecificCharacterSet": "ISO_IR 192", "PatientID": "Østerås-山田"}, {"patient_id": "Østerås-山田"}),
        ({"PatientSex": "O"}, {"sex": "O"}),
        ({"ViewPosition": "AP"} | view("postero-anterior"), {"view": "AP"}),
        (view("Postero-Anterior"), {"view": "PA"}),
        (view("antero-posterior"), {"view": "AP"}),
        (view("left lateral"), {"view": "LL"}),
        (view("right lateral"), {"view": "RL"}),
        (view("lateral", "oblique"), {"view": "LATERAL"}),
        (view("upside down"), {}),
        (view(), {}),
        ({"PatientAge": "", "PatientBirthDate": "20200101", "StudyDate": "20200702"}, {"age_years": 0.5}),
        ({"PatientAge": "030Y", "PatientBirthDate": "19500101", "StudyDate": "20200101"}, {"age_years": 30.0}),
        *(({"PatientAge": age}, {"age_years": years}) for age, years in AGES.items()),
        *(({"PatientAge": age}, {}) for age in ("0045Y", "old", "Y", "999Y")),
    ],
)
def test_a_header_says_this_and_no_more(tags: dict[str, Any], expected: dict[str, Any]) -> None:
    found = decode(dicom(RAMP, **tags)).header
    assert found is not None
    assert {name: value for name, value in dataclasses.asdict(found).items() if value is not None} == expected


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("born", "studied", "years"),
    [
        ("20200229", "20200229", 0.0),  # on the day of birth
        ("20200302", "20200301", None),  # on the day before
        ("20200101", "20200119", 0.0),
        ("20200101", "20200120", 0.1),  # a tenth of a year, rounded, is the finest that is told
        ("19500102", "20200101", 70.0),  # on the day before the birthday
        ("20000229", "20040816", 4.5),
        ("19000229", "20000101", None),  # there was no such day
        ("18900101", "20191231", 130.0),
        ("18890101", "20200101", None),
        *((date, "20200101", None) for date in ("1950", "19501399", "unknown", "1950.01.01")),
    ],
)
def test_the_age_is_that_between_two_dates(born: str, studied: str, years: float | None) -> None:
    header = decode(dicom(RAMP, PatientBirthDate=born, StudyDate=studied)).header
    assert header is not None and header.age_years == years
