"""Duplicate pictures: recall for planted copies, precision, the cost of the Hamming join.

    python -m benchmarks.duplicates                          # phantoms, drawn into a temporary folder
    python -m benchmarks.duplicates --images radiographs/    # every PNG and JPEG below one folder or several

Copies of the originals are planted by one transform at a time and searched for among all originals. A pair is right when
it joins a copy with its original (or two copies or originals of one picture); pairs that the originals hold among
themselves are listed, for the reader to look at, and count as one picture from then on; for phantoms they are errors.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from benchmarks.measure import once, options
from benchmarks.measure import phantoms as draw_phantoms
from benchmarks.results import Result
from PIL import Image

from thoraclip.data.duplicates import clusters, find_duplicates, hamming_pairs, thumbnail
from thoraclip.data.phantom import PhantomConfig, write_phantoms
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


def tone(gain: tuple[float, float], offset: float, gamma: float) -> Transform:
    def change(pixels: Grey, rng: np.random.Generator) -> Grey:
        values = (pixels / 255) ** np.exp(rng.uniform(-gamma, gamma))
        values = (values - 0.5) * rng.uniform(*gain) + 0.5 + rng.uniform(-offset, offset)
        return np.clip(np.round(255 * values), 0, 255).astype(np.uint8)

    return change


def crop(left: float, right: float, top: float, bottom: float) -> Transform:
    def cut(pixels: Grey, _: np.random.Generator) -> Grey:
        height, width = pixels.shape
        return pixels[
            round(height * top) : height - round(height * bottom), round(width * left) : width - round(width * right)
        ]

    return cut


def rotate(pixels: Grey, rng: np.random.Generator) -> Grey:
    turned = Image.fromarray(pixels).rotate(float(rng.choice([-2, 2])), Image.Resampling.BICUBIC)
    return np.asarray(turned)


TRANSFORMS: dict[str, Transform] = {
    "resized to 40-80 %, each side": resize,
    "JPEG, quality 20-59": jpeg,
    "contrast 0.6-1.3": tone((0.6, 1.3), 0, 0),
    "brightness +-10 %": tone((1, 1), 0.1, 0),
    "gamma 0.6-1.6": tone((1, 1), 0, 0.5),
    "centre 95 %": crop(0.025, 0.025, 0.025, 0.025),
    "5 % off every side": crop(0.05, 0.05, 0.05, 0.05),
    "5 % off the left": crop(0.05, 0, 0, 0),
    "5 % off the right": crop(0, 0.05, 0, 0),
    "5 % off the top": crop(0, 0, 0.05, 0),
    "5 % off the bottom": crop(0, 0, 0, 0.05),
    "turned by 2 degrees": rotate,
    "mirrored": lambda pixels, _: pixels[:, ::-1],
}


def two_of_them(pixels: Grey, rng: np.random.Generator) -> Grey:
    for name in rng.choice(list(TRANSFORMS), 2, replace=False):
        pixels = TRANSFORMS[str(name)](pixels, rng)
    return pixels


def search(thumbnails: Grey, names: list[str]) -> list[tuple[int, int]]:
    return [(pair.first, pair.second) for pair in find_duplicates(thumbnails, names)]


def quality(
    pictures: list[Grey], names: list[str], *, copies: int, phantoms: bool
) -> tuple[dict[str, tuple[int, int]], tuple[int, int]]:
    """Recall of each transform and precision over all of them: found, and of how many; pairs among the originals are printed."""
    rng, count = np.random.default_rng(0), len(pictures)
    originals = np.stack([thumbnail(picture) for picture in pictures])
    own = search(originals, [f"original {i}" for i in range(count)])
    for first, second in own[:20]:
        print(f"among the originals: {names[first]}  {names[second]}")
    same = clusters(count, np.array([] if phantoms else own, dtype=np.int64).reshape(-1, 2))
    chosen = rng.choice(count, min(copies, count), replace=False)
    picture_of = np.concatenate([same, same[chosen]])
    right = len([pair for pair in own if same[pair[0]] == same[pair[1]]]) if phantoms else 0
    reported = len(own) if phantoms else 0
    recall = {}
    for name, change in {**TRANSFORMS, "two of these": two_of_them}.items():
        planted = np.stack([thumbnail(np.ascontiguousarray(change(pictures[i], rng))) for i in chosen])
        # a copy that came out with the original's bytes is another file all the same
        every = search(np.concatenate([originals, planted]), [f"{name} {i}" for i in range(len(picture_of))])
        pairs = [pair for pair in every if pair[1] >= count]
        hits = {second for first, second in pairs if first == chosen[second - count]}
        right += sum(picture_of[first] == picture_of[second] for first, second in pairs)
        reported += len(pairs)
        recall[name] = len(hits), len(chosen)
    return recall, (int(right), reported)


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


HASHES = {"random": random_hashes, "clumped": clumped_hashes}


def cost_curve(largest: int) -> None:
    """Seconds of the join of ever more hashes, and how they grow."""
    counts = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= largest]
    for kind in HASHES:
        times = []
        for count in counts:
            hashes, began = HASHES[kind](count, np.random.default_rng(0)), time.perf_counter()
            pairs = hamming_pairs(hashes, radius=RADIUS)
            times.append(time.perf_counter() - began)
            print(f"{kind:20s}{count:14,d} hashes{len(pairs):12,d} pairs{times[-1]:10.3f} s")
        print(f"{kind:20s}time grows as hashes^{np.polyfit(np.log(counts), np.log(times), 1)[0]:.2f}")


def all_with_all(hashes: Hashes) -> int:
    """Pairs within RADIUS bits, by looking at every one of them."""
    return sum(
        int((np.bitwise_count(hashes[row + 1 :] ^ hashes[row]) <= RADIUS).sum()) for row in range(len(hashes) - 1)
    )


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """The join of 100,000 hashes against all with all, counted for 10,000; and a reduced accuracy: 100 copies a transform."""
    small, count = (1000, 2000) if quick else (10_000, 100_000)
    hashes = clumped_hashes(count, np.random.default_rng(0))
    hamming_pairs(hashes[:small], radius=RADIUS)
    took = once(lambda: hamming_pairs(hashes, radius=RADIUS))
    every = once(lambda: all_with_all(hashes[:small])) * (count / small) ** 2
    manifest = draw_phantoms(work, 24 if quick else 256)
    recall, precision = quality(
        [decode(path).pixels for path in manifest.paths()], list(manifest.column("image_id")), copies=12 if quick else 100,
        phantoms=True,
    )  # fmt: skip
    hits, of = (sum(column) for column in zip(*recall.values(), strict=True))
    return [
        Result(
            f"pairs among {count:,} hashes within {RADIUS} bits", every / took, 10,
            f"all with all in NumPy, extrapolated from {small:,} hashes", count / took, "hashes/s",
        ),
        Result("planted copies found", hits / of, 0.95, f"{of:,} copies of phantoms by {len(recall)} transforms", 100 * hits / of, "%"),
        Result("pairs that are copies", precision[0] / precision[1], 0.95, f"{precision[1]:,} reported pairs",
               100 * precision[0] / precision[1], "%"),
    ]  # fmt: skip


def main() -> None:
    given = options(__doc__, images=[], phantoms=600, copies=300, largest=1_000_000)
    cost_curve(given.largest)
    with tempfile.TemporaryDirectory() as folder:
        folders = given.images
        if not folders:
            config = PhantomConfig(images=given.phantoms, infection_fraction=0)
            folders = sorted(write_phantoms(Path(folder) / "phantoms", config).root.rglob("images"))
        found = [path for folder in folders for path in sorted(folder.rglob("*"))]
        files = [path for path in found if path.suffix.lower() in {".png", ".jpg", ".jpeg"}]
        pictures, names = [decode(file).pixels for file in files], [f"{file.parent.name}/{file.name}" for file in files]
    recall, precision = quality(pictures, names, copies=given.copies, phantoms=not given.images)
    for name, (right, of) in {**recall, "precision over all": precision}.items():
        low, high = wilson(right, max(of, 1))
        print(f"{name:32s}{right:6d} of {of:6d}  {right / max(of, 1):.4f}  [{low:.4f}, {high:.4f}]")


if __name__ == "__main__":
    main()
