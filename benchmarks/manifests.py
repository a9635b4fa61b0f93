"""Time, rate and peak memory of what is done to a manifest of millions of images; no picture is opened.

    python -m benchmarks.manifests --rows 10000000

A manifest is made up (patients of 1 to 10 images, three classes, a few images without a label, one file in a thousand twice)
and written; every stage after that is a process of its own, so that its peak memory is its own, and reads the file first.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from benchmarks.measure import Used, launch, options
from benchmarks.results import Result

from thoraclip.tables.arrays import finish_arrays
from thoraclip.tables.embeddings import EMBEDDINGS, read_embeddings
from thoraclip.tables.manifest import COLUMNS, Manifest, read_manifest, write_manifest
from thoraclip.threads import cores

ROWS, QUICK_ROWS = 10_000_000, 20_000
LIMIT_GB = 4
_BLOCK, _SHUFFLED = 1 << 17, 1 << 10


def _texts(letters: npt.NDArray[np.uint8]) -> pa.Array:
    """Text of u8[N, L] letters."""
    ends = np.arange(len(letters) + 1, dtype=np.int32) * letters.shape[1]
    return pa.StringArray.from_buffers(len(letters), pa.py_buffer(ends), pa.py_buffer(letters.tobytes()))


def _digits(random: np.random.Generator, rows: int, digits: int) -> pa.Array:
    """Random hexadecimal numbers."""
    text = random.bytes(rows * digits // 2).hex().encode()
    return _texts(np.frombuffer(text, dtype=np.uint8).reshape(rows, digits))


def _some(random: np.random.Generator, rows: int, values: Sequence[str | None], shares: Sequence[float]) -> pa.Array:
    return pa.array(values, pa.string()).take(pa.array(random.choice(len(values), rows, p=shares)))


def _block(random: np.random.Generator, rows: int, first_patient: int) -> tuple[pa.Table, int]:
    """The next rows, and the number of the next patient."""
    number = first_patient + np.repeat(np.arange(rows), random.integers(1, 11, rows))[:rows]
    patient = pc.binary_join_element_wise("p", pa.array(10_000_000 + number).cast(pa.string()), "")
    study = pc.binary_join_element_wise("s", pa.array(random.integers(50_000_000, 59_999_999, rows)).cast("string"), "")
    place = [pc.utf8_slice_codeunits(patient, 0, 5), patient, study, _digits(random, rows, 8)]
    path = pc.binary_join_element_wise(pc.binary_join_element_wise(*place, "/"), ".png", "")
    twice = np.where(random.random(rows) < 0.001, random.integers(0, rows, rows), np.arange(rows))
    size = random.integers(0, 200, rows)
    columns = {
        "image_id": path,
        "path": path,
        "sha256": _digits(random, rows, 64).take(pa.array(twice)),
        "phash": _digits(random, rows, 16),
        "label": _some(random, rows, ["COVID-19", "Non-COVID", "Normal", None], [0.3, 0.3, 0.39, 0.01]),
        "patient": patient,
        "source": _some(random, rows, ["bimcv", "mimic-cxr", "padchest", "rsna"], [0.2, 0.4, 0.2, 0.2]),
        "view": _some(random, rows, ["AP", "PA", "LATERAL"], [0.4, 0.4, 0.2]),
        "sex": _some(random, rows, ["F", "M", None], [0.45, 0.45, 0.1]),
        "age_years": pa.array(random.integers(18, 95, rows)).cast(pa.float32()),
        "width": pa.array(1024 + 8 * size).cast(pa.int32()),
        "height": pa.array(1024 + 8 * (size % 50)).cast(pa.int32()),
        "mode": _some(random, rows, ["L", "RGB"], [0.9, 0.1]),
        "format": _some(random, rows, ["PNG", "JPEG"], [0.7, 0.3]),
    }
    filled = [columns[name] if name in columns else pa.nulls(rows, kind) for name, kind in COLUMNS.items()]
    return pa.Table.from_arrays(filled, schema=pa.schema(list(COLUMNS.items()))), int(number[-1]) + 1


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
    folder.mkdir(exist_ok=True)
    starts = np.random.default_rng(1).permutation(range(0, len(manifest), _SHUFFLED))
    table = pa.concat_tables([manifest.table.slice(start, _SHUFFLED) for start in starts])
    order = np.concatenate([np.arange(start, min(start + _SHUFFLED, len(manifest))) for start in starts])
    for name in EMBEDDINGS.arrays:
        np.save(folder / f"{name}.npy", order.astype(np.float32)[:, None])
    facts = {"encoder": {}, "preprocess": {}}
    finish_arrays(folder, EMBEDDINGS, Manifest(table, manifest.root), facts=facts, fingerprint="")


def join(work: Path) -> None:
    """Embeddings in the order of the manifest."""
    manifest, found = read_manifest(work / "manifest.parquet"), read_embeddings(work / "embeddings")
    if not np.array_equal(found.pooled[found.rows_for(manifest)][:, 0], np.arange(len(manifest), dtype=np.float32)):
        raise SystemExit("joined wrongly")


def keep(work: Path, folds: Sequence[int]) -> None:
    """The images of some folds, as a manifest of their own."""
    write_manifest(work / "kept.parquet", read_manifest(work / "folds.parquet", where={"fold": list(folds)}))


def measure(work: Path, rows: int) -> dict[str, Used]:
    """Stage -> what its process took."""
    thoraclip, own = (
        [sys.executable, "-m", "thoraclip"],
        [sys.executable, "-m", "benchmarks.manifests", "--work", str(work)],
    )
    manifest, folds = str(work / "manifest.parquet"), str(work / "folds.parquet")
    commands = {
        "make up and write": [*own, "--rows", str(rows), "--stage", "write"],
        "read and validate": [*own, "--stage", "read"],
        "split into 5 folds": [*thoraclip, "split", manifest, "--folds", "5", "--out", folds],
        "split by fractions": [*thoraclip, "split", manifest, "--fractions", "0.7,0.1,0.2", "--out", str(work / "s.parquet")],
        "filter, one fold is kept": [*own, "--stage", "one"],
        "filter, four folds of five are kept": [*own, "--stage", "four"],
        "index": [*own, "--stage", "index"],
        "join with embeddings in another order": [*own, "--stage", "join"],
        "check --no-pictures": [*thoraclip, "check", folds, "--no-pictures", "--strict", "--out", str(work / "check")],
    }  # fmt: skip
    used = {what: launch(command) for what, command in commands.items()}
    return {what: one for what, one in used.items() if what != "index"}


def _gigabytes(used: Used) -> float:
    return used.peak * 2**20 / 1e9


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """Ten million rows: peak memory and seconds of each stage."""
    rows = QUICK_ROWS if quick else ROWS
    with tempfile.TemporaryDirectory(dir=work) as folder:
        measured = measure(Path(folder), rows)
    size = f"{rows / 1e6:g}M rows"
    found = []
    for what, used in measured.items():
        peak = _gigabytes(used)
        memory = f"{size}: {what}, peak memory / {LIMIT_GB} GB"
        limit = f"{LIMIT_GB} GB of memory"
        found.append(Result(memory, peak / LIMIT_GB, 1.0, limit, peak, "GB", higher_is_better=False))
        found.append(Result(f"{size}: {what}, time", None, None, "", used.wall, "s"))
    return found


def main() -> None:
    given = options(__doc__, rows=ROWS, work=None, stage="")
    if given.stage:
        file = given.work / "manifest.parquet"
        stages = {
            "write": lambda: write_manifest(file, make(given.rows, given.work / "root")), "read": lambda: read_manifest(file),
            "one": lambda: keep(given.work, [0]), "four": lambda: keep(given.work, [1, 2, 3, 4]),
            "index": lambda: index(given.work), "join": lambda: join(given.work),
        }  # fmt: skip
        stages[given.stage]()
        return
    with tempfile.TemporaryDirectory() as folder:
        measured = measure((given.work or Path(folder)).resolve(), given.rows)
    print(f"{given.rows:,} rows, {cores()} cores")
    for what, used in measured.items():
        print(
            f"{what:<40} {used.wall:8.1f} s {given.rows / used.wall:11,.0f} rows/s {1000 * _gigabytes(used):8,.0f} MB"
        )


if __name__ == "__main__":
    main()
