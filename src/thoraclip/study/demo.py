"""The study of `thoraclip demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thoraclip.data.index import index
from thoraclip.data.splits import split_fractions
from thoraclip.study.reading import build_entries
from thoraclip.study.settings import MethodEntry, StudyConfig
from thoraclip.tables.manifest import write_manifest

__all__ = ["demo_study"]

_DEMO_TRAINING = {
    "loss": "prompt_ce",
    "prompts": "reference",
    "batch_size": 16,
    "chunk_size": 16,
    "epochs": 6,
    "learning_rate": 1.5e-3,
    "lora_dropout": 0.0,
    "augmentation": "light",
}
"""Tuned for a few hundred images in a minute: a high learning rate, light augmentation, one short prompt for each
class."""
_DEMO_AUDIT = 100
"""Test images that the demo's audit scores under every perturbation."""


def demo_study(phantoms: Path, manifest_file: Path) -> tuple[StudyConfig, list[MethodEntry]]:
    """The study of `thoraclip demo`: the shipped encoder on a folder of phantoms, zero-shot, probed in two ways, and
    tuned.

    Args:
        phantoms: written by `data.phantom.write_phantoms`; its table names the patients, who stay in one part of the
            split.
        manifest_file: where their manifest is written.
    """
    found = index(phantoms, layout="csv", csv_file=phantoms / "phantoms.csv").manifest
    write_manifest(manifest_file, split_fractions(found, fractions=(0.5, 0.1, 0.4), seed=0))
    config = StudyConfig(
        manifest=str(manifest_file), title="ThoraCLIP demo on synthetic radiographs", audit_images=_DEMO_AUDIT
    )
    entries: list[dict[str, Any]] = [
        {"name": "zero-shot, ensemble", "kind": "zeroshot", "prompts": "chest-xray-ensemble"},
        {"name": "zero-shot, reference prompts", "kind": "zeroshot", "prompts": "reference"},
        {"name": "linear probe, L-BFGS", "kind": "probe"},
        {"name": "linear probe, reference recipe", "kind": "probe", "solver": "adamw"},
        {"name": "LoRA", "kind": "finetune", "then": "probe", **_DEMO_TRAINING},
    ]
    return config, build_entries(config, entries, {}, "demo")
