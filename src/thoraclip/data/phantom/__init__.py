"""Synthetic frontal chest radiographs in the COVID-QU-Ex layout, with lung and infection masks.

Nothing here is a patient. The images exist so that every pipeline, audit and test can run offline, and so that a
shortcut can be planted where its strength is known. An image is drawn by integrating attenuation through an analytic
chest (`phantom.anatomy`, `phantom.drawing`); what is chosen before drawing is in `phantom.attributes`.

A clean set has no shortcut: view, build, exposure, texture, devices, marker, border, rotation, sex and age are drawn
without looking at the class. `shortcut="border", shortcut_strength=s` plants one: with probability s, for each image by
itself, the confounder takes the value that `attributes.PLANTED` ties to its class, else it is drawn without looking at
the class.

The same config gives the same bytes, for any number of workers: image i of seed s is drawn from
PCG64(SeedSequence([s, i])), its patient from PCG64(SeedSequence(s, spawn_key=(1, patient))).
"""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from thoraclip.config import Settings
from thoraclip.data.phantom.attributes import CLASSES, SHORTCUTS, Shortcut, choose_attributes, describe, shape_body
from thoraclip.data.phantom.drawing import draw_phantom
from thoraclip.documents import read_json
from thoraclip.dtypes import Greys
from thoraclip.errors import ConfigError, InputError
from thoraclip.ranges import PhantomCount, Range, Seed, Share, Side
from thoraclip.runs import Progress, atomic_open, is_empty, remove_leftovers, write_json, write_text
from thoraclip.shapes import check, table, whole
from thoraclip.threads import cores

__all__ = ["CLASSES", "PhantomConfig", "PhantomSummary", "describe", "draw_phantom", "parse_shortcut", "write_phantoms"]

_SCHEMA = 1
_LUNG_TREE = "Lung Segmentation Data/Lung Segmentation Data"
_INFECTION_TREE = "Infection Segmentation Data/Infection Segmentation Data"
_STEMS = {"COVID-19": "covid_{}", "Non-COVID": "non_COVID ({})", "Normal": "Normal ({})"}
_UNLISTED = {"turn", "inspiration", "difficulty", "shortcut", "shortcut_strength", "finding_severity"}
"""Attributes that phantoms.csv leaves out."""
_COMMENT = "Synthetic chest radiograph for research and software tests; not a patient, not for diagnosis."
_README = """SYNTHETIC IMAGES. No patient is shown here.

These chest radiographs were drawn by `thoraclip phantom` from an analytic chest. They are for research and for testing
software; they must not be used for training or judging anything meant for patients.

The folders follow COVID-QU-Ex (Kaggle anasmohammedtahir/covidqu). phantoms.csv has one row per image of the lung tree;
the images of the infection tree repeat some of them byte by byte, as they do in the original.

config (seed {seed}):
{config}
"""


