"""Duplicate pictures: recall for planted copies, precision, the cost of the Hamming join.

    python -m benchmarks.duplicates --phantoms 400
    python -m benchmarks.duplicates --images radiographs/    # every PNG and JPEG below a folder

Copies of the originals are planted by one transform at a time and searched for among all originals. A pair is right
when it joins a copy with its original (or two copies or originals of one picture); pairs that the originals hold among
themselves are listed, for the reader to look at, and count as one picture from then on; for phantoms they are errors.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from benchmarks.measure import command, once
from benchmarks.measure import phantoms as draw_phantoms
from benchmarks.results import Result
from PIL import Image

from thoraclip.data.duplicates import clusters, find_duplicates, thumbnail
from thoraclip.data.duplicates.hamming import HashIndex
from thoraclip.imaging import decode
from thoraclip.proportions import wilson

Grey = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
RADIUS = 4
Transform = Callable[[Grey, np.random.Generator], Grey]


def resize(pixels: Grey, rng: np.random.Generator) -> Grey:
    size = tuple(max(48, round(side * rng.uniform(0.4, 0.8))) for side in [pixels.shape[1], pixels.shape[0]])
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def jpeg(pixels: Grey, rng: np.random.Generator) -> Grey:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(20, 60)))
    return np.asarray(Image.open(file))


def tone(
    pixels: Grey, rng: np.random.Generator, *, gain: tuple[float, float] = (1, 1), offset: float = 0, gamma: float = 0
) -> Grey:
    values = (pixels / 255) ** np.exp(rng.uniform(-gamma, gamma))
    values = (values - 0.5) * rng.uniform(*gain) + 0.5 + rng.uniform(-offset, offset)
    return np.clip(np.round(255 * values), 0, 255).astype(np.uint8)


def crop(pixels: Grey, rng: np.random.Generator, **shares: float) -> Grey:
    height, width = pixels.shape
    left, right = (round(width * shares.get(side, 0)) for side in ("left", "right"))
    top, bottom = (round(height * shares.get(side, 0)) for side in ("top", "bottom"))
    return pixels[top : height - bottom, left : width - right]


def rotate(pixels: Grey, rng: np.random.Generator) -> Grey:
    return np.asarray(Image.fromarray(pixels).rotate(float(rng.choice([-2, 2])), Image.Resampling.BICUBIC))


SIDES = ("left", "right", "top", "bottom")
TRANSFORMS: dict[str, Transform] = {
    "resized to 40-80 %, each side": resize,
    "JPEG, quality 20-59": jpeg,
    "contrast 0.6-1.3": partial(tone, gain=(0.6, 1.3)),
    "brightness +-10 %": partial(tone, offset=0.1),
    "gamma 0.6-1.6": partial(tone, gamma=0.5),
    "centre 95 %": partial(crop, **dict.fromkeys(SIDES, 0.025)),
    "5 % off every side": partial(crop, **dict.fromkeys(SIDES, 0.05)),
    **{f"5 % off the {side}": partial(crop, **{side: 0.05}) for side in SIDES},
    "turned by 2 degrees": rotate,
    "mirrored": lambda pixels, _: pixels[:, ::-1],
    "negative": lambda pixels, _: 255 - pixels,
}


def two_of_them(pixels: Grey, rng: np.random.Generator) -> Grey:
    for name in rng.choice(list(TRANSFORMS), 2, replace=False):
        pixels = TRANSFORMS[str(name)](pixels, rng)
    return pixels


def search(thumbnails: Grey, name: str) -> list[tuple[int, int]]:
    # a copy that came out with the original's bytes is another file all the same
    found = find_duplicates(thumbnails, [f"{name} {i}" for i in range(len(thumbnails))])
    return [(pair.first, pair.second) for pair in found]


def quality(
    pictures: list[Grey], names: list[str], *, copies: int, phantoms: bool
) -> tuple[dict[str, tuple[int, int]], tuple[int, int]]:
    """Recall of each transform and precision over all of them: found, and of how many; both are printed, too."""
    rng, count = np.random.default_rng(0), len(pictures)
    originals = np.stack([thumbnail(picture) for picture in pictures])
    own = search(originals, "original")
    for first, second in own[:20]:
        print(f"among the originals: {names[first]}  {names[second]}")
    same = clusters(count, np.array([] if phantoms else own, dtype=np.int64).reshape(-1, 2))
    chosen = rng.choice(count, min(copies, count), replace=False)
    picture_of = np.concatenate([same, same[chosen]])
    reported = own if phantoms else []
    recall = {}
    for name, change in {**TRANSFORMS, "two of these": two_of_them}.items():
        planted = np.stack([thumbnail(np.ascontiguousarray(change(pictures[i], rng))) for i in chosen])
        pairs = [pair for pair in search(np.concatenate([originals, planted]), name) if pair[1] >= count]
        recall[name] = len({second for first, second in pairs if first == chosen[second - count]}), len(chosen)
        reported = reported + pairs
    right = sum(bool(picture_of[first] == picture_of[second]) for first, second in reported)
    precision = right, len(reported)
    for name, (hits, of) in {**recall, "precision over all": precision}.items():
        low, high = wilson(hits, max(of, 1))
        print(f"{name:32s}{hits:6d} of {of:6d}  {hits / max(of, 1):.4f}  [{low:.4f}, {high:.4f}]")
    return recall, precision


def hamming_pairs(hashes: Hashes, others: Hashes | None = None, *, radius: int) -> npt.NDArray[np.int64]:
    """All pairs of 64-bit hashes that differ in at most `radius` bits; exact, without comparing all with all.

    Args:
        hashes: u64[N].
        others: u64[M]; without it, pairs i < j within `hashes`.
        radius: 0..64.

    Returns:
        i64[K, 2] of (position in `hashes`, position in `others`), sorted.
    """
    index = HashIndex(hashes if others is None else others, radius=radius)
    found = [np.zeros((0, 2), dtype=np.int64)]
    for rows, columns in index.search(hashes):
        keep = rows < columns if others is None else np.ones(len(rows), dtype=bool)
        found.append(np.column_stack([rows[keep], columns[keep]]))
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def random_hashes(count: int, rng: np.random.Generator) -> Hashes:
    """u64[count]: uniform, and one in a hundred a copy of another with one to four bits changed."""
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    copies = rng.choice(count, (2, count // 100), replace=False)
    hashes[copies[1]] = hashes[copies[0]]
    for _ in range(4):
        hashes[copies[1]] ^= np.uint64(1) << rng.integers(0, 64, copies.shape[1], dtype=np.uint64)
    return hashes


def clumped_hashes(count: int, rng: np.random.Generator) -> Hashes:
    """u64[count]: signs of Gaussians with a common mean and four common factors.

    The mean's and the factors' sizes (1.8 and 1.9 times the bits' own noise) give what real chest radiographs give for
    the first 64 bits: a mean distance of about 24 bits and about one pair in ten thousand within 5.
    """
    fixed = np.random.default_rng(7)
    mean, factors = fixed.normal(0, 1.8, 64), fixed.normal(0, 1.9 / 2, (4, 64))
    hashes = np.zeros(count, dtype=np.uint64)
    for begin in range(0, count, 65_536):
        size = min(65_536, count - begin)
        values = mean + rng.normal(size=(size, 4)) @ factors + rng.normal(size=(size, 64))
        hashes[begin : begin + size] = np.packbits(values > 0, axis=1).view(">u8").astype(np.uint64)[:, 0]
    return hashes


def cost_curve(largest: int) -> None:
    """Seconds of the join of ever more hashes, and how they grow."""
    counts = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= largest]
    for kind, draw in {"random": random_hashes, "clumped": clumped_hashes}.items():
        times = []
        for count in counts:
            hashes, pairs = draw(count, np.random.default_rng(0)), list[int]()
            times.append(once(lambda h=hashes, found=pairs: found.append(len(hamming_pairs(h, radius=RADIUS)))))
            print(f"{kind:20s}{count:14,d} hashes{pairs[0]:12,d} pairs{times[-1]:10.3f} s")
        print(f"{kind:20s}time grows as hashes^{np.polyfit(np.log(counts), np.log(times), 1)[0]:.2f}")


def join(count: int, small: int) -> Result:
    """The join of so many hashes against all with all, of a few of them."""
    hashes = clumped_hashes(count, np.random.default_rng(0))
    few = hashes[:small]
    hamming_pairs(few, radius=RADIUS)
    rate = count / once(lambda: hamming_pairs(hashes, radius=RADIUS))
    every = once(lambda: [(np.bitwise_count(few[i + 1 :] ^ few[i]) <= RADIUS).sum() for i in range(small - 1)])
    name, told = f"pairs among {count:,} hashes within {RADIUS} bits", "all with all in NumPy, extrapolated from"
    return Result(name, every * count / small**2 * rate, 10, f"{told} {small:,} hashes", rate, "hashes/s")


def accuracy(pictures: list[Grey], names: list[str], *, copies: int, phantoms: bool) -> list[Result]:
    """`quality` of all transforms together."""
    recall, (right, reported) = quality(pictures, names, copies=copies, phantoms=phantoms)
    hits, of = (sum(column) for column in zip(*recall.values(), strict=True))
    kind = "phantoms" if phantoms else "radiographs"
    planted, pairs = f"{of:,} copies of {kind} by {len(recall)} transforms", f"{reported:,} reported pairs"
    return [
        Result("planted copies found", hits / of, 0.95, planted, 100 * hits / of, "%"),
        Result("pairs that are copies", right / reported, 0.95, pairs, 100 * right / reported, "%"),
    ]


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """The join of 100,000 hashes against all with all, counted for 10,000; and a reduced accuracy: 100 copies a
    transform."""
    manifest = draw_phantoms(work, 24 if quick else 256)
    pictures = [decode(path).pixels for path in manifest.paths()]
    found = accuracy(pictures, manifest.column("image_id"), copies=12 if quick else 100, phantoms=True)
    return [join(2000, 1000) if quick else join(100_000, 10_000), *found]


def measure(folder: Path, images: Path | None, phantoms: int, copies: int, largest: int) -> list[Result]:
    """The cost of the join, and the accuracy on every picture below `images`, or on phantoms."""
    cost_curve(largest)
    root = images or draw_phantoms(folder, phantoms, infection_fraction=0).root
    wanted = "*" if images else "images/*"
    files = [path for path in sorted(root.rglob(wanted)) if path.suffix.lower() in {".png", ".jpg", ".jpeg"}]
    names = [f"{file.parent.name}/{file.name}" for file in files]
    return accuracy([decode(file).pixels for file in files], names, copies=copies, phantoms=not images)


if __name__ == "__main__":
    command(__doc__, measure, images=None, phantoms=600, copies=300, largest=1_000_000)
