"""How cost grows with the number of images, and what a Ray cluster costs on one machine.

Each stage is run at a size and at twice that size: cost = begin + each x images, and the exponent of the growth between
the two. Indexing reads phantoms; embedding is by a CLIP of the shape ViT-B/32 with random weights; a probe of five
folds is fitted on synthetic features of its width, N images. The actors' rate is that between the first and the last
shard, since starting them takes the same time for any number of images; their features are compared with those of this
process, byte for byte. Actors that compute nothing show how much the one driver that writes can take in.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.measure import once, phantoms, vit_b_32
from benchmarks.results import Result

import thoraclip
from thoraclip.data.splits import split_folds
from thoraclip.methods.encoders import EncoderConfig, load_encoder
from thoraclip.ray_pool import over_ray
from thoraclip.tables.arrays import ArrayWriter
from thoraclip.tables.embeddings import EMBEDDINGS, embeddings_fingerprint
from thoraclip.tables.manifest import Manifest

WIDTH, SHARED_WIDTH = 768, 512
MILLION = 1_000_000


def growth(stage: str, cost: Callable[[int], float], size: int) -> list[Result]:
    """Seconds at `size` and at twice that, the less of two runs each: what a further million takes, and the
    exponent."""
    less, more = np.array([(cost(size), cost(2 * size)) for _ in range(2)]).min(axis=0).tolist()
    hours, exponent = (more - less) / size * MILLION / 3600, float(np.log2(more / less))
    return [
        Result.plain(f"{stage}, a further million images", hours, "hours", f"{size:,} and {2 * size:,} images"),
        Result.small(f"{stage}, exponent of its growth", exponent, None, "linear is 1", exponent, ""),
    ]


def costs(work: Path, model: str) -> dict[str, Callable[[int], float]]:
    """Stage -> seconds of it for so many images.

    `index` knows nothing before, `embed` reads files, `probe` has finished features, five folds and eleven penalties.
    """

    def index(images: int) -> float:
        root = phantoms(work, images).root
        return once(lambda: thoraclip.index(root, out=work / "again.parquet", fresh=True))

    def embed(images: int) -> float:
        manifest = phantoms(work, images)
        with tempfile.TemporaryDirectory(dir=work) as folder:
            return once(lambda: thoraclip.embed(manifest, model=model, out=folder))

    def probe(images: int) -> float:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            root = Path(folder)
            manifest = synthetic_features(root, images)
            return once(lambda: thoraclip.probe(manifest, out=root / "probe", embeddings=str(root / "features")))

    return {"index": index, "embed": embed, "probe": probe}


def synthetic_features(root: Path, images: int) -> Manifest:
    """A manifest of pictures that are not there, in five folds, and correlated features that tell three classes apart,
    roughly."""
    rng = np.random.default_rng(0)
    target, hidden = rng.integers(0, 3, images), rng.normal(size=(images, 60))
    hidden[:, 0] += 1.2 * target
    hidden[:, 1] += 0.8 * (target == 1)
    mixing = 0.3 * rng.normal(size=(60, WIDTH))
    pooled = (hidden @ mixing + 0.5 * rng.normal(size=(images, WIDTH))).astype(np.float32)
    names = ("image_id", "path", "sha256", "label", "patient")
    cells = ((f"i{i}", f"{i}.png", f"{i:064x}", "abc"[c], f"p{i // 3}") for i, c in enumerate(target))
    rows = [dict(zip(names, row, strict=True)) for row in cells]
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

        def note(done: int, total: int, seen: list[tuple[int, float]] = seen) -> None:
            seen.append((done, time.perf_counter()))

        began = time.perf_counter()
        thoraclip.embed(manifest, model=model, out=work / name, progress=note, **options)
        (first, at), (last, end) = seen[0], seen[-1]
        times[name] = at - began, (last - first) / (end - at)
    for file in ("pooled.npy", "projected.npy", "index.parquet", "embeddings.json"):
        if (work / "threads" / file).read_bytes() != (work / "ray" / file).read_bytes():
            raise SystemExit(f"{file}: the actors' features differ from those of one process")
    ours, plain = times["ray"][1], times["threads"][1]
    name = f"{workers} Ray actors, the same bytes"
    return [
        Result(name, ours / plain, None, "the threads of one process", ours, "images/s"),
        Result.plain("Ray, before the first shard is back", times["ray"][0], "s", "once a run"),
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

    starts, paths = range(0, rows * shards, rows), ["x" * 40] * rows
    tables = [pa.table({"row": pa.array(range(start, start + rows), pa.int64()), "path": paths}) for start in starts]
    times = [time.perf_counter() for _ in over_ray(Nothing(), tables, workers=1)]
    passed = rows * (shards - 1) / (times[-1] - times[0])
    writer = ArrayWriter(work / "written", EMBEDDINGS, total=rows * shards, token="")
    block = Nothing()(1)({"row": range(4 * rows)})
    del block["row"]
    written = rows * shards / once(lambda: [writer.append(block) for _ in range(shards // 4)])
    handed = "Ray, features handed to the driver by actors that compute none"
    each = "each write is on the disk before it is counted"
    return [
        Result.plain(handed, passed, "images/s", "the most it can take in"),
        Result.plain("features written to the disk", written, "images/s", each),
    ]


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Growth of three stages, and Ray on this machine."""
    model = vit_b_32(work, quick=quick)
    of_stage = costs(work, model)
    sizes = (48, 48, 300) if quick else (1500, 400, 10_000)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        there = by_ray(Path(folder), phantoms(work, 600 if quick else 1536), model, workers=2)
        there += to_the_writer(Path(folder), 8 if quick else 200)
    grown = [growth(stage, cost, size) for (stage, cost), size in zip(of_stage.items(), sizes, strict=True)]
    return [*chain(*grown), *there]
