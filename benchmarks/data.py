"""Time, rate and peak memory of everything that reads a whole data set: index (cold, again), check, pixel cache.

    python -m benchmarks.data --images 2000

Each stage is a process of its own, so its peak memory is its own. The cold index and the cold pixel cache stand against
a loop that opens, hashes and resizes the same phantoms one by one.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from benchmarks.measure import command, launch, once, phantoms
from benchmarks.results import Result
from PIL import Image

_CACHE = """
import sys
from pathlib import Path
from thoraclip.data.batches import pixel_cache
from thoraclip.imaging import Preprocess
from thoraclip.tables.manifest import read_manifest
pixel_cache(read_manifest(Path(sys.argv[1])), Preprocess(), Path(sys.argv[2]))
"""


def plainly(paths: list[Path]) -> None:
    """Each picture opened, hashed and made 224 x 224, one by one."""
    for path in paths:
        hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as picture:
            picture.convert("L").resize((224, 224), Image.Resampling.BICUBIC).tobytes()


def measure(folder: Path, images: int) -> list[Result]:
    """Every stage on phantoms of 256 pixels drawn below `folder`."""
    drawn, manifest = phantoms(folder, images), folder / "m.parquet"
    stages = {
        "index": lambda: launch("index", drawn.root, "--out", manifest),
        "check": lambda: launch("check", manifest, "--out", folder / "check"),
        "pixel cache": lambda: launch(manifest, folder / "pixels", start=("-c", _CACHE)),
    }
    used = {f"{what}{again}": run() for what, run in stages.items() for again in ("", " again")}
    for what, one in used.items():
        print(f"{what:<20} {one.wall:8.1f} s {images / one.wall:8.0f} images/s {one.peak:7.0f} MiB")
    rate = {what: images / one.wall for what, one in used.items()}
    plain = images / once(lambda: plainly(drawn.paths()))
    loop = f"a loop with PIL and SHA-256, {plain:.0f} images/s; start of the process included"

    def again(what: str, name: str) -> Result:
        told = f"the first time, {used[what].wall:.1f} s"
        return Result.small(name, rate[what] / rate[f"{what} again"], 0.5, told, rate[f"{what} again"], "images/s")

    return [
        Result("index", rate["index"] / plain, None, loop, rate["index"], "images/s"),
        Result("pixel cache", rate["pixel cache"] / plain, 1, loop, rate["pixel cache"], "images/s"),
        again("index", "index again, nothing changed"),
        again("check", "check again"),
        Result.plain("check", rate["check"], "images/s"),
    ]


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """2,000 phantoms."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        return measure(Path(folder), 60 if quick else 2000)


if __name__ == "__main__":
    command(__doc__, measure, images=2000)
