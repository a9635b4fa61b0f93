"""A bundle against the tower in torch that it was made of: images/s, size, memory, cold start, and what int8 costs.

    python -m benchmarks.inference
    python -m benchmarks.inference --data covid3-talo --model dino-minilm
    python -m benchmarks.inference --keep FOLDER --python small-venv/bin/python

Speed needs no trained weights: a CLIP of the shape ViT-B/32 at 224 pixels with random weights, a probe on phantoms, exported in
fp32 and, without asking whether its answers stay alike, in int8. Torch in fp32, in bf16 and the bundles see
the same pictures in turn, in one process; rates are medians of the rounds, ratios are medians of the rounds' own ratios. The
cold start is a process of its own: `thoraclip predict BUNDLE one.png`, from its start to its end.

With --data (a folder with manifest.csv, path column rel_path, label, patient_id) and --model: the probe of five folds on real
radiographs, and what int8 changes about it: each image by the head of the fold that held it out.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.measure import (
    SMALL_TEXT_TOWER,
    Used,
    in_turn,
    launch,
    options,
    radiographs,
    ratio,
    typical,
    write_vit_b_32,
)
from benchmarks.results import Result

import thoraclip
from thoraclip.deploy import parity
from thoraclip.deploy.bundle import MODEL
from thoraclip.deploy.onnx import grey_classifier, quantise, write_onnx
from thoraclip.deploy.opening import open_bundle
from thoraclip.deploy.passes import Passes, open_part
from thoraclip.imaging import decode, fit
from thoraclip.methods.original import load_original
from thoraclip.methods.predictors import find_manifest, read_run
from thoraclip.threads import cores

TORCH, TORCH_BF16 = "torch fp32, batches of 32", "torch bf16 autocast, batches of 32"
FP32, INT8, FILES = "bundle fp32", "bundle int8", "bundle int8, from files: decode, predict, calibrate, flag"


def make_bundles(root: Path, images: int, model: str = "") -> dict[str, Path]:
    """`fp32` and `int8` bundles of a probe on a model, by default the random tower; made once."""
    folders = {name: root / f"bundle-{name}" for name in ("fp32", "int8")}
    if all(folder.is_dir() for folder in folders.values()):
        return folders
    model = model or write_vit_b_32(root / "vit-b-32", SMALL_TEXT_TOWER)
    thoraclip.phantom(root / "phantoms", images=images)
    found = thoraclip.index(root / "phantoms", out=root / "manifest.parquet")
    thoraclip.probe(found.manifest, out=root / "probe", model=model)
    parity.INT8_ACCURACY = parity.INT8_FLIPS = 1.0  # speed is asked for here, of a network that has learned nothing
    for name, folder in folders.items():
        thoraclip.export(root / "probe", out=folder, int8=name == "int8", images=200)
    return folders


def shared_bundles(work: Path, *, quick: bool) -> dict[str, Path]:
    """The bundles that several benchmarks of one run use, in `work`; with `quick` of tiny-clip."""
    return make_bundles(work / "inference", 60, "tiny-clip") if quick else make_bundles(work / "inference", 400)


def one_picture(root: Path) -> Path:
    """A picture of the probe's, under a name of its own."""
    return Path(shutil.copy(find_manifest(read_run(root / "probe")).paths()[0], root / "one.png"))


