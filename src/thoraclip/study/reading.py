"""How a study file, a folder or a command line becomes settings and methods, and how these are written back."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from thoraclip.config import build_config, config_toml, toml_value
from thoraclip.data.layouts import COLUMN_SETTINGS
from thoraclip.documents import read_toml
from thoraclip.errors import ConfigError, did_you_mean, printable, shown
from thoraclip.evaluation.results import MAJORITY, read_published
from thoraclip.methods import METHODS, find_method
from thoraclip.methods.checking import has_text
from thoraclip.study.crossing import cross
from thoraclip.study.images import read_external
from thoraclip.study.remedies import cross_remedies
from thoraclip.study.settings import OWN_CAPTIONS, MethodEntry, StudyConfig

__all__ = ["build_entries", "folder_name", "read_study", "require_name", "study_toml"]

_DEFAULT_METHODS: tuple[Mapping[str, Any], ...] = (
    {"name": "zero-shot, ensemble", "kind": "zeroshot"},
    {"name": "linear probe", "kind": "probe"},
)
_SHARED = (
    "model", "geometry", "remedy", "precision", "runtime", "batch_size", "classes", "class_weight", "adapter",
    "captions", "only_folds", "trackers",
)  # fmt: skip
"""Study settings that reach every method which knows them, unless the method says otherwise."""
_INHERITED = (
    "model", "geometry", "remedy", "precision", "runtime", "classes", "only_folds", "val_fraction", "prompts", "shots",
)  # fmt: skip
"""Settings that a method takes over from the fine-tuning whose adapters it uses, unless it says otherwise."""
_MOST_METHODS, _LONGEST_NAME = 1_000, 200
_PATHS = (
    "manifest", "folder", "csv", "audit_masks", "model", "caption_model", "adapter", "captions", "embeddings", "prompts"
)  # fmt: skip
_OTHER_SOURCE = {"manifest": ("folder", "layout", "csv", *COLUMN_SETTINGS), "folder": ("manifest",)}
"""Setting that says where the images are -> those of the study file that it replaces."""


def read_study(source: Path | str, settings: Mapping[str, Any]) -> tuple[StudyConfig, list[MethodEntry]]:
    """Read a study file, or make the default study of a bare folder.

    Paths in a study file are looked for beside the file first, then from the working directory.

    Args:
        source: TOML file, a folder of images, or a manifest (.parquet).
        settings: `--set` values; a study setting, or a setting of the methods that know it.

    Raises:
        ConfigError: every unknown name at once, with the nearest known one; see also
            `evaluation.results.read_published` and `images.read_external`.
        InputError: no such file.
    """
    for name, what in (("published", "published values"), ("external", "external sets")):
        if name in settings:
            table = "[[published]]" if name == "published" else "[external.NAME]"
            raise ConfigError(f"--set {name}: {what} stand in the study file; write them as {table} tables")
    file, where = Path(source), str(source)
    content = _read_source(file, settings)
    if csv := str(settings.get("csv", "")):
        places = (Path(csv), file / csv)  # of a folder, also in it
        settings = {**settings, "csv": str(next((place for place in places if os.path.isfile(place)), csv))}  # noqa: PTH113, never an error
    published, external = content.pop("published", []), content.pop("external", {})
    entries = content.pop("methods", _DEFAULT_METHODS)
    own = {name: value for name, value in settings.items() if name in _names(StudyConfig)}
    for name in content.keys() - _names(StudyConfig):
        if kinds := [kind for kind, method in METHODS.items() if name in _names(method.config_type)]:
            raise ConfigError(
                f"{where}: '{name}' is a setting of {', '.join(kinds)}; write it in the [[methods]] table of one"
            )
    config = build_config(StudyConfig, content | own, where=where)
    if not isinstance(entries, list | tuple) or not entries or not all(isinstance(e, Mapping) for e in entries):
        raise ConfigError(f"{where}: 'methods' must be one [[methods]] table or more")
    if len(entries) > _MOST_METHODS:
        raise ConfigError(f"{where}: {len(entries):,} methods: at most {_MOST_METHODS:,} are needed; split the study")
    loose = {name: value for name, value in settings.items() if name not in own}
    methods = build_entries(config, [{**e, **_beside(file, e)} for e in entries], loose, where)
    rows = read_published(published, [m.name for m in methods], where)
    sets = read_external(external, where, lambda table: _beside(file, table))
    return dataclasses.replace(config, published=rows, external=sets), methods


def _read_source(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a study file, or that of one for a folder or a manifest, without what the settings replace."""
    if file.is_dir():
        content: dict[str, Any] = {"folder": str(file), "title": file.resolve().name}
    elif file.suffix == ".parquet":
        content = {"manifest": str(file), "title": file.stem}
    else:
        content = read_toml(file, missing="name a study file (.toml), a folder of images or a manifest (.parquet)")
        content |= _beside(file, content)
    replaced = {name for one, names in _OTHER_SOURCE.items() if one in settings for name in names}
    return {name: value for name, value in content.items() if name not in replaced}


