"""Time, rate and peak memory of everything that reads a whole data set: index (cold, again), check, pixel cache.

    python -m benchmarks.data --phantoms 2000
    python -m benchmarks.data --folder IMAGES --layout covid-qu-ex

Each stage is a process of its own, so its peak memory is its own. The last column is its time over that of the cold index,
measured in this one run; for the benchmark's table the cold index and the cold pixel cache stand against a loop that opens,
hashes and resizes the same pictures one by one.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import Used, launch, once, options
from benchmarks.results import Result
from PIL import Image

from thoraclip.tables.manifest import read_manifest
from thoraclip.threads import cores

_CACHE = """
import sys
from pathlib import Path
from thoraclip.data.batches import pixel_cache
from thoraclip.imaging import Preprocess
from thoraclip.tables.manifest import read_manifest
pixel_cache(read_manifest(Path(sys.argv[1])), Preprocess(), Path(sys.argv[2]))
"""


def stages(root: Path, layout: str, work: Path) -> tuple[dict[str, Used], int]:
    """(stage -> what its process took, images)."""
    thoraclip, manifest = [sys.executable, "-m", "thoraclip"], str(work / "m.parquet")
    index = [*thoraclip, "index", str(root), "--layout", layout, "--out", manifest]
    check = [*thoraclip, "check", manifest, "--out", str(work / "check")]
    cache = [sys.executable, "-c", _CACHE, manifest, str(work / "pixels")]
    commands = {
        "index": index,
        "index again, nothing changed": index,
        "check": check,
        "check again": check,
        "pixel cache, 224 pixels": cache,
        "pixel cache again": cache,
    }
    measured = {what: launch(command) for what, command in commands.items()}
    return measured, len(read_manifest(Path(manifest), may_leak=True))


def draw(folder: Path, images: int) -> Path:
    """So many phantoms."""
    launch([sys.executable, "-m", "thoraclip", "phantom", str(folder), "--images", str(images)])
    return folder


def plainly(paths: list[Path]) -> None:
    """Each picture opened, hashed and made 224 x 224, one by one."""
    for path in paths:
        hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as picture:
            picture.convert("L").resize((224, 224), Image.Resampling.BICUBIC).tobytes()


def bench(work: Path, *, quick: bool = False) -> list[Result]:
    """2,000 phantoms of 256 pixels."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        measured, n = stages(draw(Path(folder) / "phantoms", 60 if quick else 2000), "covid-qu-ex", Path(folder))
        plain = once(lambda: plainly(read_manifest(Path(folder) / "m.parquet", may_leak=True).paths()))
    wall = {what: used.wall for what, used in measured.items()}
    loop = f"a loop with PIL and SHA-256, {n / plain:.0f} images/s; start of the process included"

    def again(what: str, later: str, goal: float) -> Result:
        return Result(
            later, wall[later] / wall[what], goal, f"the first time, {wall[what]:.1f} s", n / wall[later], "images/s",
            higher_is_better=False,
        )  # fmt: skip

    return [
        Result("index", plain / wall["index"], None, loop, n / wall["index"], "images/s"),
        Result("pixel cache", plain / wall["pixel cache, 224 pixels"], 1, loop, n / wall["pixel cache, 224 pixels"], "images/s"),
        again("index", "index again, nothing changed", 0.5),
        again("check", "check again", 0.5),
        Result("check", None, None, "", n / wall["check"], "images/s"),
    ]  # fmt: skip


def main() -> None:
    given = options(__doc__, folder=None, layout="covid-qu-ex", phantoms=2000)
    with tempfile.TemporaryDirectory() as name:
        root = given.folder or draw(Path(name) / "phantoms", given.phantoms)
        measured, n = stages(root, given.layout, Path(name))
    print(f"{n:,} images, {cores()} cores")
    for what, used in measured.items():
        share = used.wall / measured["index"].wall
        print(f"{what:<30} {used.wall:8.1f} s {n / used.wall:8.0f} images/s {used.peak:7.0f} MB  {share:.2f} x index")


if __name__ == "__main__":
    main()
