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
    FLAT,
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

from thoraclip.imaging import DicomHeader, decode

pytest.importorskip("gdcm", reason="the encoder of half the transfer syntaxes: pip install python-gdcm")
pytest.importorskip("openjpeg", reason="the encoder of JPEG 2000: pip install pylibjpeg-openjpeg")

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def shown(values: Array, photometric: str, bits: int) -> Array:
    """f64: 8 bits as they are (signed ones from -128 up), deeper ones from the smallest to the largest value."""
    low, high = (
        (int(values.min()), int(values.max())) if bits > 8 else (-128, 127) if values.dtype.kind == "i" else (0, 255)
    )
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


@pytest.mark.parametrize(("bits", "name"), [(8, name) for name in LOSSY] + [(12, "JPEG 2000")])
def test_lossy_syntaxes_stay_within_two_grey_levels(bits: int, name: str) -> None:
    """Two: what quality 100 (JPEG) and a rate of 4 (JPEG 2000) lose of a smooth picture; one was measured."""
    values = waves(bits)
    found = decode(LOSSY[name](data_set(values, bits=bits)))
    apart = np.abs(found.pixels - shown(values, "MONOCHROME2", bits))
    assert apart.max() <= 2 and apart.mean() < 0.4


@pytest.mark.parametrize("signed", [False, True])
def test_near_lossless_jpeg_ls_stays_within_its_bound(signed: bool) -> None:
    pytest.importorskip("jpeg_ls", reason="an encoder that really loses: pip install pyjpegls")
    values = waves(
        11, signed=signed
    )  # half the range: the code is unsigned, and -2048 less an error would wrap to 2047
    ds = data_set(values, bits=12, WindowCenter=0 if signed else 2048, WindowWidth=4096, VOILUTFunction="LINEAR_EXACT")
    plain = decode(written(ds)).pixels.astype(int)
    ds.compress(uid.JPEGLSNearLossless, jls_error=40, encoding_plugin="pyjpegls", generate_instance_uid=False)
    apart = np.abs(decode(written(ds)).pixels - plain)
    assert 0 < apart.max() <= 40 * 255 / 4096 + 1  # 40 stored values, and the rounding of both


def test_pyjpegls_agrees_on_lossless_jpeg_ls() -> None:
    pytest.importorskip("jpeg_ls")
    data = LOSSLESS["JPEG-LS"](data_set(waves(12), bits=12))
    values = pydicom.pixels.pixel_array(pydicom.dcmread(io.BytesIO(data)), decoding_plugin="pyjpegls")
    np.testing.assert_array_equal(values, waves(12))


@pytest.mark.parametrize("name", FLAT)
def test_high_throughput_jpeg_2000(name: str) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "LINEAR_EXACT"}
    assert (decode(FLAT[name](data_set(waves(8)))).pixels == 128).all()
    assert (decode(FLAT[name](data_set(waves(12), bits=12, **window))).pixels == 128).all()


def test_a_frame_in_several_fragments_is_one_frame() -> None:
    whole = pydicom.dcmread(io.BytesIO(LOSSLESS["JPEG 2000 lossless"](data_set(waves(12), bits=12))))
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


def test_eight_bits_are_those_of_a_png() -> None:
    """The same pixels as DICOM and as PNG must be the same picture, or a model sees the file's format."""
    narrow = (RAMP // 3 + 40).astype(np.uint8)
    np.testing.assert_array_equal(decode(dicom(narrow)).pixels, decode(encoded(Image.fromarray(narrow))).pixels)


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


def test_compressed_pixels_without_a_transfer_syntax_are_refused() -> None:
    ds = pydicom.dcmread(io.BytesIO(LOSSLESS["JPEG 2000 lossless"](data_set(waves(12), bits=12))))
    del ds.file_meta
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, implicit_vr=False, little_endian=True)
    refused(
        stream.getvalue(), r"^image: compressed DICOM pixels, and the file does not say how \(no transfer syntax\)$"
    )


# refusals


def test_what_is_not_one_grey_frame_is_refused() -> None:
    two = np.stack([RAMP, RAMP])
    refused(
        dicom(RAMP, NumberOfFrames=2, PixelData=two.tobytes()), r"^image: 2 frames; one is expected: export the frame"
    )
    rgb = np.stack([RAMP] * 3, axis=-1)
    for photometric in ("RGB", "YBR_FULL"):
        tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
        refused(
            dicom(rgb, **tags), f"3 samples a pixel, photometric interpretation '{photometric}'; one grey sample is"
        )
    refused(dicom(RAMP, PhotometricInterpretation="PALETTE COLOR"), "photometric interpretation 'PALETTE COLOR'")
    refused(dicom(RAMP, PhotometricInterpretation=None), "photometric interpretation ''")


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_only_a_modality_that_can_be_a_radiograph_is_read() -> None:
    for modality in ("CR", "DX", "RG", "OT", "SC", "", None, "dx"):
        np.testing.assert_array_equal(decode(dicom(RAMP, Modality=modality)).pixels, RAMP)
    for modality in ("CT", "MG", "SR"):
        refused(dicom(RAMP, Modality=modality), rf"DICOM modality '{modality}'; a radiograph \(CR, DX or RG\) is expe")


