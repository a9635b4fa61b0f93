"""What all functions of `api` do with their arguments: progress, messages, paths, manifests, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from thoraclip.api.progress import Lines, NotebookBar, in_notebook
from thoraclip.runs import Progress, is_main_process, writes

if TYPE_CHECKING:
    from thoraclip.config import Settings
    from thoraclip.tables.manifest import Manifest

    Images = str | Path | Manifest
    """A manifest file, or the manifest itself."""
    Files = str | Path | Sequence[str | Path]
    Fractions = str | Sequence[float]

__all__ = [
    "REPORT_FILES", "RUN_FILES", "Announce", "File",
    "config_of", "hooks", "read_images", "settings_of", "to_path", "writes",
]  # fmt: skip

File = str | Path
Announce = Callable[[str], None]
T = TypeVar("T", bound="Settings")

REPORT_FILES = {"report.json": ("report.md", "report.html", "report.tex")}
RUN_FILES = {"provenance.json": ("config.toml", "metrics.jsonl", "predictions.parquet")}


def hooks(progress: bool | Progress, announce: Announce | None) -> tuple[Progress | None, Announce]:
    """The two callbacks that work below `api` takes: (called with (done, total) or `None`, called with a line of
    text)."""
    if progress and not callable(progress) and is_main_process():
        shown = NotebookBar() if in_notebook() else Lines()
        return shown.draw, announce or shown.write
    return progress if callable(progress) else None, announce or (lambda _: None)


def read_images(given: Images, *, may_leak: bool = False, log: Announce = lambda _: None) -> Manifest:
    """The manifest, read from its file where one is named; `log` gets a line for what was tidied there.

    Raises:
        LeakError: a patient or image stands on both sides of a split, and `may_leak` is false.
    """
    from thoraclip.tables.manifest import Manifest, read_manifest

    if isinstance(given, Manifest):
        return given if may_leak else given.strict()
    manifest = read_manifest(Path(given), may_leak=may_leak)
    for note in manifest.notes:
        log(f"note: {note}")
    return manifest


def to_path(given: File | None) -> Path | None:
    """A `Path`, or `None` where nothing is given."""
    return None if given is None else Path(given)


def config_of(cls: type[T], named: Mapping[str, Any]) -> T:
    """The settings of a dataclass that are among some arguments by name."""
    from thoraclip.config import field_kinds

    return cls(**{name: named[name] for name in field_kinds(cls) if name in named})  # type: ignore[arg-type]


def settings_of(
    cls: type[T], config: File | None, settings: Mapping[str, Any], *, where: str, more: Any = lambda _: {}
) -> T:
    """The settings of a dataclass: the TOML file's, whose `kind`, if any, must be `where`, and over them the keywords';
    `more` makes of those the settings that follow from them.

    Raises:
        ConfigError: an unknown name, a value of the wrong type, or a file of another method.
    """
    from thoraclip.config import build_config
    from thoraclip.documents import read_toml
    from thoraclip.errors import ConfigError

    values = read_toml(Path(config)) if config else {}
    if values.pop("kind", where) != where:
        raise ConfigError(f"{config}: holds settings of another method than '{where}'")
    stated = {**values, **settings}
    return build_config(cls, {**more(stated), **stated}, where=str(config or where))
