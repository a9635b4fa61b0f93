"""What a file is, by its name and by its first bytes: the endings, signatures and names that decide."""

from __future__ import annotations

import re

__all__ = [
    "IMAGES", "MASKS", "OTHER", "SYSTEM", "UNREAD", "foreign_format", "is_mask_name", "is_system_name",
    "kind_by_content", "kind_by_name",
]  # fmt: skip

IMAGES = "images"
MASKS = "masks"
OTHER = "files that are no pictures"
SYSTEM = "hidden files and files of the system"
UNREAD = "images of a format that is not read (convert them to PNG)"

_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".dcm", ".dicom")
_OTHER_ENDING = re.compile(
    r"\.(7z|avi|bib|bz2|c|cfg|conf|cpp|css|csv|db|dll|docx?|exe|h|h5|hdf5|html?|ini|ipynb|jar|js|jsonl?|log|m|mat|md|mov|mp3"
    r"|mp4|np[yz]|od[st]|onnx|parquet|pdf|pkl|pptx?|pth?|pyc?|r|rar|rst|rtf|safetensors|sh|sql|sqlite|svg|tar|tex|tgz|toml"
    r"|tsv?|txt|wav|xlsx?|xml|xz|ya?ml|zip|zst)\Z"
)
_UNREAD_ENDINGS = {
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WebP": (".webp",),
    "NIfTI": (".nii", ".nii.gz"),
    "HEIC": (".heic", ".heif"),
    "AVIF": (".avif",),
    "JPEG 2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c"),
    "JPEG XL": (".jxl",),
    "NRRD": (".nrrd", ".nhdr"),
    "MetaImage": (".mha", ".mhd"),
    "portable pixmap": (".pgm", ".ppm", ".pbm", ".pnm"),
    "compressed": (".dcm.gz", ".dicom.gz", ".png.gz", ".jpg.gz", ".jpeg.gz"),
}
_SIGNATURES = {
    "PNG": rb"\x89PNG",
    "JPEG": rb"\xff\xd8\xff",
    # with the preamble of PS3.10; or from group 2 or 8 on: explicit VR, implicit VR of up to 64 KiB, big endian
    "DICOM": rb".{128}DICM|[\x02\x08]\0.\0(?:[A-Z]{2}|(?!\0\0)..\0\0)|\0\x08\0.[A-Z]{2}",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "BMP": rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "GIF": rb"GIF8[79]a",
    "WebP": rb"RIFF.{4}WEBP",
    "NIfTI": rb".{344}n[+i]1\0|.{4}n[+i]2\0",
    "HEIC": rb".{4}ftyp(?:hei|hev|mif1|msf1)",
    "AVIF": rb".{4}ftypavi",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\0\0\0\x0cJXL ",
    "NRRD": rb"NRRD000",
}
_READ = ("PNG", "JPEG", "DICOM")
_PATTERNS = {name: re.compile(pattern, re.DOTALL) for name, pattern in _SIGNATURES.items()}

_SYSTEM_NAMES = {
    "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot",  # Synology
    "@recycle", "@recently-snapshot", "@__thumb", "~snapshot",  # QNAP, NetApp
    "__macosx", "icon\r", "network trash folder", "temporary items",  # macOS
    "$recycle.bin", "recycler", "recycled", "system volume information", "desktop.ini",  # Windows
    "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "picasa.ini",
    "lost+found", "__pycache__", "cvs",
}  # fmt: skip
"""In lower case. Hidden names count as the system's too: `.DS_Store`, `._x.png`, `.thumbnails`, `.git`."""
_MASK_FOLDER = re.compile(r"(?<!un)mask(?!ed|ing)", re.IGNORECASE)
_MASK_FILE = re.compile(r"(?:^|[\W_])masks?(?:[\W_]*\d+)?\Z", re.IGNORECASE)


def is_system_name(name: str) -> bool:
    """Whether a file or folder is hidden, or made by a system or a program for itself."""
    return (
        name.startswith(".") or name.lower() in _SYSTEM_NAMES or re.fullmatch(r"found\.\d{3}", name.lower()) is not None
    )


def is_mask_name(name: str, *, is_file: bool = False) -> bool:
    """Whether a folder holds masks (`lung masks`, `masks_png`; not `unmasked`, `masked`), or a file without its ending
    is one (`12_mask`, `mask 3`)."""
    return (_MASK_FILE if is_file else _MASK_FOLDER).search(name) is not None


def kind_by_name(name: str) -> str | None:
    """`IMAGES` or `OTHER` where the ending says so; `None` where the first bytes decide."""
    lower = name.lower()
    if lower.endswith(_IMAGE_ENDINGS):
        return IMAGES
    return OTHER if _OTHER_ENDING.search(lower) or lower == "dicomdir" else None


def kind_by_content(head: bytes, name: str) -> tuple[str, str]:
    """(kind, reason) of a file that begins with these bytes, 352 of them or all; its ending tells foreign formats that
    cannot be told by them."""
    known = _format(head)
    if known in _READ:
        return IMAGES, ""
    known = known or next((kind for kind, ends in _UNREAD_ENDINGS.items() if name.lower().endswith(ends)), None)
    return (UNREAD, f"{known} is not read; {_remedy(known)}") if known else (OTHER, "")


def foreign_format(data: bytes) -> str:
    """What to say of an image's content in a format that is not read, such as `TIFF is not read; ...`; else empty."""
    known = _format(data[:352])
    return "" if known is None or known in _READ else f"{known} is not read; {_remedy(known)}"


def _format(head: bytes) -> str | None:
    return next((name for name, pattern in _PATTERNS.items() if pattern.match(head)), None)


def _remedy(known: str) -> str:
    return "unpack it" if known == "compressed" else "convert it to PNG"
