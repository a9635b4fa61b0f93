"""Small valid files for the tests of `imaging`: PNG, JPEG, and DICOM in every transfer syntax that is decoded."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

Array = npt.NDArray[Any]


def refused(source: Path | bytes, message: str, **options: int) -> None:
    """`decode` raises ImageError in one line that matches."""
    import pytest

    from thoraclip.errors import ImageError
    from thoraclip.imaging import decode

    with pytest.raises(ImageError, match=message) as caught:
        decode(source, **options)
    assert "\n" not in str(caught.value)


DIGITAL_X_RAY = "1.2.840.10008.5.1.4.1.1.1.1"


# PNG and JPEG


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: tuple[int, int, int, int], *chunks: bytes, interlace: int = 0) -> bytes:
    """A PNG file of the given (width, height, bits, colour type) and chunks; nothing checks that they fit."""
    start = struct.pack(">IIBBBBB", *header, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + b"".join(chunks) + chunk(b"IEND", b"")


def interlaced(pixels: Array) -> bytes:
    """u8[H, W] as a PNG of seven Adam7 passes, which Pillow reads but does not write."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for y, x, dy, dx in passes for row in pixels[y::dy, x::dx] if row.size]
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return png((pixels.shape[1], pixels.shape[0], 8, 0), chunk(b"IDAT", data), interlace=1)


# DICOM


def waves(bits: int, *, signed: bool = False, height: int = 40, width: int = 48) -> Array:
    """A smooth picture that uses every bit, i or u 8 or 16[H, W]."""
    y, x = np.mgrid[:height, :width]
    values = ((np.sin(x / 7) + np.cos(y / 5) + 2) / 4 * (2**bits - 1)).astype(np.int64)
    values[0, :2] = 0, 2**bits - 1
    return (values - (2 ** (bits - 1) if signed else 0)).astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def data_set(pixels: Array, *, bits: int | None = None, **tags: Any) -> Dataset:
    """An uncompressed radiograph of `pixels`; `tags` override or add elements, `None` empties one."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = DIGITAL_X_RAY
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.Modality = "DX"
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def written(ds: Dataset, *, syntax: str | None = None) -> bytes:
    """The bytes of a DICOM file; `syntax`: one of the uncompressed ones."""
    if syntax:
        ds.file_meta.TransferSyntaxUID = syntax
        if syntax == uid.ExplicitVRBigEndian and ds.BitsAllocated == 16:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def dicom(pixels: Array, *, bits: int | None = None, **tags: Any) -> bytes:
    """An uncompressed DICOM file, explicit little endian."""
    return written(data_set(pixels, bits=bits, **tags))


def bare(ds: Dataset, *, implicit: bool, little: bool = True) -> bytes:
    """A data set without preamble and without file meta information."""
    ds = pydicom.dcmread(io.BytesIO(written(ds)))
    if not little and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    del ds.file_meta
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, implicit_vr=implicit, little_endian=little)
    return stream.getvalue()


def encapsulated(ds: Dataset, syntax: str, *items: bytes) -> bytes:
    """A file whose pixel data are these fragments after an empty offset table, whatever they hold."""
    parts = [b"", *(item + b"\0" * (len(item) % 2) for item in items)]
    ds.PixelData = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(part)) + part for part in parts)
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    ds.file_meta.TransferSyntaxUID = syntax
    return written(ds)


def _by_gdcm(name: str) -> Callable[[Dataset], bytes]:
    def transcode(ds: Dataset) -> bytes:
        import gdcm

        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "a", Path(folder) / "b"
            before.write_bytes(written(ds))
            reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
            reader.SetFileName(str(before))
            if not reader.Read():
                raise ValueError(f"GDCM cannot read what it is to encode as {name}")
            change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
            change.SetInput(reader.GetImage())
            if not change.Change():
                raise ValueError(f"GDCM cannot encode {ds.BitsStored} bits as {name}")
            writer.SetFileName(str(after))
            writer.SetFile(reader.GetFile())
            writer.SetImage(change.GetOutput())
            writer.Write()
            return after.read_bytes()

    return transcode


def _by_pydicom(syntax: str, **options: Any) -> Callable[[Dataset], bytes]:
    def compress(ds: Dataset) -> bytes:
        ds.compress(syntax, generate_instance_uid=False, **options)
        return written(ds)

    return compress


def _flat_htj2k(syntax: str) -> Callable[[Dataset], bytes]:
    """High-throughput JPEG 2000 of an even mid-grey: without coded blocks, so that no encoder is needed.

    A lossless JPEG 2000 stream whose packets are all empty becomes one of part 15 by bit 14 of Rsiz, the marker CAP and
    bit 6 of the code-block style (ITU-T T.814, annex A).
    """

    def compress(ds: Dataset) -> bytes:
        from pydicom.encaps import get_frame

        flat = np.full((ds.Rows, ds.Columns), 2 ** (ds.BitsStored - 1), f"<u{ds.BitsAllocated // 8}")
        ds.PixelData = flat.tobytes()
        ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
        stream = bytearray(get_frame(ds.PixelData, 0, number_of_frames=1))
        stream[6] |= 0x40
        cod = stream.index(b"\xff\x52")
        stream[cod + 12] |= 0x40
        end_of_siz = 4 + int.from_bytes(stream[4:6], "big")
        stream[end_of_siz:end_of_siz] = bytes.fromhex("ff50 0008 00020000 0000")
        return encapsulated(ds, syntax, bytes(stream))

    return compress


LOSSLESS: dict[str, Callable[[Dataset], bytes]] = {
    "implicit": lambda ds: written(ds, syntax=uid.ImplicitVRLittleEndian),
    "explicit": lambda ds: written(ds, syntax=uid.ExplicitVRLittleEndian),
    "big endian": lambda ds: written(ds, syntax=uid.ExplicitVRBigEndian),
    "deflated": lambda ds: written(ds, syntax=uid.DeflatedExplicitVRLittleEndian),
    "RLE": _by_pydicom(uid.RLELossless, encoding_plugin="pydicom"),
    "JPEG lossless": _by_gdcm("JPEGLosslessProcess14"),
    "JPEG lossless SV1": _by_gdcm("JPEGLosslessProcess14_1"),
    "JPEG-LS": _by_gdcm("JPEGLSLossless"),
    "JPEG 2000 lossless": _by_pydicom(uid.JPEG2000Lossless),
}
"""Encoders of DICOM files that give every stored value back; `written` from the same data set is the reference."""
LOSSY: dict[str, Callable[[Dataset], bytes]] = {
    "JPEG baseline": _by_gdcm("JPEGBaselineProcess1"),
    "JPEG extended": _by_gdcm("JPEGExtendedProcess2_4"),
    "JPEG-LS near lossless": _by_gdcm("JPEGLSNearLossless"),
    "JPEG 2000": _by_pydicom(uid.JPEG2000, j2k_cr=[4]),
}
FLAT: dict[str, Callable[[Dataset], bytes]] = {
    "HTJ2K lossless": _flat_htj2k(uid.HTJ2KLossless),
    "HTJ2K lossless RPCL": _flat_htj2k(uid.HTJ2KLosslessRPCL),
    "HTJ2K": _flat_htj2k(uid.HTJ2K),
}
"""Encoders that replace the pixels by an even mid-grey."""
