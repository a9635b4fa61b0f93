"""The files of a phantom folder: both trees of PNGs, phantoms.csv, phantoms.json and README.txt."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from thoraclip.data.phantom.attributes import choose_attributes, describe
from thoraclip.data.phantom.body import shape_body
from thoraclip.data.phantom.drawing import draw_phantom
from thoraclip.errors import InputError
from thoraclip.runs import needing_room

__all__ = ["Task", "claim_folder", "draw_files", "write_index"]

SCHEMA = 1
LUNG_TREE = "Lung Segmentation Data/Lung Segmentation Data"
INFECTION_TREE = "Infection Segmentation Data/Infection Segmentation Data"

_UNLISTED = {"turn", "inspiration", "difficulty", "shortcut", "shortcut_strength", "finding_severity"}
"""Attributes that phantoms.csv leaves out."""

_README = """SYNTHETIC IMAGES. No patient is shown here.

These chest radiographs were drawn by `thoraclip phantom` from an analytic chest. They are for research and for testing
software; they must not be used for training or judging anything meant for patients.

The folders follow COVID-QU-Ex (Kaggle anasmohammedtahir/covidqu). phantoms.csv has one row per image of the lung tree;
the images of the infection tree repeat some of them byte by byte, as they do in the original.

config (seed {seed}):
{config}
"""


@dataclass(frozen=True)
class Task:
    """One image to draw."""

    index: int
    label: str
    split: str
    patient: int
    stem: str
    infection: bool

    def path(self, tree: str, kind: str) -> str:
        """Path of one of the image's files, relative to the root, with forward slashes."""
        return f"{tree}/{self.split}/{self.label}/{kind}/{self.stem}.png"

    def places(self) -> dict[str, list[str]]:
        """Paths of the image's files by kind; the infection tree repeats image and lung mask."""
        places = {kind: [self.path(LUNG_TREE, kind)] for kind in ("images", "lung masks")}
        if self.infection:
            for kind in ("images", "lung masks", "infection masks"):
                places.setdefault(kind, []).append(self.path(INFECTION_TREE, kind))
        return places


def claim_folder(root: Path, settings: dict[str, Any]) -> None:
    """Make `root` a phantom folder of these settings, or check that it is one.

    Raises:
        InputError: `root` is a file, holds something else, or holds phantoms of other settings.
    """
    wanted = json.loads(json.dumps(settings))
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file, not a folder; name a new or empty folder")
    note = root / "phantoms.json"
    if note.is_file():
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
            before, schema = found["config"], found["schema"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{note}: is not a phantom config; name a new or empty folder") from None
        if schema != SCHEMA or before != wanted:
            keys = sorted(k for k in {*wanted, *before} if wanted.get(k) != before.get(k))
            what = ", ".join(f"{k} {before.get(k)!r}, now {wanted.get(k)!r}" for k in keys)
            raise InputError(
                f"{root}: holds phantoms of another config ({what or f'schema {schema}, now {SCHEMA}'}); "
                "name a new folder or repeat that config"
            )
        return
    if root.is_dir() and any(root.iterdir()):
        raise InputError(f"{root}: is not empty and not a phantom folder; name a new or empty folder")
    root.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, "synthetic": True, "config": wanted}, indent=2)
    _put(note, f"{text}\n".encode())


def draw_files(root: Path, settings: dict[str, Any], tasks: list[Task]) -> tuple[list[dict[str, Any]], int]:
    """Draw the images of `tasks` and write those of their files that are missing.

    Returns:
        Their rows of phantoms.csv, and the number of files written.
    """
    rows, written = [], 0
    seed = settings["seed"]
    choices = {k: settings[k] for k in ("difficulty", "shortcut", "shortcut_strength")}
    for task in tasks:
        body = shape_body(_generator(np.random.SeedSequence(seed, spawn_key=(1, task.patient))))
        rng = _generator(np.random.SeedSequence([seed, task.index]))
        attributes = choose_attributes(task.label, body, rng=rng, **choices)
        caption = describe(attributes, _generator(np.random.SeedSequence(seed, spawn_key=(2, task.index))))
        rows.append(_row(task, attributes, caption))
        missing = {kind: [p for p in paths if not (root / p).exists()] for kind, paths in task.places().items()}
        if not any(missing.values()):
            continue
        rng = _generator(np.random.SeedSequence([seed, task.index]))
        phantom = draw_phantom(task.label, rng=rng, body=body, size=settings["size"], **choices)
        layers = {"images": phantom.pixels, "lung masks": phantom.lung_mask, "infection masks": phantom.infection_mask}
        for kind, paths in missing.items():
            data = _encode(layers[kind], seed) if paths else b""
            for path in paths:
                _put(root / path, data)
            written += len(paths)
    return rows, written


def _row(task: Task, attributes: dict[str, Any], caption: str) -> dict[str, Any]:
    """Columns of phantoms.csv; `infection_mask` is empty for an image that stands in the lung tree only."""
    return {
        "path": task.path(LUNG_TREE, "images"),
        "lung_mask": task.path(LUNG_TREE, "lung masks"),
        "infection_mask": task.path(INFECTION_TREE, "infection masks") if task.infection else "",
        "label": task.label,
        "split": task.split,
        "patient": f"phantom-{task.patient:05d}",
        **{name: value for name, value in attributes.items() if name not in _UNLISTED},
        "devices": ";".join(attributes["devices"]),
        "shortcut_planted": str(attributes["shortcut_planted"]).lower(),
        "caption": caption,
    }


def write_index(root: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write phantoms.csv, sorted by path, and README.txt."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(sorted(rows, key=lambda row: row["path"]))
    _put(root / "phantoms.csv", text.getvalue().encode())
    config = "\n".join(f"  {name} = {value!r}" for name, value in settings.items())
    _put(root / "README.txt", _README.format(seed=settings["seed"], config=config).encode())


def _generator(sequence: np.random.SeedSequence) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(sequence))


def _encode(pixels: NDArray[np.uint8], seed: int) -> bytes:
    """PNG bytes with a notice that the image is synthetic; no time, so that equal pixels give equal bytes."""
    comment = "Synthetic chest radiograph for research and software tests; not a patient, not for diagnosis."
    notice = PngInfo()
    for name, text in {
        "Synthetic": "yes",
        "Software": "thoraclip phantom",
        "Seed": str(seed),
        "Comment": comment,
    }.items():
        notice.add_text(name, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=notice, compress_level=3)
    return buffer.getvalue()


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with needing_room(path):
            part.write_bytes(data)
    except InputError:
        part.unlink()
        raise
    part.replace(path)
