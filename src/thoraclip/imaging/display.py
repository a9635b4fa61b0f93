"""Stored values of a DICOM picture to grey, as its own look-up tables say it is to be shown.

Every step from a stored value to a grey level looks at that value alone, so all of them are computed once on the ramp
of the stored values that occur (at most 65,536) and looked up for the pixels:

    stored -> modality LUT or rescale -> VOI LUT or window -> 0..255 -> inverted or not -> padding black

PS3.3 C.11.1 (modality), C.11.2 (VOI), C.7.6.3.1.2 (photometric interpretation), C.11.6.1.2 (presentation LUT shape),
C.7.5.1.1.2 (padding); https://dicom.nema.org/medical/dicom/current/output/html/part03.html

MONOCHROME1 and the shape INVERSE go together and say the same thing: the picture is inverted once. It is inverted where
one of them stands without the other, too, and that is remarked.

What several readers agree on where the standard leaves it open: without a window, or with one that shows nothing, 8-bit
pixels are taken as they are, and deeper ones from the smallest to the largest value that is not padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from thoraclip.dtypes import Floats, Greys, Ints, Masks
from thoraclip.errors import ImageError
from thoraclip.imaging.numbers import first_number

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["display"]

_LARGEST = 1e300


def display(stored: npt.NDArray[np.integer[Any]], dataset: Dataset, remarks: list[str]) -> Greys:
    """Grey levels u8[H, W] of the stored values; see the module's text. What is odd is added to `remarks`."""
    if stored.ndim != 2 or not stored.size:
        raise ImageError(f"pixels of shape {stored.shape}; one grey frame is expected")
    low, high = int(stored.min()), int(stored.max())
    ramp = np.arange(low, high + 1)
    padding = _padding(ramp, dataset)
    shown = np.zeros(len(ramp), dtype=bool)
    for rows in _blocks(stored):
        shown[stored[rows].astype(np.int32) - low] = True
    with np.errstate(all="ignore"):  # numbers beyond all bounds are refused, or clipped
        grey = _grey_levels(ramp, shown & ~padding, dataset, remarks)
    if _is_inverted(dataset, remarks):
        grey = 255.0 - grey
    table = np.round(np.clip(grey, 0, 255)).astype(np.uint8)
    table[padding] = 0
    pixels = np.empty(stored.shape, dtype=np.uint8)
    for rows in _blocks(stored):
        pixels[rows] = table[stored[rows].astype(np.int32) - low]
    return pixels


def _is_inverted(dataset: Dataset, remarks: list[str]) -> bool:
    """Whether the smallest value is white."""
    photometric = str(dataset.PhotometricInterpretation).strip()
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    inverted = photometric == "MONOCHROME1", shape == "INVERSE"
    if shape in {"IDENTITY", "INVERSE"} and inverted[0] != inverted[1]:
        remarks.append(f"{photometric} contradicts the presentation LUT shape {shape}; shown inverted")
    return any(inverted)


def _blocks(array: npt.NDArray[Any]) -> list[slice]:
    """Slices of rows, about a megapixel each: numpy makes an index eight bytes wide, 800 MB for 100 megapixels."""
    step = max(1, 2**20 // max(1, array.shape[1]))
    return [slice(start, start + step) for start in range(0, len(array), step)]


def _padding(ramp: Ints, dataset: Dataset) -> Masks:
    """True for stored values that mark pixels outside the picture."""
    first = dataset.get("PixelPaddingValue")
    if first is None or first == "":
        return np.zeros(len(ramp), dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit")
    ends = [int(v) for v in (first, first if last in (None, "") else last)]
    if dataset.PixelRepresentation:  # files say US where the rule is SS: 63,536 and -2,000 are the same 16 bits
        half = 2 ** (dataset.BitsAllocated - 1)
        ends = [v - 2 * half if v >= half else v for v in ends]
    return np.asarray((ramp >= min(ends)) & (ramp <= max(ends)))


def _grey_levels(ramp: Ints, shown: Masks, dataset: Dataset, remarks: list[str]) -> Floats:
    """Levels 0..255 of each stored value of the ramp, before inversion; `shown`: those that count."""
    values = _modality_values(ramp, dataset, remarks)
    if not np.abs(values).max() < _LARGEST:
        raise ImageError("RescaleSlope and RescaleIntercept lead beyond what can be computed; mend the header")
    if dataset.get("VOILUTSequence"):
        bits, entries = int(dataset.VOILUTSequence[0].LUTDescriptor[2]), _look_up(values, dataset, "VOILUTSequence")
        if entries.max() > 2**bits - 1:
            remarks.append(f"its VOI table holds values above its {bits} bits, which are shown white")
        return np.asarray(entries * (255.0 / (2**bits - 1)))
    if not shown.any():
        return np.zeros(len(ramp))
    low, high = float(values[shown].min()), float(values[shown].max())
    windowed = _window(values, dataset, remarks)
    if windowed is not None and (low == high or np.ptp(windowed[shown]) > 0):
        return windowed
    if windowed is not None:
        remarks.append("its window shows one grey level alone, and is passed over")
    is_plain = not dataset.get("ModalityLUTSequence") and np.array_equal(values, ramp)
    if is_plain and (bits := dataset.BitsStored) <= 8:  # as a PNG of the same pixels
        least = -(2 ** (bits - 1)) if dataset.PixelRepresentation else 0
        return np.asarray((values - least) * (255.0 / (2**bits - 1)))
    return np.asarray((values - low) * (255.0 / (high - low))) if high > low else np.zeros(len(ramp))


def _modality_values(ramp: Ints, dataset: Dataset, remarks: list[str]) -> Floats:
    """What the stored values measure, by table or by slope and intercept (PS3.3 C.11.1); a slope of 0 counts as
    missing."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(ramp.astype(np.float64), dataset, "ModalityLUTSequence")
    slope, intercept = (first_number(dataset, name, remarks) for name in ("RescaleSlope", "RescaleIntercept"))
    if slope == 0:
        remarks.append("RescaleSlope 0 would leave one value, and is passed over")
    return np.asarray(ramp.astype(np.float64) * (slope or 1.0) + (intercept or 0.0))


def _look_up(values: Floats, dataset: Dataset, sequence: str) -> Floats:
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


def _window(values: Floats, dataset: Dataset, remarks: list[str]) -> Floats | None:
    """The first window, by its function, onto 0..255 (PS3.3 C.11.2.1.2 and C.11.2.1.3); `None` without a valid one."""
    centre, width = (first_number(dataset, name, remarks) for name in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    if centre is None or width is None:
        return None
    if width < (1 if function == "LINEAR" else 1e-6):
        remarks.append(f"WindowWidth {width:g} shows nothing, and is passed over")
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
