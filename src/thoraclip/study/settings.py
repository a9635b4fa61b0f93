"""What a study is: its settings, its methods, and how both are read from a file, a folder or a command line."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from thoraclip.config import build_config, config_toml, toml_value
from thoraclip.data.layouts import COLUMN_SETTINGS
from thoraclip.data.lungs.regions import require_mask_source
from thoraclip.documents import read_toml
from thoraclip.errors import ConfigError, did_you_mean
from thoraclip.evaluation.predictive import read_prevalence, require_classes
from thoraclip.evaluation.results import Published, read_published
from thoraclip.methods import METHODS, find_method
from thoraclip.methods.caption import CAPTIONERS
from thoraclip.methods.checking import has_text
from thoraclip.methods.tracking import require_trackers
from thoraclip.ranges import (
    AnyBatchSize,
    AuditImages,
    FoldCount,
    FoldNumber,
    Geometry,
    OneOf,
    Precision,
    Resamples,
    RuntimeName,
    Seeds,
    Weighting,
    conform,
)
from thoraclip.runs import Progress
from thoraclip.study.crossing import cross
from thoraclip.study.images import External, ImageSource, external_toml, read_external
from thoraclip.study.names import folder_name, require_name
from thoraclip.tables.manifest import Manifest

__all__ = ["CAPTIONS", "MethodEntry", "Study", "StudyConfig", "build_entries", "read_study", "study_toml"]

_DEFAULT_METHODS: tuple[Mapping[str, Any], ...] = (
    {"name": "zero-shot, ensemble", "kind": "zeroshot"},
    {"name": "linear probe", "kind": "probe"},
)
_SHARED = (
    "model",
    "geometry",
    "precision",
    "runtime",
    "batch_size",
    "classes",
    "class_weight",
    "adapter",
    "captions",
    "only_folds",
    "trackers",
)
"""Study settings that reach every method which knows them, unless the method says otherwise."""
_INHERITED = ("model", "geometry", "precision", "runtime", "classes", "only_folds", "val_fraction", "prompts")
"""Settings that a method takes over from the fine-tuning whose adapters it uses, unless it says otherwise."""
_MOST_METHODS = 1_000
_PATHS = (
    "manifest",
    "folder",
    "csv",
    "audit_masks",
    "model",
    "caption_model",
    "adapter",
    "captions",
    "embeddings",
    "prompts",
)
_OTHER_SOURCE = {"manifest": ("folder", "layout", "csv", *COLUMN_SETTINGS), "folder": ("manifest",)}
"""Setting that says where the images are -> those of the study file that it replaces."""
CAPTIONS = "captions.parquet"
"""File of the captions that the study makes, in its folder."""
OWN_CAPTIONS = "(written by the study)"
"""Stands for the caption file that the study makes in its folder."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig(ImageSource):
    """What one study needs; the list of methods stands beside it."""

    title: str = "Chest X-ray classification study"
    """Headline of the report."""
    model: str = "tiny-clip"
    """Dual encoder of every method that does not name its own; openai/clip-vit-base-patch32 for real work."""
    models: tuple[str, ...] = ()
    """Several encoders in place of `model`: every method that names no model of its own runs with each."""
    adapter: str = ""
    """PEFT adapter folder merged into the model; empty for none."""
    captions: str = ""
    """Caption file of the methods that train on captions."""
    captioner: str = ""
    """Who writes the captions where no file is given: blip, template or column; empty: nobody, class prompts are
    trained on."""
    caption_model: str = "Salesforce/blip-image-captioning-base"
    """captioner blip: Hub id or local folder."""
    caption_column: str = ""
    """captioner column: the manifest's column of texts."""
    geometry: Geometry = "squash"
    """How pictures become square: squash, crop or pad."""
    precision: Precision = "auto"
    """fp32, bf16 or auto."""
    runtime: RuntimeName = "auto"
    """fp32 on a CPU: torch, onnxruntime, openvino, or auto: the fastest for long work, equal to 1e-5."""
    batch_size: AnyBatchSize = 0
    """Images per forward pass, 0 for what suits each network; where a method trains, its own batch_size and chunk_size
    count."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the scores; empty for the manifest's, sorted."""
    class_weight: Weighting = "none"
    """none or balanced, for methods that train."""
    only_folds: tuple[FoldNumber, ...] = ()
    """Folds that are held out and scored; empty for all of them."""
    folds: FoldCount = 5
    """Patient folds that are made when the images have neither split nor folds."""
    group_duplicates: bool = True
    """Whether folds that the study makes keep near duplicates together; every picture is looked at once for it."""
    seeds: Seeds = (0,)
    """Every method that depends on a seed runs once for each."""
    pixel_cache: bool = True
    """Whether decoded pictures are kept in the study folder (a byte a pixel), so that all methods decode each one
    once."""
    resamples: Resamples = 2000
    """Bootstrap resamples behind every interval."""
    prevalence: tuple[str, ...] = ()
    """CLASS=SHARE, such as COVID-19=0.05: how common a class is elsewhere, for predictive values there."""
    thumbnails: bool = True
    """Whether report.html shows misclassified images."""
    audit: Annotated[str, OneOf(("best", "all", "none"))] = "best"
    """Which methods are asked whether they read lungs or shortcuts: best (by macro F1, of those that keep a
    classifier), all or none."""
    audit_images: AuditImages = "auto"
    """Images that each audit looks at: auto (of the fewest patients that can show an effect of 10 points beyond the
    margin), all that the classifier has not seen, or a number at most."""
    audit_masks: str = "auto"
    """Where an audit gets the lungs from, see thoraclip audit: auto, given, estimate, none, or a folder with your own
    model."""
    trackers: tuple[str, ...] = ()
    """Trackers that get the report, and what methods that train send: mlflow, tensorboard, trackio, wandb. Those that
    keep files get report.html with its thumbnails."""
    published: tuple[Published, ...] = ()
    """Values of others, one [[published]] table each, printed beside the measured ones; not for --set, see
    docs/report.md."""
    external: tuple[External, ...] = ()
    """Test sets from elsewhere, one [external.NAME] table each, scored by every method that keeps a model; not for
    --set."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.models and self.adapter:
            raise ConfigError(
                f"adapter = '{self.adapter}' belongs to one encoder, and models = {list(self.models)}; name both "
                "the adapter and its model in a [[methods]] table"
            )
        if not self.seeds:
            raise ConfigError("seeds = []: one whole number or more is needed")
        if self.captioner:
            conform("captioner", self.captioner, Annotated[str, OneOf(CAPTIONERS)])
        if self.captioner and self.captions:
            raise ConfigError(
                f"captions = '{self.captions}' are there already, so captioner = '{self.captioner}' has nothing to "
                "write; leave one of them out"
            )
        require_mask_source(self.audit_masks, "audit_masks")
        read_prevalence(self.prevalence)
        require_trackers(self.trackers)

    def stated_prevalence(self, manifest: Manifest) -> dict[str, float]:
        """Class -> share; raises ConfigError where a class is none of the manifest's."""
        stated = read_prevalence(self.prevalence)
        if stated:
            require_classes(stated, manifest.label_set(self.classes).names)
        return stated