def _names(config: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config)}


def _beside(source: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The paths among some settings that lie beside the study file."""

    def beside(value: str) -> str:
        place = source.parent / value
        return str(place) if os.path.exists(place) else value  # noqa: PTH110, never an error

    named: dict[str, Any] = {
        name: beside(content[name]) for name in _PATHS if isinstance(content.get(name), str) and content[name]
    }
    models = content.get("models")
    if isinstance(models, list) and all(isinstance(model, str) and model for model in models):
        named["models"] = [beside(model) for model in models]
    return named


def build_entries(
    study: StudyConfig, entries: Sequence[Mapping[str, Any]], loose: Mapping[str, Any], where: str
) -> list[MethodEntry]:
    """The methods of a study; `then = "probe"` on a fine-tuning adds a method that uses its adapters.

    Args:
        study: its settings reach the methods that know them.
        entries: the `[[methods]]` tables.
        loose: `--set` values that are no settings of the study itself.
        where: begins every message.
    """
    methods, taken, left_out = list[MethodEntry](), set[str](), set[str]()
    settings = {kind: frozenset(_names(method.config_type)) for kind, method in METHODS.items()}
    entries = list(cross_remedies(entries, study.remedies, settings, where))
    crossed = cross(entries, study.models, settings, where)
    for number, entry in enumerate(_with_followers(crossed, where), start=1):
        values = dict(entry)
        head, kind = values.pop("head", ""), values.pop("kind", None)
        remedy = {name: values.pop(name, "") for name in ("plain", "with_remedy")}
        if not isinstance(kind, str):
            raise ConfigError(
                f"{where}: method {number} has no 'kind'; add kind = \"...\", one of: {', '.join(METHODS)}"
            )
        name = values.pop("name", kind)
        require_name(name, f"{where}, method {number}")
        method, place = find_method(kind), f"{where}, method '{name}'"
        known = settings[kind]
        if head and str(values.get("after")) in left_out:
            left_out.add(name)
            continue
        after = _find_training(values.pop("after", None), methods, known, place)
        shared = {n: getattr(study, n) for n in _SHARED if n in known}
        if study.captioner and "captions" in known:
            shared["captions"] = OWN_CAPTIONS
        if "chunk_size" in known:  # there batch_size is no longer the images of a forward pass
            shared.pop("batch_size", None)
        if after:
            shared |= {n: getattr(after.config, n) for n in _INHERITED if n in known & _names(after.config)}
        given = {n: v for n, v in loose.items() if n in known}
        if "captions" in known and not _takes_captions((values | given).get("loss", method.config_type.loss)):
            shared.pop("captions")
        config = build_config(method.config_type, shared | values | given, where=place)
        if head and config.reads_texts and not has_text(config.model):
            left_out.add(name)
            continue
        seeds = study.seeds if method.is_seeded or after else ()
        folder = folder_name(name, taken)
        taken.add(folder)
        methods.append(MethodEntry(name, kind, config, folder, seeds, after, head, **remedy))
    if not methods:
        raise ConfigError(
            f"{where}: every method compares images with texts, and none of models = {list(study.models)} has a text "
            'tower; add a [[methods]] table of kind = "probe"'
        )
    every = _names(StudyConfig).union(*(_names(method.config) for method in methods))
    if unknown := sorted(set(loose) - every):
        raise ConfigError("; ".join(f"--set: unknown setting '{n}'{did_you_mean(n, every)}" for n in unknown))
    [(name, count)] = Counter(m.name for m in methods).most_common(1)
    if count > 1:
        raise ConfigError(f"{where}: method name '{name}' stands twice; every row of the table has its own")
    return methods


def _takes_captions(loss: Any) -> bool:
    """False for a loss that trains on class prompts or reads no texts; the captions of the study are not for it."""
    from thoraclip.methods.losses import LOSSES  # with torch

    return not (isinstance(loss, str) and loss in LOSSES) or LOSSES[loss].takes_captions


def _with_followers(entries: Iterable[Mapping[str, Any]], where: str) -> Iterator[Mapping[str, Any]]:
    """Every entry; behind one with `then = KIND` comes the entry that this stands for."""
    for entry in entries:
        values = dict(entry)
        then = values.pop("then", None)
        yield values
        if then is not None:
            name = values.get("name", values.get("kind"))
            if not isinstance(then, str):
                raise ConfigError(
                    f"{where}, method '{name}': then = {then!r} must be the kind of a method, such as probe"
                )
            head = {"head": f"{values['head']}, then {then}"} if "head" in values else {}
            yield {"name": f"{name}, then {then}", "kind": then, "after": name, **head}


def _find_training(name: Any, methods: Sequence[MethodEntry], known: Collection[str], where: str) -> MethodEntry | None:
    """The earlier method of this name, whose adapters are wanted; `None` where none are."""
    if name is None:
        return None
    if "adapter" not in known:
        raise ConfigError(f"{where}: uses no adapter, so it cannot come after '{name}'")
    trainings = {m.name: m for m in methods if METHODS[m.kind].trains_adapters}
    if not isinstance(name, str) or name not in trainings:
        raise ConfigError(
            f"{where}: after = {name!r} must be the name of a finetune that stands above "
            f"it{did_you_mean(str(name), trainings)}"
        )
    return trainings[name]


def study_toml(config: StudyConfig, methods: Sequence[MethodEntry]) -> str:
    """Everything as a study file that `read_study` reads back."""
    text = config_toml(config, skip=("published", "external"))
    for method in methods:
        about = {"name": method.name, "kind": method.kind, "after": method.after and method.after.name}
        about |= {key: getattr(method, key) or None for key in ("head", "plain", "with_remedy")}
        lines = "".join(f"{name} = {toml_value(value)}\n" for name, value in about.items() if value is not None)
        text += f"\n[[methods]]\n{lines}{config_toml(method.config, skip=('seed',) if method.seeds else ())}"
    text += "".join(f"\n[[published]]\n{config_toml(row)}" for row in config.published)
    for one in config.external:
        labels = f"labels = {toml_value(dict(one.labels))}\n"
        text += f"\n[external.{one.name}]\n{config_toml(one, skip=('name', 'labels'))}{labels}"
    return text


def require_name(name: Any, where: str) -> None:
    """Raise ConfigError unless a method's name is one line of text that the report can show."""
    if not isinstance(name, str) or not name.strip() or printable(name) != name or len(name) > _LONGEST_NAME:
        rule = f"one line of 1 to {_LONGEST_NAME} letters without control characters is needed"
        raise ConfigError(f"{where}: name = {shown(name)}: {rule}")
    if name == MAJORITY:
        raise ConfigError(f"{where}: name = '{name}': the report adds a row of this name by itself; choose another")


def folder_name(name: str, taken: Collection[str]) -> str:
    """Name of a folder: small letters, digits and -, no device of Windows, and at most 100 letters."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower())[:100].strip("-") or "method"
    if re.fullmatch(r"con|prn|aux|nul|com\d|lpt\d", slug):
        slug = f"method-{slug}"
    return next(s for s in (slug, *(f"{slug}-{i}" for i in range(2, len(taken) + 3))) if s not in taken)
