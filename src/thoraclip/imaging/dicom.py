"""One grey DICOM radiograph to 8-bit grey, as its own look-up tables say it is to be shown.

Every step from a stored value to a grey level looks at that value alone, so all of them are computed once on the ramp of
the stored values that occur (at most 65,536) and looked up for the pixels:

    stored -> modality LUT or rescale -> VOI LUT or window -> 0..255 -> MONOCHROME1 inverted -> padding black

PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.6.3.1.2 (photometric interpretation), C.7.5.1.1.2 (padding);
https://dicom.nema.org/medical/dicom/current/output/html/part03.html

What several readers agree on where the standard leaves it open: without a window, or with one that shows nothing, 8-bit
pixels are taken as they are, and deeper ones from the smallest to the largest value that is not padding.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thoraclip.errors import ImageError, MissingExtraError, first_line
from thoraclip.imaging.codestream import check_frame
from thoraclip.imaging.isolated import decode_apart

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["MAX_PIXELS", "MODALITIES", "DicomHeader", "decode_dicom", "is_dicom"]

MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: no radiograph is that large, a decompression bomb is."""
MAX_INFLATED = 512 * 1024**2
"""Bytes that a deflated data set may take."""
MODALITIES = {
    "CR": "computed radiography", "DX": "digital radiography", "RG": "conventional radiograph",
    "OT": "other", "SC": "secondary capture", "": "not stated",
}  # fmt: skip
"""Modalities that can hold a radiograph; any other one is refused."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_PLUGINS = ("pylibjpeg", "pillow", "pydicom")
"""Decoders that survive damaged data, in order of trust. GDCM does not: it runs in a process of its own."""
_VIEWS = {
    "postero-anterior": "PA", "antero-posterior": "AP", "left lateral": "LL", "right lateral": "RL", "lateral": "LATERAL",
}  # fmt: skip
_PER_YEAR = {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}


@dataclass(frozen=True)
class DicomHeader:
    """What a DICOM file says besides its pixels; `None` where it says nothing.

    Args:
        patient_id: as in the file, with its issuer; never written anywhere unhashed.
        view: `PA`, `AP`, `LL`, `RL`, ... in capitals.
        sex: `M`, `F` or `O`.
        age_years: at the time of the study.
        body_part: body part examined, in capitals.
    """

    patient_id: str | None
    view: str | None
    sex: str | None
    age_years: float | None
    body_part: str | None


def is_dicom(data: bytes) -> bool:
    """By content alone, so that a path and its bytes decode alike; files without the preamble start with group 2 or 8."""
    return data[128:132] == b"DICM" or data[:2] in {b"\x02\x00", b"\x08\x00", b"\x00\x08"}


def decode_dicom(data: bytes, where: str) -> tuple[npt.NDArray[np.uint8], str, DicomHeader]:
    """(u8[H, W], photometric interpretation, header) of a DICOM file's bytes.

    Raises:
        ImageError: damaged, without pixel data, several frames, colour, another modality, or pixels that cannot be decoded.
    """
    try:  # pydicom reads an element when it is asked for, so any of these lines may find the damage
        dataset = _parse(data)
        photometric = _refuse_unfit(dataset)
        header = _header(dataset)
    except ImageError as error:
        raise ImageError(f"{where}: {error}") from error
    except Exception as error:  # of many kinds
        raise ImageError(f"{where}: damaged DICOM ({first_line(error)})") from error
    try:
        grey = _display(_stored_values(dataset, data), dataset)
    except MissingExtraError as error:
        raise ImageError(f"{where}: {error}") from error
    except Exception as error:  # decoders raise many kinds
        raise ImageError(f"{where}: DICOM pixels cannot be decoded ({first_line(error)})") from error
    return grey, photometric, header


def _parse(data: bytes) -> Dataset:
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if _DEFLATED.encode() in data[:1024]:
        _refuse_inflation(data)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
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


def _refuse_unfit(dataset: Dataset) -> str:
    """The photometric interpretation of one grey frame of a radiograph; ImageError with the reason for anything else."""
    if "PixelData" not in dataset:
        raise ImageError("a DICOM header without pixel data")
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality not in MODALITIES:
        raise ImageError(f"DICOM modality '{modality}'; a radiograph (CR, DX or RG) is expected")
    frames, samples = (int(dataset.get(name) or 1) for name in ("NumberOfFrames", "SamplesPerPixel"))
    if frames != 1:
        raise ImageError(f"{frames} frames; one is expected: export the frame that is wanted as a picture")
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if samples != 1 or photometric not in {"MONOCHROME1", "MONOCHROME2"}:
        raise ImageError(
            f"{samples} samples a pixel, photometric interpretation '{photometric}'; one grey sample is expected, "
            "not a colour secondary capture"
        )
    if int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) > MAX_PIXELS:
        raise ImageError(f"more than {MAX_PIXELS:,} pixels; not a radiograph")
    allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
    if allocated not in {8, 16} or not 1 < stored <= allocated:
        raise ImageError(f"{stored} bits stored in {allocated}; 8 to 16 bits are expected")
    return photometric


def _header(dataset: Dataset) -> DicomHeader:
    def text(name: str) -> str | None:
        return " ".join(str(dataset.get(name) or "").split()) or None

    patient, issuer = text("PatientID"), text("IssuerOfPatientID")
    sex = (text("PatientSex") or "").upper()
    return DicomHeader(
        patient_id=f"{issuer}/{patient}" if patient and issuer else patient,
        view=_view(dataset, text("ViewPosition")),
        sex=sex if sex in {"M", "F", "O"} else None,
        age_years=_age_years(text("PatientAge"), text("PatientBirthDate"), text("StudyDate")),
        body_part=(text("BodyPartExamined") or "").upper() or None,
    )


def _view(dataset: Dataset, position: str | None) -> str | None:
    if position:
        return position.upper()
    codes = dataset.get("ViewCodeSequence") or []
    meaning = str(codes[0].get("CodeMeaning") or "").strip().lower() if codes else ""
    return _VIEWS.get(meaning)


def _age_years(age: str | None, born: str | None, studied: str | None) -> float | None:
    """`045Y`, `006M`, `012W`, `003D` (PS3.5, value representation AS), also `45`; else the two dates, in years."""
    match = re.fullmatch(r"(\d{1,3})\s*([DWMY]?)", (age or "").upper())
    if match:
        return round(int(match[1]) / _PER_YEAR[match[2] or "Y"], 2)
    days = [_days(date) for date in (born, studied)]
    if days[0] is None or days[1] is None or not 0 <= days[1] - days[0] < 130 * 366:
        return None
    return round((days[1] - days[0]) / 365.25, 2)


def _days(date: str | None) -> int | None:
    from datetime import datetime

    try:
        return datetime.strptime(date or "", "%Y%m%d").toordinal()
    except ValueError:
        return None


def _stored_values(dataset: Dataset, data: bytes) -> npt.NDArray[np.integer[Any]]:
    """The stored values, i or u 8 or 16[H, W], by the first decoder that can."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == _DEFLATED:
        return np.asarray(pixel_array(dataset))
    check_frame(dataset)
    decoder = get_decoder(syntax)
    failures = []
    for plugin in [name for name in _PLUGINS if name in decoder.available_plugins]:
        try:
            return np.asarray(pixel_array(dataset, decoding_plugin=plugin))
        except Exception as error:  # the next one may be able to
            failures.append(
                str(error).strip().splitlines()[-1].strip()[:200] if str(error).strip() else type(error).__name__
            )
    if "gdcm" in decoder.available_plugins and not failures:
        return decode_apart(data)
    if failures:
        raise ImageError(failures[0])
    raise MissingExtraError(f"a decoder for {syntax.name}", "dicom")


