"""Batches: manifest order, the same batches after a resumed start, and files that are still what was indexed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from thoraclip.data.batches import pixel_batches
from thoraclip.errors import ImageError, InputError, MismatchError
from thoraclip.imaging import Preprocess, decode, preprocess
from thoraclip.tables.manifest import Manifest

SPEC = Preprocess(size=16)


def test_pixels_come_in_manifest_order_whatever_the_batch_size(manifest: Manifest) -> None:
    order = np.random.default_rng(0).permutation(len(manifest))
    shuffled = manifest.take(order)
    expected = np.stack([preprocess(decode(path), SPEC) for path in shuffled.paths()])
    for batch_size in (1, 5, 24, 100):
        batches = list(pixel_batches(shuffled, SPEC, batch_size=batch_size))
        assert [first for first, _ in batches] == list(range(0, 24, batch_size))
        assert all(len(pixels) <= batch_size and pixels.dtype == np.float32 for _, pixels in batches)
        np.testing.assert_array_equal(np.concatenate([pixels for _, pixels in batches]), expected)


@pytest.mark.parametrize("start", [0, 5, 7, 20, 23])
def test_a_resumed_pass_sees_the_same_batches(manifest: Manifest, start: int) -> None:
    whole = list(pixel_batches(manifest, SPEC, batch_size=5))
    resumed = list(pixel_batches(manifest, SPEC, batch_size=5, start=start))
    kept = [batch for batch in whole if batch[0] + 5 > start]
    assert [first for first, _ in resumed] == [first for first, _ in kept]
    for (_, a), (_, b) in zip(resumed, kept, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_pass_that_is_done_has_no_batches(manifest: Manifest) -> None:
    assert list(pixel_batches(manifest, SPEC, batch_size=6, start=24)) == []


def test_a_changed_picture_is_refused_with_its_path(manifest: Manifest) -> None:
    path = manifest.paths()[20]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    batches = pixel_batches(manifest, SPEC, batch_size=8)
    assert [next(batches)[0], next(batches)[0]] == [0, 8]
    with pytest.raises(MismatchError, match=f"{path}: its content changed since it was indexed"):
        next(batches)


def test_a_picture_that_is_gone_is_refused_with_its_path(manifest: Manifest) -> None:
    path = manifest.paths()[3]
    path.unlink()
    with pytest.raises(InputError, match=rf"{path}: cannot be read any more \(No such file"):
        next(pixel_batches(manifest, SPEC, batch_size=8))


def test_a_picture_without_a_recorded_hash_is_not_compared_but_must_decode(manifest: Manifest) -> None:
    manifest = manifest.with_columns(sha256=[None] * len(manifest))
    assert len(list(pixel_batches(manifest, SPEC, batch_size=24))) == 1
    path = manifest.paths()[0]
    path.write_text("no picture")
    with pytest.raises(ImageError, match=f"^{path}: not a PNG, JPEG or DICOM picture"):
        next(pixel_batches(manifest, SPEC, batch_size=8))


def test_a_blank_first_batch_is_refused(manifest: Manifest) -> None:
    for path in manifest.paths()[:8]:
        Image.fromarray(np.full((9, 9), 77, np.uint8)).save(path)
    manifest = manifest.with_columns(sha256=[None] * len(manifest))
    with pytest.raises(ImageError, match="every picture is blank"):
        next(pixel_batches(manifest, SPEC, batch_size=8))


def test_an_abandoned_pass_leaves_no_work_behind(manifest: Manifest) -> None:
    batches = pixel_batches(manifest, SPEC, batch_size=2)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(batches)
