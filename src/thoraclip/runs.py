"""A run folder: resolved config, provenance, metrics, and files that appear whole or not at all.

Nothing in a run folder depends on the clock or on where the folder lies, so that a run that was killed and continued
is the same, byte for byte, as one that was not. Durations are printed, not stored.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from thoraclip.disk import make_folder, needing_room, require_room, take_room
from thoraclip.documents import kept_json
from thoraclip.errors import ThoraclipError, first_line
from thoraclip.locks import is_empty, is_main_process, locked, process_count, writes
from thoraclip.writing import (
    atomic_open,
    end_sets,
    remove_file,
    remove_leftovers,
    require_file,
    require_own,
    whole_folder,
    write_json,
    write_text,
    written_together,
)

__all__ = [
    "Progress", "RunFolder", "atomic_open", "canonical_json", "digest", "end_sets", "file_sha256", "fold_file",
    "fold_folder", "folder_digest", "is_empty", "is_main_process", "locked", "make_folder", "needing_room",
    "process_count", "provenance", "remove_file", "remove_leftovers", "require_file", "require_own", "require_room",
    "take_room", "unforeseen_errors", "whole_folder", "write_json", "write_text", "writes", "written_together",
]  # fmt: skip

Progress = Callable[[int, int], None]
"""Called with (done, total), 0 for an unknown total; the command line draws it."""

_REPORTED_PACKAGES = (
    "thoraclip", "torch", "transformers", "peft", "accelerate", "scikit-learn", "numpy", "pyarrow", "pillow", "pydicom"
)  # fmt: skip


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
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
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
        """Create the folder and write what is known before the work; an earlier end mark is taken away, and what a kill
        left of weights, which may be whole and not written again."""
        remove_file(self.file("done.json"))
        for folder in (self.path, *self.path.glob("fold-*")):
            remove_leftovers(folder)
        with written_together(self.path, "run"):
            write_json(self.file("provenance.json"), dict(provenance))
            write_text(self.file("config.toml"), config_toml)

    def give_up(self, *, is_new: bool) -> None:
        """Take away what `start` wrote, and a new folder with it, unless there is more: a first result."""
        if {file.name for file in self.path.iterdir()} <= {"config.toml", "provenance.json"}:
            for name in ("config.toml", "provenance.json"):
                remove_file(self.file(name))
            if is_new:
                self.path.rmdir()

    def write_metrics(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Write `metrics.jsonl`, one JSON object a line."""
        write_text(self.file("metrics.jsonl"), "".join(canonical_json(row) + "\n" for row in rows))

    def finish(self, fingerprint: str) -> None:
        """Mark the run as complete."""
        write_json(self.file("done.json"), {"schema": 1, "fingerprint": fingerprint})
