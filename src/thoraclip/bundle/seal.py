"""How a bundle is sealed, by SHA-256 of all its files; `sha256sum -c SHA256SUMS` checks it too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from thoraclip.documents import kept_json, read_bytes
from thoraclip.errors import InputError, MismatchError, ThoraclipError
from thoraclip.runs import file_sha256, write_text

__all__ = ["FACTS", "Seal", "is_bundle", "others_in", "read_seal", "seal"]

FACTS, _SUMS = "bundle.json", "SHA256SUMS"
_REMEDY = "copy the bundle again, or export it again"
_SHA256 = re.compile("[0-9a-f]{64}")
_MOST_BYTES = 16 << 30  # of a file; a model has less, and a file of holes alone would take an hour


def seal(folder: Path) -> None:
    """Write the checksums of all that lies in the folder; the last step of making a bundle."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != _SUMS)
    write_text(folder / _SUMS, _text({file.name: file_sha256(file) for file in files}))


def is_bundle(folder: Path) -> bool:
    """True for a folder that holds a bundle, whole or not."""
    return (folder / FACTS).is_file() or (folder / _SUMS).is_file()


def others_in(folder: Path) -> list[Path]:
    """What lies in a folder and is not of a bundle: all of it, unless its checksums are as `seal` writes them and
    `bundle.json` is one."""
    try:
        sums = _read_sums(folder / _SUMS)
    except ThoraclipError:
        sums = {}
    own = {_SUMS, *sums} if sums and "preprocess" in kept_json(folder / FACTS) else set()
    return sorted(place for place in folder.iterdir() if place.name not in own)


@dataclass(frozen=True)
class Seal:
    """The checksums of a bundle; what they do not name is not read.

    Args:
        folder: of the bundle.
        sums: name of a file -> its SHA-256, hexadecimal.
    """

    folder: Path
    sums: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the checksums."""
        return hashlib.sha256(_text(self.sums).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Where a file of the bundle lies; raises MismatchError unless it was sealed."""
        if name not in self.sums:
            raise MismatchError(f"{self.folder / name}: {_SUMS} does not name it, so it is not read; {_REMEDY}")
        return self.folder / name

    def check(self) -> None:
        """Read every file; raises MismatchError where one was changed."""
        for name, sha256 in self.sums.items():
            if file_sha256(self.folder / name) != sha256:
                raise MismatchError(
                    f"{self.folder / name}: its content is not the one that the bundle was made with ({_SUMS}); "
                    f"{_REMEDY}"
                )


def read_seal(folder: Path) -> Seal:
    """The checksums of a bundle, whose files are there.

    Raises:
        InputError: no bundle there, one without checksums, or a file is missing.
        MismatchError: the checksums are not as `seal` writes them, or a file is too large.
    """
    if not is_bundle(folder):
        what = "no bundle there" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; name a folder that `thoraclip export RUN --out BUNDLE` wrote")
    if not (file := folder / _SUMS).is_file():
        raise InputError(f"{file}: is missing, so the bundle cannot be checked; {_REMEDY}")
    sums = _read_sums(file)
    for name in sums:
        if not (file := folder / name).is_file():
            raise InputError(f"{file}: is missing from the bundle; {_REMEDY}")
        if file.stat().st_size > _MOST_BYTES:
            raise MismatchError(f"{file}: is larger than {_MOST_BYTES:,} bytes; {_REMEDY}")
    return Seal(folder, sums)


def _read_sums(file: Path) -> dict[str, str]:
    data = read_bytes(file, error=MismatchError, remedy=_REMEDY, most=1 << 20)
    sums = {line[66:]: line[:64] for line in data.decode("utf-8", "replace").split("\n")[:-1]}
    named = all(Path(name).name == name and _SHA256.fullmatch(sha256) for name, sha256 in sums.items())
    if not named or _text(sums).encode() != data or FACTS not in sums:  # also for a name that stands there twice
        raise MismatchError(f"{file}: was changed since the bundle was made; {_REMEDY}")
    return sums


def _text(sums: Mapping[str, str]) -> str:
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))
