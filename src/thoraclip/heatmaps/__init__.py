"""The heat maps by name, and the function that computes one.

NumPy, Pillow and pydicom are enough, with `predict` by any runtime. Only `gradients` needs torch, and is loaded when
one of its maps is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from thoraclip.dtypes import Greys, Singles
from thoraclip.errors import ConfigError, ImageError, did_you_mean
from thoraclip.predictor import Predictor

__all__ = ["MAPS", "MapMethod", "default_map", "heat_map"]


@dataclass(frozen=True)
class MapMethod:
    """Where a map is made: `function(classifier, grey, class_index, *, seed) -> f32[S, S]`, signed, in `module`. Those
    that need no network take any `Predictor`."""

    module: str
    function: str
    needs_network: bool


MAPS: Mapping[str, MapMethod] = {
    "occlusion": MapMethod("thoraclip.heatmaps.perturbation", "occlusion", needs_network=False),
    "smoothgrad": MapMethod("thoraclip.heatmaps.gradients", "smoothgrad", needs_network=True),
    "integrated": MapMethod("thoraclip.heatmaps.gradients", "integrated_gradients", needs_network=True),
}


def default_map(classifier: Predictor) -> str:
    """`smoothgrad` for a network, `occlusion` where only scores can be had; by the measurements in docs/explain.md."""
    return "smoothgrad" if hasattr(classifier, "logits") else "occlusion"


def heat_map(classifier: Predictor, grey: Greys, class_index: int, *, method: str = "", seed: int = 0) -> Singles:
    """Where a picture holds evidence for a class, as one method sees it.

    Args:
        classifier: a `Classifier` of `models.classifiers`; methods that need no network take any `Predictor`.
        grey: u8[S, S], made by `imaging.fit` with its `preprocess`.
        method: a name in `MAPS`; empty for `default_map`.
        seed: of the methods that draw noise.

    Returns:
        f32[S, S], 0 or larger; larger is more evidence, 0 is none or evidence against. Units differ between methods.

    Raises:
        ConfigError: unknown method, or one that this classifier does not offer.
        ImageError: `grey` is not this classifier's input.
    """
    method = method or default_map(classifier)
    if method not in MAPS:
        raise ConfigError(f"unknown method '{method}'{did_you_mean(method, MAPS)}")
    chosen = MAPS[method]
    if chosen.needs_network and not hasattr(classifier, "logits"):
        raise ConfigError(f"method '{method}': needs the network, and here are only its scores; take occlusion")
    side = classifier.preprocess.size
    if grey.dtype != np.uint8 or grey.shape != (side, side):
        raise ImageError(f"grey {grey.dtype}{list(grey.shape)}: expected uint8 [{side}, {side}]")
    if not 0 <= class_index < len(classifier.labels):
        raise ConfigError(f"class {class_index}: must lie between 0 and {len(classifier.labels) - 1}")
    function = getattr(import_module(chosen.module), chosen.function)
    signed: Singles = function(classifier, grey, class_index, seed=seed)
    return np.maximum(signed, 0).astype(np.float32)