@dataclass(frozen=True)
class MethodEntry:
    """One `[[methods]]` of a study."""

    name: str  # in the table
    kind: str  # in `METHODS`
    config: Any  # for the first seed
    folder: str  # its name below `runs/`
    seeds: tuple[int, ...] = ()  # of its runs; `()` for a method without one
    after: MethodEntry | None = None  # the fine-tuning whose adapters it uses, those of the same seed
    head: str = ""  # of a method that a study runs with several encoders: its name without the encoder's

    def runs(self, out: Path) -> list[tuple[int | None, Any, Path]]:
        """(seed, config, run folder) of every run of the study in `out`."""
        runs = list[tuple[int | None, Any, Path]]()
        for seed in self.seeds or [None]:
            given: dict[str, Any] = {"captions": str(out / CAPTIONS)} if self.has_own_captions else {}
            if self.after:
                given["adapter"] = str(self.after.run_folder(out, seed))
            if seed is not None and hasattr(self.config, "seed"):
                given["seed"] = seed
            runs.append((seed, dataclasses.replace(self.config, **given), self.run_folder(out, seed)))
        return runs

    @property
    def is_trained(self) -> bool:
        """True where it, or the adapter that it uses, is fitted to images: what is not has no seed."""
        return bool(self.seeds or self.after or getattr(self.config, "adapter", ""))

    @property
    def has_own_captions(self) -> bool:
        """True where it trains on the captions that the study writes."""
        return getattr(self.config, "captions", "") == OWN_CAPTIONS

    def run_folder(self, out: Path, seed: int | None) -> Path:
        """Of the run of one seed."""
        own = out / "runs" / self.folder
        return own / f"seed-{seed}" if len(self.seeds) > 1 else own


def study_notes(config: StudyConfig, methods: Sequence[MethodEntry], manifest: Manifest) -> list[str]:
    """Which encoders a method leaves out, and what a study that trains once cannot say."""
    heads = dict.fromkeys(method.head for method in methods if method.head)
    notes = [
        f"{head}: compares images with texts, so it leaves out {', '.join(left_out)}, which have no text tower"
        for head in heads
        if (left_out := sorted(set(config.models) - {m.config.model for m in methods if m.head == head}))
    ]
    return notes + _training_notes(methods, manifest)


