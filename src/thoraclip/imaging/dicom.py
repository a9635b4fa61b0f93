"""One grey DICOM radiograph: what the file is, what it says of the patient, and its pixels, or one reason why not."""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thoraclip.dtypes import Greys
from thoraclip.errors import ImageError, MissingExtraError, first_line
from thoraclip.imaging.display import display
from thoraclip.imaging.isolated import decode_apart, last_line
from thoraclip.imaging.numbers import first_number

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["MAX_PIXELS", "OLDEST_YEARS", "PER_YEAR", "DicomHeader", "decode_dicom", "is_dicom", "refuse_many_scans"]

Stored = npt.NDArray[np.integer[Any]]

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: no radiograph is that large, a decompression bomb is."""
MAX_INFLATED = 512 * 1024**2
"""Bytes that a deflated data set may take."""
_MODALITIES = {"CR", "DX", "RG", "OT", "SC", ""}
"""That can hold a radiograph: computed, digital, conventional radiography, other, secondary capture, not stated."""
_MAX_RUN = 64
"""PackBits turns two bytes into at most 128."""
_MAX_UNPACKED = 256 * 1024**2
"""Run-length frames that could become larger are measured first."""
_MAX_SCANS = 100
"""A progressive JPEG has about ten scans; with thousands, a small file keeps the decoder busy for hours."""
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PLUGINS = ("pylibjpeg", "pillow", "pydicom", "gdcm")
"""Decoders in order of trust; the first one that is installed decodes."""
_DECODED_HERE = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.5"}
"""JPEG by Pillow and run lengths by pydicom survive hostile data; for the others see `isolated`."""
_VIEWS = {
    "postero-anterior": "PA", "antero-posterior": "AP",
    "left lateral": "LL", "right lateral": "RL", "lateral": "LATERAL",
}  # fmt: skip
_WHOLE = ("SamplesPerPixel", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}
OLDEST_YEARS = 130


@dataclass(frozen=True)
class DicomHeader:
    """What a DICOM file says besides its pixels; `None` where it says nothing."""

    patient_id: str | None  # as in the file, with its issuer; never written anywhere unhashed
    view: str | None  # `PA`, `AP`, `LL`, `RL`, ... in capitals
    sex: str | None  # `M`, `F` or `O`
    age_years: float | None  # at the time of the study
    body_part: str | None  # body part examined, in capitals


def is_dicom(data: bytes) -> bool:
    """By content alone; files without the preamble start with group 2 or 8."""
    return data[128:132] == b"DICM" or data[:2] in {b"\x02\x00", b"\x08\x00", b"\x00\x08"}


def decode_dicom(data: bytes, max_pixels: int) -> tuple[Greys, str, DicomHeader, tuple[str, ...]]:
    """(u8[H, W], photometric interpretation, header, remarks) of a DICOM file's bytes; raises ImageError where they are
    damaged, without pixel data, of several frames, colour or another modality, or cannot be decoded."""
    remarks: list[str] = []
    try:  # pydicom reads an element when it is asked for, so any of these lines may find the damage
        dataset = _parse(data)
        photometric = _refuse_unfit(dataset, max_pixels)
        header = _header(dataset)
    except ImageError:
        raise
    except Exception as error:  # of many kinds
        raise ImageError(f"damaged DICOM ({first_line(error)})") from error
    try:
        pixels = display(_stored_values(dataset, data, remarks), dataset, remarks)
    except Exception as error:  # decoders raise many kinds
        is_clear = isinstance(error, MissingExtraError)
        raise ImageError(str(error) if is_clear else f"DICOM pixels cannot be decoded ({first_line(error)})") from error
    return pixels, photometric, header, tuple(remarks)


def _parse(data: bytes) -> Dataset:
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if _DEFLATED.encode() in data[:1024]:
        _refuse_inflation(data)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if "PixelData" not in dataset and b"\xe0\x7f\x10\x00O" in data:  # pydicom drops compressed pixels that do not end
        raise ImageError("damaged DICOM (it ends before its pixels do)")
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        guess = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = guess
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ImageError("compressed DICOM pixels, and the file does not say how (no transfer syntax)")
    return dataset


def _refuse_inflation(data: bytes) -> None:
    """Raise ImageError where the deflated part of a file blows up; pydicom would inflate it whole."""
    part, size = data[_end_of_meta(data) :], 0
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while part and not inflater.eof:
        size += len(inflater.decompress(part, 16 * 1024**2))
        part = inflater.unconsumed_tail
        if size > MAX_INFLATED:
            raise ImageError(f"a deflated DICOM of more than {MAX_INFLATED:,} bytes; not a radiograph")


def _end_of_meta(data: bytes) -> int:
    """Where group 2, always explicit little endian, ends (PS3.10 7.1)."""
    at = 132 if data[128:132] == b"DICM" else 0
    while data[at : at + 2] == b"\x02\x00" and at + 12 <= len(data):
        is_long = data[at + 4 : at + 6] in {b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC", b"UR"}
        head, field = (12, data[at + 8 : at + 12]) if is_long else (8, data[at + 6 : at + 8])
        at += head + int.from_bytes(field, "little")
    return at


def _refuse_unfit(dataset: Dataset, max_pixels: int) -> str:
    """The photometric interpretation of one grey frame of a radiograph; ImageError for anything else."""
    if "PixelData" not in dataset:
        raise ImageError("a DICOM header without pixel data")
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality not in _MODALITIES:
        raise ImageError(f"DICOM modality '{modality}'; a radiograph (CR, DX or RG) is expected")
    for name in _WHOLE:  # files have them as text, too, or empty
        if (value := dataset.get(name)) not in (None, ""):
            dataset.add_new(name, "US", int(value))
        elif name in dataset:
            delattr(dataset, name)
    frames, samples = first_number(dataset, "NumberOfFrames", []) or 1, dataset.get("SamplesPerPixel", 1)
    if frames != 1:
        raise ImageError(f"{frames:g} frames; one is expected: export the frame that is wanted as a picture")
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    if samples != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        said = f"{samples} samples a pixel, photometric interpretation '{photometric}'"
        raise ImageError(f"{said}; one grey sample is expected, not a colour secondary capture")
    dataset.PhotometricInterpretation = photometric
    if dataset.get("Rows", 0) * dataset.get("Columns", 0) > max_pixels:
        raise ImageError(f"more than {max_pixels:,} pixels; not a radiograph")
    allocated, stored = dataset.get("BitsAllocated", 0), dataset.get("BitsStored", 0)
    if allocated not in {8, 16} or not 1 < stored <= allocated:
        raise ImageError(f"{stored} bits stored in {allocated}; 8 to 16 bits are expected")
    dataset.add_new("NumberOfFrames", "IS", 1)  # for pydicom, which reads the text in another way
    return photometric


def _header(dataset: Dataset) -> DicomHeader:
    def text(name: str) -> str | None:
        return " ".join(str(dataset.get(name) or "").split()) or None

    patient, issuer = text("PatientID"), text("IssuerOfPatientID")
    sex = (text("PatientSex") or "").upper()
    view = (text("ViewPosition") or "").upper() or None
    if view is None and (codes := dataset.get("ViewCodeSequence")):
        view = _VIEWS.get(str(codes[0].get("CodeMeaning") or "").strip().lower())
    return DicomHeader(
        patient_id=f"{issuer}/{patient}" if patient and issuer else patient,
        view=view,
        sex=sex if sex in {"M", "F", "O"} else None,
        age_years=_age_years(text("PatientAge"), text("PatientBirthDate"), text("StudyDate")),
        body_part=(text("BodyPartExamined") or "").upper() or None,
    )


def _age_years(age: str | None, born: str | None, studied: str | None) -> float | None:
    """`045Y`, `006M`, `012W`, `003D` (PS3.5, value representation AS), also `45`; else the two dates, in years."""
    if match := re.fullmatch(r"(\d{1,3})\s*([DWMY]?)", (age or "").upper()):
        years = round(int(match[1]) / PER_YEAR[match[2] or "Y"], 2)
        return years if years <= OLDEST_YEARS else None  # 999Y stands for unknown
    try:
        days = (datetime.strptime(studied or "", "%Y%m%d") - datetime.strptime(born or "", "%Y%m%d")).days
    except ValueError:
        return None
    # no closer: dates of birth identify people
    return round(days / 365.25, 1) if 0 <= days < OLDEST_YEARS * 366 else None


def _stored_values(dataset: Dataset, data: bytes, remarks: list[str]) -> Stored:
    """The stored values, i or u 8 or 16[H, W], from the bits in which they lie."""
    allocated, stored = dataset.BitsAllocated, dataset.BitsStored
    high = dataset.get("HighBit", stored - 1)
    if high == stored - 1 and (stored == allocated or dataset.file_meta.TransferSyntaxUID.is_encapsulated):
        return _decoded(dataset, data)
    dataset.BitsStored, dataset.HighBit = allocated, allocated - 1  # so that pydicom cuts nothing off
    values = _decoded(dataset, data)
    dataset.BitsStored, dataset.HighBit = stored, stored - 1
    values, shift, fits = _in_low_bits(values, stored, high)
    if high != stored - 1:
        where = f"are shifted down by {shift} bits" if shift else "lie in the low bits"
        remarks.append(f"HighBit {high} contradicts {stored} bits stored; the values {where}")
    elif not fits:
        remarks.append(f"bits above the {stored} that are stored are set, as by an overlay, and are cut off")
    return values


def _in_low_bits(values: Stored, stored: int, high: int) -> tuple[Stored, int, bool]:
    """(values of so many bits, by how many they were shifted down, whether they fit as they are): by none where they
    do, or where no such place is among the bits of a pixel."""
    values = values.astype(values.dtype.newbyteorder("="))  # those of a big-endian file are turned round
    size, shift = 8 * values.dtype.itemsize, high + 1 - stored
    words = values.view(f"u{values.dtype.itemsize}")
    above = words >> (stored - 1)  # from the sign on
    is_extended = (above == 2 ** (size - stored + 1) - 1) if values.dtype.kind == "i" else np.False_
    fits = bool(((above <= 1) | is_extended).all())
    if fits or not 0 < shift <= size - stored:
        shift = 0
    return (words >> shift << (size - stored)).view(values.dtype) >> (size - stored), shift, fits


def _decoded(dataset: Dataset, data: bytes) -> Stored:
    """The values of pixels, by the most trusted decoder that is installed."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == _DEFLATED:
        return np.asarray(pixel_array(dataset))
    _check_frame(dataset)
    available = get_decoder(syntax).available_plugins
    if not (plugin := next((name for name in _PLUGINS if name in available), "")):
        raise MissingExtraError(f"a decoder for {syntax.name}", "dicom")
    if plugin == "gdcm" or syntax not in _DECODED_HERE:
        return decode_apart(data, plugin)
    try:
        return np.asarray(pixel_array(dataset, decoding_plugin=plugin))
    except Exception as error:  # of many kinds
        raise ImageError(last_line(error)[:200]) from error


