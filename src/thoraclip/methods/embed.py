"""`embed`: run a frozen encoder over a manifest once and keep its features on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from thoraclip.data.batches import picture_source
from thoraclip.documents import kept_json
from thoraclip.dtypes import Greys, Ints, Singles
from thoraclip.errors import MismatchError
from thoraclip.imaging import Preprocess
from thoraclip.imaging.remedies import NONE
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.methods.engines import Engine, Features, Pictures, by_processes, by_threads, cut, in_runtime, measured
from thoraclip.models.files import description
from thoraclip.models.frozen import FrozenEncoder
from thoraclip.models.runtimes import RUNTIMES, TORCH, Choice, is_installed, require_runtime
from thoraclip.models.vision_encoder import VisionEncoder
from thoraclip.runs import Progress, digest, make_folder
from thoraclip.tables.arrays import ArrayWriter, is_valid
from thoraclip.tables.embeddings import (
    EMBEDDINGS,
    Embeddings,
    embeddings_fingerprint,
    embeddings_folder,
    read_embeddings,
)
from thoraclip.tables.manifest import Manifest

if TYPE_CHECKING:
    from thoraclip.methods.training.processes import ProcessGroup

__all__ = ["cached_embeddings", "embed", "usual_batch_size"]

_CPU_BATCH, _DEVICE_BATCH = 32, 256
_SECONDS_BETWEEN_WRITES = 1.0


def cached_embeddings(
    config: EncoderConfig,
    manifest: Manifest,
    cache: Path,
    *,
    rows: Ints | None = None,
    encoder: VisionEncoder | None = None,
    pixels: Path | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Embeddings:
    """The features of a manifest: from the folder that the config names, from the cache, or made now (see `embed`).

    Raises:
        MismatchError: the named folder belongs to another manifest, encoder or preprocessing.
    """
    encoder = encoder or load_encoder(config)
    if not config.embeddings:
        kept, size = embeddings_folder(cache, encoder.description, encoder.preprocess.as_dict()), config.batch_size
        given: dict[str, Any] = {"rows": rows, "pixels": pixels, "progress": progress, "announce": announce}
        return embed(manifest, encoder, kept, batch_size=size, runtime=config.runtime, **given)
    finished = read_embeddings(Path(config.embeddings))
    expected = encoder.description
    if config.precision == "auto" and finished.encoder.get("precision") in ("fp32", "bf16"):  # they keep theirs
        expected = description(expected["weights"], finished.encoder["precision"])
    if dict(finished.encoder) != expected:
        raise MismatchError(
            f"{config.embeddings}: made by another encoder or precision than model '{config.model}'; "
            "name the one that made them with model = ... (and adapter = ...), or embed again"
        )
    if dict(finished.preprocess) != encoder.preprocess.as_dict():
        raise MismatchError(
            f"{config.embeddings}: made with geometry '{finished.preprocess.get('geometry')}', remedy "
            f"'{finished.preprocess.get('remedy', NONE)}' and another preprocessing than geometry '{config.geometry}', "
            f"remedy '{config.remedy}'; embed again, or set geometry and remedy"
        )
    return finished


def embed(
    manifest: Manifest,
    encoder: VisionEncoder,
    out: Path,
    *,
    batch_size: int = 0,
    runtime: str = "auto",
    rows: Ints | None = None,
    pixels: Path | None = None,
    engine: Engine | None = None,
    group: ProcessGroup | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> Embeddings:
    """Write the features of every image of a manifest to a folder; a valid one is re-used, a begun one continued.

    Batches are cut at the same rows whether the pass was interrupted or not, and each is on disk before the row count
    in `progress.json` says so: the files are the same bytes with and without a pixel cache, and whoever encodes, if by
    the same runtime. The runtimes give the same numbers but for rounding, and so features of one fingerprint. A pass
    goes on in the runtime that began it; where that is not installed, PyTorch continues it.

    Args:
        manifest: N images.
        encoder: gives pooled f32[N, D] and projected f32[N, P].
        out: the folder; see `tables.embeddings`.
        batch_size: images per forward pass; 0 as in `EncoderConfig`.
        runtime: as in `ModelConfig`; `auto` measures in a single process without an `engine`.
        rows: i64 of the images that are encoded; `None` for all.
        pixels: folder of pixel caches; decoded pictures are kept there and read from there.
        engine: who encodes; `None` for the threads of this process, or of all processes of the group.
        group: the processes that share the work, of which the first one writes.
        progress: called with (done, total).
        announce: told how the features are computed, where they are.
    """
    spec, size = encoder.preprocess, batch_size or usual_batch_size(encoder.device)
    source = cache(partial(_pictures, manifest, spec, rows, pixels=pixels, progress=progress))
    manifest = manifest if rows is None else manifest.take(rows)
    fingerprint = embeddings_fingerprint(manifest, encoder.description, spec.as_dict())
    agreed = group.first if group else float
    if agreed(is_valid(out, EMBEDDINGS, fingerprint)):
        return read_embeddings(out)
    if isinstance(encoder, FrozenEncoder):
        require_runtime(runtime, precision=encoder.precision, device=encoder.device.type)
    total = len(manifest)
    tokens = {name: digest([fingerprint, size, *([] if name == TORCH else [name])]) for name in (TORCH, *RUNTIMES)}
    choice, writer = Choice(TORCH if runtime == "auto" else runtime), None
    if group is None or group.is_main:
        make_folder(out)
        begun_by = _begun_by(out, tokens) if runtime == "auto" else ""
        if begun_by:
            choice = _continued(begun_by, engine, announce)
        elif runtime == "auto" and engine is None and group is None and isinstance(encoder, FrozenEncoder):
            choice = _measured(encoder, lambda part: source()(part), total, announce)
        writer = ArrayWriter(out, EMBEDDINGS, total=total, token=tokens[begun_by or choice.name])
    name = list(tokens)[int(agreed(list(tokens).index(choice.name)))]
    begun = int(agreed(writer.rows if writer else 0))
    if begun < total:  # otherwise only the renaming was left
        if isinstance(encoder, FrozenEncoder) and name != TORCH:
            is_here = engine is None and choice.compute is None
            encoder = in_runtime(encoder, name) if is_here else encoder.by_runtime(name, choice.compute)
        if engine is None:
            engine = by_processes(group, encoder, source()) if group else by_threads(encoder, source())
        if writer and isinstance(encoder, FrozenEncoder):
            announce(f"embedding: {encoder.arithmetic}; batches of {size}")
        encoded = engine(cut(total, size, start=begun))
        if writer:
            _keep(writer, encoded, total, progress)
        for _ in encoded:  # the other processes do the same work and keep nothing
            pass
    facts: dict[str, Any] = {"encoder": encoder.description, "preprocess": spec.as_dict(), "model": encoder.name}
    if writer:
        facts["runtime"] = choice.name if begun_by in ("", choice.name) else f"{begun_by}, continued by {choice.name}"
        facts |= {"runtime_ratio": round(choice.ratio, 2)} if choice.ratio else {}
    finished = writer.finish(manifest, facts=facts, fingerprint=fingerprint) if writer else None
    if group:
        group.wait()
    return Embeddings(**vars(finished)) if finished else read_embeddings(out)


def _pictures(manifest: Manifest, spec: Preprocess, rows: Ints | None, **given: Any) -> Pictures:
    """`picture_source` of some rows; a pixel cache is that of the whole manifest."""
    source = picture_source(manifest, spec, **given)
    if rows is None:
        return source
    return lambda part: np.concatenate([source(range(row, row + 1)) for row in rows[part.start : part.stop].tolist()])


def _begun_by(folder: Path, tokens: Mapping[str, str]) -> str:
    """The runtime that computed the rows of an interrupted pass, by the token that `ArrayWriter` keeps of it; empty
    where there is none."""
    kept = kept_json(folder / "progress.json").get("token")
    return next((name for name, token in tokens.items() if token == kept), "")


def _continued(name: str, engine: Engine | None, announce: Callable[[str], None]) -> Choice:
    """The runtime that began a pass, or PyTorch in its place."""
    if name == TORCH or (engine is None and is_installed(name)):
        return Choice(name)
    announce(f"runtime: {name} began these features and is not at hand; {TORCH} continues them, equal to 1e-5")
    return Choice()


def _measured(encoder: FrozenEncoder, pictures: Pictures, total: int, announce: Callable[[str], None]) -> Choice:
    """The fastest runtime; PyTorch where no other one can be used."""
    if (encoder.precision, encoder.device.type) != ("fp32", "cpu"):
        return Choice()

    def plain(greys: Greys) -> list[Singles]:
        return [part for part in encoder.encode_greys(greys) if part.shape[1]]  # of a tower alone nothing is projected

    return measured(plain, encoder.write_onnx, pictures, total, announce)


def usual_batch_size(device: torch.device) -> int:
    """Images per forward pass where none are asked for."""
    return _CPU_BATCH if device.type == "cpu" else _DEVICE_BATCH


def _keep(writer: ArrayWriter, encoded: Iterator[Features], total: int, progress: Progress | None) -> None:
    """Write features as they come: the first at once, so that a full disk is told, then once a second.

    A fast device would else wait for the disk most of the time.
    """
    held: list[Features] = []
    last, done = -np.inf, writer.rows

    def put() -> None:
        pooled, projected = (np.concatenate(part) for part in zip(*held, strict=True))
        held.clear()
        writer.append({"pooled": pooled, "projected": projected})

    try:
        for features in encoded:
            held.append(features)
            done += len(features[0])
            if time.monotonic() - last >= _SECONDS_BETWEEN_WRITES:
                put()
                last = time.monotonic()
            if progress:
                progress(done, total)
    finally:
        if held:
            put()