def _training_notes(methods: Sequence[MethodEntry], manifest: Manifest) -> list[str]:
    """What a study that trains once cannot say: `[]` with several seeds, folds, or nothing that is trained."""
    trained = [method for method in methods if method.seeds]
    if not trained or len(trained[0].seeds) > 1 or any(fold is not None for fold in manifest.column("fold")):
        return []
    return [
        "one seed and no folds: differences will be between single trainings, not between methods; for these add "
        "--set 'seeds=[0, 1, 2]'"
    ]


@dataclass(frozen=True)
class Study:
    """A study at work: what its stages share."""

    config: StudyConfig
    methods: Sequence[MethodEntry]
    manifest: Manifest  # split
    out: Path  # the study folder
    log: Callable[[str], None]  # gets a line at every stage
    progress: Progress | None

    @property
    def pixels(self) -> Path | None:
        """Folder of the decoded images; `None` keeps none."""
        return self.out / "pixels" if self.config.pixel_cache else None


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
    for name, what, table in (
        ("published", "published values", "[[published]]"),
        ("external", "external sets", "[external.NAME]"),
    ):
        if name in settings:
            raise ConfigError(f"--set {name}: {what} stand in the study file; write them as {table} tables")
    file, where = Path(source), str(source)
    content = _read_source(file, settings)
    if csv := str(settings.get("csv", "")):
        places = (Path(csv), file / csv)  # of a folder, also in it
        settings = {**settings, "csv": str(next((place for place in places if os.path.isfile(place)), csv))}  # noqa: PTH113, never an error
    published, external = content.pop("published", []), content.pop("external", {})
    entries = content.pop("methods", _DEFAULT_METHODS)
    own = {name: value for name, value in settings.items() if name in _names(StudyConfig)}
    _require_place(content, where)
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


def _require_place(content: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a setting of methods at the top of a study file."""
    for name in content.keys() - _names(StudyConfig):
        kinds = [kind for kind, method in METHODS.items() if name in _names(method.config_type)]
        if kinds:
            raise ConfigError(
                f"{where}: '{name}' is a setting of {', '.join(kinds)}; write it in the [[methods]] table of one"
            )


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
    crossed = cross(entries, study.models, settings, where)
    for number, entry in enumerate(_with_followers(crossed, where), start=1):
        values = dict(entry)
        head = values.pop("head", "")
        kind = values.pop("kind", None)
        if not isinstance(kind, str):
            raise ConfigError(
                f"{where}: method {number} has no 'kind'; add kind = \"...\", one of: {', '.join(METHODS)}"
            )
        name = values.pop("name", kind)
        require_name(name, f"{where}, method {number}")
        method, place = find_method(kind), f"{where}, method '{name}'"
        known = settings[kind]
        if head and values.get("after") in left_out:
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
        config = build_config(method.config_type, shared | values | given, where=place)
        if head and config.reads_texts and not has_text(config.model):
            left_out.add(name)
            continue
        seeds = study.seeds if method.is_seeded or after else ()
        folder = folder_name(name, taken)
        taken.add(folder)
        methods.append(MethodEntry(name, kind, config, folder, seeds, after, head))
    if not methods:
        raise ConfigError(
            f"{where}: every method compares images with texts, and none of models = {list(study.models)} has a text "
            'tower; add a [[methods]] table of kind = "probe"'
        )
    every = _names(StudyConfig).union(*(_names(method.config) for method in methods))
    unknown = sorted(set(loose) - every)
    if unknown:
        raise ConfigError("; ".join(f"--set: unknown setting '{n}'{did_you_mean(n, every)}" for n in unknown))
    names = Counter(m.name for m in methods)
    if max(names.values()) > 1:
        raise ConfigError(
            f"{where}: method name '{names.most_common(1)[0][0]}' stands twice; every row of the table has its own"
        )
    return methods


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
        skip = ("seed",) if method.seeds else ()
        after = f"after = {toml_value(method.after.name)}\n" if method.after else ""
        after += f"head = {toml_value(method.head)}\n" if method.head else ""
        text += (
            f"\n[[methods]]\nname = {toml_value(method.name)}\nkind = "
            f"{toml_value(method.kind)}\n{after}{config_toml(method.config, skip=skip)}"
        )
    text += "".join(f"\n[[published]]\n{config_toml(row)}" for row in config.published)
    return text + external_toml(config.external)
