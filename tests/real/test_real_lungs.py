"""Estimated lungs against masks that readers drew, and one origin for every image of a real manifest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from thoraclip.data.index import IndexResult
from thoraclip.data.lungs import estimate_lungs
from thoraclip.data.lungs.regions import lung_masks
from thoraclip.data.masks import fit_mask, mask_problem, read_mask
from thoraclip.imaging import Preprocess, decode

Mask = npt.NDArray[np.bool_]

pytestmark = pytest.mark.slow


def compare(pairs: list[tuple[Path, Path]]) -> tuple[npt.NDArray[np.float64], float]:
    """(Dice of every plausible estimate with the given mask, share of plausible ones)."""
    found = []
    for picture, file in pairs:
        pixels = decode(picture).pixels
        truth, estimate = read_mask(file, pixels.shape), estimate_lungs(pixels)
        assert mask_problem(truth) is None
        if estimate.is_plausible:
            found.append(2 * (estimate.mask & truth).sum() / (estimate.mask.sum() + truth.sum()))
    return np.array(found), len(found) / len(pairs)


def test_the_masks_of_covid_qu_ex(covid_qu_ex: IndexResult) -> None:
    found = covid_qu_ex.manifest
    files = [found.root / mask for mask in found.column("lung_mask")]
    overlap, plausible = compare(list(zip(found.paths(), files, strict=True)))
    assert np.median(overlap) >= 0.86 and overlap.min() >= 0.6
    assert plausible >= 0.9


def test_the_masks_of_covid3_talo(talo: IndexResult) -> None:
    """Other readers, who drew the lung behind the heart as well."""
    found = talo.manifest
    pairs = [(p, found.root / mask) for p, mask in zip(found.paths(), found.column("lung_mask"), strict=True) if mask]
    assert len(pairs) == 58
    overlap, plausible = compare(pairs)
    assert np.median(overlap) >= 0.86 and overlap.min() >= 0.7
    assert plausible >= 0.9


def test_given_masks_of_every_image_are_used(covid_qu_ex: IndexResult) -> None:
    spec, manifest = Preprocess(size=64), covid_qu_ex.manifest
    found = lung_masks(manifest, spec)
    assert found.origin == "given" and found.set_aside == ()
    first = read_mask(manifest.root / manifest.column("lung_mask")[0], (256, 256))
    np.testing.assert_array_equal(found.masks[0], fit_mask(first, spec))


def test_masks_of_one_class_alone_are_not_used(talo: IndexResult) -> None:
    """FIELD.md, section 7: lung masks exist for covid only."""
    manifest = talo.manifest
    has = np.array([mask is not None for mask in manifest.column("lung_mask")])
    labels = np.array(manifest.column("label"))
    rows = np.concatenate([np.flatnonzero(has)[:10], np.flatnonzero(labels == "normal")[:10]])
    found = lung_masks(manifest, Preprocess(size=64), rows=rows)
    assert found.origin == "estimated"
    assert "Only 10 of 20 images have a lung mask (without one: 10 of 10 normal)" in found.words
    assert found.usable.mean() >= 0.8
    assert lung_masks(manifest, Preprocess(size=64), rows=rows[:10]).origin == "given"
