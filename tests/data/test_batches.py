"""Batches come in order, resume at the same rows, and are the same bytes with and without a pixel cache."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tests.conftest import files

from thoraclip import disk
from thoraclip.data import batches as module
from thoraclip.data.batches import PIXELS, grey_batches, in_batches, pixel_cache
from thoraclip.errors import ImageError, InputError, MismatchError
from thoraclip.imaging import Preprocess, decode, fit
from thoraclip.tables.arrays import read_arrays
from thoraclip.tables.manifest import Manifest

SPEC = Preprocess(size=16)


@pytest.mark.parametrize("is_cached", [False, True])
def test_pictures_come_in_manifest_order_from_any_start_whatever_the_batch_size(
    manifest: Manifest, tmp_path: Path, is_cached: bool
) -> None:
    shuffled = manifest.take(np.random.default_rng(0).permutation(len(manifest)))
    expected = np.stack([fit(decode(path).pixels, SPEC) for path in shuffled.paths()])
    for batch_size, start in ((1, 0), (5, 0), (24, 0), (100, 0), (5, 5), (5, 7), (5, 23), (6, 24)):
        pixels = tmp_path if is_cached else None
        found = list(grey_batches(shuffled, SPEC, batch_size=batch_size, start=start, pixels=pixels))
        first = start // batch_size * batch_size  # a batch that is done in part is made whole again
        assert [at for at, _ in found] == list(range(first, 24, batch_size))
        for at, greys in found:
            assert greys.dtype == np.uint8
            np.testing.assert_array_equal(greys, expected[at : at + batch_size])


def test_a_picture_that_changed_is_gone_or_is_none_is_refused_with_its_path(manifest: Manifest) -> None:
    path, gone = manifest.paths()[20], manifest.paths()[3]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(path)
    found = grey_batches(manifest, SPEC, batch_size=8)
    assert [next(found)[0], next(found)[0]] == [0, 8]
    with pytest.raises(MismatchError, match=f"{path}: its content changed since it was indexed"):
        next(found)
    bare = manifest.with_columns(sha256=[None] * len(manifest))
    assert len(list(grey_batches(bare, SPEC, batch_size=24))) == 1, "without a recorded hash it is not compared"
    path.write_text("no picture")
    with pytest.raises(ImageError, match=f"^{path}: not a PNG, JPEG or DICOM picture"):
        list(grey_batches(bare, SPEC, batch_size=8))
    gone.unlink()
    with pytest.raises(InputError, match=rf"{gone}: cannot be read any more \(No such file"):
        next(grey_batches(manifest, SPEC, batch_size=8))


def test_an_abandoned_pass_leaves_no_work_behind(manifest: Manifest) -> None:
    found = grey_batches(manifest, SPEC, batch_size=2)
    next(found)
    found.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(found)


def test_work_is_done_in_order_for_every_row_and_never_far_ahead() -> None:
    begun: list[int] = []

    def work(row: int) -> int:
        begun.append(row)
        return row * row

    results = in_batches(work, 103, batch_size=10, start=20)
    assert next(results) == (20, [row * row for row in range(20, 30)])
    assert max(begun) < 60, "three batches ahead at the most"
    assert [first for first, _ in results] == list(range(30, 103, 10))
    assert sorted(begun) == list(range(20, 103))
    assert list(in_batches(work, 0, batch_size=4)) == []


# the pixel cache


def test_a_warm_cache_needs_no_picture(manifest: Manifest, tmp_path: Path) -> None:
    cold = pixel_cache(manifest, SPEC, tmp_path)
    for path in manifest.paths():
        path.unlink()
    warm = pixel_cache(manifest, SPEC, tmp_path)
    assert warm.image_id == tuple(manifest.column("image_id"))
    assert warm.facts["geometry"] == {"size": 16, "geometry": "squash", "short_side": None, "resample": "bicubic"}
    np.testing.assert_array_equal(warm.arrays["pixels"], cold.arrays["pixels"])
    assert isinstance(warm.arrays["pixels"].base, np.memmap)


def test_mean_and_std_share_a_cache_and_geometry_images_and_rules_do_not(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def caches(manifest: Manifest, spec: Preprocess) -> int:
        pixel_cache(manifest, spec, tmp_path / "c")
        return len(list((tmp_path / "c").iterdir()))

    assert caches(manifest, SPEC) == caches(manifest, Preprocess(size=16, mean=(0.5,) * 3, std=(0.5,) * 3)) == 1
    assert caches(manifest.with_columns(label=["x"] * 24), SPEC) == 1
    assert caches(manifest, Preprocess(size=16, geometry="pad")) == 2
    assert caches(manifest, Preprocess(size=17)) == 3
    assert caches(manifest.take(np.arange(9)), SPEC) == 4
    monkeypatch.setattr(module, "DECODING", 10_000)
    assert caches(manifest, SPEC) == 5


@pytest.mark.parametrize("dies_after", [5, 20, 24, "the end"])
def test_a_killed_cache_goes_on_and_ends_with_the_same_bytes(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_after: int | str
) -> None:
    """Also where only the renaming was left."""
    monkeypatch.setattr(module, "_CACHE_BATCH", 5)
    pixel_cache(manifest, SPEC, tmp_path / "whole")

    def die(done: object, *_: object, **__: object) -> None:
        if done == dies_after or dies_after == "the end":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        if dies_after == "the end":
            patch.setattr(module.ArrayWriter, "finish", die)
        pixel_cache(manifest, SPEC, tmp_path / "broken", progress=None if dies_after == "the end" else die)
    folder = next((tmp_path / "broken").iterdir())
    with pytest.raises(InputError, match="no finished pixels"):
        read_arrays(folder, PIXELS)
    rows = json.loads((folder / "progress.json").read_text())["rows"]
    assert rows == (24 if dies_after == "the end" else dies_after)
    read: list[str] = []
    original = module.read_indexed
    monkeypatch.setattr(module, "read_indexed", lambda path, sha: (read.append(path.name), original(path, sha))[1])
    pixel_cache(manifest, SPEC, tmp_path / "broken")
    assert len(read) == 24 - rows, "what is on disk is not decoded again"
    assert files(tmp_path / "broken") == files(tmp_path / "whole")


def test_a_full_disk_is_told_before_the_work(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=24 * 256 / 0.95 - 1))
    with pytest.raises(InputError, match=r"needs 0\.0 GB and the disk has 0\.0 GB left; name a folder on another disk"):
        pixel_cache(manifest, SPEC, tmp_path)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=24 * 256 / 0.95 + 1))
    pixel_cache(manifest, SPEC, tmp_path)


def test_a_cache_of_changed_pictures_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    cache = pixel_cache(manifest, SPEC, tmp_path)
    with pytest.raises(MismatchError, match="pixels: 1 images differ in content"):
        cache.rows_for(manifest.with_columns(sha256=["0" * 64, *manifest.column("sha256")[1:]]))
