"""What a study is: its settings, its methods, and how both are read from a file, a folder or a command line."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.config import build_config, config_toml, read_toml, toml_value
from thoraclip.data.layouts import LAYOUTS
from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.methods import METHODS, find_method

__all__ = ["MethodEntry", "StudyConfig", "build_entries", "read_study", "study_toml"]

_DEFAULT_METHODS: tuple[Mapping[str, Any], ...] = (
    {"name": "zero-shot, ensemble", "kind": "zeroshot"},
    {"name": "linear probe", "kind": "probe"},
)
_SHARED = ("model", "geometry", "precision", "batch_size", "classes", "class_weight", "adapter")
"""Study settings that reach every method which knows them, unless the method says otherwise."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What one study needs; the list of methods stands beside it."""

    manifest: str = ""
    """Manifest file; or give a folder."""
    folder: str = ""
    """Folder of images, indexed and split by the study itself."""
    layout: str = ""
    """Layout of the folder: covid-qu-ex or folders; empty finds out."""
    title: str = "Chest X-ray classification study"
    """Headline of the report."""
    model: str = "tiny-clip"
    """Dual encoder of every method that does not name its own; openai/clip-vit-base-patch32 for real work."""
    adapter: str = ""
    """PEFT adapter folder merged into the model; empty for none."""
    geometry: str = "squash"
    """How pictures become square: squash, crop or pad."""
    precision: str = "auto"
    """fp32, bf16 or auto."""
    batch_size: int = 64
    """Images per forward pass."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the scores; empty for the manifest's, sorted."""
    class_weight: str = "none"
    """none or balanced, for methods that train."""
    folds: int = 5
    """Patient folds that are made when the images have neither split nor folds."""
    group_duplicates: bool = True
    """Whether folds that the study makes keep near duplicates together; every picture is looked at once for it."""
    seeds: tuple[int, ...] = (0,)
    """Every method that depends on a seed runs once for each."""
    pixel_cache: bool = True
    """Whether decoded pictures are kept in the study folder (a byte a pixel), so that all methods decode each one once."""
    resamples: int = 2000
    """Bootstrap resamples behind every interval."""
    thumbnails: bool = True
    """Whether report.html shows misclassified images."""

    def __post_init__(self) -> None:
        if bool(self.manifest) == bool(self.folder):
            raise ConfigError("give either 'manifest' or 'folder', and not both")
        if self.layout and self.layout not in LAYOUTS:
            raise ConfigError(f"unknown layout '{self.layout}'{did_you_mean(self.layout, LAYOUTS)}")
        if self.layout == "csv":
            raise ConfigError(
                "layout 'csv' needs column names; make a manifest with thoraclip index and give 'manifest'"
            )
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds = {list(self.seeds)}: one or more different whole numbers are needed")
        if self.resamples < 100:
            raise ConfigError(f"resamples = {self.resamples}: 100 or more are needed for an interval")


@dataclass(frozen=True)
class MethodEntry:
    """One `[[methods]]` of a study: its name in the table, its kind, its config for the first seed."""

    name: str
    kind: str
    config: Any
    folder: str
    seeds: tuple[int, ...] = field(default=())

    def runs(self) -> list[tuple[int | None, Any, str]]:
        """(seed, config, run folder below `runs/`) of every run."""
        if not self.seeds:
            return [(None, self.config, self.folder)]
        folders = [self.folder] if len(self.seeds) == 1 else [f"{self.folder}/seed-{seed}" for seed in self.seeds]
        return [
            (seed, dataclasses.replace(self.config, seed=seed), f) for seed, f in zip(self.seeds, folders, strict=True)
        ]


def read_study(source: Path, settings: Mapping[str, Any]) -> tuple[StudyConfig, list[MethodEntry]]:
    """Read a study file, or make the default study of a bare folder.

    Paths in a study file are looked for beside the file first, then from the working directory.

    Args:
        source: TOML file, or a folder of images.
        settings: `--set` values; a study setting, or a setting of the methods that know it.

    Raises:
        ConfigError: every unknown name at once, with the nearest known one.
        InputError: no such file.
    """
    if source.is_dir():
        content: dict[str, Any] = {"folder": str(source), "title": source.resolve().name}
        entries: Sequence[Mapping[str, Any]] = _DEFAULT_METHODS
    else:
        content = read_toml(source)
        entries = content.pop("methods", list(_DEFAULT_METHODS))
        for name in ("manifest", "folder", "model", "adapter"):
            content = {**content, **_beside(source, content, name)}
    where = str(source)
    own = {field.name for field in dataclasses.fields(StudyConfig)}
    config = build_config(StudyConfig, {**content, **{k: v for k, v in settings.items() if k in own}}, where=where)
    if not isinstance(entries, list | tuple) or not entries or not all(isinstance(e, Mapping) for e in entries):
        raise ConfigError(f"{where}: 'methods' must be one [[methods]] table or more")
    loose = {k: v for k, v in settings.items() if k not in own}
    methods = build_entries(config, entries, loose, where)
    return config, methods


def _beside(source: Path, content: Mapping[str, Any], name: str) -> dict[str, str]:
    value = content.get(name)
    if isinstance(value, str) and value and (source.parent / value).exists():
        return {name: str(source.parent / value)}
    return {}


def build_entries(
    study: StudyConfig, entries: Sequence[Mapping[str, Any]], loose: Mapping[str, Any], where: str
) -> list[MethodEntry]:
    used: set[str] = set()
    methods: list[MethodEntry] = []
    for number, entry in enumerate(entries, start=1):
        values = dict(entry)
        kind = values.pop("kind", None)
        if not isinstance(kind, str):
            raise ConfigError(
                f"{where}: method {number} has no 'kind'; add kind = \"...\", one of: {', '.join(METHODS)}"
            )
        name = str(values.pop("name", kind))
        method = find_method(kind)
        known = {f.name for f in dataclasses.fields(method.config_type)}
        shared = {n: getattr(study, n) for n in _SHARED if n in known and n not in values}
        from_command = {n: v for n, v in loose.items() if n in known}
        used |= set(from_command)
        config = build_config(
            method.config_type, {**shared, **values, **from_command}, where=f"{where}, method '{name}'"
        )
        seeds = study.seeds if method.is_seeded else ()
        methods.append(MethodEntry(name, kind, config, _unique_slug(name, [m.folder for m in methods]), seeds))
    unknown = sorted(set(loose) - used)
    if unknown:
        known = {f.name for f in dataclasses.fields(StudyConfig)}
        known |= {f.name for m in methods for f in dataclasses.fields(m.config)}
        raise ConfigError("; ".join(f"--set: unknown setting '{n}'{did_you_mean(n, known)}" for n in unknown))
    names = Counter(m.name for m in methods)
    if max(names.values()) > 1:
        raise ConfigError(
            f"{where}: method name '{names.most_common(1)[0][0]}' stands twice; every row of the table has its own"
        )
    return methods


def _unique_slug(name: str, taken: Sequence[str]) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "method"
    return next(s for s in (slug, *(f"{slug}-{i}" for i in range(2, len(taken) + 3))) if s not in taken)


def study_toml(config: StudyConfig, methods: Sequence[MethodEntry]) -> str:
    text = config_toml(config)
    for method in methods:
        text += f"\n[[methods]]\nname = {toml_value(method.name)}\nkind = {toml_value(method.kind)}\n{config_toml(method.config, skip=('seed',) if method.seeds else ())}"
    return text
