"""The model of a bundle: what it must take and give, and where its weights may lie."""

from __future__ import annotations

import mmap
import re
from typing import Any

from thoraclip.bundle.format import MODEL, Bundle
from thoraclip.errors import MismatchError, first_line

__all__ = ["require_own_data", "require_tensors"]

_MOST_FEATURES, _MOST_TOGETHER = 1 << 16, 64
_LOCATION = re.compile(rb"location(?<=...[\0\x08]location)", re.DOTALL)
"""The key `location` of an ONNX tensor: after a byte of its length, 8, or of a long form of it."""


def require_tensors(session: Any, bundle: Bundle) -> tuple[int, int]:
    """(pictures of a call, 0 for any number; numbers of a picture's features), as the model declares them; raises
    MismatchError unless it takes `greys` and gives `features` and `scores` of the bundle's size and classes."""
    tensors = {one.name: (one.type, list(one.shape)) for one in (*session.get_inputs(), *session.get_outputs())}
    pictures = tensors.get("greys", ("", [0]))[1][:1]
    width = tensors.get("features", ("", [0, 0]))[1][1:]
    side, classes = bundle.preprocess.size, len(bundle.labels)
    expected = {
        "greys": ("tensor(uint8)", [*pictures, side, side]),
        "features": ("tensor(float)", [*pictures, *width]),
        "scores": ("tensor(float)", [*pictures, classes]),
    }
    is_sized = len(width) == 1 and isinstance(width[0], int) and 1 <= width[0] <= _MOST_FEATURES
    count = pictures[0] if pictures and isinstance(pictures[0], int) else 0
    if tensors != expected or not is_sized or not 0 <= count <= _MOST_TOGETHER:
        raise MismatchError(
            f"{bundle.folder / MODEL}: takes and gives {str(tensors)[:200]}, not greys u8[B, {side}, {side}] to "
            f"features f32[B, D] and scores f32[B, {classes}]; export the run again"
        )
    return count, width[0]


def require_own_data(bundle: Bundle) -> None:
    """Raise MismatchError where the model has weights in another file than the sealed one beside it. (ONNX Runtime
    refuses those outside of the folder, but not another one inside.)"""
    model = bundle.file(MODEL)
    beside = f"{MODEL}.data".encode()
    own = b"\x6a" + bytes([len(beside) + 12]) + b"\x0a\x08location\x12" + bytes([len(beside)]) + beside
    try:
        with model.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            starts = (key.start() - 4 for key in _LOCATION.finditer(data))
            entries = {data[start : start + len(own)] for start in starts}
    except (OSError, ValueError) as error:  # ValueError: empty
        raise MismatchError(f"{model}: cannot be read ({first_line(error)}); export the run again") from error
    if not entries <= {own}:
        raise MismatchError(f"{model}: has weights in another file than {beside.decode()}; export the run again")
    if entries:
        bundle.file(beside.decode())
