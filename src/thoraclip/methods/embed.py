"""`embed`: run a frozen encoder over a manifest once and keep its features on disk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from thoraclip.data.batches import grey_batches
from thoraclip.errors import ConfigError, MismatchError
from thoraclip.models.adapter import adapter_folders
from thoraclip.models.checkpoint import locate
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.runs import Progress, digest, folder_digest
from thoraclip.tables.arrays import ArrayWriter, is_valid
from thoraclip.tables.embeddings import EMBEDDINGS, Embeddings, embeddings_fingerprint, read_embeddings
from thoraclip.tables.manifest import Manifest

__all__ = ["EncoderConfig", "ModelConfig", "cached_embeddings", "embed", "load_encoder"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which dual encoder, seen how, on which classes and folds."""

    model: str = "tiny-clip"
    """Hub id, local folder in Transformers format, or the shipped tiny-clip."""
    geometry: str = "squash"
    """How a picture becomes square: squash, crop or pad. Keeping the aspect ratio (crop, pad) opens a shortcut."""
    precision: str = "auto"
    """fp32, bf16, or auto: bf16 where the device computes in it."""
    classes: tuple[str, ...] = ()
    """Class names in the order of the scores; empty for the manifest's, sorted."""
    only_folds: tuple[int, ...] = ()
    """Folds that are held out and scored, where the manifest has folds; empty for all of them."""

    def inputs(self) -> dict[str, str]:
        """Hashes of the artefacts that the config names, so that a run is repeated when one of them changes."""
        location, is_local = locate(self.model)
        return {"model": folder_digest(Path(location)) if is_local else f"Hub: {location}"}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """Which encoder makes the features, and how."""

    adapter: str = ""
    """PEFT adapter folder, or the run folder of a finetune (each fold is then scored by its own); empty for none."""
    adapter_scale: float = 1.0
    """Share of the adapter in the weights: 1 as trained, 0 the base, between them interpolated (WiSE-FT)."""
    embeddings: str = ""
    """Folder of finished embeddings to use instead of running the encoder."""
    batch_size: int = 64
    """Images per forward pass."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size = {self.batch_size}: 1 or more is needed")
        if not 0 <= self.adapter_scale <= 1:
            raise ConfigError(f"adapter_scale = {self.adapter_scale}: a number between 0 and 1 is needed")

    def inputs(self) -> dict[str, str]:
        """The model's, the adapter's and the embeddings' hashes."""
        hashes = super().inputs()
        if self.adapter:
            hashes["adapter"] = digest(
                [folder_digest(folder) for folder in adapter_folders(Path(self.adapter)).values()]
            )
        note = Path(self.embeddings) / "embeddings.json"
        return hashes | ({"embeddings": folder_digest(note)} if self.embeddings and note.exists() else {})


def load_encoder(config: EncoderConfig) -> DualEncoder:
    """The encoder that a config names; the last one loaded is kept, so methods in a row share it."""
    files = tuple(file for folder in (config.model, config.adapter) if folder for file in _files(Path(folder)))
    return _load(config.model, config.adapter, config.adapter_scale, config.geometry, config.precision, files)


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """(path, size, time) of every file of a local folder: another training may have replaced them."""
    found = ((path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return [(str(path), about.st_size, about.st_mtime_ns) for path, about in found]


@lru_cache(maxsize=1)
def _load(
    model: str, adapter: str, adapter_scale: float, geometry: str, precision: str, files: tuple[object, ...]
) -> DualEncoder:
    return load_dual_encoder(
        model, adapter=adapter, adapter_scale=adapter_scale, geometry=geometry, precision=precision
    )


def cached_embeddings(
    config: EncoderConfig,
    manifest: Manifest,
    cache: Path,
    *,
    encoder: DualEncoder | None = None,
    pixels: Path | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """The features of a manifest: from the folder that the config names, from the cache, or made now (see `embed`).

    Raises:
        MismatchError: the named folder belongs to another manifest, encoder or preprocessing.
    """
    encoder = encoder or load_encoder(config)
    if not config.embeddings:
        key = digest([encoder.description, encoder.preprocess.as_dict()])[:12]
        return embed(manifest, encoder, cache / key, batch_size=config.batch_size, pixels=pixels, progress=progress)
    found = read_embeddings(Path(config.embeddings))
    if dict(found.encoder) != encoder.description:
        raise MismatchError(
            f"{config.embeddings}: made by another encoder or precision than model '{config.model}'; embed again"
        )
    if dict(found.preprocess) != encoder.preprocess.as_dict():
        raise MismatchError(
            f"{config.embeddings}: made with geometry '{found.preprocess.get('geometry')}' and another preprocessing "
            f"than '{config.geometry}'; embed again or set geometry"
        )
    return found


def embed(
    manifest: Manifest,
    encoder: DualEncoder,
    out: Path,
    *,
    batch_size: int = 64,
    pixels: Path | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Write the features of every image of a manifest to a folder; a valid one is re-used, a begun one continued.

    Batches are cut at the same rows whether the pass was interrupted or not, and each is on disk before the row count in
    `progress.json` says so: the files end up the same, byte for byte, with and without a pixel cache.

    Args:
        manifest: N images.
        encoder: gives pooled f32[N, D] and projected f32[N, P].
        out: the folder; see `tables.embeddings`.
        batch_size: images per forward pass.
        pixels: folder of pixel caches; decoded pictures are kept there and read from there.
        progress: called with (done, total).
    """
    spec = encoder.preprocess
    fingerprint = embeddings_fingerprint(manifest, encoder.description, spec.as_dict())
    if is_valid(out, EMBEDDINGS, fingerprint):
        return read_embeddings(out)
    total = len(manifest)
    writer = ArrayWriter(out, EMBEDDINGS, total=total, token=digest([fingerprint, batch_size]))
    if writer.rows < total:  # otherwise only the renaming was left
        batches = grey_batches(
            manifest, spec, batch_size=batch_size, start=writer.rows, pixels=pixels, progress=progress
        )
        for number, (_, greys) in enumerate(batches):
            pooled, projected = encoder.encode_greys(greys, check=number == 0)
            writer.append({"pooled": pooled, "projected": projected})
            if progress:
                progress(writer.rows, total)
    facts = {"encoder": encoder.description, "preprocess": spec.as_dict()}
    return Embeddings(**vars(writer.finish(manifest, facts=facts, fingerprint=fingerprint)))
