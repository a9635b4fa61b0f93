"""What stops a study, found before its first second of work: the dry run and the run ask the same questions.

Files are looked at, and headers read; no image is decoded, no network loaded and nothing written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from thoraclip.config import require_known
from thoraclip.documents import read_json, regular
from thoraclip.errors import (
    ConfigError,
    InputError,
    ManifestError,
    MissingExtraError,
    ModelError,
    ThoraclipError,
    first_line,
)
from thoraclip.labels import load_prompts
from thoraclip.methods import find_method
from thoraclip.methods.adapters import with_adapter
from thoraclip.methods.caption import CAPTIONERS
from thoraclip.methods.training.processes import require_launch
from thoraclip.models.files import PRECISIONS, Checkpoint, locate, read_note, stored_folder
from thoraclip.models.image_processor import read_preprocess
from thoraclip.shapes import check, table, text
from thoraclip.study.external import listed_count
from thoraclip.study.settings import CAPTIONS, MethodEntry, StudyConfig
from thoraclip.tables.captions import read_captions
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import Manifest, read_manifest

__all__ = ["check_study"]

_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")


def check_study(config: StudyConfig, methods: Sequence[MethodEntry], out: Path) -> Manifest:
    """The images of a study as they are listed, where nothing that it names stops it.

    What is wrong with a class in one part of the split is left to the methods: the others can still be compared.

    Raises:
        ThoraclipError: the first mistake, with the study's part that has it: `out`, the images and their split, a
            model, adapter, caption file, embeddings, prompts, an external set, or a missing package.
    """
    _check_out(config, out)
    manifest = read_manifest(Path(config.manifest)) if config.manifest else config.list_images()
    config.stated_prevalence(manifest)
    if all(label is None for label in manifest.column("label")):
        raise ManifestError("manifest: no labelled image; a study needs labels to judge by")
    _check_split(config, manifest)
    for method in methods:
        with _named(f"method '{method.name}'"):
            _check_method(method, manifest, out)
    if config.captioner and CAPTIONERS[config.captioner].reads_images:
        with _named(f"captioner '{config.captioner}'"):
            _check_model(config.caption_model, config.geometry)
    if config.captioner == "column" and config.caption_column not in manifest.table.column_names:
        raise ConfigError(
            f"caption_column = '{config.caption_column}': the manifest has no such column; name one of its"
        )
    for external in config.external:
        listed_count(external, manifest.label_set(config.classes))
    return manifest


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors begin with what they are of."""
    try:
        yield
    except MissingExtraError:
        raise
    except ThoraclipError as error:
        raise type(error)(f"{what}: {error}") from error


def _check_out(config: StudyConfig, out: Path) -> None:
    place = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    if not place.is_dir():
        raise InputError(f"{out}: cannot be written ({place} is a file, not a folder); choose another --out")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{out}: cannot be written (no permission in {place}); choose another --out")
    if config.folder and out.resolve().is_relative_to(Path(config.folder).resolve()):
        raise InputError(f"{out}: lies inside the images' folder {config.folder}; choose an --out elsewhere")


def _check_split(config: StudyConfig, manifest: Manifest) -> None:
    """Raise ManifestError where no image can be judged; a study makes folds where there are no parts at all."""
    named = set(manifest.parts()) - {None}
    if named and named <= {"train", "val"}:
        raise ManifestError(
            "manifest: no test image, its images are of split train or val alone; split it again: thoraclip split "
            "MANIFEST --folds 5 --out FILE"
        )
    folds = set(manifest.column("fold")) - {None} or (set() if named else set(range(config.folds)))
    missing = sorted(set(config.only_folds) - folds)
    if missing:
        raise ManifestError(f"manifest: no fold {missing[0]}, which only_folds names; its folds are {sorted(folds)}")


def _check_method(entry: MethodEntry, manifest: Manifest, out: Path) -> None:
    config, method = entry.config, find_method(entry.kind)
    labels = manifest.label_set(config.classes)
    if hasattr(config, "model"):
        require_known(config, precision=PRECISIONS)
        _check_model(config.model, config.geometry, with_text=method.embeds)
    if hasattr(config, "prompts") and getattr(config, "reads_prompts", True):
        prompts = load_prompts(config.prompts)
        for name in labels.names:
            prompts.for_class(name)
    adapter = getattr(config, "adapter", "")
    if adapter and not entry.after and not Path(adapter).resolve().is_relative_to(out.resolve() / "runs"):
        folds = sorted(set(manifest.column("fold")) - {None})
        for fold in list(config.only_folds or folds) or [None]:
            _check_adapter(Path(with_adapter(config, fold).adapter))
    if getattr(config, "captions", "") and not entry.has_own_captions and config.captions != str(out / CAPTIONS):
        captions = read_captions(config.captions)
        if not set(captions.image_id) & set(manifest.column("image_id")):
            raise ManifestError(f"{config.captions}: has a caption for none of the images; name the captions of these")
    if getattr(config, "embeddings", ""):
        embeddings = read_embeddings(config.embeddings)
        if manifest.file is not None:  # images that are only listed have no hash yet
            embeddings.rows_for(manifest)
    if method.trains_network:
        require_launch(wanted=config.processes, trackers=config.trackers)
    if (method.trains_adapters or adapter) and not find_spec("peft"):
        raise MissingExtraError("peft", "study")


def _check_model(name: str, geometry: str, *, with_text: bool = False) -> None:
    """Raise ModelError unless the files of a local model are there and readable; one on the Hub is fetched later, or,
    where there is no network by choice, must be on this machine."""
    is_local = locate(name)[1]
    folder = stored_folder(name)
    if folder is None:
        if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            raise ModelError(f"model '{name}': is not on this machine, and HF_HUB_OFFLINE is set; download it first")
        return
    checkpoint = Checkpoint(name, str(folder), is_local=True, config=None)
    file, remedy = folder / "config.json", "get the model again"
    content = read_json(file, error=ModelError, remedy=remedy)
    check(content, table(model_type=text), file, error=ModelError, remedy=remedy)
    model_type = content["model_type"]
    read_preprocess(checkpoint, geometry=geometry)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise checkpoint.error(f"type '{model_type}': weights cannot be loaded; a model.safetensors is needed")
    for file in files:
        _read_header(file, checkpoint.error)
    if is_local and with_text and not any((folder / file).is_file() for file in _TOKENIZERS):
        raise checkpoint.error("its tokenizer cannot be loaded; a tokenizer.json is needed")


def _check_adapter(folder: Path) -> None:
    read_note(folder)
    _read_header(folder / "adapter_model.safetensors", lambda text: ModelError(f"adapter '{folder}': {text}"))


def _read_header(file: Path, error_of: Any) -> None:
    try:
        with safe_open(regular(file), framework="numpy") as weights:
            weights.keys()
    except (OSError, ValueError, SafetensorError) as error:
        raise error_of(f"{file.name} is not readable ({first_line(error)}); get it again") from error
