"""The unsigned weights of an int8 model as signed ones, in memory: the same products, by faster instructions.

In the file a weight Q is the byte Q + 128, of type u8, which every processor multiplies exactly (see `eight_bits`). A
processor with dot products of bytes (VNNI, AMX) multiplies u8 by s8 exactly, too, and several times as fast
(docs/deploy.md). Q and Q + 128 differ by their highest bit, so the file is read, and changed, without the package
onnx; the field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections import defaultdict
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
_VARINT, _SIZED = 0, 2
_BYTES = {1: 8, 5: 4}
"""Kind of a value of fixed size -> its size."""
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
    for graph in _fields(data, slice(0, len(data)))[_GRAPH]:
        for constant in _fields(data, graph)[_CONSTANTS]:
            beside |= _sign(data, _fields(data, constant), model.parent)
    return bytes(data), beside


def _sign(data: bytearray, fields: dict[int, list[slice]], folder: Path) -> dict[str, Signed]:
    """Make one constant signed, in place; name -> its content, where that lies beside the file."""
    name = data[fields[_NAME][0]].decode()
    if not name.endswith((WEIGHTS_END, ZEROS_END)):
        return {}
    data[fields[_TYPE][0].start] = _S8
    if fields[_CONTENT]:
        content = np.frombuffer(data, np.uint8)[fields[_CONTENT][0]]
        content ^= _HIGHEST_BIT
        return {}
    shape = tuple(_varint(data, one.start)[0] for one in fields[_DIMENSION])
    entries = [_fields(data, entry) for entry in fields[_BESIDE]]
    stated = {data[entry[_KEY][0]].decode(): data[entry[_VALUE][0]].decode() for entry in entries}
    content = np.memmap(folder / stated["location"], np.uint8, "r", int(stated.get("offset", 0)), shape)
    return {name: np.asarray(content ^ _HIGHEST_BIT).view(np.int8)}


def _fields(data: bytearray, message: slice) -> dict[int, list[slice]]:
    """Number of a field -> where its values lie, of a message of Protocol Buffers
    (https://protobuf.dev/programming-guides/encoding/)."""
    found, at = defaultdict[int, list[slice]](list), message.start
    while at < message.stop:
        key, first = _varint(data, at)
        if key & 7 == _VARINT:
            at = _varint(data, first)[1]
        elif key & 7 == _SIZED:
            size, first = _varint(data, first)
            at = first + size
        else:
            at = first + _BYTES[key & 7]
        found[key >> 3].append(slice(first, at))
    return found


def _varint(data: bytearray, at: int) -> tuple[int, int]:
    """(number, the byte after it)."""
    number = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        number |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return number, at
    raise ValueError("a number of more than 64 bits")
