"""What stops a run of a method, found before its first second of work.

Files are looked at, and headers read; of a model on the Hub the small files are fetched. No image is decoded, no
weights are loaded, and no output is written.
"""

from __future__ import annotations

from collections.abc import Container
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from thoraclip.errors import ManifestError, MissingExtraError, ModelError
from thoraclip.labels import load_prompts
from thoraclip.methods import find_method
from thoraclip.methods.adapters import with_adapter
from thoraclip.methods.parts import require_folds
from thoraclip.methods.sources import sources_of
from thoraclip.methods.tracking import require_trackers
from thoraclip.models.architectures import ARCHITECTURES, find_architecture
from thoraclip.models.files import (
    Checkpoint,
    locate,
    read_config,
    read_note,
    require_float_weights,
    require_on_hub,
    stored_folder,
)
from thoraclip.models.image_processor import read_preprocess
from thoraclip.models.open_clip_config import tokenizer_remedy
from thoraclip.models.open_clip_towers import describe_open_clip
from thoraclip.shapes import check, table, text
from thoraclip.tables.captions import read_captions
from thoraclip.tables.embeddings import read_embeddings
from thoraclip.tables.manifest import Manifest

__all__ = ["check_method", "check_model", "has_text"]

_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")


def check_method(kind: str, config: Any, manifest: Manifest, *, later: Container[str] = ()) -> None:
    """Raise ThoraclipError where a method cannot run on these images, but for what is wrong with a class in one part
    of their split.

    Args:
        kind: a name in `METHODS`.
        config: of the method.
        manifest: the images; those that are only listed have no hash yet, and may have no split.
        later: settings that name what will be made, by an earlier run or a study: `adapter`, `captions`.
    """
    method = find_method(kind)
    labels = manifest.label_set(config.classes)
    manifest.targets(labels)
    sources_of(config, manifest)
    folds = sorted(set(manifest.column("fold")) - {None})
    if any(manifest.parts()):
        require_folds(config.only_folds, folds)
    if hasattr(config, "model"):
        with_weights = getattr(config, "pretrained", True)
        needs_text = kind if getattr(config, "reads_texts", False) else ""
        encodes = method.embeds or method.trains_adapters
        check_model(config.model, config.geometry, encodes=encodes, needs_text=needs_text, with_weights=with_weights)
    if hasattr(config, "prompts") and getattr(config, "reads_prompts", True):
        prompts = load_prompts(config.prompts)
        if config.prompts.endswith(".toml"):  # a shipped set has classes of many data sets
            prompts.require_classes(labels.names)
    adapter = getattr(config, "adapter", "")
    if adapter and "adapter" not in later:
        for fold in list(config.only_folds or folds) or [None]:
            folder = Path(with_adapter(config, fold).adapter)
            read_note(folder)
            require_float_weights(folder / "adapter_model.safetensors", f"adapter '{folder}'")
    if getattr(config, "captions", "") and "captions" not in later:
        captions = read_captions(config.captions)
        if not set(captions.image_id) & set(manifest.column("image_id")):
            raise ManifestError(f"{config.captions}: has a caption for none of the images; name the captions of these")
    if getattr(config, "embeddings", ""):
        embeddings = read_embeddings(config.embeddings)
        if manifest.file is not None:  # images that are only listed have no hash yet
            embeddings.rows_for(manifest)
    if method.trains_network:
        from thoraclip.methods.training.processes import require_launch  # with torch

        require_launch(config.processes)
        require_trackers(config.trackers, installed=True)
    if (method.trains_adapters or adapter) and not find_spec("peft"):
        raise MissingExtraError("peft", "study")
    if method.trains_adapters:
        from thoraclip.models.lora import check_lora  # with torch

        check_lora(config.model, config.lora)


def has_text(name: str) -> bool:
    """False for a model whose type is known as a vision tower without texts; the small files of one on the Hub alone
    are fetched.

    A model that cannot be read counts as one with texts: `check_model` says what is wrong with it.
    """
    try:
        folder = stored_folder(name)
        if folder is None:
            from thoraclip.models.checkpoint import find_checkpoint  # with torch

            model_type = find_checkpoint(name).config.model_type
        else:
            model_type = _model_type(folder)
    except ModelError:
        return True
    return model_type not in ARCHITECTURES or ARCHITECTURES[model_type].has_text


def _model_type(folder: Path) -> str:
    """Of the model in a folder, in Transformers' or open_clip's format; raises ModelError where it does not say."""
    content = read_config(str(folder))
    described = describe_open_clip(str(folder), content)
    if described is None:
        check(content, table(model_type=text), folder / "config.json", error=ModelError, remedy="get the model again")
    return str((described or content)["model_type"])


def check_model(
    name: str, geometry: str, *, encodes: bool = False, needs_text: str = "", with_weights: bool = True
) -> None:
    """Raise ModelError unless the files of a local model are there and readable. Of one whose weights are on the Hub
    alone, the small files are fetched.

    Args:
        name, geometry: as the user gave them.
        encodes: True where the model must be an encoder of images (`models.architectures`).
        needs_text: what compares images with texts; empty where nothing does.
        with_weights: False where the architecture alone is taken.
    """
    is_local = locate(name)[1]
    folder = stored_folder(name)
    if folder is None:
        from thoraclip.models.checkpoint import find_checkpoint  # with torch

        require_on_hub(name, "*.safetensors" if with_weights else "*config.json")
        found = find_checkpoint(name)
        if encodes:
            find_architecture(str(found.config.model_type), name, needs_text=needs_text)
        read_preprocess(found, geometry=geometry)
        return
    checkpoint = Checkpoint(name, str(folder), is_local=True, config=None)
    model_type = _model_type(folder)
    is_dual = encodes and find_architecture(model_type, name, needs_text=needs_text).has_text
    read_preprocess(checkpoint, geometry=geometry)
    files = sorted(folder.glob("*.safetensors"))
    if not files and with_weights:
        raise checkpoint.error(f"type '{model_type}': weights cannot be loaded; a model.safetensors is needed")
    for file in files:
        require_float_weights(file, f"model '{name}'")
    if is_local and is_dual and not any((folder / file).is_file() for file in _TOKENIZERS):
        raise checkpoint.error(f"its tokenizer cannot be loaded; {tokenizer_remedy(checkpoint)}")
