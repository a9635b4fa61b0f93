"""The main job: a list of methods on one manifest -> predictions -> one report.

Data flow: settings -> manifest (given, or indexed and split here) -> one run folder per method and seed -> judge ->
`report.json`, from which the pages are drawn. A run that is complete and still valid is read, not repeated.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thoraclip.config import build_config, config_toml, read_toml, toml_value
from thoraclip.data.index import index, write_index_report
from thoraclip.data.layouts import LAYOUTS, detect_layout
from thoraclip.data.splits import patient_groups, split_folds
from thoraclip.errors import ConfigError, ManifestError, ThoraclipError, did_you_mean
from thoraclip.judge.report import MethodResult, judge, write_report
from thoraclip.methods import METHODS, find_method
from thoraclip.methods.running import is_done, run_method
from thoraclip.runs import Progress, canonical_json, provenance, sweep, write_json, write_text
from thoraclip.tables.manifest import Manifest, read_manifest, write_manifest
from thoraclip.tables.predictions import Predictions, write_predictions

__all__ = ["MethodEntry", "StudyConfig", "demo_study", "plan_study", "read_study", "run_study"]

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
    seeds: tuple[int, ...] = (0,)
    """Every method that depends on a seed runs once for each."""
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
    methods = _entries(config, entries, loose, where)
    return config, methods


def _beside(source: Path, content: Mapping[str, Any], name: str) -> dict[str, str]:
    value = content.get(name)
    if isinstance(value, str) and value and (source.parent / value).exists():
        return {name: str(source.parent / value)}
    return {}


def _entries(
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


def plan_study(config: StudyConfig, methods: Sequence[MethodEntry], out: Path) -> dict[str, Any]:
    """What `run_study` would do, without doing it: every run, on how many images, and whether it is there already."""
    manifest = read_manifest(Path(config.manifest)) if config.manifest else None
    kept = out / "manifest.parquet"
    if manifest is None and kept.is_file():
        manifest = read_manifest(kept)
    if manifest is not None:
        manifest = _with_parts(config, manifest)
    runs = [
        {
            "name": method.name,
            "kind": method.kind,
            "seed": seed,
            "done": manifest is not None and is_done(method.kind, run_config, manifest, out / "runs" / folder),
        }
        for method in methods
        for seed, run_config, folder in method.runs()
    ]
    return {
        "schema": 1,
        "images": None if manifest is None else len(manifest),
        "source": config.manifest or config.folder,
        "runs": runs,
    }


def run_study(
    config: StudyConfig,
    methods: Sequence[MethodEntry],
    out: Path,
    *,
    announce: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run every method that is not done yet, and write the report.

    A method that fails is shown as failed, with its error, and does not lose the others.

    Args:
        config, methods: from `read_study`.
        out: the study folder.
        announce: gets a line at every stage.
        progress: gets (done, total) within a stage.

    Returns:
        The content of `report.json`.

    Raises:
        ThoraclipError: the images cannot be had, or every method failed (then the first one's error).
    """
    sweep(out)
    manifest, omitted = _prepare_manifest(config, out, announce, progress)
    facts = provenance(seed=config.seeds[0], inputs={"manifest": manifest.fingerprint})
    write_text(out / "config.toml", _study_toml(config, methods))
    write_json(out / "provenance.json", facts)
    results, errors = [], []
    for number, method in enumerate(methods, start=1):
        announce(f"[{number}/{len(methods)}] {method.name}")
        try:
            results.append(_run_entry(method, manifest, out, progress))
        except ThoraclipError as error:
            announce(f"[{number}/{len(methods)}] {method.name} failed: {error}")
            errors.append(error)
            results.append(
                MethodResult(name=method.name, kind=method.kind, failed=str(error), settings=_settings(method))
            )
    if len(errors) == len(methods):
        raise errors[0]
    announce("judging")
    report = judge(
        results, title=config.title, resamples=config.resamples, seed=config.seeds[0],
        dataset=_describe(manifest, omitted), provenance=facts,
    )  # fmt: skip
    _write_best(out, results, report)
    paths = dict(zip(manifest.column("image_id"), manifest.paths(), strict=True))
    write_report(report, out, image_paths=paths, thumbnails=config.thumbnails)
    return report


def _prepare_manifest(
    config: StudyConfig, out: Path, announce: Callable[[str], None], progress: Progress | None
) -> tuple[Manifest, dict[str, int]]:
    """The labelled, split images of the study, written to its folder; and how many were left out, by reason."""
    set_aside = 0
    if config.manifest:
        manifest = read_manifest(Path(config.manifest))
    else:
        layout = config.layout or detect_layout(Path(config.folder))
        announce(f"indexing {config.folder} (layout {layout})")
        found = index(Path(config.folder), layout=layout, progress=progress)
        write_index_report(out / "manifest.index.json", found)
        manifest, set_aside = found.manifest, len(found.set_aside)
        if set_aside:
            announce(f"{set_aside} unreadable pictures set aside, see {out / 'manifest.index.json'}")
    manifest = _with_parts(config, manifest)
    labels, split, fold = (manifest.column(n) for n in ("label", "split", "fold"))
    unlabelled = sum(label is None for label in labels)
    unassigned = sum(s is None and f is None for s, f in zip(split, fold, strict=True)) - unlabelled
    write_manifest(out / "manifest.parquet", manifest)
    return manifest, {"unreadable": set_aside, "unlabelled": unlabelled, "without split": max(unassigned, 0)}