@dataclass(frozen=True, kw_only=True)
class PhantomConfig(Settings):
    """What one folder of phantoms needs."""

    images: PhantomCount = 600
    """Radiographs in all; classes are balanced to within one image."""
    size: Side = 256
    """Side of the square images in pixels."""
    seed: Seed = 0
    """The set's only seed."""
    difficulty: Share = 0.5
    """0 easy to 1 impossible: lesion contrast is 1 - difficulty."""
    shortcut: Shortcut = ""
    """Confounder to tie to the class: marker, border, exposure, device, texture, date, or none."""
    shortcut_strength: Share = 0.0
    """Probability with which the class determines the confounder, 0..1."""
    fractions: tuple[Share, Share, Share] = (0.6, 0.2, 0.2)
    """Shares of Train, Val and Test; they sum to 1."""
    images_per_patient: Annotated[float, Range(1, 3)] = 1.3
    """Mean number of images per patient, 1..3; a patient's images share anatomy and split, not exposure or view."""
    infection_fraction: Share = 1 / 3
    """Share of the images that also stand in the infection tree, with infection masks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortcut_strength and not self.shortcut:
            known = ", ".join(SHORTCUTS)
            raise ConfigError(f"shortcut_strength={self.shortcut_strength}: needs a shortcut; one of {known}")
        if abs(sum(self.fractions) - 1) > 1e-6:
            raise ConfigError(f"fractions = {self.fractions}: their sum must be 1, as in (0.6, 0.2, 0.2)")


@dataclass(frozen=True, kw_only=True)
class PhantomSummary:
    """What a folder of phantoms holds."""

    root: Path
    images: int
    patients: int


def parse_shortcut(text: str) -> tuple[str, float]:
    """Read `KIND=STRENGTH`, such as `border=0.9`, or raise ConfigError; an empty text is no shortcut, ("", 0.0)."""
    if not text:
        return "", 0.0
    kind, mark, number = text.partition("=")
    if not mark:
        raise ConfigError(f"shortcut '{text}': must be KIND=STRENGTH, as in border=0.9")
    try:
        return kind.strip(), float(number)
    except ValueError:
        rule = "give a strength in 0..1, as in border=0.9"
        raise ConfigError(f"shortcut '{text}': '{number}' is not a number; {rule}") from None


@dataclass(frozen=True)
class Task:
    """One image to draw."""

    index: int
    label: str
    split: str
    patient: int
    stem: str
    infection: bool

    def files(self) -> dict[str, list[str]]:
        """Paths below the root by kind; the infection tree repeats image and lung mask."""
        trees = [_LUNG_TREE, _INFECTION_TREE] if self.infection else [_LUNG_TREE]
        places = {"images": trees, "lung masks": trees, "infection masks": trees[1:]}
        file = f"{self.split}/{self.label}/{{}}/{self.stem}.png"
        return {kind: [f"{tree}/{file.format(kind)}" for tree in trees] for kind, trees in places.items()}


def plan_phantoms(config: PhantomConfig) -> list[Task]:
    """Decide label, split, patient and file name of every image, in drawing order.

    Every split holds its share of every class to within one image. Patients are filled up within a split, so that none
    crosses one; file numbers are shuffled, so that they tell nothing of split or patient.
    """
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    tasks: list[Task] = []
    patient = 0
    for rank, label in enumerate(CLASSES):
        total = config.images // 3 + (rank < config.images % 3)
        numbers = iter((rng.permutation(total) + 1).tolist())
        bounds = np.round(np.cumsum([0.0, *config.fractions]) * total).astype(int)
        for split, quota in zip(("Train", "Val", "Test"), np.diff(bounds).tolist(), strict=True):
            left = quota
            while left:
                held = min(left, 1 + int(rng.binomial(2, (config.images_per_patient - 1) / 2)))
                for _ in range(held):
                    infection = bool(rng.uniform() < config.infection_fraction)
                    stem = _STEMS[label].format(next(numbers))
                    tasks.append(Task(len(tasks), label, split, patient, stem, infection))
                left -= held
                patient += 1
    return tasks


def write_phantoms(
    root: Path | str, config: PhantomConfig, *, workers: int | None = None, progress: Progress | None = None
) -> PhantomSummary:
    """Write a folder of phantoms, or finish one that was begun with the same config.

    Args:
        root: new, empty, or begun with the same config; gets both trees, phantoms.csv, phantoms.json and README.txt.
        workers: processes; None takes all cores, or one for a small set. The bytes do not depend on it.
        progress: called with (images done, images in all).

    Raises:
        InputError: `root` is a file, or a folder that holds something else or phantoms of another config.
        ConfigError: workers is less than 1.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: must be at least 1, or none for all cores")
    root = Path(root)
    _claim_folder(root, json.loads(json.dumps(asdict(config))))
    tasks = plan_phantoms(config)
    for folder in {(root / path).parent for task in tasks for paths in task.files().values() for path in paths}:
        remove_leftovers(folder)
    chunks = [tasks[i : i + 8] for i in range(0, len(tasks), 8)]
    count = min(workers or (cores() if len(tasks) >= 64 else 1), len(chunks))
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        run: Callable[..., Iterable[Any]] = map
        if count > 1:  # spawn: a fork of a process that already runs threads (torch, BLAS) may hang
            spawn = multiprocessing.get_context("spawn")
            run = stack.enter_context(ProcessPoolExecutor(count, mp_context=spawn)).map
        with _without_main():
            drawings = run(partial(_draw_files, root, config), chunks)
        for drawn in drawings:
            rows.extend(drawn)
            if progress:
                progress(len(rows), len(tasks))
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(sorted(rows, key=lambda row: row["path"]))
    write_text(root / "phantoms.csv", text.getvalue())
    settings = "\n".join(f"  {name} = {value!r}" for name, value in asdict(config).items())
    write_text(root / "README.txt", _README.format(seed=config.seed, config=settings))
    return PhantomSummary(root=root, images=len(tasks), patients=len({task.patient for task in tasks}))


