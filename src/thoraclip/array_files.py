"""Arrays from outside: NPZ, NPY and safetensors, whose types and shapes are compared with what is expected before
anything is read, so that a file cannot ask for more memory than the right one takes.

    read_npz(path, {"means": ("f4", ("C", "D")), "factor": ("f4", ("D", "D"))}, error=MismatchError, remedy="...")

A length is a number, or a letter for any, the same wherever the letter stands. Numbers must be finite.
"""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from thoraclip.documents import Limits, parse_json, regular
from thoraclip.errors import ThoraclipError, first_line

__all__ = ["Expected", "Shape", "open_npy", "read_npz", "read_safetensors"]

Array: TypeAlias = npt.NDArray[Any]
Shape: TypeAlias = tuple[int | str, ...]
Expected: TypeAlias = Mapping[str, tuple[str, Shape]]
"""Name -> (types, as in `u1` or `f2 f4`; shape)."""
MOST_BYTES = 512 << 20
"""Most bytes of all arrays of an NPZ file, and of one of safetensors."""
_DAMAGED = (
    ValueError, OSError, EOFError, MemoryError, SyntaxError, tokenize.TokenError, TypeError, RuntimeError, KeyError,
    OverflowError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What zipfile and NumPy raise on damaged files."""


class _Lengths:
    """Compares types and shapes; a letter keeps the length that it was first met with."""

    def __init__(self, expected: Expected, most: int) -> None:
        self._expected, self._known, self._most, self._left = expected, dict[str, int](), most, most

    def require(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
        """Bytes of the array, or ValueError."""
        types, lengths = self._expected[name]
        fits = len(shape) == len(lengths) and dtype in [np.dtype(kind) for kind in types.split()]
        for own, length in zip(shape, lengths, strict=False):
            wanted = self._known.setdefault(length, own) if isinstance(length, str) else length
            fits = fits and own == wanted
        if not fits:
            wanted_shape = [self._known.get(str(length), length) for length in lengths]
            raise ValueError(f"array {name} is {dtype}{list(shape)}, not {types}{wanted_shape}".replace("'", ""))
        size = math.prod(shape) * dtype.itemsize
        self._left -= size
        if self._left < 0:
            raise ValueError(f"array {name} is {dtype}{list(shape)}, more than {self._most:,} bytes")
        return size


def read_npz(path: Path, expected: Expected, *, error: type[ThoraclipError], remedy: str) -> dict[str, Array]:
    """The arrays of an NPZ file, exactly those that are expected; raises `error` for any other file."""
    try:
        lengths, arrays = _Lengths(expected, MOST_BYTES), dict[str, Array]()
        with regular(path).open("rb") as stream, zipfile.ZipFile(stream) as archive:
            _require_names([name.removesuffix(".npy") for name in archive.namelist()], expected)
            for name in expected:
                with archive.open(f"{name}.npy") as member:
                    shape, is_fortran, dtype = _header(member)
                    data = member.read(lengths.require(name, dtype, shape))
                    if member.read(1):
                        raise ValueError(f"array {name} is longer than its shape {list(shape)}")
                array = np.frombuffer(data, dtype)
                arrays[name] = _finite(name, array.reshape(shape, order="F" if is_fortran else "C"))
    except _DAMAGED as cause:
        raise error(f"{path}: not the arrays that belong there ({first_line(cause)}); {remedy}") from cause
    return arrays


def open_npy(path: Path, expected: tuple[str, Shape], *, error: type[ThoraclipError], remedy: str) -> Array:
    """The array of an NPY file, which stays on disk; raises `error` for any other file."""
    name, lengths = path.stem, expected[1]
    try:
        with regular(path).open("rb") as stream:
            shape, is_fortran, dtype = _header(stream)
            start = stream.tell()
        there = path.stat().st_size - start
        if _Lengths({name: expected}, there).require(name, dtype, shape) != there:
            raise ValueError(f"{there:,} bytes, not those of {dtype}{list(shape)}")
        if not there:  # nothing to map
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", start, shape, "F" if is_fortran else "C")
    except _DAMAGED as cause:
        wanted = f"{expected[0]}{list(lengths)}".replace("'", "")
        raise error(f"{path}: not the array {wanted} that belongs there ({first_line(cause)}); {remedy}") from cause


def read_safetensors(
    path: Path, expected: Expected, *, error: type[ThoraclipError], remedy: str
) -> tuple[dict[str, Array], Any]:
    """(the arrays, exactly those that are expected, the JSON under `thoraclip` in the metadata) of a safetensors file;
    raises `error` for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(path), framework="numpy") as file:
            note = (file.metadata() or {})["thoraclip"]
            _require_names(list(file.keys()), expected)
            lengths, arrays = _Lengths(expected, MOST_BYTES), dict[str, Array]()
            for name in expected:
                part = file.get_slice(name)
                lengths.require(name, np.dtype(_TYPES[part.get_dtype()]), tuple(part.get_shape()))
                arrays[name] = _finite(name, file.get_tensor(name))
    except (SafetensorError, *_DAMAGED) as cause:
        reason = f"no {cause}" if isinstance(cause, KeyError) else first_line(cause)
        raise error(f"{path}: not the arrays that belong there ({reason}); {remedy}") from cause
    return arrays, parse_json(note, path, error=error, remedy=remedy, limits=Limits(bytes=1 << 20))


_TYPES = {"F16": "f2", "F32": "f4", "F64": "f8", "I64": "i8", "U8": "u1"}


def _require_names(names: list[str], expected: Expected) -> None:
    if sorted(names) != sorted(expected):
        raise ValueError(f"arrays {sorted(names)[:8]}, not {sorted(expected)}")


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether columns come first, type) of NPY data."""
    version = npy.read_magic(stream)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"format {version} of NPY")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject or any(length < 0 or length > 1 << 48 for length in shape):
        raise ValueError(f"{dtype}{list(shape)}")
    return shape, is_fortran, dtype


def _finite(name: str, array: Array) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"array {name} is not finite")
    return array