def _with_parts(config: StudyConfig, manifest: Manifest) -> Manifest:
    has_folds = any(f is not None for f in manifest.column("fold"))
    has_split = any(s is not None for s in manifest.column("split"))
    if has_folds or has_split:
        return manifest
    return split_folds(manifest, folds=config.folds, seed=config.seeds[0])


def _run_entry(method: MethodEntry, manifest: Manifest, out: Path, progress: Progress | None) -> MethodResult:
    predictions: list[Predictions] = []
    details: Mapping[str, Any] = {}
    for _, config, folder in method.runs():
        found, extra = run_method(
            method.kind, config, manifest, out / "runs" / folder, cache=out / "embeddings", progress=progress
        )
        predictions.append(found)
        details = details or extra
    notes = ["tiny-clip is a demonstration model that has only seen phantoms; name a real one with model = ..."]
    return MethodResult(
        name=method.name,
        kind=method.kind,
        predictions=tuple(predictions),
        seeds=method.seeds,
        settings=_settings(method),
        notes=tuple(notes) if method.config.model == "tiny-clip" else (),
        details=details,
    )


def _settings(method: MethodEntry) -> dict[str, str]:
    """Every setting of a method that is not at its default, and always model and geometry."""
    shown = {}
    for item in dataclasses.fields(method.config):
        value = getattr(method.config, item.name)
        if item.name in {"model", "geometry"} or (value != item.default and item.name != "seed"):
            shown[item.name] = value if isinstance(value, str) else toml_value(value)
    return shown


def _write_best(out: Path, results: Sequence[MethodResult], report: Mapping[str, Any]) -> None:
    """The study's own `metrics.jsonl` (a row per method) and `predictions.parquet` (of the best method's first seed)."""
    rows = [row for row in report["methods"] if row.get("metrics")]
    values = [{"name": row["name"], **{k: m and m["value"] for k, m in row["metrics"].items()}} for row in rows]
    write_text(out / "metrics.jsonl", "".join(canonical_json(value) + "\n" for value in values))
    scored = {row["name"]: row["metrics"]["macro_f1"]["value"] for row in rows}
    best = max((r for r in results if r.predictions), key=lambda r: scored[r.name])
    write_predictions(out / "predictions.parquet", best.predictions[0])


def _describe(manifest: Manifest, omitted: Mapping[str, int]) -> dict[str, Any]:
    """Facts of the data set for the report."""
    labels = Counter(label for label in manifest.column("label") if label is not None)
    folds = {f for f in manifest.column("fold") if f is not None}
    splits = Counter(s for s in manifest.column("split") if s is not None)
    if not labels:
        raise ManifestError("manifest: no labelled image; a study needs labels to judge by")
    return {
        "images": len(manifest),
        "classes": dict(sorted(labels.items())),
        "patients": len(set(patient_groups(manifest))),
        "patients_known": sum(p is not None for p in manifest.column("patient")),
        "parts": f"{len(folds)} folds, pooled" if folds else ", ".join(f"{n} {c}" for n, c in sorted(splits.items())),
        "left_out": {reason: count for reason, count in omitted.items() if count},
    }


def _study_toml(config: StudyConfig, methods: Sequence[MethodEntry]) -> str:
    text = config_toml(config)
    for method in methods:
        text += f"\n[[methods]]\nname = {toml_value(method.name)}\nkind = {toml_value(method.kind)}\n{config_toml(method.config, skip=('seed',) if method.seeds else ())}"
    return text


def demo_study(phantoms: Path, manifest_file: Path) -> tuple[StudyConfig, list[MethodEntry]]:
    """The study of `thoraclip demo`: the shipped encoder on a folder of phantoms, zero-shot and probed in two ways.

    Args:
        phantoms: written by `data.phantom.write_phantoms`; its table names the patients, so intervals are by patient.
        manifest_file: where their manifest is written.
    """
    write_manifest(manifest_file, index(phantoms, layout="csv", csv_file=phantoms / "phantoms.csv").manifest)
    config = StudyConfig(manifest=str(manifest_file), title="ThoraCLIP demo on synthetic radiographs")
    entries = [
        {"name": "zero-shot, ensemble", "kind": "zeroshot", "prompts": "chest-xray-ensemble"},
        {"name": "zero-shot, reference prompts", "kind": "zeroshot", "prompts": "reference"},
        {"name": "linear probe, L-BFGS", "kind": "probe"},
        {"name": "linear probe, reference recipe", "kind": "probe", "solver": "adamw"},
    ]
    return config, _entries(config, entries, {}, "demo")
