"""How a bundle is sealed, by SHA-256 of all its files; `sha256sum -c SHA256SUMS` checks it too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from thoraclip.errors import InputError, MismatchError
from thoraclip.runs import file_sha256, write_text

__all__ = ["FACTS", "check_seal", "is_bundle", "not_sealed", "read_seal", "seal"]

FACTS, _SUMS = "bundle.json", "SHA256SUMS"
_REMEDY = "copy the bundle again, or export it again"


def seal(folder: Path) -> None:
    """Write the checksums of all that lies in the folder; the last step of making a bundle."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != _SUMS)
    write_text(folder / _SUMS, _text({file.name: file_sha256(file) for file in files}))


def is_bundle(folder: Path) -> bool:
    """True for a folder that holds a bundle, whole or not."""
    return (folder / FACTS).is_file() or (folder / _SUMS).is_file()


def not_sealed(folder: Path) -> list[Path]:
    """What lies in the folder of a bundle and is not named in its checksums; nothing where there are none."""
    try:
        lines = (folder / _SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    named = {_SUMS, *(line.partition("  ")[2] for line in lines)}
    return sorted(place for place in folder.iterdir() if place.name not in named)


def read_seal(folder: Path) -> str:
    """The checksums, as they are written there; raises InputError where there is no bundle, or one without them."""
    if not is_bundle(folder):
        what = "no bundle there" if folder.is_dir() else "no such folder"
        raise InputError(f"{folder}: {what}; name a folder that `thoraclip export RUN --out BUNDLE` wrote")
    if not (sums := folder / _SUMS).is_file():
        raise InputError(f"{sums}: is missing, so the bundle cannot be checked; {_REMEDY}")
    return sums.read_text(encoding="utf-8", errors="replace")


def check_seal(folder: Path) -> None:
    """Read every file that the checksums name. Raises InputError where there is no bundle or a file is missing,
    MismatchError where a file or the list of them was changed."""
    sums, text = folder / _SUMS, read_seal(folder)
    changed = MismatchError(f"{sums}: was changed since the bundle was made; {_REMEDY}")
    named = [line.split("  ", 1) for line in text.splitlines()]
    if not named or any(len(line) != 2 for line in named):
        raise changed
    for sha256, name in named:
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"{file}: is missing from the bundle; {_REMEDY}")
        if file_sha256(file) != sha256:
            raise MismatchError(
                f"{file}: its content is not the one that the bundle was made with ({_SUMS}); {_REMEDY}"
            )
    if text != _text({name: sha256 for sha256, name in named}) or FACTS not in {name for _, name in named}:
        raise changed


def _text(sums: Mapping[str, str]) -> str:
    return "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(sums.items()))
