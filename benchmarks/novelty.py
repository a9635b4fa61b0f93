"""Which out-of-distribution score tells chest X-rays from what is none: AUROC, and what its threshold flags.

    python -m benchmarks.novelty --model dino-minilm --data covid3-talo --extra covid-qu-ex-sample dicom
    python -m benchmarks.novelty --model tiny-clip

In distribution: the radiographs of --data (a folder with manifest.csv), or chest phantoms without it. Five folds of
whole patients: three are fitted on, one sets the threshold, one is tested, in turn. Out of distribution: photographs
and drawings that scikit-learn and scikit-image ship (whole and cropped, in grey), phantoms of other body parts, noise,
and the tested radiographs turned, upside down and with inverted greys. Every number is a mean over the folds; intervals
of 95 % resample patients and photographs (1,000 resamples).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.measure import once, options, radiographs
from benchmarks.ood_kinds import fit_knn, fit_relative
from benchmarks.other_parts import OTHER_PARTS, draw_other_phantom
from benchmarks.results import Result

from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.data.splits import assign_groups, independent_groups
from thoraclip.errors import ThoraclipError
from thoraclip.evaluation.resampling import resample_weights
from thoraclip.imaging import decode, fit
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.posthoc.ood import fit_ood

Grey = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

FOLDS = 5
RESAMPLES = 1000
SCORES: dict[str, Callable[..., Any]] = {
    **{f"kNN, k = {k}": partial(fit_knn, neighbours=k) for k in (1, 5, 20)},
    "Mahalanobis": fit_ood,
    "relative Mahalanobis": fit_relative,
}
"""The second last is that of the package."""
DRAWINGS = ("checkerboard", "colorwheel", "horse", "logo", "page", "shepp_logan_phantom", "text")
PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "cell",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "microaneurysms",
    "moon",
    "retina",
    "rocket",
)


@dataclass
class Group:
    """Pictures of one kind: pixels, the source that each comes from, and the fold in which it is tested (None: in
    all)."""

    pixels: list[Grey]
    sources: list[str]
    folds: npt.NDArray[np.int64] | None = None
    targets: npt.NDArray[np.int64] | None = None

    def look(self, encoder: DualEncoder, seed: int) -> None:
        """Set `features`, f32[N, D] pooled ones, and `weights`, f64[1 + RESAMPLES, N]: how often an image is taken.

        Row 0 takes each once, the others resample whole sources.
        """
        greys = np.stack([fit(picture, encoder.preprocess) for picture in self.pixels])
        self.features = np.concatenate([encoder.encode_greys(greys[i : i + 32])[0] for i in range(0, len(greys), 32)])
        numbers = np.unique(np.asarray(self.sources), return_inverse=True)[1]
        drawn = np.concatenate(list(resample_weights(numbers, resamples=RESAMPLES, seed=seed)), axis=1).T
        self.weights = np.concatenate([np.ones((1, len(numbers))), drawn])


def chests(pixels: list[Grey], sources: list[str], targets: npt.NDArray[np.int64]) -> Group:
    """Frontal chest X-rays in five folds of whole sources."""
    return Group(pixels, sources, assign_groups(targets, sources, [1 / FOLDS] * FOLDS, seed=0), targets)


def phantom_chests(count: int, rng: np.random.Generator) -> Group:
    """Chest phantoms."""
    targets = np.arange(count) % len(CLASSES)
    drawn = [draw_phantom(CLASSES[t], rng=rng).pixels for t in targets]
    return chests(drawn, [f"phantom {i}" for i in range(count)], targets)


def grey_of(array: npt.NDArray[np.generic]) -> Grey:
    """Any image of scikit-image or scikit-learn as u8[H, W], bright stays bright."""
    values = np.asarray(array, np.float64)
    values = values[..., :3] @ [0.299, 0.587, 0.114] if values.ndim == 3 else values
    if array.dtype != np.uint8:
        values = 255 * (values - values.min()) / max(np.ptp(values), 1e-12)
    return np.round(values).astype(np.uint8)


def with_crops(pictures: dict[str, Grey], crops: int, rng: np.random.Generator) -> Group:
    """Each picture whole, and square crops of 40 to 80 % of its short side."""
    group = Group([], [])
    for name, picture in pictures.items():
        height, width = picture.shape
        cut = [picture]
        for _ in range(crops):
            side = int(rng.uniform(0.4, 0.8) * min(height, width))
            top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
            cut.append(picture[top : top + side, left : left + side])
        group.pixels += cut
        group.sources += [name] * len(cut)
    return group


def shipped(names: Sequence[str]) -> dict[str, Grey]:
    """Pictures that are part of the installed scikit-image; one that would be downloaded is left out."""
    import skimage.data

    found = {}
    for name in names:
        try:
            found[name] = grey_of(getattr(skimage.data, name)())
        except (ModuleNotFoundError, FileNotFoundError, ConnectionError):
            print(f"{name}: not shipped with scikit-image, left out")
    return found


def noise_images(count: int, rng: np.random.Generator, size: int = 256) -> Group:
    """Uniform, Gaussian, 1/f and constant-plus-noise pictures."""
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    pink = np.where(f > 0, 1 / np.maximum(f, 1 / size), 0)
    square = (size, size)
    waves = (np.fft.irfft2(np.fft.rfft2(rng.standard_normal(square)) * pink, s=square) for _ in range(count))
    kinds: list[Iterator[Floats]] = [
        (rng.uniform(0, 256, square) for _ in range(count)),
        (rng.normal(128, 45, square) for _ in range(count)),
        (128 + 45 * wave / wave.std() for wave in waves),
        (rng.uniform(0, 255) + rng.normal(0, 4, square) for _ in range(count)),
    ]
    made = [np.clip(values, 0, 255).astype(np.uint8) for kind in kinds for values in kind]
    return Group(made, [f"noise {number}" for number in range(len(made))])


def strangers(rng: np.random.Generator) -> dict[str, Group]:
    """What no frontal chest X-ray is."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    samples = load_sample_images()
    photographs = {Path(f).stem: grey_of(i) for f, i in zip(samples.filenames, samples.images, strict=True)}
    photographs |= shipped(PHOTOGRAPHS) | {"motorcycle": grey_of(skimage.data.stereo_motorcycle()[0])}
    groups = {
        "photographs": with_crops(photographs, 5, rng),
        "pages and drawings": with_crops(shipped(DRAWINGS), 3, rng),
        "noise": noise_images(15, rng),
    }
    for part in OTHER_PARTS:
        drawn = [draw_other_phantom(part, rng=rng) for _ in range(20)]
        groups[f"phantom: {part}"] = Group(drawn, [f"{part} {i}" for i in range(20)])
    return groups


