"""A run folder: resolved config, provenance, metrics, and files that appear whole or not at all.

Nothing in a run folder depends on the clock or on where the folder lies, so that a run that was killed and continued
is the same, byte for byte, as one that was not. Durations are printed, not stored.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from thoraclip.documents import kept_json
from thoraclip.errors import InputError, ThoraclipError, first_line

__all__ = [
    "NO_ROOM",
    "Progress",
    "RunFolder",
    "atomic_open",
    "canonical_json",
    "digest",
    "file_sha256",
    "fold_file",
    "fold_folder",
    "folder_digest",
    "is_main_process",
    "make_folder",
    "needing_room",
    "process_count",
    "provenance",
    "sweep",
    "take_room",
    "unforeseen_errors",
    "write_json",
    "write_text",
]

Progress = Callable[[int, int], None]
"""Called with (done, total), 0 for an unknown total; the command line draws it."""

_REPORTED_PACKAGES = (
    "thoraclip",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "scikit-learn",
    "numpy",
    "pyarrow",
    "pillow",
    "pydicom",
)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a disk is full, or a user's share of it."""


@contextmanager
def atomic_open(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Write to a temporary neighbour and rename it over `path` only when the block ends without an error."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, and a file is to be written; choose another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    temporary = Path(name)
    try:
        encoding = None if "b" in mode else "utf-8"
        newline = None if "b" in mode else "\n"
        with needing_room(path), os.fdopen(handle, mode, encoding=encoding, newline=newline) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def needing_room(path: Path) -> Iterator[None]:
    """Turn the system's "no space left" while `path` is written into an InputError that names it."""
    try:
        yield
    except Exception as error:  # safetensors has a class of its own, and the system's number only in its text
        said = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if number not in NO_ROOM:
            raise
        raise InputError(
            f"{path}: cannot be written ({os.strerror(number)}); make room on that disk and run the same command again"
        ) from error


def take_room(stream: IO[bytes], size: int) -> None:
    """Give the first `size` bytes of an open file their place on the disk now.

    A mapped file without it is only as long as that, and where the disk is full later, the system kills the process.
    Does nothing where the system cannot do this (macOS).

    Raises:
        OSError: the disk has no room.
    """
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(stream.fileno(), 0, size)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; raises InputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((place for place in (folder, *folder.parents) if place.is_file()), None)
        reason = f"{file} is a file, not a folder" if file else error.strerror
        raise InputError(f"{folder}: cannot be written ({reason}); name another folder") from error


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder and below it."""
    if folder.is_dir():
        for leftover in folder.rglob(".*.part"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with atomic_open(path, "w") as stream:
        stream.write(text)


@contextmanager
def unforeseen_errors(file: Path, root: Path) -> Iterator[None]:
    """Turn an error that is neither a ThoraclipError nor a missing package into a ThoraclipError, with its traceback in
    `file`, which the message names below `root`."""
    file.unlink(missing_ok=True)
    try:
        yield
    except (ThoraclipError, ModuleNotFoundError):
        raise
    except Exception as error:
        write_text(file, "".join(traceback.format_exception(error)))
        where = file.relative_to(root).as_posix()
        raise ThoraclipError(f"{type(error).__name__}: {first_line(error)}; where it happened: {where}") from error


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def write_json(path: Path, value: object) -> None:
    """Write readable JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def fold_file(name: str, fold: int | None) -> str:
    """Name of a file of one held-out fold in a run folder: `head.safetensors` of fold 3 is `head-fold-3.safetensors`.

    Args:
        name: as it stands with a train/val/test split, which has no fold (`None`).
        fold: number of the fold.
    """
    stem, _, suffix = name.rpartition(".")
    return name if fold is None else f"{stem}-fold-{fold}.{suffix}"


def fold_folder(run: Path, fold: int | None) -> Path:
    """Folder of one held-out fold in a run folder; with a split (`None`) the run folder itself."""
    return run if fold is None else run / f"fold-{fold}"


def digest(value: object) -> str:
    """SHA-256 of a JSON-able value, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of all files in a folder; of a file, over its content."""
    files = [folder] if folder.is_file() else sorted(f for f in folder.rglob("*") if f.is_file())
    return digest([[f.relative_to(folder).as_posix(), file_sha256(f)] for f in files])


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_main_process() -> bool:
    """False in all but the first of several processes that a launcher started; only the first one writes."""
    return int(os.environ.get("RANK", "0") or 0) == 0


def process_count() -> int:
    """How many processes a launcher started for this work, this one included."""
    return int(os.environ.get("WORLD_SIZE", "1") or 1)


def provenance(*, seed: int | None = None, inputs: Mapping[str, str] | None = None) -> dict[str, object]:
    """What a reader needs to repeat a run: versions, platform, commit of the package, seed, hashes of the inputs.

    Args:
        seed: the one seed of the run; `None` when nothing is random.
        inputs: name -> SHA-256 (or fingerprint) of every artefact that was read.
    """
    import platform  # here and below: they take a while to load, and a prediction needs none of them
    from importlib import metadata

    versions = {}
    for name in _REPORTED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "commit": _package_commit(),
        "seed": seed,
        "inputs": dict(sorted((inputs or {}).items())),
    }


def _package_commit() -> str | None:
    """Commit of the checkout that the package was imported from; `None` for an installed wheel."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    import subprocess

    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


@dataclass(frozen=True)
class RunFolder:
    """One folder of one run.

    `config.toml` is written first, `done.json` last: it holds the fingerprint of everything that the result depends
    on, so a later call can tell whether the run is there and still valid.
    """

    path: Path

    def file(self, name: str) -> Path:
        """Path of a file inside the folder."""
        return self.path / name

    def is_done(self, fingerprint: str) -> bool:
        """True when the run ended, with this very fingerprint."""
        return bool(kept_json(self.file("done.json")).get("fingerprint") == fingerprint)

    def start(self, config_toml: str, provenance: Mapping[str, object]) -> None:
        """Create the folder and write what is known before the work; an earlier end mark is taken away."""
        self.file("done.json").unlink(missing_ok=True)
        write_text(self.file("config.toml"), config_toml)
        write_json(self.file("provenance.json"), dict(provenance))

    def write_metrics(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Write `metrics.jsonl`, one JSON object a line."""
        write_text(self.file("metrics.jsonl"), "".join(canonical_json(row) + "\n" for row in rows))

    def finish(self, fingerprint: str) -> None:
        """Mark the run as complete."""
        write_json(self.file("done.json"), {"schema": 1, "fingerprint": fingerprint})