def speeds(
    root: Path, folders: dict[str, Path], rounds: int, count: int
) -> tuple[dict[str, npt.NDArray[np.float64]], int]:
    """(who -> f64[rounds] seconds for the same pictures, how many)."""
    run = read_run(root / "probe")
    manifest = find_manifest(run)
    classifier = load_original(run, manifest).classifier
    paths = manifest.paths()[:count]
    greys = np.stack([fit(decode(path).pixels, classifier.preprocess) for path in paths])
    batches = [greys[i : i + 32] for i in range(0, len(greys), 32)]
    opened = {name: open_bundle(folder) for name, folder in folders.items()}
    few = opened["int8"].together
    groups = [paths[i : i + few] for i in range(0, len(paths), few)]

    def torch_in(precision: str) -> Callable[[], object]:
        one = replace(classifier, encoder=replace(classifier.encoder, precision=precision))
        return lambda: [one.look(batch) for batch in batches]

    def from_files() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(opened["int8"].classify_each, groups))

    ways: dict[str, Callable[[], Any]] = {
        TORCH: torch_in("fp32"), TORCH_BF16: torch_in("bf16"), FP32: lambda: opened["fp32"].look(greys),
        INT8: lambda: opened["int8"].look(greys), FILES: from_files,
    }  # fmt: skip
    for work in ways.values():
        work()
    return in_turn(ways, rounds), len(paths)


def cold_start(python: str, bundle: Path, picture: Path, rounds: int) -> Used:
    """Of `thoraclip predict` on one picture."""
    return typical([launch([python, "-m", "thoraclip", "predict", str(bundle), str(picture)]) for _ in range(rounds)])


def size_of(bundle: Path) -> int:
    """Bytes of all its files."""
    return sum(file.stat().st_size for file in bundle.iterdir())


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Bundles of a probe on a random ViT-B/32 against torch; with `quick` on tiny-clip."""
    folders = shared_bundles(work, quick=quick)
    times, count = speeds(work / "inference", folders, 1 if quick else 5, 16 if quick else 96)
    against = f"{TORCH}: {count / np.median(times[TORCH]):.1f} images/s"
    goals = {FP32: 1, INT8: 4, FILES: 3}
    sizes = {name: size_of(folder) / 1e6 for name, folder in folders.items()}
    return [
        *[
            Result(name, ratio(times[TORCH], times[name]), goal, against, float(np.median(count / times[name])), "images/s")
            for name, goal in goals.items()
        ],
        Result(
            "size of the int8 bundle", sizes["int8"] / sizes["fp32"], 0.3, f"the fp32 bundle, {sizes['fp32']:.0f} MB",
            sizes["int8"], "MB", higher_is_better=False,
        ),
    ]  # fmt: skip


def on_radiographs(data: Path, model: str, root: Path) -> None:
    """What int8 changes about the probe of five folds on real images."""
    folds = thoraclip.split(radiographs(data, root), out=root / "manifest.parquet", folds=5)
    thoraclip.probe(folds, out=root / "probe", model=model, progress=True)
    run = read_run(root / "probe")
    original = load_original(run, folds)
    part = root / "part"
    part.mkdir()
    write_onnx(grey_classifier(original.classifier), part / MODEL)
    passes = Passes(original, images=2000, seed=0, progress=None, is_int8=True)
    fp32 = passes.equality(open_part(part, original, "fp32"))
    quantise(part / MODEL, passes.for_scales())
    told = passes.alikeness(open_part(part, original, "int8", quantisation="row-wise"))
    print(
        f"fp32 against torch: largest difference {fp32['largest_difference']:.1e} on {fp32['images']} images of fold 0"
    )
    print(f"int8: {told}")


def main() -> None:
    given = options(__doc__, count=96, rounds=5, python=sys.executable, keep=None, data=None, model="")
    with tempfile.TemporaryDirectory() as work:
        root = given.keep or Path(work)
        if given.data:
            on_radiographs(given.data, given.model, root)
            return
        folders = make_bundles(root, 400)
        times, count = speeds(root, folders, given.rounds, given.count)
        for name, told in times.items():
            print(f"{name}: {np.median(count / told):.1f} images/s, {ratio(times[TORCH], told):.2f} x torch fp32")
        for name, folder in folders.items():
            used = cold_start(given.python, folder, one_picture(root), given.rounds)
            print(
                f"{name}: {size_of(folder) / 1e6:.1f} MB, cold start {used.wall:.2f} s, {used.peak:.0f} MiB at the peak"
            )


if __name__ == "__main__":
    main()
