"""What a file is by its name and its first bytes, and that a file is decoded under any name that does not deny it."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.imaging.files import dicom, waves

from thoraclip.errors import ImageError
from thoraclip.imaging import decode
from thoraclip.imaging.listing import walk
from thoraclip.imaging.names import IMAGES, UNREAD, is_mask_name, kind_by_content

GREY = Image.fromarray(waves(8))


def encoded(kind: str) -> bytes:
    stream = BytesIO()
    GREY.save(stream, kind)
    return stream.getvalue()


DICOM = dicom(waves(8))
READ = {"png": encoded("PNG"), "jpeg": encoded("JPEG"), "dicom": DICOM, "no preamble": DICOM[132:]}
FOREIGN = {kind: encoded(kind) for kind in ("TIFF", "BMP", "GIF", "WebP")}
FOREIGN |= {
    "NIfTI": b"\x5c\x01\0\0" + bytes(340) + b"n+1\0",
    "HEIC": b"\0\0\0\x18ftypheic",
    "AVIF": b"\0\0\0\x1cftypavif",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
}
LITTER = [
    "@eaDir", "#recycle", "@Recycle", ".thumbnails", "__MACOSX", "._x.png", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini",
    "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git", ".ipynb_checkpoints", ".hidden.png",
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["a", "a.1", "1.2.840.113619", "SCAN.IMA", "IM000001", "a.dic", "a.jfif", "a.jpe", "a.JPG", "a.tif", "a.x-y"],
)
@pytest.mark.parametrize("kind", READ)
def test_what_can_be_decoded_is_an_image_under_any_name_that_does_not_deny_it(
    tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / name).write_bytes(READ[kind])
    assert [one.kind for one in walk(tmp_path)] == [IMAGES]
    assert decode(tmp_path / name).pixels.shape == waves(8).shape


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("ending", ["", ".bin", ".foreign"])
def test_other_formats_are_listed_with_the_remedy(tmp_path: Path, kind: str, ending: str) -> None:
    (tmp_path / f"a{ending}").write_bytes(FOREIGN[kind])
    (one,) = walk(tmp_path)
    assert (one.kind, one.reason) == (UNREAD, f"{kind} is not read; convert it to PNG")
    (tmp_path / "a.png").write_bytes(FOREIGN[kind])
    with pytest.raises(ImageError, match=f"{kind} is not read; convert it to PNG"):
        decode(tmp_path / "a.png")


@given(head=st.binary(max_size=400), name=st.text())
def test_any_bytes_have_a_kind(head: bytes, name: str) -> None:
    kind_by_content(head, name)


def test_masks_by_their_names() -> None:
    folders = {
        "lung masks": True,
        "Infection Masks": True,
        "mask": True,
        "lung_mask_png": True,
        "unmasked": False,
        "masked": False,
    }
    assert {name: is_mask_name(name) for name in folders} == folders
    files = {
        "1_mask": True,
        "mask": True,
        "Mask 2": True,
        "masked": False,
        "mask_of_a_man": False,
        "damask": False,
        "x-masks": True,
    }
    assert {name: is_mask_name(name, is_file=True) for name in files} == files
