"""The seal of a bundle: SHA-256 of all its files, so that a changed one is noticed; `sha256sum -c SHA256SUMS` checks it
too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from thoraclip.errors import InputError, MismatchError
from thoraclip.runs import file_sha256, write_text

__all__ = ["FACTS", "check_seal", "is_bundle", "read_seal", "seal"]

FACTS, _SUMS = "bundle.json", "SHA256SUMS"


def seal(folder: Path) -> None:
    """Write the checksums of all that lies in the folder; the last step of making a bundle."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != _SUMS)
    write_text(folder / _SUMS, _text({file.name: file_sha256(file) for file in files}))


def is_bundle(folder: Path) -> bool:
    """True for a folder that holds a bundle, whole or not."""
    return (folder / FACTS).is_file() or (folder / _SUMS).is_file()


def read_seal(folder: Path) -> str:
    """The checksums, as they are written there.

    Raises:
        InputError: no bundle there, or one without checksums.
    """
    sums = folder / _SUMS
    if not is_bundle(folder):
        what = "no bundle there" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; name a folder that `thoraclip export RUN --out BUNDLE` wrote")
    if not sums.is_file():
        raise InputError(
            f"{sums}: is missing, so the bundle cannot be checked; copy the bundle again, or export it again"
        )
    return sums.read_text(encoding="utf-8", errors="replace")


def check_seal(folder: Path) -> None:
    """Read every file that the checksums name.

    Raises:
        InputError: no bundle there, or a file of it is missing.
        MismatchError: a file, or the list of them, was changed since the bundle was made.
    """
    sums, text = folder / _SUMS, read_seal(folder)
    named = [line.split("  ", 1) for line in text.splitlines()]
    if not named or any(len(line) != 2 for line in named):
        raise MismatchError(f"{sums}: was changed since the bundle was made; copy the bundle again, or export it again")
    for told, name in named:
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"{file}: is missing from the bundle; copy the bundle again, or export it again")
        if file_sha256(file) != told:
            raise MismatchError(
                f"{file}: its content is not the one that the bundle was made with ({_SUMS}); copy the bundle again, "
                "or export it again"
            )
    if text != _text({name: told for told, name in named}) or FACTS not in {name for _, name in named}:
        raise MismatchError(f"{sums}: was changed since the bundle was made; copy the bundle again, or export it again")


def _text(sums: Mapping[str, str]) -> str:
    return "".join(f"{told}  {name}\n" for name, told in sorted(sums.items()))
