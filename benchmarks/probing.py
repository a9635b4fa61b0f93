"""From files to a probe's predictions, against the recipe that runs the encoder again in every epoch.

Radiographs where the folder THORACLIP_SHARED (else `../shared`) holds data/covid3-talo and models/dino-minilm, else
phantoms and tiny-clip. The recipe: a softmax layer under AdamW for 100 epochs, whose every epoch opens the pictures
with PIL, prepares them with the model's own processor and encodes them in fp32. Two of its epochs are run, before and
after ours. For the accuracy its layer then learns for 100 epochs from features computed once: without augmentation they
are those of every epoch. One fold holds out few images for validation, so the accuracies are those of all folds and of
several draws of the validation images together, and the interval of their difference is that of patients drawn with
replacement.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from benchmarks.measure import once, phantoms, radiographs
from benchmarks.results import Result
from torch import Tensor
from torch.utils.data import TensorDataset

import thoraclip
from benchmarks import plain
from thoraclip.data.splits import independent_groups
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.methods.parts import Part, parts
from thoraclip.tables.manifest import Manifest
from thoraclip.tables.predictions import read_validation

EPOCHS, BATCH, VAL_FRACTION = 100, 80, 0.1
DRAWS = 5
"""Of validation images in every fold, by the seed."""


class Recipe:
    """What the study does.

    Args:
        manifest: the images, in folds.
        model: local folder, or tiny-clip.
    """

    def __init__(self, manifest: Manifest, model: str) -> None:
        labels, self._model, self._paths = manifest.label_set(), model, manifest.paths()
        self._targets, self._classes = manifest.targets(labels), len(labels)
        self._tower = plain.load_tower(model)
        self._features: dict[int, Tensor] = {}

    def encode(self, rows: npt.NDArray[np.int64], *, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (features, number of the row in `rows`), from the files; all are kept."""
        pictures = plain.Pictures([self._paths[row] for row in rows], self._model)
        for features, numbers in plain.encoded(plain.loader(pictures, batch_size=BATCH, shuffle=shuffle), self._tower):
            self._features.update(zip(rows[numbers.numpy()].tolist(), features, strict=True))
            yield features, numbers

    def epoch(self, part: Part) -> None:
        """One with the encoder in it."""
        layer = None
        for batch in self.encode(part.train, shuffle=True):
            layer = layer or self._layer(part, batch[0])
            layer.epoch([batch])

    def right(self, part: Part) -> npt.NDArray[np.bool_]:
        """bool[V], validation images that are right after the last epoch, from features that are there or are computed
        now."""
        missing = [row for row in (*part.train, *part.val) if row not in self._features]
        for _ in self.encode(np.array(missing, dtype=np.int64)) if missing else ():
            pass
        train, val = (torch.stack([self._features[row] for row in rows]) for rows in (part.train, part.val))
        layer, rows = self._layer(part, train), TensorDataset(train, torch.arange(len(train)))
        batches = plain.loader(rows, batch_size=BATCH, shuffle=True, workers=0)
        for _ in range(EPOCHS):
            layer.epoch(batches)
        return np.asarray(layer.predict(val) == self._targets[part.val])

    def _layer(self, part: Part, features: Tensor) -> plain.Softmax:
        return plain.Softmax(features.shape[1], self._targets[part.train], self._classes)


def images(work: Path, *, quick: bool) -> tuple[Manifest, str, str]:
    """(manifest with folds, model, what they are)."""
    shared = Path(os.environ.get("THORACLIP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    data, model = shared / "data" / "covid3-talo", shared / "models" / "dino-minilm"
    is_real = not quick and data.is_dir() and model.is_dir()
    found = radiographs(data, work) if is_real else phantoms(work, 60 if quick else 600)
    folds = thoraclip.split(found, out=work / "folds.parquet", folds=5)
    named = (str(model), "radiographs, DINOv2 ViT-S/14") if is_real else ("tiny-clip", "phantoms, tiny-clip")
    return (folds, *named)


def right_of(run: Path, manifest: Manifest, folds: list[Part]) -> npt.NDArray[np.bool_]:
    """bool[V], whether the run's probes are right about the recipe's validation images, fold after fold."""
    ids, tables = manifest.column("image_id"), read_validation(run)
    if [table.image_id for table in tables] != [tuple(ids[row] for row in part.val) for part in folds]:
        raise SystemExit(f"{run}: holds out other images than the recipe")
    return np.concatenate([table.scores.argmax(axis=1) == table.target for table in tables])


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """The time of one fold, the accuracy of all."""
    manifest, model, what = images(work, quick=quick)
    recipe, labels, draws = Recipe(manifest, model), manifest.label_set(), range(1 if quick else DRAWS)
    drawn = [list(parts(manifest, labels, val_fraction=VAL_FRACTION, seed=seed)) for seed in draws]
    part = drawn[0][0]
    with tempfile.TemporaryDirectory(dir=work) as name:
        runs = [Path(name) / f"probe-{seed}" for seed in draws]
        settings = {"model": model, "val_fraction": VAL_FRACTION}
        ours = [partial(thoraclip.probe, manifest, out=runs[seed], seed=seed, **settings) for seed in draws]
        before = once(lambda: recipe.epoch(part))
        took = once(lambda: ours[0](only_folds=(part.fold,)))  # nothing is cached
        after = once(lambda: recipe.epoch(part))
        ours[0]()  # the other folds
        (features,) = (runs[0] / "embeddings").iterdir()
        for seed in draws[1:]:
            ours[seed](embeddings=str(features))
        mine = np.concatenate([right_of(run, manifest, folds) for run, folds in zip(runs, drawn, strict=True)])
    rounds = [part for folds in drawn for part in folds]
    theirs = np.concatenate([recipe.right(part) for part in rounds])
    held = np.concatenate([part.val for part in rounds])
    lead = 100 * (mine.astype(np.int64) - theirs)
    patients = np.unique(independent_groups(manifest)[held], return_inverse=True)[1]
    weights = np.concatenate(list(resample_weights(patients, resamples=2000, seed=0)), axis=1)
    low, high = np.quantile(lead @ weights / weights.sum(axis=0), [0.025, 0.975])
    epoch = (before + after) / 2
    whole = epoch * (EPOCHS + len(part.test) / len(part.train))
    loop = (
        f"encoder in the loop, {EPOCHS} epochs of {epoch:.1f} s and one pass over the test images, extrapolated "
        "from two epochs"
    )
    of = f"{len(drawn)} draws of {len(held) // len(drawn)} images of {len(drawn[0])} folds"
    theirs_told = f"the recipe's after {EPOCHS} epochs, {100 * theirs.mean():.1f} % in {of}, on features computed once"
    against = f"{theirs_told}, which are those of every epoch; difference [{low:.1f}, {high:.1f}]"
    name, points = "validation accuracy, difference in points", float(lead.mean())
    return [
        Result(f"from files to predictions, one fold of {what}", whole / took, 100, loop, took, "s"),
        Result(name, points, 0, against, 100 * float(mine.mean()), "%"),
    ]
