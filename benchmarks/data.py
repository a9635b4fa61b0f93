"""Time, rate and peak memory of everything that reads a whole data set: index (cold, again), check, pixel cache.

    python benchmarks/data.py --phantoms 2000
    python benchmarks/data.py --folder IMAGES --layout covid-qu-ex

Each stage is a process of its own, so its peak memory is its own. The last column is its time over that of the cold index,
measured in this one run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_CACHE = """
import sys
from pathlib import Path
from thoraclip.data.batches import pixel_cache
from thoraclip.imaging import Preprocess
from thoraclip.tables.manifest import read_manifest
pixel_cache(read_manifest(Path(sys.argv[1])), Preprocess(), Path(sys.argv[2]))
"""


def stage(arguments: list[str]) -> tuple[float, float]:
    """(seconds, peak memory in MB) of one process."""
    began = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"failed: {' '.join(arguments)}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="images to read; phantoms are drawn where none are named")
    parser.add_argument("--layout", default="covid-qu-ex")
    parser.add_argument("--phantoms", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        thoraclip = [sys.executable, "-m", "thoraclip"]
        root = arguments.folder or work / "phantoms"
        if arguments.folder is None:
            stage([*thoraclip, "phantom", str(root), "--images", str(arguments.phantoms)])
        manifest = str(work / "m.parquet")
        index = [*thoraclip, "index", str(root), "--layout", arguments.layout, "--out", manifest]
        check = [*thoraclip, "check", manifest, "--out", str(work / "check")]
        stages = {
            "index": index,
            "index again, nothing changed": index,
            "check": check,
            "check again": check,
            "pixel cache, 224 pixels": [sys.executable, "-c", _CACHE, manifest, str(work / "pixels")],
            "pixel cache again": [sys.executable, "-c", _CACHE, manifest, str(work / "pixels")],
        }
        measured = {what: stage(command) for what, command in stages.items()}
        from thoraclip.tables.manifest import read_manifest

        n = len(read_manifest(Path(manifest), may_leak=True))
    first = measured["index"][0]
    print(f"{n:,} images, {os.cpu_count()} cores")
    for what, (seconds, memory) in measured.items():
        print(
            f"{what:<30} {seconds:8.1f} s {n / seconds:8.0f} images/s {memory:7.0f} MB  {seconds / first:.2f} x index"
        )


if __name__ == "__main__":
    main()