@contextmanager
def _without_main() -> Iterator[None]:
    """Processes that are spawned meanwhile do not run the caller's script again, which they would without a guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _claim_folder(root: Path, config: dict[str, Any]) -> None:
    """Make `root` a phantom folder of this config, or check that it is one; raises InputError as `write_phantoms`."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file, not a folder; name a new or empty folder")
    note = root / "phantoms.json"
    remove_leftovers(root)
    if not note.is_file():
        if root.is_dir() and not is_empty(root):
            raise InputError(f"{root}: is not empty and not a phantom folder; name a new or empty folder")
        write_json(note, {"schema": _SCHEMA, "synthetic": True, "config": config})
        return
    noted = read_json(note, remedy="name a new or empty folder")
    check(noted, table(config=table(), schema=whole(1)), note, remedy="name a new or empty folder")
    before, schema = noted["config"], noted["schema"]
    if schema != _SCHEMA or before != config:
        keys = sorted(k for k in {*config, *before} if config.get(k) != before.get(k))
        what = ", ".join(f"{k} {before.get(k)!r}, now {config.get(k)!r}" for k in keys)
        raise InputError(
            f"{root}: holds phantoms of another config ({what or f'schema {schema}, now {_SCHEMA}'}); "
            "name a new folder or repeat that config"
        )


def _draw_files(root: Path, config: PhantomConfig, tasks: list[Task]) -> list[dict[str, Any]]:
    """Draw images and write those of their files that are missing; returns their rows of phantoms.csv."""
    rows = []
    choices = {name: getattr(config, name) for name in ("difficulty", "shortcut", "shortcut_strength")}
    for task in tasks:
        body = shape_body(np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(1, task.patient))))
        rng = np.random.default_rng([config.seed, task.index])
        attributes = choose_attributes(task.label, body, rng=rng, **choices)
        words = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(2, task.index)))
        files = task.files()
        rows.append(
            {
                "path": files["images"][0],
                "lung_mask": files["lung masks"][0],
                "infection_mask": "".join(files["infection masks"]),
                "label": task.label,
                "split": task.split,
                "patient": f"phantom-{task.patient:05d}",
                **{name: value for name, value in attributes.items() if name not in _UNLISTED},
                "devices": ";".join(attributes["devices"]),
                "shortcut_planted": str(attributes["shortcut_planted"]).lower(),
                "caption": describe(attributes, words),
            }
        )
        missing = {kind: [path for path in paths if not (root / path).exists()] for kind, paths in files.items()}
        if not any(missing.values()):
            continue
        rng = np.random.default_rng([config.seed, task.index])
        phantom = draw_phantom(task.label, rng=rng, body=body, size=config.size, **choices)
        layers = {"images": phantom.pixels, "lung masks": phantom.lung_mask, "infection masks": phantom.infection_mask}
        for kind, paths in missing.items():
            data = _encode(layers[kind], config.seed) if paths else b""
            for path in paths:
                with atomic_open(root / path, is_one_of_many=True) as stream:
                    stream.write(data)
    return rows


def _encode(pixels: Greys, seed: int) -> bytes:
    """PNG bytes with a notice that the image is synthetic; no time, so that equal pixels give equal bytes."""
    notice = PngInfo()
    said = {"Synthetic": "yes", "Software": "thoraclip phantom", "Seed": str(seed), "Comment": _COMMENT}
    for name, text in said.items():
        notice.add_text(name, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=notice, compress_level=3)
    return buffer.getvalue()
