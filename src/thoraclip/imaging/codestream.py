"""What a compressed frame says of its own size, read before a decoder allocates memory for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thoraclip.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["check_frame", "frame_size", "refuse_many_scans"]

_MAX_RUN = 64
"""PackBits turns two bytes into at most 128."""
_MAX_UNPACKED = 256 * 1024**2
"""Run-length frames that could become larger are measured first."""
_MAX_SCANS = 100
"""A progressive JPEG has about ten scans; with thousands, a small file keeps the decoder busy for hours."""


def check_frame(dataset: Dataset) -> None:
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
    found = frame_size(frame)
    if found != (columns, rows, 1):
        text = "no size" if found is None else f"{found[0]} x {found[1]} pixels of {found[2]} components"
        raise ImageError(f"the compressed frame says {text}, the header {columns} x {rows} of one")


def refuse_many_scans(data: bytes) -> None:
    """Raise ImageError for a JPEG with more scans than any honest one has."""
    scans = data.count(b"\xff\xda")
    if scans > _MAX_SCANS:
        raise ImageError(f"a JPEG of {scans:,} scans; more than {_MAX_SCANS} are not decoded")


def _unpacks_beyond(frame: bytes, limit: int) -> bool:
    """True where PackBits (PS3.5 G.3) would turn the frame's segments into more than `limit` bytes."""
    offsets = [int.from_bytes(frame[at : at + 4], "little") for at in range(4, 64, 4)]
    starts = sorted({offset for offset in offsets[: frame[0]] if 64 <= offset < len(frame)})
    size = 0
    for at, end in zip(starts, [*starts[1:], len(frame)], strict=True):
        while at < end and size <= limit:
            control = frame[at]
            size += control + 1 if control < 128 else 257 - control if control > 128 else 0
            at += control + 2 if control < 128 else 2 if control > 128 else 1
    return size > limit


def frame_size(frame: bytes) -> tuple[int, int, int] | None:
    """(columns, rows, components) of a JPEG, JPEG-LS or JPEG 2000 frame; `None` where its header is not found.

    JPEG and JPEG-LS: the frame header SOFn (ITU-T T.81 B.2.2, T.87 C.2.2). JPEG 2000: SIZ (ITU-T T.800 A.5.1).
    """
    start = frame.find(b"\xff\x4f\xff\x51")
    if 0 <= start < 4096 and len(frame) >= start + 42:
        sizes = [int.from_bytes(frame[start + at : start + at + 4], "big") for at in (8, 12, 16, 20)]
        components = int.from_bytes(frame[start + 40 : start + 42], "big")
        return sizes[0] - sizes[2], sizes[1] - sizes[3], components
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 10 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            rows, columns = (int.from_bytes(frame[at + k : at + k + 2], "big") for k in (5, 7))
            return columns, rows, frame[at + 9]
        else:
            at += 2 + length
    return None
