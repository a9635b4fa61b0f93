"""Which encoder makes the features of a method: its settings, the encoder itself, and finished features without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from thoraclip.config import Settings
from thoraclip.errors import ConfigError, ModelError
from thoraclip.imaging.remedies import NONE
from thoraclip.imaging.remedies import REMEDIES as PIXEL_REMEDIES
from thoraclip.models.architectures import find_architecture
from thoraclip.models.files import Checkpoint, adapter_folders, description, locate, stored_fingerprint, stored_folder
from thoraclip.models.image_processor import read_preprocess
from thoraclip.ranges import AnyBatchSize, FoldNumber, Geometry, Joined, Precision, RuntimeName, Share
from thoraclip.runs import digest, folder_digest
from thoraclip.tables.embeddings import Embeddings, read_embeddings

if TYPE_CHECKING:
    from thoraclip.models.frozen import FrozenDualEncoder, FrozenEncoder

__all__ = [
    "EncoderConfig",
    "ModelConfig",
    "finished_embeddings",
    "load_encoder",
    "load_text_encoder",
    "stated_by_embeddings",
]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Which dual encoder, seen how, on which classes and folds."""

    model: str = "tiny-clip"
    """Hub id, local folder in Transformers or open_clip format, or the shipped tiny-clip."""
    geometry: Geometry = "squash"
    """How a picture becomes square: squash, crop or pad. Keeping the aspect ratio (crop, pad) opens a shortcut."""
    remedy: Annotated[str, Joined(PIXEL_REMEDIES)] = NONE
    """What is done to every picture against shortcuts: none, or names joined by +, such as centre+equalise;
    see docs/remedies.md."""
    precision: Precision = "auto"
    """fp32, bf16, or auto: bf16 where the device computes in it."""
    runtime: RuntimeName = "auto"
    """What computes in fp32 on a CPU: torch, onnxruntime, openvino, or auto: for long work the fastest installed one,
    by a short measurement. Their numbers are equal to 1e-5, not to the last bit."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the scores; empty for the manifest's, sorted."""
    only_folds: tuple[FoldNumber, ...] = ()
    """Folds that are held out and scored, where the manifest has folds; empty for all of them."""

    @property
    def reads_texts(self) -> bool:
        """True where images are compared with texts, so that a vision tower alone does not serve."""
        return False

    def inputs(self) -> dict[str, str]:
        """Hashes of the artefacts that the config names, so that a run is repeated when one of them changes."""
        location, is_local = locate(self.model)
        return {"model": folder_digest(Path(location)) if is_local else f"Hub: {location}"}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """Which encoder makes the features, and how."""

    adapter: str = ""
    """PEFT adapter folder, or the run folder of a finetune (each fold is then scored by its own); empty for none."""
    adapter_scale: Share = 1.0
    """Share of the adapter in the weights: 1 as trained, 0 the base, between them interpolated (WiSE-FT)."""
    embeddings: str = ""
    """Folder of finished embeddings to use instead of running the encoder, which is the one that made them."""
    batch_size: AnyBatchSize = 0
    """Images per forward pass; 0 for 32 on a CPU and 256 elsewhere."""

    def inputs(self) -> dict[str, str]:
        """The model's, the adapter's and the embeddings' hashes."""
        hashes = super().inputs()
        if self.adapter:
            hashes["adapter"] = digest(
                [folder_digest(folder) for folder in adapter_folders(Path(self.adapter)).values()]
            )
        note = Path(self.embeddings) / "embeddings.json"
        return hashes | ({"embeddings": folder_digest(note)} if self.embeddings and note.exists() else {})


def stated_by_embeddings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings `model`, `geometry` and `remedy` that made the embeddings which some settings name, of those that they
    do not state; `{}` where they name none, or the embeddings do not say.

    Raises:
        InputError, ManifestError: see `tables.embeddings.read_embeddings`.
    """
    folder = values.get("embeddings")
    if not isinstance(folder, str | Path) or not str(folder) or values.get("adapter"):
        return {}
    facts = read_embeddings(folder).facts
    spec = facts["preprocess"]
    made = {"model": facts.get("model"), "geometry": spec.get("geometry"), "remedy": spec.get("remedy", NONE)}
    try:
        locate(str(made["model"]))
    except ModelError:  # an adapter was merged into it, or it lies elsewhere now
        return {}
    return {name: value for name, value in made.items() if value and name not in values}


def load_encoder(config: EncoderConfig) -> FrozenEncoder:
    """The encoder that a config names, to be read from; the last one loaded is kept, so methods in a row share it."""
    files = tuple(file for folder in (config.model, config.adapter) if folder for file in _files(Path(folder)))
    given = {name: getattr(config, name) for name in ("adapter", "adapter_scale", "geometry", "remedy", "precision")}
    return _load(config.model, tuple(given.items()), files)


def load_text_encoder(config: EncoderConfig, needs_text: str) -> FrozenDualEncoder:
    """`load_encoder` where texts are compared with images; raises ModelError for a vision tower (see
    `models.architectures.find_architecture`)."""
    from thoraclip.models.frozen import FrozenDualEncoder

    encoder = load_encoder(config)
    if not isinstance(encoder, FrozenDualEncoder):
        find_architecture(str(encoder.tower.config.model_type), config.model, needs_text=needs_text)
    assert isinstance(encoder, FrozenDualEncoder), "refused above"
    return encoder


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """(path, size, time) of every file of a local folder: another training may have replaced them."""
    stats = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


@lru_cache(maxsize=1)
def _load(model: str, given: tuple[tuple[str, Any], ...], files: tuple[object, ...]) -> FrozenEncoder:
    from thoraclip.models.dual_encoder import load_vision_encoder  # with torch
    from thoraclip.models.frozen import FrozenEncoder

    return FrozenEncoder.of(load_vision_encoder(model, **dict(given)))


def finished_embeddings(config: EncoderConfig) -> Embeddings | None:
    """The features in the folder that a config names, where the model's files alone prove that it made them.

    `None` where they do not, and the encoder has to be loaded to know: no folder is named, the weights are merged with
    an adapter, are not on this machine or not in one file of names as the architecture has them, or are others.

    Raises:
        InputError, ManifestError: see `tables.embeddings.read_embeddings`.
    """
    if not config.embeddings or config.adapter:
        return None
    embeddings = read_embeddings(Path(config.embeddings))
    precision = embeddings.encoder.get("precision")
    folder = stored_folder(config.model)
    if precision not in ("fp32", "bf16") or config.precision not in ("auto", precision) or folder is None:
        return None
    try:
        checkpoint = Checkpoint(config.model, str(folder), True, config=None)
        spec = read_preprocess(checkpoint, geometry=config.geometry, remedy=config.remedy)
    except (ModelError, ConfigError):  # said by what loads the model
        return None
    weights = stored_fingerprint(folder)
    is_same = embeddings.encoder == description(weights or "", precision) and embeddings.preprocess == spec.as_dict()
    return embeddings if is_same else None
