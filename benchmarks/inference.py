"""A bundle against the tower in torch that it was made of: images/s, size, memory, cold start, and what int8 costs.

    python -m benchmarks.inference
    python -m benchmarks.inference --data covid3-talo --model dino-minilm
    python -m benchmarks.inference --python small-venv/bin/python

Speed needs no trained weights: a CLIP of the shape ViT-B/32 at 224 pixels with random weights, a probe on phantoms,
exported in fp32 and, without asking whether its answers stay alike, in int8. Torch in fp32, in bf16 and the bundles see
the same pictures in turn, in one process; rates are medians of the rounds, ratios are medians of the rounds' own
ratios. The cold start is a process of its own: `thoraclip predict BUNDLE one.png`, from its start to its end.

With --data (a folder with manifest.csv, path column rel_path, label, patient_id) and --model: the probe of five folds
on real radiographs, and what int8 changes about it: each image by the head of the fold that held it out.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
from benchmarks.measure import Used, in_turn, launch, options, phantoms, radiographs, ratio, typical, vit_b_32
from benchmarks.results import Result, table

import thoraclip
from thoraclip.bundle import parity
from thoraclip.bundle.onnx import _quantise_convolutions
from thoraclip.bundle.opening import open_bundle
from thoraclip.bundle.runtime import has_exact_bytes
from thoraclip.bundle.signed_weights import open_signed
from thoraclip.imaging import decode, fit
from thoraclip.methods.original import load_original
from thoraclip.methods.predictors import find_manifest, read_run
from thoraclip.models.onnx_files import quiet_exporter
from thoraclip.models.sessions import onnxruntime, open_session
from thoraclip.tables.manifest import write_manifest
from thoraclip.threads import cores

TORCH, TORCH_BF16 = "torch fp32, batches of 32", "torch bf16 autocast, batches of 32"
FP32, INT8, FILES = "bundle fp32", "bundle int8", "bundle int8, from files: decode, predict, calibrate, flag"
CALIBRATION = 32
GOALS = {FP32: 1, INT8: 4, FILES: 3}


def export(run: Path, out: Path, *, int8: bool, images: int) -> dict[str, Any]:
    """A bundle, whatever int8 changes: the answers of a network that has learned nothing are not alike. Returns its
    parity."""
    with mock.patch.multiple(parity, INT8_ACCURACY=1.0, INT8_FLIPS=1.0):
        return thoraclip.export(run, out=out, int8=int8, images=images)


def shared_bundles(work: Path, *, quick: bool = False) -> dict[str, Path]:
    """`fp32` and `int8` bundles of a probe on the random tower, with `quick` on tiny-clip; made once for several
    benchmarks."""
    root = work / "inference"
    folders = {name: root / f"bundle-{name}" for name in ("fp32", "int8")}
    if all(folder.is_dir() for folder in folders.values()):
        return folders
    manifest = phantoms(root, 60 if quick else 400)
    write_manifest(root / "manifest.parquet", manifest)  # beside the run, where an export looks for it
    thoraclip.probe(manifest, out=root / "probe", model=vit_b_32(work, quick=quick))
    for name, folder in folders.items():
        export(root / "probe", folder, int8=name == "int8", images=200)
    return folders


def speeds(folders: dict[str, Path], rounds: int, count: int) -> dict[str, npt.NDArray[np.float64]]:
    """Who -> f64[rounds] seconds for the same `count` pictures."""
    run = read_run(folders["fp32"].parent / "probe")
    manifest = find_manifest(run)
    classifier = load_original(run, manifest).classifier
    paths = manifest.paths()[:count]
    greys = np.stack([fit(decode(path).pixels, classifier.preprocess) for path in paths])
    opened = {name: open_bundle(folder) for name, folder in folders.items()}
    few = opened["int8"].together
    groups = [paths[i : i + few] for i in range(0, len(paths), few)]

    def torch_in(precision: str) -> Callable[[], object]:
        one = replace(classifier, encoder=replace(classifier.encoder, precision=precision))
        return lambda: [one.look(greys[i : i + 32]) for i in range(0, len(greys), 32)]

    def from_files() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(opened["int8"].classify_each, groups))

    ways: dict[str, Callable[[], Any]] = {TORCH: torch_in("fp32"), TORCH_BF16: torch_in("bf16")}
    ways |= {FP32: lambda: opened["fp32"].look(greys), INT8: lambda: opened["int8"].look(greys), FILES: from_files}
    for work in ways.values():
        work()
    return in_turn(ways, rounds)


def quantisers(folders: dict[str, Path], rounds: int, count: int) -> list[Result]:
    """Our int8 file against those that ONNX Runtime's own tools make of the fp32 one: speed in batches of 8, the
    error of the features, and what the other images of a batch change about them."""
    from onnxruntime.quantization import quantize_dynamic

    root = folders["fp32"].parent
    run = read_run(root / "probe")
    manifest = find_manifest(run)
    spec = open_bundle(folders["fp32"]).preprocess
    greys = np.stack([fit(decode(path).pixels, spec) for path in manifest.paths()[: count + CALIBRATION]])
    shown, greys = greys[:CALIBRATION], greys[CALIBRATION:]
    files = {name: folder / "model.onnx" for name, folder in folders.items()}
    files |= {name: root / f"{name}.onnx" for name in ("quantize_dynamic", "quantize_static")}
    onnx.save(onnx.load(str(files["fp32"])), root / "whole.onnx")  # these tools lose what lies beside a file
    with quiet_exporter():
        quantize_dynamic(root / "whole.onnx", files["quantize_dynamic"])
    _quantise_convolutions(root / "whole.onnx", files["quantize_static"], shown)
    opened = open_signed if has_exact_bytes() else open_session  # as a bundle is opened
    sessions = {name: open_session(files[name]) for name in ("fp32", "quantize_dynamic")}
    sessions |= {name: opened(files[name], onnxruntime.SessionOptions()) for name in ("int8", "quantize_static")}

    def features(name: str, size: int = 8) -> npt.NDArray[np.float32]:
        parts = [greys[at : at + size] for at in range(0, len(greys), size)]
        return np.concatenate([sessions[name].run(["features"], {"greys": part})[0] for part in parts])

    exact = features("fp32")
    error = {name: float(np.sqrt(((features(name) - exact) ** 2).mean() / exact.var(axis=0).mean())) for name in files}
    largest = float(np.abs(exact).max())
    company = {name: float(np.abs(features(name, 1) - features(name)).max()) / largest for name in files}
    times = in_turn({name: partial(features, name) for name in files}, rounds)
    rows = []
    for name in ("quantize_dynamic", "quantize_static"):
        rate = float(np.median(len(greys) / times["int8"]))
        rows += [
            Result(f"int8 against {name}", ratio(times[name], times["int8"]), 1, name, rate, "images/s"),
            Result.small(
                f"error of int8 features against {name}",
                error["int8"] / error[name],
                1,
                f"{name}, {error[name]:.3f} of their standard deviation",
                error["int8"],
                "of their standard deviation",
            ),
            Result.small(
                f"what a batch changes about int8 features, against {name}",
                company["int8"] / company[name] if company[name] else None,
                0.01 if company[name] else None,
                f"{name}, {company[name]:.1e} of the largest",
                company["int8"],
                "of the largest",
            ),
        ]
    return rows


def cold_start(bundle: Path, rounds: int, *, python: str = sys.executable) -> Used:
    """Of `thoraclip predict` on one picture of the probe's, under a name of its own."""
    known = find_manifest(read_run(bundle.parent / "probe")).paths()[0]
    picture = shutil.copy(known, bundle.parent / "one.png")
    return typical([launch("predict", bundle, picture, python=python) for _ in range(rounds)])


