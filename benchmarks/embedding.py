"""Speed of the frozen path: bf16 against fp32, decoding and the pixel cache against encoding, a probe against re-encoding.

    python benchmarks/embedding.py --model tiny-clip --images 600

Draws phantoms, prints ratios that were all measured in this one run; the machine's speed drops out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from thoraclip.data.batches import grey_batches
from thoraclip.data.index import index
from thoraclip.data.phantom import PhantomConfig, write_phantoms
from thoraclip.models.dual_encoder import load_dual_encoder
from thoraclip.models.heads import fit_lbfgs


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time of a few runs after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def once(work: Callable[[], object]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-clip")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=30, help="of the way that runs the encoder again every epoch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = write_phantoms(Path(folder) / "phantoms", PhantomConfig(images=arguments.images)).root
        manifest = index(root, layout="covid-qu-ex").manifest
        exact = load_dual_encoder(arguments.model, precision="fp32")
        spec, warm = exact.preprocess, Path(folder) / "pixels"
        batches = [greys for _, greys in grey_batches(manifest, spec, batch_size=64)]
        decoding = seconds(lambda: [None for _ in grey_batches(manifest, spec, batch_size=64)])
        caching = once(lambda: [None for _ in grey_batches(manifest, spec, batch_size=64, pixels=warm)])
        feeding = seconds(
            lambda: [exact.expand(greys) for _, greys in grey_batches(manifest, spec, batch_size=64, pixels=warm)]
        )
        fp32 = seconds(lambda: [exact.encode_greys(greys) for greys in batches])
        rough = load_dual_encoder(arguments.model, precision="bf16")
        bf16 = seconds(lambda: [rough.encode_greys(greys) for greys in batches])
        features = np.concatenate([exact.encode_greys(greys)[0] for greys in batches])
    labels = manifest.label_set()
    targets, grid = manifest.targets(labels), np.geomspace(10, 1e-4, 11).tolist()
    probe = seconds(lambda: fit_lbfgs(features, targets, labels, l2=grid, weighting="none"))
    n = len(manifest)
    print(f"model {arguments.model}, {n} images, medians of 3 after a warm-up, one run")
    print(f"encoding fp32              {n / fp32:8.0f} images/s   1.00")
    print(f"encoding bf16              {n / bf16:8.0f} images/s   {fp32 / bf16:.2f} x fp32")
    for what, time_taken in (
        ("decoding and resizing", decoding),
        ("the same, kept in a cache", caching),
        ("warm cache to the door", feeding),
    ):
        share = time_taken / min(fp32, bf16)
        print(f"{what:<26} {n / time_taken:8.0f} images/s   {share:.3f} x the faster encoding's time")
    print(f"probe, 11 penalties        {probe:8.2f} s")
    again = arguments.epochs * fp32
    print(
        f"{arguments.epochs} epochs of re-encoding    {again:8.2f} s          {again / (fp32 + probe):.1f} x the time of encoding once and probing"
    )


if __name__ == "__main__":
    main()
