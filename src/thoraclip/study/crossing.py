"""`models = [...]` of a study: every method once with each encoder, and what each encoder costs.

[[methods]] x models -> entries that name their model and their head -> rows of the report -> encoders x heads
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thoraclip.documents import read_json
from thoraclip.errors import ConfigError
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.models.files import description
from thoraclip.runs import write_json

if TYPE_CHECKING:
    from thoraclip.models.frozen import FrozenEncoder

__all__ = ["cross", "encoder_costs", "short_names"]

_BATCH, _REPEATS = 32, 3


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Model -> the last part of its name, where that tells the models apart; else the whole name."""
    last = [model.rstrip("/").rpartition("/")[2] for model in models]
    return dict(zip(models, last if len(set(last)) == len(last) else models, strict=True))


def cross(
    entries: Sequence[Mapping[str, Any]], models: Sequence[str], settings: Mapping[str, frozenset[str]], where: str
) -> Iterator[Mapping[str, Any]]:
    """Every entry that names no model, once for each model; the others as they are.

    Args:
        entries: `[[methods]]` tables with `name` and `kind`.
        models: encoders; none leaves all entries as they are.
        settings: kind of method -> names of its settings.
        where: begins every message.

    Raises:
        ConfigError: an entry names an adapter or embeddings, but not their model.
    """
    crossed = set[str]()
    for entry in entries:
        name, known = str(entry.get("name", entry.get("kind"))), settings.get(str(entry.get("kind")), frozenset())
        is_follower = isinstance(after := entry.get("after"), str) and after in crossed
        if not models or "model" not in known or "model" in entry or (after is not None and not is_follower):
            yield entry
            continue
        stated = [one for one in ("adapter", "embeddings") if entry.get(one)]
        if stated:
            raise ConfigError(
                f"{where}, method '{name}': {stated[0]} belongs to one encoder, and models = {list(models)}; name its "
                "own with model = ..."
            )
        crossed.add(name)
        for model, short in short_names(models).items():
            own = {"after": f"{after}, {short}"} if is_follower else {"model": model}
            own |= {"plain": f"{entry['plain']}, {short}"} if "plain" in entry else {}
            yield {**entry, **own, "name": f"{name}, {short}", "head": name}


def encoder_costs(encoders: Mapping[str, Any], out: Path) -> dict[str, dict[str, Any]]:
    """Encoder -> parameters of its vision tower, numbers in a feature, and images a second on this machine.

    What was measured once for a study is kept in `costs.json` of its folder, so that its report stays the same: under
    the weights' fingerprint, to which the model's files lead without loading it.

    Args:
        encoders: short name -> config of a method that uses it.
        out: the study folder.

    Raises:
        ModelError: see `models.dual_encoder.load_vision_encoder`.
    """
    from thoraclip.models.network import resolve_precision, usual_device  # with torch

    file, costs = out / "costs.json", dict[str, dict[str, Any]]()
    kept: dict[str, Any] = read_json(file) if file.is_file() else {}
    for name, config in encoders.items():
        precision = resolve_precision(config.precision, usual_device())
        own = EncoderConfig(model=config.model, geometry=config.geometry, precision=precision)
        files = "/".join(description(own.inputs()["model"], precision).values())
        if files not in kept:
            encoder = load_encoder(own)
            weights = "/".join(encoder.description.values())
            kept |= {files: weights, weights: kept.get(weights) or _measured(encoder)}
            write_json(file, kept)
        costs[name] = {**kept[kept[files]], "precision": precision}
    return costs


def _measured(encoder: FrozenEncoder) -> dict[str, Any]:
    side = encoder.preprocess.size
    greys = np.random.default_rng(0).integers(0, 256, (_BATCH, side, side), dtype=np.uint8)
    pooled, _ = encoder.encode_greys(greys)  # the first call of a network takes longer
    began = time.perf_counter()
    for _ in range(_REPEATS):
        encoder.encode_greys(greys)
    rate = _BATCH * _REPEATS / (time.perf_counter() - began)
    parameters = sum(parameter.numel() for parameter in encoder.tower.parameters())
    return {"parameters": parameters, "dimension": int(pooled.shape[1]), "images_per_second": float(f"{rate:.3g}")}