def _display(stored: npt.NDArray[np.integer[Any]], dataset: Dataset) -> npt.NDArray[np.uint8]:
    """Grey levels u8[H, W] of the stored values; see the module's text."""
    if stored.ndim != 2 or not stored.size:
        raise ImageError(f"pixels of shape {stored.shape}; one grey frame is expected")
    low, high = int(stored.min()), int(stored.max())
    ramp = np.arange(low, high + 1)
    padding = _padding(ramp, dataset)
    shown = np.bincount((stored.astype(np.int32) - low).ravel(), minlength=len(ramp)).astype(bool) & ~padding
    grey = _grey_levels(ramp, shown, dataset)
    if str(dataset.PhotometricInterpretation).strip() == "MONOCHROME1":
        grey = 255.0 - grey
    table = np.round(np.clip(grey, 0, 255)).astype(np.uint8)
    table[padding] = 0
    return table[stored.astype(np.int32) - low]


def _padding(ramp: npt.NDArray[np.int64], dataset: Dataset) -> npt.NDArray[np.bool_]:
    """True for stored values that mark pixels outside the picture."""
    first = dataset.get("PixelPaddingValue")
    if first is None or first == "":
        return np.zeros(len(ramp), dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit")
    ends = [int(v) for v in (first, first if last in (None, "") else last)]
    if int(dataset.PixelRepresentation):  # files say US where the rule is SS: 63,536 and -2,000 are the same 16 bits
        half = 2 ** (int(dataset.BitsAllocated) - 1)
        ends = [v - 2 * half if v >= half else v for v in ends]
    ends.sort()
    found: npt.NDArray[np.bool_] = (ramp >= ends[0]) & (ramp <= ends[1])
    return found


def _grey_levels(
    ramp: npt.NDArray[np.int64], shown: npt.NDArray[np.bool_], dataset: Dataset
) -> npt.NDArray[np.float64]:
    """f64 levels 0..255 of each stored value of the ramp, before inversion.

    Args:
        ramp: the stored values.
        shown: which of them occur in the picture.
        dataset: holds the look-up tables.
    """
    values = _modality_values(ramp, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.asarray(_look_up(values, dataset, "VOILUTSequence") * (255.0 / (2**bits - 1)))
    if not shown.any():
        return np.zeros(len(ramp))
    low, high = float(values[shown].min()), float(values[shown].max())
    windowed = _window(values, dataset)
    if windowed is not None and (low == high or np.ptp(windowed[shown]) > 0):
        return windowed
    is_plain = not dataset.get("ModalityLUTSequence") and np.array_equal(values, ramp)
    if is_plain and int(dataset.BitsStored) <= 8:  # as a PNG of the same pixels
        bits = int(dataset.BitsStored)
        least = -(2 ** (bits - 1)) if int(dataset.PixelRepresentation) else 0
        return np.asarray((values - least) * (255.0 / (2**bits - 1)))
    return np.asarray((values - low) * (255.0 / (high - low))) if high > low else np.zeros(len(ramp))


def _modality_values(ramp: npt.NDArray[np.int64], dataset: Dataset) -> npt.NDArray[np.float64]:
    """What the stored values measure, by table or by slope and intercept (PS3.3 C.11.1); a slope of 0 counts as missing."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(ramp.astype(np.float64), dataset, "ModalityLUTSequence")
    slope, intercept = (_first_number(dataset.get(name)) for name in ("RescaleSlope", "RescaleIntercept"))
    values: npt.NDArray[np.float64] = ramp.astype(np.float64) * (slope or 1.0) + (intercept or 0.0)
    return values


def _look_up(values: npt.NDArray[np.float64], dataset: Dataset, sequence: str) -> npt.NDArray[np.float64]:
    """The entries of a sequence's first table (PS3.3 C.11.1.1 and C.11.2.1.1); beyond its ends, the first and the last.

    Not pydicom's: 3.0 wraps the index at 256 where entries have 8 bits, and does not read two entries in a word.
    """
    item = dataset[sequence].value[0]
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count % 2**16 or 2**16  # by a signed descriptor more than 32,767 entries are a negative number
    data = item.LUTData
    if not isinstance(data, bytes):
        data = np.atleast_1d(np.asarray(data, dtype=np.int64)).astype("<u2").tobytes()
    elif not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        data = np.frombuffer(data, ">u2").astype("<u2").tobytes()
    is_packed = bits <= 8 and len(data) < 2 * count
    entries = np.frombuffer(data, "u1" if is_packed else "<u2", count=count)
    return entries[np.clip(np.round(values) - first, 0, count - 1).astype(np.int64)].astype(np.float64)


def _window(values: npt.NDArray[np.float64], dataset: Dataset) -> npt.NDArray[np.float64] | None:
    """The first window, by its function, onto 0..255 (PS3.3 C.11.2.1.2 and C.11.2.1.3); `None` without a valid one."""
    centre, width = (_first_number(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-6):
        return None
    if function == "SIGMOID":
        return 255.0 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        raise ImageError(f"VOI LUT function '{function}'; LINEAR, LINEAR_EXACT or SIGMOID is expected")
    if width == 0:
        return np.where(values > centre, 255.0, 0.0)
    return np.clip((values - centre) / width + 0.5, 0, 1) * 255.0


def _first_number(value: Any) -> float | None:
    from pydicom.multival import MultiValue

    first = value[0] if isinstance(value, MultiValue | list | tuple) and len(value) else value
    if first is None or first == "" or isinstance(first, MultiValue | list | tuple):
        return None
    number = float(first)
    return number if np.isfinite(number) else None
