"""How long an image takes in the networks of a study, by one timed batch each."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np

from thoraclip.data.batches import decoded
from thoraclip.data.check.inspection import inspect
from thoraclip.methods import find_method
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.models.backbones import load_backbone
from thoraclip.models.captioner import load_captioner
from thoraclip.tables.manifest import Manifest

__all__ = ["Timing", "encoder_of"]

_SAMPLE = 16
"""Images that are timed."""


def encoder_of(config: Any, adapter: Path | None = None) -> EncoderConfig:
    """The encoder of a method; equal where the features are."""
    scale = getattr(config, "adapter_scale", 1.0) if adapter else 1.0
    shared = {name: getattr(config, name) for name in ("model", "geometry", "remedy", "precision")}
    return EncoderConfig(**shared, adapter=str(adapter or ""), adapter_scale=scale)


class Timing:
    """Seconds an image on this machine, measured when first asked for.

    Args:
        manifest: some of its images are timed.
        log: gets a line for each model that is timed.
    """

    def __init__(self, manifest: Manifest, log: Callable[[str], None]) -> None:
        self._manifest, self._log, self._seconds = manifest, log, dict[Hashable, float]()
        self._sample = manifest.take(np.linspace(0, len(manifest) - 1, min(_SAMPLE, len(manifest))).astype(int))

    def image(self, kind: str, config: Any) -> float:
        """Of a forward pass with decoding, through the network of a method or of `captions`."""
        network = "encoder" if kind != "captions" and find_method(kind).embeds else kind
        key = (network, config.model, config.geometry, config.precision)
        if key not in self._seconds:
            self._log(f"timing {config.model}")
            loaded, work = self._load(network, config)
            read = decoded(self._sample.root, self._sample.table, loaded.preprocess)
            work(read(range(1)))  # the first call of a network takes longer
            began = time.perf_counter()
            work(read(range(len(self._sample))))
            self._seconds[key] = (time.perf_counter() - began) / len(self._sample)
        return self._seconds[key]

    def _load(self, network: str, config: Any) -> tuple[Any, Callable[[Any], object]]:
        """(a network, its forward pass)."""
        if network == "encoder":
            encoder = load_encoder(encoder_of(config))
            return encoder, encoder.encode_greys
        given: dict[str, Any] = {"geometry": config.geometry, "precision": config.precision}
        if network == "captions":
            captioner = load_captioner(config.model, **given)
            return captioner, captioner.caption
        classifier = load_backbone(config.model, self._manifest.label_set(config.classes), **given)
        return classifier, classifier.look

    def inspection(self) -> float:
        """Of reading a file and measuring its appearance."""
        with tempfile.TemporaryDirectory(prefix="thoraclip-") as folder:
            began = time.perf_counter()
            inspect(self._sample, Path(folder))
            return (time.perf_counter() - began) / len(self._sample)
