"""Training with randomised images relies less on a border that tells the class."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.dtypes import Greys, Ints, Singles
from thoraclip.labels import LabelSet
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.models.augment import AUGMENTATIONS, augment
from thoraclip.models.heads import fit_lbfgs

CLASSES = ("COVID-19", "Non-COVID", "Normal")
TIED = {"wide": 0, "narrow": 1, "none": 2}


def drawn(folder: Path, seed: int, side: int, **shortcut: object) -> tuple[Greys, Ints, Ints]:
    """Images, classes, and the classes that their borders are tied to."""
    write_phantoms(folder, PhantomConfig(images=180, difficulty=0.0, seed=seed, **shortcut))  # type: ignore[arg-type]
    rows = list(csv.DictReader((folder / "phantoms.csv").open()))
    images = [np.array(Image.open(folder / row["path"]).convert("L").resize((side, side))) for row in rows]
    return np.stack(images), np.array([CLASSES.index(row["label"]) for row in rows]), np.array([TIED[row["border"]] for row in rows])  # fmt: skip


@pytest.mark.slow
def test_a_head_on_randomised_images_follows_a_planted_border_less(tmp_path: Path) -> None:
    encoder = load_encoder(EncoderConfig(precision="fp32"))
    side, chosen = encoder.preprocess.size, AUGMENTATIONS["randomised"]
    assert chosen is not None
    train, targets, _ = drawn(tmp_path / "planted", 1, side, shortcut="border", shortcut_strength=0.9)
    clean, _, tied = drawn(tmp_path / "clean", 2, side)

    def features(greys: Greys) -> Singles:
        return np.concatenate([encoder.encode_greys(greys[at : at + 40])[0] for at in range(0, len(greys), 40)])

    def followed(x: Singles, y: Ints) -> float:
        """Share of the images without a shortcut that get the class that their border was tied to; by chance 1/3."""
        (head,) = fit_lbfgs(x, y, LabelSet(CLASSES), l2=[0.1], weighting="none")
        return float((head.predict(features(clean)).argmax(1) == tied).mean())

    plain = features(train)
    images = torch.from_numpy(train)
    views = [augment(images, chosen, seed=0, step=n, samples=range(len(train))).numpy() for n in range(2)]
    before, after = followed(plain, targets), followed(np.concatenate([*map(features, views)]), np.tile(targets, 2))
    assert after < before - 0.1, f"{after:.3f}, and {before:.3f} on plain images"
