"""From files to a probe's predictions, against the recipe that runs the encoder again in every epoch.

    python benchmarks/probing.py
    THORACLIP_SHARED=FOLDER python benchmarks/probing.py

Radiographs where the folder THORACLIP_SHARED (else `../shared`) holds data/covid3-talo and models/dino-minilm, else phantoms and
tiny-clip. The recipe: a softmax layer under AdamW for 100 epochs, whose every epoch opens the pictures with PIL, prepares them
with the model's own processor and encodes them in fp32. Two of its epochs are run, before and after ours. For the accuracy its layer
then learns for 100 epochs from features computed once: without augmentation they are those of every epoch. One fold
holds out few images for validation, so both accuracies are those of all five folds' validation images together.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import plain
from benchmarks.measure import once, phantoms
from benchmarks.results import Result, show

import thoraclip
from thoraclip.methods.running import Part, parts, read_validation
from thoraclip.tables.manifest import Manifest

EPOCHS, BATCH, VAL_FRACTION = 100, 80, 0.1


class Recipe:
    """What the study does.

    Args:
        manifest: the images, in folds.
        model: local folder, or tiny-clip.
    """

    def __init__(self, manifest: Manifest, model: str) -> None:
        labels, self._model, self._paths = manifest.label_set(), model, manifest.paths()
        self.parts = list(parts(manifest, labels, val_fraction=VAL_FRACTION, seed=0))
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

    def right(self, part: Part) -> int:
        """Validation images that are right after the last epoch, from the features that are there or are computed now."""
        missing = [row for row in (*part.train, *part.val) if row not in self._features]
        for _ in self.encode(np.array(missing, dtype=np.int64)) if missing else ():
            pass
        train, val = (torch.stack([self._features[row] for row in rows]) for rows in (part.train, part.val))
        layer, order = self._layer(part, train), torch.Generator().manual_seed(0)
        batches = DataLoader(TensorDataset(train, torch.arange(len(train))), BATCH, shuffle=True, generator=order)
        for _ in range(EPOCHS):
            layer.epoch(batches)
        return int(np.sum(layer.predict(val) == self._targets[part.val]))

    def _layer(self, part: Part, features: Tensor) -> plain.Softmax:
        return plain.Softmax(features.shape[1], self._targets[part.train], self._classes)


def images(work: Path, *, quick: bool) -> tuple[Manifest, str, str]:
    """(manifest with folds, model, what they are)."""
    shared = Path(os.environ.get("THORACLIP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    data, model = shared / "data" / "covid3-talo", shared / "models" / "dino-minilm"
    if quick or not (data.is_dir() and model.is_dir()):
        count = 60 if quick else 600
        return (
            thoraclip.split(phantoms(work, count), out=work / "folds.parquet", folds=5),
            "tiny-clip",
            "phantoms, tiny-clip",
        )
    found = thoraclip.index(
        data,
        out=work / "radiographs.parquet",
        csv=data / "manifest.csv",
        path_column="rel_path",
        patient_column="patient_id",
    )
    return (
        thoraclip.split(found.manifest, out=work / "folds.parquet", folds=5),
        str(model),
        "radiographs, DINOv2 ViT-S/14",
    )


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """The time of one fold, the accuracy of all."""
    manifest, model, what = images(work, quick=quick)
    recipe = Recipe(manifest, model)
    part = recipe.parts[0]
    with tempfile.TemporaryDirectory(dir=work) as folder:

        def ours(**settings: object) -> None:
            thoraclip.probe(manifest, out=Path(folder) / "probe", model=model, val_fraction=VAL_FRACTION, **settings)

        before = once(lambda: recipe.epoch(part))
        took = once(lambda: ours(only_folds=(part.fold,)))  # nothing is cached
        after = once(lambda: recipe.epoch(part))
        ours()  # the other folds
        validation = read_validation(Path(folder) / "probe")
    epoch, held = (before + after) / 2, sum(len(part.val) for part in recipe.parts)
    scoring = epoch * len(part.test) / len(part.train)
    right = sum(int((table.scores.argmax(axis=1) == table.target).sum()) for table in validation)
    theirs = sum(map(recipe.right, recipe.parts))
    return [
        Result(
            f"from files to predictions, one fold of {what}", (EPOCHS * epoch + scoring) / took, 100,
            f"encoder in the loop, {EPOCHS} epochs of {epoch:.1f} s and one pass over the test images, extrapolated from two epochs",
            took, "s",
        ),
        Result(
            "validation accuracy, difference in points", 100 * (right - theirs) / held, 0,
            f"the recipe's after {EPOCHS} epochs, {100 * theirs / held:.1f} % of {held} images of {len(recipe.parts)} folds, on features "
            "computed once, which are those of every epoch", 100 * right / held, "%",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    show(bench)
