"""Panel Methods: what caption, embed and the methods of the registry print."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from thoraclip.api.methods import MethodFunction, caption, embed, method_function
from thoraclip.cli.command import Command
from thoraclip.cli.console import announce, print_table
from thoraclip.methods import METHODS

if TYPE_CHECKING:
    from thoraclip.tables.captions import Captions
    from thoraclip.tables.embeddings import Embeddings

__all__ = ["COMMANDS"]


def show_captions(captions: Captions, given: Mapping[str, Any]) -> None:
    """How many there are, and three examples."""
    told, different = sum(captions.with_label), len(set(captions.text))
    announce(
        f"{len(captions)} captions, {different} different, the class told in {told} -> {given['out']}; for example"
    )
    for row in range(0, len(captions), max(1, -(-len(captions) // 3))):
        announce(f"  {captions.image_id[row]}: {captions.text[row]}")


def show_features(features: Embeddings | None, given: Mapping[str, Any]) -> None:
    """What was written; nothing in all but the first of several processes."""
    if features is None:
        return
    announce(
        f"{len(features)} images, pooled {features.pooled.shape[1]} + projected {features.projected.shape[1]} "
        f"numbers each, geometry {given['geometry']}, {features.encoder['precision']} -> {given['out']}"
    )


def show_predictions(result: Any, given: Mapping[str, Any]) -> None:
    """Where the predictions are; nothing in all but the first of several processes."""
    if result is None:
        return
    file, out = given["out"] / "predictions.parquet", given["out"]
    announce(f"{len(result[0])} predictions -> {file}; judge them: thoraclip report {out} --out DIR")


def list_settings(kind: str) -> None:
    """The settings of a method, with defaults and help."""
    from thoraclip.config import field_help, toml_value

    config = METHODS[kind].config_type
    texts = field_help(config)  # type: ignore[arg-type]
    rows = [[f.name, toml_value(f.default), texts.get(f.name, "")] for f in dataclasses.fields(config)]
    print_table(["setting", "default", "what it does"], rows, title=f"Settings of {kind}", numbers=False)


def _command(kind: str) -> Command:
    return Command(
        "Methods",
        lambda **given: method_function(kind)(**given),
        show_predictions,
        name=kind,
        signature=MethodFunction.__call__,
        summary=f"{METHODS[kind].summary}\n\nIts settings, with defaults and help: thoraclip {kind} --settings",
        listing=("settings", "List the settings and exit.", partial(list_settings, kind)),
    )


COMMANDS = (
    Command("Methods", caption, show_captions),
    Command("Methods", embed, show_features),
    *(_command(kind) for kind in METHODS),
)
