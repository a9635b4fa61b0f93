"""The model of a bundle: what it must take and give, and where its weights may lie."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

from thoraclip.bundle.format import MODEL, Bundle
from thoraclip.errors import MismatchError, first_line

__all__ = ["require_own_data", "require_tensors"]

_MOST_FEATURES, _MOST_TOGETHER = 1 << 16, 64


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
            entries = {data[at - 4 : at - 4 + len(own)] for at in _locations(data)}
    except (OSError, ValueError) as error:  # ValueError: empty
        raise MismatchError(f"{model}: cannot be read ({first_line(error)}); export the run again") from error
    if not entries <= {own}:
        raise MismatchError(f"{model}: has weights in another file than {beside.decode()}; export the run again")
    if entries:
        bundle.file(beside.decode())


def _locations(data: mmap.mmap) -> Iterator[int]:
    """Where the keys `location` of an ONNX tensor stand: after a byte of their length, 8, or of a long form of it."""
    at = data.find(b"location")
    while at >= 0:
        if at >= 4 and data[at - 1] in {0, 8}:
            yield at
        at = data.find(b"location", at + 1)
