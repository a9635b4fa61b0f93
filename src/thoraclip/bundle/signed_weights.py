"""The unsigned weights of an int8 model as signed ones, in memory: the same products, by faster instructions.

In the file a weight Q is the byte Q + 128, of type u8, which every processor multiplies exactly (see `eight_bits`). A
processor with dot products of bytes (VNNI, AMX) multiplies u8 by s8 exactly, too, and several times as fast
(docs/deploy.md). Q and Q + 128 differ by their highest bit, so the file is read, and changed, without the package
onnx; the field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thoraclip.models.sessions import onnxruntime, open_session

__all__ = ["WEIGHTS_END", "ZEROS_END", "open_signed", "signed_weights"]

WEIGHTS_END, ZEROS_END = ".unsigned", ".unsigned_zero"
"""How the names of weights end that may become signed, and of their zero points, which no activation shares. Bundles
of earlier versions have other names, and stay as they are."""
Signed = npt.NDArray[np.int8]
_GRAPH, _CONSTANTS = 7, 5
_DIMENSION, _TYPE, _NAME, _CONTENT, _BESIDE = 1, 2, 8, 9, 13
_KEY, _VALUE = 1, 2
_VARINT, _EIGHT_BYTES, _SIZED = 0, 1, 2
_S8 = 3
_HIGHEST_BIT = np.uint8(128)


def open_signed(model: Path, options: Any) -> Any:
    """A session of an ONNX file, its unsigned weights made signed; `options` of ONNX Runtime get those beside it.

    Raises:
        IndexError, KeyError, ValueError: it is no ONNX file.
    """
    data, beside = signed_weights(model)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(content) for content in beside.values()]
    options.add_external_initializers(list(beside), values)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
    return open_session(data, options)


def signed_weights(model: Path) -> tuple[bytes, dict[str, Signed]]:
    """(the content of an ONNX file, its unsigned weights made signed; those that lie beside the file, by name); raises
    as `open_signed`."""
    data, beside = bytearray(model.read_bytes()), dict[str, Signed]()
    for part, start, stop in _fields(data, 0, len(data)):
        if part == _GRAPH:
            for number, first, last in _fields(data, start, stop):
                if number == _CONSTANTS:
                    beside |= _sign(data, first, last, model.parent)
    return bytes(data), beside


def _sign(data: bytearray, start: int, stop: int, folder: Path) -> dict[str, Signed]:
    """Make one constant signed, in place; name -> its content, where that lies beside the file."""
    fields = list(_fields(data, start, stop))
    where = {number: (first, last) for number, first, last in fields}
    name, kind = data[slice(*where[_NAME])].decode(), where[_TYPE][0]
    if not name.endswith((WEIGHTS_END, ZEROS_END)):
        return {}
    data[kind] = _S8
    if _CONTENT in where:
        first, last = where[_CONTENT]
        content = np.frombuffer(data, np.uint8, last - first, first)
        content ^= _HIGHEST_BIT
        return {}
    shape = tuple(_varint(data, first)[0] for number, first, _ in fields if number == _DIMENSION)
    entries = (dict(_texts(data, first, last)) for number, first, last in fields if number == _BESIDE)
    stated = {entry[_KEY]: entry[_VALUE] for entry in entries}
    content = np.memmap(folder / stated["location"], np.uint8, "r", int(stated.get("offset", 0)), shape)
    return {name: np.asarray(content ^ _HIGHEST_BIT).view(np.int8)}


def _texts(data: bytearray, start: int, stop: int) -> Iterator[tuple[int, str]]:
    for number, first, last in _fields(data, start, stop):
        yield number, data[first:last].decode()


def _fields(data: bytearray, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(number, first byte, byte after the last) of the value of every field of a message of Protocol Buffers
    (https://protobuf.dev/programming-guides/encoding/)."""
    at = start
    while at < stop:
        key, at = _varint(data, at)
        first = at
        if key & 7 == _VARINT:
            at = _varint(data, at)[1]
        elif key & 7 == _SIZED:
            size, first = _varint(data, at)
            at = first + size
        else:
            at += 8 if key & 7 == _EIGHT_BYTES else 4
        yield key >> 3, first, at


def _varint(data: bytearray, at: int) -> tuple[int, int]:
    """(number, the byte after it)."""
    number = shift = 0
    while shift < 64:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
    raise ValueError("a number of more than 64 bits")
