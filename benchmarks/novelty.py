"""Which out-of-distribution score tells chest X-rays from what is none: AUROC, and what its threshold flags.

    python -m benchmarks.novelty --model dino-minilm --data covid3-talo --extra covid-qu-ex-sample dicom --out novelty.md
    python -m benchmarks.novelty --model tiny-clip --out novelty-tiny.md

In distribution: the radiographs of --data (a folder with manifest.csv), or chest phantoms without it. Five folds of whole
patients: three are fitted on, one sets the threshold, one is tested, in turn. Out of distribution: photographs and drawings
that scikit-learn and scikit-image ship (whole and cropped, in grey), phantoms of other body parts, noise, and the tested
radiographs turned, upside down and with inverted greys. Every number is a mean over the folds; intervals of 95 % resample
patients and photographs (1,000 resamples).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from benchmarks.measure import once, options, radiographs
from benchmarks.results import Result

from thoraclip.data.phantom import CLASSES, draw_phantom
from thoraclip.data.phantom.others import OTHER_PARTS, draw_other_phantom
from thoraclip.data.splits import assign_groups, independent_groups
from thoraclip.errors import ThoraclipError
from thoraclip.imaging import IMAGE_SUFFIXES, decode, fit
from thoraclip.judge.resampling import resample_weights
from thoraclip.models.dual_encoder import DualEncoder, load_dual_encoder
from thoraclip.models.novelty import fit_novelty

Grey = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

FOLDS = 5
RESAMPLES = 1000
SCORES: dict[str, dict[str, object]] = {
    "kNN, k = 1": {"kind": "knn", "neighbours": 1},
    "kNN, k = 5": {"kind": "knn", "neighbours": 5},
    "kNN, k = 20": {"kind": "knn", "neighbours": 20},
    "Mahalanobis": {"kind": "mahalanobis"},
    "relative Mahalanobis": {"kind": "relative"},
}
DRAWINGS = ("checkerboard", "colorwheel", "horse", "logo", "page", "shepp_logan_phantom", "text")
PHOTOGRAPHS = ("astronaut", "brick", "camera", "cell", "chelsea", "clock", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
               "immunohistochemistry", "microaneurysms", "moon", "retina", "rocket")  # fmt: skip


@dataclass
class Group:
    """Pictures of one kind: pixels, the source that each comes from, and the fold in which it is tested (-1: in all)."""

    pixels: list[Grey]
    sources: list[str]
    folds: npt.NDArray[np.int64] | None = None


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

    def one_over_f() -> Floats:
        wave = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * pink, s=(size, size))
        return 128 + 45 * wave / wave.std()

    kinds: dict[str, Callable[[], Floats]] = {
        "uniform": lambda: rng.uniform(0, 256, (size, size)),
        "gaussian": lambda: rng.normal(128, 45, (size, size)),
        "1/f": one_over_f,
        "constant": lambda: rng.uniform(0, 255) + rng.normal(0, 4, (size, size)),
    }
    made = [(kind, draw()) for kind, draw in kinds.items() for _ in range(count)]
    pixels = [np.clip(values, 0, 255).astype(np.uint8) for _, values in made]
    return Group(pixels, [f"{kind} {number}" for number, (kind, _) in enumerate(made)])


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


def spoiled(
    pixels: Sequence[Grey], sources: Sequence[str], folds: npt.NDArray[np.int64], every: int
) -> dict[str, Group]:
    """A part of the in-distribution images turned, upside down and inverted; each is tested where its original is."""
    kept = range(0, len(pixels), every)
    where, whose = folds[::every], [sources[i] for i in kept]
    changes: dict[str, Callable[[Grey], Grey]] = {
        "chest, turned by 90 degrees": np.rot90,
        "chest, upside down": np.flipud,
        "chest, inverted greys": np.invert,
    }
    return {n: Group([np.ascontiguousarray(f(pixels[i])) for i in kept], whose, where) for n, f in changes.items()}


def phantom_chests(count: int, rng: np.random.Generator) -> tuple[list[Grey], npt.NDArray[np.int64], list[str]]:
    """(pixels, targets, independent groups) of chest phantoms."""
    targets = np.arange(count) % len(CLASSES)
    return [draw_phantom(CLASSES[t], rng=rng).pixels for t in targets], targets, [f"phantom {i}" for i in range(count)]


def other_chests(folder: Path) -> Group:
    """Every radiograph of a folder, masks and what cannot be read left out."""
    group = Group([], [])
    files = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (*IMAGE_SUFFIXES, ".dcm")]
    for path in files:
        if "mask" in path.parent.name or "lung_only" in str(path):
            continue
        try:
            group.pixels.append(decode(path).pixels)
            group.sources.append(path.stem)
        except ThoraclipError as error:
            print(f"{error}; left out")
    return group


def embedded(pixels: Sequence[Grey], encoder: DualEncoder) -> npt.NDArray[np.float32]:
    """f32[N, D] pooled features."""
    greys = np.stack([fit(picture, encoder.preprocess) for picture in pixels])
    return np.concatenate([encoder.encode_greys(greys[i : i + 32])[0] for i in range(0, len(greys), 32)])


def weights_of(sources: Sequence[str], seed: int) -> Floats:
    """f64[1 + RESAMPLES, N]: how often an image is taken; row 0 takes each once, the others resample whole sources."""
    groups = np.unique(np.asarray(sources), return_inverse=True)[1]
    drawn = np.concatenate(list(resample_weights(groups, resamples=RESAMPLES, seed=seed)), axis=1).T
    return np.concatenate([np.ones((1, len(groups))), drawn])


def shares(flagged: Floats, weights: Floats) -> Floats:
    total = weights.sum(axis=1)
    return np.asarray(np.where(total > 0, weights @ flagged / np.maximum(total, 1), np.nan))


def auroc(inside: Floats, outside: Floats, own: Floats, other: Floats) -> Floats:
    """f64[R]: the probability that a stranger scores higher, ties half (Mann & Whitney 1947), under weights [R, N]."""
    wins = (outside[None] > inside[:, None]) + 0.5 * (outside[None] == inside[:, None])
    pairs = own.sum(axis=1) * other.sum(axis=1)
    return np.asarray(np.where(pairs > 0, ((own @ wins) * other).sum(axis=1) / np.maximum(pairs, 1), np.nan))


def cell(replicates: Floats) -> str:
    low, high = np.nanquantile(replicates[1:], [0.025, 0.975])
    return f"{replicates[0]:.3f} [{low:.3f}, {high:.3f}]"


def judge(
    inside: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], list[str]],
    folds: npt.NDArray[np.int64],
    groups: dict[str, tuple[npt.NDArray[np.float32], Group]],
    options: dict[str, object],
    *,
    by_reference: bool = False,
) -> tuple[dict[str, tuple[Floats, Floats]], Floats]:
    """(AUROC, share flagged) of each group, and the share of tested chest X-rays that is flagged; f64[1 + RESAMPLES] each."""
    features, targets, sources = inside
    own = weights_of(sources, seed=0)
    others = {name: weights_of(group.sources, seed) for seed, (name, (_, group)) in enumerate(groups.items(), start=1)}
    areas: dict[str, list[Floats]] = {name: [] for name in groups}
    hits: dict[str, list[Floats]] = {name: [] for name in groups}
    false = []
    for fold in range(FOLDS):
        test, held = folds == fold, folds == (fold + 1) % FOLDS
        fitted = fit_novelty(
            features[~test & ~held],
            targets=targets[~test & ~held],
            held_out=None if by_reference else features[held],
            **options,
        )  # type: ignore[arg-type]
        scores = fitted.score(features[test])
        false.append(shares(fitted.is_flagged(scores).astype(float), own[:, test]))
        for name, (strange, group) in groups.items():
            here = slice(None) if group.folds is None else group.folds == fold
            found = fitted.score(strange[here])
            areas[name].append(auroc(scores, found, own[:, test], others[name][:, here]))
            hits[name].append(shares(fitted.is_flagged(found).astype(float), others[name][:, here]))
    rows = {name: (np.nanmean(areas[name], axis=0), np.nanmean(hits[name], axis=0)) for name in groups}
    return rows, np.nanmean(false, axis=0)


def table(title: str, names: Sequence[str], rows: dict[str, list[str]]) -> list[str]:
    lines = [f"| {title} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return lines + [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """A reduced accuracy: the default score on tiny-clip and chest phantoms, against strangers; and the speed of the score."""
    rng, encoder = np.random.default_rng(0), load_dual_encoder("tiny-clip")
    pixels, targets, sources = phantom_chests(120 if quick else 400, rng)
    folds = assign_groups(targets, sources, [1 / FOLDS] * FOLDS, seed=0)
    pictures = {"noise": noise_images(5, rng)} if quick else strangers(rng)
    inside = embedded(pixels, encoder)
    groups = {name: (embedded(group.pixels, encoder), group) for name, group in pictures.items()}
    rows, flagged = judge((inside, targets, sources), folds, groups, SCORES["kNN, k = 5"])
    mean = float(np.mean([area[0] for area, _ in rows.values()]))
    fitted = fit_novelty(inside, targets=targets, **SCORES["kNN, k = 5"])  # type: ignore[arg-type]
    greys = np.stack([fit(picture, encoder.preprocess) for picture in pixels[:64]])
    scoring, encoding = once(lambda: fitted.score(inside[:64])), once(lambda: encoder.encode_greys(greys))
    return [
        Result(
            "mean AUROC of kNN, k = 5", mean, 0.9, f"{len(rows)} groups of pictures that are no chest X-rays", mean, "",
        ),
        Result("chest phantoms flagged at 1 %", float(flagged[0]), None, "all that were tested", 100 * float(flagged[0]), "%",
               higher_is_better=False),
        Result("scoring, share of encoding", scoring / encoding, 0.05, f"encoding {len(greys)} pictures by tiny-clip", 1e6 * scoring / len(greys),
               "us a picture", higher_is_better=False),
    ]  # fmt: skip


def main() -> None:
    given = options(__doc__, model="tiny-clip", data=None, extra=[], images=400, out=Path("novelty.md"))
    rng, encoder = np.random.default_rng(0), load_dual_encoder(given.model)
    pixels, targets, sources = phantom_chests(given.images, rng)
    if given.data:
        with tempfile.TemporaryDirectory() as folder:
            manifest = radiographs(given.data, Path(folder))
        pixels, targets = [decode(path).pixels for path in manifest.paths()], manifest.targets(manifest.label_set())
        sources = independent_groups(manifest)
    folds = assign_groups(targets, sources, [1 / FOLDS] * FOLDS, seed=0)
    pictures = strangers(rng) | spoiled(pixels, sources, folds, every=max(1, len(pixels) // 75))
    if given.data:
        drawn, _, names = phantom_chests(60, rng)
        pictures["chest phantoms"] = Group(drawn, names)
    pictures |= {f"other chest X-rays: {folder.name}": other_chests(folder) for folder in given.extra}
    inside = embedded(pixels, encoder), targets, sources
    groups = {name: (embedded(group.pixels, encoder), group) for name, group in pictures.items()}
    every = {name: judge(inside, folds, groups, how) for name, how in SCORES.items()}
    sized = {name: f"{name} ({len(group.pixels)} of {len(set(group.sources))})" for name, group in pictures.items()}
    areas, hits = ({sized[g]: [cell(every[s][0][g][k]) for s in SCORES] for g in groups} for k in (0, 1))
    chests = {f"tested chest X-rays ({len(pixels)} of {len(set(sources))})": [cell(every[s][1]) for s in SCORES]}
    loo = judge(inside, folds, {}, SCORES["kNN, k = 5"], by_reference=True)[1]
    lines = [f"{given.model}, {len(pixels)} images in distribution; images of sources in brackets.", ""]
    lines += [*table("AUROC", list(SCORES), areas), "", *table("share flagged at 1 %", list(SCORES), chests | hits), ""]
    lines += [
        f"Threshold of kNN, k = 5 from the reference rows, each against the others: tested images flagged {cell(loo)}."
    ]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
