"""Duplicate pictures: the join against all-with-all, planted copies found, strangers and blank pictures left alone."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.sparse
from benchmarks.duplicates import hamming_pairs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.conftest import examples

from thoraclip.data import duplicates
from thoraclip.data.appearance import without_border
from thoraclip.data.duplicates import (
    THUMBNAIL_SIDE,
    WARPS,
    DuplicatePair,
    clusters,
    find_duplicates,
    hamming,
    thumbnail,
)
from thoraclip.data.duplicates.thumbnails import near_hashes
from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.data.phantom.attributes import shape_body
from thoraclip.imaging import decode
from thoraclip.imaging.preprocessing import resize

Grey = npt.NDArray[np.uint8]


def digest(pixels: Grey) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def search(pictures: list[Grey]) -> list[DuplicatePair]:
    return find_duplicates(np.stack([thumbnail(p) for p in pictures]), [digest(p) for p in pictures])


def ends(pairs: list[DuplicatePair]) -> list[tuple[int, int]]:
    return [(pair.first, pair.second) for pair in pairs]


@pytest.fixture(scope="module")
def phantoms() -> list[Grey]:
    """24 radiographs of 24 phantom patients, u8[160, 160]."""
    return [
        draw_phantom(CLASSES[i % 3], rng=np.random.default_rng([5, i]), size=160, difficulty=0.5).pixels
        for i in range(24)
    ]


# --- the join ---


@st.composite
def clumped(draw: st.DrawFn) -> list[int]:
    """Hashes around a few centres, some equal, so that every distance occurs."""
    word = st.integers(0, 2**64 - 1)
    centres = draw(st.lists(word, min_size=1, max_size=3))
    flips = st.lists(st.integers(0, 63), max_size=10)
    members = draw(st.lists(st.tuples(st.sampled_from(centres), flips), max_size=30))
    return [centre ^ sum(1 << bit for bit in set(bits)) for centre, bits in members]


@examples(100)
@given(
    hashes=clumped(),
    others=st.none() | clumped(),
    radius=st.integers(0, 64) | st.integers(0, 8),
    room=st.sampled_from([7, hamming.ROOM]),
)
def test_the_join_finds_what_comparing_all_with_all_finds(
    hashes: list[int], others: list[int] | None, radius: int, room: int
) -> None:
    second = None if others is None else np.array(others, dtype=np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "ROOM", room)
        found = hamming_pairs(np.array(hashes, dtype=np.uint64), second, radius=radius)
    assert found.dtype == np.int64 and found.shape[1:] == (2,)
    pairs = itertools.combinations(range(len(hashes)), 2)
    if others is not None:
        pairs = itertools.product(range(len(hashes)), range(len(others)))
    right = hashes if others is None else others
    assert found.tolist() == [[i, j] for i, j in pairs if (hashes[i] ^ right[j]).bit_count() <= radius]


@pytest.mark.parametrize("radius", [0, 3, 8])
def test_the_join_is_exact_for_thousands(radius: int) -> None:
    rng = np.random.default_rng(radius)
    hashes = rng.integers(0, 2**64, 3000, dtype=np.uint64)
    hashes[1000:2000] = hashes[:1000]  # then up to ten bits of each copy change
    for _ in range(10):
        flips = np.uint64(1) << rng.integers(0, 64, 1000, dtype=np.uint64)
        hashes[1000:2000] ^= np.where(rng.random(1000) < 0.4, flips, np.uint64(0))
    hashes[2000:] &= np.uint64(0xFFFF)  # 48 bits in common
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.argwhere(np.triu(distance <= radius, 1))
    assert len(expected) > 10
    assert np.array_equal(hamming_pairs(hashes, radius=radius), expected)


# --- the hashes ---


def test_a_hash_is_the_signs_of_the_warped_pictures_cosines(phantoms: list[Grey]) -> None:
    small = thumbnail(phantoms[0])
    ranks = np.array([(small < g).sum() + (small == g).sum() / 2 for g in range(256)])[small] * 2 / small.size - 1
    picture = ranks.reshape(32, 3, 32, 3).mean(axis=(1, 3))
    place = (np.arange(32) + 0.5) / 32
    edge = np.minimum(np.minimum(place, 1 - place) / 0.15, 1)
    window = np.outer(np.sin(np.pi * edge / 2) ** 2, np.sin(np.pi * edge / 2) ** 2)
    frequencies = sorted((u * u + v * v, u, v) for u in range(20) for v in range(20) if u * u + v * v >= 4)[:256]
    found = near_hashes(small[None])
    assert found.shape == (1, 75, 4) and found.dtype == np.uint64
    for number in (0, 7, 33, 74):
        x, y = np.meshgrid(2 * place - 1, 2 * place - 1)
        u, v = np.einsum("ij,jyx->iyx", WARPS[number], np.stack([x, y, np.ones_like(x)]))
        where = [(v + 1) * 16 - 0.5, (u + 1) * 16 - 0.5]
        warped = scipy.ndimage.map_coordinates(picture, where, order=1, mode="nearest")
        centred = window * (warped - (warped * window).sum() / window.sum())
        values = [
            (centred * np.outer(np.cos(np.pi * v * place), np.cos(np.pi * u * place))).sum() for _, u, v in frequencies
        ]
        bits = [int(b) for word in found[0, number] for b in f"{int(word):064b}"]
        clear = np.abs(values) > 1e-3
        assert clear.sum() > 240
        assert np.array_equal(np.array(bits)[clear], (np.array(values) > 0)[clear])


# --- planted copies ---


def jpeg(pixels: Grey) -> Grey:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file))


def resized(width: int, height: int) -> Callable[[Grey], Grey]:
    return lambda p: np.asarray(resize(Image.fromarray(p), (width, height), Image.Resampling.BICUBIC))


def turned(degrees: float) -> Callable[[Grey], Grey]:
    return lambda p: np.asarray(Image.fromarray(p).rotate(degrees, Image.Resampling.BICUBIC))


COPIES: dict[str, tuple[Callable[[Grey], Grey], float, float]] = {
    "other aspect": (resized(200, 140), 0.9993, 1.42),
    "jpeg": (jpeg, 0.9958, 3.33),
    "gamma": (lambda p: np.round(255 * (p / 255) ** 1.5).astype(np.uint8), 0.9991, 2.58),
    "every side": (lambda p: p[8:-8, 8:-8], 0.9869, 8.08),
    "left": (lambda p: p[:, 8:], 0.9965, 8.17),
    "bottom": (lambda p: p[:-8], 0.9981, 20.92),
    "turned left": (turned(2), 0.9966, 18.08),
    "turned right": (turned(-2), 0.9969, 20.33),
    "mirrored": (lambda p: p[:, ::-1], 1.0, 0.0),
    "mirrored and turned": (lambda p: turned(2)(np.ascontiguousarray(p[:, ::-1])), 0.9965, 20.33),
    "negative": (lambda p: 255 - p, 0.9998, 0.58),
    "mirrored, negative and jpeg": (lambda p: jpeg(255 - p[:, ::-1]), 0.9958, 3.08),
    "negative and turned": (lambda p: turned(2)(255 - p), 0.9965, 18.58),
    "cropped and jpeg": (lambda p: jpeg(np.ascontiguousarray(p[:, 8:])), 0.9927, 12.5),
    "turned and gamma": (lambda p: np.round(255 * (turned(-2)(p) / 255) ** 0.7).astype(np.uint8), 0.9966, 19.58),
    "left and top": (lambda p: p[8:, 8:], 0.9934, 7.67),
}
"""Name -> change, and the mean correlation and distance of twelve such copies, as measured."""


@pytest.mark.parametrize("name", COPIES)
def test_planted_copies_are_found_and_nothing_else(phantoms: list[Grey], name: str) -> None:
    change, correlation, distance = COPIES[name]
    twelve = [p for p in phantoms if without_border(p) is p][:12]  # a border of its own is no longer one when turned
    found = search([*twelve, *(np.ascontiguousarray(change(p)) for p in twelve)])
    assert ends(found) == [(i, 12 + i) for i in range(12)]
    kinds = {(pair.kind, pair.mirrored, pair.negative) for pair in found}
    assert kinds == {("near", "mirrored" in name, "negative" in name)}
    assert all(0.95 <= pair.correlation <= 1 for pair in found)
    assert np.mean([pair.correlation for pair in found]) == pytest.approx(correlation, abs=0.0005)
    assert np.mean([pair.distance for pair in found]) == pytest.approx(distance, abs=0.2)


border = st.integers(0, 40)


@examples(25)
@given(grey=st.integers(0, 255), widths=st.tuples(border, border, border, border))
def test_a_copy_in_a_border_of_any_grey_is_found(
    phantoms: list[Grey], grey: int, widths: tuple[int, int, int, int]
) -> None:
    plain = [p for p in phantoms if without_border(p) is p][:4]
    framed = [np.pad(p, (widths[:2], widths[2:]), constant_values=grey) for p in plain]
    assert ends(search([*plain, *map(jpeg, framed)])) == [(i, 4 + i) for i in range(4)]


def test_nothing_is_cut_off_where_little_would_be_left() -> None:
    words = np.zeros((90, 90), dtype=np.uint8)
    words[30:59, 40:80] = np.random.default_rng(0).integers(0, 256, (29, 40))
    for pixels in (words, np.full((5, 7), 9, dtype=np.uint8)):
        assert without_border(pixels) is pixels


@pytest.mark.parametrize("cropped_first", [False, True])
def test_the_scale_is_that_of_the_second_picture(phantoms: list[Grey], cropped_first: bool) -> None:
    pair = [phantoms[1], np.ascontiguousarray(phantoms[1][8:-8, 8:-8])]
    (found,) = search(pair[::-1] if cropped_first else pair)
    assert found.scale == pytest.approx(0.9 if cropped_first else 1 / 0.9, abs=0.01)
    assert abs(found.rotation_degrees) < 0.2


@pytest.mark.parametrize("names", [("0", "1"), ("1", "0")])
@pytest.mark.parametrize("degrees", [3, -3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_sign_of_a_rotation_is_that_of_the_best_turn(
    phantoms: list[Grey], mirrored: bool, degrees: int, names: tuple[str, str]
) -> None:
    """The second picture, mirrored back, is turned by every whole angle; the one that fits the first best undoes it."""
    first = phantoms[2]
    second = turned(degrees)(np.ascontiguousarray(first[:, ::-1]) if mirrored else first)
    back = (second[:, ::-1] if mirrored else second).astype(float)
    middle = (slice(30, -30), slice(30, -30))

    def fits(angle: int) -> float:  # SciPy turns from the first axis to the second: counter-clockwise as displayed
        again = scipy.ndimage.rotate(back, angle, reshape=False, order=1)
        return float(np.corrcoef(again[middle].ravel(), first[middle].ravel())[0, 1])

    undone = max(range(-5, 6), key=fits)
    (pair,) = find_duplicates(np.stack([thumbnail(first), thumbnail(second)]), names)
    assert pair.mirrored == mirrored and undone == (degrees if mirrored else -degrees)
    assert pair.rotation_degrees == pytest.approx(-undone, abs=0.3) and pair.scale == pytest.approx(1, abs=0.01)


def test_other_exams_of_the_same_patients_are_other_pictures() -> None:
    bodies = [shape_body(np.random.default_rng([8, i])) for i in range(8)]
    exams = [
        draw_phantom("Normal", rng=np.random.default_rng([9, i]), size=160, body=bodies[i // 3]).pixels
        for i in range(24)
    ]
    assert search(exams) == []


# --- what must stay bounded, and the edges ---


def test_thousands_of_blank_pictures_are_not_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "confirm", lambda *_: pytest.fail("aligned a blank picture"))
    blank = np.zeros((5000, THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.uint8)
    blank[::2, 0, 0] = 1
    blank[::3, 8:24, 8:24] = np.random.default_rng(0).integers(0, 256, (16, 16))  # the same label on each
    assert find_duplicates(blank, [f"{i:04x}" for i in range(5000)]) == []


def test_identical_files_are_a_star_and_a_copy_is_paired_with_the_first(phantoms: list[Grey]) -> None:
    blank = np.zeros((64, 64), dtype=np.uint8)
    found = search([blank, jpeg(phantoms[0]), phantoms[0], blank, phantoms[1], phantoms[0], phantoms[0], blank])
    assert ends(found) == [(0, 3), (0, 7), (1, 2), (2, 5), (2, 6)]
    assert [pair.kind for pair in found] == ["identical", "identical", "near", "identical", "identical"]
    assert {(pair.distance, pair.correlation) for pair in found if pair.kind == "identical"} == {(0, 1.0)}


def test_a_copy_is_looked_for_where_any_of_three_identical_files_is_wanted(phantoms: list[Grey]) -> None:
    pictures = [phantoms[0], phantoms[0], phantoms[0], jpeg(phantoms[0]), phantoms[1], jpeg(phantoms[1])]
    thumbnails, names = np.stack([thumbnail(p) for p in pictures]), [digest(p) for p in pictures]
    for wanted in range(4):
        found = find_duplicates(thumbnails, names, among=np.arange(6) == wanted)
        assert ends(found) == [(0, 1), (0, 2), (0, 3)], wanted
    assert ends(find_duplicates(thumbnails, names, among=np.arange(6) == 5)) == [(0, 1), (0, 2), (4, 5)]


def test_many_copies_of_one_picture_are_one_cluster_for_few_alignments(
    phantoms: list[Grey], monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned: list[int] = []
    confirm = duplicates.confirm
    monkeypatch.setattr(
        duplicates, "confirm", lambda t, pairs, *rest: aligned.append(len(pairs)) or confirm(t, pairs, *rest)
    )
    monkeypatch.setattr(duplicates, "_BLOCK", 16)
    monkeypatch.setattr(duplicates, "_ROUND", 2)
    rng = np.random.default_rng(0)
    base = thumbnail(phantoms[3]).astype(int)
    copies = [np.clip(base + rng.integers(-1, 2, base.shape), 0, 255).astype(np.uint8) for _ in range(60)]
    assert clusters(60, find_duplicates(np.stack(copies), [digest(c) for c in copies])).max() == 0
    assert sum(aligned) < 12 * 60


def test_order_and_repetition_do_not_matter(phantoms: list[Grey], tmp_path: Path) -> None:
    copies = [np.ascontiguousarray(change(p)) for (change, *_), p in zip(COPIES.values(), phantoms, strict=False)]
    pictures = [*phantoms[: len(COPIES)], *copies]
    thumbnails, names = np.stack([thumbnail(p) for p in pictures]), [digest(p) for p in pictures]
    seen: list[tuple[int, int]] = []
    found = find_duplicates(thumbnails, names, progress=lambda *at: seen.append(at))
    assert seen == [(i + 1, seen[-1][1]) for i in range(seen[-1][1])]
    assert ends(found) == sorted(ends(found))
    np.save(tmp_path / "thumbnails.npy", thumbnails)
    assert find_duplicates(np.load(tmp_path / "thumbnails.npy", mmap_mode="r"), names) == found
    turn = np.random.default_rng(1).permutation(len(pictures))
    again = find_duplicates(thumbnails[turn], [names[i] for i in turn])

    def facts(pair: DuplicatePair, old: npt.NDArray[np.int64]) -> tuple[object, ...]:
        return (
            *sorted(old[[pair.first, pair.second]]),
            pair.kind,
            pair.distance,
            pair.correlation,
            pair.mirrored,
            pair.negative,
        )

    assert {facts(p, turn) for p in again} == {facts(p, np.arange(len(pictures))) for p in found}


def test_none_and_one_have_no_copies() -> None:
    for count in (0, 1):
        assert find_duplicates(np.ones((count, THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.uint8), ["0a"] * count) == []


# --- clusters ---


@examples(100)
@given(count=st.integers(1, 30), data=st.data())
def test_clusters_are_the_connected_components(count: int, data: st.DataObject) -> None:
    node = st.integers(0, count - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(node, node), max_size=40)), dtype=np.int64).reshape(-1, 2)
    graph = scipy.sparse.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    expected = scipy.sparse.csgraph.connected_components(graph, directed=False)[1]
    number = {
        label: k for k, label in enumerate(dict.fromkeys(expected.tolist()))
    }  # in the order of their first members
    assert clusters(count, pairs).tolist() == [number[label] for label in expected.tolist()]


def test_clusters_take_pairs_as_they_are_found() -> None:
    pairs = [DuplicatePair(1, 3, "identical"), DuplicatePair(0, 2, "near"), DuplicatePair(3, 4, "near")]
    assert clusters(6, pairs).tolist() == [0, 1, 0, 1, 1, 2]
    assert clusters(3, []).tolist() == [0, 1, 2] and clusters(0, []).tolist() == []


# --- real radiographs ---


@pytest.mark.slow
def test_exactly_two_pairs_in_1124_real_radiographs(shared: Path) -> None:
    root = shared / "data" / "covid3-talo"
    files = sorted(path for part in ("covid", "normal", "pneumonia") for path in (root / part).iterdir())
    thumbnails = np.stack([thumbnail(decode(file).pixels) for file in files])
    found = find_duplicates(thumbnails, [hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert [(pair.kind, files[pair.first].stem, files[pair.second].stem) for pair in found] == [
        ("near", "E63574A7-4188-4C8D-8D17-9D67A18A1AFA", "F4341CE7-73C9-45C6-99C8-8567A5484B63"),
        ("identical", "00002658_001", "00002658_002"),
    ]
