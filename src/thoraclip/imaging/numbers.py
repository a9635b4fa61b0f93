"""Numbers of a DICOM data set that stand there as text (PS3.5 6.2, value representations DS and IS)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from thoraclip.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["first_number"]

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
_TEXT = {None, "DS", "IS", "LO", "SH", "CS", "UN"}
"""Representations whose bytes are read here: pydicom takes `1_0` for ten and warns where it cannot read a value."""


def first_number(dataset: Dataset, name: str, remarks: list[str]) -> float | None:
    """The first value of an element; `None` where it is absent or empty.

    A decimal comma is read, and remarked on. Raises ImageError for what is no finite number, or may be two of them:
    `4,096`.
    """
    text = _first_text(dataset, name)
    if not text:
        return None
    number = text
    if _THOUSANDS.fullmatch(text):
        raise ImageError(f"{name} '{text}' may be {text.replace(',', '.')} or {text.replace(',', '')}; mend the header")
    if text.count(",") == 1 and "." not in text:
        number = text.replace(",", ".")
        remarks.append(f"{name} '{text}' has a decimal comma and is read as {number}")
    if not _NUMBER.fullmatch(number) or not math.isfinite(float(number)):
        raise ImageError(f"{name} '{text[:40]}' is no finite number; mend the header")
    return float(number)


def _first_text(dataset: Dataset, name: str) -> str:
    """The first value as it stands in the file, without the spaces and NULs around it."""
    element = dataset.get_item(name)
    value: Any = None if element is None else element.value
    if isinstance(value, bytes) and element is not None:
        value = value.decode("latin-1").split("\\") if element.VR in _TEXT else dataset.get(name)
    while isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = value[0] if len(value) else None
    return "" if value is None else str(value).strip(" \0\t\r\n")
