"""How cost grows with the number of images, and what a Ray cluster costs on one machine.

Each stage is run at a size and at twice that size: cost = begin + each x images, and the exponent of the growth between the two.
Indexing reads phantoms; embedding is by a CLIP of the shape ViT-B/32 with random weights; a probe of five folds is fitted on
synthetic features of its width, N images. The actors' rate is that between the first and the last shard, since starting them
takes the same time for any number of images; their features are compared with those of this process, byte for byte. Actors that compute
nothing show how much the one driver that writes can take in.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import once, phantoms, write_vit_b_32
from benchmarks.results import Result

import thoraclip
from thoraclip.data.splits import split_folds
from thoraclip.methods.embed import EncoderConfig, load_encoder
from thoraclip.ray_pool import over_ray
from thoraclip.tables.arrays import ArrayWriter
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint
from thoraclip.tables.manifest import Manifest

WIDTH, SHARED_WIDTH = 768, 512
MILLION = 1_000_000


def growth(stage: str, cost: Callable[[int], float], size: int) -> list[Result]:
    """Seconds at `size` and at twice that, the less of two runs each: what a further million takes, and the exponent."""
    less, more = np.array([(cost(size), cost(2 * size)) for _ in range(2)]).min(axis=0).tolist()
    exponent = float(np.log2(more / less))
    each = (more - less) / size
    return [
        Result(f"{stage}, a further million images", None, None, f"{size:,} and {2 * size:,} images", each * MILLION / 3600, "hours"),
        Result(f"{stage}, exponent of its growth", exponent, None, "linear is 1", exponent, "", higher_is_better=False),
    ]  # fmt: skip


def indexing(work: Path) -> Callable[[int], float]:
    """Seconds of `index` for so many phantoms, nothing known before."""

    def cost(images: int) -> float:
        root = phantoms(work, images).root
        return once(lambda: thoraclip.index(root, out=work / "again.parquet", fresh=True))

    return cost


def embedding(work: Path, model: str) -> Callable[[int], float]:
    """Seconds of `embed` from files."""
    prepared = load_encoder(EncoderConfig(model=model)).arithmetic
    print(prepared, file=sys.stderr)

    def cost(images: int) -> float:
        manifest = phantoms(work, images)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            return once(lambda: thoraclip.embed(manifest, model=model, out=folder))

    return cost


def probing(work: Path) -> Callable[[int], float]:
    """Seconds of `probe`, five folds and eleven penalties, on finished features."""

    def cost(images: int) -> float:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            root = Path(folder)
            manifest = synthetic_features(root, images)
            return once(lambda: thoraclip.probe(manifest, out=root / "probe", embeddings=str(root / "features")))

    return cost


def synthetic_features(root: Path, images: int, *, seed: int = 0) -> Manifest:
    """A manifest of pictures that are not there, in five folds, and correlated features that tell three classes apart, roughly."""
    rng = np.random.default_rng(seed)
    target, hidden = rng.integers(0, 3, images), rng.normal(size=(images, 60))
    hidden[:, 0] += 1.2 * target
    hidden[:, 1] += 0.8 * (target == 1)
    mixing = 0.3 * rng.normal(size=(60, WIDTH))
    pooled = (hidden @ mixing + 0.5 * rng.normal(size=(images, WIDTH))).astype(np.float32)
    rows = [
        {
            "image_id": f"i{i}",
            "path": f"{i}.png",
            "sha256": f"{i:064x}",
            "label": "abc"[target[i]],
            "patient": f"p{i // 3}",
        }
        for i in range(images)
    ]
    manifest = split_folds(Manifest.from_rows(rows, root), folds=5, seed=0)
    encoder = load_encoder(EncoderConfig())
    about, spec = encoder.description, encoder.preprocess.as_dict()
    writer = ArrayWriter(root / "features", EMBEDDINGS, total=images, token="")
    writer.append({"pooled": pooled, "projected": pooled[:, :SHARED_WIDTH]})
    fingerprint = embeddings_fingerprint(manifest, about, spec)
    writer.finish(manifest, facts={"encoder": about, "preprocess": spec}, fingerprint=fingerprint)
    return manifest


def by_ray(work: Path, manifest: Manifest, model: str, *, workers: int) -> list[Result]:
    """Actors against the threads of one process, on the same images; `work` is empty."""
    times: dict[str, tuple[float, float]] = {}
    for name, options in (("threads", {}), ("ray", {"engine": "ray", "workers": workers})):
        seen: list[tuple[int, float]] = []
        began = time.perf_counter()
        thoraclip.embed(
            manifest, model=model, out=work / name,
            progress=lambda done, total, seen=seen: seen.append((done, time.perf_counter())), **options,
        )  # fmt: skip
        (first, at), (last, end) = seen[0], seen[-1]
        times[name] = at - began, (last - first) / (end - at)
    for file in ("pooled.npy", "projected.npy", "index.parquet", "embeddings.json"):
        if (work / "threads" / file).read_bytes() != (work / "ray" / file).read_bytes():
            raise SystemExit(f"{file}: the actors' features differ from those of one process")
    ours, plain = times["ray"][1], times["threads"][1]
    return [
        Result(
            f"{workers} Ray actors, the same bytes", ours / plain, None, "the threads of one process", ours, "images/s"
        ),
        Result("Ray, before the first shard is back", None, None, "once a run", times["ray"][0], "s"),
    ]


class Nothing:
    """An actor that gives features without computing any: what is left is Ray, and the way to the one who writes."""

    def __call__(self, threads: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Threads: not used."""

        def work(shard: dict[str, Any]) -> dict[str, Any]:
            rows = len(shard["row"])
            pooled, projected = np.ones((rows, WIDTH), np.float32), np.ones((rows, SHARED_WIDTH), np.float32)
            return {"row": shard["row"], "pooled": pooled, "projected": projected}

        return work


def to_the_writer(work: Path, shards: int, *, rows: int = 512) -> list[Result]:
    """The most that one driver can take in: from actors that compute nothing, and into the files."""
    import pyarrow as pa

    tables = [
        pa.table({"row": pa.array(range(number * rows, (number + 1) * rows), pa.int64()), "path": ["x" * 40] * rows})
        for number in range(shards)
    ]
    times = [time.perf_counter() for _ in over_ray(Nothing(), tables, workers=1)]
    passed = rows * (shards - 1) / (times[-1] - times[0])
    writer = ArrayWriter(work / "written", EMBEDDINGS, total=rows * shards, token="")
    block = {
        "pooled": np.ones((4 * rows, WIDTH), np.float32),
        "projected": np.ones((4 * rows, SHARED_WIDTH), np.float32),
    }
    written = rows * shards / once(lambda: [writer.append(block) for _ in range(shards // 4)])
    return [
        Result("Ray, features handed to the driver by actors that compute none", None, None, "the most it can take in", passed, "images/s"),
        Result("features written to the disk", None, None, "each write is on the disk before it is counted", written, "images/s"),
    ]  # fmt: skip


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Growth of three stages, and Ray on this machine."""
    model = "tiny-clip" if quick else write_vit_b_32(work / "vit-b-32")
    few = 48 if quick else 400
    with tempfile.TemporaryDirectory(dir=work) as folder:
        there = [
            *by_ray(Path(folder), phantoms(work, 600 if quick else 1536), model, workers=2),
            *to_the_writer(Path(folder), 8 if quick else 200),
        ]
    return [
        *growth("index", indexing(work), 48 if quick else 1500),
        *growth("embed", embedding(work, model), few),
        *growth("probe", probing(work), 300 if quick else 10_000),
        *there,
    ]