def spoiled(inside: Group) -> dict[str, Group]:
    """About 75 in-distribution images turned, upside down and inverted; each is tested where its original is."""
    kept = slice(None, None, max(1, len(inside.pixels) // 75))
    pixels, where = inside.pixels[kept], (inside.sources[kept], inside.folds[kept])
    changes = {"turned by 90 degrees": np.rot90, "upside down": np.flipud, "inverted greys": np.invert}
    return {f"chest, {n}": Group([np.ascontiguousarray(f(p)) for p in pixels], *where) for n, f in changes.items()}


def other_chests(folder: Path) -> Group:
    """Every radiograph of a folder, masks and what cannot be read left out."""
    group = Group([], [])
    for path in sorted(folder.rglob("*")):
        is_image = path.suffix.lower() in (".png", ".jpg", ".jpeg", ".dcm")
        if not is_image or "mask" in path.parent.name or "lung_only" in str(path):
            continue
        try:
            group.pixels.append(decode(path).pixels)
            group.sources.append(path.stem)
        except ThoraclipError as error:
            print(f"{error}; left out")
    return group


def share(above: Floats, total: Floats) -> Floats:
    """f64[R], NaN where a resample has none."""
    return np.divide(above, total, out=np.full(len(total), np.nan), where=total > 0)


def auroc(inside: Floats, outside: Floats, own: Floats, other: Floats) -> Floats:
    """f64[R]: the probability that a stranger scores higher, ties half (Mann & Whitney 1947), under weights [R, N]."""
    wins = (outside[None] > inside[:, None]) + 0.5 * (outside[None] == inside[:, None])
    return share(((own @ wins) * other).sum(axis=1), own.sum(axis=1) * other.sum(axis=1))


def cell(replicates: Floats) -> str:
    low, high = np.nanquantile(replicates[1:], [0.025, 0.975])
    return f"{replicates[0]:.3f} [{low:.3f}, {high:.3f}]"


def judge(
    inside: Group, others: dict[str, Group], fit_score: Callable[..., Any], *, by_reference: bool = False
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """(AUROC of each group, share flagged of each group and of the tested chest X-rays, ""): f64[1 + RESAMPLES]."""
    areas: dict[str, list[Floats]] = {name: [] for name in others}
    hits: dict[str, list[Floats]] = {name: [] for name in ("", *others)}
    for fold in range(FOLDS):
        test, held = inside.folds == fold, inside.folds == (fold + 1) % FOLDS
        rest, own = ~test & ~held, inside.weights[:, test]
        apart = None if by_reference else inside.features[held]
        fitted = fit_score(inside.features[rest], targets=inside.targets[rest], held_out=apart)
        scores = fitted.score(inside.features[test])
        hits[""].append(share(own @ fitted.is_flagged(scores), own.sum(axis=1)))
        for name, group in others.items():
            here = slice(None) if group.folds is None else group.folds == fold
            found, weights = fitted.score(group.features[here]), group.weights[:, here]
            areas[name].append(auroc(scores, found, own, weights))
            hits[name].append(share(weights @ fitted.is_flagged(found), weights.sum(axis=1)))
    means = ({name: np.nanmean(found, axis=0) for name, found in every.items()} for every in (areas, hits))
    return next(means), next(means)


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """A reduced accuracy: kNN, k = 5, on tiny-clip and chest phantoms, against strangers; and the speed of that
    score."""
    rng, encoder, fit_score = np.random.default_rng(0), load_dual_encoder("tiny-clip"), SCORES["kNN, k = 5"]
    inside = phantom_chests(120 if quick else 400, rng)
    others = {"noise": noise_images(5, rng)} if quick else strangers(rng)
    for seed, group in enumerate((inside, *others.values())):
        group.look(encoder, seed)
    areas, flagged = judge(inside, others, fit_score)
    mean, false = float(np.mean([area[0] for area in areas.values()])), float(flagged[""][0])
    fitted = fit_score(inside.features, held_out=None)
    greys = np.stack([fit(picture, encoder.preprocess) for picture in inside.pixels[:64]])
    scoring, encoding = once(lambda: fitted.score(inside.features[:64])), once(lambda: encoder.encode_greys(greys))
    told, by = f"{len(areas)} groups of pictures that are no chest X-rays", "encoding 64 pictures by tiny-clip"
    microseconds = 1e6 * scoring / len(greys)
    return [
        Result("mean AUROC of kNN, k = 5", mean, 0.9, told, mean, ""),
        Result.small("chest phantoms flagged at 1 %", false, None, "all that were tested", 100 * false, "%"),
        Result.small("scoring, share of encoding", scoring / encoding, 0.05, by, microseconds, "us a picture"),
    ]


def main() -> None:
    given = options(__doc__, model="tiny-clip", data=None, extra=[], images=400)
    rng, encoder = np.random.default_rng(0), load_dual_encoder(given.model)
    inside = phantom_chests(given.images, rng)
    if given.data:
        with tempfile.TemporaryDirectory() as folder:
            manifest = radiographs(given.data, Path(folder))
        pixels, targets = [decode(path).pixels for path in manifest.paths()], manifest.targets(manifest.label_set())
        inside = chests(pixels, independent_groups(manifest).tolist(), targets)
    others = strangers(rng) | spoiled(inside)
    others |= {"chest phantoms": replace(phantom_chests(60, rng), folds=None)} if given.data else {}
    others |= {f"other chest X-rays: {folder.name}": other_chests(folder) for folder in given.extra}
    for seed, group in enumerate((inside, *others.values())):
        group.look(encoder, seed)
    every = [judge(inside, others, fit_score) for fit_score in SCORES.values()]
    print(f"{given.model}, {len(inside.pixels)} images in distribution; images of sources in brackets.")
    for number, title in enumerate(("AUROC", "share flagged at 1 %")):
        print(f"\n| {title} | {' | '.join(SCORES)} |\n{'|---' * (len(SCORES) + 1)}|")
        for name in every[0][number]:
            group = others.get(name, inside)
            named = f"{name or 'tested chest X-rays'} ({len(group.pixels)} of {len(set(group.sources))})"
            print(f"| {named} | {' | '.join(cell(found[number][name]) for found in every)} |")
    flagged = cell(judge(inside, others, SCORES["kNN, k = 5"], by_reference=True)[1][""])
    print(f"\nkNN, k = 5, threshold from the reference rows, each against the others: tested images flagged {flagged}.")


if __name__ == "__main__":
    main()
