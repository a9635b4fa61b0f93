"""Duplicate pictures: recall for planted copies, precision, the cost of the Hamming join, the rate of the alignment.

    python benchmarks/duplicates.py                          # phantoms, drawn into a temporary folder
    python benchmarks/duplicates.py --images radiographs/    # every PNG and JPEG below one folder or several

Copies of the originals are planted by one transform at a time and searched for among all originals. A pair is right when
it joins a copy with its original (or two copies or originals of one picture); pairs that the originals hold among
themselves are listed, for the reader to look at, and count as one picture from then on; for phantoms they are errors.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import once
from benchmarks.measure import phantoms as draw_phantoms
from benchmarks.results import Result

from thoraclip.data.duplicates import clusters, find_duplicates, hamming_pairs, thumbnail
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.imaging import decode
from thoraclip.proportions import wilson

Grey = npt.NDArray[np.uint8]
Hashes = npt.NDArray[np.uint64]
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


def share(right: int, trials: int) -> str:
    low, high = wilson(right, max(trials, 1))
    return f"{right:6d} of {trials:6d}  {right / max(trials, 1):.4f}  [{low:.4f}, {high:.4f}]"


def search(thumbnails: Grey, names: list[str]) -> tuple[list[tuple[int, int]], float]:
    began = time.perf_counter()
    found = find_duplicates(thumbnails, names)
    return [(pair.first, pair.second) for pair in found], time.perf_counter() - began


def quality(
    pictures: list[Grey], names: list[str], *, copies: int, seed: int, phantoms: bool
) -> tuple[dict[str, tuple[int, int]], tuple[int, int]]:
    """Print the recall of each transform and the precision over all of them, and return them: found, and of how many."""
    rng, count = np.random.default_rng(seed), len(pictures)
    originals = np.stack([thumbnail(picture) for picture in pictures])
    own, took = search(originals, [f"original {i}" for i in range(count)])
    print(f"\n{count} originals searched in {took:.1f} s; pairs among them: {len(own)}")
    for first, second in own[:20]:
        print(f"  {names[first]}  {names[second]}")
    same = clusters(count, np.array([] if phantoms else own, dtype=np.int64).reshape(-1, 2))
    chosen = rng.choice(count, min(copies, count), replace=False)
    picture_of = np.concatenate([same, same[chosen]])
    right = len([pair for pair in own if same[pair[0]] == same[pair[1]]]) if phantoms else 0
    reported = len(own) if phantoms else 0
    print(f"\n{'recall':32s}{'found':>6s} {'':9s}  share   95 % interval")
    recall = {}
    for name, change in {**TRANSFORMS, "two of these": two_of_them}.items():
        planted = np.stack([thumbnail(np.ascontiguousarray(change(pictures[i], rng))) for i in chosen])
        # a copy that came out with the original's bytes is another file all the same
        pairs, _ = search(np.concatenate([originals, planted]), [f"{name} {i}" for i in range(len(picture_of))])
        pairs = [pair for pair in pairs if pair[1] >= count]
        hits = {second for first, second in pairs if first == chosen[second - count]}
        right += sum(picture_of[first] == picture_of[second] for first, second in pairs)
        reported += len(pairs)
        recall[name] = len(hits), len(chosen)
        print(f"{name:32s}{share(*recall[name])}")
    print(f"\n{'precision':32s}{share(int(right), reported)}")
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


def join_once(kind: str, count: int, radius: int) -> tuple[int, float, float]:
    """Pairs, seconds and megabytes (peak of a fresh process) of one join."""
    hashes = HASHES[kind](count, np.random.default_rng(0))
    began = time.perf_counter()
    pairs = hamming_pairs(hashes, radius=radius)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return len(pairs), time.perf_counter() - began, peak


def cost_curve(largest: int, radius: int) -> None:
    print(f"join within {radius} bits{'':8s}hashes       pairs   seconds   peak MB   all with all: comparisons")
    counts = [n for n in (1_000, 10_000, 100_000, 1_000_000) if n <= largest]
    for kind in HASHES:
        times = []
        for count in counts:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pairs, took, peak = pool.apply(join_once, (kind, count, radius))
            times.append(took)
            print(f"{kind:20s}{count:14,d}{pairs:12,d}{took:10.3f}{peak:10.0f}{count * (count - 1) / 2:14.2e}")
        if len(counts) > 1:
            slope = np.polyfit(np.log(counts), np.log(times), 1)[0]
            last = np.log(times[-1] / times[-2]) / np.log(counts[-1] / counts[-2])
            print(f"{kind:20s}time grows as hashes^{slope:.2f} (fit); ^{last:.2f} over the last step")


def alignment_rate(thumbnails: Grey, pairs: int = 2_000) -> None:
    from thoraclip.data.duplicates.alignment import confirm, half_detail

    rng = np.random.default_rng(0)
    for kind in ("strangers", "copies"):
        rows = np.zeros((pairs, 4), dtype=np.int64)
        rows[:, 0] = rng.integers(0, len(thumbnails), pairs)
        rows[:, 1] = rng.integers(0, len(thumbnails), pairs) if kind == "strangers" else rows[:, 0]
        began = time.perf_counter()
        halves = half_detail(thumbnails)
        for begin in range(0, pairs, 128):
            block = rows[begin : begin + 128]
            confirm(thumbnails, block, halves, block[:, :2])
        print(f"alignment, {kind:12s}{pairs / (time.perf_counter() - began):8.0f} pairs/s")


def all_with_all(hashes: Hashes, radius: int) -> int:
    """Pairs within `radius` bits, by looking at every one of them."""
    found = 0
    for row in range(len(hashes) - 1):
        found += int((np.bitwise_count(hashes[row + 1 :] ^ hashes[row]) <= radius).sum())
    return found


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """The join of 100,000 hashes against all with all, counted for 10,000; and a reduced accuracy: 100 copies a transform."""
    small, count, radius = (1000, 2000, 4) if quick else (10_000, 100_000, 4)
    hashes = clumped_hashes(count, np.random.default_rng(0))
    hamming_pairs(hashes[:small], radius=radius)
    took = once(lambda: hamming_pairs(hashes, radius=radius))
    every = once(lambda: all_with_all(hashes[:small], radius)) * (count / small) ** 2
    manifest = draw_phantoms(work, 24 if quick else 256)
    recall, precision = quality(
        [decode(path).pixels for path in manifest.paths()], list(manifest.column("image_id")), copies=12 if quick else 100,
        seed=0, phantoms=True,
    )  # fmt: skip
    hits, of = (sum(column) for column in zip(*recall.values(), strict=True))
    return [
        Result(
            f"pairs among {count:,} hashes within {radius} bits", every / took, 10,
            f"all with all in NumPy, extrapolated from {small:,} hashes", count / took, "hashes/s",
        ),
        Result("planted copies found", hits / of, 0.95, f"{of:,} copies of phantoms by {len(recall)} transforms", 100 * hits / of, "%"),
        Result("pairs that are copies", precision[0] / precision[1], 0.95, f"{precision[1]:,} reported pairs",
               100 * precision[0] / precision[1], "%"),
    ]  # fmt: skip


def read(folders: list[Path]) -> tuple[list[Grey], list[str]]:
    found = [path for folder in folders for path in sorted(folder.rglob("*"))]
    files = [path for path in found if path.suffix.lower() in {".png", ".jpg", ".jpeg"}]
    return [decode(file).pixels for file in files], [f"{file.parent.name}/{file.name}" for file in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", help="folders of PNG and JPEG radiographs; none: phantoms")
    parser.add_argument("--phantoms", type=int, default=600, help="how many to draw")
    parser.add_argument("--copies", type=int, default=300, help="planted for each transform")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--largest", type=int, default=1_000_000, help="hashes in the largest join; 0 leaves it out")
    parser.add_argument("--radius", type=int, default=4, help="of the join, in bits")
    arguments = parser.parse_args()
    if arguments.largest:  # first: a fresh process reports its parent's peak memory when that is larger
        cost_curve(arguments.largest, arguments.radius)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.images:
            pictures, names = read(arguments.images)
        else:
            root = write_phantoms(
                Path(folder) / "phantoms",
                PhantomConfig(images=arguments.phantoms, seed=arguments.seed, infection_fraction=0),
            ).root
            pictures, names = read(sorted(root.rglob("images")))
    quality(pictures, names, copies=arguments.copies, seed=arguments.seed, phantoms=not arguments.images)
    alignment_rate(np.stack([thumbnail(picture) for picture in pictures]))


if __name__ == "__main__":
    main()
