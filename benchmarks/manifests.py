"""Time, rate and peak memory of what is done to a manifest of millions of images; no picture is opened.

    python -m benchmarks.run --only manifests

A manifest is made up (patients of 1 to 10 images, three classes, a few images without a label, one file in a thousand
twice) and written; every stage after that is a process of its own, so that its peak memory is its own, and reads the
file first.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from benchmarks.measure import MIB, Used, launch, options
from benchmarks.results import Result

from thoraclip.tables.arrays import ArrayWriter
from thoraclip.tables.embeddings import EMBEDDINGS, read_embeddings
from thoraclip.tables.manifest import COLUMNS, Manifest, read_manifest, write_manifest

ROWS, QUICK_ROWS = 10_000_000, 20_000
LIMIT_GB = 4
_BLOCK, _SHUFFLED = 1 << 17, 1 << 10


def _digits(random: np.random.Generator, rows: int, digits: int) -> list[str]:
    """Random hexadecimal numbers."""
    text = random.bytes(rows * digits // 2).hex()
    return [text[start : start + digits] for start in range(0, len(text), digits)]


def _block(random: np.random.Generator, rows: int, first_patient: int) -> tuple[pa.Table, int]:
    """The next rows, and the number of the next patient."""

    def some(values: Sequence[str | None], shares: Sequence[float]) -> pa.Array:
        return pa.array(values, pa.string()).take(pa.array(random.choice(len(values), rows, p=shares)))

    number = first_patient + np.repeat(np.arange(rows), random.integers(1, 11, rows))[:rows]
    patients, studies = [f"p{n}" for n in 10_000_000 + number], random.integers(50_000_000, 59_999_999, rows)
    places = zip(patients, studies, _digits(random, rows, 8), strict=True)
    path = pa.array([f"{patient[:5]}/{patient}/s{study}/{name}.png" for patient, study, name in places])
    twice = np.where(random.random(rows) < 0.001, random.integers(0, rows, rows), np.arange(rows))
    size = random.integers(0, 200, rows)
    columns = {
        "image_id": path,
        "path": path,
        "sha256": pa.array(_digits(random, rows, 64)).take(pa.array(twice)),
        "phash": _digits(random, rows, 16),
        "label": some(["COVID-19", "Non-COVID", "Normal", None], [0.3, 0.3, 0.39, 0.01]),
        "patient": patients,
        "source": some(["bimcv", "mimic-cxr", "padchest", "rsna"], [0.2, 0.4, 0.2, 0.2]),
        "view": some(["AP", "PA", "LATERAL"], [0.4, 0.4, 0.2]),
        "sex": some(["F", "M", None], [0.45, 0.45, 0.1]),
        "age_years": random.integers(18, 95, rows),
        "width": 1024 + 8 * size,
        "height": 1024 + 8 * (size % 50),
        "mode": some(["L", "RGB"], [0.9, 0.1]),
        "format": some(["PNG", "JPEG"], [0.7, 0.3]),
    }
    filled = [pa.nulls(rows, kind) if name not in columns else columns[name] for name, kind in COLUMNS.items()]
    typed = [pa.array(cells).cast(kind) for cells, kind in zip(filled, COLUMNS.values(), strict=True)]
    return pa.Table.from_arrays(typed, schema=pa.schema(list(COLUMNS.items()))), int(number[-1]) + 1


def make(rows: int, root: Path) -> Manifest:
    """So many images that are not there, but for a few, which are empty files: one has to be found."""
    random, blocks, patient = np.random.default_rng(0), [], 0
    for start in range(0, rows, _BLOCK):
        block, patient = _block(random, min(_BLOCK, rows - start), patient)
        blocks.append(block)
        for path in block["path"].to_pylist()[:1000:10]:  # of many patients, so that every fold has some
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
    return Manifest(pa.concat_tables(blocks), root)


def index(work: Path) -> None:
    """An index of embeddings of one number, in an order of its own; the number is the manifest's row."""
    manifest, folder = read_manifest(work / "manifest.parquet"), work / "embeddings"
    starts = np.random.default_rng(1).permutation(range(0, len(manifest), _SHUFFLED))
    table = pa.concat_tables([manifest.table.slice(start, _SHUFFLED) for start in starts])
    order = np.concatenate([np.arange(start, min(start + _SHUFFLED, len(manifest))) for start in starts])
    writer = ArrayWriter(folder, EMBEDDINGS, total=len(order), token="")
    writer.append(dict.fromkeys(EMBEDDINGS.arrays, order[:, None]))
    facts = {"encoder": {}, "preprocess": {}}
    writer.finish(Manifest(table, manifest.root), facts=facts, fingerprint="")


def join(work: Path) -> None:
    """Embeddings in the order of the manifest."""
    manifest, found = read_manifest(work / "manifest.parquet"), read_embeddings(work / "embeddings")
    if not np.array_equal(found.pooled[found.rows_for(manifest)][:, 0], np.arange(len(manifest), dtype=np.float32)):
        raise SystemExit("joined wrongly")


def keep(work: Path, folds: Sequence[int]) -> None:
    """The images of some folds, as a manifest of their own."""
    write_manifest(work / "kept.parquet", read_manifest(work / "folds.parquet", where={"fold": list(folds)}))


STAGES = {
    "write": lambda work, rows: write_manifest(work / "manifest.parquet", make(rows, work / "root")),
    "read": lambda work, rows: read_manifest(work / "manifest.parquet"),
    "one": lambda work, rows: keep(work, [0]),
    "four": lambda work, rows: keep(work, [1, 2, 3, 4]),
    "index": lambda work, rows: index(work),
    "join": lambda work, rows: join(work),
}
"""What a process of this module does."""


def measure(work: Path, rows: int) -> list[Result]:
    """Peak memory and seconds of the process of each stage."""
    manifest, folds = work / "manifest.parquet", work / "folds.parquet"

    def own(stage: str) -> Used:
        words = ["--work", work, "--rows", rows, "--stage", stage]
        return launch(*words, start=("-m", "benchmarks.manifests"))

    def split(*how: object) -> Used:
        return launch("split", manifest, *how)

    used = {
        "make up and write": own("write"),
        "read and validate": own("read"),
        "split into 5 folds": split("--folds", 5, "--out", folds),
        "split by fractions": split("--fractions", "0.7,0.1,0.2", "--out", work / "s.parquet"),
        "filter, one fold is kept": own("one"),
        "filter, four folds of five are kept": own("four"),
        "index": own("index"),
        "join with embeddings in another order": own("join"),
        "check --no-pictures": launch("check", folds, "--no-pictures", "--strict", "--out", work / "check"),
    }
    del used["index"]
    found, size = [], f"{rows / 1e6:g}M rows"
    for what, one in used.items():
        peak = one.peak * MIB / 1e9
        name, limit = f"{size}: {what}, peak memory / {LIMIT_GB} GB", f"{LIMIT_GB} GB of memory"
        found.append(Result.small(name, peak / LIMIT_GB, 1.0, limit, peak, "GB"))
        found.append(Result.plain(f"{size}: {what}, time", one.wall, "s"))
    return found


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Ten million rows."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return measure(Path(folder), QUICK_ROWS if quick else ROWS)


if __name__ == "__main__":
    given = options(__doc__, rows=ROWS, work=None, stage="")
    STAGES[given.stage](given.work, given.rows)
