"""The model card of a trained method: `README.md` in its run folder, in the format of the Hugging Face Hub.

It follows "Model Cards for Model Reporting" (Mitchell et al. 2019, arXiv:1810.03993) as far as a run can answer it;
what a run cannot know, the card calls unknown. The same run gives the same bytes: no clock, no place on a machine.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from jinja2 import Environment

from thoraclip.cards.front_matter import HUB_METRICS, HubFacts, card_text, data_set, shared_licence
from thoraclip.config import field_help, toml_value
from thoraclip.errors import ManifestError
from thoraclip.evaluation.metrics import METRICS
from thoraclip.evaluation.reading import points, share, share_interval, versus
from thoraclip.evaluation.report import RESAMPLES, judge, plain
from thoraclip.evaluation.results import MAJORITY, MethodResult
from thoraclip.pages import environment
from thoraclip.runs import write_text
from thoraclip.tables.predictions import Predictions

__all__ = [
    "BASE_MODELS", "BaseModel", "TrainedRun", "base_model", "card_environment", "judge_run", "model_card",
    "write_model_card",
]  # fmt: skip

_Files = Mapping[int | None, list[str]]
_ALWAYS_SHOWN = ("model", "geometry", "precision", "seed")
_REPORTED = "as commonly reported; check at the source"
BASE_MODELS: Mapping[str, tuple[str | None, str]] = {
    "tiny-clip": ("apache-2.0", "shipped with ThoraCLIP"),
    "openai/clip-vit-base-patch32": (
        None,
        "its card on the Hub declares no licence (the code of CLIP is MIT) and puts any deployed use out of scope",
    ),
    "google/siglip-base-patch16-224": ("apache-2.0", "stated on its card"),
    "facebook/dinov2-small": ("apache-2.0", _REPORTED),
    "google/vit-base-patch16-224": ("apache-2.0", f"{_REPORTED}; trained on ImageNet, whose images are for research"),
    "microsoft/resnet-18": ("apache-2.0", f"{_REPORTED}; trained on ImageNet, whose images are for research"),
    "Salesforce/blip-image-captioning-base": ("bsd-3-clause", _REPORTED),
}
"""Model -> (the Hub's identifier of its licence, `None` where it declares none; how this is known). See
docs/licences.md."""


@dataclass(frozen=True)
class BaseModel:
    """The pretrained model under a trained one."""

    name: str  # as a stranger may see it: a Hub id, or the last part of a folder's path
    hub_id: str | None  # `None` for a local or shipped one
    licence: str | None  # the Hub's identifier; `None` where it is unknown
    known_from: str  # how the licence is known, or what to do where it is not

    @property
    def address(self) -> str:
        """What a command calls it; `BASE` stands for a folder."""
        return self.name if self.name in BASE_MODELS or self.hub_id else "BASE"


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A finished training.

    Args:
        config: the settings of the method, a dataclass with help texts.
        predictions: of its test rows.
        details: what it says of itself. `chosen` (one mapping per fold) is shown as a table; `card` may hold lines of
            Markdown under `what`, `choice`, `use` and `sources`, which are added to these sections.
        data: the counts of the manifest, see `cards.data_facts`.
        images: folder of the pictures; a Croissant record there (`croissant.json`) names the data set and its licence.
    """

    kind: str
    config: Any
    predictions: Predictions
    details: Mapping[str, Any]
    data: Mapping[str, Any]
    images: Path
    provenance: Mapping[str, Any]


def judge_run(
    name: str, kind: str, predictions: Predictions, *, is_trained: bool = True
) -> tuple[dict[str, Any], str | None]:
    """(the report on the test rows of a run, `None`), or, where no test row has a label, (`{}`, why)."""
    try:
        predictions.judged()
    except ManifestError as error:
        return {}, str(error).removeprefix("predictions: ").rstrip(".")
    method = MethodResult(name=name, kind=kind, predictions=(predictions,), is_trained=is_trained)
    return judge([method], title=name, resamples=RESAMPLES), None  # as in a report of this run


def write_model_card(folder: Path, run: TrainedRun) -> None:
    """Write `README.md` into the folder of a run whose weights are there."""
    model = getattr(run.config, "model", "")
    base = base_model(model) if model else None
    write_text(folder / "README.md", model_card(run, base, _model_files(folder, run), data_set(run.images)))


def model_card(run: TrainedRun, base: BaseModel | None, files: _Files, about: dict[str, str]) -> str:
    """The card: YAML front matter, then Markdown (GitHub's dialect).

    Args:
        run: what was trained.
        base: the pretrained model that it began from.
        files: held-out fold (`None` without folds) -> weights, relative to the card.
        about: what is known of the data set: any of `name`, `license`, `url`, `citeAs`.
    """
    name = f"ThoraCLIP {run.kind}" + (f" on {base.name}" if base else "")
    licence = shared_licence(base.licence if base else "", about.get("license"))
    report, why = judge_run(name, run.kind, run.predictions)
    rows = {row["name"]: row for row in report.get("methods", ())}
    added = {k: [v] if isinstance(v, str) else v for k, v in run.details.get("card", {}).items()}
    cards = card_environment()
    body = cards.get_template("model_card.md.j2").render(
        name=name,
        run=run,
        config=run.config,
        details=plain(run.details),
        data=run.data,
        base=base,
        about=about,
        files=files,
        licence=licence,
        settings=_settings(run.config),
        chosen=_chosen(run.details),
        added=added,
        labels=run.predictions.labels.names,
        few=30,
        columns=HUB_METRICS,
        metrics=METRICS,
        report=report,
        unjudged=why,
        entry=rows.get(name),
        majority=rows.get(MAJORITY),
        lead=versus(report["comparisons"], name, MAJORITY, "accuracy") if report else None,
        own_words=cards.select_template([f"model_card_{run.kind}.md.j2", "model_card_any.md.j2"]),
    )
    is_adapter = any(file.endswith("adapter/") for of_fold in files.values() for file in of_fold)
    hub = HubFacts(
        hub_id=base.hub_id if base else None,
        licence=licence,
        about=about,
        images=run.data["images"],
        fingerprint=run.data["fingerprints"]["manifest"],
        tags=(run.kind, *(("lora", "peft") if is_adapter else ())),
        relation="adapter" if is_adapter else None,
    )
    return card_text(hub, report, body)


def card_environment() -> Environment:
    """Jinja's environment of the cards of runs and bundles."""
    filters = {"share": share, "points": points, "interval": share_interval}
    return environment("thoraclip.cards", html=False, n="{:,}".format, shell=shlex.quote, place=_shown, **filters)


def base_model(model: str) -> BaseModel:
    """What is known of a pretrained model; the licence of a local folder is the one that its own card declares."""
    if model in BASE_MODELS and not Path(model).is_dir():
        licence, known_from = BASE_MODELS[model]
        return BaseModel(model, model if "/" in model else None, licence, known_from)
    asked = "ask its authors before you share what was made from it"
    if not Path(model).is_dir():
        return BaseModel(model, model, None, f"read its card on the Hub; where it declares none, {asked}")
    licence = _declared_licence(Path(model) / "README.md")
    return BaseModel(_shown(model), None, licence, "stated on the card beside its weights" if licence else asked)


def _declared_licence(card: Path) -> str | None:
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import metadata_load

    try:
        found = (metadata_load(card) or {}).get("license")
    except (OSError, ValueError, yaml.YAMLError):  # no card, or none that tells
        return None
    declared = isinstance(found, str) and re.fullmatch(r"[a-z0-9.+-]+", found) and found not in {"unknown", "other"}
    return str(found) if declared else None


def _model_files(folder: Path, run: TrainedRun) -> dict[int | None, list[str]]:
    """Held-out fold -> its weights; an adapter is named by its folder, caches and checkpoints are left out."""
    folds = sorted({fold for fold in run.predictions.fold if fold is not None})
    found: dict[int | None, list[str]] = {fold: [] for fold in folds} or {None: []}
    for file in sorted(folder.rglob("*.safetensors")):
        place = file.relative_to(folder)
        if {"embeddings", "pixels", "last", "training.safetensors"} & set(place.parts):
            continue
        number = re.search(r"fold-(\d+)", place.as_posix())
        fold = int(number[1]) if number else None
        if fold in found:  # files of another run in this folder are not this one's
            is_adapter = place.name == "adapter_model.safetensors"
            found[fold].append(f"{place.parent.as_posix()}/" if is_adapter else place.as_posix())
    return found


def _settings(config: Any) -> list[dict[str, str]]:
    """Name, value and meaning of every setting that is not at its default or always matters."""
    rows, texts = [], field_help(type(config))  # type: ignore[arg-type]
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        is_shown = item.name in _ALWAYS_SHOWN or value != item.default
        if is_shown and item.name not in getattr(config, "NOT_IN_THE_RESULT", ()):
            text = _shown(value) if isinstance(value, str) else toml_value(value)
            rows.append({"name": item.name, "value": text, "help": texts.get(item.name, "")})
    return sorted(rows, key=lambda row: row["name"] not in _ALWAYS_SHOWN)


def _shown(value: str) -> str:
    """A setting as a stranger may see it: of a path its last part, and its last two where that is one seed's folder."""
    looks_like_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", value) and not value.startswith(".")
    if not re.search(r"[/\\]", value) or (looks_like_hub and not Path(value).exists()):
        return value
    parts = (PureWindowsPath(value) if "\\" in value else Path(value)).parts
    return "/".join(parts[-2:] if re.fullmatch(r"seed-\d+|fold-\d+|adapter", parts[-1]) else parts[-1:])


def _chosen(details: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of what was chosen in each fold; what is nested is laid open, under both its names."""
    rows: list[dict[str, Any]] = []
    for one in plain(details.get("chosen", ())):
        row = {key: value for key, value in one.items() if not isinstance(value, Mapping)}
        for key in (key for key, value in one.items() if isinstance(value, Mapping)):
            row = {k if key == "validation" else f"{key} of {k}": v for k, v in one[key].items()} | row
        order = [key for key in one if key in row]
        rows.append({key: row[key] for key in [*order, *(k for k in row if k not in order)]})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [key for key in columns if any(row.get(key) is not None for row in rows)], rows