def test_a_header_without_pixels_is_refused(tmp_path: Path) -> None:
    ds = data_set(RAMP)
    del ds.PixelData
    (tmp_path / "head.dcm").write_bytes(written(ds))
    refused(tmp_path / "head.dcm", r"head\.dcm: a DICOM header without pixel data$")


@pytest.mark.filterwarnings("ignore:A value of 'None'")
@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"Rows": None}, "DICOM pixels cannot be decoded"),
        ({"PixelData": b"12"}, "DICOM pixels cannot be decoded"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 bits stored in 32; 8 to 16 bits are expected"),
        ({"BitsAllocated": 1, "BitsStored": 1}, "1 bits stored in 1; 8 to 16 bits are expected"),
        ({"BitsStored": 12}, "12 bits stored in 8; 8 to 16 bits are expected"),
        ({"BitsStored": 0}, "0 bits stored in 8"),
        ({"WindowCenter": 9, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "VOI LUT function 'CUBIC'; LINEAR, LINEAR_EXACT or"),
        ({"SamplesPerPixel": None}, "DICOM pixels cannot be decoded"),  # pydicom itself wants the number
    ],
)  # fmt: skip
def test_damaged_or_unfit_dicom_is_refused(tags: dict[str, Any], message: str) -> None:
    refused(dicom(RAMP, **tags), message)


@pytest.mark.filterwarnings("ignore:A value of 'None'")
def test_an_empty_count_of_frames_is_one() -> None:
    np.testing.assert_array_equal(decode(dicom(RAMP, NumberOfFrames=None)).pixels, RAMP)


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize(
    "name", ["explicit", "implicit", "deflated", "RLE", "JPEG lossless", "JPEG-LS", "JPEG 2000 lossless"]
)
def test_a_file_that_ends_early_is_not_taken_for_a_header(name: str) -> None:
    data = LOSSLESS[name](data_set(waves(12), bits=12))
    refused(data[: len(data) * 3 // 4], "damaged DICOM|DICOM pixels cannot be decoded")


def test_an_unreadable_element_is_refused() -> None:
    data = dicom(RAMP)
    at = data.index(b"\x28\x00\x10\x00US")  # Rows
    refused(data[: at + 4] + b"ZZ" + data[at + 6 :], "damaged DICOM")


@pytest.mark.parametrize("name", ["JPEG 2000 lossless", "JPEG lossless", "JPEG-LS", "JPEG baseline"])
def test_a_frame_of_another_size_is_refused(name: str) -> None:
    encode = {**LOSSLESS, **LOSSY}[name]
    ds = pydicom.dcmread(io.BytesIO(encode(data_set(waves(8)))))
    for rows, columns in ((20, 96), (48, 40)):  # as many pixels
        ds.Rows, ds.Columns = rows, columns
        refused(written(ds), f"frame says 48 x 40 pixels of 1 components, the header {columns} x {rows} of one")


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000])
def test_a_frame_in_colour_is_refused(syntax: str) -> None:
    rgb = Image.fromarray(np.stack([waves(8)] * 3, axis=-1))
    frame = encoded(
        rgb, "JPEG2000" if syntax == uid.JPEG2000 else "JPEG", **({"no_jp2": True} if syntax == uid.JPEG2000 else {})
    )
    refused(
        encapsulated(data_set(waves(8)), syntax, frame), "48 x 40 pixels of 3 components, the header 48 x 40 of one"
    )


def test_jpeg_of_12_bits_has_no_decoder_and_says_so() -> None:
    data = LOSSY["JPEG extended"](data_set(waves(12), bits=12))
    refused(data, r"DICOM pixels cannot be decoded \(.*JPEG Extended.*12-bit")


def test_an_unknown_transfer_syntax_is_refused() -> None:
    refused(
        encapsulated(data_set(waves(8)), "1.2.840.10008.1.2.4.100", b"1234"), "^image: DICOM pixels cannot be decoded"
    )
    ds = data_set(RAMP)
    ds.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, implicit_vr=False, little_endian=True)
    refused(stream.getvalue(), "^image: DICOM pixels cannot be decoded")


@pytest.mark.parametrize("name", ["JPEG lossless", "JPEG 2000 lossless"])
def test_a_missing_decoder_names_the_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = LOSSLESS[name](data_set(waves(12), bits=12))
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda _: SimpleNamespace(available_plugins=()))
    refused(data, r"^image: 'a decoder for JPEG.*' is not installed; mend it with: pip install 'thoraclip\[dicom\]'$")


