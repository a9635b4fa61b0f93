"""Write golden_dicom.json: small DICOM files of every transfer syntax, and what they looked like when it was written.

    PYTHONPATH=. python tests/imaging/golden.py

The files themselves are kept, so that only decoders and look-up tables are compared, not encoders. Lossless files must
give the same pixels by hash. Of lossy ones a grid of pixels must stay within two grey levels and the mean within a half:
decoders of lossy JPEG and JPEG 2000 may round differently from one version to the next.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import zlib
from pathlib import Path
from typing import Any

from tests.imaging.files import FLAT, LOSSLESS, LOSSY, Array, data_set, waves

from thoraclip.imaging import decode

PAGE = Path(__file__).with_name("golden_dicom.json")
PACKAGES = ("numpy", "pillow", "pydicom", "pylibjpeg-openjpeg", "python-gdcm")


def files() -> dict[str, tuple[bytes, bool]]:
    """Name -> (file, whether its pixels must come back by the bit)."""
    found: dict[str, tuple[bytes, bool]] = {}
    for number, (name, encode) in enumerate((LOSSLESS | LOSSY | FLAT).items()):
        is_lossless = name not in LOSSY
        for bits, signed in (
            ((8, False),) if name in ("JPEG baseline", "JPEG extended") else ((8, False), (12, True), (16, False))
        ):
            if name in FLAT and signed:
                continue
            tags: dict[str, Any] = {"PhotometricInterpretation": f"MONOCHROME{1 + (number + bits // 4) % 2}"}
            if bits > 8:
                middle = 0 if signed else 2 ** (bits - 1)
                tags |= {"WindowCenter": middle, "WindowWidth": 2**bits * 3 // 4, "PixelPaddingValue": middle}
                tags |= {"VOILUTFunction": "SIGMOID" if bits == 16 else "LINEAR"}
            ds = data_set(waves(bits, signed=signed, height=34, width=37), bits=bits, **tags)
            if "PixelPaddingValue" in ds:
                ds["PixelPaddingValue"].VR = "SS" if signed else "US"
            found[f"{name}, {bits} bits{' signed' if signed else ''}"] = encode(ds), is_lossless
    return found


def facts(pixels: Array, *, is_lossless: bool) -> dict[str, Any]:
    mean = round(float(pixels.mean()), 3)
    if is_lossless:
        return {"mean": mean, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    return {"mean": mean, "every_seventh": pixels[::7, ::7].tolist()}


def page() -> dict[str, Any]:
    entries = {}
    for name, (data, is_lossless) in files().items():
        entry = facts(decode(data).pixels, is_lossless=is_lossless)
        entries[name] = entry | {"file": base64.b64encode(zlib.compress(data, 9)).decode()}
    return {"written_with": {name: importlib.metadata.version(name) for name in PACKAGES}, "files": entries}


if __name__ == "__main__":
    PAGE.write_text(json.dumps(page(), indent=1) + "\n", encoding="utf-8")