def _check_frame(dataset: Dataset) -> None:
    """Raise ImageError, before a frame is decoded, where it is of several components or another size than the data set,
    its size is not to be found, or a run-length frame is longer than its pixels can need."""
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    columns, rows = int(dataset.Columns), int(dataset.Rows)
    if dataset.file_meta.TransferSyntaxUID == RLELossless:
        needed = columns * rows * int(dataset.BitsAllocated) // 8
        if len(frame) > 2 * needed + 1024:
            raise ImageError(f"a run-length frame of {len(frame):,} bytes for {needed:,} bytes of pixels")
        if len(frame) * _MAX_RUN > _MAX_UNPACKED and _unpacks_beyond(frame, 2 * needed + 1024):
            raise ImageError(f"a run-length frame that unpacks to more than the {needed:,} bytes of its pixels")
        return
    if frame[:2] == b"\xff\xd8":
        refuse_many_scans(frame)
    if (found := _frame_size(frame)) != (columns, rows, 1):
        text = "no size" if found is None else f"{found[0]} x {found[1]} pixels of {found[2]} components"
        raise ImageError(f"the compressed frame says {text}, the header {columns} x {rows} of one")


def refuse_many_scans(data: bytes) -> None:
    """Raise ImageError for a JPEG with more scans than any honest one has."""
    if (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise ImageError(f"a JPEG of {scans:,} scans; more than {_MAX_SCANS} are not decoded")


def _unpacks_beyond(frame: bytes, limit: int) -> bool:
    """True where PackBits (PS3.5 G.3) would turn the frame's segments into more than `limit` bytes."""
    offsets = struct.unpack_from("<15I", frame, 4)[: frame[0]]
    starts = sorted({offset for offset in offsets if 64 <= offset < len(frame)})
    size = 0
    for at, end in zip(starts, [*starts[1:], len(frame)], strict=True):
        while at < end and size <= limit:
            control = frame[at]
            size += control + 1 if control < 128 else 257 - control if control > 128 else 0
            at += control + 2 if control < 128 else 2 if control > 128 else 1
    return size > limit


def _frame_size(frame: bytes) -> tuple[int, int, int] | None:
    """(columns, rows, components) of a JPEG, JPEG-LS or JPEG 2000 frame; `None` where its header is not found.

    JPEG and JPEG-LS: the frame header SOFn (ITU-T T.81 B.2.2, T.87 C.2.2). JPEG 2000: SIZ (ITU-T T.800 A.5.1).
    """
    if 0 <= (start := frame.find(b"\xff\x4f\xff\x51", 0, 4099)) <= len(frame) - 42:
        right, bottom, left, top, components = struct.unpack_from(">4I16xH", frame, start + 8)
        return right - left, bottom - top, components
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            rows, columns, components = struct.unpack_from(">HHB", frame, at + 5)
            return columns, rows, components
        else:
            at += 2 + length
    return None