# header


def header(**tags: Any) -> DicomHeader:
    found = decode(dicom(RAMP, **tags)).header
    assert found is not None
    return found


def view_code(*meanings: str) -> list[Dataset]:
    codes = [Dataset() for _ in meanings]
    for code, meaning in zip(codes, meanings, strict=True):
        code.CodeMeaning = meaning
    return codes


def test_an_empty_header_says_nothing() -> None:
    assert set(dataclasses.astuple(header())) == {None}
    empty = dict.fromkeys(
        ("PatientID", "ViewPosition", "PatientSex", "PatientAge", "PatientBirthDate", "BodyPartExamined")
    )
    assert set(dataclasses.astuple(header(**empty))) == {None}


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("tags", "name", "value"),
    [
        ({"PatientID": "0042"}, "patient_id", "0042"),
        ({"PatientID": " 00  42 ", "IssuerOfPatientID": "Ward 3"}, "patient_id", "Ward 3/00 42"),
        ({"IssuerOfPatientID": "Ward 3"}, "patient_id", None),
        ({"ViewPosition": "pa"}, "view", "PA"),
        ({"ViewPosition": "AP", "ViewCodeSequence": view_code("postero-anterior")}, "view", "AP"),
        ({"ViewCodeSequence": view_code("Postero-Anterior")}, "view", "PA"),
        ({"ViewCodeSequence": view_code("antero-posterior")}, "view", "AP"),
        ({"ViewCodeSequence": view_code("left lateral")}, "view", "LL"),
        ({"ViewCodeSequence": view_code("right lateral")}, "view", "RL"),
        ({"ViewCodeSequence": view_code("lateral", "oblique")}, "view", "LATERAL"),
        ({"ViewCodeSequence": view_code("upside down")}, "view", None),
        ({"ViewCodeSequence": []}, "view", None),
        ({"PatientSex": "F"}, "sex", "F"),
        ({"PatientSex": "m"}, "sex", "M"),
        ({"PatientSex": "O"}, "sex", "O"),
        ({"PatientSex": "W"}, "sex", None),
        ({"PatientAge": "045Y"}, "age_years", 45.0),
        ({"PatientAge": "006M"}, "age_years", 0.5),
        ({"PatientAge": "012W"}, "age_years", round(12 * 7 / 365.25, 2)),
        ({"PatientAge": "003D"}, "age_years", round(3 / 365.25, 2)),
        ({"PatientAge": "000Y"}, "age_years", 0.0),
        ({"PatientAge": "", "PatientBirthDate": "20200101", "StudyDate": "20200702"}, "age_years", 0.5),
        ({"PatientAge": "030Y", "PatientBirthDate": "19500101", "StudyDate": "20200101"}, "age_years", 30.0),
        ({"PatientBirthDate": "19500101"}, "age_years", None),
        ({"BodyPartExamined": "chest"}, "body_part", "CHEST"),
    ],
)
def test_header(tags: dict[str, Any], name: str, value: str | float | None) -> None:
    assert getattr(header(**tags), name) == value


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(("age", "years"), [("45", 45.0), ("45Y", 45.0), ("0045Y", None), ("old", None), ("Y", None)])
def test_ages_that_break_the_rules(age: str, years: float | None) -> None:
    assert header(PatientAge=age).age_years == years


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("born", "studied", "years"),
    [
        ("20200229", "20200229", 0.0),  # on the day of birth
        ("20200302", "20200301", None),  # on the day before
        ("20200101", "20200119", 0.0),
        ("20200101", "20200120", 0.1),  # a tenth of a year, rounded, is the finest that is told
        ("19500102", "20200101", 70.0),  # on the day before the birthday
        ("19500102", "20200102", 70.0),
        ("20000229", "20240229", 24.0),
        ("20000229", "20010228", 1.0),
        ("20000229", "20040816", 4.5),
        ("19000229", "20000101", None),  # there was no such day
        ("18900101", "20191231", 130.0),
        ("18890101", "20200101", None),
        *((date, "20200101", None) for date in ("1950", "19501399", "unknown", "1950.01.01")),
    ],
)
def test_the_age_is_that_between_two_dates(born: str, studied: str, years: float | None) -> None:
    assert header(PatientBirthDate=born, StudyDate=studied).age_years == years


def test_text_in_another_character_set() -> None:
    assert header(SpecificCharacterSet="ISO_IR 192", PatientID="Østerås-山田").patient_id == "Østerås-山田"


def test_bits_at_an_unusual_place_are_refused() -> None:
    refused(dicom(RAMP.astype("<u2"), bits=12, HighBit=15), "12 bits stored, the highest at place 15; 11 is expected")
