"""A bundle against the tower in torch that it was made of: images/s, size, memory, cold start, and what int8 costs.

    python benchmarks/inference.py --out inference.md
    python benchmarks/inference.py --data covid3-talo --model dino-minilm
    python benchmarks/inference.py --keep FOLDER --python small-venv/bin/python

Speed needs no trained weights: a CLIP of the shape ViT-B/32 at 224 pixels with random weights, a probe on phantoms, exported in
fp32 and, without asking whether its answers stay alike, in int8. Torch in fp32, in bf16 and the bundles see
the same pictures in turn, in one process; rates are medians of the rounds, ratios are medians of the rounds' own ratios. The
cold start is a process of its own: `thoraclip predict BUNDLE one.png`, from its start to its end.

With --data (a folder with manifest.csv, path column rel_path, label, patient_id) and --model: the probe of five folds on real
radiographs, and what int8 changes about it: each image by the head of the fold that held it out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import thoraclip
from thoraclip.deploy import parity
from thoraclip.deploy.bundle import MODEL
from thoraclip.deploy.onnx import grey_classifier, quantise, write_onnx
from thoraclip.deploy.passes import Passes, open_part
from thoraclip.deploy.runtime import open_bundle
from thoraclip.imaging import decode, fit
from thoraclip.methods.original import load_original
from thoraclip.methods.predictors import find_manifest, read_run

Greys = npt.NDArray[np.uint8]


def save_vit_b_32(folder: Path) -> str:
    """A CLIP of the shape ViT-B/32 with random weights and a small text tower, in Transformers format."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 32,
    }
    text = {"vocab_size": 768, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    tiny = resources.files("thoraclip") / "models" / "assets" / "tiny-clip"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    (folder / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "resample": 3, '
        '"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}'
    )
    return str(folder)


def make_bundles(root: Path, images: int) -> dict[str, Path]:
    """`fp32` and `int8` bundles of a probe on the random tower; made once."""
    folders = {name: root / f"bundle-{name}" for name in ("fp32", "int8")}
    if all(folder.is_dir() for folder in folders.values()):
        return folders
    model = save_vit_b_32(root / "vit-b-32")
    thoraclip.phantom(root / "phantoms", images=images)
    found = thoraclip.index(root / "phantoms", out=root / "manifest.parquet")
    thoraclip.probe(found.manifest, out=root / "probe", model=model)
    parity.INT8_ACCURACY = parity.INT8_FLIPS = 1.0  # speed is asked for here, of a network that has learned nothing
    for name, folder in folders.items():
        thoraclip.export(root / "probe", out=folder, int8=name == "int8", images=200, progress=True)
    return folders


def rate(work: Callable[[], Any], images: int) -> float:
    """Images a second of one call."""
    began = time.perf_counter()
    work()
    return images / (time.perf_counter() - began)


def speeds(root: Path, folders: dict[str, Path], rounds: int, count: int) -> list[list[str]]:
    """Rows of (who, images/s, times torch fp32)."""
    run = read_run(root / "probe")
    manifest = find_manifest(run)
    classifier = load_original(run, manifest).classifier
    greys = np.stack([fit(decode(path).pixels, classifier.preprocess) for path in manifest.paths()[:count]])
    batches = [greys[i : i + 32] for i in range(0, len(greys), 32)]
    opened = {name: open_bundle(folder) for name, folder in folders.items()}
    paths = manifest.paths()[:count]

    def torch_in(precision: str) -> Callable[[], None]:
        from dataclasses import replace

        encoder = replace(classifier.encoder, precision=precision)
        one = replace(classifier, encoder=encoder)
        return lambda: [one.look(batch) for batch in batches] and None

    from concurrent.futures import ThreadPoolExecutor

    few = opened["int8"].together
    groups = [paths[i : i + few] for i in range(0, len(paths), few)]

    def from_files() -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(opened["int8"].classify_each, groups))

    ways: dict[str, Callable[[], Any]] = {
        "torch fp32, batches of 32": torch_in("fp32"), "torch bf16 autocast, batches of 32": torch_in("bf16"),
        "bundle fp32": lambda: opened["fp32"].look(greys), "bundle int8": lambda: opened["int8"].look(greys),
        "bundle int8, from files: decode, predict, calibrate, flag": from_files,
    }  # fmt: skip
    for work in ways.values():
        work()
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            seen[name].append(rate(work, count))
    first = seen["torch fp32, batches of 32"]
    return [
        [
            name,
            f"{statistics.median(told):.1f}",
            f"{statistics.median(t / f for t, f in zip(told, first, strict=True)):.2f}",
        ]
        for name, told in seen.items()
    ]


LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([done.returncode, wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, done.stderr.decode()[-400:]]))
"""
"""A small process that starts another: the peak of memory of a child counts what its parent had when it was forked."""


def cold_start(python: str, bundle: Path, picture: Path, rounds: int) -> tuple[float, float, float]:
    """(median wall seconds, median processor seconds, MiB at the peak) of `thoraclip predict` on one picture."""
    seen = []
    for _ in range(rounds):
        command = [python, "-m", "thoraclip", "predict", str(bundle), str(picture)]
        done = subprocess.run(
            [sys.executable, "-S", "-c", LAUNCHER, *command], capture_output=True, text=True, check=True
        )
        code, wall, work, peak, told = json.loads(done.stdout)
        if code:
            sys.exit(f"predict failed: {told}")
        seen.append((wall, work, peak))
    walls, works, peaks = zip(*seen, strict=True)
    return statistics.median(walls), statistics.median(works), max(peaks)


def on_radiographs(data: Path, model: str, root: Path) -> list[str]:
    """What int8 changes about the probe of five folds on real images."""
    found = thoraclip.index(
        data, out=root / "real.parquet", csv=data / "manifest.csv", path_column="rel_path", patient_column="patient_id"
    )
    folds = thoraclip.split(found.manifest, out=root / "manifest.parquet", folds=5)
    thoraclip.probe(folds, out=root / "probe", model=model, progress=True)
    run = read_run(root / "probe")
    original = load_original(run, folds)
    part = root / "part"
    part.mkdir()
    write_onnx(grey_classifier(original.classifier), part / MODEL)
    passes = Passes(original, images=2000, seed=0, progress=None, is_int8=True)
    fp32 = passes.equality(open_part(part, original, "fp32"))
    quantise(part / MODEL, part / "int8.onnx", passes.for_scales())
    share = (part / "int8.onnx").stat().st_size / (part / MODEL).stat().st_size
    (part / "int8.onnx").replace(part / MODEL)
    told = passes.alikeness(open_part(part, original, "int8", quantisation="row-wise"))
    change = told["accuracy"]
    return [
        f"fp32 against torch: largest difference {fp32['largest_difference']:.1e} on {fp32['images']} images of fold 0",
        f"int8, {told['images']} images of {change['patients']} patients: {told['other_answers']} other answers "
        f"({100 * told['share']:.2f} %, at most {100 * told['share_high']:.2f} %); accuracy {100 * change['original']:.2f} -> "
        f"{100 * change['exported']:.2f} %, change {100 * change['change']:+.2f} [{100 * change['low']:+.2f}, {100 * change['high']:+.2f}] points; "
        f"{share:.3f} x the size of the fp32 file",
    ]  # fmt: skip


def main() -> None:
    """Print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400, help="phantoms of the speed part")
    parser.add_argument("--count", type=int, default=96, help="pictures in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter of the cold start, such as that of a small install"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps the bundles")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        if given.data:
            lines += on_radiographs(given.data, given.model, Path(work))
        else:
            root = given.keep or Path(work)
            folders = make_bundles(root, given.images)
            lines += ["| | images/s | x torch fp32 |", "|---|---|---|"]
            lines += [f"| {' | '.join(row)} |" for row in speeds(root, folders, given.rounds, given.count)]
            tower = (root / "vit-b-32" / "model.safetensors").stat().st_size
            whole = {n: sum(f.stat().st_size for f in folder.iterdir()) for n, folder in folders.items()}
            lines += ["", f"size of the bundle, int8 / fp32: {whole['int8'] / 1e6:.1f} / {whole['fp32'] / 1e6:.1f} MB = "
                      f"{whole['int8'] / whole['fp32']:.3f}; checkpoint {tower / 1e6:.1f} MB"]  # fmt: skip
            picture = root / "one.png"
            shutil.copy(find_manifest(read_run(root / "probe")).paths()[0], picture)
            for name, folder in folders.items():
                wall, work_seconds, peak = cold_start(given.python, folder, picture, given.rounds)
                lines.append(
                    f"cold start, {name}: {wall:.2f} s ({work_seconds:.2f} s of processor time), {peak:.0f} MiB at the peak"
                )
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