def measure(folders: dict[str, Path], rounds: int, count: int) -> list[Result]:
    """Speed of the bundles against torch, and their size."""
    times = speeds(folders, rounds, count)
    rate = {name: float(np.median(count / spent)) for name, spent in times.items()}
    bf16, torch = ratio(times[TORCH], times[TORCH_BF16]), f"{TORCH}: {rate[TORCH]:.1f} images/s"
    print(f"{TORCH_BF16}: {rate[TORCH_BF16]:.1f} images/s, {bf16:.2f} x torch fp32")
    sizes = {name: sum(f.stat().st_size for f in folder.iterdir()) / 1e6 for name, folder in folders.items()}
    small, told = sizes["int8"] / sizes["fp32"], f"the fp32 bundle, {sizes['fp32']:.1f} MB"
    rows = [Result(n, ratio(times[TORCH], times[n]), goal, torch, rate[n], "images/s") for n, goal in GOALS.items()]
    return [*rows, Result.small("size of the int8 bundle", small, 0.3, told, sizes["int8"], "MB")]


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Bundles of a probe on a random ViT-B/32 against torch; with `quick` on tiny-clip."""
    folders, (rounds, count) = shared_bundles(work, quick=quick), (1, 16) if quick else (5, 96)
    return [*measure(folders, rounds, count), *quantisers(folders, rounds, count)]


def on_radiographs(data: Path, model: str, root: Path) -> None:
    """What int8 changes about the probe of five folds on real images."""
    folds = thoraclip.split(radiographs(data, root), out=root / "manifest.parquet", folds=5)
    thoraclip.probe(folds, out=root / "probe", model=model, progress=True)
    found = export(root / "probe", root / "bundle", int8=True, images=2000)
    print(f"fp32 against torch, fold 0: {found['fp32']}\nint8: {found['int8']}")


def main() -> None:
    given = options(__doc__, count=96, rounds=5, python=sys.executable, data=None, model="")
    with tempfile.TemporaryDirectory() as folder:
        if given.data:
            on_radiographs(given.data, given.model, Path(folder))
            return
        bundles = shared_bundles(Path(folder))
        both = (measure, quantisers)
        print(table([row for of in both for row in of(bundles, given.rounds, given.count)]))
        for name, bundle in bundles.items():
            used = cold_start(bundle, given.rounds, python=given.python)
            print(f"{name}: cold start {used.wall:.2f} s, {used.peak:.0f} MiB at the peak")


if __name__ == "__main__":
    main()
